using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class GeneralizedAdvantageTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

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
                    (Grid<float> expected, Grid<float> expectedReturns) = AdvantageOracle.Estimate<float>(Grid.Of(Flat(rewards), sequences, tokens),
                        Grid.Of(Flat(values), sequences, tokens), masked > 0 ? mask : null, gamma, lambda);
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
                    Assert.Equal(expected.Data, Flat(advantages));
                    Assert.Equal(expectedReturns.Data, Flat(returns));
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

    private static float[] Flat(Strided x)
    {
        var flat = new float[x.Lengths[0] * x.Lengths[1]];
        for (int i = 0; i < flat.Length; i++)
            flat[i] = x[i / x.Lengths[1], i % x.Lengths[1]];
        return flat;
    }
}
