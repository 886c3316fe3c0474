using System.Diagnostics;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Long use of a device. Alone: what other tests allocate meanwhile would count.</summary>
[Collection(nameof(Alone))]
public class GpuLeakTests(GpuUnderTest gpu)
{
    [Fact]
    public void Ten_thousand_calls_leak_nothing()
    {
        gpu.NeedsOpenCl();
        const int calls = 10_000, pairs = 300, warmUp = 1000;
        using GpuDevice device = gpu.OpenAnother();
        using var workspace = new Workspace(device);
        using TensorBuffer pinned = device.AllocatePinned(ElementType.Float32, pairs);
        LeakNothing(device, warmUp, calls, Call); // a buffer of each call would be 12 MB, an OpenCL event of each 2 MB and more

        void Call(int times)
        {
            for (int time = 0; time < times; time++)
            {
                using TensorBuffer chosen = device.Allocate(ElementType.Float32, pairs), losses = device.Allocate(ElementType.Float32, pairs);
                device.Copy(pinned, chosen);
                PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosen, Rejected = chosen }, new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace);
                if (time % 100 == 99)
                    device.Synchronize();
            }
        }

    }

    [Fact]
    public void Ten_thousand_calls_of_all_operations_leak_nothing()
    {
        gpu.NeedsOpenCl();
        const int calls = 10_000, size = 16, warmUp = 50;
        using GpuDevice device = gpu.OpenAnother();
        LeakNothing(device, warmUp, (calls + TrafficCase.All.Length - 1) / TrafficCase.All.Length, rounds =>
        {
            for (int round = 0; round < rounds; round++)
            {
                foreach (TrafficCase operation in TrafficCase.All)
                {
                    using var tensors = new TrafficTensors(device);
                    operation.Run(tensors, size);
                }
                device.Synchronize();
            }
        });
    }

    // A leak is there every time; what the runtime, the compiler and the driver's heap take for themselves comes and goes.
    private static void LeakNothing(GpuDevice device, int warmUp, int times, Action<int> call)
    {
        const int tries = 4;
        call(warmUp);
        GpuMemory before = device.Memory;
        List<(long Managed, long Resident)> grown = [];
        while (grown.Count < tries)
        {
            (long managed, long resident) = (GC.GetTotalMemory(forceFullCollection: true), Resident());
            call(times);
            Assert.Equal(before, device.Memory);
            grown.Add((GC.GetTotalMemory(forceFullCollection: true) - managed, Resident() - resident));
            if (grown[^1] is { Managed: <= 1 << 20, Resident: <= 8 << 20 })
                return;
        }
        Assert.Fail($"{times} times leave managed and resident bytes behind each time: {string.Join(", ", grown)}.");

        static long Resident()
        {
            using var process = Process.GetCurrentProcess();
            return process.WorkingSet64;
        }
    }
}

[CollectionDefinition(nameof(Alone), DisableParallelization = true)]
public sealed class Alone;
