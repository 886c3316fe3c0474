namespace TransformerKernels.Benchmarks;

/// <summary>Draws attention problems from everything that is offered. What a deck holds comes up in every run that is as long as the deck.</summary>
internal sealed class AttentionDraw(Random random)
{
    // Where any head size is as good as another: -1; the small ones, which fill no vector of sums: -2.
    private const int AnySize = -1, SmallSize = -2, LargestSize = 256, LargestSmall = 16;

    private const int ShortestLength = 256, LongestLength = 1536, ShortestPart = 128;

    private const float BoundThatBends = 5;

    private readonly Deck<int> sizes = new(random, [32, 40, 64, 64, 80, 96, 128, 128, 192, 256, .. Enumerable.Repeat(AnySize, 9), SmallSize]);
    private readonly Deck<bool> otherValueSizes = new(random, [true, false, false, false]);
    private readonly Deck<(int Heads, int Group)> heads = new(random, [(4, 1), (8, 1), (12, 1), (8, 2), (12, 4), (8, 8)]);
    private readonly Deck<AttentionLayout> layouts = new(random, Enum.GetValues<AttentionLayout>());
    private readonly Deck<AttentionBias> biases = new(random,
    [
        AttentionBias.None, AttentionBias.None, AttentionBias.Slopes, AttentionBias.Distance, AttentionBias.Buckets, AttentionBias.Dense, AttentionBias.Dense,
        AttentionBias.Row, AttentionBias.Column, AttentionBias.Row | AttentionBias.Column, AttentionBias.Slopes | AttentionBias.Dense,
    ]);
    private readonly Deck<PairAxes> biasAxes = new(random,
    [
        PairAxes.All, PairAxes.Head | PairAxes.Query | PairAxes.Key, PairAxes.Batch | PairAxes.Query | PairAxes.Key, PairAxes.Query | PairAxes.Key,
        PairAxes.Batch | PairAxes.Head | PairAxes.Key, PairAxes.Batch | PairAxes.Head | PairAxes.Query,
    ]);
    private readonly Deck<PairAxes> masks = new(random,
    [
        PairAxes.None, PairAxes.None, PairAxes.None, PairAxes.None, PairAxes.None, PairAxes.All, PairAxes.Query | PairAxes.Key, PairAxes.Batch | PairAxes.Query | PairAxes.Key, PairAxes.Batch | PairAxes.Key,
    ]);
    private readonly Deck<bool> keyLengths = new(random, [true, false, false, false]);
    private readonly Deck<bool> causal = new(random, [true, false]);
    private readonly Deck<bool> fewerQueries = new(random, [true, false, false]);
    private readonly Deck<QueryPlace> places = new(random, [QueryPlace.BottomRight, QueryPlace.BottomRight, QueryPlace.BottomRight, QueryPlace.Quarter, QueryPlace.PerSequence]);
    private readonly Deck<float?> softcaps = new(random, [BoundThatBends, null, null, null]);
    private readonly Deck<bool> sinks = new(random, [true, false, false, false]);
    private readonly Deck<AttentionRule> rules = new(random,
    [
        AttentionRule.None, AttentionRule.None, AttentionRule.None, AttentionRule.Bent, AttentionRule.Cooling, AttentionRule.LearnedBent, AttentionRule.LearnedBent, AttentionRule.Long,
    ]);
    private readonly Deck<CapturedStructure> structures = new(random, Enum.GetValues<CapturedStructure>());
    private readonly Deck<bool> remainders = new(random, [true, true, false]);

    /// <summary>The next problem, as its forward pass.</summary>
    public AttentionSetup Next()
    {
        (int heads, int group) = this.heads.Next();
        AttentionLayout layout = layouts.Next();
        bool isPacked = layout == AttentionLayout.Packed;
        int keys = random.Next(ShortestLength, LongestLength + 1), length = fewerQueries.Next() && !isPacked ? random.Next(ShortestPart, keys) : keys;
        int? valueSize = otherValueSizes.Next() && !isPacked ? random.Next(1, LargestSize + 1) : null;
        AttentionRule rule = rules.Next();
        var setup = new AttentionSetup
        {
            Heads = heads, Group = group, Length = length, MoreKeys = keys - length, HeadSize = Size(), OtherValueSize = valueSize, Layout = layout,
            Bias = biases.Next(), MaskAxes = masks.Next(), HasKeyLengths = keyLengths.Next(), Causal = causal.Next(), QueryPlace = places.Next(), Softcap = softcaps.Next(), HasSinks = sinks.Next(),
            Rule = rule, Captured = rule is AttentionRule.LearnedBent or AttentionRule.Long ? structures.Next() : null, KeepsRemainder = remainders.Next(),
        };
        if (setup.Bias.HasFlag(AttentionBias.Dense))
            setup = setup with { BiasAxes = biasAxes.Next() };
        while (!Sweep.IsLargeEnough(setup.Cost))
            setup = setup with { Batch = setup.Batch + 1 };
        return setup;
    }

    private int Size() => sizes.Next() switch { AnySize => random.Next(1, LargestSize + 1), SmallSize => random.Next(1, LargestSmall + 1), int size => size };
}
