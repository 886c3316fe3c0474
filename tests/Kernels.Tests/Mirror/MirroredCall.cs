namespace TransformerKernels.Tests;

/// <summary>The tensors of one call, copied to a GPU for as long as it runs.</summary>
internal sealed unsafe class MirroredCall(GpuDevice gpu) : IDisposable
{
    private readonly List<TensorBuffer> buffers = [];
    private readonly List<TensorBuffer?> written = [];

    /// <summary>A tensor that the call reads, on the GPU.</summary>
    public TensorView Read(scoped in TensorView host) => host.IsPresent ? Mirror(host, out _) : default;

    /// <summary>A tensor that the call writes, on the GPU: it holds what the host's holds. Numbered from 0 for <see cref="CopyBack"/>.</summary>
    public TensorView Written(scoped in TensorView host)
    {
        if (!host.IsPresent)
        {
            written.Add(null);
            return default;
        }
        TensorView mirrored = Mirror(host, out TensorBuffer buffer);
        written.Add(buffer);
        return mirrored;
    }

    /// <summary>Copies the elements of what was asked for as the so manieth written tensor to the host.</summary>
    public void CopyBack(int number, scoped in TensorView host)
    {
        if (written[number] is not { } buffer || host.ElementCount == 0)
            return;
        byte[] bytes = Bytes(buffer);
        (long first, _) = Reach(host);
        fixed (byte* to = host)
        fixed (byte* from = bytes)
            CopyElements(host, 0, from - first * host.Type.Size(), to);
    }

    public void Dispose()
    {
        try
        {
            gpu.Synchronize();
        }
        finally
        {
            foreach (TensorBuffer buffer in buffers)
                buffer.Dispose();
        }
    }

    private TensorView Mirror(scoped in TensorView host, out TensorBuffer buffer)
    {
        Span<long> shape = stackalloc long[host.Rank], strides = stackalloc long[host.Rank];
        for (int axis = 0; axis < host.Rank; axis++)
            (shape[axis], strides[axis]) = (host.Length(axis), host.Stride(axis));
        int size = host.Type.Size();
        (long first, long end) = host.ElementCount == 0 ? (0, 0) : Reach(host);
        long bytes = (end - first) * size;
        // Whole words, so that memory of any element type can be as long as it must.
        buffer = gpu.Allocate(ElementType.Bool, (bytes + 7) / 8 * 8);
        buffers.Add(buffer);
        if (bytes > 0)
        {
            var copy = new bool[(bytes + 7) / 8 * 8];
            fixed (bool* to = copy)
            fixed (byte* from = host)
                Buffer.MemoryCopy(from + first * size, to, copy.Length, bytes);
            buffer.CopyFrom<bool>(copy);
        }
        return TensorView.OfBuffer(buffer, (nint)(-first * size), host.Type, shape, strides);
    }

    private static byte[] Bytes(TensorBuffer buffer) => Array.ConvertAll(buffer.ToArray<bool>(), b => System.Runtime.CompilerServices.Unsafe.As<bool, byte>(ref b));

    // The first element and the one behind the last, seen from element [0, 0, ...].
    private static (long First, long End) Reach(in TensorView view)
    {
        long first = 0, end = 1;
        for (int axis = 0; axis < view.Rank; axis++)
        {
            long reach = (view.Length(axis) - 1) * view.Stride(axis);
            first += Math.Min(reach, 0);
            end += Math.Max(reach, 0);
        }
        return (first, end);
    }

    private static void CopyElements(scoped in TensorView host, int axis, byte* from, byte* to)
    {
        int size = host.Type.Size();
        if (axis == host.Rank)
        {
            Buffer.MemoryCopy(from, to, size, size);
            return;
        }
        long step = host.Stride(axis) * size;
        for (long i = 0; i < host.Length(axis); i++)
            CopyElements(host, axis + 1, from + i * step, to + i * step);
    }
}
