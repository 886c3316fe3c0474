namespace TransformerKernels.Benchmarks;

/// <summary>How an operation goes through memory, which decides the rate that bounds it.</summary>
internal enum Traffic
{
    /// <summary>Reads far more than it writes.</summary>
    Read,
    /// <summary>Changes its data in place.</summary>
    Update,
    /// <summary>Reads some arrays and writes others.</summary>
    Copy,
}

/// <summary>What the machine can do: operations and bytes a second, measured with all threads.</summary>
/// <param name="Peak">Multiply-adds at the widest vector, two operations each.</param>
/// <param name="Bandwidth">Bytes of the traffic in question, read plus written.</param>
internal readonly record struct Rates(double Peak, double Bandwidth);

/// <summary>What an operation needs, whatever is executed: operations, and bytes (inputs read once, outputs written once, in-place data both).</summary>
internal readonly record struct Cost(double Operations, double Bytes, Traffic Traffic)
{
    // The maximum, the exponential and the sums of a logit; what one backward step over it takes is about as much.
    private const double OperationsPerLogit = 24;

    /// <summary>The least time that the machine could take, in seconds.</summary>
    public double Floor(Rates rates) => Math.Max(Operations / rates.Peak, Bytes / rates.Bandwidth);

    /// <summary>Whether arithmetic and not memory sets the floor.</summary>
    public bool IsComputeBound(Rates rates) => Operations / rates.Peak >= Bytes / rates.Bandwidth;

    /// <summary>What sets the floor: "peak", or the kind of traffic.</summary>
    public string LimitName(Rates rates) => IsComputeBound(rates) ? "peak" : Traffic.ToString().ToLowerInvariant();

    /// <summary>Attention: 2P(d + dv) operations forward, 2P(3d + 2dv) backward, P the visible pairs of all heads and sequences.</summary>
    public static Cost Attention(double visiblePairs, int headSize, int valueSize, bool backward, double bytes)
    {
        double forwardOperations = 2 * visiblePairs * (headSize + valueSize);
        double backwardOperations = backward ? 2 * visiblePairs * (3 * headSize + 2 * valueSize) : 0;
        return new(forwardOperations + backwardOperations, bytes, Traffic.Copy);
    }

    /// <summary>The pairs that a head sees, queries and keys being equally many.</summary>
    public static double VisiblePairs(int length, bool causal) => causal ? length * (length + 1.0) / 2 : (double)length * length;

    /// <summary>Log-probs from logits, or the gradient that replaces them: 24 operations a logit.</summary>
    public static Cost Logits(long tokens, long vocabulary, bool inPlace, double bytesPerToken, int bytesPerLogit) =>
        new(OperationsPerLogit * tokens * vocabulary, (inPlace ? 2 : 1) * tokens * vocabulary * bytesPerLogit + tokens * bytesPerToken,
            inPlace ? Traffic.Update : Traffic.Read);

    /// <summary>Log-probs from hidden states: 2 operations a multiply-add of the logits, and 6 more for the gradients, even if a method needs fewer.</summary>
    public static Cost HiddenLogProbs(long tokens, long width, long vocabulary, bool backward) =>
        new((backward ? 8.0 : 2.0) * tokens * width * vocabulary, (backward ? 2.0 : 1.0) * (tokens + vocabulary) * width * sizeof(float), backward ? Traffic.Copy : Traffic.Read);

    /// <summary>Element-wise work: only bytes count.</summary>
    public static Cost Elementwise(double bytes, Traffic traffic) => new(0, bytes, traffic);
}
