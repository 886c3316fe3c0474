using TorchSharp;
using TransformerKernels.Benchmarks;
using TransformerKernels.Oracle;
using Xunit;
using static TorchSharp.torch;

namespace TransformerKernels.Tests;

/// <summary>These need libtorch, which a system with an older C++ library can't load, so they run where they are asked for: <c>-explicit only</c>, as <c>.ci/run gpu</c> does in a root that has one.</summary>
public class PeerTests
{
    private const int Length = 70;

    public static TheoryData<string> Contests => [.. Small.Keys];

    private static readonly Dictionary<string, Func<ComputeDevice, Contest>> Small = new()
    {
        ["attention"] = Attention(new()),
        ["attention, causal"] = Attention(new() { Causal = true }),
        ["attention, distance"] = Attention(new() { Bias = AttentionBias.Distance }),
        ["attention, buckets"] = Attention(new() { Bias = AttentionBias.Buckets }),
        ["attention, slopes"] = Attention(new() { Bias = AttentionBias.Slopes }),
        ["attention, dense"] = Attention(new() { Bias = AttentionBias.Dense }),
        ["attention, rule"] = Attention(new() { Bias = AttentionBias.Distance, Rule = AttentionRule.Bent }),
        ["attention training"] = Attention(new() { Pass = Pass.Train }),
        ["attention training, causal"] = Attention(new() { Pass = Pass.Train, Causal = true }),
        ["attention training, distance"] = Attention(new() { Pass = Pass.Train, Bias = AttentionBias.Distance }),
        ["attention training, buckets"] = Attention(new() { Pass = Pass.Train, Bias = AttentionBias.Buckets }),
        ["attention training, slopes"] = Attention(new() { Pass = Pass.Train, Bias = AttentionBias.Slopes }),
        ["attention training, dense"] = Attention(new() { Pass = Pass.Train, Bias = AttentionBias.Dense }),
        ["attention training, rule"] =
            Attention(new() { Pass = Pass.Train, Bias = AttentionBias.Distance, Rule = AttentionRule.LearnedBent, Captured = CapturedStructure.PerHeadAndDistance }),
        ["rotary"] = device => new RotaryContest(device, batch: 2, positions: 16, heads: 4, keyHeads: 2, headSize: 8),
        ["from logits"] = device => new FromLogitsContest(device, new() { Tokens = 5, Vocabulary = 300, HasEntropy = true }),
        ["from logits, backward"] = device => new FromLogitsContest(device, new() { Tokens = 5, Vocabulary = 300, Pass = Pass.Backward }),
        ["from hidden"] = device => new FromHiddenContest(device, new() { Tokens = 5, Vocabulary = 300, Width = 32 }),
        ["from hidden, training"] = device => new FromHiddenContest(device, new() { Tokens = 5, Vocabulary = 300, Width = 32, Pass = Pass.Train }),
        ["dpo"] = device => new DpoContest(device, pairs: 5000),
        ["ppo"] = device => new PpoContest(device, sequences: 30, tokens: 40),
        ["gae"] = device => new GaeContest(device, sequences: 30, tokens: 40),
    };

    [Theory(Explicit = true)]
    [MemberData(nameof(Contests))]
    public void Every_form_of_the_peer_computes_what_ours_does(string name)
    {
        Load();
        using Contest contest = Small[name](ComputeDevice.Cpu);
        using DisposeScope scope = NewDisposeScope();
        Peer[] forms = [.. contest.Peers()];
        contest.Restore();
        contest.Run();

        Assert.NotEmpty(forms);
        Assert.All(forms, form => TorchPeer.Check(form, contest.Results));
    }

    [Fact(Explicit = true)]
    public void A_peer_that_computes_something_else_is_seen()
    {
        Load();
        using Contest contest = Small["rotary"](ComputeDevice.Cpu);
        using DisposeScope scope = NewDisposeScope();
        Tensor[] inputs = [.. contest.Results.Select(TorchPeer.Copy)];
        contest.Run();
        Tensor[] results = [.. contest.Results.Select(TorchPeer.Copy)];

        TorchPeer.Check(new("a copy", () => results), contest.Results);
        TorchPeer.Check(new("a part", () => [null, results[1]]), contest.Results);
        Assert.Throws<ContractException>(() => TorchPeer.Check(new("not turned", () => inputs), contest.Results));
        results[1].view(-1)[7] += 0.01;
        Assert.Throws<ContractException>(() => TorchPeer.Check(new("one number off", () => results), contest.Results));
        results[1].view(-1)[7] = float.NaN;
        Assert.Throws<ContractException>(() => TorchPeer.Check(new("no number", () => results), contest.Results));
    }

    private static void Load() => Assert.Null(TorchPeer.Load(threads: 2));

    private static Func<ComputeDevice, Contest> Attention(AttentionSetup setup) => device => AttentionContest.Of(device, setup with { Batch = 2, Heads = 3, Length = Length, HeadSize = 8 });
}
