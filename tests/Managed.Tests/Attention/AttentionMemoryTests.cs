using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Memory beyond inputs and outputs is proportional to the lengths, whatever the biases, once the keys are in as many chunks as they ever are; and it is what the page says.</summary>
public partial class AttentionMemoryTests
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

    [Theory]
    [InlineData(1000, 16 * 1024)]
    [InlineData(2048, 32 * 2048)]
    [InlineData(2049, 0)]
    public void A_mask_that_four_heads_share_is_kept_as_bits_while_these_take_a_megabyte_at_most(long length, long words)
    {
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        (long forward, long backward) = Bytes(device, "mask", length);
        (long Forward, long Backward) without = Bytes(device, "none", length);
        Assert.Equal((words * Batch * sizeof(ulong), words * Batch * sizeof(ulong)), (forward - without.Forward, backward - without.Backward));
    }

    [Fact]
    public void The_page_tells_the_workspace_of_four_lengths()
    {
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        Match[] rows = TableRow().Matches(DocumentTests.Read("docs/attention.md")).ToArray();
        Assert.Equal(3, rows.Length);
        foreach (Match row in rows)
        {
            int heads = int.Parse(row.Groups["heads"].Value);
            var said = row.Groups["megabytes"].Captures.Select(capture => capture.Value);
            Assert.Equal(new[] { 2048L, 4096, 8192, 16_384 }.Select(length =>
            {
                (long forward, long backward) = Bytes(device, "none", 1, heads, heads, length, length);
                return ((row.Groups["pass"].Value == "forward" ? forward : backward) / 1e6).ToString("F2", CultureInfo.InvariantCulture);
            }), said);
        }
    }

    [GeneratedRegex(@"^\| (?<pass>forward|backward), (?<heads>\d+) heads? \|( (?<megabytes>[\d.]+) \|)+$", RegexOptions.Multiline)]
    private static partial Regex TableRow();

    [Theory]
    [InlineData(1, 1, 1, 1024, 1024, 1)]
    [InlineData(1, 1, 1, 4096, 4096, 2)]
    [InlineData(1, 1, 1, 64, 32_768, 2)]
    [InlineData(2, 2, 2, 4096, 1000, 3)]
    [InlineData(3, 8, 8, 2048, 2048, 2)]
    [InlineData(1, 32, 8, 8192, 8192, 16)]
    [InlineData(2, 32, 32, 640, 640, 2)]
    [InlineData(1, 8, 2, 4096, 4096, 2)]
    [InlineData(2, 16, 1, 2048, 3000, 5)]
    public void The_workspace_is_that_of_the_page(int batch, int heads, int keyHeads, long queries, long keys, int threads)
    {
        using ComputeDevice device = ComputeDevice.OpenCpu(threads);
        (long forward, long backward) = Bytes(device, "none", batch, heads, keyHeads, queries, keys);
        long parts = keyHeads < 4 ? Math.Min(heads, 16) / keyHeads : 1, owners = keyHeads * parts; // enough queries for as many parts as there can be
        long chunks = Math.Max(1, Math.Max(Math.Min(16 / owners, (keys + 511) / 512), Math.Min(4 / owners, (keys + 255) / 256))), chunk = (keys + chunks - 1) / chunks;
        long ofThread = 148 * queries + 28 * keys + 128 * chunk + 405_000, ofKeys = 4 * 2 * Size * chunk;
        long expected = threads * (ofThread + (parts == 1 ? ofKeys : 0)) + (parts == 1 ? 0 : batch * owners * chunks * ofKeys)
            + batch * heads * (8 * queries + (chunks > 1 ? chunks * 4 * queries * Size : 0));
        const double rounding = 0.02; // chunks to tiles
        Assert.InRange(forward / (double)(threads * (20 * queries + 28 * keys + 152_000)), 1 - rounding, 1 + rounding);
        Assert.InRange(backward / (double)expected, 1 - rounding, 1 + rounding);
    }

    // Nothing is read but shapes.
    private static (long Forward, long Backward) Bytes(ComputeDevice device, string bias, long length) => Bytes(device, bias, Batch, Heads, KeyHeads, length, length);

    private static (long Forward, long Backward) Bytes(ComputeDevice device, string bias, int batch, int heads, int keyHeads, long length, long keys)
    {
        long place = 64;
        TensorView At(params ReadOnlySpan<long> shape)
        {
            TensorView view = TensorView.FromPointer(device, (nint)place, ElementType.Float32, shape);
            place += view.ElementCount * sizeof(float);
            return view;
        }
        var problem = new AttentionProblem { Query = At(batch, heads, length, Size), Key = At(batch, keyHeads, keys, Size), Value = At(batch, keyHeads, keys, Size), Causal = true };
        var gradients = new AttentionGradients { Query = At(batch, heads, length, Size), Key = At(batch, keyHeads, keys, Size), Value = At(batch, keyHeads, keys, Size) };
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
