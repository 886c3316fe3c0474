using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>How the CPU cuts attention up: blocks of queries side by side in the lanes, tiles of keys below each other.</summary>
/// <remarks>
/// <code>
///                lanes: queries i0 .. i0+Block−1
///              +---------------------------------+
///   keys       |  score of key j0   and query i  |   one row a key: row maximum, sum and rescaling are lane-wise,
///   j0 ..      |  score of key j0+1 and query i  |   a bias by distance is an unaligned load that steps by −1 per row,
///   j0+Keys−1  |  ...                            |   K and V are broadcast from their own memory without packing
///              +---------------------------------+
/// </code>
/// The letters of the paper in the kernels: S scores, P weights, O output; d head size, dv value size.
/// </remarks>
internal static unsafe class AttentionTiles
{
    /// <summary>Vectors of queries in a block: with four rows of keys they fill a register tile.</summary>
    /// <remarks>On [1, 8, 2048, 64], Zen 5 with AVX-512 and two threads, two of them take 1.12 of the forward pass's time and 1.10 of training's, eight 0.995 and 1.003: they would compute more of a tile at the diagonal, and hold twice the scratch memory.</remarks>
    public const int Vectors = 4;

    /// <summary>Keys in a tile: S then takes 16 KB in the widest vectors, a third of the first-level cache, and what a mask shows of a tile to a query is one word.</summary>
    /// <remarks>As above, 32 take 1.04 of the forward pass's time and 1.03 of training's, 128 take 0.997 and 1.006: nothing gained for twice the memory, and for errors that grow with the length of a tile (<see cref="Product"/>).</remarks>
    public const int Keys = 64;

    /// <summary>The queries in a block.</summary>
    public static int Block<V>() where V : struct, ILanes<V> => Vectors * V.Count;

    /// <summary>The queries in a block of the widest vectors, for the sizes of scratch memory.</summary>
    public const int WidestBlock = Vectors * 16;

    /// <summary>The floats of one tile.</summary>
    public const int WidestTile = Keys * WidestBlock;

    /// <summary>Items that make work for the processors of a large machine.</summary>
    public const long ItemsWanted = 16;

    public static long RoundUp(long count, long multiple) => (count + multiple - 1) / multiple * multiple;

    /// <summary>Copies rows of a matrix into lanes: target[column·Block + row]. Lanes beyond the rows become 0.</summary>
    public static void PackColumns<V>(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float* target) where V : struct, ILanes<V>
    {
        nint block = Block<V>();
        if (rows < block)
            NativeMemory.Clear(target, (nuint)(columns * block * sizeof(float)));
        MatrixCopy.Run(source, rowStep, columnStep, target, 1, block, rows, columns);
    }

    /// <summary>Copies rows of a matrix to rows of whole vectors: target[row·step + column]. Columns up to step become 0.</summary>
    public static void PackRows(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float* target, nint step)
    {
        for (nint row = 0; row < rows && columns < step; row++)
            NativeMemory.Clear(target + row * step + columns, (nuint)((step - columns) * sizeof(float)));
        MatrixCopy.Run(source, rowStep, columnStep, target, step, 1, rows, columns);
    }

    /// <summary>Copies lanes to rows of a result, or adds them: target[row, column] = source[column·Block + row].</summary>
    /// <param name="source">The lanes.</param>
    /// <param name="memory">Of rows · columns floats.</param>
    /// <param name="rows">The rows: the lanes that count.</param>
    /// <param name="columns">The columns.</param>
    /// <param name="target">The first row of the result.</param>
    /// <param name="result">Its steps.</param>
    /// <param name="add">Whether to add.</param>
    /// <param name="allRows">The rows of the whole result.</param>
    public static void WriteRows<V>(float* source, float* memory, nint rows, nint columns, float* target, in Strided result, bool add, long allRows) where V : struct, ILanes<V>
    {
        if (result.Column == 1 && !add && StreamingStores.Suit(allRows * columns))
        {
            MatrixCopy.Run(source, 1, Block<V>(), memory, columns, 1, rows, columns);
            StreamingStores.Multiply(memory, columns, target, result.Row, rows, columns, 1);
        }
        else
            MatrixCopy.Run(source, 1, Block<V>(), target, result.Row, result.Column, rows, columns, add);
    }

    /// <summary>Whether a matrix times a factor holds neither NaN nor ∞.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static bool IsFinite<V>(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float factor = 1) where V : struct, ILanes<V>
    {
        // x·0 is 0, or NaN where x isn't finite. Four sums, so that the next needn't wait for the last.
        V s0 = V.Zero, s1 = V.Zero, s2 = V.Zero, s3 = V.Zero;
        float sum = 0;
        if (columnStep == 1 && rowStep == columns)
            (rows, columns) = (1, rows * columns);
        for (nint row = 0; row < rows; row++)
        {
            float* from = source + row * rowStep;
            nint column = 0;
            if (columnStep == 1)
            {
                for (; column + 4 * V.Count <= columns; column += 4 * V.Count)
                {
                    s0 = V.MultiplyAdd(V.Load(from + column) * factor, V.Zero, s0);
                    s1 = V.MultiplyAdd(V.Load(from + column + V.Count) * factor, V.Zero, s1);
                    s2 = V.MultiplyAdd(V.Load(from + column + 2 * V.Count) * factor, V.Zero, s2);
                    s3 = V.MultiplyAdd(V.Load(from + column + 3 * V.Count) * factor, V.Zero, s3);
                }
                for (; column + V.Count <= columns; column += V.Count)
                    s0 = V.MultiplyAdd(V.Load(from + column) * factor, V.Zero, s0);
                if (column < columns && columns >= V.Count)
                {
                    s1 = V.MultiplyAdd(V.Load(from + columns - V.Count) * factor, V.Zero, s1);
                    continue;
                }
            }
            for (; column < columns; column++)
                sum += from[column * columnStep] * factor * 0f;
        }
        return sum + ((s0 + s1) + (s2 + s3)).Sum() == 0;
    }
}
