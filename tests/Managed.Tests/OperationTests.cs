using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What is promised of every operation on the CPU.</summary>
public class OperationTests
{
    public static TheoryData<string> Names => [.. Calls.Names];

    [Theory]
    [MemberData(nameof(Names))]
    public void Result_is_bitwise_equal_for_1_2_3_and_7_threads(string name)
    {
        Calls.Call call = Calls.Of(name, large: true);
        using ComputeDevice one = ComputeDevice.OpenCpu(1);
        byte[] expected = Bits(call, one);
        foreach (int threads in (int[])[2, 3, 7])
        {
            using ComputeDevice several = ComputeDevice.OpenCpu(threads);
            Assert.Equal(expected, Bits(call, several));
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Result_is_bitwise_equal_in_100_runs(string name)
    {
        Calls.Call call = Calls.Of(name, large: false);
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        using var memory = new CallMemory(CallMemory.Place.Arrays);
        call(device, memory);
        byte[] expected = memory.Bits();
        for (int run = 1; run < 100; run++)
        {
            call(device, memory);
            Assert.Equal(expected, memory.Bits());
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    [Trait("Grid", "Full")]
    public void Result_of_many_items_is_bitwise_equal_in_100_runs(string name)
    {
        Calls.Call call = Calls.Of(name, large: true);
        using ComputeDevice device = ComputeDevice.OpenCpu(3);
        using var memory = new CallMemory(CallMemory.Place.Arrays);
        call(device, memory);
        byte[] expected = memory.Bits();
        for (int run = 1; run < 100; run++)
        {
            call(device, memory);
            Assert.True(expected.AsSpan().SequenceEqual(memory.Bits()), $"run {run} differs");
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Nothing_is_read_or_written_beside_the_tensors(string name)
    {
        foreach (bool large in (bool[])[false, true])
        {
            Calls.Call call = Calls.Of(name, large);
            byte[] expected = Bits(call, ComputeDevice.Cpu);
            foreach (CallMemory.Place place in (CallMemory.Place[])[CallMemory.Place.BeforeGuard, CallMemory.Place.AfterGuard])
            {
                using var memory = new CallMemory(place);
                call(ComputeDevice.Cpu, memory);
                Assert.Equal(expected, memory.Bits());
            }
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_second_call_allocates_nothing(string name)
    {
        Calls.Call call = Calls.Of(name, large: false);
        using ComputeDevice device = ComputeDevice.OpenCpu(1);
        using var memory = new CallMemory(CallMemory.Place.Arrays);
        for (int i = 0; i < 3; i++)
            call(device, memory);
        long before = GC.GetAllocatedBytesForCurrentThread();
        call(device, memory);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_cancelled_call_throws_and_leaves_device_and_workspace_usable(string name)
    {
        Calls.Call call = Calls.Of(name, large: true);
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        using var memory = new CallMemory(CallMemory.Place.Arrays);
        call(device, memory);
        byte[] expected = memory.Bits();
        Assert.Throws<OperationCanceledException>(() => call(device.With(new CancellationToken(canceled: true)), memory));
        call(device, memory);
        Assert.Equal(expected, memory.Bits());
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_disposed_device_throws(string name)
    {
        foreach (int threads in (int[])[1, 2])
        {
            Calls.Call call = Calls.Of(name, large: false);
            ComputeDevice device = ComputeDevice.OpenCpu(threads), handle = device.With(CancellationToken.None);
            using var memory = new CallMemory(CallMemory.Place.Arrays);
            call(device, memory); // so that the workspace is large enough
            device.Dispose();
            Assert.Throws<ObjectDisposedException>(() => call(device, memory));
            Assert.Throws<ObjectDisposedException>(() => call(handle, memory));
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Calls_on_one_device_from_several_threads_agree(string name)
    {
        Calls.Call call = Calls.Of(name, large: true);
        using ComputeDevice device = ComputeDevice.OpenCpu(3);
        byte[] expected = Bits(call, device);
        Parallel.For(0, 8, new() { MaxDegreeOfParallelism = 4 }, _ => Assert.Equal(expected, Bits(call, device)));
    }

    private static byte[] Bits(Calls.Call call, ComputeDevice device)
    {
        using var memory = new CallMemory(CallMemory.Place.Arrays);
        call(device, memory);
        return memory.Bits();
    }
}
