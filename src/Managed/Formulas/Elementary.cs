using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>The primitives from which <see cref="Elementary"/> builds the elementary functions in float32, for a number and for vectors alike.</summary>
internal interface IElementary<T> : IReal<T> where T : struct, IElementary<T>
{
    /// <summary>a·b + c, fused where the hardware does it fast.</summary>
    static abstract T MultiplyAdd(T a, T b, T c);
    /// <summary>The smaller one; x if either is NaN.</summary>
    static abstract T MinKeepingNaN(float bound, T x);
    /// <summary>The larger one; x if either is NaN.</summary>
    static abstract T MaxKeepingNaN(float bound, T x);
    /// <summary>The nearest integer.</summary>
    static abstract T Round(T x);
    /// <summary>2^n for an integer n from −126 to 127.</summary>
    static abstract T PowerOfTwo(T n);
    /// <summary>x·2^n for an integer n from −252 to 254, with overflow to ∞ and gradual underflow.</summary>
    static abstract T Scale(T x, T n);
    /// <summary>Splits a positive normal x into m·2^exponent with m in [√½, √2).</summary>
    static abstract T Mantissa(T x, out T exponent);
}

/// <summary>Elementary functions in float32: the same operations in the same order on every device, so that a formula means the same everywhere.</summary>
/// <remarks>
/// One polynomial is the Cephes library's (Moshier): ln(1 + f) on √½ ≤ 1 + f &lt; √2. ln 2 is split in two so that n·ln 2 is exact
/// to more than float32. The bounds stated on <see cref="IReal{T}"/> are tested against double.
/// </remarks>
internal static class Elementary
{
    private const float Log2E = 1.44269504f, Ln2High = 0.693359375f, Ln2Low = -2.12194440e-4f;

    // Beyond these e^x is ∞ or rounds to 0.
    private const float ExpHigh = 89f, ExpLow = -104f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Exp<T>(T x) where T : struct, IElementary<T> => ExpBelow(T.MinKeepingNaN(ExpHigh, x));

    // e^x for x <= 89.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T ExpBelow<T>(T x) where T : struct, IElementary<T>
    {
        x = T.MaxKeepingNaN(ExpLow, x);
        T n = T.Round(x * Log2E);
        return T.Scale(Expm1Reduced(Reduce(x, n)) + 1f, n);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Expm1<T>(T x) where T : struct, IElementary<T>
    {
        // Below -60 the result is -1 to the last bit; the bound keeps 2^(n-1) normal.
        return Expm1Bounded(T.MaxKeepingNaN(-60f, T.MinKeepingNaN(ExpHigh, x)));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T Expm1Bounded<T>(T x) where T : struct, IElementary<T>
    {
        T n = T.Round(x * Log2E);
        T half = T.PowerOfTwo(n - 1f);
        T sum = T.MultiplyAdd(half, Expm1Reduced(Reduce(x, n)), half - 0.5f);
        return sum + sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Log<T>(T x) where T : struct, IElementary<T>
    {
        // 2^-126 is the smallest normal number; what lies below is scaled by 2^24 first.
        T tiny = T.From(1.17549435e-38f);
        T m = T.Mantissa(T.SelectLess(x, tiny, x * 16777216f, x), out T exponent);
        T log = LogReduced(m - 1f, exponent - T.SelectLess(x, tiny, T.From(24f), T.Zero));
        log = T.SelectLess(x, T.From(float.PositiveInfinity), log, x); // ∞ and NaN stay what they are
        return T.SelectEqual(x, T.Zero, T.From(float.NegativeInfinity), T.SelectLess(x, T.Zero, T.From(float.NaN), log));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Log1p<T>(T x) where T : struct, IElementary<T>
    {
        // ln(1+x) = ln(u) + (x - (u-1))/u with u = 1+x rounded: the second term restores what the rounding took. Above 0, u is never below 2^-24.
        T u = 1f + x;
        T m = T.Mantissa(u, out T exponent);
        T log = LogReduced(m - 1f, exponent) + (x - (u - 1f)) / u;
        log = T.SelectLess(x, T.From(float.PositiveInfinity), log, x);
        return T.SelectEqual(x, -T.One, T.From(float.NegativeInfinity), T.SelectLess(x, -T.One, T.From(float.NaN), log));
    }

    // ln((1 + f)·2^exponent) for √½ - 1 <= f < √2 - 1.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T LogReduced<T>(T f, T exponent) where T : struct, IElementary<T>
    {
        T z = f * f;
        T p = T.From(7.0376836292e-2f);
        p = T.MultiplyAdd(p, f, T.From(-1.1514610310e-1f));
        p = T.MultiplyAdd(p, f, T.From(1.1676998740e-1f));
        p = T.MultiplyAdd(p, f, T.From(-1.2420140846e-1f));
        p = T.MultiplyAdd(p, f, T.From(1.4249322787e-1f));
        p = T.MultiplyAdd(p, f, T.From(-1.6668057665e-1f));
        p = T.MultiplyAdd(p, f, T.From(2.0000714765e-1f));
        p = T.MultiplyAdd(p, f, T.From(-2.4999993993e-1f));
        p = T.MultiplyAdd(p, f, T.From(3.3333331174e-1f));
        p = T.MultiplyAdd(p * f, z, exponent * Ln2Low);
        return T.MultiplyAdd(exponent, T.From(Ln2High), f + T.MultiplyAdd(z, T.From(-0.5f), p));
    }

    // tanh x = 2t / (1 + t²) with t = tanh x/2, or twice 2u / (4 + u²) with u = 2t: doublings are additions, which leave the multipliers to the rest.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Tanh<T>(T x) where T : struct, IElementary<T>
    {
        T half = HalfTanh(TwiceTanhOfHalf(x));
        return half + half;
    }

    // The slope 1 − tanh² x is (1 − u·tanh(x)/2)², which keeps its digits where it is small.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Tanh<T>(T x, out T slope) where T : struct, IElementary<T>
    {
        T u = TwiceTanhOfHalf(x), half = HalfTanh(u), root = T.MultiplyAdd(u, half, -T.One);
        slope = root * root;
        return half + half;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T HalfTanh<T>(T u) where T : struct, IElementary<T> => (u + u) / T.MultiplyAdd(u, u, T.From(4f));

    // 2 tanh x/2 as x + x·z·R(z)/Q(z) with z = x²: tanh x is then right to 1.5·10⁻⁸, for near 1 little depends on t. From x = 9.02 on it is 1, to one unit in the last place.
    // A minimax fit whose coefficients were then moved by some units to where the worst error in float32 is least; Q is scaled to begin with z².
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T TwiceTanhOfHalf<T>(T x) where T : struct, IElementary<T>
    {
        const float bound = 9.02f;
        x = T.MaxKeepingNaN(-bound, T.MinKeepingNaN(bound, x));
        T z = x * x;
        T r = T.MultiplyAdd(T.MultiplyAdd(T.From(-6.58191784e-5f), z, T.From(-0.926907003f)), z, T.From(-79.2578964f));
        T q = T.MultiplyAdd(z + 106.23175f, z, T.From(951.095337f));
        return T.MultiplyAdd(x * z, r / q, x);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Sigmoid<T>(T x) where T : struct, IElementary<T> => Sigmoid(x, ExpOfMinusAbs(x));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Sigmoid<T>(T x, out T slope) where T : struct, IElementary<T>
    {
        T e = ExpOfMinusAbs(x), sum = 1f + e;
        slope = e / (sum * sum);
        return T.SelectLess(x, T.Zero, e, T.One) / sum;
    }

    /// <summary>e^-|x|, of which sigmoid and softplus are made.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T ExpOfMinusAbs<T>(T x) where T : struct, IElementary<T> => ExpBelow(-T.Abs(x));

    /// <summary>The sigmoid of x from e = e^-|x|.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Sigmoid<T>(T x, T e) where T : struct, IElementary<T> => T.SelectLess(x, T.Zero, e, T.One) / (1f + e);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Softplus<T>(T x) where T : struct, IElementary<T> => Softplus(x, ExpOfMinusAbs(x));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Softplus<T>(T x, out T slope) where T : struct, IElementary<T>
    {
        T e = ExpOfMinusAbs(x);
        slope = Sigmoid(x, e);
        return Softplus(x, e);
    }

    /// <summary>ln(1 + e^x) from e = e^-|x|.</summary>
    // It is max(x, 0) + ln(1 + e), with e from 0 to 1: a minimax fit of (ln(1 + e) − e)/e² that leaves ln(1 + e) right to 3.4·10⁻⁸.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Softplus<T>(T x, T e) where T : struct, IElementary<T>
    {
        T p = T.From(5.36544668e-3f);
        p = T.MultiplyAdd(p, e, T.From(-3.00683621e-2f));
        p = T.MultiplyAdd(p, e, T.From(7.92088807e-2f));
        p = T.MultiplyAdd(p, e, T.From(-1.37541890e-1f));
        p = T.MultiplyAdd(p, e, T.From(1.91538483e-1f));
        p = T.MultiplyAdd(p, e, T.From(-2.48572171e-1f));
        p = T.MultiplyAdd(p, e, T.From(3.33213300e-1f));
        p = T.MultiplyAdd(p, e, T.From(-4.99996483e-1f));
        return T.MaxKeepingNaN(0f, x) + T.MultiplyAdd(p, e * e, e);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T Reduce<T>(T x, T n) where T : struct, IElementary<T> =>
        T.MultiplyAdd(n, T.From(-Ln2Low), T.MultiplyAdd(n, T.From(-Ln2High), x));

    /// <summary>e^r = 1 + r + r²(E2 + r(E3 + ...)), to 3·10⁻⁹ of it for |r| up to ln(2)/2: a minimax fit.</summary>
    internal const float E6 = 1.3814538e-3f, E5 = 8.3687454e-3f, E4 = 4.166839e-2f, E3 = 1.6666521e-1f, E2 = 4.9999994e-1f;

    /// <summary>e^r − 1 for |r| up to ln(2)/2. Terms two by two would wait for each other half as long, but take up to five registers more of a GPU.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static T Expm1Reduced<T>(T r) where T : struct, IElementary<T>
    {
        T p = T.MultiplyAdd(T.From(E6), r, T.From(E5));
        p = T.MultiplyAdd(p, r, T.From(E4));
        p = T.MultiplyAdd(p, r, T.From(E3));
        p = T.MultiplyAdd(p, r, T.From(E2));
        return T.MultiplyAdd(p, r * r, r);
    }
}
