using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>What a row of logits gives of its target and of itself.</summary>
public sealed record TokenResult<T>(T[] LogProb, T[] LogSumExp, T[] Entropy, T[] SumOfSquares)
{
    /// <summary>Σ w z / V.</summary>
    public T[] MeanLogit { get; init; } = [];
}

/// <summary>What becomes of a stored logit x before it counts: z = c tanh((x + bias) / c) / temperature over the first columns; the others don't exist.</summary>
/// <param name="Bias">[V] or null.</param>
/// <param name="Softcap">c; 0 for none.</param>
/// <param name="Temperature">The divisor.</param>
/// <param name="Valid">How many columns count; all if null.</param>
public sealed record LogitShaping(double[]? Bias = null, double Softcap = 0, double Temperature = 1, int? Valid = null)
{
    public static LogitShaping None { get; } = new();

    /// <summary>[V], the weights of the mean logit; 1 if null.</summary>
    public double[]? MeanWeights { get; init; }

    /// <summary>[n, valid] of [n, V].</summary>
    public Grid<T> Apply<T>(Grid<double> stored) where T : IFloatingPointIeee754<T>
    {
        T c = T.CreateTruncating(Softcap), temperature = T.CreateTruncating(Temperature);
        var z = Grid.Zeros<T>(stored.Shape[0], Valid ?? stored.Shape[1]);
        for (int row = 0; row < z.Shape[0]; row++)
        {
            for (int j = 0; j < z.Shape[1]; j++)
            {
                T x = T.CreateTruncating(stored[row, j]);
                if (Bias is not null)
                    x += T.CreateTruncating(Bias[j]);
                if (Softcap != 0)
                    x = c * T.Tanh(x / c);
                z[row, j] = x / temperature;
            }
        }
        return z;
    }

    /// <summary>The gradient of [n, V] from that of [n, valid]: dx = dz (1 − tanh²) / temperature.</summary>
    public Grid<T> Undo<T>(Grid<double> stored, Grid<T> gradient) where T : IFloatingPointIeee754<T>
    {
        T c = T.CreateTruncating(Softcap), temperature = T.CreateTruncating(Temperature);
        var ofStored = Grid.Zeros<T>(stored.Shape);
        for (int row = 0; row < gradient.Shape[0]; row++)
        {
            for (int j = 0; j < gradient.Shape[1]; j++)
            {
                T slope = T.One;
                if (Softcap != 0)
                {
                    T x = T.CreateTruncating(stored[row, j]);
                    if (Bias is not null)
                        x += T.CreateTruncating(Bias[j]);
                    T tanh = T.Tanh(x / c);
                    slope -= tanh * tanh;
                }
                ofStored[row, j] = gradient[row, j] * slope / temperature;
            }
        }
        return ofStored;
    }
}

/// <summary>Token log-probabilities from logits [n, V].</summary>
/// <remarks>
/// With m the largest logit and S = Σ e^(z − m): ln p = (z − m) − ln S, log-sum-exp = m + ln S, entropy = −Σ p ln p, where logits of −∞ are left out.
/// Rows of −∞ alone or with a logit of ∞ have no distribution: log-sum-exp is that infinity, ln p = z − log-sum-exp, the others and the gradient are NaN.
/// A row whose target is the ignored one has results 0 and gradient 0, whatever its logits.
/// </remarks>
public static class LogProbsOracle
{
    public static TokenResult<T> Forward<T>(Grid<double> logits, ReadOnlySpan<long> targets, long ignoreTarget = -100, LogitShaping? shaping = null) where T : IFloatingPointIeee754<T>
    {
        Grid<T> z = (shaping ?? LogitShaping.None).Apply<T>(logits);
        int tokens = targets.Length;
        var result = new TokenResult<T>(new T[tokens], new T[tokens], new T[tokens], new T[tokens]) { MeanLogit = new T[tokens] };
        for (int row = 0; row < tokens; row++)
        {
            if (targets[row] == ignoreTarget)
                continue;
            T[] logP = LogP<T>(z.Row(row), out result.LogSumExp[row]);
            result.LogProb[row] = logP[targets[row]];
            result.Entropy[row] = Entropy(logP);
            foreach (T value in logP)
                result.SumOfSquares[row] += T.Exp(value) * T.Exp(value);
            for (int j = 0; j < z.Shape[1]; j++)
            {
                T weight = T.CreateTruncating(shaping?.MeanWeights?[j] ?? 1);
                result.MeanLogit[row] += weight == T.Zero ? T.Zero : weight * z[row, j];
            }
            result.MeanLogit[row] /= T.CreateTruncating(z.Shape[1]);
            if (T.IsInfinity(result.LogSumExp[row]))
                result.SumOfSquares[row] = T.NaN;
        }
        return result;
    }

    /// <summary>The tokens with the largest logits, the largest first; of several, the first ones first. An ignored row has zeros.</summary>
    public static long[] Top(Grid<double> logits, ReadOnlySpan<long> targets, int count, long ignoreTarget = -100, LogitShaping? shaping = null)
    {
        Grid<double> z = (shaping ?? LogitShaping.None).Apply<double>(logits);
        var top = new long[targets.Length * count];
        for (int row = 0; row < targets.Length; row++)
        {
            double[] values = z.Row(row).ToArray();
            // A NaN counts as the largest.
            if (targets[row] != ignoreTarget)
                Enumerable.Range(0, values.Length).OrderByDescending(j => double.IsNaN(values[j]) ? double.PositiveInfinity : values[j]).Take(count).Select(j => (long)j).ToArray().CopyTo(top, row * count);
        }
        return top;
    }

    /// <summary>The gradient of Σ uL·logProb + uS·logSumExp + uH·entropy + uQ·Σp² + uM·meanLogit; a null upstream is 0.</summary>
    /// <remarks>dz = uL (1[target] − p) + uS p − uH p (ln p + H) + 2 uQ p (p − Σp²) + uM w / V.</remarks>
    public static Grid<T> Backward<T>(Grid<double> logits, ReadOnlySpan<long> targets, double[]? logProbUpstream, double[]? logSumExpUpstream,
        double[]? entropyUpstream, long ignoreTarget = -100, LogitShaping? shaping = null, double[]? squaresUpstream = null, double[]? meanUpstream = null) where T : IFloatingPointIeee754<T>
    {
        shaping ??= LogitShaping.None;
        Grid<T> z = shaping.Apply<T>(logits);
        var gradient = Grid.Zeros<T>(z.Shape);
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
            T uQ = T.CreateTruncating(2 * (squaresUpstream?[row] ?? 0)), everywhere = T.CreateTruncating(meanUpstream?[row] ?? 0) / T.CreateTruncating(logP.Length), squares = T.Zero;
            foreach (T value in logP)
                squares += T.Exp(value) * T.Exp(value);
            for (int j = 0; j < logP.Length; j++)
            {
                T p = T.Exp(logP[j]), hit = j == targets[row] ? T.One : T.Zero;
                gradient[row, j] = uL * (hit - p) + uS * p - (p == T.Zero ? T.Zero : uH * p * (logP[j] + entropy)) + uQ * p * (p - squares) + everywhere * T.CreateTruncating(shaping.MeanWeights?[j] ?? 1);
            }
        }
        Grid<T> ofStored = shaping.Undo(logits, gradient);
        // What is ignored may hold NaN.
        for (int row = 0; row < targets.Length; row++)
        {
            if (targets[row] == ignoreTarget)
                ofStored.Row(row).Clear();
        }
        return ofStored;
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
