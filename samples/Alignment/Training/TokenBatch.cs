namespace Alignment;

/// <summary>Sequences padded on the right to the longest one, and the places whose next token belongs to an answer.</summary>
internal sealed class TokenBatch
{
    // Any token will do: causality hides it from the tokens before it, and nothing is scored at padding.
    private const int Padding = 0;

    private int[] tokens = [], picks = [], targets = [], starts = [];
    private int pickCount;

    public int Batch { get; private set; }

    public int Positions { get; private set; }

    /// <summary>[sequence, position].</summary>
    public ReadOnlySpan<int> Tokens => tokens.AsSpan(0, Batch * Positions);

    /// <summary>The rows of <see cref="Tokens"/> after which an answer's token comes, sequence by sequence.</summary>
    public ReadOnlySpan<int> Picks => picks.AsSpan(0, pickCount);

    /// <summary>The tokens that come there.</summary>
    public Span<int> Targets => targets.AsSpan(0, pickCount);

    /// <summary>The picks of one sequence.</summary>
    public Range PicksOf(int sequence) => starts[sequence]..starts[sequence + 1];

    public void Fill(IReadOnlyList<Example> examples)
    {
        Batch = examples.Count;
        Positions = 0;
        pickCount = 0;
        foreach (Example example in examples)
        {
            if (example.PromptLength < 1)
                throw new ArgumentException("A prompt needs at least one token: the first answer token is predicted from it.", nameof(examples));
            Positions = Math.Max(Positions, example.Tokens.Length);
            pickCount += example.AnswerLength;
        }
        Grow(ref tokens, Batch * Positions);
        Grow(ref picks, pickCount);
        Grow(ref targets, pickCount);
        Grow(ref starts, Batch + 1);
        tokens.AsSpan(0, Batch * Positions).Fill(Padding);
        int pick = 0;
        for (int sequence = 0; sequence < Batch; sequence++)
        {
            Example example = examples[sequence];
            example.Tokens.CopyTo(tokens, sequence * Positions);
            starts[sequence] = pick;
            for (int at = example.PromptLength; at < example.Tokens.Length; at++, pick++)
            {
                picks[pick] = sequence * Positions + at - 1;
                targets[pick] = example.Tokens[at];
            }
        }
        starts[Batch] = pick;
    }

    private static void Grow(ref int[] array, int length)
    {
        if (array.Length < length)
            array = new int[length];
    }
}
