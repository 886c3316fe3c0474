using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <remarks>Where the gradients of biases and of captured tensors are summed up, for a head over the chunk.</remarks>
internal unsafe partial struct AttentionBackwardWork<TRule, TCap> where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    // Adds each row of dz to the line, one float further down a row: one of four lines in turn, so that a load needn't wait for the store of the row before.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void AddToLine<V>(nint i0, nint j0, nint tileKeys, nint first) where V : struct, ILanes<V>
    {
        nint w = V.Count;
        float* from = dS, start = lineGradient + (i0 - (j0 - first));
        for (nint row = 0; row < tileKeys; row++, from += AttentionTiles.Vectors * w, start--)
        {
            float* to = start + (row & (AttentionBackwardPlan.LineCopies - 1)) * (nint)Plan.LineLength;
            V s0 = V.Load(to) + V.Load(from), s1 = V.Load(to + w) + V.Load(from + w), s2 = V.Load(to + 2 * w) + V.Load(from + 2 * w), s3 = V.Load(to + 3 * w) + V.Load(from + 3 * w);
            s0.Store(to);
            s1.Store(to + w);
            s2.Store(to + 2 * w);
            s3.Store(to + 3 * w);
        }
    }

    // Gradients of the line and of captured tensors: sums of one head over the chunk.
    private void BeginGradients<V>(nint head, nint first, nint count, ref float* scratch) where V : struct, ILanes<V>
    {
        nint line = (nint)Plan.LineLength;
        if (Plan.WantsGrid)
            Clear(Partials + Plan.GridPartial(Shape, batch, head, chunk), (nint)Shape.GridCells);
        if (Plan.WantsLine)
        {
            lineGradient = Take(ref scratch, AttentionBackwardPlan.LineCopies * line);
            Clear(lineGradient, AttentionBackwardPlan.LineCopies * line);
            lineGradient += count - 1; // query i and key first+j stand at [i − j]
        }
        for (int c = 0; c < PairTensors.Count; c++)
        {
            capturedGradient[c] = default;
            if (c <= PairTensors.DenseBias)
                streams[c] = default;
            if (!TensorGradients[c].IsPresent)
                continue;
            if (TensorGradients[c].IsByDistance)
            {
                float* start = Take(ref scratch, AttentionBackwardPlan.LineCopies * line);
                Clear(start, AttentionBackwardPlan.LineCopies * line);
                capturedGradient[c] = new() { Start = start + count - 1 + first, Step = -1 };
            }
            else
            {
                bool perPair = TensorGradients[c].Structure is CapturedStructure.PerKey or CapturedStructure.Dense;
                nint floats = AttentionTiles.Block<V>() * (perPair ? AttentionTiles.Keys : 1);
                capturedGradient[c] = new() { Start = Take(ref scratch, floats), Step = perPair ? AttentionTiles.Block<V>() : 0 };
                if (Streams(c, head))
                    streams[c] = new(Take(ref scratch, (nint)PairStream.Floats(AttentionTiles.Block<V>())));
                Clear(capturedGradient[c].Start, floats);
                Clear(Partials + Plan.CapturedPartial(Shape, c, batch, head, chunk), (nint)Plan.CapturedLength(c));
            }
        }
    }

    private void EndGradients<V>(nint head, nint count) where V : struct, ILanes<V>
    {
        nint line = (nint)Plan.LineLength;
        if (Plan.WantsLine)
        {
            SumLine<V>(lineGradient - (count - 1), line, Partials + Plan.LinePartial(Shape, batch, head, chunk));
        }
        for (int c = 0; c < PairTensors.Count; c++)
        {
            if (TensorGradients[c].IsPresent && TensorGradients[c].IsByDistance)
                SumLine<V>(capturedGradient[c].Start - (count - 1) - chunk * (nint)Plan.Chunk, line, Partials + Plan.CapturedPartial(Shape, c, batch, head, chunk));
        }
    }

    // The four copies of a line into one.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void SumLine<V>(float* copies, nint line, float* to) where V : struct, ILanes<V>
    {
        nint u = 0;
        for (; u + V.Count <= line; u += V.Count)
            ((V.Load(copies + u) + V.Load(copies + u + line)) + (V.Load(copies + u + 2 * line) + V.Load(copies + u + 3 * line))).Store(to + u);
        for (; u < line; u++)
            to[u] = (copies[u] + copies[u + line]) + (copies[u + 2 * line] + copies[u + 3 * line]);
    }

    // Of pairs that nothing is computed of: the gradients of tensors with a value a pair, which are written in place.
    private readonly void ClearPairs(nint head, nint i0, nint rows, nint from, nint end, nint first, nint count)
    {
        for (int c = 0; c <= PairTensors.DenseBias && from < end; c++)
        {
            ref readonly Captured gradient = ref TensorGradients[c];
            if (!gradient.IsPresent || gradient.Structure != CapturedStructure.Dense || AddsTo(c, head))
                continue;
            float* start = gradient.At(batch, head, i0, from, 0);
            if (streams[c].IsPresent)
            {
                streams[c].Clear(start, gradient.QueryStep, rows, end - from, from - first, end == first + count);
                continue;
            }
            nint step = gradient.KeyStep;
            for (nint i = 0; i < rows; i++)
            {
                float* row = start + i * gradient.QueryStep;
                if (step == 1)
                    Clear(row, end - from);
                else
                {
                    for (nint at = 0; at < end - from; at++)
                        row[at * step] = 0;
                }
            }
        }
    }

    // Where the gradient of a captured tensor is summed for a tile.
    private readonly LaneRows GradientTile(int capture, nint i0, nint j0)
    {
        LaneRows gradient = capturedGradient[capture];
        if (gradient.Start != null && TensorGradients[capture].IsByDistance)
            gradient.Start += i0 - j0;
        return gradient;
    }

    // Gives the sums of a tile to where they belong, and clears them. Those of distances stay where they are.
    private readonly void EndTileGradients<V>(nint head, nint i0, nint j0, nint rows, nint tileKeys, nint first, nint count) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        for (int c = 0; c < CapturedSet.Count; c++)
        {
            if (!TensorGradients[c].IsPresent || TensorGradients[c].IsByDistance)
                continue;
            float* tile = capturedGradient[c].Start;
            if (TensorGradients[c].Structure == CapturedStructure.Dense)
                WritePairs<V>(c, head, i0, j0, rows, tileKeys, first, count, tile);
            else
                AddSums<V>(c, head, i0, j0 - first, rows, tileKeys, tile);
            Clear(tile, capturedGradient[c].Step == 0 ? block : tileKeys * block);
        }
    }

    // Adds a tile's sums of a tensor with a value a head, a query or a key to those of the tiles before.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void AddSums<V>(int tensor, nint head, nint query, nint key, nint rows, nint tileKeys, float* lanes) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        float* to = Partials + Plan.CapturedPartial(Shape, tensor, batch, head, chunk);
        switch (TensorGradients[tensor].Structure)
        {
            case CapturedStructure.PerHead:
                *to += SumLanes<V>(lanes);
                break;
            case CapturedStructure.PerQuery:
                MatrixCopy.Run(lanes, block, 1, to + query, block, 1, 1, rows, add: true);
                break;
            case CapturedStructure.PerKey:
                for (nint row = 0; row < tileKeys; row++)
                    to[key + row] += SumLanes<V>(lanes + row * block);
                break;
        }
    }

    // Where the gradients of a tile's pairs will be written, to be asked for while they are computed.
    private readonly RowsAhead GradientsAhead(nint head, nint i0, nint rows, nint j0)
    {
        var ahead = new RowsAhead(rows);
        for (int c = 0; c <= PairTensors.DenseBias; c++)
        {
            if (!streams[c].IsPresent)
                ahead.Add(TensorGradients[c], batch, head, i0, j0);
        }
        return ahead;
    }

    // Writes or adds a tile's gradients of pairs. Keys side by side are written a query after the other: then neighbouring stores don't fall on the same place of the cache where queries lie
    // a multiple of 4 KB apart.
    private readonly void WritePairs<V>(int tensor, nint head, nint i0, nint j0, nint rows, nint tileKeys, nint first, nint count, float* lanes) where V : struct, ILanes<V>
    {
        ref readonly Captured gradient = ref TensorGradients[tensor];
        nint block = AttentionTiles.Block<V>();
        bool add = AddsTo(tensor, head);
        float* to = gradient.At(batch, head, i0, j0, 0);
        if (streams[tensor].IsPresent)
        {
            MatrixCopy.Run(lanes, 1, block, streams[tensor].Tile, PairStream.Step, 1, rows, tileKeys);
            streams[tensor].Write(to, gradient.QueryStep, rows, tileKeys, j0 - first, j0 + tileKeys == first + count);
            return;
        }
        if (gradient.KeyStep != 1)
        {
            MatrixCopy.Run(lanes, 1, block, to, gradient.QueryStep, gradient.KeyStep, rows, tileKeys, add);
            return;
        }
        MatrixCopy.Run(lanes, 1, block, pairs, AttentionTiles.Keys, 1, rows, tileKeys);
        MatrixCopy.Run(pairs, AttentionTiles.Keys, 1, to, gradient.QueryStep, 1, rows, tileKeys, add);
    }

    // Whether the gradient of a tensor with a value a pair is written past the caches.
    private readonly bool Streams(int tensor, nint head)
    {
        ref readonly Captured gradient = ref TensorGradients[tensor];
        return gradient.Structure == CapturedStructure.Dense && gradient.KeyStep == 1 && !AddsTo(tensor, head) && PairStream.Suits(gradient.At(batch, head, 0, 0, 0))
            && StreamingStores.Suit(gradient.Batches * gradient.Heads * Shape.Queries * Shape.Keys);
    }

    // Whether the gradient of a dense tensor holds something to add to: the caller's, or that of a sequence or head before.
    private readonly bool AddsTo(int tensor, nint head) =>
        Accumulate || (batch > 0 && TensorGradients[tensor].IsSharedByBatch(Shape)) || (head > 0 && TensorGradients[tensor].IsSharedByHeads(Shape));

    // The gradients of biases that are added to the scores are sums of dz itself.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void AddBiases<V>(in HeadScores scores, nint head, nint i0, nint j0, nint rows, nint tileKeys, nint first, nint count) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        if (Plan.WantsGrid)
            scores.AddToGrid<V>(Scoring, dS, j0, rows, tileKeys, Partials + Plan.GridPartial(Shape, batch, head, chunk));
        for (int c = PairTensors.DenseBias; c < PairTensors.Count; c++)
        {
            if (!TensorGradients[c].IsPresent)
                continue;
            switch (TensorGradients[c].Structure)
            {
                case CapturedStructure.Dense:
                    WritePairs<V>(c, head, i0, j0, rows, tileKeys, first, count, dS);
                    break;
                case CapturedStructure.PerKey:
                    AddSums<V>(c, head, i0, j0 - first, rows, tileKeys, dS);
                    break;
                default:
                    float* sums = capturedGradient[c].Start;
                    SumKeys<V>(dS, tileKeys, sums);
                    AddSums<V>(c, head, i0, j0 - first, rows, tileKeys, sums);
                    break;
            }
        }
    }

    // Of each query: its vectors side by side, so that none waits for its own sum.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void SumKeys<V>(float* dz, nint keys, float* sums) where V : struct, ILanes<V>
    {
        nint w = V.Count, block = AttentionTiles.Block<V>();
        V s0 = V.Zero, s1 = V.Zero, s2 = V.Zero, s3 = V.Zero;
        for (nint row = 0; row < keys; row++, dz += block)
            (s0, s1, s2, s3) = (s0 + V.Load(dz), s1 + V.Load(dz + w), s2 + V.Load(dz + 2 * w), s3 + V.Load(dz + 3 * w));
        s0.Store(sums);
        s1.Store(sums + w);
        s2.Store(sums + 2 * w);
        s3.Store(sums + 3 * w);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float SumLanes<V>(float* lanes) where V : struct, ILanes<V>
    {
        V sum = V.Load(lanes);
        for (nint lane = V.Count; lane < AttentionTiles.Block<V>(); lane += V.Count)
            sum += V.Load(lanes + lane);
        return sum.Sum();
    }
}
