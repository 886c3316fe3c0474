using ILGPU;

namespace TransformerKernels;

/// <summary>A tensor of up to four axes with any strides, as kernels read and write it; it may be absent.</summary>
/// <typeparam name="T">The type of the elements: float, int, long, or byte for bool.</typeparam>
internal readonly struct GpuTensor<T> where T : unmanaged
{
    public const int MaximumRank = 4;

    private readonly ArrayView<T> memory;
    private readonly long offset, stride0, stride1, stride2, stride3;
    private readonly int present;

    /// <summary>A view as a kernel's argument.</summary>
    /// <param name="device">The device whose memory it is.</param>
    /// <param name="view">A tensor in this device's memory, or absent.</param>
    /// <param name="name">The argument's name, for errors.</param>
    public GpuTensor(GpuDevice device, in TensorView view, string name)
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
    public T this[long i]
    {
        get => memory[offset + i * stride0];
        set => memory[offset + i * stride0] = value;
    }

    /// <summary>An element of a tensor of two axes that is there.</summary>
    public T this[long i, long j]
    {
        get => memory[At(i, j)];
        set => memory[At(i, j)] = value;
    }

    /// <summary>An element of a tensor of three axes that is there.</summary>
    public T this[long i, long j, long k]
    {
        get => memory[At(i, j, k)];
        set => memory[At(i, j, k)] = value;
    }

    /// <summary>An element of a tensor of four axes that is there.</summary>
    public T this[long i, long j, long k, long l]
    {
        get => memory[At(i, j, k) + l * stride3];
        set => memory[At(i, j, k) + l * stride3] = value;
    }

    /// <summary>Where the row of a tensor of two axes begins in <see cref="Memory"/>.</summary>
    public long At(long i, long j) => offset + i * stride0 + j * stride1;

    /// <summary>Where the row of a tensor of four axes begins in <see cref="Memory"/>.</summary>
    public long At(long i, long j, long k) => offset + i * stride0 + j * stride1 + k * stride2;

    /// <summary>The memory that the tensor lies in, whole.</summary>
    public ArrayView<T> Memory => memory;

    /// <summary>The stride of the third axis, in elements.</summary>
    public long Stride2 => stride2;

    /// <summary>The stride of the last of four axes, in elements.</summary>
    public long Stride3 => stride3;

    // An axis of length 1 has no step: who broadcasts reads it at any index.
    private static long Stride(in TensorView view, int axis) => axis < view.Rank && view.Length(axis) != 1 ? view.Stride(axis) : 0;
}
