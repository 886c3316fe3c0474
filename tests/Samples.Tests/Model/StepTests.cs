using TransformerKernels;
using Xunit;

namespace Alignment.Tests;

/// <summary>A step of training on the processor.</summary>
public class StepTests
{
    [Fact]
    public void A_step_makes_one_library_call_for_each_piece_of_its_work()
    {
        var device = new CountingDevice();
        using var maths = new CpuMaths(device, threads: 1);
        using Llama model = SmallModel.Create(maths);
        using var logProbs = new AnswerLogProbs(model, trainable: true);
        var perPass = new Dictionary<string, int>
        {
            ["Rotate"] = SmallModel.Layers, ["AttentionForward"] = SmallModel.Layers, ["LogProbsFromLogits"] = 1,
            ["LogProbsFromLogitsBackward"] = 1, ["AttentionBackward"] = SmallModel.Layers, ["RotateBack"] = SmallModel.Layers,
        };

        using var imitation = new SupervisedLoss(model, logProbs);
        imitation.Step(SmallModel.Examples(5));
        Assert.Equal(perPass.OrderBy(call => call.Key), device.Calls.OrderBy(call => call.Key));

        device.Calls.Clear();
        using var preference = new DirectPreferenceLoss(model, logProbs, new DpoSigmoid(0.1f));
        preference.Step(SmallModel.Pairs(4));
        perPass["PairLoss"] = 1;
        Assert.Equal(perPass.OrderBy(call => call.Key), device.Calls.OrderBy(call => call.Key));
    }

    [Fact]
    public void Steps_have_the_same_bits_for_1_2_3_and_7_threads()
    {
        float[]? expected = null;
        foreach (int threads in (int[])[1, 2, 3, 7])
        {
            using var device = ComputeDevice.OpenCpu(threads);
            using var maths = new CpuMaths(device, threads);
            using Llama model = SmallModel.Create(maths);
            float[] weights = SmallModel.TwoSteps(model);
            expected ??= weights;
            Assert.Equal(expected, weights);
        }
    }
}
