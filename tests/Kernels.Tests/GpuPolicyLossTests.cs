using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What only a GPU's policy losses can get wrong: how the tokens are dealt out and counted, what is touched, the order of sums.</summary>
public class GpuPolicyLossTests(OwnGpu gpu) : IClassFixture<OwnGpu>
{
    // A group has 256 threads, 1024 groups the most; sequences shorter than a group share one when they are counted.
    public static TheoryData<int, int> Shapes => new() { { 1, 700_001 }, { 3, 200_003 }, { 1027, 257 }, { 300_007, 1 }, { 100_003, 3 }, { 2049, 128 }, { 5, 100_000 } };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void More_tokens_than_threads_keep_the_contract_for_every_reduction(int sequences, int tokens)
    {
        var batch = new Batch(sequences, tokens);
        foreach (TokenReduction reduction in Enum.GetValues<TokenReduction>())
        {
            foreach (bool masked in (bool[])[true, false])
            {
                (float[] losses, float[] gradient, float[] metrics) = Run(batch, reduction, masked);
                (PolicyResult<double> oracle, PolicyResult<float> naive) = (batch.Oracle<double>(reduction, masked), batch.Oracle<float>(reduction, masked));
                Contract.Check(losses, oracle.Losses.Data, naive.Losses.Data, Contract.Forward, "losses");
                Contract.Check(gradient, oracle.LogProb.Data, naive.LogProb.Data, Contract.Gradient, "gradient");
                Contract.Check([metrics[PolicyMetrics.Loss]], [oracle.Loss], [naive.Loss], Contract.Forward, "loss", magnitude: oracle.LossMagnitude);
                Contract.Check(metrics[1..^1], [oracle.ClipFraction, oracle.DualClipFraction, oracle.OldKl], [naive.ClipFraction, naive.DualClipFraction, naive.OldKl], Contract.Forward, "metrics");
                Assert.Equal(oracle.Tokens, metrics[PolicyMetrics.Tokens]);
            }
        }
    }

    [Fact]
    public void Results_are_bitwise_the_same_every_time()
    {
        var batch = new Batch(301, 173);
        foreach (TokenReduction reduction in Enum.GetValues<TokenReduction>())
        {
            (float[] losses, float[] gradient, float[] metrics) = Run(batch, reduction, masked: true);
            for (int time = 0; time < 20; time++)
            {
                (float[] lossesAgain, float[] gradientAgain, float[] metricsAgain) = Run(batch, reduction, masked: true);
                Assert.Equal(losses, lossesAgain);
                Assert.Equal(gradient, gradientAgain);
                Assert.Equal(metrics, metricsAgain);
            }
        }
    }

    [Fact]
    public void A_mask_costs_two_launches_to_count_and_metrics_one()
    {
        Assert.Equal(1, Launches(masked: false, metrics: false));
        Assert.Equal(2, Launches(masked: false, metrics: true));
        Assert.Equal(3, Launches(masked: true, metrics: false));
        Assert.Equal(4, Launches(masked: true, metrics: true));

        long Launches(bool masked, bool metrics)
        {
            using TensorBuffer x = gpu.Device.Allocate(ElementType.Float32, 4, 5), mask = gpu.Device.Allocate(ElementType.Bool, 4, 5), losses = gpu.Device.Allocate(ElementType.Float32, 4, 5);
            using TensorBuffer sums = gpu.Device.Allocate(ElementType.Float32, PolicyMetrics.Count);
            using var workspace = new Workspace(gpu.Device);
            long before = gpu.Device.Counts.Launches;
            PolicyLoss.Evaluate(gpu.Device, new() { LogProb = x, OldLogProb = x, Advantage = x, Mask = masked ? mask.View : default }, new PpoClip(), new() { Loss = losses },
                metrics ? sums.View : default, workspace);
            long queued = gpu.Device.Counts.Launches - before;
            gpu.Device.Synchronize();
            return queued;
        }
    }

    [Fact]
    public void Strides_and_offsets_are_followed_and_nothing_else_is_written()
    {
        const int sequences = 7, tokens = 300;
        var batch = new Batch(sequences, tokens);
        // Inputs side by side in one buffer, token-major; outputs in the columns of another; the mask's rows lie apart.
        float[] packed = new float[tokens * sequences * 2], guard = [.. Enumerable.Repeat(42f, sequences * tokens * 3)];
        bool[] mask = new bool[sequences * (tokens + 9)];
        for (int s = 0; s < sequences; s++)
        {
            for (int t = 0; t < tokens; t++)
            {
                packed[(t * sequences + s) * 2] = batch.LogProb[s * tokens + t];
                packed[(t * sequences + s) * 2 + 1] = batch.OldLogProb[s * tokens + t];
                mask[s * (tokens + 9) + 4 + t] = batch.Mask[s * tokens + t];
            }
        }
        using TensorBuffer inputs = gpu.Device.Upload<float>(packed, tokens, sequences, 2), advantage = gpu.Device.Upload<float>(batch.Advantage, sequences, tokens);
        using TensorBuffer kept = gpu.Device.Upload<bool>(mask, sequences, tokens + 9), outputs = gpu.Device.Upload<float>(guard, sequences, tokens, 3);
        using var workspace = new Workspace(gpu.Device);
        PolicyLoss.Evaluate(gpu.Device, new()
        {
            LogProb = inputs.View.Permute(1, 0, 2).Select(2, 0),
            OldLogProb = inputs.View.Permute(1, 0, 2).Select(2, 1),
            Advantage = advantage,
            Mask = kept.View.Slice(1, 4, tokens),
            Reduction = TokenReduction.SequenceMeanTokenMean,
        }, new PpoClip(), new() { Loss = outputs.View.Select(2, 0), LogProbGradient = outputs.View.Select(2, 2) }, default, workspace);
        float[] written = outputs.ToArray<float>();
        (float[] losses, float[] gradient, _) = Run(batch, TokenReduction.SequenceMeanTokenMean, masked: true);
        Assert.Equal(losses, written.Where((_, i) => i % 3 == 0));
        Assert.Equal(gradient, written.Where((_, i) => i % 3 == 2));
        Assert.All(written.Where((_, i) => i % 3 == 1), x => Assert.Equal(42f, x));
    }

    // Where it can, a thread reads four flags at once.
    [Theory]
    [InlineData(7, 300)]
    [InlineData(5, 301)]
    [InlineData(1, 1023)]
    public void A_mask_gives_the_same_bits_wherever_it_begins(int sequences, int tokens)
    {
        var batch = new Batch(sequences, tokens);
        foreach (TokenReduction reduction in (TokenReduction[])[TokenReduction.TokenMean, TokenReduction.SequenceMeanTokenMean])
        {
            (float[] losses, float[] gradient, float[] metrics) = Run(batch, reduction, masked: true);
            for (int start = 1; start <= 4; start++)
            {
                (float[] lossesThere, float[] gradientThere, float[] metricsThere) = Run(batch, reduction, masked: true, start);
                Assert.Equal(losses, lossesThere);
                Assert.Equal(gradient, gradientThere);
                Assert.Equal(metrics, metricsThere);
            }
        }
    }

    private (float[] Losses, float[] Gradient, float[] Metrics) Run(Batch batch, TokenReduction reduction, bool masked, int maskStart = 0)
    {
        using TensorBuffer logProb = batch.Upload(gpu.Device, batch.LogProb), old = batch.Upload(gpu.Device, batch.OldLogProb), advantage = batch.Upload(gpu.Device, batch.Advantage);
        using TensorBuffer memory = gpu.Device.Upload<bool>([.. new bool[maskStart], .. batch.Mask]), metrics = gpu.Device.Allocate(ElementType.Float32, PolicyMetrics.Count);
        using TensorBuffer losses = batch.Upload(gpu.Device, batch.LogProb), gradient = batch.Upload(gpu.Device, batch.LogProb);
        using var workspace = new Workspace(gpu.Device);
        TensorView mask = memory.View.Slice(0, maskStart, batch.Mask.Length).Reshape(batch.Sequences, batch.Tokens);
        PolicyLoss.Evaluate(gpu.Device, new() { LogProb = logProb, OldLogProb = old, Advantage = advantage, Mask = masked ? mask : default, Reduction = reduction },
            new PpoClip(), new() { Loss = losses, LogProbGradient = gradient }, metrics, workspace);
        return (losses.ToArray<float>(), gradient.ToArray<float>(), metrics.ToArray<float>());
    }

    private sealed class Batch(int sequences, int tokens)
    {
        public int Sequences => sequences;
        public int Tokens => tokens;
        public float[] LogProb { get; } = Seeded.Normal((long)sequences * tokens, 1);
        public float[] OldLogProb { get; } = Seeded.Normal((long)sequences * tokens, 2);
        public float[] Advantage { get; } = Seeded.Normal((long)sequences * tokens, 3);
        public bool[] Mask { get; } = Seeded.Mask((long)sequences * tokens, 4);

        public TensorBuffer Upload(GpuDevice device, float[] numbers) => device.Upload<float>(numbers, sequences, tokens);

        public PolicyResult<T> Oracle<T>(TokenReduction reduction, bool masked) where T : System.Numerics.IFloatingPointIeee754<T> => PolicyOracle.PpoClip<T>(Grid.Of(LogProb, sequences, tokens),
            Grid.Of(OldLogProb, sequences, tokens), Grid.Of(Advantage, sequences, tokens), masked ? Mask : null, 0.2f, 0.2f, 3, 20, (Reduction)reduction);
    }
}
