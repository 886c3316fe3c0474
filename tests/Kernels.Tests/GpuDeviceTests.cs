using System.Runtime.CompilerServices;
using Xunit;

namespace TransformerKernels.Tests;

public readonly struct ReferenceFreeLoss : IPairLoss
{
    public float RewardScale => 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => T.Softplus(pair.Rejected - pair.Chosen);
}

/// <summary>Memory, lifetime and refusals of a GPU device.</summary>
public class GpuDeviceTests(GpuUnderTest gpu)
{
    [Fact]
    public void Allocated_memory_is_zero_and_what_is_copied_in_comes_back()
    {
        using TensorBuffer zeros = gpu.Device.Allocate(ElementType.Int64, 3, 5);
        Assert.Equal(new long[15], zeros.ToArray<long>());

        Half[] data = [(Half)1, (Half)(-2), Half.NaN];
        using TensorBuffer buffer = gpu.Device.Upload<Half>(data);
        Assert.Equal(data, buffer.ToArray<Half>());
        buffer.Clear();
        Assert.Equal(new Half[3], buffer.ToArray<Half>());
        Assert.Throws<InvalidOperationException>(() => buffer.AsSpan<Half>());
    }

    [Fact]
    public void A_tensor_without_elements_is_a_tensor()
    {
        using TensorBuffer empty = gpu.Device.Allocate(ElementType.Float32, 0);
        Assert.Equal(0, empty.View.ElementCount);
        Assert.Empty(empty.ToArray<float>());
    }

    [Fact]
    public void Copies_are_right_while_the_garbage_collector_moves_arrays()
    {
        // One collection a round, somewhere in its copies: collections without a pause between them would hardly let the copies run.
        const int rounds = 500, longestDelay = 2000;
        int started = 0;
        var mover = new Thread(() =>
        {
            var random = new Random(1);
            for (int round = 1; round <= rounds; round++)
            {
                while (Volatile.Read(ref started) < round)
                    Thread.SpinWait(1);
                Thread.SpinWait(random.Next(longestDelay));
                GC.Collect(1, GCCollectionMode.Forced, blocking: true, compacting: true);
            }
        });
        mover.Start();
        try
        {
            for (int round = 0; round < rounds; round++)
            {
                float[] data = Enumerable.Range(round, 4000).Select(i => (float)i).ToArray();
                Volatile.Write(ref started, round + 1);
                using TensorBuffer buffer = gpu.Device.Upload<float>(data);
                Assert.Equal(data, buffer.ToArray<float>());
            }
        }
        finally
        {
            Volatile.Write(ref started, rounds);
            mover.Join();
        }
    }

    [Fact]
    public void Memory_of_another_device_is_refused_before_anything_runs()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Allocate(ElementType.Float32, 4), losses = gpu.Device.Allocate(ElementType.Float32, 4);
        float[] host = [1, 2, 3, 4];
        var thrown = Assert.Throws<ArgumentException>(() => PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = TensorView.Of(host) },
            new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace));
        Assert.Contains("batch.Rejected", thrown.Message);
        Assert.Contains(gpu.Device.Name, thrown.Message);
        Assert.Equal(new float[4], losses.ToArray<float>());

        Assert.Throws<ArgumentException>(() => PreferenceLoss.Evaluate(ComputeDevice.Cpu, new PairBatch { Chosen = chosen, Rejected = chosen }, new DpoSigmoid(),
            default, default, workspace));
        using var hostWorkspace = new Workspace(ComputeDevice.Cpu);
        Assert.Throws<ArgumentException>(() => PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = chosen }, new DpoSigmoid(), default,
            default, hostWorkspace));
    }

    [Fact]
    public void Two_opened_devices_have_two_memories()
    {
        using GpuDevice other = GpuUnderTest.OpenSimulator();
        using TensorBuffer theirs = other.Allocate(ElementType.Float32, 4);
        using var workspace = new Workspace(gpu.Device);
        Assert.Throws<ArgumentException>(() => PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = theirs, Rejected = theirs }, new DpoSigmoid(), default,
            default, workspace));
    }

    [Fact]
    public void A_disposed_tensor_throws()
    {
        TensorBuffer buffer = gpu.Device.Allocate(ElementType.Float32, 4);
        buffer.Dispose();
        buffer.Dispose();
        Assert.Throws<ObjectDisposedException>(() => buffer.View.ElementCount);
        Assert.Throws<ObjectDisposedException>(() => buffer.ToArray<float>());
        Assert.Throws<ObjectDisposedException>(buffer.Clear);
    }

    [Fact]
    public void A_view_of_a_tensor_that_was_disposed_since_throws()
    {
        TensorBuffer buffer = gpu.Device.Allocate(ElementType.Float32, 4);
        TensorView view = buffer;
        buffer.Dispose();
        using var workspace = new Workspace(gpu.Device);
        try
        {
            PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = view, Rejected = view }, new DpoSigmoid(), default, default, workspace);
            Assert.Fail("a view of freed memory was taken");
        }
        catch (ObjectDisposedException)
        {
        }
    }

    [Fact]
    public void A_closed_device_throws_and_its_tensors_can_still_be_disposed()
    {
        GpuDevice device = GpuUnderTest.OpenSimulator();
        TensorBuffer buffer = device.Allocate(ElementType.Float32, 4);
        device.Dispose();
        device.Dispose();
        Assert.Throws<ObjectDisposedException>(device.Synchronize);
        Assert.Throws<ObjectDisposedException>(() => device.Allocate(ElementType.Float32, 4));
        Assert.Throws<ObjectDisposedException>(() => buffer.ToArray<float>());
        buffer.Dispose();
    }

    [Fact]
    public void A_cancelled_call_throws_and_leaves_device_and_workspace_usable()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Upload<float>([1, 2]), rejected = gpu.Device.Upload<float>([2, 1]), losses = gpu.Device.Allocate(ElementType.Float32, 2);
        using var source = new CancellationTokenSource();
        using ComputeDevice cancellable = gpu.Device.With(source.Token);
        source.Cancel();
        Assert.Throws<OperationCanceledException>(() => PreferenceLoss.Evaluate(cancellable, new PairBatch { Chosen = chosen, Rejected = rejected }, new DpoSigmoid(),
            new PairOutputs { Loss = losses }, default, workspace));
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected }, new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace);
        Assert.DoesNotContain(0f, losses.ToArray<float>());
    }

    [Fact]
    public void What_is_not_offered_says_so_with_the_operation_and_the_device()
    {
        var thrown = Assert.Throws<NotSupportedException>(() => gpu.Device.LogProbsFromHiddenWorkspaceBytes(default, backward: false, topTokens: false, budget: 0));
        Assert.Contains("log-probs from hidden states", thrown.Message);
        Assert.Contains(gpu.Device.Name, thrown.Message);
        Assert.Contains("ComputeDevice.Cpu", thrown.Message);
    }

    [Fact]
    public void A_foreign_pointer_is_refused_by_name()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Allocate(ElementType.Float32, 2), losses = gpu.Device.Allocate(ElementType.Float32, 2);
        var thrown = Assert.Throws<NotSupportedException>(() => PreferenceLoss.Evaluate(gpu.Device,
            new PairBatch { Chosen = chosen, Rejected = TensorView.FromPointer(gpu.Device, 4096, ElementType.Float32, 2) }, new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace));
        Assert.Contains("batch.Rejected", thrown.Message);
    }

    [Fact]
    public void A_struct_that_is_not_public_is_refused_and_the_device_stays_usable()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Upload<float>([1, 2]), rejected = gpu.Device.Upload<float>([2, 1]), losses = gpu.Device.Allocate(ElementType.Float32, 2);
        var thrown = Assert.Throws<NotSupportedException>(() => PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected },
            new HiddenLoss(), new PairOutputs { Loss = losses }, default, workspace));
        Assert.Contains(nameof(HiddenLoss), thrown.Message);
        PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected }, new ReferenceFreeLoss(), new PairOutputs { Loss = losses }, default, workspace);
        Assert.DoesNotContain(0f, losses.ToArray<float>());
    }

    [Fact]
    public void A_struct_with_a_field_that_is_no_number_is_refused_and_the_device_stays_usable()
    {
        using var workspace = new Workspace(gpu.Device);
        using TensorBuffer chosen = gpu.Device.Upload<float>([1, 2]), rejected = gpu.Device.Upload<float>([2, 1]), losses = gpu.Device.Allocate(ElementType.Float32, 2);
        var thrown = Assert.Throws<NotSupportedException>(() => Evaluate(new FlaggedLoss(0.5f, true)));
        Assert.Contains("FlaggedLoss has a bool as a field (", thrown.Message);
        thrown = Assert.Throws<NotSupportedException>(() => Evaluate(new LetteredLoss { Inner = new() { Letter = 'a' } }));
        Assert.Contains("Inscription has a char as a field (Letter)", thrown.Message);
        Assert.Equal(new float[2], losses.ToArray<float>());
        Evaluate(new ReferenceFreeLoss());
        Assert.DoesNotContain(0f, losses.ToArray<float>());

        void Evaluate<TLoss>(TLoss loss) where TLoss : unmanaged, IPairLoss =>
            PreferenceLoss.Evaluate(gpu.Device, new PairBatch { Chosen = chosen, Rejected = rejected }, loss, new PairOutputs { Loss = losses }, default, workspace);
    }

    [Fact]
    public void A_struct_that_does_not_compile_is_named()
    {
        using GpuDevice device = GpuUnderTest.OpenSimulator();
        using var workspace = new Workspace(device);
        using TensorBuffer chosen = device.Allocate(ElementType.Float32, 2), losses = device.Allocate(ElementType.Float32, 2);
        for (int time = 0; time < 2; time++)
        {
            var thrown = Assert.ThrowsAny<Exception>(() => PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosen, Rejected = chosen }, new AllocatingLoss(),
                new PairOutputs { Loss = losses }, default, workspace));
            Assert.Contains(nameof(AllocatingLoss), thrown.Message);
        }
    }

    [Fact]
    public void An_index_without_a_device_says_how_many_there_are()
    {
        var thrown = Assert.Throws<ArgumentOutOfRangeException>(() => GpuDevice.OpenOpenCl(1000));
        Assert.Contains($"has {GpuDevice.ListOpenCl().Count} OpenCL", thrown.Message);
        thrown = Assert.Throws<ArgumentOutOfRangeException>(() => GpuDevice.OpenCuda(1000));
        Assert.Contains($"has {GpuDevice.ListCuda().Count} CUDA", thrown.Message);
    }

    private readonly struct HiddenLoss : IPairLoss
    {
        public float RewardScale => 1f;

        public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => pair.Margin;
    }
}

public readonly struct FlaggedLoss(float scale, bool negated) : IPairLoss
{
    public float RewardScale => scale;

    public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => negated ? -pair.Margin : pair.Margin;
}

public struct LetteredLoss : IPairLoss
{
    public Inscription Inner;

    public readonly float RewardScale => Inner.Letter;

    public readonly T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => pair.Margin;
}

public struct Inscription
{
    public char Letter;
}

public readonly struct AllocatingLoss : IPairLoss
{
    public float RewardScale => 1f;

    public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => new T[] { pair.Margin }.Reverse().First();
}
