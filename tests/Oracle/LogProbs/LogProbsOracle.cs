using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Log-prob of the target, log-sum-exp and entropy of every row of logits.</summary>
public sealed record TokenResult<T>(T[] LogProb, T[] LogSumExp, T[] Entropy);

/// <summary>Token log-probabilities from logits [n, V].</summary>
/// <remarks>
/// With m the largest logit and S = Σ e^(z − m): ln p = (z − m) − ln S, log-sum-exp = m + ln S, entropy = −Σ p ln p, where logits of −∞ are left out.
/// Rows of −∞ alone or with a logit of ∞ have no distribution: log-sum-exp is that infinity, ln p = z − log-sum-exp, entropy and gradient are NaN.
/// A row whose target is the ignored one has results 0 and gradient 0, whatever its logits.
/// </remarks>
public static class LogProbsOracle
{
    public static TokenResult<T> Forward<T>(Grid<double> logits, ReadOnlySpan<long> targets, long ignoreTarget = -100) where T : IFloatingPointIeee754<T>
    {
        Grid<T> z = logits.To<T>();
        int tokens = targets.Length;
        var result = new TokenResult<T>(new T[tokens], new T[tokens], new T[tokens]);
        for (int row = 0; row < tokens; row++)
        {
            if (targets[row] == ignoreTarget)
                continue;
            T[] logP = LogP<T>(z.Row(row), out result.LogSumExp[row]);
            result.LogProb[row] = logP[targets[row]];
            result.Entropy[row] = Entropy(logP);
        }
        return result;
    }

    /// <summary>The gradient of Σ uL·logProb + uS·logSumExp + uH·entropy; a null upstream is 0.</summary>
    /// <remarks>dz = uL (1[target] − p) + uS p − uH p (ln p + H).</remarks>
    public static Grid<T> Backward<T>(Grid<double> logits, ReadOnlySpan<long> targets, double[]? logProbUpstream, double[]? logSumExpUpstream,
        double[]? entropyUpstream, long ignoreTarget = -100) where T : IFloatingPointIeee754<T>
    {
        Grid<T> z = logits.To<T>();
        var gradient = Grid.Zeros<T>(logits.Shape);
        for (int row = 0; row < targets.Length; row++)
        {
            if (targets[row] == ignoreTarget)
                continue;
            T[] logP = LogP<T>(z.Row(row), out T logSumExp);
            if (T.IsInfinity(logSumExp))
            {
                gradient.Row(row).Fill(T.NaN);
                continue;
            }
            T entropy = Entropy(logP);
            T uL = T.CreateTruncating(logProbUpstream?[row] ?? 0), uS = T.CreateTruncating(logSumExpUpstream?[row] ?? 0), uH = T.CreateTruncating(entropyUpstream?[row] ?? 0);
            for (int j = 0; j < logP.Length; j++)
            {
                T p = T.Exp(logP[j]), hit = j == targets[row] ? T.One : T.Zero;
                gradient[row, j] = uL * (hit - p) + uS * p - (p == T.Zero ? T.Zero : uH * p * (logP[j] + entropy));
            }
        }
        return gradient;
    }

    private static T[] LogP<T>(ReadOnlySpan<T> z, out T logSumExp) where T : IFloatingPointIeee754<T>
    {
        T largest = T.NegativeInfinity;
        foreach (T logit in z)
            largest = T.Max(largest, logit);
        T sum = T.Zero;
        foreach (T logit in z)
            sum += T.Exp(logit - largest);
        T logSum = T.IsInfinity(largest) ? T.Zero : T.Log(sum);
        logSumExp = largest + logSum;
        var logP = new T[z.Length];
        for (int j = 0; j < z.Length; j++)
            logP[j] = z[j] - largest - logSum;
        return logP;
    }

    private static T Entropy<T>(ReadOnlySpan<T> logP) where T : IFloatingPointIeee754<T>
    {
        T entropy = T.Zero;
        foreach (T value in logP)
            entropy -= T.IsNegativeInfinity(value) ? T.Zero : T.Exp(value) * value;
        return entropy;
    }
}
