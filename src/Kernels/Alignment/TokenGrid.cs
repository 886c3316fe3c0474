using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>How the tokens [sequence, token] are dealt out: a thread takes the one of its own number, that plus all threads, and so on, row by row.</summary>
/// <remarks>Neighbouring threads have neighbouring tokens. One division finds the first token of a thread, additions the others.</remarks>
internal readonly struct TokenGrid
{
    public const int GroupSize = 256;

    // Enough threads for any GPU of today; more tokens give each thread more of them, not the last group more sums.
    public const int MaximumGroups = 1024;

    public readonly long Sequences, Tokens;
    public readonly int Groups;

    private readonly long sequenceStep, tokenStep;

    public TokenGrid(long sequences, long tokens)
    {
        Sequences = sequences;
        Tokens = tokens;
        Groups = GroupsOf(checked(sequences * tokens));
        (sequenceStep, tokenStep) = Math.DivRem((long)Groups * GroupSize, Math.Max(tokens, 1));
    }

    /// <summary>The groups for so many tokens; what they sum up depends on that alone.</summary>
    public static int GroupsOf(long tokens) => (int)Math.Min(MaximumGroups, (tokens + GroupSize - 1) / GroupSize);

    public long Count => Sequences * Tokens;

    /// <summary>This thread's first token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenPlace First()
    {
        long first = (long)Grid.IdxX * GroupSize + Group.IdxX, sequence = first / Tokens;
        return new(sequence, first - sequence * Tokens);
    }

    /// <summary>Whether there is such a token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Has(TokenPlace place) => place.Sequence < Sequences;

    /// <summary>The thread's next token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenPlace Next(TokenPlace place)
    {
        long sequence = place.Sequence + sequenceStep, token = place.Token + tokenStep;
        return token < Tokens ? new(sequence, token) : new(sequence + 1, token - Tokens);
    }
}

/// <summary>One token of a batch.</summary>
internal readonly struct TokenPlace(long sequence, long token)
{
    public readonly long Sequence = sequence, Token = token;
}
