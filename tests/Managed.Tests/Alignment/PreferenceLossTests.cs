using System.Numerics.Tensors;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class PreferenceLossTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

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
            Chosen = Column(outputs[1]),
            Rejected = Column(outputs[2]),
            ReferenceChosen = Column(outputs[3]),
            ReferenceRejected = Column(outputs[4]),
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
