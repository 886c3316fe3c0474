using TransformerKernels;

namespace Alignment;

/// <summary>One weight: its name as in Hugging Face's checkpoints, its shape, and where it lies in the set.</summary>
internal sealed record Parameter(string Name, int[] Shape, int Offset, int Count);

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

    /// <summary>All values, gaps included; the gaps hold zeros.</summary>
    public Span<float> Values => (values ??= device.Allocate(ElementType.Float32, length)).AsSpan<float>();

    /// <summary>All gradients, in the places of the values; gaps hold zeros.</summary>
    public Span<float> Gradients => (gradients ??= device.Allocate(ElementType.Float32, length)).AsSpan<float>();

    /// <summary>Declares a weight; all are declared before any is used.</summary>
    public Parameter Add(string name, params int[] shape)
    {
        int count = checked(shape.Aggregate(1, (product, next) => checked(product * next)));
        var parameter = new Parameter(name, shape, length, count);
        list.Add(parameter);
        length = checked(length + (count + Grain - 1) / Grain * Grain);
        return parameter;
    }

    public Span<float> Value(Parameter parameter) => Values.Slice(parameter.Offset, parameter.Count);

    public Span<float> Gradient(Parameter parameter) => Gradients.Slice(parameter.Offset, parameter.Count);

    public Parameter Find(string name) => list.Find(parameter => parameter.Name == name) ?? throw new ArgumentException($"The model has no weight named {name}.");

    public void ClearGradients() => Gradients.Clear();

    public void Dispose()
    {
        values?.Dispose();
        gradients?.Dispose();
    }
}
