using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>tanh of whole rows, for AVX-512, which looks up one of 32 numbers in each lane in one step.</summary>
/// <remarks>
/// With x · scale = n + g, n an even integer, tanh(x · scale · ½ ln 2) is (a + b) / (1 + ab) of a = tanh(n ½ ln 2), which is looked up, and b = tanh(g ½ ln 2), to 4·10⁻⁷ of it with all roundings. In its own loop, from the first cache,
/// a vector took 5.5 cycles of a Zen 5, and 5.7 with bounds; with n any integer and a formed from 2^n it was 6.0 and 7.0. The eight are written stage by stage, for one vector after the other took 6.1; and on vectors of
/// the runtime's, for with <see cref="ILanes{T}"/> there were more variables than the JIT keeps in registers.
/// </remarks>
internal static unsafe class TanhTable
{
    /// <summary>Up to here, but for its sign and a rounding, x · scale needs no bounds: the table ends at the next even integer.</summary>
    public const float Last = 30;

    // tanh(g ½ ln 2) is g (A0 + g²) / (B0 + B1 g²) for |g| up to 1, a minimax fit to 3.4·10⁻⁸.
    private const float A0 = 125.523123f, B0 = 362.183192f, B1 = 17.3861705f;

    // 1.5 · 2^24, which leaves no place for 1: added to a number and taken off again, it rounds to the nearest even integer, and the last places of the sum are half of that.
    private const float EvenBias = 25165824f;

    // tanh(k ln 2) = (4^k − 1) / (4^k + 1).
    private const float T1 = 3f / 5, T2 = 15f / 17, T3 = 63f / 65, T4 = 255f / 257, T5 = 1023f / 1025, T6 = 4095f / 4097, T7 = 16383f / 16385, T8 = 65535f / 65537;
    private const float T9 = 262143f / 262145, T10 = 1048575f / 1048577, T11 = 4194303f / 4194305, T12 = (float)(16777215.0 / 16777217);

    /// <summary>Writes tanh(x · scale · ½ ln 2) of whole vectors and returns the largest; NaN may be passed over.</summary>
    /// <param name="source">The numbers x.</param>
    /// <param name="offset">What is added to each before.</param>
    /// <param name="scale">The scale.</param>
    /// <param name="bound">x is bounded to ± this; without bounds none may be NaN, and one that lies beyond it ends everything: NaN is returned.</param>
    /// <param name="count">How many numbers.</param>
    /// <param name="tanh">Where they go.</param>
    /// <param name="prefetchBytes">How far ahead of what is read memory is asked for.</param>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static float Look<TStorage, TOffset, TBounds>(byte* source, float* offset, float scale, float bound, nint count, float* tanh, nint prefetchBytes)
        where TStorage : struct, IStorage where TOffset : struct, IChoice where TBounds : struct, IChoice
    {
        nint w = Lanes512.Count, step = w * TStorage.Size;
        Vector512<float> up = Vector512.Create(0, T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, 1, 1, 1), down = Vector512.Create(-1, -1, -1, -1, -T12, -T11, -T10, -T9, -T8, -T7, -T6, -T5, -T4, -T3, -T2, -T1);
        Vector512<float> largest = Vector512.Create(float.NegativeInfinity), scales = Vector512.Create(scale), bounds = Vector512.Create(bound), bias = Vector512.Create(EvenBias);
        Vector512<float> a0 = Vector512.Create(A0), b0 = Vector512.Create(B0), b1 = Vector512.Create(B1);
        float* end = tanh + count;
        for (; tanh <= end - 8 * w; tanh += 8 * w, source += 8 * step)
        {
            Prefetch.Bytes(source + prefetchBytes, 4 * step);
            Prefetch.Bytes(source + prefetchBytes + 4 * step, 4 * step);
            Vector512<float> x0 = TStorage.Load<Lanes512>(source).Vector, x1 = TStorage.Load<Lanes512>(source + step).Vector, x2 = TStorage.Load<Lanes512>(source + 2 * step).Vector, x3 = TStorage.Load<Lanes512>(source + 3 * step).Vector;
            Vector512<float> x4 = TStorage.Load<Lanes512>(source + 4 * step).Vector, x5 = TStorage.Load<Lanes512>(source + 5 * step).Vector, x6 = TStorage.Load<Lanes512>(source + 6 * step).Vector, x7 = TStorage.Load<Lanes512>(source + 7 * step).Vector;
            if (TOffset.Taken)
            {
                x0 += Vector512.Load(offset); x1 += Vector512.Load(offset + w); x2 += Vector512.Load(offset + 2 * w); x3 += Vector512.Load(offset + 3 * w);
                x4 += Vector512.Load(offset + 4 * w); x5 += Vector512.Load(offset + 5 * w); x6 += Vector512.Load(offset + 6 * w); x7 += Vector512.Load(offset + 7 * w);
                offset += 8 * w;
            }
            if (TBounds.Taken)
            {
                x0 = Bounded(x0, bounds); x1 = Bounded(x1, bounds); x2 = Bounded(x2, bounds); x3 = Bounded(x3, bounds);
                x4 = Bounded(x4, bounds); x5 = Bounded(x5, bounds); x6 = Bounded(x6, bounds); x7 = Bounded(x7, bounds);
            }
            else
            {
                Vector512<float> far = Vector512.MaxNative(Vector512.MaxNative(Vector512.Abs(x0), Vector512.Abs(x1)), Vector512.MaxNative(Vector512.Abs(x2), Vector512.Abs(x3)));
                far = Vector512.MaxNative(far, Vector512.MaxNative(Vector512.MaxNative(Vector512.Abs(x4), Vector512.Abs(x5)), Vector512.MaxNative(Vector512.Abs(x6), Vector512.Abs(x7))));
                if (Vector512.GreaterThanAny(far, bounds))
                    return float.NaN;
            }
            Vector512<float> n0 = Avx512F.FusedMultiplyAdd(x0, scales, bias), n1 = Avx512F.FusedMultiplyAdd(x1, scales, bias), n2 = Avx512F.FusedMultiplyAdd(x2, scales, bias), n3 = Avx512F.FusedMultiplyAdd(x3, scales, bias);
            Vector512<float> n4 = Avx512F.FusedMultiplyAdd(x4, scales, bias), n5 = Avx512F.FusedMultiplyAdd(x5, scales, bias), n6 = Avx512F.FusedMultiplyAdd(x6, scales, bias), n7 = Avx512F.FusedMultiplyAdd(x7, scales, bias);
            Vector512<float> t0 = Avx512F.PermuteVar16x32x2(up, n0.AsInt32(), down), t1 = Avx512F.PermuteVar16x32x2(up, n1.AsInt32(), down), t2 = Avx512F.PermuteVar16x32x2(up, n2.AsInt32(), down), t3 = Avx512F.PermuteVar16x32x2(up, n3.AsInt32(), down);
            Vector512<float> t4 = Avx512F.PermuteVar16x32x2(up, n4.AsInt32(), down), t5 = Avx512F.PermuteVar16x32x2(up, n5.AsInt32(), down), t6 = Avx512F.PermuteVar16x32x2(up, n6.AsInt32(), down), t7 = Avx512F.PermuteVar16x32x2(up, n7.AsInt32(), down);
            x0 = Avx512F.FusedMultiplySubtract(x0, scales, n0 - bias); x1 = Avx512F.FusedMultiplySubtract(x1, scales, n1 - bias); x2 = Avx512F.FusedMultiplySubtract(x2, scales, n2 - bias); x3 = Avx512F.FusedMultiplySubtract(x3, scales, n3 - bias);
            x4 = Avx512F.FusedMultiplySubtract(x4, scales, n4 - bias); x5 = Avx512F.FusedMultiplySubtract(x5, scales, n5 - bias); x6 = Avx512F.FusedMultiplySubtract(x6, scales, n6 - bias); x7 = Avx512F.FusedMultiplySubtract(x7, scales, n7 - bias);
            Vector512<float> s0 = x0 * x0, s1 = x1 * x1, s2 = x2 * x2, s3 = x3 * x3;
            Vector512<float> s4 = x4 * x4, s5 = x5 * x5, s6 = x6 * x6, s7 = x7 * x7;
            x0 *= s0 + a0; x1 *= s1 + a0; x2 *= s2 + a0; x3 *= s3 + a0;
            x4 *= s4 + a0; x5 *= s5 + a0; x6 *= s6 + a0; x7 *= s7 + a0;
            s0 = Avx512F.FusedMultiplyAdd(s0, b1, b0); s1 = Avx512F.FusedMultiplyAdd(s1, b1, b0); s2 = Avx512F.FusedMultiplyAdd(s2, b1, b0); s3 = Avx512F.FusedMultiplyAdd(s3, b1, b0);
            s4 = Avx512F.FusedMultiplyAdd(s4, b1, b0); s5 = Avx512F.FusedMultiplyAdd(s5, b1, b0); s6 = Avx512F.FusedMultiplyAdd(s6, b1, b0); s7 = Avx512F.FusedMultiplyAdd(s7, b1, b0);
            x0 = Avx512F.FusedMultiplyAdd(t0, s0, x0) / Avx512F.FusedMultiplyAdd(t0, x0, s0);
            x0.Store(tanh);
            x1 = Avx512F.FusedMultiplyAdd(t1, s1, x1) / Avx512F.FusedMultiplyAdd(t1, x1, s1);
            x1.Store(tanh + w);
            x2 = Avx512F.FusedMultiplyAdd(t2, s2, x2) / Avx512F.FusedMultiplyAdd(t2, x2, s2);
            x2.Store(tanh + 2 * w);
            x3 = Avx512F.FusedMultiplyAdd(t3, s3, x3) / Avx512F.FusedMultiplyAdd(t3, x3, s3);
            x3.Store(tanh + 3 * w);
            x4 = Avx512F.FusedMultiplyAdd(t4, s4, x4) / Avx512F.FusedMultiplyAdd(t4, x4, s4);
            x4.Store(tanh + 4 * w);
            x5 = Avx512F.FusedMultiplyAdd(t5, s5, x5) / Avx512F.FusedMultiplyAdd(t5, x5, s5);
            x5.Store(tanh + 5 * w);
            x6 = Avx512F.FusedMultiplyAdd(t6, s6, x6) / Avx512F.FusedMultiplyAdd(t6, x6, s6);
            x6.Store(tanh + 6 * w);
            x7 = Avx512F.FusedMultiplyAdd(t7, s7, x7) / Avx512F.FusedMultiplyAdd(t7, x7, s7);
            x7.Store(tanh + 7 * w);
            x0 = Vector512.MaxNative(Vector512.MaxNative(x0, x1), Vector512.MaxNative(x2, x3));
            x4 = Vector512.MaxNative(Vector512.MaxNative(x4, x5), Vector512.MaxNative(x6, x7));
            largest = Vector512.MaxNative(largest, Vector512.MaxNative(x0, x4));
        }
        for (; tanh < end; tanh += w, source += step)
        {
            Vector512<float> x = TStorage.Load<Lanes512>(source).Vector;
            if (TOffset.Taken)
            {
                x += Vector512.Load(offset);
                offset += w;
            }
            if (TBounds.Taken)
                x = Bounded(x, bounds);
            else if (Vector512.GreaterThanAny(Vector512.Abs(x), bounds))
                return float.NaN;
            Vector512<float> n = Avx512F.FusedMultiplyAdd(x, scales, bias), t = Avx512F.PermuteVar16x32x2(up, n.AsInt32(), down);
            x = Avx512F.FusedMultiplySubtract(x, scales, n - bias);
            Vector512<float> s = x * x;
            x *= s + a0;
            s = Avx512F.FusedMultiplyAdd(s, b1, b0);
            x = Avx512F.FusedMultiplyAdd(t, s, x) / Avx512F.FusedMultiplyAdd(t, x, s);
            x.Store(tanh);
            largest = Vector512.MaxNative(largest, x);
        }
        return new Lanes512(largest).Largest();
    }

    // The second operand is the one that stays if it is NaN.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Bounded(Vector512<float> x, Vector512<float> bound) => Vector512.MaxNative(-bound, Vector512.MinNative(bound, x));
}
