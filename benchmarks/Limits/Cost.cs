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
    public static Cost Attention(double visiblePairs, int headSize, int valueSize, Pass pass, double bytes)
    {
        double forwardOperations = pass == Pass.Backward ? 0 : 2 * visiblePairs * (headSize + valueSize);
        double backwardOperations = pass == Pass.Forward ? 0 : 2 * visiblePairs * (3 * headSize + 2 * valueSize);
        return new(forwardOperations + backwardOperations, bytes, Traffic.Copy);
    }

    /// <summary>Log-probs from logits, or their gradient: 24 operations a logit. The gradient replaces logits of 32 bits, and is written in 32 bits beside those of 16.</summary>
    public static Cost Logits(long tokens, long vocabulary, bool backward, double bytesPerToken, int bytesPerLogit) =>
        new(OperationsPerLogit * tokens * vocabulary, tokens * (vocabulary * (bytesPerLogit + (backward ? sizeof(float) : 0)) + bytesPerToken),
            !backward ? Traffic.Read : bytesPerLogit == sizeof(float) ? Traffic.Update : Traffic.Copy);

    /// <summary>Log-probs from hidden states: 2 operations a multiply-add of the logits, 6 for the gradients, and 8 for both, even if a method needs fewer. Gradients are float32.</summary>
    public static Cost HiddenLogProbs(long tokens, long width, long vocabulary, Pass pass, int bytesPerNumber = sizeof(float))
    {
        double products = pass switch { Pass.Forward => 1, Pass.Backward => 3, _ => 4 }, numbers = (double)(tokens + vocabulary) * width;
        return new(2 * products * tokens * width * vocabulary, numbers * (bytesPerNumber + (pass == Pass.Forward ? 0 : sizeof(float))), pass == Pass.Forward ? Traffic.Read : Traffic.Copy);
    }

    /// <summary>Element-wise work: only bytes count.</summary>
    public static Cost Elementwise(double bytes, Traffic traffic) => new(0, bytes, traffic);
}
