namespace TransformerKernels.Tests;

/// <summary>What one launch moved to and from global memory.</summary>
/// <remarks>
/// A transaction is a line of 128 bytes that one instruction of one warp touches. The threads of a warp are 32 that follow each other in the group, x fastest; those that part
/// at a branch meet again where the ways do. There is no cache: a line that the next instruction touches again counts again.
/// </remarks>
internal sealed class Traffic(string kernel, long maximumInstructions = Traffic.Endless)
{
    public const int LineBytes = 128;

    /// <summary>Some ten seconds' worth: whatever runs longer runs for ever.</summary>
    public const long Endless = 100_000_000;

    private const int LineShift = 7, BufferShift = 48;

    // An instruction of 32 threads with 16 bytes each, if no two are in one line and each straddles none.
    private readonly long[] lines = new long[Warp.Size];
    private int lineCount;

    public string Kernel { get; } = kernel;

    /// <summary>What the instructions asked for, summed over the threads.</summary>
    public long BytesRead { get; private set; }

    /// <inheritdoc cref="BytesRead"/>
    public long BytesWritten { get; private set; }

    public long ReadTransactions { get; private set; }

    public long WriteTransactions { get; private set; }

    /// <summary>How many bytes were read at least once.</summary>
    public long DistinctRead { get; set; }

    /// <summary>How many bytes were written at least once.</summary>
    public long DistinctWritten { get; set; }

    /// <summary>Instructions that the warps executed.</summary>
    public long Instructions { get; set; }

    /// <summary>How many of them the launch may take.</summary>
    public long MaximumInstructions { get; } = maximumInstructions;

    public long Bytes => BytesRead + BytesWritten;

    public long TransactionBytes => LineBytes * (ReadTransactions + WriteTransactions);

    public long Distinct => DistinctRead + DistinctWritten;

    /// <summary>One thread's part of an instruction.</summary>
    public void Touch(MemoryRegion region, ulong address)
    {
        long line = ((long)region.BufferNumber << BufferShift) + ((region.RecordOffset + (long)(address - region.Start)) >> LineShift);
        // Neighbours tend to share a line.
        for (int i = lineCount - 1; i >= 0; i--)
        {
            if (lines[i] == line)
                return;
        }
        lines[lineCount++] = line;
    }

    /// <summary>Ends a warp's instruction.</summary>
    public void EndRead(long bytes)
    {
        BytesRead += bytes;
        ReadTransactions += lineCount;
        lineCount = 0;
    }

    /// <inheritdoc cref="EndRead"/>
    public void EndWrite(long bytes)
    {
        BytesWritten += bytes;
        WriteTransactions += lineCount;
        lineCount = 0;
    }
}
