using TransformerKernels;
using TransformerKernels.Tests;
using Xunit;

namespace Alignment.Tests;

public class AdamWTests
{
    private const int Steps = 7;
    private const double LearningRate = 0.01, WeightDecay = 0.1, Beta1 = 0.8, Beta2 = 0.95, LargestNorm = 100;

    // A unit in the last place near 2 for every step.
    private const double Tolerance = Steps * 2.4e-7;

    // Squares summed in float32, in a few hundred sums side by side.
    private const double NormTolerance = 1e-6;

    // More than one work item in all, and gaps behind those that fill no cache line.
    private static readonly int[][] Shapes = [[123, 151], [1], [37], [130, 7]];

    [Fact]
    public void Steps_are_those_of_the_definition()
    {
        using ModelMaths maths = MathsUnderTest.Open();
        using ParameterSet set = Make(maths.Device, out Parameter[] parameters);
        double[][] values = Copy(set, parameters), first = Zeros(values), second = Zeros(values);
        using var optimizer = new AdamW(maths, set) { Beta1 = Beta1, Beta2 = Beta2, WeightDecay = WeightDecay, LargestNorm = LargestNorm };
        for (int step = 1; step <= Steps; step++)
        {
            FillGradients(set, parameters, step);
            double[][] gradients = [.. parameters.Select(parameter => Array.ConvertAll(parameter.Of(set.Gradients.ToArray<float>()).ToArray(), x => (double)x))];
            double norm = Math.Sqrt(gradients.Sum(gradient => gradient.Sum(x => x * x)));
            double scale = Math.Min(1, LargestNorm / norm);
            optimizer.Step(LearningRate);
            Assert.Equal(norm, optimizer.GradientNorm, NormTolerance * norm);
            for (int p = 0; p < values.Length; p++)
            {
                for (int i = 0; i < values[p].Length; i++)
                {
                    double g = scale * gradients[p][i];
                    first[p][i] = Beta1 * first[p][i] + (1 - Beta1) * g;
                    second[p][i] = Beta2 * second[p][i] + (1 - Beta2) * g * g;
                    double m = first[p][i] / (1 - Math.Pow(Beta1, step)), v = second[p][i] / (1 - Math.Pow(Beta2, step));
                    values[p][i] = values[p][i] * (1 - LearningRate * WeightDecay) - LearningRate * m / (Math.Sqrt(v) + optimizer.Epsilon);
                }
            }
        }
        for (int p = 0; p < values.Length; p++)
            Assert.All(values[p].Zip(parameters[p].Of(set.Values.ToArray<float>()).ToArray()), pair => Assert.Equal(pair.First, pair.Second, Tolerance * Math.Max(1, Math.Abs(pair.First))));
    }

    [Fact]
    public void A_weight_without_gradient_only_decays()
    {
        using ModelMaths maths = MathsUnderTest.Open();
        using ParameterSet set = Make(maths.Device, out Parameter[] parameters);
        float before = set.Values.ToArray<float>()[5];
        set.Gradients.Clear();
        using var optimizer = new AdamW(maths, set) { WeightDecay = WeightDecay };
        optimizer.Step(LearningRate);
        Assert.Equal(0, optimizer.GradientNorm);
        Assert.Equal((float)(1 - LearningRate * WeightDecay) * before, set.Values.ToArray<float>()[5]);
    }

    [Fact]
    public void Weights_are_bitwise_equal_for_1_2_and_3_threads()
    {
        float[] Run(int threads)
        {
            using var maths = new CpuMaths(ComputeDevice.Cpu, threads);
            using ParameterSet set = Make(maths.Device, out Parameter[] parameters);
            using var optimizer = new AdamW(maths, set) { LargestNorm = 1 };
            for (int step = 1; step <= Steps; step++)
            {
                FillGradients(set, parameters, step);
                optimizer.Step(LearningRate);
            }
            return set.Values.ToArray<float>();
        }
        float[] one = Run(1);
        Assert.Equal(one, Run(2));
        Assert.Equal(one, Run(3));
    }

    private static ParameterSet Make(ComputeDevice device, out Parameter[] parameters)
    {
        var set = new ParameterSet(device);
        parameters = [.. Shapes.Select((shape, i) => set.Add($"weight {i}", shape))];
        var values = new float[set.Values.ElementCount];
        for (int i = 0; i < parameters.Length; i++)
            Seeded.Normal(parameters[i].Of(values), i);
        set.Values.CopyFrom<float>(values);
        return set;
    }

    private static void FillGradients(ParameterSet set, Parameter[] parameters, int step)
    {
        var gradients = new float[set.Gradients.ElementCount];
        for (int i = 0; i < parameters.Length; i++)
            Seeded.Normal(parameters[i].Of(gradients), 100 * step + i);
        set.Gradients.CopyFrom<float>(gradients);
    }

    private static double[][] Copy(ParameterSet set, Parameter[] parameters) =>
        [.. parameters.Select(parameter => Array.ConvertAll(parameter.Of(set.Values.ToArray<float>()).ToArray(), x => (double)x))];

    private static double[][] Zeros(double[][] like) => [.. like.Select(row => new double[row.Length])];
}
