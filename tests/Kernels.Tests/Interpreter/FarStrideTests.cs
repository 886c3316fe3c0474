using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Kernels calculate addresses with 64 bits: of a tensor whose rows lie further apart than 32 bits reach, the interpreter sees the address asked for.</summary>
/// <remarks>No such memory is needed: what is asked for lies outside the tensor's memory, and the fault says how far. The lower 32 bits of the distance are 0, so that less arithmetic would stay inside.</remarks>
public partial class FarStrideTests
{
    // In elements.
    private const long Apart = 3L << 32;

    private delegate TensorView Making(params ReadOnlySpan<long> shape);

    private sealed record Operation(string Name, Action<GpuDevice, Making, Workspace> Run);

    // Every tensor with strides of its own, once.
    private static readonly Operation[] Operations =
    [
        new("rotary", (device, make, _) =>
        {
            using RotaryTable table = RotaryTable.Build(device, 8, 3);
            RotaryEmbedding.Apply(device, make(2, 2, 3, 8), make(2, 1, 3, 8), table);
        }),
        new("attention forward", (device, make, workspace) => Attention.Forward(device, new AttentionProblem
        {
            Query = make(2, 2, 3, 4), Key = make(2, 1, 3, 4), Value = make(2, 1, 3, 4), Slopes = make(2), DistanceBias = make(2, 5),
        }, make(2, 2, 3, 4), make(2, 2, 3), workspace)),
        new("attention backward", (device, make, workspace) => Attention.Backward(device, new AttentionProblem
        {
            Query = make(2, 2, 3, 4), Key = make(2, 1, 3, 4), Value = make(2, 1, 3, 4), DistanceBias = make(2, 5),
        },
            new() { Output = make(2, 2, 3, 4), LogSumExp = make(2, 2, 3, 2) }, new() { Output = make(2, 2, 3, 4) },
            new() { Query = make(2, 2, 3, 4), Key = make(2, 1, 3, 4), Value = make(2, 1, 3, 4), DistanceBias = make(2, 5) }, workspace)),
        new("log-probs", (device, make, _) =>
        {
            using TensorBuffer targets = device.Upload<int>([0, 1]);
            LogProbs.FromLogits(device, new() { Logits = make(2, 5), Targets = targets }, new() { LogProb = make(2), LogSumExp = make(2, 2), Entropy = make(2) });
        }),
        new("log-probs backward", (device, make, _) =>
        {
            using TensorBuffer targets = device.Upload<int>([0, 1]), unread = device.Allocate(ElementType.Float32, 2);
            LogProbs.FromLogitsBackward(device, new() { Logits = make(2, 5), Targets = targets }, new() { LogSumExp = unread }, new() { LogProb = make(2), LogSumExp = make(2) }, make(2, 5));
        }),
        new("log-probs backward with what rounding took", (device, make, _) =>
        {
            using TensorBuffer targets = device.Upload<int>([0, 1]);
            LogProbs.FromLogitsBackward(device, new() { Logits = make(2, 5), Targets = targets }, new() { LogSumExp = make(2, 2), Entropy = make(2) }, new() { Entropy = make(2) }, make(2, 5));
        }),
        new("dpo", (device, make, workspace) => PreferenceLoss.Evaluate(device, new() { Chosen = make(3), Rejected = make(3), ReferenceChosen = make(3), ReferenceRejected = make(3) },
            new DpoSigmoid(0.1f), new() { Loss = make(3), ChosenGradient = make(3), RejectedGradient = make(3), ChosenReward = make(3) }, default, workspace)),
        new("ppo", (device, make, workspace) => PolicyLoss.Evaluate(device, new() { LogProb = make(2, 3), OldLogProb = make(2, 3), Advantage = make(2, 3) },
            new PpoClip(0.2f), new() { Loss = make(2, 3), LogProbGradient = make(2, 3) }, default, workspace)),
        new("gae", (device, make, _) => GeneralizedAdvantage.Estimate(device, new() { Rewards = make(2, 3), Values = make(2, 3), Gamma = 0.99f, Lambda = 0.95f }, make(2, 3), make(2, 3))),
        new("whitening", (device, make, _) => GeneralizedAdvantage.Whiten(device, make(2, 3))),
    ];

    public static TheoryData<string> Names => [.. Operations.Select(operation => operation.Name)];

    [Theory]
    [MemberData(nameof(Names))]
    public void Rows_that_lie_further_apart_than_32_bits_reach_are_where_they_are(string name)
    {
        Operation operation = Operations.Single(candidate => candidate.Name == name);
        // Tensor after tensor, axis after axis; the last run has none that is far.
        int far = 0, axis = 0;
        while (true)
        {
            using InterpretedDevice interpreted = InterpretedDevice.Open();
            using var workspace = new Workspace(interpreted.Device);
            var buffers = new List<TensorBuffer>();
            int rank = 0;
            long bytes = 0;
            Exception? thrown = Record.Exception(() => operation.Run(interpreted.Device, Make, workspace));
            buffers.ForEach(buffer => buffer.Dispose());
            if (far == buffers.Count)
            {
                Assert.Null(thrown);
                break;
            }
            string message = Assert.IsType<PtxFault>(thrown).Message;
            long offset = long.Parse(Offset().Match(message).Groups[1].Value, CultureInfo.InvariantCulture), rows = offset / (Apart * sizeof(float));
            Assert.True(rows is 1 or 2 && offset - rows * Apart * sizeof(float) < bytes, $"tensor {far}, axis {axis}: {message}");
            // Rows are contiguous where an operation asks for it: the last axis of several stays as it is.
            if (++axis >= Math.Max(rank - 1, 1))
                (far, axis) = (far + 1, 0);

            TensorView Make(params ReadOnlySpan<long> shape)
            {
                TensorBuffer buffer = interpreted.Device.Allocate(ElementType.Float32, shape);
                Span<long> strides = stackalloc long[shape.Length];
                strides[^1] = 1;
                for (int i = shape.Length - 2; i >= 0; i--)
                    strides[i] = strides[i + 1] * shape[i + 1];
                if (buffers.Count == far)
                {
                    while (shape[axis] == 1)
                        axis++;
                    strides[axis] = Apart;
                    (rank, bytes) = (shape.Length, buffer.ByteCount);
                }
                buffers.Add(buffer);
                return TensorView.OfBuffer(buffer, 0, ElementType.Float32, shape, strides);
            }
        }
        Assert.NotEqual(0, far);
    }

    [GeneratedRegex(@"offset (\d+) of")]
    private static partial Regex Offset();
}
