using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Copies matrices between layouts: row by row where both sides have their columns side by side, through 4 × 4 transposes in registers where one has its rows so.</summary>
internal static unsafe class MatrixCopy
{
    // The side of a block that is transposed in registers: one 128-bit vector.
    private const int Side = 4;

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
        {
            nint fullRows = rows - rows % Side, fullColumns = columns - columns % Side;
            for (nint row = 0; row < fullRows; row += Side)
            {
                for (nint column = 0; column < fullColumns; column += Side)
                    Transpose(from + row * fromRow + column, fromRow, to + row + column * toColumn, toColumn, add);
            }
            Elements(from + fullColumns, fromRow, 1, to + fullColumns * toColumn, 1, toColumn, fullRows, columns - fullColumns, add);
            Elements(from + fullRows * fromRow, fromRow, 1, to + fullRows, 1, toColumn, rows - fullRows, columns, add);
        }
        else
            Elements(from, fromRow, fromColumn, to, toRow, toColumn, rows, columns, add);
    }

    private static void Row(float* from, float* to, nint count, bool add)
    {
        nint done = 0;
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
        for (nint row = 0; row < rows; row++)
        {
            for (nint column = 0; column < columns; column++)
            {
                float* at = to + row * toRow + column * toColumn;
                float value = from[row * fromRow + column * fromColumn];
                *at = add ? *at + value : value;
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose(float* from, nint fromStep, float* to, nint toStep, bool add)
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
}
