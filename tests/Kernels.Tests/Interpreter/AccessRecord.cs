namespace TransformerKernels.Tests;

/// <summary>Who read and wrote each word of a buffer in one launch, or of a shared array, and whether that is a race.</summary>
/// <remarks>
/// Two accesses to a word, one of them a write, race if they come from two threads of a group with no barrier between them, or from two groups. Two threads of a group
/// may write the same value. Warps are no order: what a thread writes, another one of its warp may read only behind a barrier. Atomic operations are left out.
/// </remarks>
/// <param name="bytes">How long the memory is.</param>
/// <param name="wordShift">log2 of the size of a word: the narrowest access of the kernel.</param>
internal sealed class AccessRecord(long bytes, int wordShift)
{
    private const int Several = -1;

    private readonly Word[] words = new Word[(bytes + (1 << wordShift) - 1) >> wordShift];

    // Threads, groups and times count from 1. A time ends at a barrier; no two groups share one.
    private struct Word
    {
        public int Writer, WriterGroup, WriteTime, WriteLine, Reader, ReaderGroup, ReadTime, ReadLine;
    }

    public int WordShift => wordShift;

    public bool IsWritten(long offset, int size, int since)
    {
        for (long i = offset >> wordShift; i < (offset + size + (1 << wordShift) - 1) >> wordShift; i++)
        {
            if (words[i].WriteTime < since)
                return false;
        }
        return true;
    }

    /// <summary>Records a read.</summary>
    /// <returns>What it races with, or null.</returns>
    public string? Read(long offset, int size, in Access by)
    {
        string? race = null;
        for (long i = offset >> wordShift, end = (offset + size - 1) >> wordShift; i <= end; i++)
        {
            ref Word word = ref words[i];
            if (word.WriteTime == by.Time && word.Writer != by.Thread)
                race ??= $"reads what {by.Group.NameThread(word.Writer)} wrote at line {word.WriteLine} without a barrier between them";
            else if (word.WriterGroup != 0 && word.WriterGroup != by.GroupNumber)
                race ??= $"reads what {by.Group.NameGroup(word.WriterGroup)} wrote at line {word.WriteLine} in the same launch";
            word.Reader = word.ReadTime == by.Time && word.Reader != by.Thread ? Several : by.Thread;
            word.ReaderGroup = word.ReaderGroup == 0 || word.ReaderGroup == by.GroupNumber ? by.GroupNumber : Several;
            (word.ReadTime, word.ReadLine) = (by.Time, by.Line);
        }
        return race;
    }

    /// <summary>Records a write.</summary>
    /// <param name="isSameValue">Whether the memory already holds what is written.</param>
    /// <returns>What it races with, or null.</returns>
    public string? Write(long offset, int size, bool isSameValue, in Access by)
    {
        string? race = null;
        for (long i = offset >> wordShift, end = (offset + size - 1) >> wordShift; i <= end; i++)
        {
            ref Word word = ref words[i];
            if (word.ReadTime == by.Time && word.Reader != by.Thread)
                race ??= $"writes what {by.Group.NameThread(word.Reader)} read at line {word.ReadLine} without a barrier between them";
            else if (word.WriteTime == by.Time && word.Writer != by.Thread && !isSameValue)
                race ??= $"writes another value than {by.Group.NameThread(word.Writer)} wrote at line {word.WriteLine} without a barrier between them";
            else if (word.WriterGroup != 0 && word.WriterGroup != by.GroupNumber)
                race ??= $"writes what {by.Group.NameGroup(word.WriterGroup)} wrote at line {word.WriteLine} in the same launch";
            else if (word.ReaderGroup != 0 && word.ReaderGroup != by.GroupNumber)
                race ??= $"writes what {by.Group.NameGroup(word.ReaderGroup)} read at line {word.ReadLine} in the same launch";
            word.Writer = word.WriteTime == by.Time && word.Writer != by.Thread ? Several : by.Thread;
            word.WriterGroup = by.GroupNumber;
            (word.WriteTime, word.WriteLine) = (by.Time, by.Line);
        }
        return race;
    }

    /// <summary>How many bytes were read at least once, and how many written.</summary>
    public (long Read, long Written) Touched()
    {
        long read = 0, written = 0;
        foreach (ref readonly Word word in words.AsSpan())
        {
            read += word.ReaderGroup == 0 ? 0 : 1L << wordShift;
            written += word.WriterGroup == 0 ? 0 : 1L << wordShift;
        }
        return (read, written);
    }

    /// <summary>Who accesses a word, when, and at which line.</summary>
    public readonly record struct Access(ThreadGroup Group, int Thread, int Time, int GroupNumber, int Line);
}
