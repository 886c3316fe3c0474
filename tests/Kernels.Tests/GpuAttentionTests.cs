using System.Diagnostics;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What is promised of attention on GPUs beyond what the CPU's tests show of both.</summary>
public class GpuAttentionTests(GpuUnderTest gpu, ITestOutputHelper output)
{
    [Fact]
    public void The_same_bits_come_in_20_runs()
    {
        AttentionCase problem = new()
        {
            Batch = 2, Heads = 4, KeyHeads = 2, Queries = 70, Keys = 150, HeadSize = 20, ValueSize = 12, Causal = true, HasLogSumExpUpstream = true,
            Slopes = AttentionCase.Numbers(1, 0.2f, 4), DistanceBias = AttentionCase.Numbers(2, 1, 4, 219), Captured = [new(AttentionCase.Numbers(3, 1, 4), CapturedBy.Head)],
        };
        var rule = new Temperature(0.1f, 100);
        AttentionCase.Results reference = problem.Run(DeviceUnderTest.Device, rule);
        for (int run = 1; run < 20; run++)
            Assert.All(reference.All.Zip(problem.Run(DeviceUnderTest.Device, rule).All), pair => Assert.Equal(pair.First, pair.Second));
    }

    [Fact]
    public void What_GPUs_lack_is_refused_by_name_before_anything_is_written()
    {
        ComputeDevice device = DeviceUnderTest.Device;
        string Refusal(AttentionCase problem) => Assert.Throws<NotSupportedException>(() => problem.Run(device, default(FourCaptures))).Message;
        Assert.Contains("problem.DenseBias", Refusal(new() { DenseBias = AttentionCase.Numbers(1, 1, 1, 2, 5, 5) }), StringComparison.Ordinal);
        Assert.Contains("problem.RowBias", Refusal(new() { RowBias = AttentionCase.Numbers(1, 1, 1, 2, 5) }), StringComparison.Ordinal);
        Assert.Contains("problem.ColumnBias", Refusal(new() { ColumnBias = AttentionCase.Numbers(1, 1, 1, 2, 5) }), StringComparison.Ordinal);
        Assert.Contains("problem.Softcap", Refusal(new() { Softcap = 30 }), StringComparison.Ordinal);
        Assert.Contains("gradients.Captured0", Refusal(new() { Captured = [new(AttentionCase.Numbers(1, 1, 1, 1, 5, 5), CapturedBy.Pair)] }), StringComparison.Ordinal);
    }

    // Small enough for the interpreter, which sees races, unwritten memory and bounds.
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Every_kind_of_gradient_agrees_with_the_CPU(bool causal)
    {
        AttentionCase problem = new()
        {
            Heads = 2, KeyHeads = 1, Queries = 3, Keys = 5, HeadSize = 3, ValueSize = 2, Causal = causal, HasLogSumExpUpstream = true, Slopes = AttentionCase.Numbers(1, 0.2f, 2),
            DistanceBias = AttentionCase.Numbers(2, 1, 1, 7),
            Captured =
            [
                new(AttentionCase.Numbers(3, 1, 1, 2, 3), CapturedBy.Query), new(AttentionCase.Numbers(4, 1, 1, 2, 5), CapturedBy.Key),
                new(AttentionCase.Numbers(5, 1, 2, 4), CapturedBy.HeadAndDistance, 2), new(AttentionCase.Numbers(6, 1, 1, 2, 3, 5), CapturedBy.Pair),
            ],
        };
        AttentionCase.Results ours = problem.Run(DeviceUnderTest.Device, default(FourCaptures)), cpu = problem.Run(ComputeDevice.Cpu, default(FourCaptures));
        foreach ((float[] a, float[] b) in ours.All.Zip(cpu.All))
        {
            for (int i = 0; i < a.Length; i++)
                Assert.Equal(b[i], a[i], 1e-5 * (1 + Math.Abs(b[i])));
        }
    }

    [Fact]
    public void More_columns_than_a_group_sums_up_agree_with_the_definition()
    {
        AttentionCase.Of(1, 2, 1, 70, 67, 131, 260, causal: true).Check(DeviceUnderTest.Device, default(PlainScore));
        new AttentionCase
        {
            Heads = 2, KeyHeads = 1, Queries = 9, Keys = 70, HeadSize = 300, ValueSize = 3, DistanceBias = AttentionCase.Numbers(2, 1, 1, 78),
            Captured = [new(AttentionCase.Numbers(3, 1, 2), CapturedBy.Head)],
        }.Check(DeviceUnderTest.Device, new Temperature(0.1f, 1000), new TemperatureFormula(0.1f, 1000));
    }

    [Theory]
    [InlineData(16)]
    [InlineData(64)]
    public void Either_tile_agrees_with_the_definition_around_the_edges_of_both(int side)
    {
        gpu.NeedsOpenCl();
        foreach ((int queries, int keys, int headSize, int valueSize) in ((int, int, int, int)[])
            [(1, 65, 5, 3), (15, 17, 15, 17), (16, 16, 16, 16), (17, 15, 31, 33), (31, 33, 32, 32), (32, 32, 33, 31), (33, 31, 6, 7), (63, 65, 64, 64), (64, 64, 65, 63), (65, 1, 4, 129)])
        {
            foreach (bool causal in (bool[])[false, true])
            {
                new AttentionCase
                {
                    Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = headSize, ValueSize = valueSize, Causal = causal, HasLogSumExpUpstream = true,
                    Slopes = AttentionCase.Numbers(1, 0.2f, 2), DistanceBias = AttentionCase.Numbers(2, 1, 2, queries + keys - 1),
                    Captured =
                    [
                        new(AttentionCase.Numbers(3, 0.5f, 2, 2, queries), CapturedBy.Query), new(AttentionCase.Numbers(4, 0.5f, 2, 2, keys), CapturedBy.Key),
                        new(AttentionCase.Numbers(5, 0.5f, 2, 9), CapturedBy.HeadAndDistance, 3), new(AttentionCase.Numbers(6, 0.5f, 2, 2, queries, keys), CapturedBy.Pair),
                    ],
                }.Check(DeviceUnderTest.WithTiles(side), default(FourCaptures), new FourCapturesFormula());
            }
        }
    }

    // A tile's own sums of biases are added up over several tiles of queries only where a head has more than 32 of them.
    [Fact]
    public void Pieces_of_several_small_tiles_agree_with_the_definition()
    {
        gpu.NeedsOpenCl();
        new AttentionCase
        {
            Heads = 1, KeyHeads = 1, Queries = 550, Keys = 40, HeadSize = 4, ValueSize = 4, DistanceBias = AttentionCase.Numbers(2, 1, 1, 589),
            Captured = [new(AttentionCase.Numbers(3, 1, 1, 1, 40), CapturedBy.Key)],
        }.Check(DeviceUnderTest.WithTiles(16), new Temperature(0.1f, 1000), new TemperatureFormula(0.1f, 1000));
    }

    [Theory]
    [InlineData(1, 1, 16)]
    [InlineData(32, 32, 16)]
    [InlineData(16, 64, 16)]
    [InlineData(64, 16, 16)]
    [InlineData(33, 32, 64)]
    [InlineData(16, 65, 64)]
    [InlineData(512, 512, 64)]
    public void Four_small_tiles_at_most_take_the_place_of_the_large_one(int queries, int keys, int side)
    {
        using TensorBuffer query = ComputeDevice.Cpu.Allocate(ElementType.Float32, 3, 2, queries, 8), key = ComputeDevice.Cpu.Allocate(ElementType.Float32, 3, 2, keys, 8);
        Assert.Equal(side, TileSide.Of(AttentionShape.Of(new AttentionProblem { Query = query, Key = key, Value = key })));
    }

    [Fact]
    public void Time_beside_the_CPU_is_printed()
    {
        gpu.NeedsOpenCl();
        const int heads = 8, length = 512, size = 64;
        string instructions = Vector512.IsHardwareAccelerated ? " (AVX-512)" : Avx2.IsSupported ? " (AVX2)" : "";
        float[][] numbers = [.. Enumerable.Range(0, 4).Select(seed => Seeded.Normal(heads * length * size, seed))];
        foreach (bool causal in (bool[])[false, true])
        {
            (double forward, double backward) = Time(gpu.Device);
            (double cpuForward, double cpuBackward) = Time(ComputeDevice.Cpu);
            output.WriteLine($"attention [1, {heads}, {length}, {size}]{(causal ? ", causal" : "")}: forward {forward:F1} ms, backward {backward:F1} ms on {gpu.Device.Name}; {cpuForward:F1} ms, {cpuBackward:F1} ms on {ComputeDevice.Cpu.Name}{instructions}");

            (double, double) Time(ComputeDevice device)
            {
                TensorBuffer Put(float[] data) => device.Upload<float>(data, 1, heads, length, size);
                TensorBuffer New(params ReadOnlySpan<long> shape) => device.Allocate(ElementType.Float32, shape);
                using TensorBuffer q = Put(numbers[0]), k = Put(numbers[1]), v = Put(numbers[2]), upstream = Put(numbers[3]);
                using TensorBuffer o = New(1, heads, length, size), l = New(1, heads, length, 2), dq = New(1, heads, length, size), dk = New(1, heads, length, size), dv = New(1, heads, length, size);
                using TensorBuffer bias = New(heads, 2 * length - 1), dBias = New(heads, 2 * length - 1);
                using var workspace = new Workspace(device);
                double forwardTime = double.MaxValue, backwardTime = double.MaxValue;
                // The first run compiles.
                for (int run = 0; run < 4; run++)
                {
                    var problem = new AttentionProblem { Query = q.View, Key = k.View, Value = v.View, Causal = causal, DistanceBias = bias.View };
                    long start = Stopwatch.GetTimestamp();
                    Attention.Forward(device, problem, o.View, l.View, workspace);
                    device.Synchronize();
                    forwardTime = Math.Min(forwardTime, Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                    start = Stopwatch.GetTimestamp();
                    Attention.Backward(device, problem, new AttentionSaved { Output = o.View, LogSumExp = l.View }, new AttentionUpstream { Output = upstream.View },
                        new AttentionGradients { Query = dq.View, Key = dk.View, Value = dv.View, DistanceBias = dBias.View }, workspace);
                    device.Synchronize();
                    backwardTime = Math.Min(backwardTime, Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                }
                return (forwardTime, backwardTime);
            }
        }
    }
}
