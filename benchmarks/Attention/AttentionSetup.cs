namespace TransformerKernels.Benchmarks;

/// <summary>The bias that attention adds to its scores.</summary>
internal enum AttentionBias
{
    None,
    /// <summary>One learned number a head and distance.</summary>
    Distance,
    /// <summary>One slope a head.</summary>
    Slopes,
    /// <summary>T5's table: one learned number a head and bucket of distances.</summary>
    Buckets,
}

/// <summary>Which attention a case is about: as many keys as queries, float32, layout [batch, head, position, headSize].</summary>
internal sealed record AttentionSetup
{
    public int Batch { get; init; } = 1;
    public int Heads { get; init; } = 8;
    public int Length { get; init; } = 2048;
    public int HeadSize { get; init; } = 64;
    public AttentionBias Bias { get; init; }
    public bool Causal { get; init; }
    /// <summary>Forward and backward, with the gradients of bias and captured values; forward only otherwise.</summary>
    public bool Train { get; init; }

    public string Shape => $"[{Batch}, {Heads}, {Length}, {HeadSize}]";

    public Cost Cost
    {
        get
        {
            double rows = (double)Batch * Heads * Length, pairs = Batch * Heads * Benchmarks.Cost.VisiblePairs(Length, Causal);
            // Query, key, value in, output out, log-sum-exp out; for training also the output's gradient in and three gradients out.
            double floats = rows * (HeadSize * (Train ? 8 : 4) + 1);
            if (Bias == AttentionBias.Distance)
                floats += Heads * (2.0 * Length - 1) * (Train ? 2 : 1);
            return Benchmarks.Cost.Attention(pairs, HeadSize, HeadSize, Train, sizeof(float) * floats);
        }
    }
}
