using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>The mask of a batch of tokens, or none. Where it lies dense in memory a thread reads four neighbouring flags at once: a warp a line, as with floats.</summary>
/// <remarks>Loops count down: in some compilations PoCL 6 mistakes what a thread sums up for a counter from 0 upwards, which is one value of all threads (docs/design.md).</remarks>
internal readonly struct TokenMask
{
    private const int WordFlags = sizeof(int), FlagBits = 8, Flag = 0xff, AllKept = 0x01010101;

    private readonly GpuTensor<byte> flags;
    private readonly ArrayView<int> words;
    private readonly long firstWord;
    private readonly int isDense, hasWholeRows;

    public TokenMask(GpuDevice device, in TensorView view, string name)
    {
        flags = new(device, view, name);
        words = view.Owner is GpuBuffer buffer ? buffer.Use<int>() : device.Queue.Spare<int>();
        if (!view.IsPresent)
        {
            isDense = 1;
            return;
        }
        firstWord = view.Address / WordFlags;
        bool dense = view.Address % WordFlags == 0 && (view.Length(1) == 1 || view.Stride(1) == 1) && (view.Length(0) == 1 || view.Stride(0) == view.Length(1));
        isDense = dense ? 1 : 0;
        hasWholeRows = dense && view.Length(1) % WordFlags == 0 ? 1 : 0;
    }

    /// <summary>Whether there is one; without, every token is kept.</summary>
    public bool IsPresent => flags.IsPresent;

    /// <summary>Which of this thread's tokens of a block there are and are kept, a bit each. All threads of the group ask.</summary>
    /// <param name="grid">How the tokens are dealt out.</param>
    /// <param name="block">The block.</param>
    /// <param name="shared">As many numbers as the group has threads.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Kept(in TokenGrid grid, long block, ArrayView<int> shared)
    {
        shared[Group.IdxX] = Word(grid, block);
        Group.Barrier();
        int kept = 0;
        for (int number = TokenGrid.ThreadTokens - 1; number >= 0; number--)
        {
            int at = TokenGrid.InBlock(number);
            kept = kept << 1 | ((shared[at / WordFlags] >> at % WordFlags * FlagBits & Flag) != 0 ? 1 : 0);
        }
        Group.Barrier(); // the next block replaces them
        return kept;
    }

    /// <summary>How many of four tokens of a block are kept: each thread counts its own four neighbours. The mask is there.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Count(in TokenGrid grid, long block) => Count(Word(grid, block));

    /// <summary>How many tokens of a sequence are kept that this thread looks at: of so many threads that share it, it is this one.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long Count(in TokenGrid grid, long sequence, int lane, int width)
    {
        long count = 0;
        if (hasWholeRows != 0)
        {
            long rowWords = grid.Tokens / WordFlags, row = firstWord + sequence * rowWords;
            for (long word = lane; word < rowWords; word += width)
                count += Count(words[row + word]);
            return count;
        }
        for (long token = lane; token < grid.Tokens; token += width)
            count += flags[sequence, token] != 0 ? 1 : 0;
        return count;
    }

    // The flags of a block that are this thread's if each has four neighbours.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private int Word(in TokenGrid grid, long block)
    {
        long first = block * TokenGrid.BlockTokens + Group.IdxX * WordFlags;
        if (isDense != 0 && first + WordFlags <= grid.Count)
            return IsPresent ? words[firstWord + first / WordFlags] : AllKept;
        int word = 0;
        for (int i = WordFlags - 1; i >= 0; i--)
        {
            TokenPlace at = grid.Place(first + i);
            word <<= FlagBits;
            if (grid.Has(at))
                word |= IsPresent ? flags[at.Sequence, at.Token] : 1;
        }
        return word;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static int Count(int word)
    {
        int count = 0;
        for (int i = WordFlags - 1; i >= 0; i--)
            count += (word >> i * FlagBits & Flag) != 0 ? 1 : 0;
        return count;
    }
}
