using TransformerKernels.Benchmarks;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class SweepTests
{
    private static readonly AttentionSetup[] Attention = Sweep.Attention(seed: 5);
    private static readonly LogProbsSetup[] LogProbs = Sweep.LogProbs(seed: 5);

    [Fact]
    public void A_seed_draws_the_same_problems_every_time()
    {
        Assert.Equal(Attention, Sweep.Attention(seed: 5));
        Assert.Equal(LogProbs, Sweep.LogProbs(seed: 5));
        Assert.NotEqual(Attention, Sweep.Attention(seed: 6));
        Assert.Equal(Sweep.Cases.Count, Sweep.Cases.Select(one => one.Name).Distinct().Count());
    }

    [Fact]
    public void Forty_problems_have_everything_that_attention_offers()
    {
        Assert.Equal(40, Attention.Length);
        Assert.Equal(Enum.GetValues<AttentionLayout>(), Attention.Select(one => one.Layout).Distinct().Order());
        Assert.Equal(Enum.GetValues<AttentionRule>(), Attention.Select(one => one.Rule).Distinct().Order());
        Assert.Equal(Enum.GetValues<QueryPlace>(), Attention.Select(one => one.QueryPlace).Distinct().Order());
        Assert.All(Enum.GetValues<CapturedStructure>(), structure => Assert.Contains(Attention, one => one.Captured == structure));
        Assert.All(Enum.GetValues<AttentionBias>(), bias => Assert.Contains(Attention, one => bias == AttentionBias.None ? one.Bias == bias : one.Bias.HasFlag(bias)));
        Assert.True(Attention.Where(one => one.Bias.HasFlag(AttentionBias.Dense)).Select(one => one.BiasAxes).Distinct().Count() >= 6);
        Assert.True(Attention.Select(one => one.MaskAxes).Distinct().Count() >= 5);
        Predicate<AttentionSetup>[] offered =
        [
            one => one.HeadSize <= 16, one => one.HeadSize > 128, one => one.ValueSize != one.HeadSize, one => one.Group > 1, one => one.Group == one.Heads,
            one => one.MoreKeys > 0, one => one.Causal, one => one.HasKeyLengths, one => one.Softcap is not null, one => one.HasSinks, one => !one.KeepsRemainder,
        ];
        Assert.All(offered, feature => Assert.Contains(Attention, feature));
    }

    [Fact]
    public void Twenty_problems_have_everything_that_log_probs_offer()
    {
        Assert.Equal(20, LogProbs.Length);
        Predicate<LogProbsSetup>[] offered =
        [
            one => one.HasBias, one => one.IsCapped, one => one.HasTemperature, one => one.Padding > 0, one => one.HasEntropy, one => one.HasMore, one => one.HasTop, one => one.KeepsRemainder,
            one => one.Width == 0, one => one.Width > 0, one => one.Storage == ElementType.Float16, one => one.Storage == ElementType.BFloat16, one => one.Storage == ElementType.Float32,
        ];
        Assert.All(offered, feature => Assert.Contains(LogProbs, feature));
    }

    [Fact]
    public void Problems_are_large_enough()
    {
        Assert.All(Sweep.Cases, one => Assert.True(one.Cost.Operations >= 1e9 || one.Cost.Bytes >= 1e8));
    }

    [Fact]
    public void A_drawn_problem_counts_the_pairs_that_are_visible()
    {
        var setup = new AttentionSetup
        {
            Batch = 6, Heads = 6, Group = 2, Length = 21, MoreKeys = 11, HeadSize = 7, OtherValueSize = 5, Causal = true, HasKeyLengths = true, QueryPlace = QueryPlace.PerSequence,
            MaskAxes = PairAxes.Batch | PairAxes.Query | PairAxes.Key,
        };
        double visible = 0;
        for (int b = 0; b < 6; b++)
        {
            for (int i = 0; i < 21; i++)
            {
                for (int j = 0; j < 32; j++)
                    visible += j <= i + setup.QueryOffset(b) && j < setup.KeyLength(b) && setup.MaskShows(b, 0, i, j) ? 6 : 0;
            }
        }

        Assert.InRange(visible, 1, 6 * 6 * 21 * 32 / 2);
        Assert.Equal(visible, setup.VisiblePairs);
        Assert.Equal(2 * visible * (7 + 5), setup.Cost.Operations);
        Assert.Equal(2 * visible * (3 * 7 + 2 * 5), (setup with { Pass = Pass.Backward }).Cost.Operations);
        // Query, output and log-sum-exp of 36 heads, keys and values of 18, a byte of the mask a sequence and pair.
        Assert.Equal(4 * (36 * 21 * (7 + 5 + 1) + 18 * 32 * (7 + 5)) + 6 * 21 * 32, setup.Cost.Bytes);
    }

    [Fact]
    public void Logits_that_pad_the_vocabulary_do_not_count()
    {
        var setup = new LogProbsSetup { Tokens = 10, Vocabulary = 1000, Padding = 24, Width = 16, Storage = ElementType.Float16 };

        Assert.Equal(2.0 * 10 * 16 * 976, setup.Cost.Operations);
        Assert.Equal(6.0 * 10 * 16 * 976, (setup with { Pass = Pass.Backward }).Cost.Operations);
        Assert.Equal(24.0 * 10 * 976, (setup with { Width = 0 }).Cost.Operations);
        Assert.Equal(10 * (976 * (2 + 4) + 8 + 2 * 4), (setup with { Width = 0, Pass = Pass.Backward }).Cost.Bytes);
    }

    public static TheoryData<int> Drawn => [.. Enumerable.Range(0, Sweep.AttentionProblems)];

    [Theory, MemberData(nameof(Drawn))]
    public void Drawn_attention_is_checked_in_a_small_copy_of_it(int problem)
    {
        AttentionSetup drawn = Attention[problem];
        var setup = drawn with { Batch = Math.Min(drawn.Batch, 2), Length = 65, MoreKeys = drawn.MoreKeys % 16, HeadSize = drawn.HeadSize % 16 + 1, OtherValueSize = drawn.OtherValueSize % 16 + 1, Pass = Pass.Train };
        using Contest contest = AttentionContest.Of(ComputeDevice.Cpu, setup);

        contest.Run();

        Assert.InRange(contest.Check(), 0, 1);
    }

    [Theory]
    [InlineData("Forward")]
    [InlineData("Backward")]
    public void Drawn_log_probs_are_checked_in_a_small_copy(string pass)
    {
        foreach (LogProbsSetup drawn in LogProbs)
        {
            using Contest contest = (drawn with { Pass = Enum.Parse<Pass>(pass), Tokens = 5, Vocabulary = 300, Padding = drawn.Padding % 100, Width = drawn.Width % 50 }).Contest(ComputeDevice.Cpu);

            contest.Run();

            Assert.InRange(contest.Check(), 0, 1);
        }
    }

    [Fact]
    public void A_contest_of_attention_sees_a_wrong_result()
    {
        var other = new AttentionSetup { Heads = 2, Length = 65, HeadSize = 4, Causal = true };
        using Contest contest = AttentionContest.Of(ComputeDevice.Cpu, other);

        // Nothing has been computed yet.
        Assert.Throws<ContractException>(() => contest.Check());
    }

    [Fact]
    public void The_verdict_names_the_lowest_share()
    {
        Result[] results = [.. new[] { 0.9, 0.3, 0.7 }.Select((share, index) => new Result
        {
            Case = $"case {index}", Shape = "", Device = "", OursMs = 1, Spread = 0, Peer = "", Limit = "peak", LimitRate = 1, FloorMs = share, Must = 0, Aim = 0, Error = 0, Rounds = 1,
        })];

        Assert.StartsWith("lowest share 0.300 (case 1), median 0.700, 1 of 3 below 0.35", Sweep.Verdict(results));
        Assert.EndsWith(": not met", Sweep.Verdict(results));
        Assert.EndsWith(": met", Sweep.Verdict([results[0], results[2]]));
    }
}
