namespace TransformerKernels.Tests;

/// <summary>Every family that is replayed.</summary>
public static class Families
{
    public static IReadOnlyList<IReplay> All { get; } =
    [
        new AttentionReplay(), new OnnxAttentionReplay(), new BiasReplay(), new AlibiReplay(), new HfMaskReplay(), new XTransformersReplay(), new HfAttentionReplay(), new HfSwinReplay(), new HfContentReplay(), new PublishedReplay(),
        new RotaryReplay(), new LogProbsReplay(), new HiddenLogProbsReplay(), new CrossEntropyReplay(), new LigerCrossEntropyReplay(), new TokenFunctionsReplay(), new FusedHeadReplay(), new SequenceReplay(),
        new VocabularyShardsReplay(), new PreferenceReplay(), new LigerPreferenceReplay(), new PolicyReplay(), new AdvantageReplay(), new WhiteningReplay(),
#if !GPU // the sample's model is the CPU's
        new ModelReplay(), new TinyLlamaReplay(),
#endif
    ];

    public static IReplay? Of(VectorCase vector) => All.FirstOrDefault(family => family.Owns(vector));
}
