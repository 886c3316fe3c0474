using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>A tensor in the host's memory whose pages are locked, so that a GPU copies them by itself.</summary>
internal sealed unsafe class PinnedBuffer : TensorBuffer
{
    // A page: no other data shares one with it.
    private const int Alignment = 4096;

    private readonly IDisposable pages;
    private byte* memory;

    public PinnedBuffer(GpuQueue queue, ElementType type, ReadOnlySpan<long> shape) : base(ComputeDevice.Cpu, type, shape)
    {
        Queue = queue;
        nuint bytes = (nuint)checked(Math.Max(ByteCount, 1) + Alignment - 1) / Alignment * Alignment;
        memory = (byte*)NativeMemory.AlignedAlloc(bytes, Alignment);
        try
        {
            NativeMemory.Clear(memory, bytes);
            pages = queue.Pin((nint)memory, (long)bytes);
        }
        catch
        {
            NativeMemory.AlignedFree(memory);
            throw;
        }
    }

    public GpuQueue Queue { get; }

    /// <summary>The number of the last copy queued from or to it.</summary>
    public long LastUse { get; set; }

    public override void Clear()
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        NativeMemory.Clear(memory, (nuint)ByteCount);
    }

    protected override nint BaseAddress => (nint)memory;

    protected override nint HostAddress => (nint)memory;

    protected override void Upload(ReadOnlySpan<byte> source, long offset) => source.CopyTo(new Span<byte>(memory + offset, source.Length));

    protected override void Download(Span<byte> destination, long offset) => new ReadOnlySpan<byte>(memory + offset, destination.Length).CopyTo(destination);

    protected override void Free()
    {
        Queue.Unpin(pages, LastUse);
        NativeMemory.AlignedFree(memory);
        memory = null;
    }
}
