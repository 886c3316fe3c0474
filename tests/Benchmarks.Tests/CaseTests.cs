using System.Text.Json;
using TransformerKernels.Benchmarks;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class CaseTests
{
    // Every case of docs/performance.md, whether it runs yet or not.
    private static readonly string[] Promised =
    [
        "positions/rotary/in-place", "positions/rotary/in-place-bfloat16",
        "attention/forward/none", "attention/forward/distance", "attention/forward/t5", "attention/forward/alibi",
        "attention/forward-d128/none", "attention/forward-d128/distance",
        "attention/train/none", "attention/train/distance", "attention/train/t5",
        "attention/forward/dense", "attention/train/dense",
        "attention/forward/head-40", "attention/forward/head-80", "attention/forward/head-96",
        "attention/forward/length-1000", "attention/forward/length-1023", "attention/forward/length-2047",
        "attention/forward/causal", "attention/forward/user-rule", "attention/train/user-rule",
        "logprobs/from-logits/32000", "logprobs/from-logits/151936", "logprobs/from-logits-bfloat16/32000", "logprobs/backward/32000", "logprobs/backward-remainder/32000",
        "logprobs/fused-forward/32000", "logprobs/fused-forward/128256", "logprobs/fused-train/32000", "logprobs/fused-train/128256",
        "logprobs/fused-train/memory",
        "logprobs/vocabulary/32000", "logprobs/vocabulary/128256", "logprobs/vocabulary/151936", "logprobs/vocabulary/256000",
        "alignment/dpo", "alignment/ppo", "alignment/grpo", "alignment/gae",
    ];

    [Fact]
    public void Every_promised_case_runs_or_is_named_as_missing()
    {
        IEnumerable<string> known = Cases.All.Select(one => one.Name).Concat(Cases.Missing.SelectMany(group => group.Names));

        Assert.Equal(Promised.Order(), known.Order());
    }

    [Fact]
    public void Every_suite_offers_its_cases()
    {
        Suite[] suites = [new PositionsSuite(), new AttentionSuite(), new LogProbsSuite(), new AlignmentSuite()];

        Assert.Equal(Cases.All.Count, suites.Sum(suite => suite.Names.Count()));
        Assert.All(suites, suite => Assert.NotEmpty(suite.Names));
    }

    [Fact]
    public void A_contest_checks_its_own_result_and_sees_a_wrong_one()
    {
        using var contest = new RotaryContest(ComputeDevice.Cpu, batch: 2, positions: 16, heads: 4, keyHeads: 2, headSize: 8);

        contest.Run();
        Assert.InRange(contest.Check(), 0, 1);
        contest.Run(); // turned twice is wrong
        Assert.Throws<ContractException>(() => contest.Check());
    }

    [Fact]
    public void A_result_has_the_promised_fields()
    {
        var result = new Result
        {
            Case = "x", Shape = "[1]", Device = "CPU", OursMs = 4, Spread = 0.1, Peer = "none", PeerMs = 10, Limit = "peak", LimitRate = 1, FloorMs = 3,
            ExtraMb = 1, Must = 0.7, Aim = 0.8, Error = 0.5, Rounds = 15,
        };
        JsonElement json = JsonDocument.Parse(Report.Json(result)).RootElement;

        Assert.Equal(2.5, json.GetProperty("speedup").GetDouble());
        Assert.Equal(0.3, json.GetProperty("peer_share").GetDouble());
        Assert.Equal(0.75, json.GetProperty("limit_share").GetDouble());
        Assert.Equal("must", json.GetProperty("met").GetString());
        Assert.All(["case", "shape", "device", "ours_ms", "spread", "peer", "peer_ms", "limit", "extra_mb"], name => json.GetProperty(name));
    }
}
