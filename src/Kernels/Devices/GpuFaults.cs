using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>Which argument held what only a kernel could find to be wrong.</summary>
internal enum GpuFaultSource
{
    /// <summary>Nothing is wrong.</summary>
    None,
    /// <summary>A target outside the vocabulary.</summary>
    Targets,
    /// <summary>A position outside the rotary table.</summary>
    PositionIds,
    /// <summary>A mask that keeps fewer values than a variance needs; reported as their number.</summary>
    WhitenMask,
    /// <summary>A cumulative length that falls or leaves the tokens; reported as its index and the number of tokens.</summary>
    CumulativeLengths,
}

/// <summary>Where kernels report what is wrong in device memory, for instance an index that lies outside; the next <see cref="GpuDevice.Synchronize"/> throws it.</summary>
/// <remarks>Words: source, index (low, high), limit (low, high). The first thread that reports keeps its place; one report is enough.</remarks>
internal readonly struct GpuFaults(ArrayView<int> words)
{
    /// <summary>The number of words.</summary>
    public const int Words = 5;

    private readonly ArrayView<int> words = words;

    /// <summary>Reports an index that isn't below the limit, or is negative.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Report(GpuFaultSource source, long index, long limit)
    {
        if (Atomic.CompareExchange(ref words[0], (int)GpuFaultSource.None, (int)source) != (int)GpuFaultSource.None)
            return;
        words[1] = (int)index;
        words[2] = (int)(index >> 32);
        words[3] = (int)limit;
        words[4] = (int)(limit >> 32);
    }

    /// <summary>The exception for what a device's words say; null if nothing was reported.</summary>
    public static Exception? Read(ReadOnlySpan<int> words)
    {
        long index = Join(words[1], words[2]), limit = Join(words[3], words[4]);
        return (GpuFaultSource)words[0] switch
        {
            GpuFaultSource.None => null,
            GpuFaultSource.Targets => new ArgumentOutOfRangeException("problem.Targets", index,
                $"problem.Targets holds {index}; it must lie between 0 and {limit - 1}, or be the target to ignore. The results of that token are NaN."),
            GpuFaultSource.PositionIds => new ArgumentOutOfRangeException("options.PositionIds", index,
                $"options.PositionIds leads to position {index}; the table has 0 to {limit - 1}. The features of that token are NaN."),
            GpuFaultSource.WhitenMask => new ArgumentException(
                $"The mask keeps {(index == 0 ? "no value" : "one value")}; a variance needs at least two. What it keeps has become NaN.", "mask"),
            GpuFaultSource.CumulativeLengths => new ArgumentOutOfRangeException("layout.CumulativeLengths",
                $"layout.CumulativeLengths[{index}] is wrong; it must lie between {(index == 0 ? "0" : "the one before")} and the number of tokens, {limit}. Sums of such a sequence are NaN, and so are all gradients."),
            var source => new InvalidOperationException($"A kernel reported {source}."),
        };

        static long Join(int low, int high) => (uint)low | (long)high << 32;
    }
}
