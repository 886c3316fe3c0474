using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Log-probs of whole answers from hidden states: those of the tokens, then their sum or mean by sequence.</summary>
public static class AnswerOracle
{
    /// <param name="hidden">[tokens, W].</param>
    /// <param name="vocabulary">[V, W].</param>
    /// <param name="targets">The token that comes, or −100 where it is none of an answer's.</param>
    /// <param name="bounds">Where the answers begin, and where the last one ends.</param>
    /// <param name="mean">Mean instead of sum.</param>
    /// <param name="shaping">What becomes of a logit.</param>
    public static T[] Forward<T>(Grid<double> hidden, Grid<double> vocabulary, long[] targets, long[] bounds, bool mean, LogitShaping? shaping = null) where T : IFloatingPointIeee754<T>
    {
        T[] logProb = HiddenLogProbsOracle.Forward<T>(hidden, vocabulary, targets, shaping: shaping).LogProb;
        (T[] sum, T[] means, _) = SequenceOracle.Reduce<T>(Array.ConvertAll(logProb, double.CreateTruncating), bounds, Array.ConvertAll(targets, target => target != -100));
        return mean ? means : sum;
    }

    /// <summary>The gradient of Σ u·answer.</summary>
    public static HiddenGradient<T> Backward<T>(Grid<double> hidden, Grid<double> vocabulary, long[] targets, long[] bounds, bool mean, double[] upstream, LogitShaping? shaping = null)
        where T : IFloatingPointIeee754<T>
    {
        T[] ofTokens = SequenceOracle.Backward<T>(mean ? null : upstream, mean ? upstream : null, bounds, Array.ConvertAll(targets, target => target != -100));
        return HiddenLogProbsOracle.Backward<T>(hidden, vocabulary, targets, Array.ConvertAll(ofTokens, double.CreateTruncating), null, null, shaping: shaping);
    }
}
