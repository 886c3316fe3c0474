using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients) =>
        AttentionBackwardPlan.Of(problem, gradients).Bytes(ThreadCount) + AttentionScoring.Bytes(problem);

    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved,
        in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace)
    {
        AttentionUpstream arriving = upstream;
        AttentionSaved kept = saved;
        if (!upstream.Output.IsPresent)
        {
            AttentionShape shape = AttentionShape.Of(problem);
            arriving.Output = kept.Output = TensorView.Of((ReadOnlySpan<float>)Nothing, 1, 1, 1, 1).Expand(0, shape.Batch).Expand(1, shape.Heads).Expand(2, shape.Queries).Expand(3, shape.ValueSize);
        }
        if (problem.Softcap is not { } cap)
            Backward(problem, rule, default(Uncapped), kept, arriving, gradients, workspace);
        else if (typeof(TRule) == typeof(PlainScore) || !TakesRuleAgain(rule, gradients))
            Backward(problem, rule, Softcapped.After<TRule>(cap, AttentionShape.Of(problem)), kept, arriving, gradients, workspace);
        else
            Backward(problem, new SoftcappedScore<TRule>(cap, rule), default(Uncapped), kept, arriving, gradients, workspace);
    }

    // Whether gradients of captured tensors are wanted that don't come of one evaluation.
    private static bool TakesRuleAgain<TRule>(TRule rule, in AttentionGradients gradients) where TRule : unmanaged, IScoreRule
    {
        int wanted = WantedCaptures(gradients);
        return wanted != 0 && !RuleLength.OfDerivative(rule, wanted).HasBothSlopes;
    }

    // The captured tensors whose gradients are wanted, a bit each.
    private static int WantedCaptures(in AttentionGradients gradients) =>
        (gradients.Captured0.IsPresent ? 1 : 0) | (gradients.Captured1.IsPresent ? 2 : 0) | (gradients.Captured2.IsPresent ? 4 : 0) | (gradients.Captured3.IsPresent ? 8 : 0);

    private static readonly float[] Nothing = [0];

    private unsafe void Backward<TRule, TCap>(in AttentionProblem problem, TRule rule, TCap cap, in AttentionSaved saved, in AttentionUpstream upstream,
        in AttentionGradients gradients, Workspace workspace) where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
    {
        AttentionShape shape = AttentionShape.Of(problem);
        AttentionBackwardPlan plan = AttentionBackwardPlan.Of(problem, gradients);
        using Workspace.Lease lease = workspace.Rent(AttentionBackwardWorkspaceBytes(problem, gradients));
        TensorView memory = lease.Buffer!.View;
        fixed (byte* scratch = memory, query = problem.Query, key = problem.Key, value = problem.Value, o = saved.Output, l = saved.LogSumExp)
        fixed (byte* upstreamO = upstream.Output, upstreamL = upstream.LogSumExp, dQuery = gradients.Query, dKey = gradients.Key, dValue = gradients.Value)
        fixed (byte* slopes = problem.Slopes, distanceBias = problem.DistanceBias, dSlopes = gradients.Slopes, dDistanceBias = gradients.DistanceBias)
        fixed (byte* mask = problem.Mask, queryOffsets = problem.QueryOffsets, sinks = problem.Sinks, bucketedBias = problem.BucketedBias.Table, gridBias = problem.GridBias.Table, dBucketedBias = gradients.BucketedBias, dGridBias = gradients.GridBias, dSinks = gradients.Sinks, keyLengths = problem.KeyLengths)
        fixed (byte* denseBias = problem.DenseBias, rowBias = problem.RowBias, columnBias = problem.ColumnBias)
        fixed (byte* dDenseBias = gradients.DenseBias, dRowBias = gradients.RowBias, dColumnBias = gradients.ColumnBias)
        fixed (byte* captured0 = problem.Captured0.Values, captured1 = problem.Captured1.Values, captured2 = problem.Captured2.Values, captured3 = problem.Captured3.Values)
        fixed (byte* dCaptured0 = gradients.Captured0, dCaptured1 = gradients.Captured1, dCaptured2 = gradients.Captured2, dCaptured3 = gradients.Captured3)
        {
            float* partials = (float*)(scratch + ThreadCount * plan.ScratchBytes);
            var addresses = new ScoringAddresses
            {
                Slopes = slopes, DistanceBias = distanceBias, BucketedBias = bucketedBias, GridBias = gridBias, DenseBias = denseBias, RowBias = rowBias, ColumnBias = columnBias,
                Sinks = sinks, Mask = mask, QueryOffsets = queryOffsets, KeyLengths = keyLengths, Captured0 = captured0, Captured1 = captured1, Captured2 = captured2, Captured3 = captured3,
            };
            var scoring = new AttentionScoring(problem, addresses, scratch + plan.Bytes(ThreadCount));
            CheckSequences(problem, scoring, shape);
            ReadShared(scoring.Mask, shape);
            var logSumExp = new Strided(l, saved.LogSumExp);
            if (saved.LogSumExp.Rank != 4)
            {
                Strided rounded = logSumExp;
                logSumExp = Strided.Pairs(partials + plan.LogSumExpPartial, (nint)shape.Heads, (nint)shape.Queries);
                var forward = new AttentionForwardWork<TRule, TCap>
                {
                    Shape = shape with { ValueSize = 0 },
                    Rule = rule,
                    Cap = cap,
                    Scoring = scoring,
                    Query = new Strided(query, problem.Query),
                    Key = new Strided(key, problem.Key),
                    LogSumExp = logSumExp,
                    HasRemainder = true,
                    Turns = AttentionTurns.None,
                    Threads = ThreadCount,
                    Length = RuleLength.Of(rule),
                };
                Run(new ExactLogSumExp<TRule, TCap> { Rounded = rounded, Forward = forward }, ForwardItems(shape, forward.Turns), scratch, (nint)plan.ScratchBytes);
            }
            var work = new AttentionBackwardWork<TRule, TCap>
            {
                Shape = shape,
                Plan = plan,
                Rule = rule,
                Cap = cap,
                Scoring = scoring,
                Query = new Strided(query, problem.Query),
                Key = new Strided(key, problem.Key),
                Value = new Strided(value, problem.Value),
                Output = new Strided(o, saved.Output),
                LogSumExp = logSumExp,
                UpstreamOutput = new Strided(upstreamO, upstream.Output),
                UpstreamLogSumExp = new Strided(upstreamL, upstream.LogSumExp),
                QueryGradient = new Strided(dQuery, gradients.Query),
                KeyGradient = new Strided(dKey, gradients.Key),
                ValueGradient = new Strided(dValue, gradients.Value),
                Partials = partials,
            };
            work.TensorGradients[0] = new Captured(dCaptured0, gradients.Captured0, problem.Captured0.Structure, problem.Captured0.Centre);
            work.TensorGradients[1] = new Captured(dCaptured1, gradients.Captured1, problem.Captured1.Structure, problem.Captured1.Centre);
            work.TensorGradients[2] = new Captured(dCaptured2, gradients.Captured2, problem.Captured2.Structure, problem.Captured2.Centre);
            work.TensorGradients[3] = new Captured(dCaptured3, gradients.Captured3, problem.Captured3.Structure, problem.Captured3.Centre);
            work.TensorGradients[PairTensors.DenseBias] = new Captured(dDenseBias, gradients.DenseBias, CapturedStructure.Dense);
            work.TensorGradients[PairTensors.RowBias] = new Captured(dRowBias, gradients.RowBias, CapturedStructure.PerQuery);
            work.TensorGradients[PairTensors.ColumnBias] = new Captured(dColumnBias, gradients.ColumnBias, CapturedStructure.PerKey);
            bool accumulate = gradients.Accumulate;
            work.Accumulate = accumulate;
            work.WantedCaptures = WantedCaptures(gradients);
            work.Length = RuleLength.OfDerivative(rule, work.WantedCaptures);
            work.WantsScoring = plan.WantsLine || plan.WantsGrid;
            foreach (ref readonly Captured gradient in work.TensorGradients)
                work.WantsScoring |= gradient.IsPresent;
            RunBackward(work, scratch);

            if (plan is { WantsQuery: true, Chunks: > 1 })
                Run(new SumQueryGradients { Shape = shape, Plan = plan, Partials = partials, Gradient = work.QueryGradient, Accumulate = accumulate }, shape.Batch * shape.Heads, scratch, (nint)plan.ScratchBytes);
            if (plan.Parts > 1)
            {
                var sum = new SumKeyGradients { Shape = shape, Plan = plan, Partials = partials, KeyGradient = work.KeyGradient, ValueGradient = work.ValueGradient, Accumulate = accumulate };
                Run(sum, SumKeyGradients.Items(shape), scratch, (nint)plan.ScratchBytes);
            }
            var fold = new BiasGradients(shape, plan, scoring, partials, accumulate);
            if (gradients.DistanceBias.IsPresent)
                fold.Distance((float*)dDistanceBias, gradients.DistanceBias);
            if (gradients.Slopes.IsPresent)
                fold.Slopes((float*)dSlopes, gradients.Slopes);
            if (gradients.BucketedBias.IsPresent)
                fold.Buckets((float*)dBucketedBias, gradients.BucketedBias);
            if (gradients.GridBias.IsPresent)
                fold.Grid((float*)dGridBias, gradients.GridBias);
            if (gradients.Sinks.IsPresent)
                fold.Sinks((float*)dSinks, gradients.Sinks);
            for (int c = 0; c < PairTensors.Count; c++)
                fold.Tensor(c, work.TensorGradients[c]);
        }
    }

    // Where sequences or heads share the gradient of a dense tensor they take turns, so that every entry is summed in their order.
    private unsafe void RunBackward<TRule, TCap>(AttentionBackwardWork<TRule, TCap> work, byte* scratch) where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
    {
        AttentionShape shape = work.Shape;
        bool batches = false, heads = false;
        foreach (Captured gradient in work.TensorGradients)
        {
            batches |= gradient.IsSharedByBatch(shape);
            heads |= gradient.IsSharedByHeads(shape);
        }
        work.BatchesAtOnce = batches ? 1 : (nint)shape.Batch;
        work.HeadsAtOnce = heads ? 1 : (nint)shape.KeyHeads;
        for (; work.FirstBatch < (nint)shape.Batch; work.FirstBatch += work.BatchesAtOnce)
        {
            for (work.FirstHead = 0; work.FirstHead < (nint)shape.KeyHeads; work.FirstHead += work.HeadsAtOnce)
                Run(work, work.BatchesAtOnce * work.HeadsAtOnce * work.Plan.Parts * work.Plan.Chunks, scratch, (nint)work.Plan.ScratchBytes);
        }
    }
}

/// <summary>The backward pass of a sequence, key head, part of its query heads and chunk of keys: for each of the part's heads and blocks of queries, down the chunk's keys.</summary>
/// <remarks>
/// S, P are computed again; with dP = dO·Vᵀ, D = Σ dO·O − dL and dz = P (dP − D): dV += Pᵀ dO, dS = dz · ∂rule, dK += dSᵀ Q, dQ += dS K, all scaled. dV and dK,
/// features in the lanes, are summed over all blocks where they stay if there are several parts, else in scratch; so is dQᵀ, queries in the lanes, over the chunk if there are several.
/// </remarks>
internal unsafe partial struct AttentionBackwardWork<TRule, TCap> : IWork where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    public AttentionShape Shape;
    public AttentionBackwardPlan Plan;
    public TRule Rule;
    public TCap Cap;
    public AttentionScoring Scoring;
    public Strided Query, Key, Value, Output, LogSumExp, UpstreamOutput, UpstreamLogSumExp, QueryGradient, KeyGradient, ValueGradient;
    public PairTensors TensorGradients;

    /// <summary>The first sequence and key head of this run, how many sequences it has, and how many key heads each of them.</summary>
    public nint FirstBatch, FirstHead, BatchesAtOnce, HeadsAtOnce;
    public float* Partials;
    public bool Accumulate;

    /// <summary>How the rule is evaluated.</summary>
    public RuleLength Length;

    /// <summary>The captured tensors whose gradients are wanted, a bit each.</summary>
    public int WantedCaptures;

    /// <summary>Whether gradients of tensors that change scores are wanted: they are sums of dz, or of dz times a slope.</summary>
    public bool WantsScoring;

    // Memory of the thread, and where the item stands.
    private float* queryColumns, queryRows, upstreamColumns, upstreamRows, queryGradient, s, dS, scaled, slope, pairs, logSumExp, remainder, share, delta, keyGradient, valueGradient, keyLanes, valueLanes, tileIsFinite;
    private float* lineGradient;
    private LaneRowsSet capturedGradient; // of all pair tensors
    private PairStreamSet streams;
    private nint headRow, valueRow, batch, chunk, endHead;
    private bool? blockIsFinite;
    private bool hasShares;
    private double sinkGradient;

    public void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        // Items of several threads run on copies of the struct.
        AttentionBackwardWork<TRule, TCap> own = this;
        own.RunItem<V>(item, (float*)scratch);
    }

    private void RunItem<V>(nint item, float* scratch) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), d = (nint)Shape.HeadSize, dv = (nint)Shape.ValueSize, keys = (nint)Shape.Keys, queries = (nint)Shape.Queries;
        nint chunkKeys = (nint)Plan.Chunk;
        // The first chunk comes first: where attention is causal it is the dearest, and what is cheap is left for the end, when some threads have nothing more to do.
        (nint rest, nint part) = Math.DivRem(item, (nint)Plan.Parts);
        (rest, nint keyHead) = Math.DivRem(rest, HeadsAtOnce);
        (chunk, batch) = Math.DivRem(rest, BatchesAtOnce);
        keyHead += FirstHead;
        batch += FirstBatch;
        nint first = chunk * chunkKeys, count = Math.Min(chunkKeys, keys - first);
        headRow = (nint)AttentionTiles.RoundUp(d, V.Count);
        valueRow = (nint)AttentionTiles.RoundUp(dv, V.Count);

        queryColumns = Take(ref scratch, d * block);
        upstreamColumns = Take(ref scratch, dv * block);
        queryRows = Take(ref scratch, block * headRow);
        upstreamRows = Take(ref scratch, block * valueRow);
        queryGradient = Take(ref scratch, (nint)AttentionBackwardPlan.QueryRow(Shape) * block);
        s = Take(ref scratch, AttentionTiles.Keys * block);
        dS = Take(ref scratch, AttentionTiles.Keys * block);
        scaled = Take(ref scratch, AttentionTiles.Keys * block);
        slope = Take(ref scratch, AttentionTiles.Keys * block);
        pairs = Take(ref scratch, AttentionTiles.Keys * block);
        logSumExp = Take(ref scratch, block);
        remainder = Take(ref scratch, block);
        share = Take(ref scratch, block);
        delta = Take(ref scratch, block);
        if (Plan.Parts > 1)
        {
            keyGradient = Partials + Plan.KeyPartial(Shape, batch, keyHead, part) + first * headRow;
            valueGradient = Partials + Plan.ValuePartial(Shape, batch, keyHead, part) + first * valueRow;
        }
        else
        {
            keyGradient = Take(ref scratch, chunkKeys * headRow);
            valueGradient = Take(ref scratch, chunkKeys * valueRow);
        }
        tileIsFinite = Take(ref scratch, (nint)AttentionBackwardPlan.TileFloats(chunkKeys));
        var pairTile = new PairTile { Values = Take(ref scratch, AttentionTiles.Keys * block) };
        nint keyLaneFloats = chunkKeys * LaneSums.Floats<V>(d), valueLaneFloats = chunkKeys * LaneSums.Floats<V>(dv);
        keyLanes = Take(ref scratch, keyLaneFloats);
        valueLanes = Take(ref scratch, valueLaneFloats);
        Clear(keyGradient, chunkKeys * headRow);
        Clear(valueGradient, chunkKeys * valueRow);
        Clear(keyLanes, keyLaneFloats);
        Clear(valueLanes, valueLaneFloats);

        float* k = Key.Matrix(batch, keyHead), v = Value.Matrix(batch, keyHead);
        Clear(tileIsFinite, chunkKeys / AttentionTiles.Keys);
        nint heads = (nint)(Shape.Heads / Shape.KeyHeads / Plan.Parts);
        endHead = (keyHead * (nint)Plan.Parts + part + 1) * heads;
        for (nint head = endHead - heads; head < endHead; head++)
        {
            float* free = scratch;
            HeadScores scores = default;
            if (queries > 0 && count > 0)
                scores.Begin<V>(Scoring, Shape, batch, head, 0, queries, first, count, &pairTile, ref free);
            BeginGradients<V>(head, first, count, ref free);
            sinkGradient = 0;
            for (nint i0 = 0; i0 < queries; i0 += block)
                RunBlock<V>(scores, k, v, head, i0, first, count);
            EndGradients<V>(head, count);
            if (Plan.WantsSinks && chunk == 0)
                *Plan.SinkPartial(Partials, Shape, batch, head) = sinkGradient;
        }
        LaneSums.AddLanes<V>(keyLanes, count, d, keyGradient, headRow);
        LaneSums.AddLanes<V>(valueLanes, count, dv, valueGradient, valueRow);
        if (Plan.Parts == 1)
            WriteKeyGradients<V>(keyHead, first, count);
        StreamingStores.Complete();
    }

    private void RunBlock<V>(in HeadScores scores, float* k, float* v, nint head, nint i0, nint first, nint count) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), d = (nint)Shape.HeadSize, dv = (nint)Shape.ValueSize, queries = (nint)Shape.Queries, offset = Scoring.QueryOffset(batch);
        nint rows = Math.Min(block, queries - i0);
        nint last = Math.Clamp((nint)Scoring.KeyLength(batch), first, first + count), end = Shape.Causal ? Math.Clamp(i0 + rows + offset, first, last) : last;
        if (Plan is { WantsQuery: true, Chunks: > 1 })
            queryGradient = Partials + Plan.QueryPartial(Shape, batch, head, chunk) + i0 * (nint)AttentionBackwardPlan.QueryRow(Shape);
        if (end > first)
        {
            scores.ReadMask<V>(Scoring, i0, rows, end);
            scores.Ahead<V>(Scoring, i0, first, end).AskForRest();
        }
        nint done = first; // the pairs of the keys before have their gradients
        bool begun = false; // a block of which the chunk's keys are all hidden is never transposed
        for (nint j0 = first; j0 < end; j0 += AttentionTiles.Keys)
        {
            nint tileKeys = Math.Min(AttentionTiles.Keys, end - j0);
            TileVisibility visible = scores.Look<V>(Scoring, i0, rows, j0, tileKeys, Shape.Causal);
            if (visible.Parts.IsEmpty)
                continue;
            ClearPairs(head, i0, rows, done, j0, first, count);
            done = j0 + tileKeys;
            if (!begun)
                BeginBlock<V>(scores, head, i0, rows);
            begun = true;
            float* tileK = k + j0 * Key.Row, tileV = v + j0 * Value.Row;
            LaneRows bias = scores.Bias<V>(Scoring, i0, j0, tileKeys, visible, out bool hides);
            // Gradients of biases are summed of whole tiles.
            if (visible.LeavesOut(tileKeys))
                Clear(dS, tileKeys * block);
            bool ruled = IsRuled;
            RuleTile tile = typeof(TRule) != typeof(PlainScore) ? scores.BeginTile<V>(Scoring, i0, j0, tileKeys, wantsKeys: !Length.IsLong) : default;
            RowsAhead valuesAhead = scores.Ahead<V>(Scoring, i0, j0 + tileKeys, end), gradientsAhead = GradientsAhead(head, i0, rows, j0);
            AddNextBlock<V>(ref valuesAhead, ref gradientsAhead, head, i0, (end - 1 - j0) / AttentionTiles.Keys);
            foreach (ref readonly TilePart part in visible.Parts)
            {
                nint lane = part.Lane<V>(), start = part.Start<V>();
                float* partK = tileK + part.FirstKey * Key.Row;
                if (Length.IsLong)
                    valuesAhead.SetScaled<V>(partK, Key.Row, Key.Column, part, queryColumns + lane, d, StripScores + start, Shape.Scale);
                else
                    valuesAhead.Set<V>(partK, Key.Row, Key.Column, part, queryColumns + lane, d, s + start, TCap.Caps);
                gradientsAhead.Set<V>(tileV + part.FirstKey * Value.Row, Value.Row, Value.Column, part, upstreamColumns + lane, dv, dS + start, TCap.Caps);
                if (ruled)
                    ApplyRule<V>(tile, part, ref valuesAhead, ref gradientsAhead);
            }
            valuesAhead.AskForRest();
            gradientsAhead.AskForRest();
            // A mark instead of 0 lets the products below skip a hidden pair, and what stands for missing keys; it is needed only where 0 times something may not be 0.
            bool skips = (hides || ruled || tileKeys % Product.Rows != 0) && !IsFinite<V>(j0, (j0 - first) / AttentionTiles.Keys, tileK, tileV);
            bool refines = first == 0 && end <= AttentionTiles.Keys, keeps = WantsScoring || refines; // dz as it is
            bool apart = ruled && WantsScoring && !refines && WantedCaptures == 0; // and beside it what passes through the rule
            foreach (ref readonly TilePart part in visible.Parts)
            {
                // What a rule says may be anything.
                bool marks = skips || (typeof(TRule) != typeof(PlainScore) && !AttentionTiles.IsFinite<V>(s + part.Start<V>(), block, 1, part.Keys, part.Vectors * V.Count));
                if (apart)
                    Differentiate<V, Yes, Yes>(bias, part, hides, marks, skips ? -1f : 0f);
                else if (ruled && !keeps)
                    Differentiate<V, Yes, No>(bias, part, hides, marks, skips ? -1f : 0f);
                else
                    Differentiate<V, No, No>(bias, part, hides, marks, skips ? -1f : 0f);
                if (hasShares)
                    MultiplyByShares<V>(part, apart);
            }
            // What is summed takes four keys at a time; what stands for missing ones must add nothing to the keys that follow.
            nint fullRows = (nint)AttentionTiles.RoundUp(tileKeys, Product.Rows);
            Clear(s + tileKeys * block, (fullRows - tileKeys) * block);
            float* passed = apart ? slope : dS;
            Clear(passed + tileKeys * block, (fullRows - tileKeys) * block);
            if (refines)
                Refine<V>(visible, head, i0, rows);
            if (Plan.WantsLine)
                AddToLine<V>(i0, j0, tileKeys, first);
            AddBiases<V>(scores, head, i0, j0, rows, tileKeys, first, count);
            foreach (ref readonly TilePart part in visible.Parts)
            {
                if (ruled && keeps && !apart)
                    PassThroughRule<V>(tile, part, i0, j0);
            }
            EndTileGradients<V>(head, i0, j0, rows, tileKeys, first, count);
            foreach (ref readonly TilePart part in visible.Parts)
            {
                nint lane = part.Lane<V>(), start = part.Start<V>();
                float* partK = tileK + part.FirstKey * Key.Row, p = s + start, dz = passed + start, hidden = skips ? p : null;
                nint key = j0 - first + part.FirstKey;
                AddOverQueries<V>(p, part, rows, upstreamColumns, upstreamRows, dv, key, valueGradient, valueLanes, hidden);
                AddOverQueries<V>(dz, part, rows, queryColumns, queryRows, d, key, keyGradient, keyLanes, hidden);
                if (skips)
                    Product.AddWhereLanesVisible<V>(partK, Key.Column, Key.Row, d, dz, block, part.Vectors, part.Keys, queryGradient + lane, block, p);
                else
                    Product.Add<V>(partK, Key.Column, Key.Row, d, dz, block, part.Vectors, part.Keys, queryGradient + lane, block);
            }
        }
        ClearPairs(head, i0, rows, done, first + count, first, count); // no further tile reaches these keys
        if (Plan.WantsSinks && chunk == 0)
            AddToSink<V>(begun, head, i0, rows);
        if (!begun)
            Clear(queryGradient, d * block);
        if (Plan is { WantsQuery: true, Chunks: 1 })
        {
            Multiply<V>(queryGradient, d * block, Shape.Scale);
            AttentionTiles.WriteRows<V>(queryGradient, queryColumns, rows, d, QueryGradient.Matrix(batch, head) + i0 * QueryGradient.Row, QueryGradient, Accumulate, Shape.Batch * Shape.Heads * Shape.Queries);
        }
    }

    // What a part's pairs give to its keys, summed over the queries: in rows of features, but for those that would fill no vector with the queries still in the lanes. Pairs that bear a mark are left out.
    private static void AddOverQueries<V>(float* weights, in TilePart part, nint queries, float* columns, float* rows, nint features, nint key, float* sums, float* laneSums, float* hidden) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), lane = part.Lane<V>(), partQueries = Math.Min(queries, part.EndVector * V.Count) - lane, row = (nint)AttentionTiles.RoundUp(features, V.Count);
        nint few = LaneSums.Features<V>(features), vectors = (nint)AttentionTiles.RoundUp(features - few, V.Count) / V.Count;
        sums += key * row;
        if (vectors > 0 && hidden != null)
            Product.AddWhereElementsVisible<V>(weights, block, 1, part.Keys, rows + lane * row, row, vectors, partQueries, sums, row, hidden);
        else if (vectors > 0)
            Product.Add<V>(weights, block, 1, (nint)AttentionTiles.RoundUp(part.Keys, Product.Rows), rows + lane * row, row, vectors, partQueries, sums, row);
        if (few > 0)
            LaneSums.Add<V>(weights, part.Keys, part.Vectors, columns + (features - few) * block + lane, few, laneSums + key * LaneSums.Floats<V>(features), hidden);
    }

    // What the item's next block begins with.
    private readonly void AddNextBlock<V>(ref RowsAhead ahead, ref RowsAhead then, nint head, nint i0, nint tilesLeft) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), queries = (nint)Shape.Queries, d = (nint)Shape.HeadSize, dv = (nint)Shape.ValueSize;
        (nint nextHead, nint next) = i0 + block < queries ? (head, i0 + block) : (head + 1, 0);
        if (nextHead == endHead)
            return;
        nint rows = Math.Min(block, queries - next);
        ahead.Add(Query, Query.Matrix(batch, nextHead) + next * Query.Row, rows, d, tilesLeft);
        then.Add(UpstreamOutput, UpstreamOutput.Matrix(batch, nextHead) + next * UpstreamOutput.Row, rows, dv, tilesLeft);
        then.Add(Output, Output.Matrix(batch, nextHead) + next * Output.Row, rows, dv, tilesLeft);
    }

    // Where scores and dP − D are numbers, weights of 0 do for hidden pairs.
    private readonly void Differentiate<V, TSlopes, TApart>(LaneRows bias, in TilePart part, bool hides, bool marks, float hiddenWeight)
        where V : struct, ILanes<V> where TSlopes : struct, IChoice where TApart : struct, IChoice
    {
        if (marks && (hides || IsRuled))
            Differentiate<V, Yes, Yes, TSlopes, TApart>(bias, part, hiddenWeight);
        else if (hides)
            Differentiate<V, Yes, No, TSlopes, TApart>(bias, part, 0f);
        else
            Differentiate<V, No, No, TSlopes, TApart>(bias, part, 0f);
    }

    // From scores and dP of a part: P in place of S and dz, or dS = dz · ∂rule/∂score, in place of dP, or dz in place of dP and dS in place of the slopes; four keys at a time of one vector of queries.
    // The last key stands for those that are missing of four.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void Differentiate<V, THiding, TMarking, TSlopes, TApart>(LaneRows bias, in TilePart part, float hiddenWeight)
        where V : struct, ILanes<V> where THiding : struct, IChoice where TMarking : struct, IChoice where TSlopes : struct, IChoice where TApart : struct, IChoice
    {
        nint step = AttentionTiles.Block<V>(), first = part.Lane<V>(), end = part.EndVector * V.Count, keys = part.Keys;
        V scale = V.From(Shape.Scale);
        for (nint lane = first; lane < end; lane += V.Count)
        {
            float* scores = s + part.FirstKey * step + lane, gradients = dS + part.FirstKey * step + lane, b0 = bias.At(part.FirstKey) + lane;
            V l = V.Load(logSumExp + lane), rest = V.Load(remainder + lane), d = V.Load(delta + lane);
            for (nint key = 0; key < keys; key += Product.Rows, scores += Product.Rows * step, gradients += Product.Rows * step, b0 += Product.Rows * bias.Step)
            {
                float* b1 = key + 1 < keys ? b0 + bias.Step : b0, b2 = key + 2 < keys ? b1 + bias.Step : b1, b3 = key + 3 < keys ? b2 + bias.Step : b2;
                V z0 = Score<V, THiding, TMarking>(V.Load(scores), scale, V.Load(b0)), z1 = Score<V, THiding, TMarking>(V.Load(scores + step), scale, V.Load(b1));
                V z2 = Score<V, THiding, TMarking>(V.Load(scores + 2 * step), scale, V.Load(b2)), z3 = Score<V, THiding, TMarking>(V.Load(scores + 3 * step), scale, V.Load(b3));
                V t0 = z0 - l, t1 = z1 - l, t2 = z2 - l, t3 = z3 - l, lowest = V.From(Exponential.Lowest);
                // The forward pass's exponential, so that weights add up to 1.
                Exponential.Precise(V.MaxNative(lowest, t0), V.MaxNative(lowest, t1), V.MaxNative(lowest, t2), V.MaxNative(lowest, t3), out V p0, out V p1, out V p2, out V p3);
                (p0, p1, p2, p3) = (PutBack(p0, z0, t0, l, rest), PutBack(p1, z1, t1, l, rest), PutBack(p2, z2, t2, l, rest), PutBack(p3, z3, t3, l, rest));
                V dz0 = p0 * (V.Load(gradients) - d), dz1 = p1 * (V.Load(gradients + step) - d), dz2 = p2 * (V.Load(gradients + 2 * step) - d), dz3 = p3 * (V.Load(gradients + 3 * step) - d);
                if (TMarking.Taken)
                {
                    V none = V.From(float.NegativeInfinity), hidden = V.From(hiddenWeight);
                    (p0, p1, p2, p3) = (V.SelectEqual(z0, none, hidden, p0), V.SelectEqual(z1, none, hidden, p1), V.SelectEqual(z2, none, hidden, p2), V.SelectEqual(z3, none, hidden, p3));
                    (dz0, dz1, dz2, dz3) = (V.SelectEqual(z0, none, V.Zero, dz0), V.SelectEqual(z1, none, V.Zero, dz1), V.SelectEqual(z2, none, V.Zero, dz2), V.SelectEqual(z3, none, V.Zero, dz3));
                }
                Store(p0, p1, p2, p3, scores, step);
                if (!TSlopes.Taken || TApart.Taken)
                    Store(dz0, dz1, dz2, dz3, gradients, step);
                if (TSlopes.Taken)
                {
                    float* slopes = scores + (slope - s);
                    Store(Multiply(dz0, slopes), Multiply(dz1, slopes + step), Multiply(dz2, slopes + 2 * step), Multiply(dz3, slopes + 3 * step), TApart.Taken ? slopes : gradients, step);
                }
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store<V>(V x0, V x1, V x2, V x3, float* to, nint step) where V : struct, ILanes<V>
    {
        x0.Store(to);
        x1.Store(to + step);
        x2.Store(to + 2 * step);
        x3.Store(to + 3 * step);
    }

    // The final score: of q·k, or of what a rule says. A rule hides by −∞ before any bias is added: ∞ in a bias must not bring the pair back. Without marks a hidden pair's score is a number, for
    // −∞ less −∞ isn't, and far below any other: its weight is 0.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Score<V, THiding, TMarking>(V value, V scale, V bias) where V : struct, ILanes<V> where THiding : struct, IChoice where TMarking : struct, IChoice
    {
        const float far = -1e30f;
        V none = V.From(float.NegativeInfinity);
        if (TMarking.Taken)
            return V.SelectEqual(bias, none, none, IsRuled ? V.SelectEqual(value, none, none, value + bias) : V.MultiplyAdd(value, scale, bias));
        V z = IsRuled ? value + bias : V.MultiplyAdd(value, scale, bias);
        return THiding.Taken ? V.MaxNative(V.From(far), z) : z;
    }

    // A weight e^t with what was rounded away when L was subtracted from z, t being the difference, and e^−remainder − 1 of L.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V PutBack<V>(V weight, V z, V t, V logSumExp, V rest) where V : struct, ILanes<V> => V.MultiplyAdd(weight, z - (t + logSumExp) + rest, weight);

    private readonly void WriteKeyGradients<V>(nint keyHead, nint first, nint count) where V : struct, ILanes<V>
    {
        Write<V>(KeyGradient, keyHead, first, count, (nint)Shape.HeadSize, keyGradient, headRow, Shape.Scale);
        Write<V>(ValueGradient, keyHead, first, count, (nint)Shape.ValueSize, valueGradient, valueRow, 1);
    }

    private readonly void Write<V>(in Strided gradient, nint keyHead, nint first, nint count, nint columns, float* from, nint step, float factor) where V : struct, ILanes<V>
    {
        if (!gradient.IsPresent)
            return;
        float* to = gradient.Matrix(batch, keyHead) + first * gradient.Row;
        if (gradient.Column == 1 && !Accumulate && StreamingStores.Suit(Shape.Batch * Shape.KeyHeads * Shape.Keys * columns))
        {
            StreamingStores.Multiply(from, step, to, gradient.Row, count, columns, factor);
            return;
        }
        if (factor != 1)
            Multiply<V>(from, count * step, factor);
        MatrixCopy.Run(from, step, 1, to, gradient.Row, gradient.Column, count, columns, Accumulate);
    }

    // Whole vectors.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Multiply<V>(float* start, nint floats, float factor) where V : struct, ILanes<V>
    {
        for (nint at = 0; at < floats; at += V.Count)
            (V.Load(start + at) * factor).Store(start + at);
    }

    private static float* Take(ref float* scratch, nint floats)
    {
        float* taken = scratch;
        scratch += floats;
        return taken;
    }

    private static void Clear(float* start, nint floats) => System.Runtime.InteropServices.NativeMemory.Clear(start, (nuint)(floats * sizeof(float)));
}
