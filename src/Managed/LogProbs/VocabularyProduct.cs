using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>The matrix products of a vocabulary: c[r, lane] (+)= Σ_q a[r·rowStep + q·step] · b[q·bStep + lane], r beyond count, few lanes.</summary>
/// <remarks>
/// a is broadcast element by element from wherever it lies; b and c are rows of whole vectors, at most <see cref="MostVectors"/>. Nothing beside c's rows and lanes is written.
/// A register tile is 8 rows of 3 vectors where there are 32 vector registers (24 sums; 3 loads and 8 broadcasts for 24 multiply-adds), else 4 rows of 2. A forward pass of [1024, 1024] x 32,000 takes
/// 134 ms (Zen 5, AVX-512, two threads); with 6 x 4 it takes 135, with 8 x 2 136, with 4 x 6 139, with 12 x 2 141. Every element is
/// summed over q in order, onto what c holds if it adds: so the bits depend neither on the tile nor on where a long sum is broken off and taken up again.
/// </remarks>
internal static unsafe class VocabularyProduct
{
    private static bool HasManyRegisters => Avx512F.IsSupported || AdvSimd.IsSupported;

    /// <summary>The vectors of a register tile.</summary>
    public static int MostVectors => HasManyRegisters ? 3 : 2;

    /// <summary>c = a·b.</summary>
    public static void Set<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> => Run<V, No>(a, rowStep, step, rows, b, bStep, vectors, depth, c, cStep);

    /// <summary>c += a·b.</summary>
    public static void Add<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> => Run<V, Yes>(a, rowStep, step, rows, b, bStep, vectors, depth, c, cStep);

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Run<V, TAdd>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        nint tile = HasManyRegisters ? 8 : 4, r = 0;
        for (; r + tile <= rows; r += tile, a += tile * rowStep, c += tile * cStep)
        {
            if (HasManyRegisters)
            {
                switch (vectors)
                {
                    case 3: Tile8x3<V, TAdd>(a, rowStep, step, b, bStep, depth, c, cStep); break;
                    case 2: Tile8x2<V, TAdd>(a, rowStep, step, b, bStep, depth, c, cStep); break;
                    default: Tile8x1<V, TAdd>(a, rowStep, step, b, bStep, depth, c, cStep); break;
                }
            }
            else if (vectors == 2)
                Tile4x2<V, TAdd>(a, rowStep, step, b, bStep, depth, c, cStep);
            else
                Tile4x1<V, TAdd>(a, rowStep, step, b, bStep, depth, c, cStep);
        }
        for (; r < rows; r++, a += rowStep, c += cStep)
        {
            for (nint v = 0; v < vectors; v++)
                Tile1x1<V, TAdd>(a, rowStep, step, b + v * V.Count, bStep, depth, c + v * V.Count, cStep);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Start<V, TAdd>(float* c) where V : struct, ILanes<V> where TAdd : struct, IChoice => TAdd.Taken ? V.Load(c) : V.Zero;

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tile8x3<V, TAdd>(float* a, nint rowStep, nint step, float* b, nint bStep, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        int w = V.Count;
        float* c1 = c + cStep, c2 = c1 + cStep, c3 = c2 + cStep, c4 = c3 + cStep, c5 = c4 + cStep, c6 = c5 + cStep, c7 = c6 + cStep;
        V s00 = Start<V, TAdd>(c), s01 = Start<V, TAdd>(c + w), s02 = Start<V, TAdd>(c + 2 * w);
        V s10 = Start<V, TAdd>(c1), s11 = Start<V, TAdd>(c1 + w), s12 = Start<V, TAdd>(c1 + 2 * w);
        V s20 = Start<V, TAdd>(c2), s21 = Start<V, TAdd>(c2 + w), s22 = Start<V, TAdd>(c2 + 2 * w);
        V s30 = Start<V, TAdd>(c3), s31 = Start<V, TAdd>(c3 + w), s32 = Start<V, TAdd>(c3 + 2 * w);
        V s40 = Start<V, TAdd>(c4), s41 = Start<V, TAdd>(c4 + w), s42 = Start<V, TAdd>(c4 + 2 * w);
        V s50 = Start<V, TAdd>(c5), s51 = Start<V, TAdd>(c5 + w), s52 = Start<V, TAdd>(c5 + 2 * w);
        V s60 = Start<V, TAdd>(c6), s61 = Start<V, TAdd>(c6 + w), s62 = Start<V, TAdd>(c6 + 2 * w);
        V s70 = Start<V, TAdd>(c7), s71 = Start<V, TAdd>(c7 + w), s72 = Start<V, TAdd>(c7 + 2 * w);
        float* a1 = a + rowStep, a2 = a1 + rowStep, a3 = a2 + rowStep, a4 = a3 + rowStep, a5 = a4 + rowStep, a6 = a5 + rowStep, a7 = a6 + rowStep;
        for (nint q = 0; q < depth; q++, b += bStep)
        {
            V b0 = V.Load(b), b1 = V.Load(b + w), b2 = V.Load(b + 2 * w), x;
            nint at = q * step;
            x = V.From(a[at]); s00 = V.MultiplyAdd(x, b0, s00); s01 = V.MultiplyAdd(x, b1, s01); s02 = V.MultiplyAdd(x, b2, s02);
            x = V.From(a1[at]); s10 = V.MultiplyAdd(x, b0, s10); s11 = V.MultiplyAdd(x, b1, s11); s12 = V.MultiplyAdd(x, b2, s12);
            x = V.From(a2[at]); s20 = V.MultiplyAdd(x, b0, s20); s21 = V.MultiplyAdd(x, b1, s21); s22 = V.MultiplyAdd(x, b2, s22);
            x = V.From(a3[at]); s30 = V.MultiplyAdd(x, b0, s30); s31 = V.MultiplyAdd(x, b1, s31); s32 = V.MultiplyAdd(x, b2, s32);
            x = V.From(a4[at]); s40 = V.MultiplyAdd(x, b0, s40); s41 = V.MultiplyAdd(x, b1, s41); s42 = V.MultiplyAdd(x, b2, s42);
            x = V.From(a5[at]); s50 = V.MultiplyAdd(x, b0, s50); s51 = V.MultiplyAdd(x, b1, s51); s52 = V.MultiplyAdd(x, b2, s52);
            x = V.From(a6[at]); s60 = V.MultiplyAdd(x, b0, s60); s61 = V.MultiplyAdd(x, b1, s61); s62 = V.MultiplyAdd(x, b2, s62);
            x = V.From(a7[at]); s70 = V.MultiplyAdd(x, b0, s70); s71 = V.MultiplyAdd(x, b1, s71); s72 = V.MultiplyAdd(x, b2, s72);
        }
        s00.Store(c); s01.Store(c + w); s02.Store(c + 2 * w);
        s10.Store(c1); s11.Store(c1 + w); s12.Store(c1 + 2 * w);
        s20.Store(c2); s21.Store(c2 + w); s22.Store(c2 + 2 * w);
        s30.Store(c3); s31.Store(c3 + w); s32.Store(c3 + 2 * w);
        s40.Store(c4); s41.Store(c4 + w); s42.Store(c4 + 2 * w);
        s50.Store(c5); s51.Store(c5 + w); s52.Store(c5 + 2 * w);
        s60.Store(c6); s61.Store(c6 + w); s62.Store(c6 + 2 * w);
        s70.Store(c7); s71.Store(c7 + w); s72.Store(c7 + 2 * w);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tile8x2<V, TAdd>(float* a, nint rowStep, nint step, float* b, nint bStep, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        int w = V.Count;
        float* c1 = c + cStep, c2 = c1 + cStep, c3 = c2 + cStep, c4 = c3 + cStep, c5 = c4 + cStep, c6 = c5 + cStep, c7 = c6 + cStep;
        V s00 = Start<V, TAdd>(c), s01 = Start<V, TAdd>(c + w);
        V s10 = Start<V, TAdd>(c1), s11 = Start<V, TAdd>(c1 + w);
        V s20 = Start<V, TAdd>(c2), s21 = Start<V, TAdd>(c2 + w);
        V s30 = Start<V, TAdd>(c3), s31 = Start<V, TAdd>(c3 + w);
        V s40 = Start<V, TAdd>(c4), s41 = Start<V, TAdd>(c4 + w);
        V s50 = Start<V, TAdd>(c5), s51 = Start<V, TAdd>(c5 + w);
        V s60 = Start<V, TAdd>(c6), s61 = Start<V, TAdd>(c6 + w);
        V s70 = Start<V, TAdd>(c7), s71 = Start<V, TAdd>(c7 + w);
        float* a1 = a + rowStep, a2 = a1 + rowStep, a3 = a2 + rowStep, a4 = a3 + rowStep, a5 = a4 + rowStep, a6 = a5 + rowStep, a7 = a6 + rowStep;
        for (nint q = 0; q < depth; q++, b += bStep)
        {
            V b0 = V.Load(b), b1 = V.Load(b + w), x;
            nint at = q * step;
            x = V.From(a[at]); s00 = V.MultiplyAdd(x, b0, s00); s01 = V.MultiplyAdd(x, b1, s01);
            x = V.From(a1[at]); s10 = V.MultiplyAdd(x, b0, s10); s11 = V.MultiplyAdd(x, b1, s11);
            x = V.From(a2[at]); s20 = V.MultiplyAdd(x, b0, s20); s21 = V.MultiplyAdd(x, b1, s21);
            x = V.From(a3[at]); s30 = V.MultiplyAdd(x, b0, s30); s31 = V.MultiplyAdd(x, b1, s31);
            x = V.From(a4[at]); s40 = V.MultiplyAdd(x, b0, s40); s41 = V.MultiplyAdd(x, b1, s41);
            x = V.From(a5[at]); s50 = V.MultiplyAdd(x, b0, s50); s51 = V.MultiplyAdd(x, b1, s51);
            x = V.From(a6[at]); s60 = V.MultiplyAdd(x, b0, s60); s61 = V.MultiplyAdd(x, b1, s61);
            x = V.From(a7[at]); s70 = V.MultiplyAdd(x, b0, s70); s71 = V.MultiplyAdd(x, b1, s71);
        }
        s00.Store(c); s01.Store(c + w);
        s10.Store(c1); s11.Store(c1 + w);
        s20.Store(c2); s21.Store(c2 + w);
        s30.Store(c3); s31.Store(c3 + w);
        s40.Store(c4); s41.Store(c4 + w);
        s50.Store(c5); s51.Store(c5 + w);
        s60.Store(c6); s61.Store(c6 + w);
        s70.Store(c7); s71.Store(c7 + w);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tile8x1<V, TAdd>(float* a, nint rowStep, nint step, float* b, nint bStep, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        int w = V.Count;
        float* c1 = c + cStep, c2 = c1 + cStep, c3 = c2 + cStep, c4 = c3 + cStep, c5 = c4 + cStep, c6 = c5 + cStep, c7 = c6 + cStep;
        V s00 = Start<V, TAdd>(c);
        V s10 = Start<V, TAdd>(c1);
        V s20 = Start<V, TAdd>(c2);
        V s30 = Start<V, TAdd>(c3);
        V s40 = Start<V, TAdd>(c4);
        V s50 = Start<V, TAdd>(c5);
        V s60 = Start<V, TAdd>(c6);
        V s70 = Start<V, TAdd>(c7);
        float* a1 = a + rowStep, a2 = a1 + rowStep, a3 = a2 + rowStep, a4 = a3 + rowStep, a5 = a4 + rowStep, a6 = a5 + rowStep, a7 = a6 + rowStep;
        for (nint q = 0; q < depth; q++, b += bStep)
        {
            V b0 = V.Load(b), x;
            nint at = q * step;
            x = V.From(a[at]); s00 = V.MultiplyAdd(x, b0, s00);
            x = V.From(a1[at]); s10 = V.MultiplyAdd(x, b0, s10);
            x = V.From(a2[at]); s20 = V.MultiplyAdd(x, b0, s20);
            x = V.From(a3[at]); s30 = V.MultiplyAdd(x, b0, s30);
            x = V.From(a4[at]); s40 = V.MultiplyAdd(x, b0, s40);
            x = V.From(a5[at]); s50 = V.MultiplyAdd(x, b0, s50);
            x = V.From(a6[at]); s60 = V.MultiplyAdd(x, b0, s60);
            x = V.From(a7[at]); s70 = V.MultiplyAdd(x, b0, s70);
        }
        s00.Store(c);
        s10.Store(c1);
        s20.Store(c2);
        s30.Store(c3);
        s40.Store(c4);
        s50.Store(c5);
        s60.Store(c6);
        s70.Store(c7);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tile4x2<V, TAdd>(float* a, nint rowStep, nint step, float* b, nint bStep, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        int w = V.Count;
        float* c1 = c + cStep, c2 = c1 + cStep, c3 = c2 + cStep;
        V s00 = Start<V, TAdd>(c), s01 = Start<V, TAdd>(c + w);
        V s10 = Start<V, TAdd>(c1), s11 = Start<V, TAdd>(c1 + w);
        V s20 = Start<V, TAdd>(c2), s21 = Start<V, TAdd>(c2 + w);
        V s30 = Start<V, TAdd>(c3), s31 = Start<V, TAdd>(c3 + w);
        float* a1 = a + rowStep, a2 = a1 + rowStep, a3 = a2 + rowStep;
        for (nint q = 0; q < depth; q++, b += bStep)
        {
            V b0 = V.Load(b), b1 = V.Load(b + w), x;
            nint at = q * step;
            x = V.From(a[at]); s00 = V.MultiplyAdd(x, b0, s00); s01 = V.MultiplyAdd(x, b1, s01);
            x = V.From(a1[at]); s10 = V.MultiplyAdd(x, b0, s10); s11 = V.MultiplyAdd(x, b1, s11);
            x = V.From(a2[at]); s20 = V.MultiplyAdd(x, b0, s20); s21 = V.MultiplyAdd(x, b1, s21);
            x = V.From(a3[at]); s30 = V.MultiplyAdd(x, b0, s30); s31 = V.MultiplyAdd(x, b1, s31);
        }
        s00.Store(c); s01.Store(c + w);
        s10.Store(c1); s11.Store(c1 + w);
        s20.Store(c2); s21.Store(c2 + w);
        s30.Store(c3); s31.Store(c3 + w);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tile4x1<V, TAdd>(float* a, nint rowStep, nint step, float* b, nint bStep, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        int w = V.Count;
        float* c1 = c + cStep, c2 = c1 + cStep, c3 = c2 + cStep;
        V s00 = Start<V, TAdd>(c);
        V s10 = Start<V, TAdd>(c1);
        V s20 = Start<V, TAdd>(c2);
        V s30 = Start<V, TAdd>(c3);
        float* a1 = a + rowStep, a2 = a1 + rowStep, a3 = a2 + rowStep;
        for (nint q = 0; q < depth; q++, b += bStep)
        {
            V b0 = V.Load(b), x;
            nint at = q * step;
            x = V.From(a[at]); s00 = V.MultiplyAdd(x, b0, s00);
            x = V.From(a1[at]); s10 = V.MultiplyAdd(x, b0, s10);
            x = V.From(a2[at]); s20 = V.MultiplyAdd(x, b0, s20);
            x = V.From(a3[at]); s30 = V.MultiplyAdd(x, b0, s30);
        }
        s00.Store(c);
        s10.Store(c1);
        s20.Store(c2);
        s30.Store(c3);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tile1x1<V, TAdd>(float* a, nint rowStep, nint step, float* b, nint bStep, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> where TAdd : struct, IChoice
    {
        int w = V.Count;
        V s00 = Start<V, TAdd>(c);
        for (nint q = 0; q < depth; q++, b += bStep)
        {
            V b0 = V.Load(b), x;
            nint at = q * step;
            x = V.From(a[at]); s00 = V.MultiplyAdd(x, b0, s00);
        }
        s00.Store(c);
    }
}
