using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Copies matrices between layouts: row by row where both sides have their columns side by side, through square transposes in registers where one has its rows so.</summary>
/// <remarks>
/// The squares are as wide as a vector: with 16 floats each cache line is read or written once, whole. Rows that lie a multiple of 4 KB apart share their place in the first-level cache, so
/// that a line is gone before its second piece is needed.
/// </remarks>
internal static unsafe class MatrixCopy
{
    // The side of the smallest square that is transposed in registers, one 128-bit vector, and of the largest.
    private const int Side = 4;

    private static int WidestSide => Avx512F.IsSupported ? Vector512<float>.Count : Avx.IsSupported ? Vector256<float>.Count : Side;

    /// <summary>to[row·toRow + column·toColumn] = from[row·fromRow + column·fromColumn], or += if <paramref name="add"/>.</summary>
    public static void Run(float* from, nint fromRow, nint fromColumn, float* to, nint toRow, nint toColumn, nint rows, nint columns, bool add = false)
    {
        if (fromColumn != 1 && fromRow == 1)
        {
            (fromRow, fromColumn, toRow, toColumn) = (fromColumn, fromRow, toColumn, toRow);
            (rows, columns) = (columns, rows);
        }
        if (fromColumn == 1 && toColumn == 1)
        {
            for (nint row = 0; row < rows; row++)
                Row(from + row * fromRow, to + row * toRow, columns, add);
        }
        else if (fromColumn == 1 && toRow == 1 && (Sse.IsSupported || AdvSimd.Arm64.IsSupported))
            Transpose(WidestSide, from, fromRow, to, toColumn, rows, columns, add);
        else
            Elements(from, fromRow, fromColumn, to, toRow, toColumn, rows, columns, add);
    }

    /// <summary>Whether <see cref="TransposeSquares"/> can copy a matrix.</summary>
    public static bool IsOfSquares(nint fromColumn, nint rows, nint columns) => Avx512F.IsSupported && fromColumn == 1 && rows % Vector512<float>.Count == 0 && columns % Vector512<float>.Count == 0;

    /// <summary>to[row + column·toColumn] = from[row·fromRow + column]; returns whether there is a −∞.</summary>
    public static bool TransposeSquares(float* from, nint fromRow, float* to, nint toColumn, nint rows, nint columns)
    {
        Vector512<float> least = default;
        for (nint row = 0; row < rows; row += Vector512<float>.Count)
        {
            for (nint column = 0; column < columns; column += Vector512<float>.Count)
                Transpose16<No, Yes>(from + row * fromRow + column, fromRow, to + row + column * toColumn, toColumn, ref least);
        }
        return Vector512.EqualsAny(least, Vector512.Create(float.NegativeInfinity));
    }

    /// <summary>Whether <see cref="TransposeShown"/> can copy a matrix.</summary>
    public static bool HidesColumns(nint fromColumn) => Avx512F.IsSupported && fromColumn == 1;

    /// <summary>to[row + column·toColumn] = from[row·fromRow + column] of what is shown, −∞ elsewhere: nothing else is read. Of rows and columns the squares that hold them are written.</summary>
    /// <param name="from">The matrix.</param>
    /// <param name="fromRow">The distance of its rows.</param>
    /// <param name="shown">A word a row, of which bit c says whether column c is shown; of a square's rows and columns beyond the matrix none is.</param>
    /// <param name="to">The transposed matrix.</param>
    /// <param name="toColumn">The distance of its rows.</param>
    /// <param name="rows">The rows.</param>
    /// <param name="first">The first column.</param>
    /// <param name="end">The columns end here.</param>
    public static void TransposeShown(float* from, nint fromRow, ulong* shown, float* to, nint toColumn, nint rows, nint first, nint end)
    {
        for (nint row = 0; row < rows; row += Vector512<float>.Count)
        {
            for (nint column = first / Vector512<float>.Count * Vector512<float>.Count; column < end; column += Vector512<float>.Count)
                TransposeShown16(from + row * fromRow + column, fromRow, shown + row, (int)column, to + row + column * toColumn, toColumn);
        }
    }

    // In squares as far as they reach. What is left over is copied by squares that lie half over others; where something is added, which must happen once, by smaller ones.
    private static void Transpose(int side, float* from, nint fromRow, float* to, nint toColumn, nint rows, nint columns, bool add)
    {
        if (side < Side)
        {
            Elements(from, fromRow, 1, to, 1, toColumn, rows, columns, add);
            return;
        }
        Vector512<float> least = default;
        bool overlaps = !add && rows >= side && columns >= side;
        nint squareRows = overlaps ? rows : rows - rows % side, squareColumns = overlaps ? columns : columns - columns % side;
        for (nint at = 0; at < squareRows; at += side)
        {
            nint row = Math.Min(at, rows - side);
            for (nint next = 0; next < squareColumns; next += side)
            {
                nint column = Math.Min(next, columns - side);
                float* square = from + row * fromRow + column, target = to + row + column * toColumn;
                if (side == Side)
                    Transpose4(square, fromRow, target, toColumn, add);
                else if (side == Vector256<float>.Count)
                    Transpose8(square, fromRow, target, toColumn, add);
                else if (add)
                    Transpose16<Yes, No>(square, fromRow, target, toColumn, ref least);
                else
                    Transpose16<No, No>(square, fromRow, target, toColumn, ref least);
            }
        }
        if (squareColumns < columns)
            Transpose(side / 2, from + squareColumns, fromRow, to + squareColumns * toColumn, toColumn, squareRows, columns - squareColumns, add);
        if (squareRows < rows)
            Transpose(side / 2, from + squareRows * fromRow, fromRow, to + squareRows, toColumn, rows - squareRows, columns, add);
    }

    // A row's end is copied by a vector that lies half over the one before.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Row(float* from, float* to, nint count, bool add)
    {
        nint done = 0;
        for (; Vector512.IsHardwareAccelerated && done + Vector512<float>.Count <= count; done += Vector512<float>.Count)
        {
            Vector512<float> sixteen = Vector512.Load(from + done);
            (add ? Vector512.Load(to + done) + sixteen : sixteen).Store(to + done);
        }
        if (Vector512.IsHardwareAccelerated && !add && done > 0 && done < count)
        {
            Vector512.Load(from + count - Vector512<float>.Count).Store(to + count - Vector512<float>.Count);
            return;
        }
        for (; Vector256.IsHardwareAccelerated && done + Vector256<float>.Count <= count; done += Vector256<float>.Count)
        {
            Vector256<float> eight = Vector256.Load(from + done);
            (add ? Vector256.Load(to + done) + eight : eight).Store(to + done);
        }
        for (; done + Side <= count; done += Side)
        {
            Vector128<float> four = Vector128.Load(from + done);
            (add ? Vector128.Load(to + done) + four : four).Store(to + done);
        }
        for (; done < count; done++)
            to[done] = add ? to[done] + from[done] : from[done];
    }

    private static void Elements(float* from, nint fromRow, nint fromColumn, float* to, nint toRow, nint toColumn, nint rows, nint columns, bool add)
    {
        for (nint column = 0; column < columns; column++, from += fromColumn, to += toColumn)
        {
            float* source = from, target = to;
            for (nint row = 0; row < rows; row++, source += fromRow, target += toRow)
                *target = add ? *target + *source : *source;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose4(float* from, nint fromStep, float* to, nint toStep, bool add)
    {
        Vector128<float> r0 = Vector128.Load(from), r1 = Vector128.Load(from + fromStep), r2 = Vector128.Load(from + 2 * fromStep), r3 = Vector128.Load(from + 3 * fromStep);
        Vector128<float> c0, c1, c2, c3;
        if (Sse.IsSupported)
        {
            Vector128<float> low01 = Sse.UnpackLow(r0, r1), low23 = Sse.UnpackLow(r2, r3), high01 = Sse.UnpackHigh(r0, r1), high23 = Sse.UnpackHigh(r2, r3);
            c0 = Sse.MoveLowToHigh(low01, low23);
            c1 = Sse.MoveHighToLow(low23, low01);
            c2 = Sse.MoveLowToHigh(high01, high23);
            c3 = Sse.MoveHighToLow(high23, high01);
        }
        else
        {
            Vector128<float> even01 = AdvSimd.Arm64.TransposeEven(r0, r1), even23 = AdvSimd.Arm64.TransposeEven(r2, r3);
            Vector128<float> odd01 = AdvSimd.Arm64.TransposeOdd(r0, r1), odd23 = AdvSimd.Arm64.TransposeOdd(r2, r3);
            c0 = Vector128.Create(even01.GetLower(), even23.GetLower());
            c1 = Vector128.Create(odd01.GetLower(), odd23.GetLower());
            c2 = Vector128.Create(even01.GetUpper(), even23.GetUpper());
            c3 = Vector128.Create(odd01.GetUpper(), odd23.GetUpper());
        }
        (add ? Vector128.Load(to) + c0 : c0).Store(to);
        (add ? Vector128.Load(to + toStep) + c1 : c1).Store(to + toStep);
        (add ? Vector128.Load(to + 2 * toStep) + c2 : c2).Store(to + 2 * toStep);
        (add ? Vector128.Load(to + 3 * toStep) + c3 : c3).Store(to + 3 * toStep);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Transpose8(float* from, nint fromStep, float* to, nint toStep, bool add)
    {
        Transpose4(from, fromStep, out Vector256<float> a0, out Vector256<float> b0, out Vector256<float> c0, out Vector256<float> d0);
        Transpose4(from + 4 * fromStep, fromStep, out Vector256<float> a1, out Vector256<float> b1, out Vector256<float> c1, out Vector256<float> d1);
        Store(a0, a1, to, 4 * toStep, add);
        Store(b0, b1, to + toStep, 4 * toStep, add);
        Store(c0, c1, to + 2 * toStep, 4 * toStep, add);
        Store(d0, d1, to + 3 * toStep, 4 * toStep, add);
    }

    // 4 × 4 transposes within each 128 bits: column 4k + n of the four rows in the k-th 128 bits of the n-th result.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose4(float* from, nint step, out Vector256<float> c0, out Vector256<float> c1, out Vector256<float> c2, out Vector256<float> c3)
    {
        Vector256<float> r0 = Vector256.Load(from), r1 = Vector256.Load(from + step), r2 = Vector256.Load(from + 2 * step), r3 = Vector256.Load(from + 3 * step);
        Vector256<double> low01 = Avx.UnpackLow(r0, r1).AsDouble(), low23 = Avx.UnpackLow(r2, r3).AsDouble(), high01 = Avx.UnpackHigh(r0, r1).AsDouble(), high23 = Avx.UnpackHigh(r2, r3).AsDouble();
        c0 = Avx.UnpackLow(low01, low23).AsSingle();
        c1 = Avx.UnpackHigh(low01, low23).AsSingle();
        c2 = Avx.UnpackLow(high01, high23).AsSingle();
        c3 = Avx.UnpackHigh(high01, high23).AsSingle();
    }

    // Two columns, four columns apart, of which a and b hold four rows each.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(Vector256<float> a, Vector256<float> b, float* to, nint step, bool add)
    {
        Vector256<float> c0 = Avx.Permute2x128(a, b, 0x20), c1 = Avx.Permute2x128(a, b, 0x31);
        (add ? Vector256.Load(to) + c0 : c0).Store(to);
        (add ? Vector256.Load(to + step) + c1 : c1).Store(to + step);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Transpose16<TAdds, TLooks>(float* from, nint fromStep, float* to, nint toStep, ref Vector512<float> least) where TAdds : struct, IChoice where TLooks : struct, IChoice
    {
        Vector512<float> s0 = default, s1 = default, s2 = default, s3 = default;
        Transpose16x8<TAdds, TLooks>(from, fromStep, to, toStep, ref s0, ref s1, ref s2, ref s3);
        Transpose16x8<TAdds, TLooks>(from + 8, fromStep, to + 8 * toStep, toStep, ref s0, ref s1, ref s2, ref s3);
        if (TLooks.Taken)
            least = Avx512F.Min(least, Avx512F.Min(Avx512F.Min(s0, s1), Avx512F.Min(s2, s3)));
    }

    // Eight columns of 16 rows. Two rows' halves are loaded side by side, so that 128-bit pieces change places once: on Zen 5 that takes three times as long as what moves within them (a square 31 cycles, 46 from whole rows).
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose16x8<TAdds, TLooks>(float* from, nint fromStep, float* to, nint toStep, ref Vector512<float> s0, ref Vector512<float> s1, ref Vector512<float> s2, ref Vector512<float> s3)
        where TAdds : struct, IChoice where TLooks : struct, IChoice
    {
        Vector512<float> a0 = Halves(from, 4 * fromStep), a1 = Halves(from + fromStep, 4 * fromStep), a2 = Halves(from + 2 * fromStep, 4 * fromStep), a3 = Halves(from + 3 * fromStep, 4 * fromStep);
        from += 8 * fromStep;
        Vector512<float> b0 = Halves(from, 4 * fromStep), b1 = Halves(from + fromStep, 4 * fromStep), b2 = Halves(from + 2 * fromStep, 4 * fromStep), b3 = Halves(from + 3 * fromStep, 4 * fromStep);
        if (TLooks.Taken)
        {
            // Beside a NaN the second operand is taken. The units that compare have nothing else to do here.
            (s0, s1, s2, s3) = (Avx512F.Min(a0, s0), Avx512F.Min(a1, s1), Avx512F.Min(a2, s2), Avx512F.Min(a3, s3));
            (s0, s1, s2, s3) = (Avx512F.Min(b0, s0), Avx512F.Min(b1, s1), Avx512F.Min(b2, s2), Avx512F.Min(b3, s3));
        }
        const byte even = 0x88, odd = 0xdd; // which 128 bits of both operands
        Transpose4(Avx512F.Shuffle4x128(a0, b0, even), Avx512F.Shuffle4x128(a1, b1, even), Avx512F.Shuffle4x128(a2, b2, even), Avx512F.Shuffle4x128(a3, b3, even), out Vector512<float> c0, out Vector512<float> c1, out Vector512<float> c2, out Vector512<float> c3);
        Store4(c0, c1, c2, c3, to, toStep, TAdds.Taken);
        Transpose4(Avx512F.Shuffle4x128(a0, b0, odd), Avx512F.Shuffle4x128(a1, b1, odd), Avx512F.Shuffle4x128(a2, b2, odd), Avx512F.Shuffle4x128(a3, b3, odd), out c0, out c1, out c2, out c3);
        Store4(c0, c1, c2, c3, to + 4 * toStep, toStep, TAdds.Taken);
    }

    // Eight floats of two rows.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Halves(float* from, nint step) => Avx512F.InsertVector256(Vector256.Load(from).ToVector512Unsafe(), Vector256.Load(from + step), 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store4(Vector512<float> c0, Vector512<float> c1, Vector512<float> c2, Vector512<float> c3, float* to, nint step, bool add)
    {
        (add ? Vector512.Load(to) + c0 : c0).Store(to);
        (add ? Vector512.Load(to + step) + c1 : c1).Store(to + step);
        (add ? Vector512.Load(to + 2 * step) + c2 : c2).Store(to + 2 * step);
        (add ? Vector512.Load(to + 3 * step) + c3 : c3).Store(to + 3 * step);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose4(Vector512<float> r0, Vector512<float> r1, Vector512<float> r2, Vector512<float> r3, out Vector512<float> c0, out Vector512<float> c1, out Vector512<float> c2, out Vector512<float> c3)
    {
        Vector512<double> low01 = Avx512F.UnpackLow(r0, r1).AsDouble(), low23 = Avx512F.UnpackLow(r2, r3).AsDouble();
        Vector512<double> high01 = Avx512F.UnpackHigh(r0, r1).AsDouble(), high23 = Avx512F.UnpackHigh(r2, r3).AsDouble();
        c0 = Avx512F.UnpackLow(low01, low23).AsSingle();
        c1 = Avx512F.UnpackHigh(low01, low23).AsSingle();
        c2 = Avx512F.UnpackLow(high01, high23).AsSingle();
        c3 = Avx512F.UnpackHigh(high01, high23).AsSingle();
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void TransposeShown16(float* from, nint fromStep, ulong* shown, int column, float* to, nint toStep)
    {
        TransposeShown4(from, fromStep, shown, column, out Vector512<float> a0, out Vector512<float> b0, out Vector512<float> c0, out Vector512<float> d0);
        TransposeShown4(from + 4 * fromStep, fromStep, shown + 4, column, out Vector512<float> a1, out Vector512<float> b1, out Vector512<float> c1, out Vector512<float> d1);
        TransposeShown4(from + 8 * fromStep, fromStep, shown + 8, column, out Vector512<float> a2, out Vector512<float> b2, out Vector512<float> c2, out Vector512<float> d2);
        TransposeShown4(from + 12 * fromStep, fromStep, shown + 12, column, out Vector512<float> a3, out Vector512<float> b3, out Vector512<float> c3, out Vector512<float> d3);
        Store(a0, a1, a2, a3, to, 4 * toStep);
        Store(b0, b1, b2, b3, to + toStep, 4 * toStep);
        Store(c0, c1, c2, c3, to + 2 * toStep, 4 * toStep);
        Store(d0, d1, d2, d3, to + 3 * toStep, 4 * toStep);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void TransposeShown4(float* from, nint step, ulong* shown, int column, out Vector512<float> c0, out Vector512<float> c1, out Vector512<float> c2, out Vector512<float> c3) =>
        Transpose4(LoadShown(from, shown[0] >> column), LoadShown(from + step, shown[1] >> column), LoadShown(from + 2 * step, shown[2] >> column), LoadShown(from + 3 * step, shown[3] >> column),
            out c0, out c1, out c2, out c3);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> LoadShown(float* from, ulong shown)
    {
        Vector512<int> isShown = Vector512.Equals(Vector512.Create((int)~shown) & Vector512.Create(LanesConstants.Bits), Vector512<int>.Zero);
        return Avx512F.MaskLoad(from, isShown.AsSingle(), Vector512.Create(float.NegativeInfinity));
    }

    // Four columns, each four columns from the one before, of which a to d hold four rows each.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(Vector512<float> a, Vector512<float> b, Vector512<float> c, Vector512<float> d, float* to, nint step)
    {
        const byte lower = 0x44, upper = 0xee, even = 0x88, odd = 0xdd; // which 128 bits of both operands
        Vector512<float> abLower = Avx512F.Shuffle4x128(a, b, lower), cdLower = Avx512F.Shuffle4x128(c, d, lower), abUpper = Avx512F.Shuffle4x128(a, b, upper), cdUpper = Avx512F.Shuffle4x128(c, d, upper);
        Store4(Avx512F.Shuffle4x128(abLower, cdLower, even), Avx512F.Shuffle4x128(abLower, cdLower, odd), Avx512F.Shuffle4x128(abUpper, cdUpper, even), Avx512F.Shuffle4x128(abUpper, cdUpper, odd), to, step, add: false);
    }
}
