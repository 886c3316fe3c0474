namespace TransformerKernels.Benchmarks;

/// <summary>All cases, with their targets.</summary>
internal static class Cases
{
    private const int ManyPairs = 30_000_000;
    private const int Sequences = 30_000, Tokens = 1000;

    public static IReadOnlyList<Case> All { get; } =
    [
        new("positions/rotary/in-place", "q [4, 2048, 32, 128], k [4, 2048, 8, 128]", RotaryContest.CostOf(4, 2048, 32, 8, 128), 0.80, 0.92,
            device => new RotaryContest(device, 4, 2048, 32, 8, 128)),

        Plain("attention/forward/none", 0.80, 0.87, new()),
        Plain("attention/forward/distance", 0.80, 0.87, new() { Bias = AttentionBias.Distance }),
        Plain("attention/forward/t5", 0.80, 0.87, new() { Bias = AttentionBias.Buckets }),
        Plain("attention/forward/alibi", 0.80, 0.87, new() { Bias = AttentionBias.Slopes }),
        Plain("attention/forward-d128/none", 0.82, 0.90, new() { HeadSize = 128 }),
        Plain("attention/forward-d128/distance", 0.82, 0.90, new() { HeadSize = 128, Bias = AttentionBias.Distance }),
        Plain("attention/train/none", 0.78, 0.86, new() { Train = true }),
        Plain("attention/train/distance", 0.78, 0.86, new() { Train = true, Bias = AttentionBias.Distance }),
        Plain("attention/train/t5", 0.78, 0.86, new() { Train = true, Bias = AttentionBias.Buckets }),
        Plain("attention/forward/head-40", 0.65, 0.75, new() { HeadSize = 40 }),
        Plain("attention/forward/head-80", 0.65, 0.75, new() { HeadSize = 80 }),
        Plain("attention/forward/head-96", 0.65, 0.75, new() { HeadSize = 96 }),
        Plain("attention/forward/length-1000", 0.70, 0.80, new() { Length = 1000 }),
        Plain("attention/forward/length-1023", 0.70, 0.80, new() { Length = 1023 }),
        Plain("attention/forward/length-2047", 0.70, 0.80, new() { Length = 2047 }),
        Plain("attention/forward/causal", 0.74, 0.83, new() { Causal = true }),
        Ruled("attention/forward/user-rule", 0.62, 0.75, new() { Bias = AttentionBias.Distance }, UserRules.Bent),
        Ruled("attention/train/user-rule", 0.58, 0.72, new() { Train = true, Bias = AttentionBias.Distance }, UserRules.LearnedBent, captures: true),

        Logits("logprobs/from-logits/32000", 0.78, 0.88, 1024, 32_000),
        Logits("logprobs/from-logits/151936", 0.78, 0.88, 256, 151_936),
        new("logprobs/from-logits-bfloat16/32000", "[1024, 32000]", FromLogitsContest.CostOf(1024, 32_000, backward: false, isNarrow: true), 0.65, 0.80,
            device => new FromLogitsContest(device, 1024, 32_000, backward: false, isNarrow: true)),
        Logits("logprobs/backward/32000", 0.75, 0.87, 1024, 32_000, backward: true),
        new("logprobs/backward-remainder/32000", "[1024, 32000]", FromLogitsContest.CostOf(1024, 32_000, backward: true), 0.75, 0.87,
            device => new FromLogitsContest(device, 1024, 32_000, backward: true, keepsRemainder: true)),
        Hidden("logprobs/fused-forward/32000", 0.85, 0.93, 1024, 1024, 32_000),
        Hidden("logprobs/fused-forward/128256", 0.85, 0.93, 512, 2048, 128_256),
        Hidden("logprobs/fused-train/32000", 0.78, 0.88, 1024, 1024, 32_000, train: true),
        Hidden("logprobs/fused-train/128256", 0.78, 0.88, 512, 2048, 128_256, train: true),
        Hidden("logprobs/vocabulary/32000", 0.78, 0.88, 512, 1024, 32_000, train: true),
        Hidden("logprobs/vocabulary/128256", 0.78, 0.88, 512, 1024, 128_256, train: true),
        Hidden("logprobs/vocabulary/151936", 0.78, 0.88, 512, 1024, 151_936, train: true),
        Hidden("logprobs/vocabulary/256000", 0.78, 0.88, 512, 1024, 256_000, train: true),
        Hidden("logprobs/fused-train/memory", 64, 32, 4096, 2048, 128_256, train: true) with { CountsMemory = true },

        new("alignment/dpo", "[30000000]", DpoContest.CostOf(ManyPairs), 0.70, 0.85, device => new DpoContest(device, ManyPairs)),
        new("alignment/ppo", "[30000, 1000]", PpoContest.CostOf((long)Sequences * Tokens), 0.70, 0.85, device => new PpoContest(device, Sequences, Tokens)),
        new("alignment/gae", "[30000, 1000]", GaeContest.CostOf((long)Sequences * Tokens), 0.70, 0.85, device => new GaeContest(device, Sequences, Tokens)),
    ];

    public static IReadOnlyList<MissingCases> Missing { get; } =
    [
        new(["positions/rotary/in-place-bfloat16"], "16-bit storage"),
        new(["attention/forward/dense", "attention/train/dense"], "attention in breadth: dense bias"),
        new(["alignment/grpo"], "the loss family in breadth"),
    ];

    private static Case Plain(string name, double must, double aim, AttentionSetup setup) => Ruled(name, must, aim, setup, UserRules.None);

    private static Case Ruled<TRule>(string name, double must, double aim, AttentionSetup setup, UserRule<TRule> rule, bool captures = false)
        where TRule : unmanaged, IScoreRule =>
        new(name, setup.Shape, setup.Cost, must, aim, device => new AttentionContest<TRule>(device, setup, rule, captures));

    private static Case Logits(string name, double must, double aim, int tokens, int vocabulary, bool backward = false) =>
        new(name, $"[{tokens}, {vocabulary}]", FromLogitsContest.CostOf(tokens, vocabulary, backward), must, aim,
            device => new FromLogitsContest(device, tokens, vocabulary, backward));

    private static Case Hidden(string name, double must, double aim, int tokens, int width, int vocabulary, bool train = false) =>
        new(name, $"[{tokens}, {width}] x [{vocabulary}, {width}]", Cost.HiddenLogProbs(tokens, width, vocabulary, train), must, aim,
            device => new FromHiddenContest(device, tokens, width, vocabulary, train));
}
