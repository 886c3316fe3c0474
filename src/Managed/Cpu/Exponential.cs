using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>e^x for x from −104 to 0, which is all that a softmax asks for: without the bounds that the general function needs.</summary>
/// <remarks>
/// y = x·log₂e, e^x = 2^⌊y⌋ 2^f with 0 ≤ f &lt; 1; 2^f = 1 + f q(f), q of degree 5. Rounding y costs |x|·2⁻²⁴ of the result: in a softmax, where e^x weighs as much as it is,
/// that is at most 2⁻²⁵ of the largest term. Below the normal range the result may be 0. A NaN stays one.
/// Splitting x itself (n·ln 2 taken off) is more exact by half a unit and takes one operation in eleven more on the units that this is bound by.
/// </remarks>
internal static class Exponential
{
    /// <summary>e to this power and below is 0 in float32.</summary>
    public const float Lowest = -104f;

    /// <summary>What powers of e are multiplied by to be powers of two, and back.</summary>
    public const float Log2E = 1.44269504f, Ln2 = 0.693147181f;

    private const float C6 = 2.1612915e-4f, C5 = 1.2467846e-3f, C4 = 9.6754516e-3f, C3 = 5.5485281e-2f, C2 = 2.4022931e-1f, C1 = 6.9314704e-1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V OfNonPositive<V>(V x) where V : struct, ILanes<V>
    {
        V y = x * Log2E, f = V.Fraction(y);
        V p = V.MultiplyAdd(V.From(C6), f, V.From(C5));
        p = V.MultiplyAdd(p, f, V.From(C4));
        p = V.MultiplyAdd(p, f, V.From(C3));
        p = V.MultiplyAdd(p, f, V.From(C2));
        p = V.MultiplyAdd(p, f, V.From(C1));
        p = V.MultiplyAdd(p, f, V.One);
        return V.ScaleDown(p, y);
    }

    /// <summary>Four at once, step by step side by side: the JIT doesn't reorder, and one alone waits for itself.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void OfNonPositive<V>(V x0, V x1, V x2, V x3, out V e0, out V e1, out V e2, out V e3) where V : struct, ILanes<V>
    {
        V constant = V.From(Log2E);
        V y0 = x0 * constant, y1 = x1 * constant, y2 = x2 * constant, y3 = x3 * constant;
        V f0 = V.Fraction(y0), f1 = V.Fraction(y1), f2 = V.Fraction(y2), f3 = V.Fraction(y3);
        V first = V.From(C6), next = V.From(C5);
        V p0 = V.MultiplyAdd(first, f0, next), p1 = V.MultiplyAdd(first, f1, next), p2 = V.MultiplyAdd(first, f2, next), p3 = V.MultiplyAdd(first, f3, next);
        next = V.From(C4);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.From(C3);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.From(C2);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.From(C1);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.One;
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        e0 = V.ScaleDown(p0, y0); e1 = V.ScaleDown(p1, y1); e2 = V.ScaleDown(p2, y2); e3 = V.ScaleDown(p3, y3);
    }

    /// <summary>2^y of eight: enough to keep two multiply-add units busy for as long as each takes. For processors with 32 vector registers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void PowersOfTwo<V>(V y0, V y1, V y2, V y3, V y4, V y5, V y6, V y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7)
        where V : struct, ILanes<V>
    {
        V f0 = V.Fraction(y0), f1 = V.Fraction(y1), f2 = V.Fraction(y2), f3 = V.Fraction(y3), f4 = V.Fraction(y4), f5 = V.Fraction(y5), f6 = V.Fraction(y6), f7 = V.Fraction(y7);
        V c = V.From(C5);
        V p0 = V.MultiplyAdd(V.From(C6), f0, c), p1 = V.MultiplyAdd(V.From(C6), f1, c), p2 = V.MultiplyAdd(V.From(C6), f2, c), p3 = V.MultiplyAdd(V.From(C6), f3, c);
        V p4 = V.MultiplyAdd(V.From(C6), f4, c), p5 = V.MultiplyAdd(V.From(C6), f5, c), p6 = V.MultiplyAdd(V.From(C6), f6, c), p7 = V.MultiplyAdd(V.From(C6), f7, c);
        c = V.From(C4);
        p0 = V.MultiplyAdd(p0, f0, c); p1 = V.MultiplyAdd(p1, f1, c); p2 = V.MultiplyAdd(p2, f2, c); p3 = V.MultiplyAdd(p3, f3, c);
        p4 = V.MultiplyAdd(p4, f4, c); p5 = V.MultiplyAdd(p5, f5, c); p6 = V.MultiplyAdd(p6, f6, c); p7 = V.MultiplyAdd(p7, f7, c);
        c = V.From(C3);
        p0 = V.MultiplyAdd(p0, f0, c); p1 = V.MultiplyAdd(p1, f1, c); p2 = V.MultiplyAdd(p2, f2, c); p3 = V.MultiplyAdd(p3, f3, c);
        p4 = V.MultiplyAdd(p4, f4, c); p5 = V.MultiplyAdd(p5, f5, c); p6 = V.MultiplyAdd(p6, f6, c); p7 = V.MultiplyAdd(p7, f7, c);
        c = V.From(C2);
        p0 = V.MultiplyAdd(p0, f0, c); p1 = V.MultiplyAdd(p1, f1, c); p2 = V.MultiplyAdd(p2, f2, c); p3 = V.MultiplyAdd(p3, f3, c);
        p4 = V.MultiplyAdd(p4, f4, c); p5 = V.MultiplyAdd(p5, f5, c); p6 = V.MultiplyAdd(p6, f6, c); p7 = V.MultiplyAdd(p7, f7, c);
        c = V.From(C1);
        p0 = V.MultiplyAdd(p0, f0, c); p1 = V.MultiplyAdd(p1, f1, c); p2 = V.MultiplyAdd(p2, f2, c); p3 = V.MultiplyAdd(p3, f3, c);
        p4 = V.MultiplyAdd(p4, f4, c); p5 = V.MultiplyAdd(p5, f5, c); p6 = V.MultiplyAdd(p6, f6, c); p7 = V.MultiplyAdd(p7, f7, c);
        c = V.One;
        p0 = V.MultiplyAdd(p0, f0, c); p1 = V.MultiplyAdd(p1, f1, c); p2 = V.MultiplyAdd(p2, f2, c); p3 = V.MultiplyAdd(p3, f3, c);
        p4 = V.MultiplyAdd(p4, f4, c); p5 = V.MultiplyAdd(p5, f5, c); p6 = V.MultiplyAdd(p6, f6, c); p7 = V.MultiplyAdd(p7, f7, c);
        e0 = V.ScaleDown(p0, y0); e1 = V.ScaleDown(p1, y1); e2 = V.ScaleDown(p2, y2); e3 = V.ScaleDown(p3, y3);
        e4 = V.ScaleDown(p4, y4); e5 = V.ScaleDown(p5, y5); e6 = V.ScaleDown(p6, y6); e7 = V.ScaleDown(p7, y7);
    }
}
