using ILGPU;

namespace TransformerKernels;

/// <summary>A tensor of up to four axes with any strides, as kernels read and write it; it may be absent.</summary>
/// <remarks>
/// A kernel of the user's is a public static method whose arguments are structs with such tensors and numbers (no bool, no char) as fields. All threads of all groups run
/// it; it asks ILGPU who it is: <c>Grid.IdxX</c> of <c>Grid.DimX</c> groups, <c>Group.IdxX</c> of <c>Group.DimX</c> threads. The threads of a group share what
/// <c>SharedMemory.Allocate&lt;float&gt;(constant)</c> gives and wait for each other at <c>Group.Barrier()</c>, which all of them must reach. Indices aren't checked:
/// a thread without an element of its own returns, or does nothing until the next barrier. <see cref="GpuDevice.Launch{T}(Action{T}, int, int, T)"/> queues it:
/// <code>
/// public readonly struct Scaling { public GpuTensor&lt;float&gt; Values { get; init; } public float Factor { get; init; } public long Count { get; init; } }
///
/// public static void Scale(Scaling a)
/// {
///     long i = (long)Grid.IdxX * Group.DimX + Group.IdxX;
///     if (i &lt; a.Count)
///         a.Values[i] *= a.Factor;
/// }
///
/// device.Launch(Scale, groups: (count + 255) / 256, groupSize: 256, new Scaling { Values = device.Tensor&lt;float&gt;(values), Factor = 0.5f, Count = count });
/// </code>
/// </remarks>
/// <typeparam name="T">The type of the elements: float, int, long, byte for bool, ushort for the bits of bfloat16 and float16.</typeparam>
public readonly struct GpuTensor<T> where T : unmanaged
{
    internal const int MaximumRank = 4;

    private readonly ArrayView<T> memory;
    private readonly long offset, stride0, stride1, stride2, stride3;
    private readonly int present;

    /// <summary>A view as a kernel's argument.</summary>
    /// <param name="device">The device whose memory it is.</param>
    /// <param name="view">A tensor in this device's memory, or absent.</param>
    /// <param name="name">The argument's name, for errors.</param>
    internal GpuTensor(GpuDevice device, in TensorView view, string name)
    {
        if (!view.IsPresent)
        {
            memory = device.Queue.Spare<T>(); // OpenCL takes no absent memory
            return;
        }
        if (view.Owner is not GpuBuffer buffer)
            throw new NotSupportedException($"{name} is a foreign pointer; GPU devices take views of tensors they allocated.");
        memory = buffer.Use<T>();
        offset = view.Address / view.Type.Size();
        stride0 = Stride(view, 0);
        stride1 = Stride(view, 1);
        stride2 = Stride(view, 2);
        stride3 = Stride(view, 3);
        present = 1;
    }

    /// <summary>Whether there is a tensor.</summary>
    public bool IsPresent => present != 0;

    /// <summary>An element of a tensor of one axis that is there.</summary>
    public ref T this[long i] => ref memory[offset + i * stride0];

    /// <summary>An element of a tensor of two axes that is there.</summary>
    public ref T this[long i, long j] => ref memory[At(i, j)];

    /// <summary>An element of a tensor of three axes that is there.</summary>
    public ref T this[long i, long j, long k] => ref memory[At(i, j, k)];

    /// <summary>An element of a tensor of four axes that is there.</summary>
    public ref T this[long i, long j, long k, long l] => ref memory[At(i, j, k) + l * stride3];

    /// <summary>Where an element of a tensor of two axes lies in <see cref="Memory"/>, in elements.</summary>
    internal long At(long i, long j) => offset + i * stride0 + j * stride1;

    /// <summary>Where the row of a tensor of four axes begins in <see cref="Memory"/>.</summary>
    internal long At(long i, long j, long k) => offset + i * stride0 + j * stride1 + k * stride2;

    /// <summary>The memory that the tensor lies in, whole.</summary>
    internal ArrayView<T> Memory => memory;

    /// <summary>The stride of the third axis, in elements.</summary>
    internal long Stride2 => stride2;

    /// <summary>The stride of the last of four axes, in elements.</summary>
    internal long Stride3 => stride3;

    // An axis of length 1 has no step: who broadcasts reads it at any index.
    private static long Stride(in TensorView view, int axis) => axis < view.Rank && view.Length(axis) != 1 ? view.Stride(axis) : 0;
}

internal static class GpuTensor
{
    /// <summary>The element types that a kernel sees as this .NET type.</summary>
    public static ElementType[] Types<T>() where T : unmanaged =>
        typeof(T) == typeof(float) ? [ElementType.Float32] :
        typeof(T) == typeof(int) ? [ElementType.Int32] :
        typeof(T) == typeof(long) ? [ElementType.Int64] :
        typeof(T) == typeof(byte) ? [ElementType.Bool] :
        typeof(T) == typeof(ushort) ? [ElementType.BFloat16, ElementType.Float16] :
        throw new ArgumentException($"A kernel sees no tensor as {typeof(T)}: float, int, long, byte (bool) or ushort (the bits of bfloat16 and float16).");
}
