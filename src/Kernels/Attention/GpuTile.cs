using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>A thread's sums of a row: in a tile of 64 columns x + 16·j, in one of 16 column x alone.</summary>
internal struct RegisterRow
{
    public float C0, C1, C2, C3;
}

/// <summary>A thread's sums of a product: rows y + i · a quarter of the tile.</summary>
internal struct RegisterTile
{
    public RegisterRow R0, R1, R2, R3;
}

/// <summary>The parts of which attention's kernels are made: a group works on a square tile of pairs, with four threads for each of its rows.</summary>
/// <remarks>
/// <code>
///   products     thread (x, y): x = t % 16, y = t / 16, a register tile (rows y + i · side / 4, columns x + 16·j). Both operands lie in shared memory: reads
///                are broadcasts or 16 neighbours, without bank conflicts.
///   row stage    thread t: row t / 4, columns t % 4 + 4·c. A row's numbers (maximum, sum, position) live in its four threads' registers, and what
///                a score is made of is written once, in a loop, however long a rule is.
///   tile         [row, column], rows of 4 floats more than columns: the eight rows that a warp reads in the row stage lie in different banks
///   staging      two slices of 32 columns of as many rows as the tile has, transposed: [column, row], rows of one float more; a warp reads 128 bytes that
///                lie together. Or up to 32 rows of up to two sides' columns, as they are.
///   lines        five times two sides of floats: the bias, and each captured tensor, by row, by column or by diagonal of the tile
/// </code>
/// Indices of shared memory are 64 bits wide where they have constant parts: those become the loads' immediate offsets, which an index of 32 bits, that may
/// overflow, doesn't allow. No barrier stands under a condition, and loops with barriers run at least once: after each of those PoCL compiles all that
/// follows once more. Every element of a product is summed in the order of its terms, so its bits depend neither on the tile nor on the group.
/// </remarks>
internal static class GpuTile<TSide> where TSide : struct, ITileSide
{
    /// <summary>The threads that share a row in the row stage.</summary>
    public const int ThreadsPerRow = 4;

    /// <summary>Threads along the columns in products, and how far apart the columns of a register tile are.</summary>
    public const int Threads = 16;

    /// <summary>Terms of a product that are staged at a time.</summary>
    public const int Slice = 32;

    /// <summary>Rows and columns of the tile.</summary>
    public static int Side => TSide.Length;

    public static int GroupSize => Side * ThreadsPerRow;

    /// <summary>How far apart the rows of a register tile are.</summary>
    public static int RowsApart => GroupSize / Threads;

    /// <summary>Floats from one row of the tile to the next.</summary>
    public static int RowStep => Side + 4;

    public static int TileFloats => Side * RowStep;

    /// <summary>Floats from one column of a transposed slice to the next.</summary>
    public static int SliceStep => Side + 1;

    public static int StagingFloats => 2 * Slice * SliceStep;

    /// <summary>Columns of an output that a group sums up: two register tiles.</summary>
    public static int OutputColumns => 2 * Side;

    /// <summary>Floats of a line: a tile of 64 has 127 diagonals.</summary>
    public static int Line => 2 * Side;

    public static int LinesFloats => 5 * Line;

    /// <summary>Whether a register tile has more than its first column.</summary>
    public static bool IsWide => Side > Threads;

    /// <summary>
    /// Stands in the tile for a hidden pair, which contributes nothing whatever its key and value hold. No weight is negative, and a gradient that is
    /// the most negative float there is would be infinite a rounding later.
    /// </summary>
    public const float Hidden = float.MinValue;

    /// <summary>Adds the products of up to a tile's rows of a and of b: tile[i, j] += Σ aᵢ · bⱼ. Rows beyond the given ones count as 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProducts(ref RegisterTile sums, ArrayView<float> staging, in GpuMatrix a, int aFirst, int aRows, in GpuMatrix b, int bFirst, int bRows,
        int size)
    {
        int x = Group.IdxX % Threads, y = Group.IdxX / Threads;
        int first = 0;
        do
        {
            Group.Barrier(); // what was staged before has been read
            StageTransposed(staging, 0, a, aFirst, aRows, first, size);
            StageTransposed(staging, Slice * SliceStep, b, bFirst, bRows, first, size);
            Group.Barrier();
            int terms = size - first < Slice ? size - first : Slice;
            Add(ref sums, staging, y, RowsApart, SliceStep, staging, Slice * SliceStep + x, SliceStep, terms);
            first += Slice;
        }
        while (first < size);
    }

    /// <summary>Adds the tile times rows of a matrix: sums[i, column] += Σ tile[i, j] · mⱼ[column], for up to <see cref="OutputColumns"/> columns from the given one on.</summary>
    /// <param name="low">The first half of the columns.</param>
    /// <param name="high">The second half.</param>
    /// <param name="tile">The tile.</param>
    /// <param name="staging">Overwritten.</param>
    /// <param name="m">Row j belongs to column j of the tile.</param>
    /// <param name="first">The first row.</param>
    /// <param name="rows">How many there are.</param>
    /// <param name="column">The first column.</param>
    /// <param name="size">How many columns the matrix has; nothing is added where that is no more than the first column.</param>
    /// <param name="hides">Whether this thread's rows of the tile may hold <see cref="Hidden"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddTileTimesRows(ref RegisterTile low, ref RegisterTile high, ArrayView<float> tile, ArrayView<float> staging, in GpuMatrix m, int first,
        int rows, int column, int size, bool hides)
    {
        int x = Group.IdxX % Threads, y = Group.IdxX / Threads;
        bool any = size > column, wide = size - column > Side;
        int width = wide ? OutputColumns : any ? Side : 0, chunk = 0;
        do
        {
            Group.Barrier();
            int terms = rows - chunk < Slice ? rows - chunk : Slice;
            for (int e = Group.IdxX; e < terms * width; e += GroupSize)
            {
                int row = wide ? e / OutputColumns : e / Side, at = wide ? e % OutputColumns : e % Side;
                staging[row * OutputColumns + at] = column + at < size ? m[first + chunk + row, column + at] : 0f;
            }
            Group.Barrier();
            if (hides && any)
            {
                AddVisible(ref low, tile, y * RowStep + chunk, staging, x, terms);
                if (wide)
                    AddVisible(ref high, tile, y * RowStep + chunk, staging, x + Side, terms);
            }
            else if (any)
            {
                Add(ref low, tile, y * RowStep + chunk, RowsApart * RowStep, 1, staging, x, OutputColumns, terms);
                if (wide)
                    Add(ref high, tile, y * RowStep + chunk, RowsApart * RowStep, 1, staging, x + Side, OutputColumns, terms);
            }
            chunk += Slice;
        }
        while (chunk < rows);
    }

    /// <summary>Writes each thread's sums into the tile.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(in RegisterTile sums, ArrayView<float> tile)
    {
        long at = Group.IdxX / Threads * RowStep + Group.IdxX % Threads, step = RowsApart * RowStep;
        Store(sums.R0, tile, at);
        Store(sums.R1, tile, at + step);
        Store(sums.R2, tile, at + 2 * step);
        Store(sums.R3, tile, at + 3 * step);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(in RegisterRow row, ArrayView<float> tile, long at)
    {
        tile[at] = row.C0;
        if (!IsWide)
            return;
        tile[at + Threads] = row.C1;
        tile[at + 2 * Threads] = row.C2;
        tile[at + 3 * Threads] = row.C3;
    }

    /// <summary>A tensor's rows := the sums, or += them, times a factor, by way of the tile: neighbouring threads write neighbouring columns.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(in RegisterTile sums, ArrayView<float> tile, GpuMatrix to, int first, int rows, int column, int size, float factor, int accumulate)
    {
        Group.Barrier();
        Store(sums, tile);
        Group.Barrier();
        column += Group.IdxX % Side;
        for (int row = Group.IdxX / Side; row < rows && column < size; row += GroupSize / Side)
        {
            float value = factor * tile[row * RowStep + Group.IdxX % Side];
            to[first + row, column] = accumulate != 0 ? to[first + row, column] + value : value;
        }
    }

    /// <summary>Multiplies rows, the i-th of each thread by the i-th factor.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void ScaleRows(ref RegisterTile t, float f0, float f1, float f2, float f3)
    {
        Scale(ref t.R0, f0);
        Scale(ref t.R1, f1);
        Scale(ref t.R2, f2);
        Scale(ref t.R3, f3);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Scale(ref RegisterRow row, float factor)
    {
        row.C0 *= factor;
        if (!IsWide)
            return;
        row.C1 *= factor;
        row.C2 *= factor;
        row.C3 *= factor;
    }

    /// <summary>Whether this thread's rows of the tile hold hidden pairs: what the row stage left in a flag per thread.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool RowsHide(ArrayView<int> flags)
    {
        int any = 0;
        for (long at = Group.IdxX / Threads * ThreadsPerRow; at < GroupSize; at += RowsApart * ThreadsPerRow)
            any |= flags[at] | flags[at + 1] | flags[at + 2] | flags[at + 3];
        return any != 0;
    }

    /// <summary>Lays out what scores are made of along the rows, columns and diagonals of a tile.</summary>
    /// <remarks>Diagonal c − r + side − 1 has query r and key c of the tile.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void FillLines(in ScoreArguments a, ArrayView<float> lines, int batch, int head, int firstQuery, int firstKey)
    {
        int t = Group.IdxX;
        if (t >= Line)
            return;
        long distance = firstKey - firstQuery + t - (Side - 1) - a.QueryOffset;
        lines[t] = a.Bias(batch, head, distance);
        FillLine(a, a.Captured0, lines, Line + t, batch, head, firstQuery + t, firstKey + t, distance);
        FillLine(a, a.Captured1, lines, 2 * Line + t, batch, head, firstQuery + t, firstKey + t, distance);
        FillLine(a, a.Captured2, lines, 3 * Line + t, batch, head, firstQuery + t, firstKey + t, distance);
        FillLine(a, a.Captured3, lines, 4 * Line + t, batch, head, firstQuery + t, firstKey + t, distance);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void FillLine(in ScoreArguments a, in GpuCaptured captured, ArrayView<float> lines, int at, int batch, int head, int query, int key, long distance)
    {
        float value = 0f;
        if (captured.Structure != GpuCaptured.Absent && !captured.IsDense && a.Queries > 0 && a.Keys > 0)
            value = captured[captured.At(batch, head, query < a.Queries ? query : a.Queries - 1, key < a.Keys ? key : a.Keys - 1, distance)];
        lines[at] = value;
    }

    /// <summary>The captured value of a pair: query and key counted in the tile, and where they stand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Lookup(in GpuCaptured captured, ArrayView<float> lines, int line, int batch, int head, int firstQuery, int firstKey, int query, int key)
    {
        if (captured.IsDense)
            return captured[captured.At(batch, head, firstQuery + query, firstKey + key, 0)];
        int at = captured.Structure == (int)CapturedStructure.PerQuery ? query : captured.Structure == (int)CapturedStructure.PerKey ? key : key - query + Side - 1;
        return lines[line * Line + at];
    }

    /// <summary>The final score of a pair, −∞ if it is hidden.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Score<TRule>(TRule rule, in ScoreArguments a, ArrayView<float> lines, int batch, int head, int firstQuery, int firstKey, int query, int key,
        float product) where TRule : unmanaged, IScoreRule
    {
        float score = rule.Score(new Real32(product * a.Scale), new ScorePlace<Real32>
        {
            QueryPosition = new(firstQuery + query + a.QueryOffset),
            KeyPosition = new(firstKey + key),
            Head = new(head),
            Batch = new(batch),
            Captured0 = new(Lookup(a.Captured0, lines, 1, batch, head, firstQuery, firstKey, query, key)),
            Captured1 = new(Lookup(a.Captured1, lines, 2, batch, head, firstQuery, firstKey, query, key)),
            Captured2 = new(Lookup(a.Captured2, lines, 3, batch, head, firstQuery, firstKey, query, key)),
            Captured3 = new(Lookup(a.Captured3, lines, 4, batch, head, firstQuery, firstKey, query, key)),
        }).Value;
        return Final(a, lines, firstQuery, firstKey, query, key, score);
    }

    /// <summary>The final score of a pair, −∞ if it is hidden, and the derivative of the rule: by the score where the seed is −1, else by that captured value.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Differentiate<TRule>(TRule rule, in ScoreArguments a, ArrayView<float> lines, int batch, int head, int firstQuery, int firstKey, int query,
        int key, float product, int seed, out float derivative) where TRule : unmanaged, IScoreRule
    {
        Dual<Real32> score = rule.Score(new Dual<Real32>(new(product * a.Scale), new(seed < 0 ? 1f : 0f)), new ScorePlace<Dual<Real32>>
        {
            QueryPosition = Dual<Real32>.From(firstQuery + query + a.QueryOffset),
            KeyPosition = Dual<Real32>.From(firstKey + key),
            Head = Dual<Real32>.From(head),
            Batch = Dual<Real32>.From(batch),
            Captured0 = new(new(Lookup(a.Captured0, lines, 1, batch, head, firstQuery, firstKey, query, key)), new(seed == 0 ? 1f : 0f)),
            Captured1 = new(new(Lookup(a.Captured1, lines, 2, batch, head, firstQuery, firstKey, query, key)), new(seed == 1 ? 1f : 0f)),
            Captured2 = new(new(Lookup(a.Captured2, lines, 3, batch, head, firstQuery, firstKey, query, key)), new(seed == 2 ? 1f : 0f)),
            Captured3 = new(new(Lookup(a.Captured3, lines, 4, batch, head, firstQuery, firstKey, query, key)), new(seed == 3 ? 1f : 0f)),
        });
        derivative = score.Derivative.Value;
        return Final(a, lines, firstQuery, firstKey, query, key, score.Value.Value);
    }

    // A rule hides by −∞ before any bias is added: ∞ in a bias must not bring the pair back.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Final(in ScoreArguments a, ArrayView<float> lines, int firstQuery, int firstKey, int query, int key, float score)
    {
        float bias = lines[key - query + Side - 1];
        bool hidden = score == float.NegativeInfinity || bias == float.NegativeInfinity
            || key - query > a.LastDiagonal(firstQuery, firstKey, Side);
        return hidden ? float.NegativeInfinity : score + bias;
    }

    // Warps read 32 columns of one row; what they write transposed lies in 32 banks.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StageTransposed(ArrayView<float> staging, int start, in GpuMatrix m, int first, int rows, int firstColumn, int size)
    {
        int column = Group.IdxX % Slice;
        bool there = firstColumn + column < size;
        for (int row = Group.IdxX / Slice; row < Side; row += GroupSize / Slice)
            staging[start + column * SliceStep + row] = there && row < rows ? m[first + row, firstColumn + column] : 0f;
    }

    // sums[i, j] += Σ a[start + i·row + k·term] · b[start + 16·j + k·term].
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Add(ref RegisterTile t, ArrayView<float> a, long aStart, long aRow, long aTerm, ArrayView<float> b, long bStart, long bTerm, int terms)
    {
        for (int k = 0; k < terms; k++)
        {
            RegisterRow factors = Load(b, bStart);
            float a0 = a[aStart], a1 = a[aStart + aRow], a2 = a[aStart + 2 * aRow], a3 = a[aStart + 3 * aRow];
            AddProduct(ref t.R0, a0, factors);
            AddProduct(ref t.R1, a1, factors);
            AddProduct(ref t.R2, a2, factors);
            AddProduct(ref t.R3, a3, factors);
            aStart += aTerm;
            bStart += bTerm;
        }
    }

    // The same of a tile with hidden pairs: what they are multiplied with may be NaN, so they are left out, not multiplied by 0.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddVisible(ref RegisterTile t, ArrayView<float> tile, long aStart, ArrayView<float> b, long bStart, int terms)
    {
        long step = RowsApart * RowStep;
        for (int k = 0; k < terms; k++)
        {
            RegisterRow factors = Load(b, bStart);
            AddVisible(ref t.R0, tile[aStart], factors);
            AddVisible(ref t.R1, tile[aStart + step], factors);
            AddVisible(ref t.R2, tile[aStart + 2 * step], factors);
            AddVisible(ref t.R3, tile[aStart + 3 * step], factors);
            aStart++;
            bStart += OutputColumns;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static RegisterRow Load(ArrayView<float> b, long at)
    {
        RegisterRow row = default;
        row.C0 = b[at];
        if (!IsWide)
            return row;
        row.C1 = b[at + Threads];
        row.C2 = b[at + 2 * Threads];
        row.C3 = b[at + 3 * Threads];
        return row;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddProduct(ref RegisterRow row, float a, in RegisterRow b)
    {
        row.C0 += a * b.C0;
        if (!IsWide)
            return;
        row.C1 += a * b.C1;
        row.C2 += a * b.C2;
        row.C3 += a * b.C3;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddVisible(ref RegisterRow row, float a, in RegisterRow b)
    {
        if (a != Hidden)
            AddProduct(ref row, a, b);
    }
}
