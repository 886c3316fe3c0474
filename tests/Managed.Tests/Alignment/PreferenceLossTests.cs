using System.Numerics.Tensors;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class PreferenceLossTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(15)]
    [InlineData(16)]
    [InlineData(17)]
    [InlineData(63)]
    [InlineData(511)]
    [InlineData(512)]
    [InlineData(513)]
    [InlineData(1000)]
    [InlineData(8191)]
    [InlineData(8192)]
    [InlineData(8193)]
    [InlineData(20001)]
    public void Losses_gradients_rewards_and_metrics_keep_the_contract(int pairs)
    {
        foreach (float smoothing in (float[])[0f, 0.2f])
        {
            foreach (LossReduction reduction in Enum.GetValues<LossReduction>())
            {
                foreach (bool reference in (bool[])[true, false])
                {
                    foreach (int stride in (int[])[1, 3])
                        Check(pairs, 0.1f, smoothing, reduction, reference, stride);
                }
            }
        }
    }

    // Every input enters in its own way, so that a gradient taken for another one's shows.
    public readonly struct Lopsided : IPairLoss
    {
        public float RewardScale => 0.5f;

        public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> =>
            T.Softplus(-0.3f * pair.Chosen) + 2f * T.Tanh(0.2f * pair.Rejected) + pair.ReferenceChosen * pair.ReferenceChosen * 0.1f + T.Exp(0.1f * pair.ReferenceRejected) * pair.Chosen;
    }

    [Fact]
    public void Every_combination_of_wanted_outputs_gives_the_same_numbers_and_leaves_the_rest_alone()
    {
        const int pairs = 37;
        float[][] inputs = [.. Enumerable.Range(0, 4).Select(i => Seeded.Normal(pairs, i, 3))];
        float[][] all = Evaluate(0x7f, withMetrics: true);
        for (int wanted = 0; wanted < 0x80; wanted++)
        {
            foreach (bool withMetrics in (bool[])[false, true])
            {
                if (wanted == 0 && !withMetrics)
                    continue; // asks for nothing
                float[][] some = Evaluate(wanted, withMetrics);
                for (int i = 0; i < 7; i++)
                    Assert.Equal((wanted >> i & 1) != 0 ? all[i] : Untouched(), some[i]);
                Assert.Equal(withMetrics ? all[7] : Untouched()[..PreferenceMetrics.Count], some[7]);
            }
        }

        float[][] Evaluate(int wanted, bool withMetrics)
        {
            float[][] outputs = [.. Enumerable.Range(0, 7).Select(_ => Untouched()), Untouched()[..PreferenceMetrics.Count]];
            using var workspace = new Workspace(Device);
            TensorView Wanted(int i) => (wanted >> i & 1) != 0 ? TensorView.Of(outputs[i]) : default;
            PreferenceLoss.Evaluate(Device, new()
            {
                Chosen = TensorView.Of(inputs[0]), Rejected = TensorView.Of(inputs[1]), ReferenceChosen = TensorView.Of(inputs[2]), ReferenceRejected = TensorView.Of(inputs[3]),
            }, new Lopsided(), new()
            {
                Loss = Wanted(0), ChosenGradient = Wanted(1), RejectedGradient = Wanted(2), ReferenceChosenGradient = Wanted(3), ReferenceRejectedGradient = Wanted(4), ChosenReward = Wanted(5), RejectedReward = Wanted(6),
            }, withMetrics ? TensorView.Of(outputs[7]) : default, workspace);
            return outputs;
        }

        static float[] Untouched() => [.. Enumerable.Repeat(-77f, pairs)];
    }

    [Fact]
    public void Gradients_of_a_users_loss_match_finite_differences_in_double()
    {
        const int pairs = 21;
        double[][] x = [.. Enumerable.Range(0, 4).Select(i => Array.ConvertAll(Seeded.Normal(pairs, i, 2), v => (double)v))];
        float[][] gradients = [.. Enumerable.Range(0, 4).Select(_ => new float[pairs])];
        float[][] inputs = [.. x.Select(values => Array.ConvertAll(values, v => (float)v))];
        using var workspace = new Workspace(Device);
        PreferenceLoss.Evaluate(Device, new()
        {
            Chosen = TensorView.Of(inputs[0]), Rejected = TensorView.Of(inputs[1]), ReferenceChosen = TensorView.Of(inputs[2]), ReferenceRejected = TensorView.Of(inputs[3]),
        }, new Lopsided(), new()
        {
            ChosenGradient = TensorView.Of(gradients[0]), RejectedGradient = TensorView.Of(gradients[1]), ReferenceChosenGradient = TensorView.Of(gradients[2]), ReferenceRejectedGradient = TensorView.Of(gradients[3]),
        }, default, workspace);
        for (int input = 0; input < 4; input++)
        {
            double[] expected = FiniteDifferences.Gradient(x[input], () => Enumerable.Range(0, pairs).Sum(n => default(Lopsided).Loss(new PairInputs<Real64>
            {
                Chosen = new(x[0][n]), Rejected = new(x[1][n]), ReferenceChosen = new(x[2][n]), ReferenceRejected = new(x[3][n]),
            }).Value) / pairs);
            for (int n = 0; n < pairs; n++)
                Assert.Equal(expected[n], gradients[input][n], 1e-6);
        }
    }

    [Fact]
    public void Margins_of_any_size_give_finite_losses_and_NaN_surfaces_in_its_own_pair_alone()
    {
        float[] chosen = [0, 1e4f, -1e4f, 1e30f, -1e30f, float.PositiveInfinity, float.NegativeInfinity, float.NaN, 1];
        float[] losses = new float[9], gradient = new float[9];
        using var workspace = new Workspace(Device);
        PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(new float[9]), Reduction = LossReduction.Sum }, new DpoSigmoid(0.5f),
            new() { Loss = TensorView.Of(losses), ChosenGradient = TensorView.Of(gradient) }, default, workspace);
        float ln2 = MathF.Log(2);
        Assert.Equal([ln2, 0, 5000, 0, 5e29f, float.NaN, float.NaN, float.NaN, losses[8]], losses.Select((value, i) => i is 5 or 6 && float.IsNaN(value) ? float.NaN : value));
        Assert.Equal((-0.25f, 0f, -0.5f, 0f, -0.5f), (gradient[0], gradient[1], gradient[2], gradient[3], gradient[4]));
        Assert.True(float.IsNaN(gradient[7]) && float.IsFinite(gradient[8]));
    }

    [Fact]
    public void Ties_count_as_wrong_and_no_pairs_give_zeros()
    {
        float[] metrics = new float[PreferenceMetrics.Count];
        using var workspace = new Workspace(Device);
        PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of((float[])[1, 2, 3, 4]), Rejected = TensorView.Of((float[])[1, 1, 4, 4]) }, new DpoSigmoid(), default, TensorView.Of(metrics), workspace);
        Assert.Equal(0.25f, metrics[PreferenceMetrics.RewardAccuracy]);
        foreach (LossReduction reduction in Enum.GetValues<LossReduction>())
        {
            Array.Fill(metrics, 7f);
            PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(Array.Empty<float>()), Rejected = TensorView.Of(Array.Empty<float>()), Reduction = reduction },
                new DpoSigmoid(), new() { ChosenGradient = TensorView.Of(Array.Empty<float>()) }, TensorView.Of(metrics), workspace);
            Assert.Equal(new float[PreferenceMetrics.Count], metrics);
        }
    }

    [Fact]
    public void New_without_arguments_has_the_documented_constants() => Assert.Equal((new DpoSigmoid(0.1f, 0f), 0.1f), (new DpoSigmoid(), new DpoSigmoid().RewardScale));

    [Fact]
    public void Default_instead_of_new_is_refused()
    {
        float[] log = [-1f, -2f], loss = [7f, 7f];
        using var workspace = new Workspace(Device);
        var thrown = Assert.Throws<ArgumentOutOfRangeException>(() => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(log), Rejected = TensorView.Of(log) }, default(DpoSigmoid),
            new() { Loss = TensorView.Of(loss) }, default, workspace));
        Assert.StartsWith("loss.RewardScale is 0; it must be a positive number. What a constructor of DpoSigmoid sets is 0 in default(DpoSigmoid).", thrown.Message);
        Assert.Equal("loss.RewardScale", thrown.ParamName);
        Assert.Equal([7f, 7f], loss);
    }

    [Fact]
    public void Workspace_bytes_are_enough_and_not_one_too_many()
    {
        foreach (int pairs in (int[])[1, 8192, 8193, 100_000])
        {
            float[] chosen = new float[pairs], rejected = new float[pairs], metrics = new float[PreferenceMetrics.Count];
            long bytes = PreferenceLoss.WorkspaceBytes(Device, pairs);
            using var enough = new Workspace(Device, bytes);
            PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) }, new DpoSigmoid(), default, TensorView.Of(metrics), enough);
            using var small = new Workspace(Device, bytes - 1);
            Assert.Throws<ArgumentException>("workspace", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) }, new DpoSigmoid(), default, TensorView.Of(metrics), small));
        }
    }

    [Fact]
    public void Bad_tensors_throw_naming_them()
    {
        var foreign = new ForeignDevice();
        float[] a = new float[4], b = new float[4], c = new float[4];
        using var workspace = new Workspace(Device);
        using var foreignWorkspace = new Workspace(foreign);
        Throws<ArgumentNullException>("device", () => PreferenceLoss.Evaluate(null!, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentNullException>("workspace", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, null!));
        Throws<ArgumentException>("workspace", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, foreignWorkspace));
        Throws<ArgumentException>("batch.ReferenceRejected", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b), ReferenceChosen = TensorView.Of(a) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentOutOfRangeException>("batch.Reduction", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b), Reduction = (LossReduction)7 }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentNullException>("batch.Chosen", () => PreferenceLoss.Evaluate(Device, new() { Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentNullException>("batch.Rejected", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentException>("batch.Chosen", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a, 2, 2), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentException>("batch.Chosen", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(new int[4]), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentException>("batch.Rejected", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b, 3) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentException>("batch.Rejected", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = foreign.View(4) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentException>("batch.ReferenceChosen", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b), ReferenceChosen = TensorView.Of(c, 3) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentException>("outputs.Loss", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), new() { Loss = TensorView.Of(c, 3) }, default, workspace));
        Throws<ArgumentException>("outputs.Loss", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), new() { Loss = TensorView.Of(a) }, default, workspace));
        Throws<ArgumentException>("outputs.RejectedGradient", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), new() { Loss = TensorView.Of(c), RejectedGradient = TensorView.Of(c) }, default, workspace));
        Throws<ArgumentException>("outputs.ChosenReward", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), new() { ChosenReward = TensorView.Of(c, 1).Expand(0, 4) }, default, workspace));
        Throws<ArgumentException>("metrics", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, TensorView.Of(new float[6]), workspace));
        Throws<ArgumentException>("outputs", () => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(a), Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        TensorBuffer disposed = Device.Allocate(ElementType.Float32, 4);
        disposed.Dispose();
        Assert.Throws<ObjectDisposedException>(() => PreferenceLoss.Evaluate(Device, new() { Chosen = disposed, Rejected = TensorView.Of(b) }, new DpoSigmoid(), default, default, workspace));
        Throws<ArgumentOutOfRangeException>("beta", () => _ = new DpoSigmoid(0));
        Throws<ArgumentOutOfRangeException>("beta", () => _ = new DpoSigmoid(float.NaN));
        Throws<ArgumentOutOfRangeException>("labelSmoothing", () => _ = new DpoSigmoid(0.1f, 0.5f));
        Throws<ArgumentOutOfRangeException>("labelSmoothing", () => _ = new DpoSigmoid(0.1f, -0.1f));

        static void Throws<T>(string name, Action call) where T : ArgumentException => Assert.Throws<T>(name, call);
    }

    private static void Check(int pairs, float beta, float smoothing, LossReduction reduction, bool reference, int stride)
    {
        var inputs = new Strided[4];
        for (int i = 0; i < 4; i++)
            inputs[i] = new Strided([pairs, stride], [0, 1]).Fill(i, 30);
        var outputs = new Strided[7];
        for (int i = 0; i < 7; i++)
            outputs[i] = new Strided([pairs, stride], [0, 1]);
        TensorView Column(Strided x) => TensorView.Of(new TensorSpan<float>(x.Data, [pairs], pairs == 1 ? [0] : [stride]));
        var metrics = new float[PreferenceMetrics.Count];
        using var workspace = new Workspace(Device);
        PreferenceLoss.Evaluate(Device, new()
        {
            Chosen = Column(inputs[0]),
            Rejected = Column(inputs[1]),
            ReferenceChosen = reference ? Column(inputs[2]) : default,
            ReferenceRejected = reference ? Column(inputs[3]) : default,
            Reduction = reduction,
        }, new DpoSigmoid(beta, smoothing), new()
        {
            Loss = Column(outputs[0]),
            ChosenGradient = Column(outputs[1]),
            RejectedGradient = Column(outputs[2]),
            ReferenceChosenGradient = Column(outputs[3]),
            ReferenceRejectedGradient = Column(outputs[4]),
            ChosenReward = Column(outputs[5]),
            RejectedReward = Column(outputs[6]),
        }, TensorView.Of(metrics), workspace);
        double[] Doubles(int i) => Array.ConvertAll(First(inputs[i]), x => (double)x);
        float[] First(Strided x) => Enumerable.Range(0, pairs).Select(n => x[n, 0]).ToArray();
        PreferenceResult<T> Say<T>() where T : System.Numerics.IFloatingPointIeee754<T> => PreferenceOracle.DpoSigmoid<T>(Doubles(0), Doubles(1),
            reference ? Doubles(2) : null, reference ? Doubles(3) : null, beta, smoothing, reduction == LossReduction.Sum);
        (PreferenceResult<double> oracle, PreferenceResult<float> naive) = (Say<double>(), Say<float>());
        Contract.Check(First(outputs[0]), oracle.Losses, naive.Losses, Contract.Forward, "loss");
        Contract.Check(First(outputs[1]), oracle.Chosen, naive.Chosen, Contract.Gradient, "chosen");
        Contract.Check(First(outputs[2]), oracle.Rejected, naive.Rejected, Contract.Gradient, "rejected");
        Contract.Check(First(outputs[3]), oracle.ReferenceChosen, naive.ReferenceChosen, Contract.Gradient, "reference chosen");
        Contract.Check(First(outputs[4]), oracle.ReferenceRejected, naive.ReferenceRejected, Contract.Gradient, "reference rejected");
        Contract.Check(First(outputs[5]), oracle.ChosenReward, naive.ChosenReward, Contract.Forward, "chosen reward");
        Contract.Check(First(outputs[6]), oracle.RejectedReward, naive.RejectedReward, Contract.Forward, "rejected reward");
        double[] Metrics(PreferenceSummary<double> m, double loss) => [loss, m.ChosenReward, m.RejectedReward, m.RewardMargin, m.RewardAccuracy, m.ChosenLogProb, m.RejectedLogProb];
        float[] NaiveMetrics(PreferenceSummary<float> m, float loss) => [loss, m.ChosenReward, m.RejectedReward, m.RewardMargin, m.RewardAccuracy, m.ChosenLogProb, m.RejectedLogProb];
        double[] truth = Metrics(oracle.Metrics, oracle.Loss);
        float[] plain = NaiveMetrics(naive.Metrics, naive.Loss);
        Contract.Check(metrics, truth, plain, Contract.Forward, "metrics");
    }
}
