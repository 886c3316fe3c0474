using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>ALiBi's slopes as the paper's code makes them.</summary>
public static class AlibiOracle
{
    /// <summary>Of n = 2^i heads the powers 1 .. n of 2^(−biasMax/n); of others those of the power of two below, then every other one of the power of two above.</summary>
    public static double[] Slopes(int heads, double biasMax = 8)
    {
        int power = 1 << BitOperations.Log2((uint)heads);
        double ratio = Math.Pow(2, -biasMax / power);
        double[] slopes = [.. Enumerable.Range(1, power).Select(k => Math.Pow(ratio, k))];
        return heads == power ? slopes : [.. slopes, .. Slopes(2 * power, biasMax).Where((_, k) => k % 2 == 0).Take(heads - power)];
    }
}
