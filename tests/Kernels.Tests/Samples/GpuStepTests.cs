using Alignment;
using Alignment.Tests;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>The sample's steps of training on a GPU beside the processor's.</summary>
public class GpuStepTests(GpuUnderTest gpu, OwnGpu own) : IClassFixture<OwnGpu>
{
    // Two float32 computations of one sum over a few hundred tokens, as a share of the largest number.
    private const double Within = 2e-5;

    [Fact]
    public void A_step_is_that_of_the_processor()
    {
        gpu.NeedsOpenCl();
        using var cpuMaths = new CpuMaths(ComputeDevice.Cpu, threads: 2);
        using var gpuMaths = new GpuMaths(gpu.Device);
        (float[] imitation, float[] preference, float[] numbers) expected = Gradients(cpuMaths), found = Gradients(gpuMaths);
        Near(expected.imitation, found.imitation);
        Near(expected.preference, found.preference);
        Near(expected.numbers, found.numbers);
    }

    [Fact]
    public void The_same_steps_give_the_same_bits()
    {
        gpu.NeedsOpenCl();
        float[]? expected = null;
        for (int time = 0; time < 3; time++)
        {
            using var maths = new GpuMaths(gpu.Device);
            using Llama model = SmallModel.Create(maths);
            float[] weights = SmallModel.TwoSteps(model);
            expected ??= weights;
            Assert.Equal(expected, weights);
            Assert.All(weights, weight => Assert.True(float.IsFinite(weight)));
        }
    }

    [Fact]
    public void Answers_are_those_of_the_processor()
    {
        gpu.NeedsOpenCl();
        int[][] prompts = [[1, 2, 3], [4, 4, 4], [22, 0, 7]];
        List<int>[] Answers(ModelMaths maths, Random? random)
        {
            using var model = new Llama(maths, SmallModel.Shape);
            model.Initialize(new Random(1), deviation: 0.5f);
            using var generation = new Generation(model);
            return generation.Continue(prompts, 10, random: random);
        }
        using var cpuMaths = new CpuMaths(ComputeDevice.Cpu, threads: 2);
        using var gpuMaths = new GpuMaths(gpu.Device);
        Assert.Equal(Answers(cpuMaths, null), Answers(gpuMaths, null));
        Assert.Equal(Answers(cpuMaths, new Random(5)), Answers(gpuMaths, new Random(5)));
    }

    // Weights, activations, gradients and the optimiser's state never cross: what crosses are the batch and a few numbers.
    [Fact]
    public void Bytes_of_a_step_don_t_grow_with_the_model_and_launches_only_with_its_layers()
    {
        gpu.NeedsOpenCl();
        const int FixedLaunches = 40, LaunchesPerLayer = 60;
        using var maths = new GpuMaths(own.Device); // nothing else is counted there
        DeviceTraffic small = Traffic(SmallModel.Shape);
        DeviceTraffic wide = Traffic(SmallModel.Shape with { Hidden = 80, Intermediate = 112, HeadSize = 24 });
        DeviceTraffic deep = Traffic(SmallModel.Shape with { Layers = 5 });
        Assert.Equal((small.BytesToDevice, small.BytesToHost), (wide.BytesToDevice, wide.BytesToHost));
        Assert.Equal((small.BytesToDevice, small.BytesToHost), (deep.BytesToDevice, deep.BytesToHost));
        Assert.Equal(sizeof(float) * (1 + PreferenceMetrics.Count), small.BytesToHost);
        Assert.InRange(small.BytesToDevice, 1, 40 * 16 * 8 * sizeof(int));
        Assert.InRange(small.Launches, 1, 2 * (FixedLaunches + SmallModel.Layers * LaunchesPerLayer));
        Assert.InRange(deep.Launches, small.Launches, 2 * (FixedLaunches + 5 * LaunchesPerLayer));

        DeviceTraffic Traffic(LlamaShape shape)
        {
            using var model = new Llama(maths, shape);
            model.Initialize(new Random(1));
            using var logProbs = new AnswerLogProbs(model, trainable: true);
            using var imitation = new SupervisedLoss(model, logProbs);
            using var preference = new DirectPreferenceLoss(model, logProbs, new DpoSigmoid(0.1f));
            using var optimiser = new AdamW(maths, model.Parameters);
            DeviceTraffic before = maths.Traffic;
            imitation.Step(SmallModel.Examples(40));
            optimiser.Step(0.01);
            _ = imitation.Value;
            preference.Step(SmallModel.Pairs(20));
            optimiser.Step(0.01);
            _ = preference.Metrics;
            return maths.Traffic - before;
        }
    }

    private static (float[] Imitation, float[] Preference, float[] Numbers) Gradients(ModelMaths maths)
    {
        using Llama model = SmallModel.Create(maths);
        using var logProbs = new AnswerLogProbs(model, trainable: true);
        using var imitation = new SupervisedLoss(model, logProbs);
        using var preference = new DirectPreferenceLoss(model, logProbs, new DpoSigmoid(0.1f));
        using var optimiser = new AdamW(maths, model.Parameters) { LargestNorm = 0.1 };
        imitation.Step(SmallModel.Examples(40));
        float[] first = model.Parameters.Gradients.ToArray<float>();
        optimiser.Step(0);
        double norm = optimiser.GradientNorm;
        model.Parameters.Gradients.Clear();
        preference.Step(SmallModel.Pairs(20));
        return (first, model.Parameters.Gradients.ToArray<float>(), [imitation.Value, (float)norm, .. preference.Metrics, .. logProbs.Sums.ToArray()]);
    }

    private static void Near(float[] expected, float[] found)
    {
        double within = Within * expected.Max(Math.Abs);
        Assert.Equal(expected.Length, found.Length);
        for (int i = 0; i < expected.Length; i++)
            Assert.True(Math.Abs(expected[i] - found[i]) <= within, $"[{i}] is {found[i]}, not {expected[i]} within {within}");
    }
}
