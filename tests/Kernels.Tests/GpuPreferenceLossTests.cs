using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>DPO through the public verb on a GPU: against the oracle, and the dispatch from the CPU assembly to the GPU's.</summary>
public class GpuPreferenceLossTests(GpuUnderTest gpu)
{
    private const float Beta = 0.3f, Smoothing = 0.1f;

    public static TheoryData<int> Counts => [1, 2, 255, 256, 257, 1000];

    [Theory]
    [MemberData(nameof(Counts))]
    public void Losses_gradients_and_metrics_keep_the_contract(int pairs)
    {
        CheckAgainstOracle(pairs, withReference: true, LossReduction.Mean);
    }

    [Theory]
    [InlineData(true, LossReduction.Sum)]
    [InlineData(false, LossReduction.Mean)]
    [InlineData(false, LossReduction.Sum)]
    public void Both_reductions_and_an_absent_reference_keep_the_contract(bool withReference, LossReduction reduction)
    {
        CheckAgainstOracle(300, withReference, reduction);
    }

    [Fact]
    public void More_pairs_than_threads_keep_the_contract()
    {
        CheckAgainstOracle(gpu.Size(700_001, 300_001), withReference: true, LossReduction.Mean);
    }

    [Fact]
    public void The_CPU_and_the_GPU_agree()
    {
        const int pairs = 500;
        var batch = new Batch(pairs, withReference: false);
        PreferenceResult<float> naive = batch.Oracle<float>(LossReduction.Mean);
        float[] losses = new float[pairs], metrics = new float[PreferenceMetrics.Count];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        PreferenceLoss.Evaluate(ComputeDevice.Cpu, new PairBatch { Chosen = TensorView.Of(batch.Chosen), Rejected = TensorView.Of(batch.Rejected) },
            new DpoSigmoid(Beta, Smoothing), new PairOutputs { Loss = TensorView.Of(losses) }, TensorView.Of(metrics), workspace);
        (float[] onGpu, float[] metricsOnGpu) = Run(batch);
        Contract.Check(onGpu, Array.ConvertAll(losses, x => (double)x), naive.Losses, Contract.Forward, "loss");
        for (int i = 0; i < metrics.Length; i++)
            Assert.Equal(metrics[i], metricsOnGpu[i], 1e-5f * Math.Abs(metrics[i]));
    }

    [Fact]
    public void No_pairs_give_zero_metrics()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer empty = gpu.Device.Allocate(ElementType.Float32, 0);
        using TensorBuffer metrics = gpu.Device.Upload<float>([9, 9, 9, 9, 9, 9, 9]);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = empty, Rejected = empty }, new DpoSigmoid(), default, metrics, workspace);
        Assert.Equal(new float[PreferenceMetrics.Count], metrics.ToArray<float>());
    }

    [Fact]
    public void Strides_and_offsets_are_followed_and_nothing_else_is_written()
    {
        const int pairs = 300;
        Batch batch = new(pairs, withReference: true);
        PreferenceResult<double> oracle = batch.Oracle<double>(LossReduction.Mean);
        PreferenceResult<float> naive = batch.Oracle<float>(LossReduction.Mean);

        // Chosen and rejected are the columns of one matrix from its third row on; gradients go into the columns of another.
        float[] interleaved = new float[2 * pairs + 4];
        for (int i = 0; i < pairs; i++)
            (interleaved[4 + 2 * i], interleaved[5 + 2 * i]) = (batch.Chosen[i], batch.Rejected[i]);
        using TensorBuffer inputs = gpu.Device.Upload<float>(interleaved, pairs + 2, 2);
        using TensorBuffer referenceChosen = gpu.Device.Upload<float>(batch.ReferenceChosen!), referenceRejected = gpu.Device.Upload<float>(batch.ReferenceRejected!);
        float[] guard = Enumerable.Repeat(42f, 3 * pairs).ToArray();
        using TensorBuffer gradients = gpu.Device.Upload<float>(guard, pairs, 3);
        using var workspace = new Workspace(gpu.Device);

        TensorView rows = inputs.View.Slice(0, 2, pairs);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch
        {
            Chosen = rows.Select(1, 0),
            Rejected = rows.Select(1, 1),
            ReferenceChosen = referenceChosen,
            ReferenceRejected = referenceRejected,
        }, new DpoSigmoid(Beta, Smoothing), new PairOutputs { ChosenGradient = gradients.View.Select(1, 0), RejectedGradient = gradients.View.Select(1, 2) }, default, workspace);

        float[] written = gradients.ToArray<float>();
        Contract.Check(written.Where((_, i) => i % 3 == 0).ToArray(), oracle.Chosen, naive.Chosen, Contract.Gradient, "chosen");
        Contract.Check(written.Where((_, i) => i % 3 == 2).ToArray(), oracle.Rejected, naive.Rejected, Contract.Gradient, "rejected");
        Assert.All(written.Where((_, i) => i % 3 == 1), x => Assert.Equal(42f, x));
    }

    [Fact]
    public void A_stride_of_zero_shares_one_reference()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Upload<float>([-1, -2, -3]), rejected = gpu.Device.Upload<float>([-4, -4, -4]), rewards = gpu.Device.Allocate(ElementType.Float32, 3);
        using TensorBuffer shared = gpu.Device.Upload<float>([-2]);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected, ReferenceChosen = shared.View.Expand(0, 3), ReferenceRejected = shared.View.Expand(0, 3) }, new DpoSigmoid(0.5f),
            new PairOutputs { ChosenReward = rewards }, default, workspace);
        Assert.Equal([0.5f, 0f, -0.5f], rewards.ToArray<float>());
    }

    [Fact]
    public void Results_are_bitwise_the_same_every_time()
    {
        const int pairs = 10_000;
        (float[] first, float[] metrics) = Run(new Batch(pairs, withReference: true));
        for (int time = 0; time < 20; time++)
        {
            (float[] again, float[] metricsAgain) = Run(new Batch(pairs, withReference: true));
            Assert.Equal(first, again);
            Assert.Equal(metrics, metricsAgain);
        }
    }

    [Fact]
    public void A_tie_of_the_rewards_counts_as_wrong()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Upload<float>([-1, -2]), rejected = gpu.Device.Upload<float>([-1, -3]);
        using TensorBuffer metrics = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected }, new DpoSigmoid(), default, metrics, workspace);
        Assert.Equal(0.5f, metrics.ToArray<float>()[PreferenceMetrics.RewardAccuracy]);
    }

    [Fact]
    public void Calls_from_several_threads_don_t_disturb_each_other()
    {
        gpu.NeedsOpenCl(); // the interpreter's skip, thrown on another thread, would be a failure
        (float[] Losses, float[] Metrics)[] expected = [.. Enumerable.Range(1000, 8).Select(pairs => Run(new Batch(pairs, withReference: false)))];
        Parallel.For(0, 3 * expected.Length, call =>
        {
            int which = call % expected.Length;
            (float[] losses, float[] metrics) = Run(new Batch(1000 + which, withReference: false));
            Assert.Equal(expected[which].Losses, losses);
            Assert.Equal(expected[which].Metrics, metrics);
        });
    }

    [Fact]
    public void A_NaN_pair_surfaces_and_leaves_the_others_alone()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Upload<float>([-1, float.NaN, -3]), rejected = gpu.Device.Upload<float>([-2, -2, -2]);
        using TensorBuffer losses = gpu.Device.Allocate(ElementType.Float32, 3), metrics = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected }, new DpoSigmoid(), new PairOutputs { Loss = losses }, metrics, workspace);
        Assert.Equal([false, true, false], losses.ToArray<float>().Select(float.IsNaN));
        Assert.True(float.IsNaN(metrics.ToArray<float>()[PreferenceMetrics.Loss]));
    }

    [Fact]
    public void A_users_loss_runs_and_its_gradients_are_its_derivatives()
    {
        using var workspace = new Workspace(gpu.Device);
        float[] chosen = [-1, -2, -3, -40], rejected = [-2, -2, -1, -1];
        using TensorBuffer c = gpu.Device.Upload<float>(chosen), r = gpu.Device.Upload<float>(rejected), byChosen = gpu.Device.Allocate(ElementType.Float32, 4);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = c, Rejected = r, Reduction = LossReduction.Sum }, new ReferenceFreeLoss(),
            new PairOutputs { ChosenGradient = byChosen }, default, workspace);
        float[] gradient = byChosen.ToArray<float>();
        for (int i = 0; i < chosen.Length; i++)
            Assert.Equal(-1 / (1 + Math.Exp(chosen[i] - rejected[i])), gradient[i], 1e-6);
    }

    private void CheckAgainstOracle(int pairs, bool withReference, LossReduction reduction)
    {
        var batch = new Batch(pairs, withReference);
        PreferenceResult<double> oracle = batch.Oracle<double>(reduction);
        PreferenceResult<float> naive = batch.Oracle<float>(reduction);
        using TensorBuffer chosen = gpu.Device.Upload<float>(batch.Chosen), rejected = gpu.Device.Upload<float>(batch.Rejected);
        using TensorBuffer? referenceChosen = withReference ? gpu.Device.Upload<float>(batch.ReferenceChosen!) : null;
        using TensorBuffer? referenceRejected = withReference ? gpu.Device.Upload<float>(batch.ReferenceRejected!) : null;
        using TensorBuffer loss = Output(), byChosen = Output(), byRejected = Output(), byReferenceChosen = Output(), byReferenceRejected = Output();
        using TensorBuffer chosenReward = Output(), rejectedReward = Output(), metrics = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        using var workspace = new Workspace(gpu.Device);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch
        {
            Chosen = chosen,
            Rejected = rejected,
            ReferenceChosen = withReference ? referenceChosen!.View : default,
            ReferenceRejected = withReference ? referenceRejected!.View : default,
            Reduction = reduction,
        }, new DpoSigmoid(Beta, Smoothing), new PairOutputs
        {
            Loss = loss,
            ChosenGradient = byChosen,
            RejectedGradient = byRejected,
            ReferenceChosenGradient = byReferenceChosen,
            ReferenceRejectedGradient = byReferenceRejected,
            ChosenReward = chosenReward,
            RejectedReward = rejectedReward,
        }, metrics, workspace);

        Contract.Check(loss.ToArray<float>(), oracle.Losses, naive.Losses, Contract.Forward, "loss");
        Contract.Check(byChosen.ToArray<float>(), oracle.Chosen, naive.Chosen, Contract.Gradient, "by chosen");
        Contract.Check(byRejected.ToArray<float>(), oracle.Rejected, naive.Rejected, Contract.Gradient, "by rejected");
        Contract.Check(byReferenceChosen.ToArray<float>(), oracle.ReferenceChosen, naive.ReferenceChosen, Contract.Gradient, "by reference chosen");
        Contract.Check(byReferenceRejected.ToArray<float>(), oracle.ReferenceRejected, naive.ReferenceRejected, Contract.Gradient, "by reference rejected");
        Contract.Check(chosenReward.ToArray<float>(), oracle.ChosenReward, naive.ChosenReward, Contract.Forward, "chosen reward");
        Contract.Check(rejectedReward.ToArray<float>(), oracle.RejectedReward, naive.RejectedReward, Contract.Forward, "rejected reward");
        Contract.Check(metrics.ToArray<float>(), Metrics(oracle), Metrics(naive), Contract.Forward, "metrics");

        TensorBuffer Output() => gpu.Device.Allocate(ElementType.Float32, pairs);
    }

    private (float[] Losses, float[] Metrics) Run(Batch batch)
    {
        using TensorBuffer chosen = gpu.Device.Upload<float>(batch.Chosen), rejected = gpu.Device.Upload<float>(batch.Rejected);
        using TensorBuffer loss = gpu.Device.Allocate(ElementType.Float32, batch.Chosen.Length), metrics = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        using var workspace = new Workspace(gpu.Device);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected }, new DpoSigmoid(Beta, Smoothing), new PairOutputs { Loss = loss }, metrics, workspace);
        return (loss.ToArray<float>(), metrics.ToArray<float>());
    }

    private static T[] Metrics<T>(PreferenceResult<T> result) =>
    [
        result.Loss, result.Metrics.ChosenReward, result.Metrics.RejectedReward, result.Metrics.RewardMargin, result.Metrics.RewardAccuracy,
        result.Metrics.ChosenLogProb, result.Metrics.RejectedLogProb,
    ];

    private sealed class Batch
    {
        public Batch(int pairs, bool withReference)
        {
            var random = new Random(11);
            Chosen = Fill();
            Rejected = Fill();
            ReferenceChosen = withReference ? Fill() : null;
            ReferenceRejected = withReference ? Fill() : null;

            float[] Fill() => Enumerable.Range(0, pairs).Select(_ => (float)(-30 * random.NextDouble())).ToArray();
        }

        public float[] Chosen { get; }
        public float[] Rejected { get; }
        public float[]? ReferenceChosen { get; }
        public float[]? ReferenceRejected { get; }

        public PreferenceResult<T> Oracle<T>(LossReduction reduction) where T : System.Numerics.IFloatingPointIeee754<T> =>
            PreferenceOracle.DpoSigmoid<T>(Wide(Chosen)!, Wide(Rejected)!, Wide(ReferenceChosen), Wide(ReferenceRejected), Beta, Smoothing, reduction == LossReduction.Sum);

        private static double[]? Wide(float[]? numbers) => numbers is null ? null : Array.ConvertAll(numbers, x => (double)x);
    }
}
