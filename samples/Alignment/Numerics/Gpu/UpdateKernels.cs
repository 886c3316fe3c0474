using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>What a step of <see cref="AdamW"/> reads and writes; the numbers are those of <see cref="AdamWStep"/>.</summary>
public readonly struct UpdateArguments
{
    public GpuTensor<float> Values { get; init; }
    public GpuTensor<float> Gradients { get; init; }
    public GpuTensor<float> First { get; init; }
    public GpuTensor<float> Second { get; init; }

    /// <summary>[1].</summary>
    public GpuTensor<float> Norm { get; init; }

    public int Count { get; init; }
    public float LargestNorm { get; init; }
    public float Beta1 { get; init; }
    public float OneMinusBeta1 { get; init; }
    public float Beta2 { get; init; }
    public float OneMinusBeta2 { get; init; }
    public float Epsilon { get; init; }
    public float Keep { get; init; }
    public float StepSize { get; init; }
    public float RootCorrection2 { get; init; }
}

/// <summary>A step of <see cref="AdamW"/> over one long vector of weights.</summary>
internal static class UpdateKernels
{
    public const int GroupSize = 256;

    /// <summary>A thread a weight.</summary>
    public static void Update(UpdateArguments a)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i >= a.Count)
            return;
        float norm = a.Norm[0], gradient = a.Gradients[i];
        if (norm > a.LargestNorm)
            gradient *= a.LargestNorm / norm;
        float first = a.First[i] * a.Beta1 + gradient * a.OneMinusBeta1, second = a.Second[i] * a.Beta2 + gradient * gradient * a.OneMinusBeta2;
        a.First[i] = first;
        a.Second[i] = second;
        a.Values[i] = a.Values[i] * a.Keep - first / (MathF.Sqrt(second) / a.RootCorrection2 + a.Epsilon) * a.StepSize;
    }
}
