using System.Runtime.CompilerServices;
using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>What <see cref="ModelMaths.Norm"/> and its gradients are computed of; what a kernel doesn't name is absent.</summary>
public readonly struct NormArguments
{
    /// <summary>[rows, width].</summary>
    public GpuTensor<float> X { get; init; }

    /// <summary>[width].</summary>
    public GpuTensor<float> Weight { get; init; }

    /// <summary>[rows, width].</summary>
    public GpuTensor<float> Y { get; init; }

    /// <summary>[rows].</summary>
    public GpuTensor<float> InverseRms { get; init; }

    /// <summary>[rows, width].</summary>
    public GpuTensor<float> Upstream { get; init; }

    /// <summary>[rows, width], added to.</summary>
    public GpuTensor<float> InputGradient { get; init; }

    /// <summary>[pieces, width]: the weight's gradient from each piece of the rows.</summary>
    public GpuTensor<float> WeightGradients { get; init; }

    public int Rows { get; init; }
    public int Width { get; init; }
    public float Epsilon { get; init; }
}

/// <summary>y = w ∘ x / √(mean x² + ε), row by row, and its gradients.</summary>
internal static class NormKernels
{
    public const int GroupSize = 64;

    /// <summary>Rows of a group: several, so that a barrier serves them all.</summary>
    public const int RowsPerGroup = 4;

    /// <summary>Rows whose gradients of the weight one thread sums.</summary>
    public const int RowsPerPiece = 64;

    private const int ThreadsPerRow = GroupSize / RowsPerGroup;

    /// <summary>Reads X and Weight, writes Y and InverseRms.</summary>
    public static void Forward(NormArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        int row = Grid.IdxX * RowsPerGroup + Group.IdxX / ThreadsPerRow, lane = Group.IdxX % ThreadsPerRow;
        float square = 0f;
        if (row < a.Rows)
        {
            for (int i = lane; i < a.Width; i += ThreadsPerRow)
            {
                float x = a.X[row, i];
                square += x * x;
            }
        }
        float inverse = 1f / MathF.Sqrt(SumOfRow(shared, square) / a.Width + a.Epsilon);
        if (row >= a.Rows)
            return;
        for (int i = lane; i < a.Width; i += ThreadsPerRow)
            a.Y[row, i] = a.X[row, i] * inverse * a.Weight[i];
        if (lane == 0)
            a.InverseRms[row] = inverse;
    }

    /// <summary>With g = dy ∘ w and x̂ = x / rms: dx += (g − x̂ mean(g ∘ x̂)) / rms.</summary>
    public static void AddInputGradient(NormArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        int row = Grid.IdxX * RowsPerGroup + Group.IdxX / ThreadsPerRow, lane = Group.IdxX % ThreadsPerRow;
        float inverse = 0f, dot = 0f;
        if (row < a.Rows)
        {
            inverse = a.InverseRms[row];
            for (int i = lane; i < a.Width; i += ThreadsPerRow)
                dot += a.Upstream[row, i] * (a.X[row, i] * inverse) * a.Weight[i];
        }
        float mean = SumOfRow(shared, dot) / a.Width;
        if (row >= a.Rows)
            return;
        for (int i = lane; i < a.Width; i += ThreadsPerRow)
            a.InputGradient[row, i] += (a.Upstream[row, i] * a.Weight[i] - a.X[row, i] * inverse * mean) * inverse;
    }

    /// <summary>Σ dy ∘ x̂ over each piece of the rows: a thread sums one column of one piece.</summary>
    public static void SumWeightGradient(NormArguments a)
    {
        int tiles = (a.Width + GroupSize - 1) / GroupSize, piece = Grid.IdxX / tiles;
        int column = Grid.IdxX % tiles * GroupSize + Group.IdxX;
        if (column >= a.Width)
            return;
        int end = Math.Min((piece + 1) * RowsPerPiece, a.Rows);
        float sum = 0f;
        for (int row = piece * RowsPerPiece; row < end; row++)
            sum += a.Upstream[row, column] * (a.X[row, column] * a.InverseRms[row]);
        a.WeightGradients[piece, column] = sum;
    }

    // The sum over the threads of a row, in each of them: halves are added to halves.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float SumOfRow(ArrayView<float> shared, float value)
    {
        int thread = Group.IdxX, lane = thread % ThreadsPerRow;
        shared[thread] = value;
        for (int half = ThreadsPerRow / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (lane < half)
                shared[thread] += shared[thread + half];
        }
        Group.Barrier();
        return shared[thread - lane];
    }
}
