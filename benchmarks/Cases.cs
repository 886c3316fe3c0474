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

        Attended("attention/forward/none", 0.80, 0.87, new()),
        Attended("attention/forward/distance", 0.80, 0.87, new() { Bias = AttentionBias.Distance }),
        Attended("attention/forward/t5", 0.80, 0.87, new() { Bias = AttentionBias.Buckets }),
        Attended("attention/forward/alibi", 0.80, 0.87, new() { Bias = AttentionBias.Slopes }),
        Attended("attention/forward-d128/none", 0.82, 0.90, new() { HeadSize = 128 }),
        Attended("attention/forward-d128/distance", 0.82, 0.90, new() { HeadSize = 128, Bias = AttentionBias.Distance }),
        Attended("attention/train/none", 0.78, 0.86, new() { Pass = Pass.Train }),
        Attended("attention/train/distance", 0.78, 0.86, new() { Pass = Pass.Train, Bias = AttentionBias.Distance }),
        Attended("attention/train/t5", 0.78, 0.86, new() { Pass = Pass.Train, Bias = AttentionBias.Buckets }),
        Attended("attention/forward/dense", 0.72, 0.80, new() { Batch = 2, Length = 1024, Bias = AttentionBias.Dense }),
        Attended("attention/train/dense", 0.68, 0.77, new() { Pass = Pass.Train, Batch = 2, Length = 1024, Bias = AttentionBias.Dense }),
        Attended("attention/forward/head-40", 0.65, 0.75, new() { HeadSize = 40 }),
        Attended("attention/forward/head-80", 0.65, 0.75, new() { HeadSize = 80 }),
        Attended("attention/forward/head-96", 0.65, 0.75, new() { HeadSize = 96 }),
        Attended("attention/forward/length-1000", 0.70, 0.80, new() { Length = 1000 }),
        Attended("attention/forward/length-1023", 0.70, 0.80, new() { Length = 1023 }),
        Attended("attention/forward/length-2047", 0.70, 0.80, new() { Length = 2047 }),
        Attended("attention/forward/causal", 0.74, 0.83, new() { Causal = true }),
        Attended("attention/forward/user-rule", 0.62, 0.75, new() { Bias = AttentionBias.Distance, Rule = AttentionRule.Bent }),
        Attended("attention/train/user-rule", 0.58, 0.72,
            new() { Pass = Pass.Train, Bias = AttentionBias.Distance, Rule = AttentionRule.LearnedBent, Captured = CapturedStructure.PerHeadAndDistance }),

        Scored("logprobs/from-logits/32000", 0.78, 0.88, new() { HasEntropy = true }),
        Scored("logprobs/from-logits/151936", 0.78, 0.88, new() { Tokens = 256, Vocabulary = 151_936, HasEntropy = true }),
        Scored("logprobs/from-logits-bfloat16/32000", 0.65, 0.80, new() { HasEntropy = true, Storage = ElementType.BFloat16 }),
        Scored("logprobs/backward/32000", 0.75, 0.87, new() { Pass = Pass.Backward }),
        Scored("logprobs/backward-remainder/32000", 0.75, 0.87, new() { Pass = Pass.Backward, KeepsRemainder = true }),
        Scored("logprobs/fused-forward/32000", 0.85, 0.93, new() { Width = 1024, HasEntropy = true }),
        Scored("logprobs/fused-forward/128256", 0.85, 0.93, new() { Tokens = 512, Width = 2048, Vocabulary = 128_256, HasEntropy = true }),
        Scored("logprobs/fused-train/32000", 0.78, 0.88, new() { Pass = Pass.Train, Width = 1024 }),
        Scored("logprobs/fused-train/128256", 0.78, 0.88, new() { Pass = Pass.Train, Tokens = 512, Width = 2048, Vocabulary = 128_256 }),
        Scored("logprobs/vocabulary/32000", 0.78, 0.88, new() { Pass = Pass.Train, Tokens = 512, Width = 1024 }),
        Scored("logprobs/vocabulary/128256", 0.78, 0.88, new() { Pass = Pass.Train, Tokens = 512, Width = 1024, Vocabulary = 128_256 }),
        Scored("logprobs/vocabulary/151936", 0.78, 0.88, new() { Pass = Pass.Train, Tokens = 512, Width = 1024, Vocabulary = 151_936 }),
        Scored("logprobs/vocabulary/256000", 0.78, 0.88, new() { Pass = Pass.Train, Tokens = 512, Width = 1024, Vocabulary = 256_000 }),
        Scored("logprobs/fused-train/memory", 64, 32, new() { Pass = Pass.Train, Tokens = 4096, Width = 2048, Vocabulary = 128_256 }) with { CountsMemory = true },

        new("alignment/dpo", "[30000000]", DpoContest.CostOf(ManyPairs), 0.70, 0.85, device => new DpoContest(device, ManyPairs)),
        new("alignment/ppo", "[30000, 1000]", PpoContest.CostOf((long)Sequences * Tokens), 0.70, 0.85, device => new PpoContest(device, Sequences, Tokens)),
        new("alignment/gae", "[30000, 1000]", GaeContest.CostOf((long)Sequences * Tokens), 0.70, 0.85, device => new GaeContest(device, Sequences, Tokens)),
    ];

    public static IReadOnlyList<MissingCases> Missing { get; } =
    [
        new(["positions/rotary/in-place-bfloat16"], "16-bit storage"),
        new(["alignment/grpo"], "the loss family in breadth"),
    ];

    private static Case Attended(string name, double must, double aim, AttentionSetup setup) =>
        new(name, setup.Text, setup.Cost, must, aim, device => AttentionContest.Of(device, setup));

    private static Case Scored(string name, double must, double aim, LogProbsSetup setup) =>
        new(name, setup.Text, setup.Cost, must, aim, setup.Contest);
}
