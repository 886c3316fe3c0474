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

    // A leak grows with every call; what the runtime, the compiler and the driver's heap take for themselves comes and goes, so the middle of several growths counts.
    private static void LeakNothing(GpuDevice device, int warmUp, int times, Action<int> call)
    {
        const int parts = 5;
        const long managedBytes = (1 << 20) / parts, processBytes = (8 << 20) / parts; // of all calls together 1 MB and 8 MB
        call(warmUp);
        GpuMemory before = device.Memory;
        (long Managed, long Process)[] sizes = new (long, long)[parts + 1];
        for (int part = 0; part <= parts; part++)
        {
            if (part > 0)
                call((times + parts - 1) / parts);
            long managed = GC.GetTotalMemory(forceFullCollection: true);
            // What is collected still counts in the process's size until it is given back to the system.
            GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
            using var process = Process.GetCurrentProcess();
            sizes[part] = (managed, process.WorkingSet64);
        }
        Assert.Equal(before, device.Memory);
        string all = string.Join(", ", sizes);
        Assert.True(Middle(sizes.Select(size => size.Managed)) <= managedBytes, $"The managed heap grows: {all}");
        Assert.True(Middle(sizes.Select(size => size.Process)) <= processBytes, $"The process grows: {all}");

        static long Middle(IEnumerable<long> sizes) => sizes.Zip(sizes.Skip(1), (first, second) => second - first).Order().ElementAt(parts / 2);
    }
}

[CollectionDefinition(nameof(Alone), DisableParallelization = true)]
public sealed class Alone;
