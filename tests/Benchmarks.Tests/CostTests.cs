using TransformerKernels.Benchmarks;
using Xunit;

namespace TransformerKernels.Tests;

public class CostTests
{
    private const double Queries = 2048, Heads = 8, HeadSize = 64;

    [Fact]
    public void Attention_counts_4Pd_forward_and_14Pd_for_training()
    {
        double pairs = Heads * Queries * Queries;

        Assert.Equal(4 * pairs * HeadSize, new AttentionSetup().Cost.Operations);
        Assert.Equal(14 * pairs * HeadSize, new AttentionSetup { Pass = Pass.Train, Bias = AttentionBias.Distance }.Cost.Operations);
    }

    [Fact]
    public void A_value_size_of_its_own_counts_by_itself()
    {
        Cost cost = Cost.Attention(visiblePairs: 100, headSize: 7, valueSize: 5, Pass.Train, bytes: 0);

        Assert.Equal(2 * 100 * (7 + 5) + 2 * 100 * (3 * 7 + 2 * 5), cost.Operations);
    }

    [Fact]
    public void Causal_attention_counts_visible_pairs()
    {
        Assert.Equal(1 + 2 + 3 + 4, new AttentionSetup { Heads = 1, Length = 4, Causal = true }.VisiblePairs);
        Assert.Equal(4 * Heads * Queries * (Queries + 1) / 2 * HeadSize, new AttentionSetup { Causal = true }.Cost.Operations);
    }

    [Fact]
    public void Logits_are_read_once_forward_and_twice_in_place()
    {
        Cost forward = new LogProbsSetup { Tokens = 10, Vocabulary = 1000, HasEntropy = true }.Cost, backward = new LogProbsSetup { Tokens = 10, Vocabulary = 1000, Pass = Pass.Backward }.Cost;

        Assert.Equal(24 * 10 * 1000, forward.Operations);
        Assert.Equal(4 * 10 * 1000 + 10 * (8 + 3 * 4), forward.Bytes);
        Assert.Equal(2 * 4 * 10 * 1000 + 10 * (8 + 2 * 4), backward.Bytes);
    }

    [Fact]
    public void Rotary_counts_its_data_twice_and_its_table_once()
    {
        Cost cost = RotaryContest.CostOf(batch: 4, positions: 2048, heads: 32, keyHeads: 8, headSize: 128);

        Assert.Equal(4.0 * (2 * 4 * 2048 * 40 * 128 + 2048 * 128), cost.Bytes);
    }

    [Fact]
    public void Losses_count_the_arrays_that_they_read_and_write()
    {
        Assert.Equal(7 * 4 * 100, DpoContest.CostOf(100).Bytes);
        Assert.Equal((5 * 4 + 1) * 100, PpoContest.CostOf(100).Bytes);
        Assert.Equal((4 * 4 + 1) * 100, GaeContest.CostOf(100).Bytes);
    }

    [Fact]
    public void The_floor_is_the_larger_of_arithmetic_and_memory()
    {
        var cost = new Cost(Operations: 600, Bytes: 100, Traffic.Read);
        Rates slowArithmetic = new(Peak: 100, Bandwidth: 50), slowMemory = new(Peak: 1000, Bandwidth: 50);

        Assert.Equal(6, cost.Floor(slowArithmetic));
        Assert.Equal("peak", cost.LimitName(slowArithmetic));
        Assert.Equal(2, cost.Floor(slowMemory));
        Assert.Equal("read", cost.LimitName(slowMemory));
    }

    [Fact]
    public void Median_and_spread_come_from_the_quartiles()
    {
        var samples = new Samples();
        foreach (double value in new[] { 9.0, 1, 4, 2, 100 })
            samples.Add(value);

        Assert.Equal(4, samples.Median);
        Assert.Equal((9.0 - 2) / 4, samples.Spread);
    }
}
