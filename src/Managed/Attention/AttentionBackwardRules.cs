using System.Numerics;
using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <remarks>The rule on a part of a tile: its values, and what it changes by with the score and with each captured tensor.</remarks>
internal unsafe partial struct AttentionBackwardWork<TRule, TCap> where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    // Whether one evaluation gives the rule's slopes by the score and by a captured tensor: where the gradient of one is wanted. The slopes by it lie in place of the scaled scores then.
    private readonly bool HasBothSlopes => Length.HasBothSlopes;

    // Where a long rule's scaled scores lie, which it may take again.
    private readonly float* StripScores => HasBothSlopes || WantedCaptures == 0 ? s : scaled;

    // Whether something changes scores but scale and biases.
    private static bool IsRuled => typeof(TRule) != typeof(PlainScore) || TCap.Caps;

    private readonly void ApplyRule<V>(in RuleTile tile, in TilePart part, ref RowsAhead ahead, ref RowsAhead then) where V : struct, ILanes<V>
    {
        if (typeof(TRule) != typeof(PlainScore))
        {
            if (Length.IsLong)
                ApplyStrips<V>(tile, part);
            else if (HasBothSlopes && TensorGradients[0].IsPresent)
                ApplyBothWays<V, Yes>(tile, part);
            else if (HasBothSlopes)
                ApplyBothWays<V, No>(tile, part);
            else if (WantedCaptures == 0)
                ApplyLanes<V, No>(tile, part);
            else
                ApplyLanes<V, Yes>(tile, part);
        }
        for (TilePart rest = part; TCap.Caps && rest.Keys > 0;)
        {
            TilePart piece = ahead.Piece(rest);
            if (HasBothSlopes)
                ApplyCap<Lockstep<V>, Yes>(piece.OfPairs, AttentionTiles.Block<V>());
            else
                ApplyCap<Lockstep<V>, No>(piece.OfPairs, AttentionTiles.Block<V>());
            ahead.Ask(part.Vectors);
            then.Ask(part.Vectors);
            rest.FirstKey = piece.EndKey;
        }
    }

    // The softcap on what the rule says, or on q·k, in a pass of its own: one formula after the other is a shorter chain of instructions that wait for each other. The rule's slopes become those of both.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ApplyCap<V, TBoth>(in TilePart part, nint block) where V : struct, ILanes<V> where TBoth : struct, IChoice
    {
        nint keys = part.Keys, first = part.FirstKey * block, end = part.EndVector * V.Count;
        for (nint lane = part.Lane<V>(); lane < end; lane += V.Count)
        {
            float* scores = s + first + lane, slopes = slope + first + lane, byCaptured = scaled + first + lane;
            for (nint row = 0; row < keys; row++, scores += block, slopes += block, byCaptured += block)
            {
                Cap.Score(V.Load(scores), out V byRuled).Store(scores);
                (typeof(TRule) == typeof(PlainScore) ? byRuled : byRuled * V.Load(slopes)).Store(slopes);
                if (TBoth.Taken)
                    (byRuled * V.Load(byCaptured)).Store(byCaptured);
            }
        }
    }

    private readonly void ApplyLanes<V, TKeeping>(in RuleTile tile, in TilePart part) where V : struct, ILanes<V> where TKeeping : struct, IChoice
    {
        if (Length.IsShort)
            ApplyLanes<Lockstep<V>, TKeeping>(tile, part.OfPairs, AttentionTiles.Block<V>());
        else
            ApplyLanes<V, TKeeping>(tile, part, AttentionTiles.Block<V>());
    }

    // The rule on a part's raw scores: its values in place of S; its slopes, and the scaled scores where the rule is taken again, beside them.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ApplyLanes<V, TKeeping>(in RuleTile tile, in TilePart part, nint block) where V : struct, ILanes<V> where TKeeping : struct, IChoice
    {
        nint first = part.FirstKey, keys = part.Keys, end = part.EndVector * V.Count;
        V scale = V.From(Shape.Scale), head = V.From(tile.Head), sequence = V.From(batch);
        for (nint lane = part.Lane<V>(); lane < end; lane += V.Count)
        {
            V position = V.Iota(tile.FirstQuery + lane), key = V.From(tile.FirstKey + first);
            nint start = first * block + lane;
            float* scores = s + start, kept = scaled + start, slopes = slope + start;
            float* c0 = tile.Captured0.At(first) + lane, c1 = tile.Captured1.At(first) + lane, c2 = tile.Captured2.At(first) + lane, c3 = tile.Captured3.At(first) + lane;
            for (nint row = 0; row < keys; row++)
            {
                V score = V.Load(scores) * scale;
                if (TKeeping.Taken)
                    score.Store(kept);
                Dual<V> ruled = Rule.Score(new Dual<V>(score, V.One), new ScorePlace<Dual<V>>
                {
                    QueryPosition = new(position, V.Zero),
                    KeyPosition = new(key, V.Zero),
                    Head = new(head, V.Zero),
                    Batch = new(sequence, V.Zero),
                    Captured0 = new(V.Load(c0), V.Zero),
                    Captured1 = new(V.Load(c1), V.Zero),
                    Captured2 = new(V.Load(c2), V.Zero),
                    Captured3 = new(V.Load(c3), V.Zero),
                });
                ruled.Value.Store(scores);
                ruled.Derivative.Store(slopes);
                key += 1f;
                scores += block;
                kept += block;
                slopes += block;
                c0 += tile.Captured0.Step;
                c1 += tile.Captured1.Step;
                c2 += tile.Captured2.Step;
                c3 += tile.Captured3.Step;
            }
        }
    }

    // The same with both slopes, side by side in lockstep. By the first captured tensor, the slopes to begin with are numbers that the JIT knows, and what is multiplied by them isn't.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ApplyBothWays<V, TFirst>(in RuleTile tile, in TilePart part) where V : struct, ILanes<V> where TFirst : struct, IChoice
    {
        nint first = part.FirstKey, keys = part.Keys, end = part.EndVector * V.Count, block = AttentionTiles.Block<V>();
        V scale = V.From(Shape.Scale);
        Lockstep<V> head = Lockstep<V>.From(tile.Head), sequence = Lockstep<V>.From(batch), none = Lockstep<V>.Zero, byScore = new(V.One, V.Zero);
        Lockstep<V> by0 = new(V.Zero, TFirst.Taken ? V.One : V.Zero), by1 = new(V.Zero, TFirst.Taken ? V.Zero : V.From(Seed(1)));
        Lockstep<V> by2 = new(V.Zero, TFirst.Taken ? V.Zero : V.From(Seed(2))), by3 = new(V.Zero, TFirst.Taken ? V.Zero : V.From(Seed(3)));
        for (nint lane = part.Lane<V>(); lane < end; lane += V.Count)
        {
            V position = V.Iota(tile.FirstQuery + lane), key = V.From(tile.FirstKey + first);
            nint start = first * block + lane;
            float* scores = s + start, slopes = slope + start, byCaptured = scaled + start;
            float* c0 = tile.Captured0.At(first) + lane, c1 = tile.Captured1.At(first) + lane, c2 = tile.Captured2.At(first) + lane, c3 = tile.Captured3.At(first) + lane;
            for (nint row = 0; row < keys; row++)
            {
                Dual<Lockstep<V>> ruled = Rule.Score(new Dual<Lockstep<V>>(Lockstep<V>.Twice(V.Load(scores) * scale), byScore), new ScorePlace<Dual<Lockstep<V>>>
                {
                    QueryPosition = new(Lockstep<V>.Twice(position), none),
                    KeyPosition = new(Lockstep<V>.Twice(key), none),
                    Head = new(head, none),
                    Batch = new(sequence, none),
                    Captured0 = new(Lockstep<V>.Twice(V.Load(c0)), by0),
                    Captured1 = new(Lockstep<V>.Twice(V.Load(c1)), by1),
                    Captured2 = new(Lockstep<V>.Twice(V.Load(c2)), by2),
                    Captured3 = new(Lockstep<V>.Twice(V.Load(c3)), by3),
                });
                ruled.Value.First.Store(scores);
                ruled.Derivative.First.Store(slopes);
                ruled.Derivative.Second.Store(byCaptured);
                key += 1f;
                scores += block;
                slopes += block;
                byCaptured += block;
                c0 += tile.Captured0.Step;
                c1 += tile.Captured1.Step;
                c2 += tile.Captured2.Step;
                c3 += tile.Captured3.Step;
            }
        }
    }

    private readonly float Seed(int capture) => TensorGradients[capture].IsPresent ? 1 : 0;

    // The same for a long rule, on scaled scores. Where the gradient of one captured tensor is wanted, the slopes by it lie in place of the scaled scores: the rule needn't be evaluated again.
    [SkipLocalsInit]
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ApplyStrips<V>(in RuleTile tile, in TilePart part) where V : struct, ILanes<V>
    {
        TilePart pairs = part.OfPairs;
        nint block = AttentionTiles.Block<V>(), first = pairs.Lane<Lockstep<V>>(), lanes = pairs.Vectors * Lockstep<V>.Count;
        RuleDirections directions = HasBothSlopes ? RuleDirections.ByScoreAnd(BitOperations.TrailingZeroCount(WantedCaptures)) : RuleDirections.ByScore;
        nint most = Length.StripRows;
        float* space = stackalloc float[StripMemory.Aligned(Length.StripFloats)], memory = StripMemory.Align(space);
        StripMemory evaluation;
        for (nint row = part.FirstKey; row < part.EndKey; row += most)
        {
            StripMemory.Begin<V>(&evaluation, memory, Length.StripFloats, Math.Min(most, part.EndKey - row), lanes);
            nint start = row * block + first;
            Dual<Strip<V>> ruled = directions.Score(Rule, Strip<V>.Rows(StripScores + start, block), new PlaceStrips<V>(Scoring.Tensors, tile, row, first));
            ruled.Value.CopyTo(s + start, block);
            ruled.Derivative.CopyTo(slope + start, block);
            if (HasBothSlopes)
                ruled.Derivative.CopyTo(scaled + start, block, 1);
        }
    }

    // From a part's dz what it gives to captured tensors, and dS = dz · ∂rule/∂score in its place.
    private readonly void PassThroughRule<V>(in RuleTile tile, in TilePart part, nint i0, nint j0) where V : struct, ILanes<V>
    {
        for (int capture = 0; capture < CapturedSet.Count; capture++)
        {
            if (GradientTile(capture, i0, j0) is not { Start: not null } gradient)
                continue;
            if (HasBothSlopes)
            {
                if (gradient.Step == 0)
                    MultiplyByBothSlopes<V>(part, gradient);
                else
                    MultiplyByBothSlopes<V>(part, gradient, TensorGradients[capture].IsByDistance ? (nint)Plan.LineLength : 0);
                return;
            }
            if (Length.IsLong)
                AddCapturedStrips<V>(tile, part, capture, gradient);
            else
                AddCaptured<V>(tile, part, capture, gradient);
        }
        MultiplyBySlopes<V>(part);
    }

    // dz · ∂rule. A hidden pair's dz is 0, its slope may be infinite.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Multiply<V>(V dz, float* slopes) where V : struct, ILanes<V> => V.SelectEqual(dz, V.Zero, V.Zero, dz * V.Load(slopes));

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void MultiplyBySlopes<V>(in TilePart part) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), lanes = part.Vectors * V.Count;
        float* gradients = dS + part.Start<V>(), slopes = slope + part.Start<V>();
        for (nint row = 0; row < part.Keys; row++, gradients += block, slopes += block)
        {
            for (nint lane = 0; lane < lanes; lane += V.Count)
                Multiply(V.Load(gradients + lane), slopes + lane).Store(gradients + lane);
        }
    }

    // The same, and dz · ∂rule/∂captured is added to the sums of the captured tensor: to one of four lines in turn, copy floats apart, where neighbouring rows overlap.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void MultiplyByBothSlopes<V>(in TilePart part, LaneRows gradient, nint copy) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), lanes = part.Vectors * V.Count;
        float* gradients = dS + part.Start<V>(), slopes = slope + part.Start<V>(), byCaptured = scaled + part.Start<V>(), sums = gradient.At(part.FirstKey) + part.Lane<V>();
        for (nint row = 0; row < part.Keys; row++, gradients += block, slopes += block, byCaptured += block, sums += gradient.Step)
        {
            float* to = sums + (row & (AttentionBackwardPlan.LineCopies - 1)) * copy;
            for (nint lane = 0; lane < lanes; lane += V.Count)
            {
                V dz = V.Load(gradients + lane);
                Multiply(dz, slopes + lane).Store(gradients + lane);
                (V.Load(to + lane) + Multiply(dz, byCaptured + lane)).Store(to + lane);
            }
        }
    }

    // The same where all keys add to one line of sums: they stay in registers.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void MultiplyByBothSlopes<V>(in TilePart part, LaneRows gradient) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), end = part.Keys * block;
        for (nint lane = 0; lane < part.Vectors * V.Count; lane += V.Count)
        {
            nint start = part.Start<V>() + lane;
            float* gradients = dS + start, slopes = slope + start, byCaptured = scaled + start, sums = gradient.Start + part.Lane<V>() + lane;
            V sum = V.Load(sums);
            for (nint at = 0; at < end; at += block)
            {
                V dz = V.Load(gradients + at);
                Multiply(dz, slopes + at).Store(gradients + at);
                sum += Multiply(dz, byCaptured + at);
            }
            sum.Store(sums);
        }
    }

    // Adds a part's dz · ∂rule/∂captured to the sums of one captured tensor.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void AddCaptured<V>(in RuleTile tile, in TilePart part, int capture, LaneRows gradient) where V : struct, ILanes<V>
    {
        nint first = part.FirstKey, keys = part.Keys, end = part.EndVector * V.Count;
        nint block = AttentionTiles.Block<V>(), copy = TensorGradients[capture].IsByDistance ? (nint)Plan.LineLength : 0;
        V head = V.From(tile.Head), sequence = V.From(batch);
        V seed0 = V.From(capture == 0 ? 1f : 0f), seed1 = V.From(capture == 1 ? 1f : 0f), seed2 = V.From(capture == 2 ? 1f : 0f), seed3 = V.From(capture == 3 ? 1f : 0f);
        for (nint lane = part.Lane<V>(); lane < end; lane += V.Count)
        {
            V position = V.Iota(tile.FirstQuery + lane), key = V.From(tile.FirstKey + first);
            float* scores = scaled + first * block + lane, gradients = dS + first * block + lane, sums = gradient.At(first) + lane;
            float* c0 = tile.Captured0.At(first) + lane, c1 = tile.Captured1.At(first) + lane, c2 = tile.Captured2.At(first) + lane, c3 = tile.Captured3.At(first) + lane;
            for (nint row = 0; row < keys; row++)
            {
                V derivative = Rule.Score(new Dual<V>(V.Load(scores), V.Zero), new ScorePlace<Dual<V>>
                {
                    QueryPosition = new(position, V.Zero),
                    KeyPosition = new(key, V.Zero),
                    Head = new(head, V.Zero),
                    Batch = new(sequence, V.Zero),
                    Captured0 = new(V.Load(c0), seed0),
                    Captured1 = new(V.Load(c1), seed1),
                    Captured2 = new(V.Load(c2), seed2),
                    Captured3 = new(V.Load(c3), seed3),
                }).Derivative;
                V dz = V.Load(gradients);
                // One of four lines in turn where neighbouring rows overlap; the same sums again and again elsewhere.
                float* to = sums + (row & (AttentionBackwardPlan.LineCopies - 1)) * copy;
                (V.Load(to) + V.SelectEqual(dz, V.Zero, V.Zero, dz * derivative)).Store(to);
                key += 1f;
                scores += block;
                gradients += block;
                sums += gradient.Step;
                c0 += tile.Captured0.Step;
                c1 += tile.Captured1.Step;
                c2 += tile.Captured2.Step;
                c3 += tile.Captured3.Step;
            }
        }
    }

    // The same for a long rule.
    [SkipLocalsInit]
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void AddCapturedStrips<V>(in RuleTile tile, in TilePart part, int capture, LaneRows gradient) where V : struct, ILanes<V>
    {
        TilePart pairs = part.OfPairs;
        nint block = AttentionTiles.Block<V>(), first = pairs.Lane<Lockstep<V>>(), lanes = pairs.Vectors * Lockstep<V>.Count, copy = TensorGradients[capture].IsByDistance ? (nint)Plan.LineLength : 0;
        RuleDirections directions = RuleDirections.ByCaptured(capture);
        nint most = Length.StripRows;
        float* space = stackalloc float[StripMemory.Aligned((int)(most * block) + Length.StripFloats)], derivative = StripMemory.Align(space), memory = derivative + most * block;
        StripMemory evaluation;
        for (nint row = part.FirstKey; row < part.EndKey; row += most)
        {
            nint end = Math.Min(row + most, part.EndKey);
            float* slopes = derivative, dz = dS + row * block;
            StripMemory.Begin<V>(&evaluation, memory, Length.StripFloats, end - row, lanes);
            Dual<Strip<V>> ruled = directions.Score(Rule, Strip<V>.Rows(scaled + row * block + first, block), new PlaceStrips<V>(Scoring.Tensors, tile, row, first));
            ruled.Derivative.CopyTo(derivative + first, block);
            for (nint key = row; key < end; key++, slopes += block, dz += block)
            {
                float* to = gradient.At(key) + (key & (AttentionBackwardPlan.LineCopies - 1)) * copy;
                for (nint lane = part.Lane<V>(); lane < part.EndVector * V.Count; lane += V.Count)
                    (V.Load(to + lane) + Multiply(V.Load(dz + lane), slopes + lane)).Store(to + lane);
            }
        }
    }
}
