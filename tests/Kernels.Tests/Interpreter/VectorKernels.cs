using ILGPU;

namespace TransformerKernels.Tests;

/// <summary>Four numbers that a thread loads at once.</summary>
public readonly record struct Four(float A, float B, float C, float D);

/// <summary>What is copied where.</summary>
public readonly struct VectorArguments
{
    public ArrayView<float> From { get; init; }
    public ArrayView<float> To { get; init; }
}

/// <summary>A kernel with vector loads, for the tests of the interpreter.</summary>
internal static class VectorKernels
{
    public const int GroupSize = 64;

    public static void Copy(VectorArguments a, int vectors)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i < vectors)
            a.To.Cast<Four>()[i] = a.From.Cast<Four>()[i];
    }
}
