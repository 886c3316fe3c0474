using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class GeneralizedAdvantageTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<int, int> Shapes() => new()
    {
        { 1, 1 }, { 1, 2 }, { 2, 1 }, { 3, 5 }, { 7, 3 }, { 1, 16 }, { 15, 17 }, { 16, 16 }, { 16, 15 }, { 17, 33 }, { 31, 8 }, { 32, 64 }, { 33, 40 }, { 100, 7 }, { 600, 9 }, { 5, 1000 },
    };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Advantages_and_returns_are_the_formula_in_float32_for_every_mask_and_layout(int sequences, int tokens)
    {
        foreach (int masked in (int[])[0, 1, 2])
        {
            foreach ((float gamma, float lambda) in ((float, float)[])[(1, 1), (0.99f, 0.95f), (0, 0.5f)])
            {
                foreach ((int[] order, int gap) in ((int[], int)[])[([0, 1], 0), ([0, 1], 3), ([1, 0], 0), ([1, 0], 1)])
                {
                    long[] shape = [sequences, tokens];
                    Strided rewards = new Strided(shape, order, gap).Fill(1), values = new Strided(shape, order, gap).Fill(2);
                    Strided advantages = new Strided(shape, order, gap).Fill(3), returns = new Strided(shape, order, gap).Fill(4);
                    bool[] mask = Seeded.Mask((long)sequences * tokens, 5, masked == 1 ? 0.7 : 0.1);
                    (Grid<double> r, Grid<double> v) = (Grid.Of(Flat(rewards), sequences, tokens), Grid.Of(Flat(values), sequences, tokens));
                    (Grid<float> expected, Grid<float> expectedReturns) = AdvantageOracle.Estimate<float>(r, v, masked > 0 ? mask : null, gamma, lambda);
                    (Grid<double> exact, Grid<double> exactReturns) = AdvantageOracle.Estimate<double>(r, v, masked > 0 ? mask : null, gamma, lambda);
                    for (int i = 0; i < mask.Length && masked > 0; i++)
                    {
                        if (!mask[i])
                            rewards[i / tokens, i % tokens] = values[i / tokens, i % tokens] = float.NaN;
                    }
                    Strided withoutReturns = advantages.Copy();
                    AdvantageProblem problem = new()
                    {
                        Rewards = rewards.View,
                        Values = values.View,
                        Mask = masked > 0 ? TensorView.Of(mask, sequences, tokens) : default,
                        Gamma = gamma,
                        Lambda = lambda,
                    };
                    GeneralizedAdvantage.Estimate(Device, problem, advantages.View, returns.View);
                    GeneralizedAdvantage.Estimate(Device, problem, withoutReturns.View);
                    if (DeviceUnderTest.RoundsAsWritten)
                    {
                        Assert.Equal(expected.Data, Flat(advantages));
                        Assert.Equal(expectedReturns.Data, Flat(returns));
                    }
                    Contract.Check(Flat(advantages), exact.Data, expected.Data, Contract.Forward, "advantages");
                    Contract.Check(Flat(returns), exactReturns.Data, expectedReturns.Data, Contract.Forward, "returns");
                    Assert.Equal(advantages.Data, withoutReturns.Data);
                }
            }
        }
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Whitened_values_keep_the_contract(int sequences, int tokens)
    {
        foreach (bool masked in (bool[])[false, true])
        {
            foreach (bool keepMean in (bool[])[false, true])
            {
                foreach ((int[] order, int gap, float mean) in ((int[], int, float)[])[([0, 1], 0, 0), ([0, 1], 3, 2), ([1, 0], 0, 1000)])
                {
                    Strided values = new Strided([sequences, tokens], order, gap).Fill(1);
                    for (int i = 0; i < values.Data.Length; i++)
                        values.Data[i] += mean;
                    bool[] mask = Seeded.Mask((long)sequences * tokens, 5);
                    if (sequences * tokens < 2 || (masked && mask.Count(kept => kept) < 2))
                        continue;
                    Grid<double> x = Grid.Of(Flat(values), sequences, tokens);
                    for (int i = 0; i < mask.Length && masked; i++)
                    {
                        if (!mask[i])
                            values[i / tokens, i % tokens] = float.NaN;
                    }
                    GeneralizedAdvantage.Whiten(Device, values.View, masked ? TensorView.Of(mask, sequences, tokens) : default, keepMean);
                    Contract.Check(Flat(values), AdvantageOracle.Whiten<double>(x, masked ? mask : null, keepMean).Data,
                        AdvantageOracle.Whiten<float>(x, masked ? mask : null, keepMean).Data, Contract.Forward, "whitened");
                }
            }
        }
    }

    [Fact]
    public void Discount_and_decay_are_1_unless_set()
    {
        Assert.Equal((1f, 1f), (default(AdvantageProblem).Gamma, new AdvantageProblem().Lambda));
        var problem = new AdvantageProblem { Gamma = 0 };
        Assert.Equal((0f, 1f), (problem.Gamma, problem.Lambda));
    }

    [Fact]
    public void Without_decay_an_advantage_is_the_rewards_to_come_less_the_value() => CsCheck.Check.Sample(CsCheck.Gen.Select(CsCheck.Gen.Int[1, 40], CsCheck.Gen.Int[1, 60], CsCheck.Gen.Int[0, 999]), (sequences, tokens, seed) =>
    {
        float[] rewards = Seeded.Normal(sequences * tokens, seed), values = Seeded.Normal(sequences * tokens, seed + 1), advantages = new float[rewards.Length], returns = new float[rewards.Length];
        GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of(rewards, sequences, tokens), Values = TensorView.Of(values, sequences, tokens) },
            TensorView.Of(advantages, sequences, tokens), TensorView.Of(returns, sequences, tokens));
        for (int s = 0; s < sequences; s++)
        {
            double toCome = 0;
            for (int t = tokens - 1; t >= 0; t--)
            {
                toCome += rewards[s * tokens + t];
                Assert.Equal(toCome, returns[s * tokens + t], 1e-4);
                Assert.Equal(toCome - values[s * tokens + t], advantages[s * tokens + t], 1e-4);
            }
        }
    }, iter: DeviceUnderTest.Samples(100));

#if !GPU // where a token's place decides about the order of the sums
    [Fact]
    public void Masked_tokens_are_stepped_over_as_if_they_were_not_there()
    {
        (int sequences, int tokens) = (5, 40);
        float[] rewards = Seeded.Normal(200, 1), values = Seeded.Normal(200, 2), advantages = new float[200], returns = new float[200];
        bool[] mask = Seeded.Mask(200, 3, 0.5);
        GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of(rewards, sequences, tokens), Values = TensorView.Of(values, sequences, tokens), Mask = TensorView.Of(mask, sequences, tokens), Gamma = 0.9f, Lambda = 0.8f },
            TensorView.Of(advantages, sequences, tokens), TensorView.Of(returns, sequences, tokens));
        for (int s = 0; s < sequences; s++)
        {
            int[] kept = [.. Enumerable.Range(s * tokens, tokens).Where(i => mask[i])];
            float[] alone = new float[kept.Length];
            GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of((float[])[.. kept.Select(i => rewards[i])], 1, kept.Length), Values = TensorView.Of((float[])[.. kept.Select(i => values[i])], 1, kept.Length), Gamma = 0.9f, Lambda = 0.8f },
                TensorView.Of(alone, 1, kept.Length));
            Assert.Equal(alone, kept.Select(i => advantages[i]));
        }
    }
#endif

    [Fact]
    public void A_sequence_does_not_depend_on_those_beside_it()
    {
        float[] rewards = Seeded.Normal(37 * 50, 1), values = Seeded.Normal(37 * 50, 2), together = new float[37 * 50], alone = new float[50];
        values[20 * 50 + 3] = float.NaN;
        GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of(rewards, 37, 50), Values = TensorView.Of(values, 37, 50), Gamma = 0.9f }, TensorView.Of(together, 37, 50));
        for (int s = 0; s < 37; s++)
        {
            GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of(rewards, 37, 50).Slice(0, s, 1), Values = TensorView.Of(values, 37, 50).Slice(0, s, 1), Gamma = 0.9f }, TensorView.Of(alone, 1, 50));
            Assert.Equal(alone, together[(s * 50)..(s * 50 + 50)]);
        }
        Assert.True(float.IsNaN(together[20 * 50]) && float.IsFinite(together[20 * 50 + 4]) && float.IsFinite(together[21 * 50]));
    }

    [Fact]
    public void Whitened_values_have_mean_0_and_variance_1_and_may_keep_their_mean()
    {
        float[] values = Seeded.Normal(20_000, 1, 3), kept = [.. values];
        for (int i = 0; i < values.Length; i++)
            values[i] = kept[i] = values[i] + 5;
        double mean = values.Average(v => (double)v);
        GeneralizedAdvantage.Whiten(Device, TensorView.Of(values, 100, 200));
        GeneralizedAdvantage.Whiten(Device, TensorView.Of(kept, 100, 200), keepMean: true);
        Assert.Equal(0, values.Average(v => (double)v), 1e-7);
        Assert.Equal(1, values.Sum(v => (double)v * v) / (values.Length - 1), 1e-6);
        Assert.Equal(mean, kept.Average(v => (double)v), 1e-6);
    }

    [Fact]
    public void Equal_values_become_0_and_NaN_that_counts_surfaces()
    {
        float[] equal = [.. Enumerable.Repeat(1234.5f, 50)];
        GeneralizedAdvantage.Whiten(Device, TensorView.Of(equal, 5, 10));
        Assert.Equal(new float[50], equal);
        float[] nan = Seeded.Normal(50, 1);
        nan[7] = float.NaN;
        GeneralizedAdvantage.Whiten(Device, TensorView.Of(nan, 5, 10));
        Assert.All(nan, value => Assert.True(float.IsNaN(value)));
    }

#if !GPU // whose kernel finds out
    [Fact]
    public void Fewer_than_two_kept_values_throw_before_anything_is_written()
    {
        float[] values = Seeded.Normal(6, 1), before = [.. values];
        bool[] one = [false, false, true, false, false, false];
        Assert.Contains("one value", Assert.Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(values, 2, 3), TensorView.Of(one, 2, 3))).Message);
        Assert.Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(values, 2, 3), TensorView.Of(new bool[6], 2, 3)));
        Assert.Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(values, 1, 1)));
        Assert.Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(values, 0, 3)));
        Assert.Equal(before, values);
    }
#endif

    [Fact]
    public void Bad_tensors_throw_naming_them()
    {
        var foreign = new ForeignDevice();
        float[] a = new float[6], b = new float[6], c = new float[6], d = new float[6];
        AdvantageProblem Problem() => new() { Rewards = TensorView.Of(a, 2, 3), Values = TensorView.Of(b, 2, 3) };
        Throws<ArgumentNullException>("device", () => GeneralizedAdvantage.Estimate(null!, Problem(), TensorView.Of(c, 2, 3)));
        Throws<ArgumentNullException>("problem.Rewards", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Rewards = default }, TensorView.Of(c, 2, 3)));
        Throws<ArgumentNullException>("problem.Values", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Values = default }, TensorView.Of(c, 2, 3)));
        Throws<ArgumentException>("problem.Values", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Values = TensorView.Of(b, 3, 2) }, TensorView.Of(c, 2, 3)));
        Throws<ArgumentException>("problem.Rewards", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Rewards = foreign.View(2, 3) }, TensorView.Of(c, 2, 3)));
        Throws<ArgumentException>("problem.Mask", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Mask = TensorView.Of(new bool[6]) }, TensorView.Of(c, 2, 3)));
        Throws<ArgumentNullException>("advantages", () => GeneralizedAdvantage.Estimate(Device, Problem(), default));
        Throws<ArgumentException>("advantages", () => GeneralizedAdvantage.Estimate(Device, Problem(), TensorView.Of(a, 2, 3)));
        Throws<ArgumentException>("advantages", () => GeneralizedAdvantage.Estimate(Device, Problem(), TensorView.Of(c, 2, 3), TensorView.Of(c, 2, 3)));
        Throws<ArgumentException>("returns", () => GeneralizedAdvantage.Estimate(Device, Problem(), TensorView.Of(c, 2, 3), TensorView.Of(d, 1, 6)));
        foreach (float factor in (float[])[-0.1f, 1.1f, float.NaN])
        {
            Throws<ArgumentOutOfRangeException>("problem.Gamma", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Gamma = factor }, TensorView.Of(c, 2, 3)));
            Throws<ArgumentOutOfRangeException>("problem.Lambda", () => GeneralizedAdvantage.Estimate(Device, Problem() with { Lambda = factor }, TensorView.Of(c, 2, 3)));
        }
        Throws<ArgumentNullException>("values", () => GeneralizedAdvantage.Whiten(Device, default));
        Throws<ArgumentException>("values", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of((ReadOnlySpan<float>)a, 2, 3)));
        Throws<ArgumentException>("values", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(a, 2, 1).Expand(1, 3)));
        Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(a, 2, 3), TensorView.Of(new bool[6], 3, 2)));
        Throws<ArgumentException>("mask", () => GeneralizedAdvantage.Whiten(Device, TensorView.Of(a, 2, 3), TensorView.Of(new int[6], 2, 3)));
        GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of(a, 0, 3), Values = TensorView.Of(b, 0, 3) }, TensorView.Of(c, 0, 3));
        GeneralizedAdvantage.Estimate(Device, new() { Rewards = TensorView.Of(a, 3, 0), Values = TensorView.Of(b, 3, 0) }, TensorView.Of(c, 3, 0));

        static void Throws<T>(string name, Action call) where T : ArgumentException => Assert.Throws<T>(name, call);
    }

    private static float[] Flat(Strided x)
    {
        var flat = new float[x.Lengths[0] * x.Lengths[1]];
        for (int i = 0; i < flat.Length; i++)
            flat[i] = x[i / x.Lengths[1], i % x.Lengths[1]];
        return flat;
    }
}
