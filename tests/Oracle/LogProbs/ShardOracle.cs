using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>What a slice of the vocabulary says of each token. With t = z − max over the slice: max, Σ e^t, Σ e^t t, Σ e^2t, Σ z, and the target's z, −∞ where it lies elsewhere.</summary>
public sealed record ShardSums<T>(T[] Max, T[] Sum, T[] Weighted, T[] Squares, T[] Logits, T[] Target);

/// <summary>Sums of slices of the vocabulary, and the whole from them.</summary>
public static class ShardOracle
{
    /// <summary>The sums of a slice of logits [n, slice]; zeros for ignored tokens.</summary>
    /// <param name="logits">The slice's.</param>
    /// <param name="targets">Indices in the whole vocabulary.</param>
    /// <param name="first">Where the slice begins in it.</param>
    /// <param name="ignoreTarget">The target of rows that are left out.</param>
    public static ShardSums<T> Partials<T>(Grid<double> logits, ReadOnlySpan<long> targets, int first, long ignoreTarget = -100) where T : IFloatingPointIeee754<T>
    {
        int tokens = targets.Length;
        var sums = new ShardSums<T>(new T[tokens], new T[tokens], new T[tokens], new T[tokens], new T[tokens], new T[tokens]);
        for (int row = 0; row < tokens; row++)
        {
            if (targets[row] == ignoreTarget)
                continue;
            double[] z = logits.Row(row).ToArray();
            T max = T.CreateTruncating(z.Max());
            sums.Max[row] = max;
            sums.Target[row] = targets[row] >= first && targets[row] < first + z.Length ? T.CreateTruncating(z[targets[row] - first]) : T.NegativeInfinity;
            foreach (double logit in z)
            {
                sums.Logits[row] += T.CreateTruncating(logit);
                if (double.IsNegativeInfinity(logit))
                    continue;
                T t = T.CreateTruncating(logit) - max, e = T.Exp(t);
                sums.Sum[row] += e;
                sums.Weighted[row] += e * t;
                sums.Squares[row] += e * e;
            }
        }
        return sums;
    }

    /// <summary>Log-prob, log-sum-exp, entropy and Σp² of the whole: M = max of the maxima, S = Σ sum e^(max − M), log-sum-exp = M + ln S, entropy = ln S − Σ (weighted + sum (max − M)) e^(max − M) / S.</summary>
    public static TokenResult<T> Merge<T>(IReadOnlyList<ShardSums<T>> shards) where T : IFloatingPointIeee754<T>
    {
        int tokens = shards[0].Max.Length;
        var result = new TokenResult<T>(new T[tokens], new T[tokens], new T[tokens], new T[tokens]);
        for (int row = 0; row < tokens; row++)
        {
            T max = shards.Max(shard => shard.Max[row])!, sum = T.Zero, weighted = T.Zero, squares = T.Zero, target = shards.Max(shard => shard.Target[row])!;
            foreach (ShardSums<T> shard in shards)
            {
                if (shard.Sum[row] == T.Zero)
                    continue;
                T moved = shard.Max[row] - max, factor = T.Exp(moved);
                sum += shard.Sum[row] * factor;
                // Where e^moved is 0, moved may be anything.
                weighted += factor == T.Zero ? T.Zero : (shard.Weighted[row] + shard.Sum[row] * moved) * factor;
                squares += shard.Squares[row] * factor * factor;
            }
            if (sum == T.Zero)
                continue;
            result.LogProb[row] = target - max - T.Log(sum);
            result.LogSumExp[row] = max + T.Log(sum);
            result.Entropy[row] = T.Log(sum) - weighted / sum;
            result.SumOfSquares[row] = squares / sum / sum;
        }
        return result;
    }
}
