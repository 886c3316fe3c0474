using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class PolicyLossTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

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
        }, new PpoClip(0.2f, 0.3f, 3f, 20f), new() { Loss = losses.View, LogProb = derivatives.View }, TensorView.Of(metrics), workspace);
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
