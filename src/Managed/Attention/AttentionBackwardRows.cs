using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <remarks>What is known of a block's queries before its tiles: their rows both ways around, their log-sum-exp and D; and how D is mended.</remarks>
internal unsafe partial struct AttentionBackwardWork<TRule, TCap> where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    // The block's queries and upstream gradients, both ways around, and what is known of its rows.
    private void BeginBlock<V>(in HeadScores scores, nint head, nint i0, nint rows) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), d = (nint)Shape.HeadSize, dv = (nint)Shape.ValueSize;
        float* query = Query.Matrix(batch, head) + i0 * Query.Row, upstream = UpstreamOutput.Matrix(batch, head) + i0 * UpstreamOutput.Row;
        AttentionTiles.PackColumns<V>(query, Query.Row, Query.Column, rows, d, queryColumns);
        if (LaneSums.Features<V>(d) < d)
            AttentionTiles.PackRows(query, Query.Row, Query.Column, rows, d, queryRows, headRow);
        AttentionTiles.PackColumns<V>(upstream, UpstreamOutput.Row, UpstreamOutput.Column, rows, dv, upstreamColumns);
        if (LaneSums.Features<V>(dv) < dv)
            AttentionTiles.PackRows(upstream, UpstreamOutput.Row, UpstreamOutput.Column, rows, dv, upstreamRows, valueRow);
        BeginRows<V>(head, i0, rows, dv);
        scores.BeginBlock<V>(Scoring, i0);
        Clear(queryGradient, d * block);
        blockIsFinite = null;
    }

    // Times this, numbers from 2⁴⁰ on are infinite. No sum of products of smaller ones is.
    private const float TooLarge = (1L << 44) * (float)(1L << 44);

    // Whether products of a tile's keys and values with the block's queries and upstream gradients hold neither NaN nor ∞, nor dP − D, and hidden pairs' scores are far below any other. What was found is kept: for the other blocks, for the other tiles.
    private bool IsFinite<V>(nint j0, nint tile, float* k, float* v) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        const float yes = 1, no = 2;
        if (tileIsFinite[tile] == 0)
        {
            // A causal block may need a part of the tile only; other blocks need all of it.
            nint all = Math.Min(AttentionTiles.Keys, (nint)Shape.Keys - j0);
            tileIsFinite[tile] = AttentionTiles.IsFinite<V>(k, Key.Row, Key.Column, all, (nint)Shape.HeadSize, TooLarge)
                && AttentionTiles.IsFinite<V>(v, Value.Row, Value.Column, all, (nint)Shape.ValueSize, TooLarge) ? yes : no;
        }
        blockIsFinite ??= AttentionTiles.IsFinite<V>(queryColumns, block, 1, (nint)Shape.HeadSize, block, TooLarge * MathF.Max(1, MathF.Abs(Shape.Scale)))
            && AttentionTiles.IsFinite<V>(upstreamColumns, block, 1, (nint)Shape.ValueSize, block, TooLarge) && AttentionTiles.IsFinite<V>(logSumExp, block, 1, 1, block)
            && AttentionTiles.IsFinite<V>(delta, block, 1, 1, block, 2) && !SeesPaddingAlone<V>();
        return tileIsFinite[tile] == yes && blockIsFinite.Value;
    }

    // Whether a query of the block sees nothing but keys whose bias is as low as numbers get: beside it, what hides a pair without marks isn't low.
    private readonly bool SeesPaddingAlone<V>() where V : struct, ILanes<V>
    {
        const float low = -(1L << 40);
        bool any = false;
        for (nint lane = 0; lane < AttentionTiles.Block<V>(); lane += V.Count)
            any |= V.AnyLess(V.Load(logSumExp + lane), V.From(low));
        return any;
    }

    // A query's share is e^−remainder of its log-sum-exp where the remainder is more than this, elsewhere 1: e^−remainder − 1, as smaller ones are taken, would lose its digits near −1. Below 2²⁴
    // a log-sum-exp's remainder is at most so much, so that few problems have shares.
    private const float MuchRemainder = 0.5f;

    // Log-sum-exp, D and shares of the block's queries. Queries that see nothing, and spare lanes, get the largest log-sum-exp there is: their weights are 0.
    private void BeginRows<V>(nint head, nint i0, nint rows, nint dv) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        float* l = LogSumExp.Matrix(batch, head) + i0 * LogSumExp.Row, output = Output.Matrix(batch, head) + i0 * Output.Row;
        float* upstreamL = UpstreamLogSumExp.IsPresent ? UpstreamLogSumExp.Matrix(batch, head) + i0 * UpstreamLogSumExp.Row : null;

        // dO·O is summed as the product sums dO·V, so that the two cancel to the last bit where a query sees one key. S isn't begun yet: O lies in its memory.
        Clear(delta, block);
        for (nint first = 0; first < dv; first += AttentionTiles.Keys)
        {
            nint columns = Math.Min(AttentionTiles.Keys, dv - first);
            AttentionTiles.PackColumns<V>(output + first * Output.Column, Output.Row, Output.Column, rows, columns, s);
            AddProducts<V>(s, upstreamColumns + first * block, columns, delta);
        }
        hasShares = false;
        for (nint row = 0; row < block; row++)
        {
            bool seesKeys = row < rows && l[row * LogSumExp.Row] != float.NegativeInfinity;
            logSumExp[row] = seesKeys ? MathF.Min(l[row * LogSumExp.Row], float.MaxValue) : float.MaxValue;
            remainder[row] = seesKeys ? -l[row * LogSumExp.Row + LogSumExp.Column] : 0;
            share[row] = 1;
            if (MathF.Abs(remainder[row]) > MuchRemainder)
            {
                share[row] = (float)Math.Exp(remainder[row]);
                remainder[row] = 0;
                hasShares = true;
            }
            if (!seesKeys)
                delta[row] = 0;
            else if (upstreamL != null)
                delta[row] -= upstreamL[row * UpstreamLogSumExp.Row];
        }
        for (nint lane = 0; lane < block; lane += V.Count)
            V.Expm1(V.Load(remainder + lane)).Store(remainder + lane);
    }

    // Weights and dz of a part, and what of dz passed through the rule if it lies apart, times their query's share. A mark stays a mark: it is below 0.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void MultiplyByShares<V>(in TilePart part, bool apart) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        for (nint lane = part.Lane<V>(); lane < part.EndVector * V.Count; lane += V.Count)
        {
            V factor = V.Load(share + lane);
            for (nint at = part.FirstKey * block + lane; at < part.EndKey * block; at += block)
            {
                (V.Load(s + at) * factor).Store(s + at);
                (V.Load(dS + at) * factor).Store(dS + at);
                if (apart)
                    (V.Load(slope + at) * factor).Store(slope + at);
            }
        }
    }

    // The block's part of the gradient of the head's sink: −Σ e^(sink − L) · D, as of a key whose value is 0. Queries whose keys of the chunk are all hidden see the sink all the same.
    private void AddToSink<V>(bool begun, nint head, nint i0, nint rows) where V : struct, ILanes<V>
    {
        float sink = Scoring.Sink(head);
        if (sink == float.NegativeInfinity)
            return;
        nint dv = (nint)Shape.ValueSize;
        if (!begun)
        {
            AttentionTiles.PackColumns<V>(UpstreamOutput.Matrix(batch, head) + i0 * UpstreamOutput.Row, UpstreamOutput.Row, UpstreamOutput.Column, rows, dv, upstreamColumns);
            BeginRows<V>(head, i0, rows, dv);
        }
        float* l = LogSumExp.Matrix(batch, head) + i0 * LogSumExp.Row;
        for (nint row = 0; row < rows; row++)
            sinkGradient -= SinkWeight(sink, l + row * LogSumExp.Row) * delta[row];
    }

    // e^(sink − L)
    private readonly double SinkWeight(float sink, float* l) => Math.Exp((double)sink - l[0] - l[LogSumExp.Column]);

    // sums[lane] += Σ a[row, lane] · b[row, lane], in order: the vectors of a row side by side, so that none waits for its own sum.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddProducts<V>(float* a, float* b, nint rows, float* sums) where V : struct, ILanes<V>
    {
        nint w = V.Count, block = AttentionTiles.Block<V>();
        V s0 = V.Load(sums), s1 = V.Load(sums + w), s2 = V.Load(sums + 2 * w), s3 = V.Load(sums + 3 * w);
        for (nint row = 0; row < rows; row++, a += block, b += block)
        {
            s0 = V.MultiplyAdd(V.Load(a), V.Load(b), s0);
            s1 = V.MultiplyAdd(V.Load(a + w), V.Load(b + w), s1);
            s2 = V.MultiplyAdd(V.Load(a + 2 * w), V.Load(b + 2 * w), s2);
            s3 = V.MultiplyAdd(V.Load(a + 3 * w), V.Load(b + 3 * w), s3);
        }
        s0.Store(sums);
        s1.Store(sums + w);
        s2.Store(sums + 2 * w);
        s3.Store(sums + 3 * w);
    }

    // What a number of float32 is rounded by, twice over. D that misses less is exact: all weight lies on one key, and of what is left float64 knows nothing either.
    private const float TwoRoundings = 1f / (1L << 48);

    // Where all keys that the block sees lie in this tile. dz adds up to what arrives for the log-sum-exp and the sink's part of D; what it misses that by is the error of D, which the rounding
    // of O has made. Where nearly all of a query's weight lies on one key, that is most of what dP − D has kept.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void Refine<V>(in TileVisibility visible, nint head, nint i0, nint rows) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        float* l = LogSumExp.Matrix(batch, head) + i0 * LogSumExp.Row, missing = pairs;
        float* upstreamL = UpstreamLogSumExp.IsPresent ? UpstreamLogSumExp.Matrix(batch, head) + i0 * UpstreamLogSumExp.Row : null;
        float sink = Scoring.Sink(head);
        Clear(missing, block);
        for (nint row = 0; row < rows && upstreamL != null; row++)
            missing[row] = upstreamL[row * UpstreamLogSumExp.Row];
        for (nint row = 0; row < rows && sink != float.NegativeInfinity; row++)
            missing[row] += (float)SinkWeight(sink, l + row * LogSumExp.Row) * delta[row];
        foreach (ref readonly TilePart part in visible.Parts)
        {
            for (nint lane = part.Lane<V>(); lane < part.EndVector * V.Count; lane += V.Count)
            {
                float* end = dS + part.EndKey * block;
                V sum0 = V.Zero, sum1 = V.Zero, sum2 = V.Zero, sum3 = V.Zero;
                for (float* dz = dS + part.FirstKey * block + lane; dz < end; dz += Product.Rows * block)
                    (sum0, sum1, sum2, sum3) = (sum0 + V.Load(dz), sum1 + V.Load(dz + block), sum2 + V.Load(dz + 2 * block), sum3 + V.Load(dz + 3 * block));
                (V.Load(missing + lane) - ((sum0 + sum1) + (sum2 + sum3))).Store(missing + lane);
            }
        }
        for (nint lane = 0; lane < block; lane += V.Count)
        {
            V miss = V.Load(missing + lane), size = V.Abs(miss), least = V.Abs(V.Load(delta + lane)) * TwoRoundings;
            V.SelectLess(size, V.From(float.PositiveInfinity), V.SelectLess(size, least, V.Zero, miss), V.Zero).Store(missing + lane);
        }
        foreach (ref readonly TilePart part in visible.Parts)
        {
            for (nint lane = part.Lane<V>(); lane < part.EndVector * V.Count; lane += V.Count)
            {
                V miss = V.Load(missing + lane);
                for (nint at = part.FirstKey * block + lane; at < part.EndKey * block; at += block)
                    V.MultiplyAdd(V.MaxNative(V.Load(s + at), V.Zero), miss, V.Load(dS + at)).Store(dS + at); // a hidden pair may bear a mark instead of its weight
            }
        }
    }
}
