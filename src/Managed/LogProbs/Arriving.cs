namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>The gradients that arrive at one token's results.</summary>
    private readonly record struct Arriving(float LogProb, float LogSumExp, float Entropy, float SumOfSquares, float MeanLogit)
    {
        /// <summary>The sums that their gradient needs.</summary>
        public Sought Sought => Sought.Sum | (Entropy == 0 ? 0 : Sought.Weighted) | (SumOfSquares == 0 ? 0 : Sought.Squares);
    }

    /// <summary>A <see cref="TokenUpstream"/> in pinned memory.</summary>
    private readonly unsafe struct ArrivingGradients(byte* logProb, byte* logSumExp, byte* entropy, byte* squares, byte* mean, in TokenUpstream upstream)
    {
        private readonly HostVector logProb = new(logProb, upstream.LogProb), logSumExp = new(logSumExp, upstream.LogSumExp), entropy = new(entropy, upstream.Entropy);
        private readonly HostVector squares = new(squares, upstream.SumOfSquares), mean = new(mean, upstream.MeanLogit);

        /// <summary>Those of a token; 0 where nothing arrives.</summary>
        public Arriving this[nint token] => new(logProb.OrZero(token), logSumExp.OrZero(token), entropy.OrZero(token), squares.OrZero(token), mean.OrZero(token));
    }
}
