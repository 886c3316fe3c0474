using System.Numerics;
using ILGPU;
using ILGPU.Runtime;

namespace TransformerKernels;

/// <summary>A device's memory: what is given back is used again, without asking the driver, which would wait for all that is queued.</summary>
/// <remarks>
/// One stream runs everything in order, so memory can be handed on while queued work still uses it: what comes later waits. What is held never exceeds what
/// was in use at the most by more than a quarter; the oldest of what lies idle goes first. Not thread-safe: the queue's lock is held.
/// </remarks>
internal sealed class GpuPool(GpuPool.ISource source)
{
    // Eight sizes per doubling lose an eighth at most, and let sequences of nearly one length share memory.
    private const int SizesPerDoubling = 8;

    // OpenCL and CUDA align memory to this or more.
    private const long Granule = 256;

    private const int SpareShare = 4;

    private readonly HashSet<MemoryBuffer1D<byte, Stride1D.Dense>> used = [];
    private readonly List<MemoryBuffer1D<byte, Stride1D.Dense>> idle = []; // in the order in which they were given back

    /// <summary>Where memory comes from and goes.</summary>
    public interface ISource
    {
        /// <summary>Asks the driver; null if it has too little.</summary>
        MemoryBuffer1D<byte, Stride1D.Dense>? Allocate(long bytes);

        /// <summary>Gives memory back to the driver, once nothing queued uses it.</summary>
        void Free(IReadOnlyList<MemoryBuffer1D<byte, Stride1D.Dense>> memory);
    }

    public GpuMemory State => new(used.Count, UsedBytes, IdleBytes, PeakBytes);

    private long UsedBytes { get; set; }

    private long IdleBytes { get; set; }

    private long PeakBytes { get; set; }

    /// <summary>Memory of at least so many bytes with anything in it; null if the device has too little, also without what lay idle.</summary>
    public MemoryBuffer1D<byte, Stride1D.Dense>? Rent(long bytes)
    {
        long size = RoundUp(bytes);
        int found = idle.FindLastIndex(memory => memory.Length == size);
        if (found >= 0)
        {
            MemoryBuffer1D<byte, Stride1D.Dense> again = idle[found];
            idle.RemoveAt(found);
            IdleBytes -= size;
            return Use(again);
        }
        long most = Math.Max(PeakBytes, UsedBytes + size);
        DropIdle(down: most + most / SpareShare - UsedBytes - size);
        if (source.Allocate(size) is { } memory)
            return Use(memory);
        DropIdle(down: 0);
        return source.Allocate(bytes) is { } exact ? Use(exact) : null;
    }

    /// <summary>Takes memory back.</summary>
    public void Return(MemoryBuffer1D<byte, Stride1D.Dense> memory)
    {
        if (!used.Remove(memory))
            return;
        UsedBytes -= memory.Length;
        IdleBytes += memory.Length;
        idle.Add(memory);
    }

    /// <summary>Gives all that lies idle back to the driver.</summary>
    public void Trim()
    {
        DropIdle(down: 0);
        PeakBytes = UsedBytes;
    }

    private MemoryBuffer1D<byte, Stride1D.Dense> Use(MemoryBuffer1D<byte, Stride1D.Dense> memory)
    {
        used.Add(memory);
        UsedBytes += memory.Length;
        PeakBytes = Math.Max(PeakBytes, UsedBytes);
        return memory;
    }

    private void DropIdle(long down)
    {
        int count = 0;
        for (; count < idle.Count && IdleBytes > down; count++)
            IdleBytes -= idle[count].Length;
        if (count == 0)
            return;
        MemoryBuffer1D<byte, Stride1D.Dense>[] dropped = [.. idle[..count]];
        idle.RemoveRange(0, count);
        source.Free(dropped);
    }

    private static long RoundUp(long bytes)
    {
        long step = Math.Max(Granule, (long)BitOperations.RoundUpToPowerOf2((ulong)Math.Max(bytes, 1)) / 2 / SizesPerDoubling);
        return checked(bytes + step - 1) / step * step;
    }
}
