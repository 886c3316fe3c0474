using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What only a GPU's advantages and whitening can get wrong: blocks and rows that share a group, the order of sums, a mask that lies in its memory.</summary>
public class GpuGeneralizedAdvantageTests(OwnGpu gpu) : IClassFixture<OwnGpu>
{
    // A thread has 4 tokens, a block 1024; rows shorter than that share a group.
    public static TheoryData<int, int> Shapes => new()
    {
        { 1, 1023 }, { 2, 1024 }, { 3, 1025 }, { 1, 2049 }, { 2, 5000 }, { 1, 300_001 }, { 5, 512 }, { 7, 513 }, { 300, 4 }, { 1000, 3 }, { 257, 5 }, { 100_003, 2 }, { 3, 63 },
    };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Advantages_and_returns_keep_the_contract_whatever_is_masked(int sequences, int tokens)
    {
        foreach (double share in (double[])[1, 0.7, 0.002, 0])
        {
            foreach ((float gamma, float lambda) in ((float, float)[])[(1, 0.95f), (0.99f, 0.9f), (0, 1)])
            {
                float[] rewards = Seeded.Normal((long)sequences * tokens, 1), values = Seeded.Normal((long)sequences * tokens, 2);
                bool[]? mask = share == 1 ? null : Seeded.Mask((long)sequences * tokens, 3, share);
                (Grid<double> r, Grid<double> v) = (Grid.Of(rewards, sequences, tokens), Grid.Of(values, sequences, tokens));
                (Grid<double> oracle, Grid<double> oracleReturns) = AdvantageOracle.Estimate<double>(r, v, mask, gamma, lambda);
                (Grid<float> naive, Grid<float> naiveReturns) = AdvantageOracle.Estimate<float>(r, v, mask, gamma, lambda);
                for (int i = 0; i < rewards.Length && mask is not null; i++)
                {
                    if (!mask[i])
                        rewards[i] = values[i] = float.NaN;
                }
                (float[] advantages, float[] returns) = Estimate(rewards, values, mask, sequences, tokens, gamma, lambda);
                Contract.Check(advantages, oracle.Data, naive.Data, Contract.Forward, "advantages");
                Contract.Check(returns, oracleReturns.Data, naiveReturns.Data, Contract.Forward, "returns");
            }
        }
    }

    [Fact]
    public void Advantages_and_white_values_are_bitwise_the_same_every_time_in_any_batch()
    {
        const int sequences = 37, tokens = 1500;
        float[] rewards = Seeded.Normal(sequences * tokens, 1), values = Seeded.Normal(sequences * tokens, 2);
        bool[] mask = Seeded.Mask(sequences * tokens, 3);
        (float[] first, _) = Estimate(rewards, values, mask, sequences, tokens, 0.99f, 0.95f);
        float[] white = Whiten(values, mask, sequences, tokens, keepMean: false);
        for (int time = 0; time < 20; time++)
        {
            Assert.Equal(first, Estimate(rewards, values, mask, sequences, tokens, 0.99f, 0.95f).Advantages);
            Assert.Equal(white, Whiten(values, mask, sequences, tokens, keepMean: false));
        }
        const int last = (sequences - 1) * tokens;
        Assert.Equal(first[last..], Estimate(rewards[last..], values[last..], mask[last..], 1, tokens, 0.99f, 0.95f).Advantages);
    }

    [Fact]
    public void Strides_and_offsets_are_followed_and_nothing_else_is_written()
    {
        const int sequences = 5, tokens = 1030;
        float[] guard = [.. Enumerable.Repeat(42f, sequences * tokens * 3)], rewards = Seeded.Normal(sequences * tokens, 1), values = Seeded.Normal(sequences * tokens, 2);
        (float[] advantages, float[] returns) = Estimate(rewards, values, null, sequences, tokens, 0.9f, 0.9f);
        using TensorBuffer r = gpu.Device.Upload<float>(Transposed(rewards), tokens, sequences), v = gpu.Device.Upload<float>(values, sequences, tokens);
        using TensorBuffer outputs = gpu.Device.Upload<float>(guard, sequences, 3, tokens);
        long before = gpu.Device.Counts.Launches;
        GeneralizedAdvantage.Estimate(gpu.Device, new() { Rewards = r.View.Permute(1, 0), Values = v, Gamma = 0.9f, Lambda = 0.9f }, outputs.View.Select(1, 0), outputs.View.Select(1, 2));
        Assert.Equal(before + 1, gpu.Device.Counts.Launches);
        float[] written = outputs.ToArray<float>();
        for (int s = 0; s < sequences; s++)
        {
            Assert.Equal(advantages[(s * tokens)..((s + 1) * tokens)], written[(3 * s * tokens)..((3 * s + 1) * tokens)]);
            Assert.All(written[((3 * s + 1) * tokens)..((3 * s + 2) * tokens)], x => Assert.Equal(42f, x));
            Assert.Equal(returns[(s * tokens)..((s + 1) * tokens)], written[((3 * s + 2) * tokens)..((3 * s + 3) * tokens)]);
        }

        using TensorBuffer columns = gpu.Device.Upload<float>(Transposed(values), tokens, sequences), padded = gpu.Device.Upload<float>(guard, tokens, 3 * sequences);
        GeneralizedAdvantage.Whiten(gpu.Device, columns.View.Permute(1, 0));
        GeneralizedAdvantage.Whiten(gpu.Device, padded.View.Slice(1, sequences, sequences));
        Assert.Equal(Whiten(values, null, sequences, tokens, keepMean: false), Transposed(columns.ToArray<float>(), sequences));
        float[] all = padded.ToArray<float>();
        for (int i = 0; i < all.Length; i++)
            Assert.Equal(i % (3 * sequences) / sequences == 1 ? 0f : 42f, all[i]);

        static float[] Transposed(float[] x, int columns = tokens) => [.. Enumerable.Range(0, x.Length).Select(i => x[i % (x.Length / columns) * columns + i / (x.Length / columns)])];
    }

    [Theory]
    [InlineData(1, 700_001)]
    [InlineData(100_003, 7)]
    [InlineData(1000, 257)]
    public void White_values_of_more_than_all_threads_keep_the_contract(int sequences, int tokens)
    {
        foreach (float mean in (float[])[0, 300])
        {
            float[] values = Seeded.Normal((long)sequences * tokens, 1);
            for (int i = 0; i < values.Length; i++)
                values[i] += mean;
            bool[] mask = Seeded.Mask(values.Length, 2);
            Grid<double> x = Grid.Of(values, sequences, tokens);
            foreach (bool keepMean in (bool[])[false, true])
            {
                Contract.Check(Whiten(values, mask, sequences, tokens, keepMean), AdvantageOracle.Whiten<double>(x, mask, keepMean).Data,
                    AdvantageOracle.Whiten<float>(x, mask, keepMean).Data, Contract.Forward, "whitened");
            }
        }
    }

    // A group takes blocks of 1,024 tokens.
    [Theory]
    [InlineData(4096, 3000, 10)]
    [InlineData(4099, 1023, 2)]
    [InlineData(5001, 2048, 1025)]
    public void A_mask_that_leaves_groups_without_a_value_keeps_the_contract(int tokens, int first, int kept)
    {
        float[] values = [.. Seeded.Normal(tokens, 1).Select((x, i) => i < first || i >= first + kept ? float.NaN : x + 1000)];
        bool[] mask = [.. values.Select(x => !float.IsNaN(x))];
        foreach (bool keepMean in (bool[])[false, true])
        {
            Contract.Check(Whiten(values, mask, 1, tokens, keepMean), AdvantageOracle.Whiten<double>(Grid.Of(values, 1, tokens), mask, keepMean).Data,
                AdvantageOracle.Whiten<float>(Grid.Of(values, 1, tokens), mask, keepMean).Data, Contract.Forward, "whitened");
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void A_mask_that_keeps_too_few_spoils_what_it_keeps_and_the_next_synchronize_names_it(int kept)
    {
        bool[] mask = new bool[600];
        for (int i = 0; i < kept; i++)
            mask[400 + i] = true;
        using TensorBuffer values = gpu.Device.Upload<float>(Seeded.Normal(600, 1), 2, 300), keeps = gpu.Device.Upload<bool>(mask, 2, 300);
        GeneralizedAdvantage.Whiten(gpu.Device, values, keeps);
        Assert.Contains(kept == 0 ? "keeps no value" : "keeps one value", Assert.Throws<ArgumentException>("mask", gpu.Device.Synchronize).Message);
        gpu.Device.Synchronize();
        Assert.Equal(mask.Select(keep => keep ? float.NaN : 0f), values.ToArray<float>());
    }

    [Fact]
    public void Fewer_than_two_values_throw_at_once()
    {
        long before = gpu.Device.Counts.Launches;
        using TensorBuffer one = gpu.Device.Allocate(ElementType.Float32, 1, 1), none = gpu.Device.Allocate(ElementType.Float32, 0, 3);
        Assert.Contains("one value", Assert.Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(gpu.Device, one)).Message);
        Assert.Contains("no value", Assert.Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(gpu.Device, none)).Message);
        Assert.Equal(before, gpu.Device.Counts.Launches);
    }

    [Fact]
    public void Whitening_from_several_threads_keeps_the_sums_apart()
    {
        float[][] inputs = [.. Enumerable.Range(0, 6).Select(i => Seeded.Normal(40_000 + i, i, 1 + i))];
        float[][] expected = [.. inputs.Select(x => Whiten(x, null, 1, x.Length, keepMean: true))];
        Parallel.For(0, 3 * inputs.Length, call =>
        {
            int which = call % inputs.Length;
            Assert.Equal(expected[which], Whiten(inputs[which], null, 1, inputs[which].Length, keepMean: true));
        });
    }

    private (float[] Advantages, float[] Returns) Estimate(float[] rewards, float[] values, bool[]? mask, int sequences, int tokens, float gamma, float lambda)
    {
        using TensorBuffer r = gpu.Device.Upload<float>(rewards, sequences, tokens), v = gpu.Device.Upload<float>(values, sequences, tokens);
        using TensorBuffer keeps = gpu.Device.Upload<bool>(mask ?? new bool[rewards.Length], sequences, tokens);
        using TensorBuffer advantages = gpu.Device.Upload<float>(values, sequences, tokens), returns = gpu.Device.Upload<float>(values, sequences, tokens);
        GeneralizedAdvantage.Estimate(gpu.Device, new() { Rewards = r, Values = v, Mask = mask is null ? default : keeps.View, Gamma = gamma, Lambda = lambda }, advantages, returns);
        return (advantages.ToArray<float>(), returns.ToArray<float>());
    }

    private float[] Whiten(float[] values, bool[]? mask, int sequences, int tokens, bool keepMean)
    {
        using TensorBuffer white = gpu.Device.Upload<float>(values, sequences, tokens), keeps = gpu.Device.Upload<bool>(mask ?? new bool[values.Length], sequences, tokens);
        GeneralizedAdvantage.Whiten(gpu.Device, white, mask is null ? default : keeps.View, keepMean);
        return white.ToArray<float>();
    }
}
