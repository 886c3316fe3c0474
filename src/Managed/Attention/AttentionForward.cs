using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) =>
        ThreadCount * AttentionTurns.Of(problem).ScratchBytes(AttentionShape.Of(problem)) + AttentionScoring.Bytes(problem);

    protected internal override bool OffersAllOfAttention => true;

    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp, Workspace workspace)
    {
        if (problem.Softcap is { } cap)
            Forward(problem, rule, Softcapped.After<TRule>(cap, AttentionShape.Of(problem)), output, logSumExp, workspace);
        else
            Forward(problem, rule, default(Uncapped), output, logSumExp, workspace);
    }

    private unsafe void Forward<TRule, TCap>(in AttentionProblem problem, TRule rule, TCap cap, TensorView output, TensorView logSumExp, Workspace workspace)
        where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
    {
        AttentionShape shape = AttentionShape.Of(problem);
        AttentionTurns turns = AttentionTurns.Of(problem);
        long stride = turns.ScratchBytes(shape);
        using Workspace.Lease lease = workspace.Rent(AttentionForwardWorkspaceBytes(problem));
        TensorView memory = lease.Buffer!.View;
        fixed (byte* scratch = memory, query = problem.Query, key = problem.Key, value = problem.Value, o = output)
        fixed (byte* slopes = problem.Slopes, distanceBias = problem.DistanceBias, l = logSumExp)
        fixed (byte* mask = problem.Mask, queryOffsets = problem.QueryOffsets, sinks = problem.Sinks, bucketedBias = problem.BucketedBias.Table, gridBias = problem.GridBias.Table, keyLengths = problem.KeyLengths)
        fixed (byte* denseBias = problem.DenseBias, rowBias = problem.RowBias, columnBias = problem.ColumnBias)
        fixed (byte* captured0 = problem.Captured0.Values, captured1 = problem.Captured1.Values, captured2 = problem.Captured2.Values, captured3 = problem.Captured3.Values)
        {
            var addresses = new ScoringAddresses
            {
                Slopes = slopes, DistanceBias = distanceBias, BucketedBias = bucketedBias, GridBias = gridBias, DenseBias = denseBias, RowBias = rowBias, ColumnBias = columnBias,
                Sinks = sinks, Mask = mask, QueryOffsets = queryOffsets, KeyLengths = keyLengths, Captured0 = captured0, Captured1 = captured1, Captured2 = captured2, Captured3 = captured3,
            };
            var scoring = new AttentionScoring(problem, addresses, scratch + ThreadCount * stride);
            CheckSequences(problem, scoring, shape);
            ReadShared(scoring.Mask, shape);
            var work = new AttentionForwardWork<TRule, TCap>
            {
                Shape = shape,
                Rule = rule,
                Cap = cap,
                Scoring = scoring,
                Query = new Strided(query, problem.Query),
                Key = new Strided(key, problem.Key),
                Value = new Strided(value, problem.Value),
                Output = new Strided(o, output),
                LogSumExp = new Strided(l, logSumExp),
                HasRemainder = logSumExp.Rank == 4,
                Turns = turns,
                Threads = ThreadCount,
                Length = RuleLength.Of(rule),
            };
            Run(work, ForwardItems(shape, turns), scratch, (nint)stride);
        }
    }

    // What the host's memory says of each sequence.
    private static void CheckSequences(in AttentionProblem problem, in AttentionScoring scoring, in AttentionShape shape)
    {
        for (nint batch = 0; batch < (nint)shape.Batch; batch++)
        {
            long length = scoring.KeyLength(batch);
            if (length < 0 || length > shape.Keys)
                throw new ArgumentOutOfRangeException("problem.KeyLengths", length, $"Sequence {batch} has {length} keys; there are 0 to {shape.Keys}.");
            if (problem.QueryOffsets.IsPresent)
                Require.Position(scoring.QueryOffset(batch), "problem.QueryOffsets");
            if (problem.QueryOffsets.IsPresent && problem.DistanceBias.IsPresent && shape.Queries > 0 && shape.Keys > 0)
                Attention.CheckDistances(problem.DistanceBias, shape, scoring.QueryOffset(batch));
            if (problem.QueryOffsets.IsPresent && problem.GridBias.IsPresent)
                problem.GridBias.CheckPositions(shape.Queries, shape.Keys, scoring.QueryOffset(batch));
        }
    }

    private unsafe void ReadShared(in BooleanMask mask, in AttentionShape shape)
    {
        if (mask.IsShared)
            Run(new SharedMask { Mask = mask, Queries = (nint)shape.Queries, Keys = (nint)shape.Keys }, mask.Batches * mask.Heads * Blocks(shape));
    }

    private static long ForwardItems(in AttentionShape shape, in AttentionTurns turns) => shape.Batch * shape.Heads * Blocks(shape) / turns.Count;

    private static long Blocks(in AttentionShape shape)
    {
        long block = Lanes * AttentionTiles.Vectors;
        return (shape.Queries + block - 1) / block;
    }
}

/// <summary>The forward pass of a block of queries, or of those that take turns: Oᵀ, row maxima and row sums stay in the thread's scratch while the keys stream by.</summary>
internal unsafe struct AttentionForwardWork<TRule, TCap> : IWork where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    public AttentionShape Shape;
    public TRule Rule;
    public TCap Cap;
    public AttentionScoring Scoring;
    public Strided Query, Key, Value, Output, LogSumExp;

    /// <summary>Which blocks an item has.</summary>
    public AttentionTurns Turns;

    /// <summary>How many items are worked on at a time: a thread that has one done takes the one that lies so far ahead.</summary>
    public int Threads;

    /// <summary>How the rule is evaluated.</summary>
    public RuleLength Length;

    /// <summary>Whether <see cref="LogSumExp"/> has a second column for what rounding took from the first.</summary>
    public bool HasRemainder;

    public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), turns = Turns.Count, end = 0;
        float* rest = (float*)scratch;
        var tile = new ForwardTile { S = Take(ref rest, AttentionTiles.Keys * block), Maximum = Take(ref rest, block), Factor = Take(ref rest, block) };
        var pairs = new PairTile { Values = Take(ref rest, AttentionTiles.Keys * block), IsShared = turns > 1 };
        ForwardBlock* blocks = stackalloc ForwardBlock[AttentionTurns.Most];
        for (nint turn = 0; turn < turns; turn++)
        {
            Begin<V>(ref blocks[turn], item * turns + turn, &pairs, Take(ref rest, (nint)AttentionTurns.BlockFloats(Shape)));
            end = Math.Max(end, blocks[turn].End);
        }
        for (nint j0 = 0; j0 < end; j0 += AttentionTiles.Keys)
        {
            for (nint turn = 0; turn < turns; turn++)
            {
                if (j0 < blocks[turn].End)
                    AddTile<V>(ref blocks[turn], j0, tile, skips: false);
            }
        }
        for (nint turn = 0; turn < turns; turn++)
        {
            ref ForwardBlock at = ref blocks[turn];
            // Hidden pairs weigh nothing, but 0 times a value that isn't finite is NaN. So a block that hides pairs and whose output isn't finite has to be done again, and hidden pairs of values
            // that aren't finite be skipped.
            if (at.HidesPairs && !AttentionTiles.IsFinite<V>(at.O, block, 1, (nint)Shape.ValueSize, block))
            {
                Clear<V>(at);
                for (nint j0 = 0; j0 < at.End; j0 += AttentionTiles.Keys)
                    AddTile<V>(ref at, j0, tile, skips: true);
            }
            Finish<V>(at);
        }
        StreamingStores.Complete();
    }

    private readonly void Begin<V>(ref ForwardBlock at, nint index, PairTile* pairs, float* scratch) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), queries = (nint)Shape.Queries, d = (nint)Shape.HeadSize, dv = (nint)Shape.ValueSize;
        Turns.Locate<V>(Shape, index, out nint batch, out nint head, out nint i0);
        Turns.Locate<V>(Shape, index + Threads * Turns.Count, out nint nextBatch, out nint nextHead, out nint nextI0);
        nint group = (nint)(Shape.Heads / Shape.KeyHeads), rows = Math.Min(block, queries - i0), length = (nint)Scoring.KeyLength(batch);
        at = new()
        {
            Batch = batch,
            Head = head,
            FirstQuery = i0,
            Queries = rows,
            End = Shape.Causal ? Math.Clamp(i0 + rows + Scoring.QueryOffset(batch), 0, length) : length,
            Key = Key.Matrix(batch, head / group),
            Value = Value.Matrix(batch, head / group),
            Output = Output.Matrix(batch, head) + i0 * Output.Row,
            VisitsFirst = i0 + 2 * block >= queries && head % group == 0,
            NextQuery = Query.Matrix(nextBatch, nextHead) + nextI0 * Query.Row,
            NextQueries = Math.Min(block, queries - nextI0),
            Q = Take(ref scratch, Math.Max(d, dv) * block), // O is turned around there
            O = Take(ref scratch, (nint)AttentionTiles.RoundUp(dv, Product.Rows) * block),
            Maximum = Take(ref scratch, block),
            Sum = Take(ref scratch, block),
        };
        if (at.End > 0)
        {
            at.Scores.Begin<V>(Scoring, Shape, batch, head, i0, rows, 0, at.End, pairs, ref scratch);
            at.Scores.BeginBlock<V>(Scoring, i0);
            at.Scores.ReadMask<V>(Scoring, i0, rows, at.End);
            at.Scores.Ahead<V>(Scoring, i0, 0, at.End).AskForRest();
        }
        AttentionTiles.PackColumns<V>(Query.Matrix(batch, head) + i0 * Query.Row, Query.Row, Query.Column, rows, d, at.Q);
        Clear<V>(at);
    }

    private readonly void Clear<V>(in ForwardBlock at) where V : struct, ILanes<V>
    {
        int block = AttentionTiles.Block<V>();
        new Span<float>(at.O, (int)Shape.ValueSize * block).Clear();
        new Span<float>(at.Maximum, block).Fill(float.NegativeInfinity);
        new Span<float>(at.Sum, block).Clear();
    }

    private readonly void AddTile<V>(ref ForwardBlock at, nint j0, in ForwardTile memory, bool skips) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), d = (nint)Shape.HeadSize, dv = (nint)Shape.ValueSize, i0 = at.FirstQuery, end = at.End, count = Math.Min(AttentionTiles.Keys, end - j0);
        TileVisibility visible = at.Scores.Look<V>(Scoring, i0, at.Queries, j0, count, Shape.Causal);
        if (visible.Parts.IsEmpty)
            return;
        float* tileKeys = at.Key + j0 * Key.Row, tileValues = at.Value + j0 * Value.Row, q = at.Q, o = at.O, sum = at.Sum, s = memory.S, tileMaximum = memory.Maximum, factor = memory.Factor;
        LaneRows bias = at.Scores.Bias<V>(Scoring, i0, j0, count, visible, out bool hides);
        RowsAhead ahead = at.Scores.Ahead<V>(Scoring, i0, j0 + count, end);
        nint tilesLeft = (end - 1 - j0) / AttentionTiles.Keys;
        ahead.Add(Query, at.NextQuery, at.NextQueries, d, tilesLeft);
        if (at.VisitsFirst)
            ahead.AddKeys(Key, tileKeys + AttentionTiles.Keys * Key.Row, end - j0 - AttentionTiles.Keys, d);
        new Span<float>(at.Maximum, (int)block).CopyTo(new Span<float>(tileMaximum, (int)block));
        if (typeof(TRule) == typeof(PlainScore) && !TCap.Caps)
        {
            foreach (ref readonly TilePart part in visible.Parts)
            {
                if (hides)
                    Score<V, Yes>(tileKeys, q, d, part, bias, s, tileMaximum, &ahead);
                else
                    Score<V, No>(tileKeys, q, d, part, bias, s, tileMaximum, &ahead);
            }
        }
        else
        {
            RuleTile tile = typeof(TRule) == typeof(PlainScore) ? default : at.Scores.BeginTile<V>(Scoring, i0, j0, count, wantsKeys: !Length.IsLong);
            foreach (ref readonly TilePart part in visible.Parts)
            {
                float* partKeys = tileKeys + part.FirstKey * Key.Row;
                if (Length.IsLong)
                    ahead.SetScaled<V>(partKeys, Key.Row, Key.Column, part, q + part.Lane<V>(), d, s + part.Start<V>(), Shape.Scale);
                else
                    ahead.Set<V>(partKeys, Key.Row, Key.Column, part, q + part.Lane<V>(), d, s + part.Start<V>(), TCap.Caps);
                if (hides)
                    ApplyRule<V, Yes>(tile, part, bias, adds: true, s, tileMaximum, ref ahead);
                else
                    ApplyRule<V, No>(tile, part, bias, !at.Scores.IsNone(bias), s, tileMaximum, ref ahead);
            }
            hides = true; // perhaps: it isn't looked for unless something isn't finite
        }
        ahead.AskForRest();
        // Weights are computed of four keys at a time; what stands for missing ones weighs nothing.
        new Span<float>(s + count * block, (int)(((nint)AttentionTiles.RoundUp(count, Product.Rows) - count) * block)).Fill(float.NegativeInfinity);
        BeginWeights<V>(at.Maximum, tileMaximum, sum, factor);
        at.HidesPairs |= hides;
        bool skipsHere = skips && hides && !AttentionTiles.IsFinite<V>(tileValues, Value.Row, Value.Column, count, dv);
        foreach (ref readonly TilePart part in visible.Parts)
        {
            nint lane = part.Lane<V>();
            float* partValues = tileValues + part.FirstKey * Value.Row, weights = s + part.Start<V>();
            if (skipsHere)
            {
                Weigh<V, Yes>(weights, part, tileMaximum + lane, sum + lane);
                Product.AddScaled<V>(partValues, Value.Column, Value.Row, dv, weights, block, part.Vectors, 0, o + lane, block, factor + lane);
                Product.AddWhereLanesVisible<V>(partValues, Value.Column, Value.Row, dv, weights, block, part.Vectors, part.Keys, o + lane, block, weights);
            }
            else
            {
                Weigh<V, No>(weights, part, tileMaximum + lane, sum + lane);
                Product.AddScaled<V>(partValues, Value.Column, Value.Row, dv, weights, block, part.Vectors, part.Keys, o + lane, block, factor + lane);
            }
            new Span<float>(factor + lane, (int)(part.Vectors * V.Count)).Fill(1); // a further part adds to what is scaled already
        }
    }

    private static float* Take(ref float* scratch, nint floats)
    {
        float* taken = scratch;
        scratch += floats;
        return taken;
    }

    // Final scores of a part without a rule, and the maxima.
    private readonly void Score<V, THiding>(float* tileKeys, float* q, nint d, in TilePart part, LaneRows bias, float* s, float* maximum, RowsAhead* ahead)
        where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        nint block = AttentionTiles.Block<V>(), lane = part.Lane<V>();
        var scored = new ScoreTile<THiding> { Scale = Shape.Scale, Bias = new() { Start = bias.At(part.FirstKey) + lane, Step = bias.Step }, Rows = part.Keys, Maximum = maximum + lane, Ahead = ahead };
        Product.SetThen<V, ScoreTile<THiding>>(tileKeys + part.FirstKey * Key.Row, Key.Row, Key.Column, part.Keys, q + lane, block, part.Vectors, d, s + part.Start<V>(), block, scored);
    }

    // Turns a part's q·k, scaled for a long rule, into final scores, which adds a bias or doesn't, and raises the maxima. Only a brief rule and what comes after it are one pass, or a short
    // one and the maxima where nothing else comes after it: each pass is a chain of instructions that wait for each other, and the processor sees the more vectors' chains at a time the shorter they are.
    private readonly void ApplyRule<V, THiding>(in RuleTile tile, in TilePart part, LaneRows bias, bool adds, float* s, float* maximum, ref RowsAhead ahead) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        nint block = AttentionTiles.Block<V>();
        if (typeof(TRule) != typeof(PlainScore) && !TCap.Caps && Length.IsBrief)
        {
            ScoreLanes<Lockstep<V>, THiding, RuleAndEnd>(tile, part.OfPairs, block, default, bias, s, maximum);
            return;
        }
        if (typeof(TRule) != typeof(PlainScore) && Length.IsLong)
        {
            RuleStrips<V, THiding>(tile, part, bias, adds, s, maximum, ref ahead);
            return;
        }
        if (typeof(TRule) != typeof(PlainScore) && !TCap.Caps && !adds && Length.IsShort && ahead.IsDone)
        {
            ScoreLanes<Lockstep<V>, No, RuleAndMaxima>(tile, part.OfPairs, block, default, default, s, maximum);
            return;
        }
        if (typeof(TRule) != typeof(PlainScore) && Length.IsShort)
            ScoreLanes<Lockstep<V>, No, RuleAlone>(tile, part.OfPairs, block, default, default, s, null);
        else if (typeof(TRule) != typeof(PlainScore))
            ScoreLanes<V, No, RuleAlone>(tile, part, block, default, default, s, null);
        End<V, THiding>(tile, part, new() { Start = s, Step = block }, bias, adds, s, maximum, ref ahead);
    }

    // What comes after the rule, from what it said.
    private readonly void End<V, THiding>(in RuleTile tile, in TilePart part, LaneRows ruled, LaneRows bias, bool adds, float* s, float* maximum, ref RowsAhead ahead) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        nint block = AttentionTiles.Block<V>();
        for (TilePart rest = part; rest.Keys > 0;)
        {
            TilePart piece = ahead.Piece(rest);
            if (TCap.Caps && Avx512F.IsSupported && piece.Vectors == AttentionTiles.Vectors)
                CapRows<V, THiding>(piece, ruled, bias, s, maximum);
            else if (adds || TCap.Caps)
                ScoreLanes<Lockstep<V>, THiding, EndAlone>(tile, piece.OfPairs, block, ruled, bias, s, maximum);
            else
                RaiseMaxima<Lockstep<V>>(piece.OfPairs, block, ruled, s, maximum);
            ahead.Ask(part.Vectors);
            rest.FirstKey = piece.EndKey;
        }
    }

    // It takes pairs of vectors: lanes that it has more are hidden.
    [SkipLocalsInit]
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void RuleStrips<V, THiding>(in RuleTile tile, in TilePart part, LaneRows bias, bool adds, float* s, float* maximum, ref RowsAhead ahead) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        TilePart pairs = part.OfPairs;
        nint block = AttentionTiles.Block<V>(), first = pairs.Lane<Lockstep<V>>(), lanes = pairs.Vectors * Lockstep<V>.Count;
        nint most = Length.StripRows;
        float* space = stackalloc float[StripMemory.Aligned(Length.StripFloats)], memory = StripMemory.Align(space);
        StripMemory evaluation;
        for (nint row = part.FirstKey; row < part.EndKey; row += most)
        {
            StripMemory.Begin<V>(&evaluation, memory, Length.StripFloats, Math.Min(most, part.EndKey - row), lanes);
            float* scores = s + row * block + first;
            var place = new PlaceStrips<V>(Scoring.Tensors, tile, row, first);
            LaneRows ruled = Rule.Score(Strip<V>.Rows(scores, block), place.Values).InLanes(scores, block);
            ruled.Start -= row * ruled.Step + first;
            End<V, THiding>(tile, part with { FirstKey = row, EndKey = row + evaluation.Rows }, ruled, bias, adds, s, maximum, ref ahead);
        }
    }

    // The rule, and what comes after it: the softcap, the bias, the maxima. Types are compared in place of a property, which the JIT sees too late: it has spent what it inlines on the branch not taken.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ScoreLanes<V, THiding, TStep>(in RuleTile tile, in TilePart part, nint block, LaneRows ruled, LaneRows bias, float* s, float* maximum)
        where V : struct, ILanes<V> where THiding : struct, IChoice where TStep : struct, IScoreStep
    {
        nint first = part.FirstKey, keys = part.Keys, end = part.EndVector * V.Count;
        V scale = V.From(Shape.Scale), hidden = V.From(float.NegativeInfinity);
        V head = V.From(tile.Head), sequence = V.From(tile.Batch);
        for (nint lane = part.Lane<V>(); lane < end; lane += V.Count)
        {
            V highest = hidden, position = V.Iota(tile.FirstQuery + lane), key = V.From(tile.FirstKey + first);
            float* at = s + first * block + lane, from = ruled.At(first) + lane, added = bias.At(first) + lane;
            float* c0 = tile.Captured0.At(first) + lane, c1 = tile.Captured1.At(first) + lane, c2 = tile.Captured2.At(first) + lane, c3 = tile.Captured3.At(first) + lane;
            if (typeof(TStep) != typeof(RuleAlone))
                highest = V.Load(maximum + lane);
            for (nint row = 0; row < keys; row++)
            {
                V z = V.Load(typeof(TStep) == typeof(EndAlone) ? from : at);
                if (typeof(TStep) == typeof(EndAlone))
                    from += ruled.Step;
                else
                {
                    z = Rule.Score(z * scale, new ScorePlace<V>
                    {
                        QueryPosition = position,
                        KeyPosition = key,
                        Head = head,
                        Batch = sequence,
                        Captured0 = V.Load(c0),
                        Captured1 = V.Load(c1),
                        Captured2 = V.Load(c2),
                        Captured3 = V.Load(c3),
                    });
                    key += 1f;
                    c0 += tile.Captured0.Step;
                    c1 += tile.Captured1.Step;
                    c2 += tile.Captured2.Step;
                    c3 += tile.Captured3.Step;
                }
                if (typeof(TStep) == typeof(EndAlone) || typeof(TStep) == typeof(RuleAndEnd))
                {
                    z = Final<V, THiding>(z, Cap.Score(z), V.Load(added));
                    added += bias.Step;
                }
                if (typeof(TStep) != typeof(RuleAlone))
                    highest = V.MaxNative(highest, z);
                z.Store(at);
                at += block;
            }
            if (typeof(TStep) != typeof(RuleAlone))
                highest.Store(maximum + lane);
        }
    }

    // The softcap, the bias and the maxima of whole rows, four vectors in lockstep: for processors with 32 vector registers.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void CapRows<V, THiding>(in TilePart part, LaneRows ruled, LaneRows bias, float* s, float* maximum) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        nint w = V.Count, block = AttentionTiles.Block<V>(), keys = part.Keys;
        float* at = s + part.FirstKey * block, from = ruled.At(part.FirstKey), added = bias.At(part.FirstKey);
        V m0 = V.Load(maximum), m1 = V.Load(maximum + w), m2 = V.Load(maximum + 2 * w), m3 = V.Load(maximum + 3 * w);
        for (nint row = 0; row < keys; row++, from += ruled.Step, at += block, added += bias.Step)
        {
            V z0 = V.Load(from), z1 = V.Load(from + w), z2 = V.Load(from + 2 * w), z3 = V.Load(from + 3 * w);
            Lockstep<Lockstep<V>> capped = Cap.Score(new Lockstep<Lockstep<V>>(new(z0, z1), new(z2, z3)));
            z0 = Final<V, THiding>(z0, capped.First.First, V.Load(added));
            z1 = Final<V, THiding>(z1, capped.First.Second, V.Load(added + w));
            z2 = Final<V, THiding>(z2, capped.Second.First, V.Load(added + 2 * w));
            z3 = Final<V, THiding>(z3, capped.Second.Second, V.Load(added + 3 * w));
            (m0, m1, m2, m3) = (V.MaxNative(m0, z0), V.MaxNative(m1, z1), V.MaxNative(m2, z2), V.MaxNative(m3, z3));
            z0.Store(at);
            z1.Store(at + w);
            z2.Store(at + 2 * w);
            z3.Store(at + 3 * w);
        }
        m0.Store(maximum);
        m1.Store(maximum + w);
        m2.Store(maximum + 2 * w);
        m3.Store(maximum + 3 * w);
    }

    // A rule hides by −∞ before a score is bounded and any bias added: neither the cap nor ∞ in a bias must bring the pair back.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Final<V, THiding>(V ruled, V capped, V bias) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        V hidden = V.From(float.NegativeInfinity), ended = V.SelectEqual(ruled, hidden, hidden, capped + bias);
        return THiding.Taken ? V.SelectEqual(bias, hidden, hidden, ended) : ended;
    }

    // The scores and maxima of what needs no end.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void RaiseMaxima<V>(in TilePart part, nint block, LaneRows ruled, float* s, float* maximum) where V : struct, ILanes<V>
    {
        for (nint lane = part.Lane<V>(); lane < part.EndVector * V.Count; lane += V.Count)
        {
            V highest = V.Load(maximum + lane);
            for (nint row = part.FirstKey; row < part.EndKey; row++)
            {
                V z = V.Load(ruled.At(row) + lane);
                z.Store(s + row * block + lane);
                highest = V.MaxNative(highest, z);
            }
            highest.Store(maximum + lane);
        }
    }

    // What scores are measured from, in place of the tile's maxima: the new maximum, or 0 where a query has seen no key yet; and the factor by which the sums so far shrink to it.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void BeginWeights<V>(float* maximum, float* tileMaximum, float* sum, float* factor) where V : struct, ILanes<V>
    {
        for (nint lane = 0; lane < AttentionTiles.Block<V>(); lane += V.Count)
        {
            V highest = V.Load(tileMaximum + lane), reference = V.SelectEqual(highest, V.From(float.NegativeInfinity), V.Zero, highest);
            V shrink = Exponential.Precise(V.MaxKeepingNaN(Exponential.Lowest, V.Load(maximum + lane) - reference));
            (V.Load(sum + lane) * shrink).Store(sum + lane);
            shrink.Store(factor + lane);
            highest.Store(maximum + lane);
            reference.Store(tileMaximum + lane);
        }
    }

    // P = e^(S − reference) in place, and its sum, which is formed on its own before it joins that of other tiles: four keys at a time of one vector of queries. Hidden pairs become a negative mark
    // if some are to be left out.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Weigh<V, THiding>(float* s, in TilePart part, float* reference, float* sum)
        where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        nint step = AttentionTiles.Block<V>(), lanes = part.Vectors * V.Count, keys = part.Keys;
        V lowest = V.From(Exponential.Lowest);
        for (nint lane = 0; lane < lanes; lane += V.Count)
        {
            V r = V.Load(reference + lane), sum0 = V.Zero, sum1 = V.Zero, sum2 = V.Zero, sum3 = V.Zero;
            float* at = s + lane;
            for (nint key = 0; key < keys; key += Product.Rows, at += Product.Rows * step)
            {
                V z0 = V.Load(at), z1 = V.Load(at + step), z2 = V.Load(at + 2 * step), z3 = V.Load(at + 3 * step);
                Exponential.Precise(V.MaxNative(lowest, z0 - r), V.MaxNative(lowest, z1 - r), V.MaxNative(lowest, z2 - r), V.MaxNative(lowest, z3 - r), out V p0, out V p1, out V p2, out V p3);
                (sum0, sum1, sum2, sum3) = (sum0 + p0, sum1 + p1, sum2 + p2, sum3 + p3);
                if (THiding.Taken)
                {
                    V none = V.From(float.NegativeInfinity), mark = V.From(-1f);
                    p0 = V.SelectEqual(z0, none, mark, p0);
                    p1 = V.SelectEqual(z1, none, mark, p1);
                    p2 = V.SelectEqual(z2, none, mark, p2);
                    p3 = V.SelectEqual(z3, none, mark, p3);
                }
                p0.Store(at);
                p1.Store(at + step);
                p2.Store(at + 2 * step);
                p3.Store(at + 3 * step);
            }
            (V.Load(sum + lane) + ((sum0 + sum1) + (sum2 + sum3))).Store(sum + lane);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void Finish<V>(in ForwardBlock at) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), dv = (nint)Shape.ValueSize;
        float* o = at.O, maximum = at.Maximum, sum = at.Sum;
        float sink = Scoring.Sink(at.Head);
        float* logSumExp = LogSumExp.IsPresent ? LogSumExp.Matrix(at.Batch, at.Head) + at.FirstQuery * LogSumExp.Row : null;
        for (nint row = 0; row < at.Queries; row++)
        {
            (float highest, double above) = sink != float.NegativeInfinity ? AddSink(sink, maximum[row], ref sum[row], o + row, dv, block)
                : sum[row] == 0 ? (float.NegativeInfinity, 0) : (maximum[row], Math.Log(sum[row]));
            if (logSumExp == null)
                continue;
            (logSumExp[row * LogSumExp.Row], float remainder) = TransformerKernels.LogSumExp.Of(highest, above);
            if (HasRemainder)
                logSumExp[row * LogSumExp.Row + LogSumExp.Column] = remainder;
        }
        for (nint lane = 0; lane < block; lane += V.Count)
        {
            V total = V.Load(sum + lane), divisor = V.SelectEqual(total, V.Zero, V.One, total); // nothing was summed of a query that sees no key
            for (nint column = 0; column < dv; column++)
                (V.Load(o + column * block + lane) / divisor).Store(o + column * block + lane);
        }
        AttentionTiles.WriteRows<V>(o, at.Q, at.Queries, dv, at.Output, Output, add: false, Shape.Batch * Shape.Heads * Shape.Queries);
    }

    // The sink joins the sum of a query's weights, which are measured from their maximum. Returns the log-sum-exp as a score and what it lies above it.
    private static (float Score, double Above) AddSink(float sink, float maximum, ref float sum, float* output, nint dv, nint block)
    {
        const double far = 80; // e^80 is a float; beside it the weights are nothing
        double above = sum == 0 ? double.PositiveInfinity : (double)sink - maximum;
        if (above > far)
        {
            float share = (float)Math.Exp(-above);
            for (nint column = 0; column < dv; column++)
                output[column * block] *= share;
            sum = 1;
            return (sink, 0);
        }
        double total = sum + Math.Exp(above);
        sum = (float)total;
        return (maximum, Math.Log(total));
    }
}
