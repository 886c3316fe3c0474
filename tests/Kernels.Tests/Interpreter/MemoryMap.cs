namespace TransformerKernels.Tests;

/// <summary>Memory that a kernel may touch: a view that is an argument, or a shared array. Around it nothing is.</summary>
/// <param name="Name">For messages: the path of the argument's field, or the array's name.</param>
/// <param name="Start">Its address in the kernel.</param>
/// <param name="Data">Where its bytes are.</param>
/// <param name="Record">The record of the buffer that it lies in; views of one buffer share it.</param>
/// <param name="RecordOffset">Where it lies in that buffer.</param>
internal sealed record MemoryRegion(string Name, ulong Start, long Length, nint Data, AccessRecord Record, long RecordOffset, bool IsShared)
{
    public int BufferNumber { get; init; }
}

/// <summary>The addresses of one launch.</summary>
internal sealed class MemoryMap
{
    /// <summary>What a generic address of shared memory has added to the address in shared memory.</summary>
    public const ulong SharedWindow = 1ul << 62;

    // Every view has a segment of its own, even if it is of the same buffer: what lies behind a view's end is out of bounds although another view reaches there.
    private const int SegmentShift = 40;

    // Where a view lies in its segment, so that addresses just below it are in no other.
    private const ulong Margin = 1ul << 20;

    // The alignment of what CUDA allocates.
    private const int BufferAlignment = 256;

    private const int SharedGap = 256;

    private readonly int wordShift;
    private readonly List<MemoryRegion> views = [], arrays = [];
    private readonly Dictionary<nint, (AccessRecord Record, int Number)> buffers = [];
    private ulong sharedEnd = SharedGap;

    public MemoryMap(int wordShift) => this.wordShift = wordShift;

    public IEnumerable<AccessRecord> Buffers => buffers.Values.Select(buffer => buffer.Record);

    /// <summary>Adds a view of a buffer.</summary>
    /// <returns>Its address.</returns>
    public ulong AddView(string name, nint buffer, long bufferBytes, long offset, long length)
    {
        if (!buffers.TryGetValue(buffer, out (AccessRecord Record, int Number) known))
            buffers.Add(buffer, known = (new AccessRecord(bufferBytes, wordShift), buffers.Count));
        ulong start = ((ulong)views.Count + 1 << SegmentShift) + Margin + (ulong)(offset % BufferAlignment);
        views.Add(new(name, start, length, buffer + (nint)offset, known.Record, offset, IsShared: false) { BufferNumber = known.Number });
        return start;
    }

    /// <summary>Adds an array in shared memory, aligned to what the text asks for and no further.</summary>
    /// <returns>Its address in shared memory.</returns>
    public ulong AddSharedArray(PtxSharedArray array, byte[] pinned)
    {
        ulong start = sharedEnd + (ulong)array.Alignment;
        sharedEnd = (start + (ulong)pinned.Length) / SharedGap * SharedGap + 2 * SharedGap;
        arrays.Add(new(array.Name, start, pinned.Length, pinned.Length == 0 ? 0 : System.Runtime.InteropServices.Marshal.UnsafeAddrOfPinnedArrayElement(pinned, 0),
            new AccessRecord(pinned.Length, wordShift), 0, IsShared: true));
        return start;
    }

    /// <summary>The region that all bytes of an access lie in; null and the reason if there is none.</summary>
    public MemoryRegion? Find(MemorySpace space, ulong address, int bytes, out string reason)
    {
        reason = "";
        bool isShared = space == MemorySpace.Shared || space == MemorySpace.Generic && address >= SharedWindow;
        if (!isShared)
        {
            int view = (int)Math.Min(address >> SegmentShift, int.MaxValue) - 1;
            if ((uint)view >= (uint)views.Count)
            {
                reason = $"{bytes} bytes at 0x{address:X}, which is no address of any argument";
                return null;
            }
            return Within(views[view], address, bytes, ref reason);
        }
        if (space == MemorySpace.Generic)
            address -= SharedWindow;
        foreach (MemoryRegion array in arrays)
        {
            if (address + SharedGap / 2 >= array.Start && address < array.Start + (ulong)array.Length + SharedGap / 2)
                return Within(array, address, bytes, ref reason);
        }
        reason = $"{bytes} bytes at 0x{address:X}, which is near no shared array";
        return null;
    }

    /// <summary>How far behind a region's start an address is that was found in it.</summary>
    public static long Offset(MemoryRegion region, ulong address) => (long)((region.IsShared && address >= SharedWindow ? address - SharedWindow : address) - region.Start);

    private static MemoryRegion? Within(MemoryRegion region, ulong address, int bytes, ref string reason)
    {
        long offset = (long)(address - region.Start);
        if (offset >= 0 && offset + bytes <= region.Length)
            return region;
        reason = $"{bytes} bytes at 0x{address:X}, offset {offset} of {region.Name}, which has {region.Length} bytes";
        return null;
    }
}

internal enum MemorySpace
{
    /// <summary>An address says itself which memory it is of.</summary>
    Generic,
    Global,
    Shared,
}
