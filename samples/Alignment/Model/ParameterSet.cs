using TransformerKernels;

namespace Alignment;

/// <summary>One weight: its name as in Hugging Face's checkpoints, its shape, and where it lies in the set.</summary>
internal sealed record Parameter(string Name, int[] Shape, int Offset, int Count)
{
    /// <summary>This weight in a copy of all.</summary>
    public Span<float> Of(float[] all) => all.AsSpan(Offset, Count);

    /// <summary>This weight in a tensor of all, in its shape.</summary>
    public TensorView Of(TensorBuffer all)
    {
        TensorView flat = all.View.Slice(0, Offset, Count);
        return Shape.Length == 1 ? flat : flat.Reshape(Shape[0], Shape[1]);
    }
}

/// <summary>All weights of a model in one piece of memory, and their gradients in another, so that an optimiser sees one long vector.</summary>
internal sealed class ParameterSet(ComputeDevice device) : IDisposable
{
    // A cache line of floats: every weight begins on one.
    private const int Grain = 16;

    private readonly List<Parameter> list = [];
    private TensorBuffer? values, gradients;
    private int length;

    public IReadOnlyList<Parameter> All => list;

    /// <summary>The number of weights, without the gaps between them.</summary>
    public long Count => list.Sum(parameter => (long)parameter.Count);

    /// <summary>[n]: all values, gaps included; the gaps hold zeros.</summary>
    public TensorBuffer Values => values ??= device.Allocate(ElementType.Float32, length);

    /// <summary>[n]: all gradients, in the places of the values; gaps hold zeros.</summary>
    public TensorBuffer Gradients => gradients ??= device.Allocate(ElementType.Float32, length);

    /// <summary>Declares a weight of one axis or two; all are declared before any is used.</summary>
    public Parameter Add(string name, params int[] shape)
    {
        int count = checked(shape.Aggregate(1, (product, next) => checked(product * next)));
        var parameter = new Parameter(name, shape, length, count);
        list.Add(parameter);
        length = checked(length + (count + Grain - 1) / Grain * Grain);
        return parameter;
    }

    public TensorView Value(Parameter parameter) => parameter.Of(Values);

    public TensorView Gradient(Parameter parameter) => parameter.Of(Gradients);

    public Parameter Find(string name) => list.Find(parameter => parameter.Name == name) ?? throw new ArgumentException($"The model has no weight named {name}.");

    public void Dispose()
    {
        device.Synchronize();
        values?.Dispose();
        gradients?.Dispose();
    }
}
