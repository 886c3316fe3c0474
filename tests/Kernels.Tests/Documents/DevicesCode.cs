using ILGPU;
using Xunit;

namespace TransformerKernels.Tests;

// The C# of docs/devices.md.

// snippet: devices-kernel
public readonly struct Scaling1D
{
    public GpuTensor<float> Values { get; init; }
    public float Factor { get; init; }
    public int Count { get; init; }
}

public static class MyKernels
{
    public static void Scale(Scaling1D a)
    {
        int i = Grid.IdxX * Group.DimX + Group.IdxX;
        if (i < a.Count)
            a.Values[i] *= a.Factor;
    }
}
// snippet ends

public class DevicesCode(GpuUnderTest gpu)
{
    [Fact]
    public void The_best_device_is_opened()
    {
        gpu.NeedsOpenCl();
        // snippet: devices-open
        foreach (GpuListing listing in GpuDevice.ListCuda().Concat(GpuDevice.ListOpenCl()))
            Console.WriteLine($"{listing}: {listing.Refusal ?? "usable"}");

        using GpuDevice device = GpuDevice.OpenBest(); // or GpuDevice.OpenCuda(0), GpuDevice.OpenOpenCl(0)
        Console.WriteLine(device.Name);
        // snippet ends
        Assert.NotEqual("", device.Name);
    }

    [Fact]
    public void Attention_runs_from_arrays_to_an_array()
    {
        gpu.NeedsOpenCl();
        // snippet: devices-attention
        const int heads = 8, tokens = 200, size = 64;
        float[] numbers = [.. Enumerable.Range(0, heads * tokens * size).Select(i => MathF.Sin(i))];

        using GpuDevice device = GpuDevice.OpenBest();
        using var workspace = new Workspace(device);
        using TensorBuffer query = device.Upload<float>(numbers, 1, heads, tokens, size);
        using TensorBuffer key = device.Upload<float>(numbers, 1, heads, tokens, size), value = device.Upload<float>(numbers, 1, heads, tokens, size);
        using TensorBuffer output = device.Allocate(ElementType.Float32, 1, heads, tokens, size), logSumExp = device.Allocate(ElementType.Float32, 1, heads, tokens);

        Attention.Forward(device, new AttentionProblem { Query = query, Key = key, Value = value, Causal = true }, output, logSumExp, workspace); // queued
        device.Synchronize(); // waits, and throws what went wrong on the device
        float[] result = output.ToArray<float>();
        Console.WriteLine($"{device.Name}: {result.Length} numbers, the last one {result[^1]:F4}");
        // snippet ends
        // The first token sees itself alone.
        Assert.Equal(numbers[..size], result[..size]);
        Assert.All(result, number => Assert.InRange(number, -1.0001f, 1.0001f));
    }

    [Fact]
    public void A_step_copies_what_it_says()
    {
        using GpuDevice device = gpu.OpenAnother();
        // snippet: devices-memory
        using TensorBuffer staging = device.AllocatePinned(ElementType.Float32, 1024);
        using TensorBuffer values = device.Allocate(ElementType.Float32, 1024);
        GpuCounts before = device.Counts;

        staging.AsSpan<float>().Fill(3f);
        device.Copy(staging, values); // queued
        device.Launch(MyKernels.Scale, groups: 4, groupSize: 256, new Scaling1D { Values = device.Tensor<float>(values), Factor = 0.5f, Count = 1024 });
        device.Copy(values, staging);
        device.Synchronize(); // now the host may look

        GpuCounts step = device.Counts - before; // 1 launch, 4096 bytes up, 4096 bytes down
        // snippet ends
        Assert.Equal(new GpuCounts(1, 4096, 4096), step);
        Assert.Equal(1.5f, staging.AsSpan<float>()[1023]);
    }
}
