using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>What <see cref="ModelMaths.Gate"/> and its gradients are computed of; all [n].</summary>
public readonly struct GateArguments
{
    public GpuTensor<float> Gate { get; init; }
    public GpuTensor<float> Up { get; init; }
    public GpuTensor<float> Sigmoid { get; init; }

    /// <summary>What the forward pass writes.</summary>
    public GpuTensor<float> Y { get; init; }

    /// <summary>What arrives at it, in the backward pass.</summary>
    public GpuTensor<float> Upstream { get; init; }

    public int Count { get; init; }
}

/// <summary>y = gate · σ(gate) · up, element by element, and its gradients.</summary>
internal static class GateKernels
{
    public const int GroupSize = 256;

    public static void Forward(GateArguments a)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i >= a.Count)
            return;
        float gate = a.Gate[i], sigmoid = Real32.Sigmoid(new(gate)).Value;
        a.Sigmoid[i] = sigmoid;
        a.Y[i] = gate * sigmoid * a.Up[i];
    }

    /// <summary>d(g σ)/dg = σ (1 + g (1 − σ)); the gradients take the places of gate and up.</summary>
    public static void Backward(GateArguments a)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i >= a.Count)
            return;
        float gate = a.Gate[i], sigmoid = a.Sigmoid[i], upstream = a.Upstream[i];
        a.Gate[i] = upstream * a.Up[i] * sigmoid * (1f + gate * (1f - sigmoid));
        a.Up[i] = upstream * gate * sigmoid;
    }
}
