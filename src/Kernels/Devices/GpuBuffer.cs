using System.Diagnostics;
using ILGPU;
using ILGPU.Runtime;

namespace TransformerKernels;

/// <summary>A tensor in a GPU's memory. Its views hold no address but an offset in bytes: OpenCL's memory has handles.</summary>
internal sealed class GpuBuffer : TensorBuffer
{
    // The widest element, so that the memory can be viewed as any type to its end; and never nothing, which OpenCL refuses.
    private const long Granule = 8;

    private readonly GpuQueue queue;
    private readonly MemoryBuffer1D<byte, Stride1D.Dense> memory;
    private long lastUse;

    public GpuBuffer(GpuDevice device, GpuQueue queue, ElementType type, ReadOnlySpan<long> shape) : base(device, type, shape)
    {
        this.queue = queue;
        memory = queue.Allocate(Math.Max(Granule, checked(ByteCount + Granule - 1) / Granule * Granule));
    }

    /// <summary>The whole memory, for a kernel that is about to be queued.</summary>
    public ArrayView<T> Use<T>() where T : unmanaged
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        lastUse = queue.LastQueued + 1;
        return memory.View.BaseView.Cast<T>();
    }

    public override void Clear()
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        queue.Clear(memory);
    }

    protected override nint BaseAddress => 0;

    protected override void Upload(ReadOnlySpan<byte> source)
    {
        if (!source.IsEmpty)
            queue.Upload(memory, source);
    }

    protected override void Download(Span<byte> destination)
    {
        if (!destination.IsEmpty)
            queue.Download(memory, destination);
    }

    protected override void Free()
    {
        Debug.Assert(queue.IsFinished(lastUse), "A tensor is disposed that queued work may still use: call Synchronize first.");
        queue.Free(memory);
    }
}
