using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>The gradients of hidden states [n, W], vocabulary [V, W] and bias [V].</summary>
public sealed record HiddenGradient<T>(Grid<T> Hidden, Grid<T> Vocabulary, T[] Bias) where T : INumberBase<T>;

/// <summary>Token log-probabilities from hidden states: the logits as a matrix product, then <see cref="LogProbsOracle"/>.</summary>
public static class HiddenLogProbsOracle
{
    /// <summary>[n, V]; rows of ignored tokens and columns that don't count are 0.</summary>
    public static Grid<double> Logits<T>(Grid<double> hidden, Grid<double> vocabulary, ReadOnlySpan<long> targets, long ignoreTarget, LogitShaping shaping) where T : IFloatingPointIeee754<T>
    {
        Grid<T> h = hidden.To<T>(), v = vocabulary.To<T>();
        var logits = Grid.Zeros<T>(hidden.Shape[0], vocabulary.Shape[0]);
        for (int i = 0; i < targets.Length; i++)
        {
            for (int j = 0; j < (shaping.Valid ?? vocabulary.Shape[0]) && targets[i] != ignoreTarget; j++)
            {
                for (int w = 0; w < hidden.Shape[1]; w++)
                    logits[i, j] += h[i, w] * v[j, w];
            }
        }
        return logits.To<double>();
    }

    public static TokenResult<T> Forward<T>(Grid<double> hidden, Grid<double> vocabulary, ReadOnlySpan<long> targets, long ignoreTarget = -100, LogitShaping? shaping = null)
        where T : IFloatingPointIeee754<T> =>
        LogProbsOracle.Forward<T>(Logits<T>(hidden, vocabulary, targets, ignoreTarget, shaping ?? LogitShaping.None), targets, ignoreTarget, shaping);

    /// <summary>The gradient of Σ uL·logProb + uS·logSumExp + uH·entropy + uQ·Σp² + uM·meanLogit; a null upstream is 0.</summary>
    public static HiddenGradient<T> Backward<T>(Grid<double> hidden, Grid<double> vocabulary, ReadOnlySpan<long> targets, double[]? logProbUpstream, double[]? logSumExpUpstream,
        double[]? entropyUpstream, long ignoreTarget = -100, LogitShaping? shaping = null, double[]? squaresUpstream = null, double[]? meanUpstream = null) where T : IFloatingPointIeee754<T>
    {
        shaping ??= LogitShaping.None;
        Grid<T> h = hidden.To<T>(), v = vocabulary.To<T>();
        Grid<T> slopes = LogProbsOracle.Backward<T>(Logits<T>(hidden, vocabulary, targets, ignoreTarget, shaping), targets, logProbUpstream, logSumExpUpstream, entropyUpstream, ignoreTarget, shaping,
            squaresUpstream, meanUpstream);
        var gradient = new HiddenGradient<T>(Grid.Zeros<T>(hidden.Shape), Grid.Zeros<T>(vocabulary.Shape), new T[vocabulary.Shape[0]]);
        for (int i = 0; i < targets.Length; i++)
        {
            for (int j = 0; j < (shaping.Valid ?? vocabulary.Shape[0]) && targets[i] != ignoreTarget; j++)
            {
                gradient.Bias[j] += slopes[i, j];
                for (int w = 0; w < hidden.Shape[1]; w++)
                {
                    gradient.Hidden[i, w] += slopes[i, j] * v[j, w];
                    gradient.Vocabulary[j, w] += slopes[i, j] * h[i, w];
                }
            }
        }
        return gradient;
    }
}
