using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>How the tokens [sequence, token] are dealt out: a group takes blocks of 1,024, row by row, a warp 128 of a block, a thread four of those, a warp's width apart.</summary>
/// <remarks>Neighbouring threads have neighbouring tokens, and a thread's tokens mostly one sequence. One division finds the first token of a thread, additions the others.</remarks>
internal readonly struct TokenGrid
{
    public const int GroupSize = 256;

    /// <summary>A thread's tokens of a block.</summary>
    public const int ThreadTokens = 4;

    public const int BlockTokens = GroupSize * ThreadTokens;

    // Enough threads for any GPU of today; more tokens give each thread more of them, not the last group more sums.
    public const int MaximumGroups = 1024;

    // A warp on most devices; what it is doesn't change a result.
    private const int Width = 32;

    public readonly long Sequences, Tokens;
    public readonly int Groups;

    // To the thread's next token of the block, and from its last one to its first one of the next.
    private readonly long sequenceStep, tokenStep, sequenceStride, tokenStride;

    public TokenGrid(long sequences, long tokens)
    {
        Sequences = sequences;
        Tokens = tokens;
        Groups = GroupsOf(checked(sequences * tokens));
        (sequenceStep, tokenStep) = Math.DivRem(Width, Math.Max(tokens, 1));
        (sequenceStride, tokenStride) = Math.DivRem((long)Groups * BlockTokens - (ThreadTokens - 1) * Width, Math.Max(tokens, 1));
    }

    /// <summary>The groups for so many tokens; what they sum up depends on that alone.</summary>
    public static int GroupsOf(long tokens) => (int)Math.Min(MaximumGroups, (tokens + BlockTokens - 1) / BlockTokens);

    public long Count => Sequences * Tokens;

    /// <summary>Whether there is such a block; a group takes that of its own number, that plus all groups, and so on.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool HasBlock(long block) => block * BlockTokens < Count;

    /// <summary>Where this thread's tokens of a block begin in it; the others follow a warp's width apart.</summary>
    public static int Lane
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Group.IdxX / Width * (Width * ThreadTokens) + Group.IdxX % Width;
    }

    /// <summary>Where a thread's token of this number lies in its block.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int InBlock(int number) => Lane + number * Width;

    /// <summary>This thread's first token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenPlace First() => Place((long)Grid.IdxX * BlockTokens + Lane);

    /// <summary>The token of this number, counted row by row.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenPlace Place(long number)
    {
        long sequence = number / Tokens;
        return new(sequence, number - sequence * Tokens);
    }

    /// <summary>Whether there is such a token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Has(TokenPlace place) => place.Sequence < Sequences;

    /// <summary>The thread's token after the one that is its number-th of a block.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenPlace Next(TokenPlace place, int number) =>
        number < ThreadTokens - 1 ? Step(place, sequenceStep, tokenStep) : Step(place, sequenceStride, tokenStride);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private TokenPlace Step(TokenPlace place, long sequences, long tokens)
    {
        long sequence = place.Sequence + sequences, token = place.Token + tokens;
        return token < Tokens ? new(sequence, token) : new(sequence + 1, token - Tokens);
    }
}

/// <summary>One token of a batch.</summary>
internal readonly struct TokenPlace(long sequence, long token)
{
    public readonly long Sequence = sequence, Token = token;
}
