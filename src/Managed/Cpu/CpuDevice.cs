using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>The processor. Each operation's part of it stands in the operation's file.</summary>
internal sealed partial class CpuDevice : ComputeDevice
{
    internal static readonly object HostMemory = new();

    private readonly CpuThreads threads;
    private readonly CancellationToken cancellation;
    private readonly bool ownsThreads;

    internal CpuDevice(int threads, bool ownsThreads = true)
    {
        this.threads = new CpuThreads(threads);
        this.ownsThreads = ownsThreads;
    }

    private CpuDevice(CpuDevice device, CancellationToken cancellation)
    {
        threads = device.threads;
        this.cancellation = cancellation;
    }

    /// <summary>A device of all processors, which nobody disposes. Its threads are started when it is first asked for.</summary>
    internal static CpuDevice Shared => OfAllProcessors.Device;

    public override string Name => $"CPU, {threads.Count} {(threads.Count == 1 ? "thread" : "threads")}, {VectorBits}";

    public override ComputeDevice With(CancellationToken cancellation) => new CpuDevice(this, cancellation);

    public override void Synchronize() => RequireOpen();

    public override TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape)
    {
        RequireOpen();
        return new HostBuffer(this, type, shape);
    }

    // At the beginning of a call: one that is under way when the device is disposed is finished, on its caller's thread.
    internal override void RequireOpen() => ObjectDisposedException.ThrowIf(threads.IsClosed, typeof(ComputeDevice));

    protected internal override object MemorySpace => HostMemory;

    protected override void Dispose(bool disposing)
    {
        if (ownsThreads)
            threads.Dispose();
    }

    private static string VectorBits =>
        Vector512.IsHardwareAccelerated ? "512-bit vectors" : Vector256.IsHardwareAccelerated ? "256-bit vectors" :
        Vector128.IsHardwareAccelerated ? "128-bit vectors" : "scalar";

    /// <summary>How many threads may run items, each with scratch memory of its own.</summary>
    private int ThreadCount => threads.Count;

    /// <summary>How many floats a vector of the widest kind holds.</summary>
    private static int Lanes =>
        Vector512.IsHardwareAccelerated ? Lanes512.Count : Vector256.IsHardwareAccelerated ? Lanes256.Count :
        Vector128.IsHardwareAccelerated ? Lanes128.Count : 1;

    /// <summary>Runs every item of a piece of work, in vectors of the widest kind that the processor has.</summary>
    private unsafe void Run<TWork>(TWork work, long items, byte* scratch = null, nint scratchStride = 0) where TWork : unmanaged, IWork
    {
        delegate*<void*, nint, byte*, void> body =
            Vector512.IsHardwareAccelerated ? &Item<TWork, Lanes512> : Vector256.IsHardwareAccelerated ? &Item<TWork, Lanes256> :
            Vector128.IsHardwareAccelerated ? &Item<TWork, Lanes128> : &Item<TWork, Real32>;
        cancellation.ThrowIfCancellationRequested();
        threads.Run(body, &work, (nint)items, scratch, scratchStride, cancellation);
    }

    private static unsafe void Item<TWork, TLanes>(void* work, nint item, byte* scratch) where TWork : unmanaged, IWork where TLanes : struct, ILanes<TLanes> =>
        ((TWork*)work)->Run<TLanes>(item, scratch);

    private static class OfAllProcessors
    {
        public static readonly CpuDevice Device = new(Environment.ProcessorCount, ownsThreads: false);
    }

    private sealed unsafe class HostBuffer : TensorBuffer
    {
        // A cache line, which is also the widest vector.
        private const int Alignment = 64;

        private byte* memory;

        public HostBuffer(ComputeDevice device, ElementType type, ReadOnlySpan<long> shape) : base(device, type, shape)
        {
            memory = (byte*)NativeMemory.AlignedAlloc((nuint)Math.Max(ByteCount, Alignment), Alignment);
            NativeMemory.Clear(memory, (nuint)ByteCount);
        }

        protected override nint BaseAddress => (nint)memory;

        protected override nint HostAddress => (nint)memory;

        public override void Clear()
        {
            ObjectDisposedException.ThrowIf(IsDisposed, this);
            NativeMemory.Clear(memory, (nuint)ByteCount);
        }

        protected override void Upload(ReadOnlySpan<byte> source, long offset) => source.CopyTo(new Span<byte>(memory + offset, source.Length));

        protected override void Download(Span<byte> destination, long offset) => new ReadOnlySpan<byte>(memory + offset, destination.Length).CopyTo(destination);

        protected override void Free()
        {
            NativeMemory.AlignedFree(memory);
            memory = null;
        }
    }
}

/// <summary>A piece of work cut into items by shape alone. An item computes and sums in an order of its own, so that the bits don't depend on who runs it.</summary>
internal interface IWork
{
    /// <summary>Runs one item.</summary>
    /// <param name="item">Which one.</param>
    /// <param name="scratch">Memory that this thread has to itself.</param>
    unsafe void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>;
}
