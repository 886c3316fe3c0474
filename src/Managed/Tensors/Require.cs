using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>The checks that every operation makes of its tensors before anything is written.</summary>
internal static class Require
{
    /// <summary>There is a tensor.</summary>
    public static void Present(in TensorView tensor, string name)
    {
        if (!tensor.IsPresent)
            throw new ArgumentNullException(name, $"{name} is required.");
    }

    /// <summary>A tensor that the device can address, alive, of one of the types, with the shape; −1 allows any length.</summary>
    public static void Input(ComputeDevice device, in TensorView tensor, string name, ReadOnlySpan<ElementType> types, params ReadOnlySpan<long> shape)
    {
        Present(tensor, name);
        ObjectDisposedException.ThrowIf(tensor.Owner is { IsDisposed: true }, typeof(TensorBuffer));
        if (!ReferenceEquals(tensor.Space, device.MemorySpace))
            throw new ArgumentException($"{name} lies in memory that {device.Name} can't address; copy it to that device first.", name);
        if (!types.Contains(tensor.Type))
            throw new ArgumentException($"{name} holds {tensor.Type}; this operation takes {string.Join(" or ", types.ToArray())}.", name);
        Shape(tensor, name, shape);
    }

    /// <summary>A float32 tensor that the device can address, alive, with the shape; −1 allows any length.</summary>
    public static void Input(ComputeDevice device, in TensorView tensor, string name, params ReadOnlySpan<long> shape) =>
        Input(device, tensor, name, [ElementType.Float32], shape);

    /// <summary>As <see cref="Input(ComputeDevice, in TensorView, string, ReadOnlySpan{ElementType}, ReadOnlySpan{long})"/>, of the shape or of length 1 along any of its axes.</summary>
    public static void Shared(ComputeDevice device, in TensorView tensor, string name, ReadOnlySpan<ElementType> types, params ReadOnlySpan<long> shape)
    {
        Span<long> own = stackalloc long[tensor.Rank];
        own.Fill(-1);
        Input(device, tensor, name, types, own);
        bool fits = tensor.Rank == shape.Length;
        for (int axis = 0; fits && axis < shape.Length; axis++)
            fits = shape[axis] == -1 || tensor.Length(axis) == 1 || tensor.Length(axis) == shape[axis];
        if (!fits)
            throw new ArgumentException($"{name} has the shape {tensor.ShapeText}; it should be {Text(shape)}, where any axis may have length 1.", name);
    }

    /// <summary>As <see cref="Input(ComputeDevice, in TensorView, string, ReadOnlySpan{long})"/>, writable, no two of whose elements share memory.</summary>
    public static void Output(ComputeDevice device, in TensorView tensor, string name, params ReadOnlySpan<long> shape) =>
        Output(device, tensor, name, [ElementType.Float32], shape);

    /// <summary>As <see cref="Input(ComputeDevice, in TensorView, string, ReadOnlySpan{ElementType}, ReadOnlySpan{long})"/>, writable, no two of whose elements share memory.</summary>
    public static void Output(ComputeDevice device, in TensorView tensor, string name, ReadOnlySpan<ElementType> types, params ReadOnlySpan<long> shape)
    {
        Input(device, tensor, name, types, shape);
        if (tensor.IsReadOnly)
            throw new ArgumentException($"{name} is written, but the view is read-only.", name);
        if (tensor.AliasesItself)
            throw new ArgumentException($"{name} is written, but its strides put several elements at one address.", name);
    }

    /// <summary>The same as <see cref="Output(ComputeDevice, in TensorView, string, ReadOnlySpan{long})"/> for a tensor that may be absent.</summary>
    public static void OptionalOutput(ComputeDevice device, in TensorView tensor, string name, params ReadOnlySpan<long> shape)
    {
        if (tensor.IsPresent)
            Output(device, tensor, name, shape);
    }

    /// <summary>The same as <see cref="Input(ComputeDevice, in TensorView, string, ReadOnlySpan{long})"/> for a tensor that may be absent.</summary>
    public static void OptionalInput(ComputeDevice device, in TensorView tensor, string name, params ReadOnlySpan<long> shape)
    {
        if (tensor.IsPresent)
            Input(device, tensor, name, shape);
    }

    /// <summary>Two tensors of which at least one is written must not share memory; absent ones share none.</summary>
    public static void Disjoint(in TensorView a, string nameA, in TensorView b, string nameB)
    {
        if (a.IsPresent && b.IsPresent && a.Overlaps(b))
            throw new ArgumentException($"{nameA} and {nameB} share memory.", nameA);
    }

    /// <summary>At least one of several optional tensors is there.</summary>
    /// <param name="any">Whether one is.</param>
    /// <param name="name">What holds them.</param>
    /// <param name="choices">Their names.</param>
    /// <param name="verb">What it does with them.</param>
    public static void Any(bool any, string name, string choices, string verb = "asks for")
    {
        if (!any)
            throw new ArgumentException($"{name} {verb} nothing; set at least one of {choices}.", name);
    }

    /// <summary>The device is there, and open.</summary>
    public static void Device(ComputeDevice device)
    {
        ArgumentNullException.ThrowIfNull(device);
        device.RequireOpen();
    }

    /// <summary>A workspace of this device.</summary>
    public static void Workspace(ComputeDevice device, Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        if (!ReferenceEquals(workspace.Device.MemorySpace, device.MemorySpace))
            throw new ArgumentException($"The workspace belongs to {workspace.Device.Name}, not to {device.Name}.", nameof(workspace));
    }

    /// <summary>A number that is neither infinite nor NaN.</summary>
    public static void Finite(double value, [CallerArgumentExpression(nameof(value))] string name = "")
    {
        if (!double.IsFinite(value))
            throw new ArgumentOutOfRangeException(name, value, $"{name} must be a finite number.");
    }

    // Far beyond every sequence, and sums of a few don't overflow.
    private const long FarthestPosition = 1L << 40;

    /// <summary>A position, or a difference of two, from −2⁴⁰ to 2⁴⁰.</summary>
    public static void Position(long value, string name)
    {
        if (value is < -FarthestPosition or > FarthestPosition)
            throw new ArgumentOutOfRangeException(name, value, $"{name} must lie between −2^40 and 2^40.");
    }

    // More than memory holds, and few enough that whatever scratch memory is made of so many numbers is told in 64 bits.
    private const long MostNumbers = 1L << 48;

    /// <summary>The sizes of a problem whose tensors may all be views that repeat a few numbers: their product is at most 2⁴⁸.</summary>
    public static void Size(Int128 numbers, string what, string name)
    {
        if (numbers > MostNumbers)
            throw new ArgumentException($"{what} of {name} is {numbers}; it must be at most 2^48.", name);
    }

    private static void Shape(in TensorView tensor, string name, ReadOnlySpan<long> shape)
    {
        bool fits = tensor.Rank == shape.Length;
        for (int axis = 0; fits && axis < shape.Length; axis++)
            fits = shape[axis] == -1 || shape[axis] == tensor.Length(axis);
        if (!fits)
            throw new ArgumentException($"{name} has the shape {tensor.ShapeText}; it should be {Text(shape)}.", name);
    }

    private static string Text(ReadOnlySpan<long> shape) => $"[{string.Join(", ", shape.ToArray().Select(length => length < 0 ? "any" : length.ToString()))}]";
}
