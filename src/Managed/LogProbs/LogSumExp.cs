namespace TransformerKernels;

/// <summary>A log-sum-exp as two float32: rounded, and what rounding took.</summary>
internal static class LogSumExp
{
    /// <summary>Up to here float32 has every integer: what rounding took is at most a half.</summary>
    public const float LargestNear = 1 << 24;

    /// <summary>Those two of shift + logSum.</summary>
    /// <remarks>
    /// Beside a shift of −1e29, as a bias gives to padding, the logarithm is nothing even in float64, and yet all there is to tell one key from many: it comes last. Of an infinite log-sum-exp nothing is lost.
    /// </remarks>
    public static (float Rounded, float Remainder) Of(double shift, double logSum)
    {
        float rounded = (float)(shift + logSum);
        return (rounded, float.IsFinite(rounded) ? (float)(shift - rounded + logSum) : 0);
    }
}
