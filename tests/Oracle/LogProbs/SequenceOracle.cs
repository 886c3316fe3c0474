using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Sums and means of numbers per token by sequence.</summary>
public static class SequenceOracle
{
    /// <summary>Sum, mean and count of each sequence; no token that counts: 0.</summary>
    /// <param name="values">One a token.</param>
    /// <param name="cumulativeLengths">The sequences' bounds: tokens from entry s up to before entry s + 1.</param>
    /// <param name="counts">Whether a token counts.</param>
    public static (T[] Sum, T[] Mean, long[] Count) Reduce<T>(double[] values, long[] cumulativeLengths, bool[] counts) where T : INumber<T>
    {
        int sequences = cumulativeLengths.Length - 1;
        T[] sum = new T[sequences], mean = new T[sequences];
        var count = new long[sequences];
        for (int s = 0; s < sequences; s++)
        {
            for (long i = cumulativeLengths[s]; i < cumulativeLengths[s + 1]; i++)
            {
                if (!counts[i])
                    continue;
                sum[s] += T.CreateTruncating(values[i]);
                count[s]++;
            }
            mean[s] = count[s] == 0 ? T.Zero : sum[s] / T.CreateTruncating(count[s]);
        }
        return (sum, mean, count);
    }

    /// <summary>The gradient of Σ uS·sum + uM·mean.</summary>
    public static T[] Backward<T>(double[]? sumUpstream, double[]? meanUpstream, long[] cumulativeLengths, bool[] counts) where T : INumber<T>
    {
        var gradient = new T[counts.Length];
        for (int s = 0; s + 1 < cumulativeLengths.Length; s++)
        {
            long count = 0;
            for (long i = cumulativeLengths[s]; i < cumulativeLengths[s + 1]; i++)
                count += counts[i] ? 1 : 0;
            for (long i = cumulativeLengths[s]; i < cumulativeLengths[s + 1]; i++)
            {
                if (counts[i])
                    gradient[i] = T.CreateTruncating(sumUpstream?[s] ?? 0) + T.CreateTruncating(meanUpstream?[s] ?? 0) / T.CreateTruncating(count);
            }
        }
        return gradient;
    }
}
