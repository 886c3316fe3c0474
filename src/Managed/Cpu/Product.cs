using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>The matrix product under every CPU kernel: c[r, lane] (+)= Σ_q a[r·rowStep + q·step] · b[q·bStep + lane].</summary>
/// <remarks>
/// a is broadcast element by element from wherever it lies, so it needs no packing; b and c are rows of whole vectors. Rows of a are taken four at a time:
/// the last ones are taken again where there are fewer, so c needs room for a multiple of <see cref="Rows"/> rows, of which the surplus is not meaningful.
/// A register tile is 4 rows of 4 vectors where there are 32 vector registers (16 sums, 4 loads and 4 broadcasts per 16 multiply-adds), else of 2 vectors; what is left over takes
/// a tile of as many vectors as there are, and the more rows. Of a core's peak at depth 64 (Zen 5, AVX-512): 0.98 with 4, 3 and 2 vectors, 0.90 with 1, which reads an element for every multiply-add.
/// Every product is summed over q in order, beginning at 0, and only then added to what stands in c: the error of a sum of many tiles grows with the length of a tile and with
/// their number, not with that of all terms.
/// </remarks>
internal static unsafe class Product
{
    /// <summary>The rows of a register tile.</summary>
    public const int Rows = 4;

    private static bool HasManyRegisters => Avx512F.IsSupported || AdvSimd.IsSupported;

    /// <summary>c = a·b.</summary>
    public static void Set<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> => SetThen<V, StoreTile>(a, rowStep, step, rows, b, bStep, vectors, depth, c, cStep, default);

    /// <summary>c += a·b.</summary>
    public static void Add<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep)
        where V : struct, ILanes<V> => SetThen<V, AddTile>(a, rowStep, step, rows, b, bStep, vectors, depth, c, cStep, default);

    /// <summary>c = c·factor + a·b, one factor a lane; asks for a, which had better have its rows side by side.</summary>
    public static void AddScaled<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep, float* factor)
        where V : struct, ILanes<V> => SetThen<V, RescaleTile>(a, rowStep, step, rows, b, bStep, vectors, depth, c, cStep, new(factor));

    /// <summary>c += a·b, leaving out the products whose element of <paramref name="hidden"/>, laid out as b, is negative: what stands in a there may be NaN.</summary>
    public static void AddWhereLanesVisible<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep, float* hidden)
        where V : struct, ILanes<V>
    {
        for (nint r = 0; r < rows; r++)
        {
            for (nint lane = 0; lane < vectors * V.Count; lane += V.Count)
            {
                float* to = c + r * cStep + lane;
                V sum = V.Zero;
                for (nint q = 0; q < depth; q++)
                {
                    V product = V.MultiplyAdd(V.From(a[r * rowStep + q * step]), V.Load(b + q * bStep + lane), sum);
                    sum = V.SelectLess(V.Load(hidden + q * bStep + lane), V.Zero, sum, product);
                }
                (V.Load(to) + sum).Store(to);
            }
        }
    }

    /// <summary>c += a·b, leaving out the products whose element of <paramref name="hidden"/>, laid out as a, is negative: what stands in b there may be NaN.</summary>
    public static void AddWhereElementsVisible<V>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep, float* hidden)
        where V : struct, ILanes<V>
    {
        for (nint r = 0; r < rows; r++)
        {
            for (nint lane = 0; lane < vectors * V.Count; lane += V.Count)
            {
                float* to = c + r * cStep + lane;
                V sum = V.Zero;
                for (nint q = 0; q < depth; q++)
                {
                    if (!(hidden[r * rowStep + q * step] < 0))
                        sum = V.MultiplyAdd(V.From(a[r * rowStep + q * step]), V.Load(b + q * bStep + lane), sum);
                }
                (V.Load(to) + sum).Store(to);
            }
        }
    }

    /// <summary>Hands a·b to <paramref name="end"/> while it is in registers, four rows at a time. Where fewer are left, the last row's sums come again in the place of the missing ones, of which the end must read nothing.</summary>
    public static void SetThen<V, TEnd>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint vectors, nint depth, float* c, nint cStep, in TEnd end)
        where V : struct, ILanes<V> where TEnd : struct, ITileEnd
    {
        nint v = 0;
        if (HasManyRegisters)
        {
            for (; v + 4 <= vectors; v += 4)
                Tiles4<V, TEnd>(a, rowStep, step, rows, b + v * V.Count, bStep, depth, c + v * V.Count, cStep, v * V.Count, end);
            if (v + 3 == vectors)
            {
                Tiles3<V, TEnd>(a, rowStep, step, rows, b + v * V.Count, bStep, depth, c + v * V.Count, cStep, v * V.Count, end);
                return;
            }
        }
        for (; v + 2 <= vectors; v += 2)
            Tiles2<V, TEnd>(a, rowStep, step, rows, b + v * V.Count, bStep, depth, c + v * V.Count, cStep, v * V.Count, end);
        if (v < vectors)
            Tiles1<V, TEnd>(a, rowStep, step, rows, b + v * V.Count, bStep, depth, c + v * V.Count, cStep, v * V.Count, end);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tiles4<V, TEnd>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint depth, float* c, nint cStep, nint lane, in TEnd end)
        where V : struct, ILanes<V> where TEnd : struct, ITileEnd
    {
        int w = V.Count;
        for (nint r = 0; r < rows; r += Rows)
        {
            float* a0 = a + r * rowStep, a1 = r + 1 < rows ? a0 + rowStep : a0, a2 = r + 2 < rows ? a1 + rowStep : a1, a3 = r + 3 < rows ? a2 + rowStep : a2, at = b;
            float* row = c + r * cStep;
            V s00 = V.Zero, s01 = V.Zero, s02 = V.Zero, s03 = V.Zero;
            V s10 = V.Zero, s11 = V.Zero, s12 = V.Zero, s13 = V.Zero;
            V s20 = V.Zero, s21 = V.Zero, s22 = V.Zero, s23 = V.Zero;
            V s30 = V.Zero, s31 = V.Zero, s32 = V.Zero, s33 = V.Zero;
            // Two steps a turn: the shorter the loop, the better its end is foreseen. Measured 1 to 2 points of peak at depth 64.
            nint turns = depth >> 1, ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint turn = 0; turn < turns; turn++)
            {
                Ask<TEnd>(a0 + ahead);
                Ask<TEnd>(a0 + step + ahead);
                Step(a0, a1, a2, a3, at, ref s00, ref s01, ref s02, ref s03, ref s10, ref s11, ref s12, ref s13, ref s20, ref s21, ref s22, ref s23, ref s30, ref s31, ref s32, ref s33);
                Step(a0 + step, a1 + step, a2 + step, a3 + step, at + bStep, ref s00, ref s01, ref s02, ref s03, ref s10, ref s11, ref s12, ref s13, ref s20, ref s21, ref s22, ref s23, ref s30, ref s31, ref s32, ref s33);
                a0 += 2 * step; a1 += 2 * step; a2 += 2 * step; a3 += 2 * step; at += 2 * bStep;
            }
            if ((depth & 1) != 0)
                Step(a0, a1, a2, a3, at, ref s00, ref s01, ref s02, ref s03, ref s10, ref s11, ref s12, ref s13, ref s20, ref s21, ref s22, ref s23, ref s30, ref s31, ref s32, ref s33);
            end.Column(s00, s10, s20, s30, r, lane, row, cStep);
            end.Column(s01, s11, s21, s31, r, lane + w, row + w, cStep);
            end.Column(s02, s12, s22, s32, r, lane + 2 * w, row + 2 * w, cStep);
            end.Column(s03, s13, s23, s33, r, lane + 3 * w, row + 3 * w, cStep);
            end.Done<V>(r, lane, 4);
        }
    }

    // From a row of a register tile to the row whose elements are asked for: where rows lie side by side, they are in the next line. Behind the last line, the first one of what comes after the depth.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static nint Ahead<TEnd>(nint row, nint rows, nint rowStep, nint step, nint depth) where TEnd : struct, ITileEnd =>
        !TEnd.Asks ? 0 : row + Prefetch.LineFloats < rows ? Prefetch.LineFloats * rowStep : depth * step - row * rowStep;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Ask<TEnd>(float* a) where TEnd : struct, ITileEnd
    {
        if (TEnd.Asks)
            Prefetch.One(a);
    }

    // Four elements of a, each times four vectors of b.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step<V>(float* a0, float* a1, float* a2, float* a3, float* b, ref V s00, ref V s01, ref V s02, ref V s03, ref V s10, ref V s11, ref V s12, ref V s13,
        ref V s20, ref V s21, ref V s22, ref V s23, ref V s30, ref V s31, ref V s32, ref V s33) where V : struct, ILanes<V>
    {
        V b0 = V.Load(b), b1 = V.Load(b + V.Count), b2 = V.Load(b + 2 * V.Count), b3 = V.Load(b + 3 * V.Count);
        V x = V.From(*a0);
        V.AddProduct(ref s00, x, b0); V.AddProduct(ref s01, x, b1); V.AddProduct(ref s02, x, b2); V.AddProduct(ref s03, x, b3);
        x = V.From(*a1);
        V.AddProduct(ref s10, x, b0); V.AddProduct(ref s11, x, b1); V.AddProduct(ref s12, x, b2); V.AddProduct(ref s13, x, b3);
        x = V.From(*a2);
        V.AddProduct(ref s20, x, b0); V.AddProduct(ref s21, x, b1); V.AddProduct(ref s22, x, b2); V.AddProduct(ref s23, x, b3);
        x = V.From(*a3);
        V.AddProduct(ref s30, x, b0); V.AddProduct(ref s31, x, b1); V.AddProduct(ref s32, x, b2); V.AddProduct(ref s33, x, b3);
    }

    // Four rows' elements, each times two vectors.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step<V>(float* a, nint rowStep, nint threeRows, V b0, V b1, ref V s00, ref V s01, ref V s10, ref V s11, ref V s20, ref V s21, ref V s30, ref V s31) where V : struct, ILanes<V>
    {
        V x = V.From(*a);
        V.AddProduct(ref s00, x, b0); V.AddProduct(ref s01, x, b1);
        x = V.From(a[rowStep]);
        V.AddProduct(ref s10, x, b0); V.AddProduct(ref s11, x, b1);
        x = V.From(a[2 * rowStep]);
        V.AddProduct(ref s20, x, b0); V.AddProduct(ref s21, x, b1);
        x = V.From(a[threeRows]);
        V.AddProduct(ref s30, x, b0); V.AddProduct(ref s31, x, b1);
    }

    // Four rows' elements, each times one vector.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step<V>(float* a, nint rowStep, nint threeRows, V b, ref V s0, ref V s1, ref V s2, ref V s3) where V : struct, ILanes<V>
    {
        V.AddProduct(ref s0, V.From(*a), b);
        V.AddProduct(ref s1, V.From(a[rowStep]), b);
        V.AddProduct(ref s2, V.From(a[2 * rowStep]), b);
        V.AddProduct(ref s3, V.From(a[threeRows]), b);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tiles3<V, TEnd>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint depth, float* c, nint cStep, nint lane, in TEnd end)
        where V : struct, ILanes<V> where TEnd : struct, ITileEnd
    {
        int w = V.Count;
        for (nint r = 0; r < rows; r += Rows)
        {
            float* a0 = a + r * rowStep, a1 = r + 1 < rows ? a0 + rowStep : a0, a2 = r + 2 < rows ? a1 + rowStep : a1, a3 = r + 3 < rows ? a2 + rowStep : a2, at = b;
            float* row = c + r * cStep;
            V s00 = V.Zero, s01 = V.Zero, s02 = V.Zero;
            V s10 = V.Zero, s11 = V.Zero, s12 = V.Zero;
            V s20 = V.Zero, s21 = V.Zero, s22 = V.Zero;
            V s30 = V.Zero, s31 = V.Zero, s32 = V.Zero;
            nint ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint q = 0; q < depth; q++)
            {
                Ask<TEnd>(a0 + ahead);
                V b0 = V.Load(at), b1 = V.Load(at + w), b2 = V.Load(at + 2 * w);
                V x = V.From(*a0);
                V.AddProduct(ref s00, x, b0); V.AddProduct(ref s01, x, b1); V.AddProduct(ref s02, x, b2);
                x = V.From(*a1);
                V.AddProduct(ref s10, x, b0); V.AddProduct(ref s11, x, b1); V.AddProduct(ref s12, x, b2);
                x = V.From(*a2);
                V.AddProduct(ref s20, x, b0); V.AddProduct(ref s21, x, b1); V.AddProduct(ref s22, x, b2);
                x = V.From(*a3);
                V.AddProduct(ref s30, x, b0); V.AddProduct(ref s31, x, b1); V.AddProduct(ref s32, x, b2);
                a0 += step; a1 += step; a2 += step; a3 += step; at += bStep;
            }
            end.Column(s00, s10, s20, s30, r, lane, row, cStep);
            end.Column(s01, s11, s21, s31, r, lane + w, row + w, cStep);
            end.Column(s02, s12, s22, s32, r, lane + 2 * w, row + 2 * w, cStep);
            end.Done<V>(r, lane, 3);
        }
    }

    // Eight rows: 0.98 of peak, where four had 0.92.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tiles2<V, TEnd>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint depth, float* c, nint cStep, nint lane, in TEnd end)
        where V : struct, ILanes<V> where TEnd : struct, ITileEnd
    {
        int w = V.Count;
        nint r = 0, threeRows = 3 * rowStep;
        for (; HasManyRegisters && r + 2 * Rows <= rows; r += 2 * Rows)
        {
            float* a0 = a + r * rowStep, a4 = a0 + Rows * rowStep, at = b, row = c + r * cStep, next = row + Rows * cStep;
            V s00 = V.Zero, s01 = V.Zero, s10 = V.Zero, s11 = V.Zero, s20 = V.Zero, s21 = V.Zero, s30 = V.Zero, s31 = V.Zero;
            V s40 = V.Zero, s41 = V.Zero, s50 = V.Zero, s51 = V.Zero, s60 = V.Zero, s61 = V.Zero, s70 = V.Zero, s71 = V.Zero;
            nint ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint q = 0; q < depth; q++)
            {
                Ask<TEnd>(a0 + ahead);
                V b0 = V.Load(at), b1 = V.Load(at + w);
                Step(a0, rowStep, threeRows, b0, b1, ref s00, ref s01, ref s10, ref s11, ref s20, ref s21, ref s30, ref s31);
                Step(a4, rowStep, threeRows, b0, b1, ref s40, ref s41, ref s50, ref s51, ref s60, ref s61, ref s70, ref s71);
                a0 += step; a4 += step; at += bStep;
            }
            end.Column(s00, s10, s20, s30, r, lane, row, cStep);
            end.Column(s01, s11, s21, s31, r, lane + w, row + w, cStep);
            end.Column(s40, s50, s60, s70, r + Rows, lane, next, cStep);
            end.Column(s41, s51, s61, s71, r + Rows, lane + w, next + w, cStep);
            end.Done<V>(r, lane, 2);
            end.Done<V>(r + Rows, lane, 2);
        }
        for (; r < rows; r += Rows)
        {
            float* a0 = a + r * rowStep, a1 = r + 1 < rows ? a0 + rowStep : a0, a2 = r + 2 < rows ? a1 + rowStep : a1, a3 = r + 3 < rows ? a2 + rowStep : a2, at = b;
            float* row = c + r * cStep;
            V s00 = V.Zero, s01 = V.Zero;
            V s10 = V.Zero, s11 = V.Zero;
            V s20 = V.Zero, s21 = V.Zero;
            V s30 = V.Zero, s31 = V.Zero;
            nint ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint q = 0; q < depth; q++)
            {
                Ask<TEnd>(a0 + ahead);
                V b0 = V.Load(at), b1 = V.Load(at + w);
                V x = V.From(*a0);
                V.AddProduct(ref s00, x, b0); V.AddProduct(ref s01, x, b1);
                x = V.From(*a1);
                V.AddProduct(ref s10, x, b0); V.AddProduct(ref s11, x, b1);
                x = V.From(*a2);
                V.AddProduct(ref s20, x, b0); V.AddProduct(ref s21, x, b1);
                x = V.From(*a3);
                V.AddProduct(ref s30, x, b0); V.AddProduct(ref s31, x, b1);
                a0 += step; a1 += step; a2 += step; a3 += step; at += bStep;
            }
            end.Column(s00, s10, s20, s30, r, lane, row, cStep);
            end.Column(s01, s11, s21, s31, r, lane + w, row + w, cStep);
            end.Done<V>(r, lane, 2);
        }
    }

    // Eight sums keep the units busy, and 16 rows share what is read of b. A tile of 64 by 64, one vector: 0.57 of peak with four rows, 0.84 with eight, 0.90 with 16.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Tiles1<V, TEnd>(float* a, nint rowStep, nint step, nint rows, float* b, nint bStep, nint depth, float* c, nint cStep, nint lane, in TEnd end)
        where V : struct, ILanes<V> where TEnd : struct, ITileEnd
    {
        nint r = 0, threeRows = 3 * rowStep, fourRows = Rows * rowStep, fourSums = Rows * cStep;
        for (; HasManyRegisters && r + 4 * Rows <= rows; r += 4 * Rows)
        {
            float* a0 = a + r * rowStep, a4 = a0 + fourRows, a8 = a4 + fourRows, a12 = a8 + fourRows, at = b, row = c + r * cStep;
            V s0 = V.Zero, s1 = V.Zero, s2 = V.Zero, s3 = V.Zero, s4 = V.Zero, s5 = V.Zero, s6 = V.Zero, s7 = V.Zero;
            V s8 = V.Zero, s9 = V.Zero, s10 = V.Zero, s11 = V.Zero, s12 = V.Zero, s13 = V.Zero, s14 = V.Zero, s15 = V.Zero;
            nint ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint q = 0; q < depth; q++)
            {
                Ask<TEnd>(a0 + ahead);
                V b0 = V.Load(at);
                Step(a0, rowStep, threeRows, b0, ref s0, ref s1, ref s2, ref s3);
                Step(a4, rowStep, threeRows, b0, ref s4, ref s5, ref s6, ref s7);
                Step(a8, rowStep, threeRows, b0, ref s8, ref s9, ref s10, ref s11);
                Step(a12, rowStep, threeRows, b0, ref s12, ref s13, ref s14, ref s15);
                a0 += step; a4 += step; a8 += step; a12 += step; at += bStep;
            }
            end.Column(s0, s1, s2, s3, r, lane, row, cStep);
            end.Column(s4, s5, s6, s7, r + Rows, lane, row + fourSums, cStep);
            end.Column(s8, s9, s10, s11, r + 2 * Rows, lane, row + 2 * fourSums, cStep);
            end.Column(s12, s13, s14, s15, r + 3 * Rows, lane, row + 3 * fourSums, cStep);
            for (nint done = r; done < r + 4 * Rows; done += Rows)
                end.Done<V>(done, lane, 1);
        }
        for (; r + 2 * Rows <= rows; r += 2 * Rows)
        {
            float* a0 = a + r * rowStep, a4 = a0 + fourRows, at = b, row = c + r * cStep;
            V s0 = V.Zero, s1 = V.Zero, s2 = V.Zero, s3 = V.Zero, s4 = V.Zero, s5 = V.Zero, s6 = V.Zero, s7 = V.Zero;
            nint ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint q = 0; q < depth; q++)
            {
                Ask<TEnd>(a0 + ahead);
                V b0 = V.Load(at);
                Step(a0, rowStep, threeRows, b0, ref s0, ref s1, ref s2, ref s3);
                Step(a4, rowStep, threeRows, b0, ref s4, ref s5, ref s6, ref s7);
                a0 += step; a4 += step; at += bStep;
            }
            end.Column(s0, s1, s2, s3, r, lane, row, cStep);
            end.Column(s4, s5, s6, s7, r + Rows, lane, row + fourSums, cStep);
            end.Done<V>(r, lane, 1);
            end.Done<V>(r + Rows, lane, 1);
        }
        for (; r < rows; r += Rows)
        {
            float* a0 = a + r * rowStep, a1 = r + 1 < rows ? a0 + rowStep : a0, a2 = r + 2 < rows ? a1 + rowStep : a1, a3 = r + 3 < rows ? a2 + rowStep : a2, at = b, row = c + r * cStep;
            V s0 = V.Zero, s1 = V.Zero, s2 = V.Zero, s3 = V.Zero;
            nint ahead = Ahead<TEnd>(r, rows, rowStep, step, depth);
            for (nint q = 0, n = 0; q < depth; q++, n += step)
            {
                Ask<TEnd>(a0 + n + ahead);
                V b0 = V.Load(at);
                V.AddProduct(ref s0, V.From(a0[n]), b0); V.AddProduct(ref s1, V.From(a1[n]), b0); V.AddProduct(ref s2, V.From(a2[n]), b0); V.AddProduct(ref s3, V.From(a3[n]), b0);
                at += bStep;
            }
            end.Column(s0, s1, s2, s3, r, lane, row, cStep);
            end.Done<V>(r, lane, 1);
        }
    }
}

/// <summary>What becomes of the sums of a register tile before they leave the registers.</summary>
internal unsafe interface ITileEnd
{
    /// <summary>Whether the product asks for what it will read of a: where its rows lie side by side, each step of the depth is on a line of its own, a pattern that the processor's own prefetching doesn't follow. Attention whose values lie in the second-level cache takes 0.98 of the time with it, 0.5 to 0.87 where they come from memory.</summary>
    static virtual bool Asks => false;

    /// <summary>Takes four rows of one vector.</summary>
    /// <param name="s0">The sums of the first row; the next rows' follow.</param>
    /// <param name="s1">Of the second.</param>
    /// <param name="s2">Of the third.</param>
    /// <param name="s3">Of the fourth.</param>
    /// <param name="row">The first row.</param>
    /// <param name="lane">The first lane.</param>
    /// <param name="c">Where the first row's sums belong.</param>
    /// <param name="cStep">The distance to the next row.</param>
    void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V>;

    /// <summary>Comes after the columns of a register tile, when no vector is in use.</summary>
    /// <param name="row">The first row.</param>
    /// <param name="lane">The first lane.</param>
    /// <param name="vectors">The vectors of a row.</param>
    void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V>;
}

/// <summary>Stores a product's sums.</summary>
internal readonly unsafe struct StoreTile : ITileEnd
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V>
    {
        s0.Store(c);
        s1.Store(c + cStep);
        s2.Store(c + 2 * cStep);
        s3.Store(c + 3 * cStep);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V>
    {
    }
}

/// <summary>Adds a product's sums.</summary>
internal readonly unsafe struct AddTile : ITileEnd
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V>
    {
        (V.Load(c) + s0).Store(c);
        (V.Load(c + cStep) + s1).Store(c + cStep);
        (V.Load(c + 2 * cStep) + s2).Store(c + 2 * cStep);
        (V.Load(c + 3 * cStep) + s3).Store(c + 3 * cStep);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V>
    {
    }
}

/// <summary>Adds a product's sums to what is there times a factor a lane.</summary>
internal readonly unsafe struct RescaleTile(float* factor) : ITileEnd
{
    public static bool Asks => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V>
    {
        V shrink = V.Load(factor + lane);
        (V.Load(c) * shrink + s0).Store(c);
        (V.Load(c + cStep) * shrink + s1).Store(c + cStep);
        (V.Load(c + 2 * cStep) * shrink + s2).Store(c + 2 * cStep);
        (V.Load(c + 3 * cStep) * shrink + s3).Store(c + 3 * cStep);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V>
    {
    }
}
