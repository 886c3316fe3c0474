using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <remarks>The rule on a part of a tile: its values, and what it changes by with the score and with each captured tensor.</remarks>
internal unsafe partial struct AttentionBackwardWork<TRule> where TRule : unmanaged, IScoreRule
{
    // The rule on a part's raw scores: its values in place of S; scaled scores and the rule's slopes beside them.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ApplyRule<V>(in RuleTile tile, in TilePart part, nint block) where V : struct, ILanes<V>
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

    // The same for a long rule. Where the gradient of one captured tensor is wanted, the slopes by it lie in place of the scaled scores: the rule needn't be evaluated again.
    [SkipLocalsInit]
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ApplyStrips<V>(in RuleTile tile, in TilePart part) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        bool both = WantedCaptures == 1;
        int length = Strip<V>.Length;
        float* seeds = stackalloc float[(4 + PlaceStrips<V>.Strips + Length.Strips) * length], memory = seeds + (4 + PlaceStrips<V>.Strips) * length;
        new Span<float>(seeds, 4 * length).Clear();
        new Span<float>(seeds, length).Fill(1);
        new Span<float>(seeds + 3 * length, length).Fill(1);
        Strip<V> byScore = both ? Strip<V>.At(seeds, 2) : Strip<V>.One, byCaptured = both ? Strip<V>.At(seeds + 2 * length, 2) : Strip<V>.Zero;
        PlaceStrips<V> place = default;
        place.Begin(tile, seeds + 4 * length);
        V scale = V.From(Shape.Scale);
        for (nint row = part.FirstKey; row < part.EndKey; row += Strip<V>.Rows)
        {
            float* scores = s + row * block, kept = scaled + row * block;
            for (nint at = 0; at < length; at += V.Count)
                (V.Load(scores + at) * scale).Store(kept + at);
            place.Take(tile, row);
            StripMemory.Begin(memory);
            Dual<Strip<V>> ruled = Rule.Score(new(Strip<V>.At(kept), byScore), DualPlace(place, Seed(0, byCaptured), Seed(1, byCaptured), Seed(2, byCaptured), Seed(3, byCaptured)));
            ruled.Value.CopyTo(scores);
            ruled.Derivative.CopyTo(slope + row * block);
            if (both)
                ruled.Derivative.CopyTo(kept, 1);
        }
    }

    private readonly Strip<V> Seed<V>(int capture, Strip<V> byCaptured) where V : struct, ILanes<V> => TensorGradients[capture].IsPresent ? byCaptured : Strip<V>.Zero;

    private static ScorePlace<Dual<Strip<V>>> DualPlace<V>(in PlaceStrips<V> place, Strip<V> by0, Strip<V> by1, Strip<V> by2, Strip<V> by3) where V : struct, ILanes<V> => new()
    {
        QueryPosition = new(place.QueryPosition, Strip<V>.Zero),
        KeyPosition = new(place.KeyPosition, Strip<V>.Zero),
        Head = new(place.Head, Strip<V>.Zero),
        Batch = new(place.Batch, Strip<V>.Zero),
        Captured0 = new(place.Captured0, by0),
        Captured1 = new(place.Captured1, by1),
        Captured2 = new(place.Captured2, by2),
        Captured3 = new(place.Captured3, by3),
    };

    // dS = dz · ∂rule/∂score. A hidden pair's dz is 0, its slope may be infinite.
    private readonly void MultiplyBySlopes<V>(nint tileKeys) where V : struct, ILanes<V>
    {
        for (nint at = 0; at < tileKeys * AttentionTiles.Block<V>(); at += V.Count)
        {
            V dz = V.Load(dS + at);
            V.SelectEqual(dz, V.Zero, V.Zero, dz * V.Load(slope + at)).Store(dS + at);
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

    // The same for a long rule: its slopes are there already if this is the only captured tensor whose gradient is wanted.
    [SkipLocalsInit]
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void AddCapturedStrips<V>(in RuleTile tile, in TilePart part, int capture, LaneRows gradient) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), copy = TensorGradients[capture].IsByDistance ? (nint)Plan.LineLength : 0;
        int length = Strip<V>.Length;
        float* derivative = stackalloc float[(1 + PlaceStrips<V>.Strips + Length.Strips) * length], memory = derivative + (1 + PlaceStrips<V>.Strips) * length;
        PlaceStrips<V> place = default;
        place.Begin(tile, derivative + length);
        for (nint row = part.FirstKey; row < part.EndKey; row++)
        {
            float* slopes = scaled + row * block, dz = dS + row * block;
            if (WantedCaptures > 1)
            {
                if (row % Strip<V>.Rows == 0)
                {
                    place.Take(tile, row);
                    StripMemory.Begin(memory);
                    Rule.Score(new Dual<Strip<V>>(Strip<V>.At(slopes), Strip<V>.Zero), DualPlace(place, By(0, capture), By(1, capture), By(2, capture), By(3, capture))).Derivative.CopyTo(derivative);
                }
                slopes = derivative + row % Strip<V>.Rows * block;
            }
            float* to = gradient.At(row) + (row & (AttentionBackwardPlan.LineCopies - 1)) * copy;
            for (nint lane = part.Lane<V>(); lane < part.EndVector * V.Count; lane += V.Count)
            {
                V z = V.Load(dz + lane);
                (V.Load(to + lane) + V.SelectEqual(z, V.Zero, V.Zero, z * V.Load(slopes + lane))).Store(to + lane);
            }
        }

        static Strip<V> By(int tensor, int capture) => tensor == capture ? Strip<V>.One : Strip<V>.Zero;
    }
}
