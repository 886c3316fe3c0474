using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class PolicyLossTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<int, int> Shapes() => new()
    {
        { 1, 1 }, { 1, 2 }, { 2, 1 }, { 3, 5 }, { 7, 3 }, { 1, 15 }, { 1, 16 }, { 1, 17 }, { 5, 31 }, { 4, 128 }, { 9, 129 }, { 2, 513 }, { 100, 7 }, { 3, 4000 }, { 1, 20001 },
    };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Losses_gradients_and_metrics_keep_the_contract_for_every_reduction_mask_and_layout(int sequences, int tokens)
    {
        foreach (TokenReduction reduction in Enum.GetValues<TokenReduction>())
        {
            foreach (bool masked in (bool[])[false, true])
            {
                foreach ((int[] order, int gap, float? divisor) in ((int[], int, float?)[])[([0, 1], 0, null), ([0, 1], 2, 12.5f), ([1, 0], 1, null)])
                    Check(sequences, tokens, reduction, masked, order, gap, divisor);
            }
        }
    }

    [Fact]
    public void New_without_arguments_has_the_documented_constants() => Assert.Equal(new PpoClip(0.2f, 0.2f, 3f, 20f), new PpoClip());

    [Theory]
    [InlineData(float.PositiveInfinity, float.PositiveInfinity)]
    [InlineData(3f, float.PositiveInfinity)]
    [InlineData(float.PositiveInfinity, 20f)]
    public void Infinite_bounds_switch_themselves_off(float dualClip, float bound)
    {
        float[] now = [0, 1, 2, -1, 30, -30, 0.1f, 0, 60], old = new float[9], advantage = [1, -1, -1, 2, 0.5f, -0.5f, -2, 0, -1], losses = new float[9], gradient = new float[9];
        using var workspace = new Workspace(Device);
        PolicyLoss.Evaluate(Device, new() { LogProb = TensorView.Of(now, 1, 9), OldLogProb = TensorView.Of(old, 1, 9), Advantage = TensorView.Of(advantage, 1, 9), Reduction = TokenReduction.TokenSum },
            new PpoClip(0.2f, 0.2f, dualClip, bound), new() { Loss = TensorView.Of(losses, 1, 9), LogProbGradient = TensorView.Of(gradient, 1, 9) }, default, workspace);
        PolicyResult<T> Say<T>() where T : System.Numerics.IFloatingPointIeee754<T> => PolicyOracle.PpoClip<T>(Grid.Of(now, 1, 9), Grid.Of(old, 1, 9), Grid.Of(advantage, 1, 9), null,
            0.2f, 0.2f, dualClip, bound, Reduction.TokenSum);
        Contract.Check(losses, Say<double>().Losses.Data, Say<float>().Losses.Data, Contract.Forward, "losses");
        Contract.Check(gradient, Say<double>().LogProb.Data, Say<float>().LogProb.Data, Contract.Gradient, "gradient");
    }

    // Reads all its inputs and counts in its own way.
    public readonly struct Weighted : ITokenLoss
    {
        public TokenTerms<T> Loss<T>(in TokenInputs<T> token) where T : struct, IReal<T>
        {
            T difference = token.LogProb - token.OldLogProb;
            return new() { Loss = 0.5f * difference * difference - token.Advantage * token.LogProb, Clipped = T.SelectLess(difference, T.Zero, T.One, T.Zero), DualClipped = T.One };
        }
    }

    [Fact]
    public void Gradient_of_a_users_loss_matches_finite_differences_for_every_reduction()
    {
        (int sequences, int tokens) = (4, 9);
        bool[] mask = Seeded.Mask(sequences * tokens, 1);
        mask.AsSpan(tokens, tokens).Clear();
        double[] now = Array.ConvertAll(Seeded.Normal(36, 2), x => (double)x), old = Array.ConvertAll(Seeded.Normal(36, 3), x => (double)x), advantage = Array.ConvertAll(Seeded.Normal(36, 4), x => (double)x);
        foreach (TokenReduction reduction in Enum.GetValues<TokenReduction>())
        {
            float[] gradient = new float[36], metrics = new float[PolicyMetrics.Count];
            using var workspace = new Workspace(Device);
            PolicyLoss.Evaluate(Device, new()
            {
                LogProb = TensorView.Of(Array.ConvertAll(now, x => (float)x), sequences, tokens),
                OldLogProb = TensorView.Of(Array.ConvertAll(old, x => (float)x), sequences, tokens),
                Advantage = TensorView.Of(Array.ConvertAll(advantage, x => (float)x), sequences, tokens),
                Mask = TensorView.Of(mask, sequences, tokens),
                Reduction = reduction,
            }, new Weighted(), new() { LogProbGradient = TensorView.Of(gradient, sequences, tokens) }, TensorView.Of(metrics), workspace);
            double[] expected = FiniteDifferences.Gradient(now, Reduced);
            for (int i = 0; i < 36; i++)
                Assert.Equal(expected[i], gradient[i], 1e-6);
            Assert.Equal(Reduced(), metrics[PolicyMetrics.Loss], 1e-5);
            Assert.Equal(1f, metrics[PolicyMetrics.DualClipFraction]);
            Assert.Equal(mask.Count(kept => kept), metrics[PolicyMetrics.Tokens]);

            double Reduced()
            {
                double total = 0;
                int all = mask.Count(kept => kept), filled = Enumerable.Range(0, sequences).Count(s => mask.AsSpan(s * tokens, tokens).Contains(true));
                for (int i = 0; i < 36; i++)
                {
                    if (!mask[i])
                        continue;
                    int length = mask.AsSpan(i / tokens * tokens, tokens).Count(true);
                    double loss = default(Weighted).Loss(new TokenInputs<Real64> { LogProb = new(now[i]), OldLogProb = new(old[i]), Advantage = new(advantage[i]) }).Loss.Value;
                    total += reduction switch
                    {
                        TokenReduction.TokenMean => loss / all,
                        TokenReduction.TokenSum => loss,
                        TokenReduction.SequenceMeanTokenSum => loss / filled,
                        _ => loss / filled / length,
                    };
                }
                return total;
            }
        }
    }

    [Fact]
    public void A_batch_cut_in_two_with_the_divisor_of_the_whole_gives_the_gradient_of_the_whole()
    {
        float[] now = Seeded.Normal(60, 1), old = Seeded.Normal(60, 2), advantage = Seeded.Normal(60, 3);
        bool[] mask = Seeded.Mask(60, 4);
        foreach ((TokenReduction reduction, float divisor) in ((TokenReduction, float)[])[(TokenReduction.TokenMean, mask.Count(kept => kept)), (TokenReduction.SequenceMeanTokenMean, 6)])
        {
            float[] whole = new float[60], parts = new float[60];
            using var workspace = new Workspace(Device);
            Evaluate(0, 6, null, whole);
            Evaluate(0, 2, divisor, parts);
            Evaluate(2, 4, divisor, parts);
            Assert.Equal(whole, parts);

            void Evaluate(int first, int count, float? divisor, float[] gradient) => PolicyLoss.Evaluate(Device, new()
            {
                LogProb = TensorView.Of(now, 6, 10).Slice(0, first, count), OldLogProb = TensorView.Of(old, 6, 10).Slice(0, first, count),
                Advantage = TensorView.Of(advantage, 6, 10).Slice(0, first, count), Mask = TensorView.Of(mask, 6, 10).Slice(0, first, count), Reduction = reduction, Divisor = divisor,
            }, new PpoClip(), new() { LogProbGradient = TensorView.Of(gradient, 6, 10).Slice(0, first, count) }, default, workspace);
        }
    }

    [Fact]
    public void No_tokens_give_loss_0_and_zeros()
    {
        float[] nan = [.. Enumerable.Repeat(float.NaN, 33)], losses = Seeded.Normal(33, 1), gradient = Seeded.Normal(33, 2);
        foreach (TokenReduction reduction in Enum.GetValues<TokenReduction>())
        {
            float[] metrics = Seeded.Normal(PolicyMetrics.Count, 3);
            using var workspace = new Workspace(Device);
            PolicyLoss.Evaluate(Device, new()
            {
                LogProb = TensorView.Of(nan, 3, 11), OldLogProb = TensorView.Of(nan, 3, 11), Advantage = TensorView.Of(nan, 3, 11), Mask = TensorView.Of(new bool[33], 3, 11), Reduction = reduction,
            }, new PpoClip(), new() { Loss = TensorView.Of(losses, 3, 11), LogProbGradient = TensorView.Of(gradient, 3, 11) }, TensorView.Of(metrics), workspace);
            Assert.Equal(new float[33], losses);
            Assert.Equal(new float[33], gradient);
            Assert.Equal(new float[PolicyMetrics.Count], metrics);
            foreach (long[] shape in (long[][])[[0, 5], [5, 0]])
            {
                Array.Fill(metrics, 7f);
                PolicyLoss.Evaluate(Device, new() { LogProb = TensorView.Of(nan, shape), OldLogProb = TensorView.Of(nan, shape), Advantage = TensorView.Of(nan, shape), Reduction = reduction },
                    new PpoClip(), default, TensorView.Of(metrics), workspace);
                Assert.Equal(new float[PolicyMetrics.Count], metrics);
            }
        }
    }

    [Fact]
    public void Any_nonzero_byte_of_a_mask_is_true_and_NaN_that_counts_surfaces()
    {
        float[] now = Seeded.Normal(40, 1);
        byte[] bytes = [.. Enumerable.Range(0, 40).Select(i => (byte)(i % 3 == 0 ? 0 : i))];
        bool[] mask = Array.ConvertAll(bytes, b => b != 0);
        now[4] = float.NaN;
        float[] losses = Evaluate(TensorView.Of(mask, 2, 20));
        Assert.Equal(losses, Evaluate(TensorView.Of(System.Runtime.InteropServices.MemoryMarshal.Cast<byte, bool>(bytes.AsSpan()), 2, 20)));
        Assert.True(float.IsNaN(losses[4]) && float.IsFinite(losses[5]));

        float[] Evaluate(TensorView kept)
        {
            float[] each = new float[40], gradient = new float[40], metrics = new float[PolicyMetrics.Count];
            using var workspace = new Workspace(Device);
            PolicyLoss.Evaluate(Device, new() { LogProb = TensorView.Of(now, 2, 20), OldLogProb = TensorView.Of(new float[40], 2, 20), Advantage = TensorView.Of(Seeded.Normal(40, 2), 2, 20), Mask = kept },
                new PpoClip(), new() { Loss = TensorView.Of(each, 2, 20), LogProbGradient = TensorView.Of(gradient, 2, 20) }, TensorView.Of(metrics), workspace);
            return [.. each, .. gradient, metrics[PolicyMetrics.Tokens]];
        }
    }

    [Fact]
    public void Bad_tensors_throw_naming_them()
    {
        var foreign = new ForeignDevice();
        float[] a = new float[6], b = new float[6], c = new float[6], d = new float[6];
        using var workspace = new Workspace(Device);
        TokenBatch Batch() => new() { LogProb = TensorView.Of(a, 2, 3), OldLogProb = TensorView.Of(b, 2, 3), Advantage = TensorView.Of(c, 2, 3) };
        Throws<ArgumentNullException>("device", () => PolicyLoss.Evaluate(null!, Batch(), new PpoClip(), default, default, workspace));
        Throws<ArgumentNullException>("workspace", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), default, default, null!));
        Throws<ArgumentNullException>("batch.LogProb", () => PolicyLoss.Evaluate(Device, Batch() with { LogProb = default }, new PpoClip(), default, default, workspace));
        Throws<ArgumentNullException>("batch.OldLogProb", () => PolicyLoss.Evaluate(Device, Batch() with { OldLogProb = default }, new PpoClip(), default, default, workspace));
        Throws<ArgumentNullException>("batch.Advantage", () => PolicyLoss.Evaluate(Device, Batch() with { Advantage = default }, new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("batch.LogProb", () => PolicyLoss.Evaluate(Device, Batch() with { LogProb = TensorView.Of(a) }, new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("batch.OldLogProb", () => PolicyLoss.Evaluate(Device, Batch() with { OldLogProb = TensorView.Of(b, 3, 2) }, new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("batch.Advantage", () => PolicyLoss.Evaluate(Device, Batch() with { Advantage = foreign.View(2, 3) }, new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("batch.Mask", () => PolicyLoss.Evaluate(Device, Batch() with { Mask = TensorView.Of(d, 2, 3) }, new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("batch.Mask", () => PolicyLoss.Evaluate(Device, Batch() with { Mask = TensorView.Of(new bool[6], 3, 2) }, new PpoClip(), default, default, workspace));
        Throws<ArgumentOutOfRangeException>("batch.Reduction", () => PolicyLoss.Evaluate(Device, Batch() with { Reduction = (TokenReduction)9 }, new PpoClip(), default, default, workspace));
        foreach (float divisor in (float[])[0, -1, float.NaN, float.PositiveInfinity])
            Throws<ArgumentOutOfRangeException>("batch.Divisor", () => PolicyLoss.Evaluate(Device, Batch() with { Divisor = divisor }, new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("outputs.Loss", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), new() { Loss = TensorView.Of(d) }, default, workspace));
        Throws<ArgumentException>("outputs.Loss", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), new() { Loss = TensorView.Of(a, 2, 3) }, default, workspace));
        Throws<ArgumentException>("outputs.Loss", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), new() { Loss = TensorView.Of(d, 2, 3), LogProbGradient = TensorView.Of(d, 2, 3) }, default, workspace));
        Throws<ArgumentException>("outputs.LogProbGradient", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), new() { LogProbGradient = TensorView.Of(d, 2, 3).Slice(1, 0, 1).Expand(1, 3) }, default, workspace));
        Throws<ArgumentException>("metrics", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), default, TensorView.Of(d), workspace));
        Throws<ArgumentException>("outputs", () => PolicyLoss.Evaluate(Device, Batch(), new PpoClip(), default, default, workspace));
        Throws<ArgumentException>("loss", () => PolicyLoss.Evaluate(Device, Batch(), default(PpoClip), new() { Loss = TensorView.Of(d, 2, 3) }, default, workspace));
        Throws<ArgumentOutOfRangeException>("lower", () => _ = new PpoClip(1.1f));
        Throws<ArgumentOutOfRangeException>("upper", () => _ = new PpoClip(0.2f, -1));
        Throws<ArgumentOutOfRangeException>("dualClip", () => _ = new PpoClip(0.2f, 0.2f, 1f));
        Throws<ArgumentOutOfRangeException>("logRatioBound", () => _ = new PpoClip(0.2f, 0.2f, 3f, 0f));

        static void Throws<T>(string name, Action call) where T : ArgumentException => Assert.Throws<T>(name, call);
    }

    private static void Check(int sequences, int tokens, TokenReduction reduction, bool masked, int[] order, int gap, float? divisor)
    {
        long[] shape = [sequences, tokens];
        Strided logProb = new Strided(shape, order, gap).Fill(1), old = logProb.Copy(), advantage = new Strided(shape, order, gap).Fill(3);
        float[] ratios = Seeded.Normal(old.Data.Length, 2, 0.4f);
        for (int i = 0; i < ratios.Length; i++)
            old.Data[i] += i % 11 == 5 ? 30 * ratios[i] : ratios[i];
        bool[] mask = Seeded.Mask((long)sequences * tokens, 4);
        for (int t = 0; t < tokens && sequences > 1; t++)
            mask[t] = false; // a sequence without tokens
        Strided losses = new Strided(shape, order, gap).Fill(7), derivatives = new Strided(shape, order, gap).Fill(8);
        var metrics = new float[PolicyMetrics.Count];
        (float[] l, float[] o, float[] a) = (Flat(logProb), Flat(old), Flat(advantage)); // before the masked ones are spoiled
        if (masked)
        {
            for (int i = 0; i < mask.Length; i++)
            {
                if (!mask[i])
                    logProb[i / tokens, i % tokens] = old[i / tokens, i % tokens] = advantage[i / tokens, i % tokens] = float.NaN;
            }
        }
        using var workspace = new Workspace(Device);
        PolicyLoss.Evaluate(Device, new()
        {
            LogProb = logProb.View,
            OldLogProb = old.View,
            Advantage = advantage.View,
            Mask = masked ? TensorView.Of(mask, sequences, tokens) : default,
            Reduction = reduction,
            Divisor = divisor,
        }, new PpoClip(0.2f, 0.3f, 3f, 20f), new() { Loss = losses.View, LogProbGradient = derivatives.View }, TensorView.Of(metrics), workspace);
        PolicyResult<T> Say<T>() where T : System.Numerics.IFloatingPointIeee754<T> => PolicyOracle.PpoClip<T>(Grid.Of(l, sequences, tokens),
            Grid.Of(o, sequences, tokens), Grid.Of(a, sequences, tokens), masked ? mask : null, 0.2f, 0.3f, 3, 20, (Reduction)reduction, divisor);
        (PolicyResult<double> oracle, PolicyResult<float> naive) = (Say<double>(), Say<float>());
        Contract.Check(Flat(losses), oracle.Losses.Data, naive.Losses.Data, Contract.Forward, "losses");
        Contract.Check(Flat(derivatives), oracle.LogProb.Data, naive.LogProb.Data, Contract.Gradient, "gradient");
        if (oracle.Tokens == 0)
            Assert.Equal(new float[PolicyMetrics.Count], metrics);
        Contract.Check(metrics, [oracle.Loss, oracle.ClipFraction, oracle.DualClipFraction, oracle.OldKl, oracle.Tokens],
            [naive.Loss, naive.ClipFraction, naive.DualClipFraction, naive.OldKl, naive.Tokens], Contract.Forward, "metrics");
    }

    private static float[] Flat(Strided x)
    {
        var flat = new float[x.Lengths[0] * x.Lengths[1]];
        for (int i = 0; i < flat.Length; i++)
            flat[i] = x[i / x.Lengths[1], i % x.Lengths[1]];
        return flat;
    }
}
