using System.Globalization;

namespace TransformerKernels.Oracle;

/// <summary>A result is further from the oracle than the contract allows; the message says where.</summary>
public sealed class ContractException(string message) : Exception(message);

/// <summary>The promise that every operation keeps about its rounding errors.</summary>
/// <remarks>
/// Per output tensor, and per head of it: max|ours − oracle| ≤ c · max|naive − oracle| + 2 ulp(max|oracle|), where oracle is the definition in float64 and
/// naive the same loops in float32; c is 2 for results and 3 for gradients. NaN and ±∞ stand where the oracle has them and nowhere else. A number
/// that is a sum of everything (a reduced loss, a slope's gradient) counts as large as the sum of its terms' absolute values: what cancels leaves its
/// rounding behind, and in one number or two the naive loops may be lucky.
/// </remarks>
public static class Contract
{
    /// <summary>c for results.</summary>
    public const double Forward = 2;

    /// <summary>c for gradients, those of biases and captured tensors included.</summary>
    public const double Gradient = 3;

    // What is always allowed: in units in the last place (float32) of the largest number of the tensor or head.
    private const double AlwaysAllowed = 2;

    /// <summary>Throws where ours breaks the contract. The tensor is [batch, heads, ...] in row-major order; leave both at 1 where there are no heads.</summary>
    /// <param name="ours">What was computed.</param>
    /// <param name="oracle">What the oracle says.</param>
    /// <param name="naive">What its loops say in float32.</param>
    /// <param name="factor"><see cref="Forward"/> or <see cref="Gradient"/>.</param>
    /// <param name="what">The tensor, for the message.</param>
    /// <param name="heads">See above.</param>
    /// <param name="batch">See above.</param>
    /// <param name="magnitude">Of a number that is a sum: the sum of its terms' absolute values.</param>
    /// <returns>The largest |ours − oracle| as a share of what is allowed.</returns>
    public static double Check(ReadOnlySpan<float> ours, ReadOnlySpan<double> oracle, ReadOnlySpan<float> naive, double factor, string what,
        int heads = 1, int batch = 1, double magnitude = 0) => Check(ours, oracle, oracle, naive, factor, what, heads, batch, magnitude);

    /// <summary>The same against somebody else's numbers, which must be as near as if they were the oracle's.</summary>
    /// <remarks>The naive error is still measured from the oracle: a wrong number of theirs would widen its own tolerance.</remarks>
    public static double Check(ReadOnlySpan<float> ours, ReadOnlySpan<double> theirs, ReadOnlySpan<double> oracle, ReadOnlySpan<float> naive, double factor, string what,
        int heads = 1, int batch = 1, double magnitude = 0)
    {
        if (ours.Length != theirs.Length || oracle.Length != theirs.Length || naive.Length != theirs.Length)
            throw new ContractException($"{what}: {ours.Length} numbers, expected are {theirs.Length}, the oracle has {oracle.Length}, the naive loops {naive.Length}.");
        if (heads < 1 || batch < 1 || theirs.Length % (heads * batch) != 0)
            throw new ContractException($"{what}: {theirs.Length} numbers aren't [{batch}, {heads}, ...].");
        var whole = new Part(theirs.Length, 1, 1, 0);
        double share = Check(ours, theirs, Yardstick(naive, oracle, whole), factor, what, whole, magnitude);
        for (int head = 0; head < heads && heads > 1; head++)
        {
            var part = new Part(theirs.Length, batch, heads, head);
            share = Math.Max(share, Check(ours, theirs, Yardstick(naive, oracle, part), factor, $"{what}, head {head}", part, magnitude: 0));
        }
        return share;
    }

    /// <summary>What the contract allows per tensor, in the units of the tensor.</summary>
    public static double Allowed(ReadOnlySpan<double> oracle, ReadOnlySpan<float> naive, double factor, double magnitude = 0) =>
        Allowed(oracle, Yardstick(naive, oracle, new Part(oracle.Length, 1, 1, 0)), factor, magnitude);

    /// <summary>The same where it is known how far a plain float32 computation was from the oracle, not what it said.</summary>
    public static double Allowed(ReadOnlySpan<double> oracle, double naiveError, double factor, double magnitude = 0) =>
        factor * naiveError + Rounding(oracle, new Part(oracle.Length, 1, 1, 0), magnitude);

    private static double Check(ReadOnlySpan<float> ours, ReadOnlySpan<double> oracle, double naiveError, double factor, string what, Part part, double magnitude)
    {
        double rounding = Rounding(oracle, part, magnitude), allowed = factor * naiveError + rounding, worst = -1;
        int worstAt = -1;
        for (int i = 0; i < oracle.Length; i++)
        {
            if (!part.Has(i))
                continue;
            // A float32 result beyond the range of float32 is infinite, and so it should be.
            double target = double.IsFinite(oracle[i]) && float.IsFinite((float)oracle[i]) ? oracle[i] : (float)oracle[i];
            if (!double.IsFinite(target) || !float.IsFinite(ours[i]))
            {
                if (!(double.IsNaN(target) && float.IsNaN(ours[i])) && target != ours[i])
                    throw new ContractException(Invariant($"{what}: [{i}] is {ours[i]}, expected is {oracle[i]}."));
                continue;
            }
            double error = Math.Abs(ours[i] - target);
            if (error > worst)
                (worst, worstAt) = (error, i);
        }
        if (worst > allowed)
            throw new ContractException(Invariant(
                $"{what}: [{worstAt}] is {ours[worstAt]:G9}, expected is {oracle[worstAt]:G12}: {worst:G3} apart, {allowed:G3} allowed ({factor} x {naiveError:G3} of the naive float32 loops + {rounding:G3})."));
        return worst <= 0 ? 0 : worst / allowed;
    }

    // Where the naive loops overflow they are no yardstick.
    private static double Yardstick(ReadOnlySpan<float> naive, ReadOnlySpan<double> oracle, Part part)
    {
        double largest = 0;
        for (int i = 0; i < oracle.Length; i++)
        {
            if (part.Has(i) && double.IsFinite(oracle[i]) && float.IsFinite(naive[i]))
                largest = Math.Max(largest, Math.Abs(naive[i] - oracle[i]));
        }
        return largest;
    }

    private static double Rounding(ReadOnlySpan<double> oracle, Part part, double magnitude)
    {
        double largest = magnitude;
        for (int i = 0; i < oracle.Length; i++)
        {
            if (part.Has(i) && double.IsFinite(oracle[i]))
                largest = Math.Max(largest, Math.Abs(oracle[i]));
        }
        float rounded = (float)Math.Min(largest, float.MaxValue);
        return AlwaysAllowed * ((double)rounded - MathF.BitDecrement(rounded));
    }

    private static string Invariant(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);

    // One head of [batch, heads, ...], over the whole batch.
    private readonly struct Part(int count, int batch, int heads, int head)
    {
        private readonly int inner = Math.Max(1, count / (batch * heads));

        public bool Has(int index) => index / inner % heads == head;
    }
}
