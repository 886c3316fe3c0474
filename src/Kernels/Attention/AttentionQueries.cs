using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>What the kernel of the queries' gradients, and of what biases receive, reads and writes.</summary>
internal readonly struct QueryArguments
{
    public readonly ScoreArguments Score;
    public readonly GpuMatrices Value, UpstreamOutput, QueryGradient;

    /// <summary>The gradient of a dense captured tensor.</summary>
    public readonly GpuCaptured Pairs;

    /// <summary>The rows' terms, and behind them the sums.</summary>
    public readonly ArrayView<float> Memory;

    public readonly BiasSums Sums;
    public readonly long Rows;

    /// <summary>Capture: the captured tensor whose gradient is wanted; −1 for queries and biases.</summary>
    public readonly int Capture, Slices, WantsQuery, Accumulate;

    public QueryArguments(GpuDevice device, in ScoreArguments score, in BiasSums sums, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> memory, long rows, int side)
        : this(device, score, sums, problem, upstream, gradients, memory, rows, side, -1, default, default, "")
    {
    }

    public QueryArguments(GpuDevice device, in ScoreArguments score, in BiasSums sums, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> memory, long rows, int side, int capture, in CapturedTensor captured, in TensorView gradient, string name)
    {
        Score = score;
        Value = new(device, problem.Value, "problem.Value");
        UpstreamOutput = new(device, upstream.Output, "upstream.Output");
        Pairs = new(device, captured.Structure == CapturedStructure.Dense ? gradient : default, captured, name);
        Memory = memory;
        Sums = sums;
        Rows = rows;
        Capture = capture;
        WantsQuery = capture < 0 && gradients.Query.IsPresent ? 1 : 0;
        QueryGradient = new(device, WantsQuery != 0 ? gradients.Query : default, "gradients.Query");
        Slices = WantsQuery != 0 ? (int)TileSide.Slices(score.HeadSize, side) : 1;
        Accumulate = gradients.Accumulate ? 1 : 0;
    }
}

internal static partial class AttentionBackwardKernels<TSide> where TSide : struct, ITileSide
{
    /// <summary>dQ of a piece of queries, and the sums of what one bias receives from them.</summary>
    public static void Queries<TRule>(TRule rule, QueryArguments a) where TRule : unmanaged, IScoreRule
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(GpuTile<TSide>.TileFloats);
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuTile<TSide>.StagingFloats);
        ArrayView<float> lines = SharedMemory.Allocate<float>(GpuTile<TSide>.LinesFloats);
        ArrayView<float> terms = SharedMemory.Allocate<float>(3 * GpuTile<TSide>.Side);
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);

        int thread = Group.IdxX, row = thread / GpuTile<TSide>.ThreadsPerRow, part = thread % GpuTile<TSide>.ThreadsPerRow;
        int item = Grid.IdxX, column = item % a.Slices * GpuTile<TSide>.OutputColumns, headSize = a.Score.HeadSize, valueSize = a.Score.ValueSize;
        item /= a.Slices;
        int piece = item % a.Sums.Pieces;
        item /= a.Sums.Pieces;
        int head = item % a.Score.Heads, batch = item / a.Score.Heads, keyHead = head / a.Score.HeadsPerKeyHead;
        GpuMatrix query = a.Score.Query.Of(batch, head), key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);
        GpuMatrix upstream = a.UpstreamOutput.Of(batch, head), gradient = a.QueryGradient.Of(batch, head);
        int kind = column == 0 ? a.Sums.Kind : (int)BiasSumKind.None;
        bool summed = kind == (int)BiasSumKind.Diagonals || kind == (int)BiasSumKind.Columns;
        int parts = kind == (int)BiasSumKind.Rows ? 1 : a.Sums.Pieces;
        long sums = 3 * a.Rows + (((long)batch * a.Score.Heads + head) * parts + (summed ? piece : 0)) * a.Sums.Length;

        // A place of the sums belongs to one thread, which adds to it tile after tile: the tiles begin at multiples of their side.
        int owners = kind == (int)BiasSumKind.Diagonals ? GpuTile<TSide>.Line : GpuTile<TSide>.Side;
        for (long at = thread; summed && thread < owners && at < a.Sums.Length; at += owners)
            a.Memory[sums + at] = 0f;

        int firstRow = piece * a.Sums.QueriesPerPiece, endRow = firstRow + a.Sums.QueriesPerPiece;
        int wanted = a.WantsQuery != 0 ? headSize : 0, i0 = firstRow;
        do
        {
            int rows = a.Score.Queries - i0 < GpuTile<TSide>.Side ? a.Score.Queries - i0 : GpuTile<TSide>.Side, end = a.Score.EndOfKeys(i0, rows);
            Group.Barrier();
            FillTerms(a.Memory, a.Rows, terms, ((long)batch * a.Score.Heads + head) * a.Score.Queries + i0, rows);
            RegisterTile low = default, high = default;
            float rowSum = 0f;
            int j0 = 0;
            do
            {
                int columns = end - j0 < GpuTile<TSide>.Side ? end - j0 : GpuTile<TSide>.Side;
                RegisterTile weightGradients = default, scores = default;
                GpuTile<TSide>.FillLines(a.Score, lines, batch, head, i0, j0);
                GpuTile<TSide>.AddProducts(ref weightGradients, staging, upstream, i0, rows, value, j0, columns, valueSize);
                GpuTile<TSide>.AddProducts(ref scores, staging, query, i0, rows, key, j0, columns, headSize);
                GpuTile<TSide>.Store(scores, tile);
                Group.Barrier();

                int hides = 0;
                for (int c = part; c < columns && row < rows; c += GpuTile<TSide>.ThreadsPerRow)
                {
                    int at = row * GpuTile<TSide>.RowStep + c;
                    float z = GpuTile<TSide>.Differentiate(rule, a.Score, lines, batch, head, i0, j0, row, c, tile[at], a.Capture, out float slope);
                    tile[at] = Weight(z, terms[row], terms[GpuTile<TSide>.Side + row]);
                    staging[row * GpuTile<TSide>.SliceStep + c] = slope;
                    hides |= z == float.NegativeInfinity ? 1 : 0;
                }
                flags[thread] = hides;
                Group.Barrier();

                FinalGradients(ref weightGradients, tile, terms, true);
                if (a.Capture >= 0)
                    MultiplySlopes(ref weightGradients, staging);
                // Each thread has read its own places of the tile and of nobody else's.
                GpuTile<TSide>.Store(weightGradients, tile);
                Group.Barrier();
                if (kind == (int)BiasSumKind.Diagonals)
                    AddDiagonal(a.Memory, sums, tile, j0 - i0 + endRow - GpuTile<TSide>.Side, rows, columns);
                else if (kind == (int)BiasSumKind.Columns)
                    AddColumn(a.Memory, sums + j0, tile, rows, columns);
                else if (kind == (int)BiasSumKind.Rows)
                    AddRow(ref rowSum, tile, rows, columns);
                else if (kind == (int)BiasSumKind.Pairs)
                    WritePairs(a, tile, batch, head, i0, j0, rows, columns);
                Group.Barrier();
                MultiplySlopes(ref weightGradients, staging);
                GpuTile<TSide>.Store(weightGradients, tile);
                GpuTile<TSide>.AddTileTimesRows(ref low, ref high, tile, staging, key, j0, columns, column, wanted, GpuTile<TSide>.RowsHide(flags));
                j0 += GpuTile<TSide>.Side;
            }
            while (j0 < end);
            GpuTile<TSide>.Write(low, tile, gradient, i0, rows, column, wanted, a.Score.Scale, a.Accumulate);
            GpuTile<TSide>.Write(high, tile, gradient, i0, rows, column + GpuTile<TSide>.Side, wanted, a.Score.Scale, a.Accumulate);
            if (kind == (int)BiasSumKind.Rows && thread < rows)
                a.Memory[sums + i0 + thread] = rowSum;
            if (kind == (int)BiasSumKind.Pairs && a.Accumulate == 0)
                ClearPairs(a, batch, head, i0, rows, end);
            i0 += GpuTile<TSide>.Side;
        }
        while (i0 < endRow && i0 < a.Score.Queries);
    }

    // Diagonal t of the tile belongs to place w + t of the sums, and that to thread (w + t) % two sides.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddDiagonal(ArrayView<float> memory, long sums, ArrayView<float> tile, int w, int rows, int columns)
    {
        int t = (Group.IdxX - w) & (GpuTile<TSide>.Line - 1);
        if (Group.IdxX >= GpuTile<TSide>.Line || t == GpuTile<TSide>.Line - 1)
            return;
        int offset = t - (GpuTile<TSide>.Side - 1), row = offset < 0 ? -offset : 0, end = columns - offset < rows ? columns - offset : rows;
        memory[sums + w + t] += Sum(tile, row * GpuTile<TSide>.RowStep + row + offset, GpuTile<TSide>.RowStep + 1, end - row);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddColumn(ArrayView<float> memory, long sums, ArrayView<float> tile, int rows, int columns)
    {
        int column = Group.IdxX;
        if (column < columns)
            memory[sums + column] += Sum(tile, column, GpuTile<TSide>.RowStep, rows);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddRow(ref float rowSum, ArrayView<float> tile, int rows, int columns)
    {
        int row = Group.IdxX;
        if (row < rows)
            rowSum += Sum(tile, row * GpuTile<TSide>.RowStep, 1, columns);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Sum(ArrayView<float> tile, int at, int step, int count)
    {
        float sum = 0f;
        for (int i = 0; i < count; i++)
        {
            float dz = tile[at];
            sum += dz == GpuTile<TSide>.Hidden ? 0f : dz;
            at += step;
        }
        return sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void WritePairs(in QueryArguments a, ArrayView<float> tile, int batch, int head, int i0, int j0, int rows, int columns)
    {
        int column = Group.IdxX % GpuTile<TSide>.Side;
        for (int row = Group.IdxX / GpuTile<TSide>.Side; row < rows && column < columns; row += GroupSize / GpuTile<TSide>.Side)
        {
            float dz = tile[row * GpuTile<TSide>.RowStep + column];
            dz = dz == GpuTile<TSide>.Hidden ? 0f : dz;
            long at = a.Pairs.At(batch, head, i0 + row, j0 + column, 0);
            GpuCaptured pairs = a.Pairs;
            pairs[at] = a.Accumulate != 0 ? pairs[at] + dz : dz;
        }
    }

    // The pairs of the tiles that causality hides.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void ClearPairs(in QueryArguments a, int batch, int head, int i0, int rows, int end)
    {
        GpuCaptured pairs = a.Pairs;
        for (int row = Group.IdxX / GpuTile<TSide>.Side; row < rows; row += GroupSize / GpuTile<TSide>.Side)
        {
            for (int column = end + Group.IdxX % GpuTile<TSide>.Side; column < a.Score.Keys; column += GpuTile<TSide>.Side)
                pairs[pairs.At(batch, head, i0 + row, column, 0)] = 0f;
        }
    }
}
