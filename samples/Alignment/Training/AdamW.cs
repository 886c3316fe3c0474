using TransformerKernels;

namespace Alignment;

/// <summary>Adam with decoupled weight decay, step for step as torch.optim.AdamW; every weight decays. Loshchilov and Hutter 2019.</summary>
internal sealed class AdamW(ModelMaths maths, ParameterSet parameters) : IDisposable
{
    private readonly TensorBuffer first = maths.Device.Allocate(ElementType.Float32, parameters.Values.ElementCount);
    private readonly TensorBuffer second = maths.Device.Allocate(ElementType.Float32, parameters.Values.ElementCount);
    private int step;

    public double Beta1 { get; init; } = 0.9;

    public double Beta2 { get; init; } = 0.999;

    public double Epsilon { get; init; } = 1e-8;

    public double WeightDecay { get; init; } = 0.01;

    /// <summary>The gradient's norm is scaled down to this before it is used; unlimited by default.</summary>
    public double LargestNorm { get; init; } = double.PositiveInfinity;

    /// <summary>The gradient's norm as the last step found it.</summary>
    public double GradientNorm => maths.GradientNorm;

    /// <summary>Moves the weights against their gradients.</summary>
    public void Step(double learningRate)
    {
        step++;
        double correction1 = 1 - Math.Pow(Beta1, step), correction2 = 1 - Math.Pow(Beta2, step);
        maths.Update(parameters.Values, parameters.Gradients, first, second, new(LargestNorm, (float)Beta1, (float)(1 - Beta1), (float)Beta2, (float)(1 - Beta2),
            (float)Epsilon, (float)(1 - learningRate * WeightDecay), (float)(learningRate / correction1), (float)Math.Sqrt(correction2)));
    }

    public void Dispose()
    {
        maths.Device.Synchronize();
        first.Dispose();
        second.Dispose();
    }
}
