using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>e^x for x up to 0 (or a rounding above it), which is all that a softmax asks for: without the bounds that the general function needs.</summary>
/// <remarks>
/// y = x·log₂e, e^x = 2^⌊y⌋ 2^f with 0 ≤ f &lt; 1; 2^f = 1 + f q(f), q of degree 4: a minimax fit, right to 8.3·10⁻⁸, on average to 3·10⁻⁹, and exact for 0. Rounding y costs |x|·2⁻²⁴ of the
/// result: in a softmax, where e^x weighs as much as it is, that is at most 2⁻²⁵ of the largest term. Below the normal range the result may be 0. A NaN stays one.
/// Where the small terms count for themselves, <see cref="Precise{V}(V)"/> splits x itself.
/// </remarks>
internal static class Exponential
{
    /// <summary>e to this power and below is 0 in float32.</summary>
    public const float Lowest = -104f;

    /// <summary>What powers of e are multiplied by to be powers of two, and back.</summary>
    public const float Log2E = 1.44269504f, Ln2 = 0.693147181f;

    private const float C5 = 1.8671301e-3f, C4 = 9.0170303e-3f, C3 = 5.5799913e-2f, C2 = 2.4016445e-1f, C1 = 6.9315131e-1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V OfNonPositive<V>(V x) where V : struct, ILanes<V> => PowerOfTwo(V.MaxNative(V.From(V.LowestPower), x * Log2E));

    /// <summary>Four at once, step by step side by side: the JIT doesn't reorder, and one alone waits for itself.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void OfNonPositive<V>(V x0, V x1, V x2, V x3, out V e0, out V e1, out V e2, out V e3) where V : struct, ILanes<V>
    {
        V constant = V.From(Log2E), lowest = V.From(V.LowestPower);
        PowersOfTwo(V.MaxNative(lowest, x0 * constant), V.MaxNative(lowest, x1 * constant), V.MaxNative(lowest, x2 * constant), V.MaxNative(lowest, x3 * constant), out e0, out e1, out e2, out e3);
    }

    /// <summary>2^y for y from <see cref="ILanes{T}.LowestPower"/>, where it is 0, to 0 (or a rounding above it).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V PowerOfTwo<V>(V y) where V : struct, ILanes<V>
    {
        V f = V.Fraction(y, out V power);
        V p = V.MultiplyAdd(V.From(C5), f, V.From(C4));
        p = V.MultiplyAdd(p, f, V.From(C3));
        p = V.MultiplyAdd(p, f, V.From(C2));
        p = V.MultiplyAdd(p, f, V.From(C1));
        p = V.MultiplyAdd(p, f, V.One);
        return V.ScaleDown(p, power);
    }

    /// <summary>2^y of four.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void PowersOfTwo<V>(V y0, V y1, V y2, V y3, out V e0, out V e1, out V e2, out V e3) where V : struct, ILanes<V>
    {
        V f0 = V.Fraction(y0, out V n0), f1 = V.Fraction(y1, out V n1), f2 = V.Fraction(y2, out V n2), f3 = V.Fraction(y3, out V n3);
        V first = V.From(C5), next = V.From(C4);
        V p0 = V.MultiplyAdd(first, f0, next), p1 = V.MultiplyAdd(first, f1, next), p2 = V.MultiplyAdd(first, f2, next), p3 = V.MultiplyAdd(first, f3, next);
        next = V.From(C3);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.From(C2);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.From(C1);
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        next = V.One;
        p0 = V.MultiplyAdd(p0, f0, next); p1 = V.MultiplyAdd(p1, f1, next); p2 = V.MultiplyAdd(p2, f2, next); p3 = V.MultiplyAdd(p3, f3, next);
        e0 = V.ScaleDown(p0, n0); e1 = V.ScaleDown(p1, n1); e2 = V.ScaleDown(p2, n2); e3 = V.ScaleDown(p3, n3);
    }

    /// <summary>The same to one unit in the last place plus 3·10⁻⁹ |x|: x = n·ln 2 + r, e^x = 2^n e^r, with gradual underflow. Needs fused multiply-adds; without them it is the general function.</summary>
    /// <remarks>What attention weighs with: where a row's weight lies on one key, its gradients are the small weights of the others.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Precise<V>(V x) where V : struct, ILanes<V>
    {
        // Spelled out here and below: behind a property the JIT sees it too late, and has spent what it inlines on the branch that is not taken.
        if ((!Fma.IsSupported && !AdvSimd.IsSupported) || typeof(V) == typeof(Real32))
            return V.Exp(x);
        V n = V.Round(x * Log2E), r = V.MultiplyAdd(n, V.From(-Ln2), x);
        return V.ScaleGradually(Elementary.Expm1Reduced(r) + 1f, n);
    }

    /// <summary><see cref="Precise{V}(V)"/> of four, side by side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Precise<V>(V x0, V x1, V x2, V x3, out V e0, out V e1, out V e2, out V e3) where V : struct, ILanes<V>
    {
        if ((!Fma.IsSupported && !AdvSimd.IsSupported) || typeof(V) == typeof(Real32))
        {
            (e0, e1, e2, e3) = (V.Exp(x0), V.Exp(x1), V.Exp(x2), V.Exp(x3));
            return;
        }
        V constant = V.From(Log2E);
        V n0 = V.Round(x0 * constant), n1 = V.Round(x1 * constant), n2 = V.Round(x2 * constant), n3 = V.Round(x3 * constant);
        constant = V.From(-Ln2);
        V r0 = V.MultiplyAdd(n0, constant, x0), r1 = V.MultiplyAdd(n1, constant, x1), r2 = V.MultiplyAdd(n2, constant, x2), r3 = V.MultiplyAdd(n3, constant, x3);
        V first = V.From(Elementary.E6), next = V.From(Elementary.E5);
        V p0 = V.MultiplyAdd(first, r0, next), p1 = V.MultiplyAdd(first, r1, next), p2 = V.MultiplyAdd(first, r2, next), p3 = V.MultiplyAdd(first, r3, next);
        next = V.From(Elementary.E4);
        p0 = V.MultiplyAdd(p0, r0, next); p1 = V.MultiplyAdd(p1, r1, next); p2 = V.MultiplyAdd(p2, r2, next); p3 = V.MultiplyAdd(p3, r3, next);
        next = V.From(Elementary.E3);
        p0 = V.MultiplyAdd(p0, r0, next); p1 = V.MultiplyAdd(p1, r1, next); p2 = V.MultiplyAdd(p2, r2, next); p3 = V.MultiplyAdd(p3, r3, next);
        next = V.From(Elementary.E2);
        p0 = V.MultiplyAdd(p0, r0, next); p1 = V.MultiplyAdd(p1, r1, next); p2 = V.MultiplyAdd(p2, r2, next); p3 = V.MultiplyAdd(p3, r3, next);
        p0 = V.MultiplyAdd(p0, r0 * r0, r0); p1 = V.MultiplyAdd(p1, r1 * r1, r1); p2 = V.MultiplyAdd(p2, r2 * r2, r2); p3 = V.MultiplyAdd(p3, r3 * r3, r3);
        e0 = V.ScaleGradually(p0 + 1f, n0); e1 = V.ScaleGradually(p1 + 1f, n1); e2 = V.ScaleGradually(p2 + 1f, n2); e3 = V.ScaleGradually(p3 + 1f, n3);
    }

    /// <summary>2^y of eight: enough to keep two multiply-add units busy for as long as each takes. For processors with 32 vector registers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void PowersOfTwo<V>(V y0, V y1, V y2, V y3, V y4, V y5, V y6, V y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7)
        where V : struct, ILanes<V>
    {
        V f0 = V.Fraction(y0, out V n0), f1 = V.Fraction(y1, out V n1), f2 = V.Fraction(y2, out V n2), f3 = V.Fraction(y3, out V n3);
        V f4 = V.Fraction(y4, out V n4), f5 = V.Fraction(y5, out V n5), f6 = V.Fraction(y6, out V n6), f7 = V.Fraction(y7, out V n7);
        V c = V.From(C4);
        V p0 = V.MultiplyAdd(V.From(C5), f0, c), p1 = V.MultiplyAdd(V.From(C5), f1, c), p2 = V.MultiplyAdd(V.From(C5), f2, c), p3 = V.MultiplyAdd(V.From(C5), f3, c);
        V p4 = V.MultiplyAdd(V.From(C5), f4, c), p5 = V.MultiplyAdd(V.From(C5), f5, c), p6 = V.MultiplyAdd(V.From(C5), f6, c), p7 = V.MultiplyAdd(V.From(C5), f7, c);
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
        e0 = V.ScaleDown(p0, n0); e1 = V.ScaleDown(p1, n1); e2 = V.ScaleDown(p2, n2); e3 = V.ScaleDown(p3, n3);
        e4 = V.ScaleDown(p4, n4); e5 = V.ScaleDown(p5, n5); e6 = V.ScaleDown(p6, n6); e7 = V.ScaleDown(p7, n7);
    }
}
