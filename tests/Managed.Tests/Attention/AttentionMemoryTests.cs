using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Memory beyond inputs and outputs grows with the lengths, whatever the biases, not with their product.</summary>
public class AttentionMemoryTests
{
    private const int Batch = 2, Heads = 4, KeyHeads = 2, Size = 64, Buckets = 32;

    public static TheoryData<string> Biases =>
        ["none", "slopes", "distance", "buckets", "grid", "row and column", "dense", "dense shared by heads", "sinks", "mask", "captured a head", "captured a distance", "captured a query", "captured a key", "captured a pair"];

    [Theory]
    [MemberData(nameof(Biases))]
    public void Twice_the_length_takes_at_most_twice_the_workspace(string bias)
    {
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        foreach (long length in (long[])[4096, 5000, 16_384, 65_536]) // shorter ones have fewer chunks
        {
            (long forward, long backward) = Bytes(device, bias, length);
            (long twiceForward, long twiceBackward) = Bytes(device, bias, 2 * length);
            Assert.InRange(twiceForward, 0, 2 * forward);
            Assert.InRange(twiceBackward, 0, 2 * backward);
        }
    }

    [Theory]
    [MemberData(nameof(Biases))]
    public void A_head_takes_a_few_rows_of_queries_and_keys(string bias)
    {
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        foreach (long length in (long[])[64, 1000, 65_536])
        {
            (long forward, long backward) = Bytes(device, bias, length);
            // At most so many chunks of keys have gradients of all queries of their own, and of what lies along distances, keys or a grid; and there is what a thread needs for a tile.
            long chunks = bias == "dense shared by heads" ? 16 : 16 / KeyHeads, perHead = chunks * (length * Size + 4 * (length + 1000)) + 2 * length, perThread = 4 * (4 * (3 * length + 1000) + 2 * Size * (length / chunks + 256)) + (1 << 18);
            Assert.InRange(forward, 0, sizeof(float) * (2 * perThread + 8 * length));
            Assert.InRange(backward, 0, sizeof(float) * (Batch * Heads * perHead + 2 * perThread));
        }
    }

    // Nothing is read but shapes.
    private static (long Forward, long Backward) Bytes(ComputeDevice device, string bias, long length)
    {
        long place = 64;
        TensorView At(params ReadOnlySpan<long> shape)
        {
            TensorView view = TensorView.FromPointer(device, (nint)place, ElementType.Float32, shape);
            place += view.ElementCount * sizeof(float);
            return view;
        }
        var problem = new AttentionProblem { Query = At(Batch, Heads, length, Size), Key = At(Batch, KeyHeads, length, Size), Value = At(Batch, KeyHeads, length, Size), Causal = true };
        var gradients = new AttentionGradients { Query = At(Batch, Heads, length, Size), Key = At(Batch, KeyHeads, length, Size), Value = At(Batch, KeyHeads, length, Size) };
        switch (bias)
        {
            case "slopes":
                problem.Slopes = At(Batch, Heads);
                gradients.Slopes = At(Batch, Heads);
                break;
            case "distance":
                problem.DistanceBias = At(Heads, 2 * length - 1);
                gradients.DistanceBias = At(Heads, 2 * length - 1);
                break;
            case "buckets":
                problem.BucketedBias = new(At(Buckets, Heads), 128, bidirectional: true);
                gradients.BucketedBias = At(Buckets, Heads);
                break;
            case "grid":
                long height = 16, width = (length + height - 1) / height;
                problem.GridBias = new(At((2 * height - 1) * (2 * width - 1), Heads), (int)height, (int)width);
                gradients.GridBias = At((2 * height - 1) * (2 * width - 1), Heads);
                break;
            case "row and column":
                problem.RowBias = At(Batch, Heads, length);
                problem.ColumnBias = At(1, Heads, length);
                gradients.RowBias = At(Batch, Heads, length);
                gradients.ColumnBias = At(1, Heads, length);
                break;
            case "dense":
                problem.DenseBias = At(Batch, Heads, length, length);
                gradients.DenseBias = At(Batch, Heads, length, length);
                break;
            case "dense shared by heads":
                problem.DenseBias = At(1, 1, length, length);
                gradients.DenseBias = At(1, 1, length, length);
                break;
            case "sinks":
                problem.Sinks = At(Heads);
                gradients.Sinks = At(Heads);
                break;
            case "mask":
                problem.Mask = TensorView.FromPointer(device, (nint)place, ElementType.Bool, Batch, 1, length, length);
                break;
            case "captured a head":
                problem.Captured0 = CapturedTensor.PerHead(At(Heads));
                gradients.Captured0 = At(Heads);
                break;
            case "captured a distance":
                problem.Captured0 = CapturedTensor.PerHeadAndDistance(At(Heads, 2 * length - 1), length - 1);
                gradients.Captured0 = At(Heads, 2 * length - 1);
                break;
            case "captured a query":
                problem.Captured0 = CapturedTensor.PerQuery(At(Batch, Heads, length));
                gradients.Captured0 = At(Batch, Heads, length);
                break;
            case "captured a key":
                problem.Captured0 = CapturedTensor.PerKey(At(Batch, Heads, length));
                gradients.Captured0 = At(Batch, Heads, length);
                break;
            case "captured a pair":
                problem.Captured0 = CapturedTensor.Dense(At(Batch, Heads, length, length));
                gradients.Captured0 = At(Batch, Heads, length, length);
                break;
        }
        return (TransformerKernels.Attention.ForwardWorkspaceBytes(device, problem), TransformerKernels.Attention.BackwardWorkspaceBytes(device, problem, gradients));
    }
}
