namespace TransformerKernels.Benchmarks;

/// <summary>Which log-probs a case is about: from logits, or from hidden states if there is a width.</summary>
internal sealed record LogProbsSetup
{
    private const int ShapedSoftcap = 5;

    // What training code sampled with.
    private const float ShapedTemperature = 0.8f;

    // The likeliest tokens of a token.
    private const int TopCount = 8;

    public int Tokens { get; init; } = 1024;
    public int Vocabulary { get; init; } = 32_000;

    /// <summary>Of the hidden states; 0 for none, the logits being there.</summary>
    public int Width { get; init; }

    public Pass Pass { get; init; }

    /// <summary>How logits, or hidden states and vocabulary, are stored.</summary>
    public ElementType Storage { get; init; } = ElementType.Float32;

    public bool HasBias { get; init; }
    public bool IsCapped { get; init; }
    public bool HasTemperature { get; init; }

    /// <summary>Columns, or entries, at the end that don't count.</summary>
    public int Padding { get; init; }

    /// <summary>Forward the entropy beside the log-prob, and backward a gradient that arrives at it.</summary>
    public bool HasEntropy { get; init; }

    /// <summary>Forward also the sum of squares and the likeliest token.</summary>
    public bool HasMore { get; init; }

    /// <summary>Forward also the likeliest tokens; from logits.</summary>
    public bool HasTop { get; init; }

    /// <summary>Whether what rounding took from the log-sum-exp is kept.</summary>
    public bool KeepsRemainder { get; init; }

    public int Valid => Vocabulary - Padding;

    public float? Softcap => IsCapped ? ShapedSoftcap : null;

    public float Temperature => HasTemperature ? ShapedTemperature : 1;

    public int Top => HasTop ? TopCount : 0;

    /// <summary>For people: everything that isn't as usual.</summary>
    public string Text => string.Join(", ", new[]
    {
        Width == 0 ? $"[{Tokens}, {Vocabulary}]" : $"[{Tokens}, {Width}] x [{Vocabulary}, {Width}]",
        Storage == ElementType.Float32 ? "" : Storage.ToString().ToLowerInvariant(),
        HasBias ? "bias" : "", IsCapped ? "softcap" : "", HasTemperature ? "temperature" : "", Padding > 0 ? $"{Padding} padded" : "",
        HasEntropy ? "entropy" : "", HasMore ? "squares and argmax" : "", HasTop ? $"top {TopCount}" : "", KeepsRemainder ? "exact log-sum-exp" : "",
    }.Where(part => part != ""));

    public Cost Cost
    {
        get
        {
            if (Width > 0)
                return Cost.HiddenLogProbs(Tokens, Width, Valid, Pass, Storage.Size());
            // A token's target, and its results; backward its target, its log-sum-exp and the gradients that arrive.
            int floats = Pass == Pass.Forward ? (HasEntropy ? 3 : 2) + (HasMore ? 3 : 0) + 3 * Top : HasEntropy ? 4 : 2;
            return Cost.Logits(Tokens, Valid, Pass == Pass.Backward, sizeof(long) + floats * sizeof(float), Storage.Size());
        }
    }

    public Contest Contest(ComputeDevice device) => Width > 0 ? new FromHiddenContest(device, this) : new FromLogitsContest(device, this);
}
