using ILGPU;
using ILGPU.Runtime;

namespace TransformerKernels;

/// <summary>A tensor in a GPU's memory. Its views hold no address but an offset in bytes: OpenCL's memory has handles.</summary>
internal sealed class GpuBuffer : TensorBuffer
{
    // The widest element, so that the memory can be viewed as any type to its end; and never nothing, which OpenCL refuses.
    private const long Granule = 8;

    private readonly long bytes;

    public GpuBuffer(GpuDevice device, GpuQueue queue, ElementType type, ReadOnlySpan<long> shape) : base(device, type, shape)
    {
        Queue = queue;
        bytes = Math.Max(Granule, checked(ByteCount + Granule - 1) / Granule * Granule);
        Memory = queue.Allocate(bytes);
    }

    public GpuQueue Queue { get; }

    /// <summary>At least as long as the tensor.</summary>
    public MemoryBuffer1D<byte, Stride1D.Dense> Memory { get; }

    /// <summary>The tensor's memory, for a kernel that is about to be queued. The device may have given more: who checks bounds must not see it.</summary>
    public ArrayView<T> Use<T>() where T : unmanaged
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        return Memory.View.BaseView.SubView(0, bytes).Cast<T>();
    }

    public override void Clear()
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        Queue.Clear(Memory);
    }

    protected override nint BaseAddress => 0;

    protected override void Upload(ReadOnlySpan<byte> source, long offset) => Queue.Upload(Memory, offset, source);

    protected override void Download(Span<byte> destination, long offset) => Queue.Download(Memory, offset, destination);

    protected override void Free() => Queue.Free(Memory);
}
