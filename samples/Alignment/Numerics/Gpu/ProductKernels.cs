using System.Runtime.CompilerServices;
using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>What a matrix product is made of: result[i, j] = addend[i, j] + Σₚ left[i, p] · right[j, p].</summary>
public readonly struct ProductArguments
{
    /// <summary>[rows, terms], any strides.</summary>
    public GpuTensor<float> Left { get; init; }

    /// <summary>[columns, terms], any strides.</summary>
    public GpuTensor<float> Right { get; init; }

    /// <summary>[rows, columns]; absent: nothing is added. May be the result.</summary>
    public GpuTensor<float> Addend { get; init; }

    /// <summary>[pieces, rows, columns]: the sums over each piece of the terms.</summary>
    public GpuTensor<float> Result { get; init; }

    public int Rows { get; init; }
    public int Columns { get; init; }
    public int Terms { get; init; }

    /// <summary>A multiple of <see cref="ProductKernels.TileTerms"/>.</summary>
    public int TermsPerPiece { get; init; }

    public int RowTiles { get; init; }
    public int ColumnTiles { get; init; }

    /// <summary>1 if neighbours in memory are neighbours among the terms, 0 if they are among the rows.</summary>
    public int LeftByTerm { get; init; }

    /// <summary>1 if neighbours in memory are neighbours among the terms, 0 if they are among the columns.</summary>
    public int RightByTerm { get; init; }
}

/// <summary>The products of a linear layer and of its gradients: one kernel, whose tensors' strides say which is transposed.</summary>
/// <remarks>
/// A group computes 16 rows by 64 columns, a thread one column of it: per term it reads one number of the right matrix and sixteen of the left, which all
/// threads share. Both come through shared memory, 16 terms at a time. The terms of an element are summed one by one in ascending order; a long sum
/// whose matrix has too few tiles to fill a GPU is cut into pieces, by shape alone, which <see cref="SumKernels.AddPieces"/> adds in order.
/// </remarks>
internal static class ProductKernels
{
    public const int GroupSize = 64;
    public const int TileRows = 16, TileColumns = GroupSize, TileTerms = 16;

    // One more than a row needs: threads that write a column then hit different banks.
    private const int LeftPitch = TileRows + 1, RightPitch = TileColumns + 1;

    // A sum is cut until there are so many tiles, into pieces of at least so many terms.
    private const int EnoughTiles = 128, LeastTerms = 128;

    /// <summary>How long the pieces are into which the sums of a product are cut: a multiple of <see cref="TileTerms"/>.</summary>
    public static int TermsPerPiece(int rows, int columns, int terms)
    {
        int tiles = Tiles(rows, TileRows) * Tiles(columns, TileColumns);
        int pieces = Math.Clamp(EnoughTiles / Math.Max(tiles, 1), 1, Math.Max(terms / LeastTerms, 1));
        return Math.Max(1, Tiles(Tiles(terms, pieces), TileTerms)) * TileTerms;
    }

    /// <summary>How many tiles cover a length.</summary>
    public static int Tiles(int length, int tile) => (int)(((long)length + tile - 1) / tile);

    public static void Multiply(ProductArguments a)
    {
        ArrayView<float> left = SharedMemory.Allocate<float>(TileTerms * LeftPitch), right = SharedMemory.Allocate<float>(TileTerms * RightPitch);
        int thread = Group.IdxX;
        int row = Grid.IdxX % a.RowTiles * TileRows, rest = Grid.IdxX / a.RowTiles;
        int column = rest % a.ColumnTiles * TileColumns, piece = rest / a.ColumnTiles;
        int begin = piece * a.TermsPerPiece, end = Math.Min(begin + a.TermsPerPiece, a.Terms);

        Column16 sums = default;
        for (int term = begin; term < end; term += TileTerms)
        {
            Stage(left, LeftPitch, TileRows, a.Left, row, a.Rows - row, term, end - term, a.LeftByTerm != 0);
            Stage(right, RightPitch, TileColumns, a.Right, column, a.Columns - column, term, end - term, a.RightByTerm != 0);
            Group.Barrier();
            sums = sums.Add(left, 0, right[thread]);
            sums = sums.Add(left, LeftPitch, right[RightPitch + thread]);
            sums = sums.Add(left, 2 * LeftPitch, right[2 * RightPitch + thread]);
            sums = sums.Add(left, 3 * LeftPitch, right[3 * RightPitch + thread]);
            sums = sums.Add(left, 4 * LeftPitch, right[4 * RightPitch + thread]);
            sums = sums.Add(left, 5 * LeftPitch, right[5 * RightPitch + thread]);
            sums = sums.Add(left, 6 * LeftPitch, right[6 * RightPitch + thread]);
            sums = sums.Add(left, 7 * LeftPitch, right[7 * RightPitch + thread]);
            sums = sums.Add(left, 8 * LeftPitch, right[8 * RightPitch + thread]);
            sums = sums.Add(left, 9 * LeftPitch, right[9 * RightPitch + thread]);
            sums = sums.Add(left, 10 * LeftPitch, right[10 * RightPitch + thread]);
            sums = sums.Add(left, 11 * LeftPitch, right[11 * RightPitch + thread]);
            sums = sums.Add(left, 12 * LeftPitch, right[12 * RightPitch + thread]);
            sums = sums.Add(left, 13 * LeftPitch, right[13 * RightPitch + thread]);
            sums = sums.Add(left, 14 * LeftPitch, right[14 * RightPitch + thread]);
            sums = sums.Add(left, 15 * LeftPitch, right[15 * RightPitch + thread]);
            Group.Barrier();
        }
        if (column + thread < a.Columns)
            sums.Store(a, piece, row, column + thread);
    }

    // [term, row] of a tile into shared memory, 0 beyond the matrix. Neighbouring threads read neighbours in memory: terms of a row, or rows of a term.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Stage(ArrayView<float> shared, int pitch, int size, in GpuTensor<float> matrix, int firstRow, int rows, int firstTerm, int terms, bool byTerm)
    {
        int thread = Group.IdxX, r = byTerm ? thread / TileTerms : thread % size, t = byTerm ? thread % TileTerms : thread / size;
        int rowStep = byTerm ? GroupSize / TileTerms : 0, termStep = byTerm ? 0 : GroupSize / size;
        int at = t * pitch + r, step = termStep * pitch + rowStep;
        for (int i = 0; i < size * TileTerms / GroupSize; i++)
        {
            shared[at] = r < rows && t < terms ? matrix[firstRow + r, firstTerm + t] : 0f;
            r += rowStep;
            t += termStep;
            at += step;
        }
    }

    /// <summary>The sums of one thread: registers, each with a name of its own, because ILGPU unrolls no loops.</summary>
    private struct Column16
    {
        private float r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public readonly Column16 Add(ArrayView<float> left, int at, float right) => new()
        {
            r0 = r0 + left[at] * right,
            r1 = r1 + left[at + 1] * right,
            r2 = r2 + left[at + 2] * right,
            r3 = r3 + left[at + 3] * right,
            r4 = r4 + left[at + 4] * right,
            r5 = r5 + left[at + 5] * right,
            r6 = r6 + left[at + 6] * right,
            r7 = r7 + left[at + 7] * right,
            r8 = r8 + left[at + 8] * right,
            r9 = r9 + left[at + 9] * right,
            r10 = r10 + left[at + 10] * right,
            r11 = r11 + left[at + 11] * right,
            r12 = r12 + left[at + 12] * right,
            r13 = r13 + left[at + 13] * right,
            r14 = r14 + left[at + 14] * right,
            r15 = r15 + left[at + 15] * right,
        };

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public readonly void Store(in ProductArguments a, int piece, int row, int column)
        {
            Store(a, piece, row, column, r0);
            Store(a, piece, row + 1, column, r1);
            Store(a, piece, row + 2, column, r2);
            Store(a, piece, row + 3, column, r3);
            Store(a, piece, row + 4, column, r4);
            Store(a, piece, row + 5, column, r5);
            Store(a, piece, row + 6, column, r6);
            Store(a, piece, row + 7, column, r7);
            Store(a, piece, row + 8, column, r8);
            Store(a, piece, row + 9, column, r9);
            Store(a, piece, row + 10, column, r10);
            Store(a, piece, row + 11, column, r11);
            Store(a, piece, row + 12, column, r12);
            Store(a, piece, row + 13, column, r13);
            Store(a, piece, row + 14, column, r14);
            Store(a, piece, row + 15, column, r15);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Store(in ProductArguments a, int piece, int row, int column, float sum)
        {
            if (row >= a.Rows)
                return;
            if (a.Addend.IsPresent)
                sum += a.Addend[row, column];
            a.Result[piece, row, column] = sum;
        }
    }
}
