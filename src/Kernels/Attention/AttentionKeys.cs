using ILGPU;

namespace TransformerKernels;

/// <summary>What the kernel of the keys' gradients reads and writes.</summary>
internal readonly struct KeyArguments
{
    public readonly ScoreArguments Score;
    public readonly GpuMatrices Value, UpstreamOutput, KeyGradient, ValueGradient;
    public readonly ArrayView<float> Terms;
    public readonly long Rows;
    public readonly int KeyHeads, Slices, WantsKey, WantsValue, Accumulate;

    public KeyArguments(GpuDevice device, in ScoreArguments score, in AttentionShape shape, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> terms, long rows, int side)
    {
        Score = score;
        Value = new(device, problem.Value, "problem.Value");
        UpstreamOutput = new(device, upstream.Output, "upstream.Output");
        KeyGradient = new(device, gradients.Key, "gradients.Key");
        ValueGradient = new(device, gradients.Value, "gradients.Value");
        Terms = terms;
        Rows = rows;
        KeyHeads = checked((int)shape.KeyHeads);
        WantsKey = gradients.Key.IsPresent ? 1 : 0;
        WantsValue = gradients.Value.IsPresent ? 1 : 0;
        Slices = (int)Math.Max(WantsKey * TileSide.Slices(score.HeadSize, side), WantsValue * TileSide.Slices(score.ValueSize, side));
        Accumulate = gradients.Accumulate ? 1 : 0;
    }
}

internal static partial class AttentionBackwardKernels<TSide> where TSide : struct, ITileSide
{
    /// <summary>dK and dV of a tile's keys, over all queries of all heads that share them.</summary>
    public static void Keys<TRule>(TRule rule, KeyArguments a) where TRule : unmanaged, IScoreRule
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(GpuTile<TSide>.TileFloats);
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuTile<TSide>.StagingFloats);
        ArrayView<float> lines = SharedMemory.Allocate<float>(GpuTile<TSide>.LinesFloats);
        ArrayView<float> terms = SharedMemory.Allocate<float>(3 * GpuTile<TSide>.Side);
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);

        int thread = Group.IdxX, row = thread / GpuTile<TSide>.ThreadsPerRow, part = thread % GpuTile<TSide>.ThreadsPerRow;
        int item = Grid.IdxX, blocks = (a.Score.Keys + GpuTile<TSide>.Side - 1) / GpuTile<TSide>.Side;
        int column = item % a.Slices * GpuTile<TSide>.OutputColumns, headSize = a.Score.HeadSize, valueSize = a.Score.ValueSize;
        item /= a.Slices;
        int j0 = item % blocks * GpuTile<TSide>.Side;
        item /= blocks;
        int keyHead = item % a.KeyHeads, batch = item / a.KeyHeads;
        int rows = a.Score.Keys - j0 < GpuTile<TSide>.Side ? a.Score.Keys - j0 : GpuTile<TSide>.Side, begin = a.Score.BeginOfQueries(j0, GpuTile<TSide>.Side);
        GpuMatrix key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);

        int wantedKey = a.WantsKey != 0 ? headSize : 0, wantedValue = a.WantsValue != 0 ? valueSize : 0;
        RegisterTile keyLow = default, keyHigh = default, valueLow = default, valueHigh = default;
        int head = keyHead * a.Score.HeadsPerKeyHead;
        do
        {
            GpuMatrix query = a.Score.Query.Of(batch, head), upstream = a.UpstreamOutput.Of(batch, head);
            int i0 = begin;
            do
            {
                int columns = a.Score.Queries - i0 < GpuTile<TSide>.Side ? a.Score.Queries - i0 : GpuTile<TSide>.Side;
                RegisterTile weightGradients = default, scores = default;
                GpuTile<TSide>.FillLines(a.Score, lines, batch, head, i0, j0);
                FillTerms(a.Terms, a.Rows, terms, ((long)batch * a.Score.Heads + head) * a.Score.Queries + i0, columns);
                GpuTile<TSide>.AddProducts(ref weightGradients, staging, value, j0, rows, upstream, i0, columns, valueSize);
                GpuTile<TSide>.AddProducts(ref scores, staging, key, j0, rows, query, i0, columns, headSize);
                GpuTile<TSide>.Store(scores, tile);
                Group.Barrier();

                int hides = 0;
                for (int c = part; c < columns && row < rows; c += GpuTile<TSide>.ThreadsPerRow)
                {
                    int at = row * GpuTile<TSide>.RowStep + c;
                    float z = GpuTile<TSide>.Differentiate(rule, a.Score, lines, batch, head, i0, j0, c, row, tile[at], -1, out float slope);
                    tile[at] = Weight(z, terms[c], terms[GpuTile<TSide>.Side + c]);
                    staging[row * GpuTile<TSide>.SliceStep + c] = slope;
                    hides |= z == float.NegativeInfinity ? 1 : 0;
                }
                flags[thread] = hides;
                Group.Barrier();

                FinalGradients(ref weightGradients, tile, terms, false);
                MultiplySlopes(ref weightGradients, staging);
                bool rowsHide = GpuTile<TSide>.RowsHide(flags);
                GpuTile<TSide>.AddTileTimesRows(ref valueLow, ref valueHigh, tile, staging, upstream, i0, columns, column, wantedValue, rowsHide);
                Group.Barrier();
                GpuTile<TSide>.Store(weightGradients, tile);
                GpuTile<TSide>.AddTileTimesRows(ref keyLow, ref keyHigh, tile, staging, query, i0, columns, column, wantedKey, rowsHide);
                i0 += GpuTile<TSide>.Side;
            }
            while (i0 < a.Score.Queries);
            head++;
        }
        while (head < (keyHead + 1) * a.Score.HeadsPerKeyHead);
        GpuMatrix keyGradient = a.KeyGradient.Of(batch, keyHead), valueGradient = a.ValueGradient.Of(batch, keyHead);
        GpuTile<TSide>.Write(valueLow, tile, valueGradient, j0, rows, column, wantedValue, 1f, a.Accumulate);
        GpuTile<TSide>.Write(valueHigh, tile, valueGradient, j0, rows, column + GpuTile<TSide>.Side, wantedValue, 1f, a.Accumulate);
        GpuTile<TSide>.Write(keyLow, tile, keyGradient, j0, rows, column, wantedKey, a.Score.Scale, a.Accumulate);
        GpuTile<TSide>.Write(keyHigh, tile, keyGradient, j0, rows, column + GpuTile<TSide>.Side, wantedKey, a.Score.Scale, a.Accumulate);
    }
}
