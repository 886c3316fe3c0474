using System.Numerics;

namespace TransformerKernels;

/// <summary>The slopes of ALiBi, for <see cref="AttentionProblem.Slopes"/> (Press et al. 2022, "Train Short, Test Long", §3; the authors' <c>get_slopes</c>).</summary>
/// <remarks>
/// With p the least power of two that isn't below the number of heads, the slopes are 2^(−biasMax·k/p): for p heads those of k = 1, 2 ... p, for fewer those of the even k and then those of the odd
/// k, as many as there are heads. BLOOM, MPT (with its <c>alibi_bias_max</c>), ggml and Keras have the same ones; Falcon rounds them to bfloat16.
/// </remarks>
public static class Alibi
{
    /// <summary>The slope of every head.</summary>
    /// <param name="heads">How many query heads, at least 1; any number, also one that is no power of two.</param>
    /// <param name="biasMax">The exponent of the smallest slope, 2^(−biasMax): 8 in the paper.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no head, or <paramref name="biasMax"/> isn't a positive number.</exception>
    public static float[] Slopes(int heads, double biasMax = 8)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        if (!(biasMax > 0) || !double.IsFinite(biasMax))
            throw new ArgumentOutOfRangeException(nameof(biasMax), biasMax, "The exponent of the smallest slope must be a positive number; it is 8 in the paper.");
        double all = BitOperations.RoundUpToPowerOf2((uint)heads);
        var slopes = new float[heads];
        for (int head = 0; head < heads; head++)
        {
            double k = heads == all ? head + 1 : 2 * head + 2;
            slopes[head] = (float)Math.Pow(2, -biasMax * (k <= all ? k : k - all - 1) / all);
        }
        return slopes;
    }
}
