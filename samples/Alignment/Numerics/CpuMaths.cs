using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TransformerKernels;

namespace Alignment;

/// <summary>The model's mathematics on the processor, by vector loops over the host's memory.</summary>
internal sealed class CpuMaths : ModelMaths
{
    private readonly Team team;
    private double norm;

    /// <param name="device">A device of host memory.</param>
    /// <param name="threads">How many threads work on a call, the calling one included; results don't depend on it.</param>
    public CpuMaths(ComputeDevice device, int threads)
    {
        Device = device;
        team = new(threads);
    }

    public override ComputeDevice Device { get; }

    public override DeviceTraffic Traffic => default;

    public override double GradientNorm => norm;

    public override void Product(TensorView x, TensorView weight, TensorView y, TensorView addend = default)
    {
        Place(addend, y);
        MatrixProduct.Forward(team, Floats(x), Floats(weight), Floats(y), Length(x, 0), Length(x, 1), Length(weight, 0), accumulate: addend.IsPresent);
    }

    public override void ProductInputGradient(TensorView dy, TensorView weight, TensorView dx, TensorView addend = default)
    {
        Place(addend, dx);
        MatrixProduct.InputGradient(team, Floats(dy), Floats(weight), Floats(dx), Length(dx, 0), Length(dx, 1), Length(dy, 1), accumulate: addend.IsPresent);
    }

    public override void ProductWeightGradient(TensorView dy, TensorView x, TensorView weightGradient) =>
        MatrixProduct.WeightGradient(team, Floats(dy), Floats(x), Floats(weightGradient), Length(x, 0), Length(x, 1), Length(dy, 1));

    public override void Norm(TensorView x, TensorView weight, float epsilon, TensorView y, TensorView inverseRms) =>
        RmsNorm.Forward(team, Floats(x), Floats(weight), epsilon, Floats(y), Floats(inverseRms));

    public override void NormBackward(TensorView dy, TensorView x, TensorView weight, TensorView inverseRms, TensorView dx, TensorView weightGradient) =>
        RmsNorm.Backward(team, Floats(dy), Floats(x), Floats(weight), Floats(inverseRms), Floats(dx), Floats(weightGradient));

    public override void Gate(TensorView gate, TensorView up, TensorView sigmoid, TensorView y) =>
        SwiGlu.Forward(team, Floats(gate), Floats(up), Floats(sigmoid), Floats(y));

    public override void GateBackward(TensorView dy, TensorView gate, TensorView up, TensorView sigmoid) =>
        SwiGlu.Backward(team, Floats(dy), Floats(gate), Floats(up), Floats(sigmoid));

    public override void Gather(TensorView table, TensorView rows, TensorView result)
    {
        int width = Length(table, 1);
        ReadOnlySpan<float> from = Floats(table);
        ReadOnlySpan<int> index = Integers(rows);
        Span<float> to = Floats(result);
        for (int i = 0; i < index.Length; i++)
            from.Slice(index[i] * width, width).CopyTo(to[(i * width)..]);
    }

    public override void Scatter(TensorView values, TensorView rows, TensorView result)
    {
        int width = Length(values, 1);
        ReadOnlySpan<float> from = Floats(values);
        ReadOnlySpan<int> index = Integers(rows);
        Span<float> to = Floats(result);
        for (int i = 0; i < index.Length; i++)
            from.Slice(i * width, width).CopyTo(to[(index[i] * width)..]);
    }

    public override void AddByToken(TensorView values, TokenBatch batch, TensorView table)
    {
        int width = Length(table, 1);
        ReadOnlySpan<float> from = Floats(values);
        ReadOnlySpan<int> tokens = batch.Tokens;
        Span<float> to = Floats(table);
        for (int i = 0; i < tokens.Length; i++)
        {
            Span<float> row = to.Slice(tokens[i] * width, width);
            TensorPrimitives.Add(row, from.Slice(i * width, width), row);
        }
    }

    public override void Copy(TensorView from, TensorView to)
    {
        if (from.IsContiguous && to.IsContiguous)
        {
            Floats(from).CopyTo(Floats(to));
            return;
        }
        for (long i = 0; i < from.Length(0); i++)
            Copy(from.Select(0, i), to.Select(0, i));
    }

    public override void Fill(TensorView vector, float value) => Floats(vector).Fill(value);

    public override void Mean(TensorView vector, TensorView mean) => Floats(mean)[0] = TensorPrimitives.Sum<float>(Floats(vector)) / vector.Length(0);

    public override void SumSegments(TensorView values, TensorView starts, TensorView sums)
    {
        ReadOnlySpan<float> from = Floats(values);
        ReadOnlySpan<int> first = Integers(starts);
        Span<float> to = Floats(sums);
        for (int i = 0; i < to.Length; i++)
        {
            double sum = 0;
            foreach (float value in from[first[i]..first[i + 1]])
                sum += value;
            to[i] = (float)sum;
        }
    }

    public override void Update(TensorView values, TensorView gradients, TensorView first, TensorView second, in AdamWStep step)
    {
        norm = AdamWUpdate.Norm(team, Floats(gradients));
        float scale = norm > step.LargestNorm ? (float)(step.LargestNorm / norm) : 1;
        AdamWUpdate.Run(team, Floats(values), Floats(gradients), Floats(first), Floats(second), scale, step);
    }

    public override void Choose(TensorView logits, ReadOnlySpan<double> draws, Span<int> tokens)
    {
        int vocabulary = Length(logits, 1);
        for (int row = 0; row < tokens.Length; row++)
        {
            Span<float> values = Floats(logits).Slice(row * vocabulary, vocabulary);
            tokens[row] = draws.IsEmpty ? TensorPrimitives.IndexOfMax<float>(values) : Draw(values, draws[row]);
        }
    }

    public override void Dispose() => team.Dispose();

    // Overwrites the logits.
    private static int Draw(Span<float> logits, double draw)
    {
        TensorPrimitives.Subtract(logits, TensorPrimitives.Max<float>(logits), logits);
        TensorPrimitives.Exp<float>(logits, logits);
        double left = draw * TensorPrimitives.Sum<float>(logits);
        for (int token = 0; token < logits.Length - 1; token++)
        {
            left -= logits[token];
            if (left < 0)
                return token;
        }
        return logits.Length - 1;
    }

    // What a product is to be added to stands where the product goes.
    private static void Place(TensorView addend, TensorView result)
    {
        if (addend.IsPresent && Floats(addend) != Floats(result))
            Floats(addend).CopyTo(Floats(result));
    }

    private static int Length(TensorView view, int axis) => checked((int)view.Length(axis));

    private static Span<float> Floats(TensorView view) => Elements<float>(view, ElementType.Float32);

    private static Span<int> Integers(TensorView view) => Elements<int>(view, ElementType.Int32);

    private static Span<T> Elements<T>(TensorView view, ElementType type)
    {
        if (view.Type != type || !view.IsContiguous)
            throw new ArgumentException($"A tensor of {type} without gaps is needed here, not {view.Type} {view.ShapeText}.", nameof(view));
        return MemoryMarshal.CreateSpan(ref Unsafe.As<byte, T>(ref view.GetPinnableReference()), checked((int)view.ElementCount));
    }
}
