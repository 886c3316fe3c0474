using CsCheck;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class LogProbsTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<int, string> Rows()
    {
        var rows = new TheoryData<int, string>();
        foreach (int vocabulary in (int[])[1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 65, 100, 1000, 2047, 2048, 2049, 2064, 4099, 10007])
        {
            foreach (string kind in (string[])["plain", "wide", "above 1e4", "below -1e4", "minus infinity", "peaked", "rising"])
                rows.Add(vocabulary, kind);
        }
        return rows;
    }

    // 5 rows; the third is ignored and full of NaN.
    private static (float[] Logits, long[] Targets) Example(int vocabulary, string kind, int seed = 1)
    {
        const int tokens = 5;
        float[] logits = Seeded.Normal(tokens * vocabulary, seed, kind == "wide" ? 20 : 2);
        var random = new Random(seed);
        var targets = new long[tokens];
        for (int row = 0; row < tokens; row++)
        {
            Span<float> z = logits.AsSpan(row * vocabulary, vocabulary);
            targets[row] = random.Next(vocabulary);
            for (int j = 0; j < vocabulary; j++)
            {
                z[j] = kind switch
                {
                    "above 1e4" => MathF.Round(16 * z[j]) / 16 + 10000,
                    "below -1e4" => MathF.Round(16 * z[j]) / 16 - 10000,
                    "minus infinity" => j % 3 == 1 ? float.NegativeInfinity : z[j],
                    "rising" => z[j] + 30f * j / vocabulary,
                    _ => z[j],
                };
            }
            if (kind == "peaked")
                z[row % 2 == 0 ? (int)targets[row] : random.Next(vocabulary)] = 20 + 20 * row;
        }
        targets[2] = -100;
        logits.AsSpan(2 * vocabulary, vocabulary).Fill(float.NaN);
        return (logits, targets);
    }

    [Theory]
    [MemberData(nameof(Rows))]
    public void Log_prob_log_sum_exp_and_entropy_keep_the_contract(int vocabulary, string kind)
    {
        (float[] logits, long[] targets) = Example(vocabulary, kind);
        float[] logProb = new float[5], logSumExp = new float[5], entropy = new float[5];
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 5, vocabulary), Targets = TensorView.Of(targets) },
            new() { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(logSumExp), Entropy = TensorView.Of(entropy) });
        Grid<double> z = Grid.Of(logits, 5, vocabulary);
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(z, targets);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(z, targets);
        Contract.Check(logProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
        Contract.Check(logSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
        Contract.Check(entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
    }

    [Theory]
    [MemberData(nameof(Rows))]
    public void Gradient_of_the_logits_keeps_the_contract_in_place_and_elsewhere(int vocabulary, string kind)
    {
        (float[] logits, long[] targets) = Example(vocabulary, kind);
        for (int which = 1; which < 8; which++)
        {
            float[]? ofLogProb = (which & 1) != 0 ? Seeded.Normal(5, 10) : null, ofLogSumExp = (which & 2) != 0 ? Seeded.Normal(5, 11) : null;
            float[]? ofEntropy = (which & 4) != 0 ? Seeded.Normal(5, 12) : null;
            float[] elsewhere = Gradient(logits, targets, vocabulary, ofLogProb, ofLogSumExp, ofEntropy, inPlace: false);
            float[] inPlace = Gradient(logits, targets, vocabulary, ofLogProb, ofLogSumExp, ofEntropy, inPlace: true);
            Assert.Equal(elsewhere, inPlace);
            float[] kept = Gradient(logits, targets, vocabulary, ofLogProb, ofLogSumExp, ofEntropy, inPlace: false, keepsRemainder: true);
            Assert.Equal(kept, Gradient(logits, targets, vocabulary, ofLogProb, ofLogSumExp, ofEntropy, inPlace: true, keepsRemainder: true));
            Grid<double> z = Grid.Of(logits, 5, vocabulary);
            double[]? Doubles(float[]? x) => x is null ? null : Array.ConvertAll(x, v => (double)v);
            Grid<double> oracle = LogProbsOracle.Backward<double>(z, targets, Doubles(ofLogProb), Doubles(ofLogSumExp), Doubles(ofEntropy));
            Grid<float> naive = LogProbsOracle.Backward<float>(z, targets, Doubles(ofLogProb), Doubles(ofLogSumExp), Doubles(ofEntropy));
            Contract.Check(elsewhere, oracle.Data, naive.Data, Contract.Gradient, $"gradient, upstream {which}");
            Contract.Check(kept, oracle.Data, naive.Data, Contract.Gradient, $"gradient with what rounding took, upstream {which}");
        }
    }

    [Theory]
    [MemberData(nameof(Rows))]
    public void What_rounding_took_from_the_log_sum_exp_restores_it_and_the_rest_has_the_same_bits(int vocabulary, string kind)
    {
        (float[] logits, long[] targets) = Example(vocabulary, kind);
        float[] alone = new float[5], pairs = new float[10];
        LogitsProblem problem = new() { Logits = TensorView.Of(logits, 5, vocabulary), Targets = TensorView.Of(targets) };
        LogProbs.FromLogits(Device, problem, new() { LogSumExp = TensorView.Of(alone) });
        // The columns lie apart.
        LogProbs.FromLogits(Device, problem, new() { LogSumExp = TensorView.Of(pairs, 2, 5).Permute(1, 0) });
        Assert.Equal(alone, pairs[..5]);
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(Grid.Of(logits, 5, vocabulary), targets);
        for (int row = 0; row < 5; row++)
            Assert.Equal(oracle.LogSumExp[row], (double)pairs[row] + pairs[5 + row], 4e-6);
        Assert.Equal((0f, 0f), (pairs[2], pairs[7]));
    }

    [Theory]
    [InlineData(7)]
    [InlineData(16)]
    [InlineData(300)]
    public void Targets_of_either_type_rows_with_gaps_and_outputs_with_strides_give_the_same_bits(int vocabulary)
    {
        (float[] logits, long[] targets) = Example(vocabulary, "plain");
        float[] expected = new float[5];
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 5, vocabulary), Targets = TensorView.Of(targets) }, new() { LogProb = TensorView.Of(expected) });
        float[] gradient = Gradient(logits, targets, vocabulary, expected, expected, expected, inPlace: false);

        Strided wide = new Strided([5, vocabulary], [0, 1], 3).Fill(9), wideGradient = new Strided([5, vocabulary], [0, 1], 2).Fill(8);
        float[] gaps = [.. wideGradient.Data], every = new float[15], sums = new float[15], entropies = new float[15];
        int[] narrow = Array.ConvertAll(targets, target => (int)target);
        for (int row = 0; row < 5; row++)
        {
            for (int j = 0; j < vocabulary; j++)
                wide[row, j] = logits[row * vocabulary + j];
        }
        LogitsProblem problem = new() { Logits = wide.View, Targets = TensorView.Of(narrow) };
        TensorView Third(float[] x) => TensorView.Of(x, 5, 3).Select(1, 1);
        LogProbs.FromLogits(Device, problem, new() { LogProb = Third(every), LogSumExp = Third(sums), Entropy = Third(entropies) });
        LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = Third(sums), Entropy = Third(entropies) },
            new() { LogProb = Third(every), LogSumExp = Third(every), Entropy = Third(every) }, wideGradient.View);
        for (int i = 0; i < 15; i++)
            Assert.Equal(i % 3 == 1 ? expected[i / 3] : 0f, every[i]);
        for (int row = 0; row < 5; row++)
        {
            for (int j = 0; j < vocabulary; j++)
            {
                Assert.Equal(gradient[row * vocabulary + j], wideGradient[row, j]);
                wideGradient[row, j] = float.NaN;
            }
        }
        for (int i = 0; i < gaps.Length; i++)
            Assert.True(float.IsNaN(wideGradient.Data[i]) || wideGradient.Data[i] == gaps[i], "a gap was written");
    }

    [Fact]
    public void A_row_without_any_probability_has_log_sum_exp_of_minus_infinity_and_nothing_else_that_is_a_number()
    {
        foreach (int vocabulary in (int[])[1, 16, 37, 300, 5000])
        {
            (float logProb, float logSumExp, float entropy) = Row([.. Enumerable.Repeat(float.NegativeInfinity, vocabulary)], 0);
            Assert.Equal(float.NegativeInfinity, logSumExp);
            Assert.True(float.IsNaN(logProb) && float.IsNaN(entropy));
            foreach (bool keepsRemainder in (bool[])[false, true])
                Assert.All(Gradient([.. Enumerable.Repeat(float.NegativeInfinity, vocabulary)], [0], vocabulary, [1f], [1f], null, inPlace: false, keepsRemainder), value => Assert.True(float.IsNaN(value)));
        }
    }

    [Fact]
    public void Plus_infinity_and_NaN_surface_wherever_they_stand()
    {
        foreach (int vocabulary in (int[])[16, 37, 5000])
        {
            foreach (int at in (int[])[0, 1, 15, vocabulary / 2, vocabulary - 2, vocabulary - 1])
            {
                float[] logits = Seeded.Normal(vocabulary, at + 1);
                logits[at] = float.PositiveInfinity;
                (float logProb, float logSumExp, float entropy) = Row(logits, (at + 3) % vocabulary);
                Assert.Equal((float.NegativeInfinity, float.PositiveInfinity), (logProb, logSumExp));
                Assert.True(float.IsNaN(entropy));
                Assert.True(float.IsNaN(Row(logits, at).LogProb));
                foreach (bool keepsRemainder in (bool[])[false, true])
                    Assert.All(Gradient(logits, [(at + 3) % vocabulary], vocabulary, [1f], null, null, inPlace: false, keepsRemainder), value => Assert.True(float.IsNaN(value)));

                logits[at] = float.NaN;
                (logProb, logSumExp, entropy) = Row(logits, (at + 3) % vocabulary);
                Assert.True(float.IsNaN(logProb) && float.IsNaN(logSumExp) && float.IsNaN(entropy));
                foreach (bool keepsRemainder in (bool[])[false, true])
                    Assert.All(Gradient(logits, [0], vocabulary, [1f], null, null, inPlace: false, keepsRemainder), value => Assert.True(float.IsNaN(value)));
            }
        }
    }

    [Fact]
    public void A_target_of_probability_0_has_log_prob_of_minus_infinity_and_a_finite_gradient()
    {
        float[] logits = Seeded.Normal(40, 1);
        logits[7] = logits[20] = float.NegativeInfinity;
        Assert.Equal(float.NegativeInfinity, Row(logits, 7).LogProb);
        float[] gradient = Gradient(logits, [7], 40, [1f], [1f], [1f], inPlace: false);
        Assert.All(gradient, value => Assert.True(float.IsFinite(value)));
        Assert.Equal((1f, 0f), (gradient[7], gradient[20]));
    }

    [Fact]
    public void Logits_further_apart_than_float32_reaches_give_what_rounds_from_it()
    {
        (float logProb, float logSumExp, float entropy) = Row([3e38f, -3e38f, 0, 0, 0, 0, 0], 1);
        Assert.Equal((float.NegativeInfinity, 3e38f, 0f), (logProb, logSumExp, entropy));
        Assert.Equal((0f, 3e38f, 0f), Row([3e38f, -3e38f, 0, 0, 0, 0, 0], 0));
        foreach (bool keepsRemainder in (bool[])[false, true])
        {
            Assert.Equal([-1f, 1f, 0f, 0f], Gradient([3e38f, -3e38f, 0, 0], [1], 4, [1f], null, null, inPlace: false, keepsRemainder));
            Assert.Equal([-0.5f, 0.5f], Gradient([float.MaxValue, float.MaxValue], [1], 2, [1f], null, null, inPlace: false, keepsRemainder));
        }
    }

    [Theory]
    [InlineData(1e7f)]
    [InlineData(3e10f)]
    [InlineData(1e30f)]
    public void The_gradient_of_huge_logits_keeps_the_contract(float factor)
    {
        const int vocabulary = 300;
        float[] logits = Array.ConvertAll(Seeded.Normal(5 * vocabulary, 1, 2), x => x * factor), a = Seeded.Normal(5, 2), b = Seeded.Normal(5, 3), c = Seeded.Normal(5, 4);
        long[] targets = [7, 8, 9, 10, 11];
        for (int row = 0; row < 4; row++)
            logits[row * vocabulary + 8] = logits[row * vocabulary + 200] = 12 * factor; // two largest, of which one may be the target
        double[] Wide(float[] x) => Array.ConvertAll(x, v => (double)v);
        Grid<double> z = Grid.Of(logits, 5, vocabulary);
        double[] oracle = LogProbsOracle.Backward<double>(z, targets, Wide(a), Wide(b), Wide(c)).Data;
        float[] naive = LogProbsOracle.Backward<float>(z, targets, Wide(a), Wide(b), Wide(c)).Data;
        foreach (bool keepsRemainder in (bool[])[false, true])
            Contract.Check(Gradient(logits, targets, vocabulary, a, b, c, inPlace: false, keepsRemainder), oracle, naive, Contract.Gradient, "gradient");
    }

    [Fact]
    public void An_ignored_row_gives_zeros_whatever_the_ignored_target_is()
    {
        foreach (long ignore in (long[])[-100, -1, 0, 2, 1000])
        {
            float[] logits = [float.NaN, 1, 2, 0, 1, 2], results = [7, 7], gradient = [7, 7, 7, 7, 7, 7];
            long[] targets = [ignore, 1];
            LogitsProblem problem = new() { Logits = TensorView.Of(logits, 2, 3), Targets = TensorView.Of(targets), IgnoreTarget = ignore };
            LogProbs.FromLogits(Device, problem, new() { LogProb = TensorView.Of(results) });
            Assert.Equal(0f, results[0]);
            Assert.Equal(-1.4076059f, results[1], 1e-6f);
            LogProbs.FromLogits(Device, problem, new() { LogSumExp = TensorView.Of(results) });
            LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = TensorView.Of(results) }, new() { LogProb = TensorView.Of((float[])[float.NaN, 1]) }, TensorView.Of(gradient, 2, 3));
            Assert.Equal([0f, 0f, 0f], gradient[..3]);
            Assert.Equal(-0.09003057f, gradient[3], 1e-6f);
        }
    }

    [Fact]
    public void Adding_a_number_to_all_logits_changes_log_sum_exp_by_it_and_nothing_else() =>
        Gen.Select(Gen.Int[1, 300], Gen.Int[-1000, 1000], Gen.Int[0, 1000]).Sample((vocabulary, shift, seed) =>
        {
            // Eighths, so that the sums are exact.
            float[] logits = Array.ConvertAll(Seeded.Normal(vocabulary, seed, 3), x => MathF.Round(8 * x) / 8), shifted = Array.ConvertAll(logits, x => x + shift);
            (float logProb, float logSumExp, float entropy) = Row(logits, seed % vocabulary);
            (float shiftedLogProb, float shiftedLogSumExp, float shiftedEntropy) = Row(shifted, seed % vocabulary);
            Assert.Equal((logProb, entropy), (shiftedLogProb, shiftedEntropy));
            Assert.Equal(logSumExp + shift, shiftedLogSumExp, 1e-4f);
            Assert.Equal(Gradient(logits, [seed % vocabulary], vocabulary, [1f], null, [1f], false), Gradient(shifted, [seed % vocabulary], vocabulary, [1f], null, [1f], false));
        }, iter: DeviceUnderTest.Samples(300));

    [Fact]
    public void Probabilities_add_up_to_1() => Gen.Select(Gen.Int[1, 60], Gen.Int[0, 1000]).Sample((vocabulary, seed) =>
    {
        float[] logits = Seeded.Normal(vocabulary, seed, 5), repeated = new float[vocabulary * vocabulary], logProb = new float[vocabulary];
        long[] targets = [.. Enumerable.Range(0, vocabulary).Select(i => (long)i)];
        for (int row = 0; row < vocabulary; row++)
            logits.CopyTo(repeated, row * vocabulary);
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(repeated, vocabulary, vocabulary), Targets = TensorView.Of(targets) }, new() { LogProb = TensorView.Of(logProb) });
        Assert.Equal(1, logProb.Sum(value => Math.Exp(value)), 1e-5);
    }, iter: DeviceUnderTest.Samples(200));

    [Fact]
    public void Gradient_matches_finite_differences_of_the_oracle()
    {
        (float[] logits, long[] targets) = Example(9, "plain");
        Grid<double> z = Grid.Of(logits, 5, 9);
        z.Data.AsSpan(18, 9).Fill(0.5);
        float[] a = Seeded.Normal(5, 1), b = Seeded.Normal(5, 2), c = Seeded.Normal(5, 3);
        double[] expected = FiniteDifferences.Gradient(z.Data, () =>
        {
            TokenResult<double> result = LogProbsOracle.Forward<double>(z, targets);
            return Enumerable.Range(0, 5).Sum(row => a[row] * result.LogProb[row] + b[row] * result.LogSumExp[row] + c[row] * result.Entropy[row]);
        });
        float[] gradient = Gradient(logits, targets, 9, a, b, c, inPlace: true);
        for (int i = 0; i < gradient.Length; i++)
            Assert.Equal(expected[i], gradient[i], 2e-6);
    }

#if !GPU // whose kernel finds out
    [Theory]
    [InlineData(3L)]
    [InlineData(-1L)]
    [InlineData(-101L)]
    [InlineData(long.MaxValue)]
    [InlineData((long)int.MaxValue + 2)]
    public void A_target_outside_the_vocabulary_throws_before_anything_is_written(long target)
    {
        float[] logits = Seeded.Normal(12, 1), results = [7, 7, 7, 7], gradient = Seeded.Normal(12, 2), before = [.. gradient];
        long[] targets = [0, -100, target, 1];
        ArgumentOutOfRangeException thrown = Assert.Throws<ArgumentOutOfRangeException>("problem.Targets", () => LogProbs.FromLogits(Device,
            new() { Logits = TensorView.Of(logits, 4, 3), Targets = TensorView.Of(targets) }, new() { LogProb = TensorView.Of(results) }));
        Assert.Equal(target, thrown.ActualValue);
        Assert.Contains($"problem.Targets[2] is {target}; it must lie between 0 and 2, or be -100", thrown.Message);
        Assert.Throws<ArgumentOutOfRangeException>("problem.Targets", () => LogProbs.FromLogitsBackward(Device,
            new() { Logits = TensorView.Of(logits, 4, 3), Targets = TensorView.Of(targets) }, new() { LogSumExp = TensorView.Of(results) },
            new() { LogProb = TensorView.Of(results) }, TensorView.Of(gradient, 4, 3)));
        Assert.Equal([7f, 7f, 7f, 7f], results);
        Assert.Equal(before, gradient);
    }
#endif

    [Fact]
    public void Bad_tensors_throw_naming_them()
    {
        var foreign = new ForeignDevice();
        float[] z = new float[12], out1 = new float[4], out2 = new float[4];
        long[] t = new long[4];
        Throws<ArgumentNullException>("device", () => LogProbs.FromLogits(null!, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentNullException>("problem.Logits", () => LogProbs.FromLogits(Device, new() { Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentNullException>("problem.Targets", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Logits", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Logits", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 3, 4).Permute(1, 0), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Logits", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 0), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Logits", () => LogProbs.FromLogits(Device, new() { Logits = foreign.View(4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Targets", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(new long[3]) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Targets", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(new float[4]) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("problem.Targets", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = foreign.View(ElementType.Int64, 4) }, new() { LogProb = TensorView.Of(out1) }));
        Throws<ArgumentException>("outputs", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, default));
        Throws<ArgumentException>("outputs.Entropy", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { Entropy = TensorView.Of(new float[5]) }));
        Throws<ArgumentException>("outputs.LogSumExp", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(new float[12], 4, 3) }));
        Throws<ArgumentException>("saved.LogSumExp", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(new float[4], 4, 1) }, default, TensorView.Of(new float[12], 4, 3)));
        Throws<ArgumentException>("outputs.LogProb", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of((ReadOnlySpan<float>)out1) }));
        Throws<ArgumentException>("outputs.LogProb", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1, 4), LogSumExp = TensorView.Of(out1, 4) }));
        Throws<ArgumentException>("outputs.LogProb", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(z, 4) }));
        Throws<ArgumentException>("outputs.LogProb", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1, 1).Slice(0, 0, 1).Expand(0, 4) }));
        Throws<ArgumentNullException>("saved.Entropy", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, new() { Entropy = TensorView.Of(out2) }, TensorView.Of(z, 4, 3)));
        Throws<ArgumentException>("logitsGradient", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, default, TensorView.Of(new float[24], 3, 8)));
        Throws<ArgumentException>("logitsGradient", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(new float[15].AsSpan(3), 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, default, foreign.View(4, 3)));
        Assert.StartsWith("logitsGradient holds Int32; this operation takes Float32.", Assert.Throws<ArgumentException>(() => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, default, TensorView.Of(new int[12], 4, 3))).Message);
        Throws<ArgumentException>("upstream", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, default, TensorView.Of(z, 4, 3)));
        float[] both = new float[15];
        Throws<ArgumentException>("logitsGradient", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(both.AsSpan(3), 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, default, TensorView.Of(both, 4, 3)));
        Throws<ArgumentException>("logitsGradient", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(z.AsSpan(4), 4) }, default, TensorView.Of(z, 4, 3)));
        TensorBuffer disposed = Device.Allocate(ElementType.Float32, 4);
        disposed.Dispose();
        Assert.Throws<ObjectDisposedException>(() => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = disposed }));

        static void Throws<T>(string name, Action call) where T : ArgumentException => Assert.Throws<T>(name, call);
    }

    [Theory]
    [InlineData(37)]
    [InlineData(5003)]
    public void A_row_and_its_gradient_are_bitwise_the_same_alone_and_among_others(int vocabulary)
    {
        const int rows = 7;
        float[] logits = Seeded.Normal(rows * vocabulary, 1, 3), a = Seeded.Normal(rows, 2), b = Seeded.Normal(rows, 3);
        long[] targets = [.. Enumerable.Range(0, rows).Select(row => (long)row * 31 % vocabulary)];
        float[][] all = Run(0, rows);
        for (int row = 0; row < rows; row++)
        {
            float[][] alone = Run(row, 1);
            for (int tensor = 0; tensor < all.Length; tensor++)
            {
                int each = all[tensor].Length / rows;
                Assert.Equal(all[tensor][(row * each)..((row + 1) * each)], alone[tensor]);
            }
        }

        float[][] Run(int first, int count)
        {
            TensorView Of(float[] numbers) => TensorView.Of(numbers.AsSpan(first, count));
            float[][] results = [new float[count], new float[count], new float[count], new float[count * vocabulary]];
            LogitsProblem problem = new() { Logits = TensorView.Of(logits.AsSpan(first * vocabulary, count * vocabulary), count, vocabulary), Targets = TensorView.Of(targets.AsSpan(first, count)) };
            LogProbs.FromLogits(Device, problem, new() { LogProb = TensorView.Of(results[0]), LogSumExp = TensorView.Of(results[1]), Entropy = TensorView.Of(results[2]) });
            LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = TensorView.Of(results[1]), Entropy = TensorView.Of(results[2]) }, new() { LogProb = Of(a), Entropy = Of(b) }, TensorView.Of(results[3], count, vocabulary));
            return results;
        }
    }

    [Fact]
    public void No_rows_are_no_work() =>
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(Array.Empty<float>(), 0, 5), Targets = TensorView.Of(Array.Empty<long>(), 0) }, new() { LogProb = TensorView.Of(Array.Empty<float>(), 0) });

    private static (float LogProb, float LogSumExp, float Entropy) Row(float[] logits, long target)
    {
        float[] logProb = new float[1], logSumExp = new float[1], entropy = new float[1];
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 1, logits.Length), Targets = TensorView.Of((long[])[target]) },
            new() { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(logSumExp), Entropy = TensorView.Of(entropy) });
        return (logProb[0], logSumExp[0], entropy[0]);
    }

    private static float[] Gradient(float[] logits, long[] targets, int vocabulary, float[]? ofLogProb, float[]? ofLogSumExp, float[]? ofEntropy, bool inPlace,
        bool keepsRemainder = false)
    {
        logits = [.. logits];
        float[] gradient = inPlace ? logits : new float[logits.Length], sums = new float[(keepsRemainder ? 2 : 1) * targets.Length], entropy = new float[targets.Length];
        TensorView logSumExp = keepsRemainder ? TensorView.Of(sums, targets.Length, 2) : TensorView.Of(sums);
        if (!inPlace)
            Array.Fill(gradient, float.NaN);
        LogitsProblem problem = new() { Logits = TensorView.Of(logits, targets.Length, vocabulary), Targets = TensorView.Of(targets) };
        LogProbs.FromLogits(Device, problem, new() { LogSumExp = logSumExp, Entropy = TensorView.Of(entropy) });
        LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = logSumExp, Entropy = TensorView.Of(entropy) },
            new()
            {
                LogProb = ofLogProb is null ? default : TensorView.Of(ofLogProb),
                LogSumExp = ofLogSumExp is null ? default : TensorView.Of(ofLogSumExp),
                Entropy = ofEntropy is null ? default : TensorView.Of(ofEntropy),
            }, TensorView.Of(gradient, targets.Length, vocabulary));
        return gradient;
    }
}
