using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.OpenCL;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Memory of a GPU: reuse, bounds, too little of it, pinned memory, copies, and what is counted of them.</summary>
public class GpuMemoryTests(GpuUnderTest gpu)
{
    [Fact]
    public void Memory_of_a_disposed_tensor_is_used_again_filled_with_zeros()
    {
        int asked = 0;
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => new SmallDevice(context, accelerator, long.MaxValue, () => asked++));
        for (int time = 0; time < 100; time++)
        {
            using TensorBuffer tensor = device.Allocate(ElementType.Float32, 1000 + time % 3);
            Assert.Equal(new float[1000 + time % 3], tensor.ToArray<float>());
            tensor.CopyFrom<float>(Enumerable.Repeat(42f, 1000 + time % 3).ToArray());
        }
        Assert.Equal(1, asked);
        Assert.Equal(0, device.Memory.Tensors);
        Assert.InRange(device.Memory.CachedBytes, 4000, 4600);
        Assert.Equal(device.Memory.CachedBytes, device.Memory.PeakBytes);
    }

    [Fact]
    public void A_tensor_disposed_while_work_is_queued_on_it_still_gets_its_work_done()
    {
        gpu.NeedsOpenCl();
        const int rows = 300, columns = 1000;
        for (int time = 0; time < 20; time++)
        {
            using TensorBuffer kept = gpu.Device.Allocate(ElementType.Float32, rows, columns);
            TensorBuffer passing = gpu.Device.Upload<float>(Enumerable.Range(0, rows * columns).Select(i => (float)i).ToArray(), rows, columns);
            gpu.Device.Launch(UserKernels.Scale, (rows * columns + 63) / 64, 64,
                new Scaling { Values = gpu.Device.Tensor<float>(passing), Factor = 2f, Rows = rows, Columns = columns });
            gpu.Device.Copy(passing, kept);
            passing.Dispose();
            using TensorBuffer next = gpu.Device.Allocate(ElementType.Float32, rows, columns); // the same memory, and zeros go into it
            gpu.Device.Synchronize();
            Assert.Equal(2f * (rows * columns - 1), kept.ToArray<float>()[^1]);
            Assert.Equal(0f, next.ToArray<float>()[^1]);
        }
    }

    [Fact]
    public void A_workspace_grows_without_waiting_and_idle_memory_waits_before_it_goes_back_to_the_driver()
    {
        int waits = 0;
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => new WaitingDevice(context, accelerator, () => waits++));
        using TensorBuffer model = device.Allocate(ElementType.Bool, 100_000); // what the workspace leaves idle stays within a quarter of this
        using var workspace = new Workspace(device);
        foreach (int bytes in (int[])[1000, 2000, 20_000])
            workspace.Reserve(bytes);
        Assert.Equal(0, waits);
        Assert.InRange(device.Memory.CachedBytes, 3000, 3600);
        device.Trim();
        Assert.Equal(1, waits);
        Assert.Equal(0, device.Memory.CachedBytes);
    }

    [Fact]
    public void A_workspace_that_grows_while_work_is_queued_on_it_spoils_none()
    {
        gpu.NeedsOpenCl();
        const int few = 50_000, many = 300_000;
        float[] margins = Seeded.Normal(many, 1);
        using TensorBuffer chosen = gpu.Device.Upload<float>(margins), rejected = gpu.Device.Allocate(ElementType.Float32, many);
        using TensorBuffer reserved = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count), first = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        using TensorBuffer second = gpu.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        using (var workspace = new Workspace(gpu.Device))
            Evaluate(few, reserved, workspace);
        float[] expected = reserved.ToArray<float>();
        for (int time = 0; time < 20; time++)
        {
            using var workspace = new Workspace(gpu.Device);
            Evaluate(few, first, workspace);
            long before = workspace.Bytes;
            Evaluate(many, second, workspace);
            Assert.True(workspace.Bytes > before);
            Assert.Equal(expected, first.ToArray<float>());
        }

        void Evaluate(int pairs, TensorBuffer metrics, Workspace workspace) => PreferenceLoss.Evaluate(gpu.Device,
            new PairBatch { Chosen = chosen.View.Slice(0, 0, pairs), Rejected = rejected.View.Slice(0, 0, pairs) }, new DpoSigmoid(), default, metrics, workspace);
    }

    [Fact]
    public void What_is_held_stays_within_a_quarter_more_than_what_was_needed_and_trim_gives_it_back()
    {
        using GpuDevice device = GpuUnderTest.OpenSimulator();
        var random = new Random(5);
        var tensors = new List<TensorBuffer>();
        for (int time = 0; time < 2000; time++)
        {
            if (tensors.Count > 0 && random.Next(3) == 0)
            {
                int which = random.Next(tensors.Count);
                tensors[which].Dispose();
                tensors.RemoveAt(which);
            }
            if (tensors.Count < 20)
                tensors.Add(device.Allocate(ElementType.Bool, random.Next(1, 50_000)));
            GpuMemory memory = device.Memory;
            Assert.Equal(tensors.Count, memory.Tensors);
            Assert.InRange(memory.TensorBytes, tensors.Sum(tensor => tensor.ByteCount), (long)(1.13 * tensors.Sum(tensor => tensor.ByteCount)) + 256 * tensors.Count);
            Assert.InRange(memory.TensorBytes + memory.CachedBytes, 0, memory.PeakBytes * 5 / 4);
        }
        tensors.ForEach(tensor => tensor.Dispose());
        Assert.NotEqual(0, device.Memory.CachedBytes);
        device.Trim();
        Assert.Equal(default, device.Memory);
    }

    [Fact]
    public void Idle_memory_is_given_up_before_a_tensor_is_refused()
    {
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => new SmallDevice(context, accelerator, capacity: 100_000));
        device.Allocate(ElementType.Bool, 60_000).Dispose();
        using TensorBuffer other = device.Allocate(ElementType.Bool, 90_000);
        Assert.Equal(0, device.Memory.CachedBytes);
        using TensorBuffer exact = device.Allocate(ElementType.Bool, 100_000 - (int)device.Memory.TensorBytes);
        Assert.InRange(exact.ByteCount, 1, 10_000);
    }

    [Fact]
    public void Too_little_memory_is_told_with_what_was_asked_what_there_is_and_what_is_held()
    {
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => new SmallDevice(context, accelerator, capacity: 100_000));
        using TensorBuffer held = device.Allocate(ElementType.Float32, 16_384);
        var thrown = Assert.Throws<InsufficientMemoryException>(() => device.Allocate(ElementType.Float32, 10_000));
        Assert.Contains("has no room for 40000 bytes", thrown.Message);
        Assert.Contains($"it has {long.MaxValue} in all, at most {long.MaxValue - 65_536} of them free", thrown.Message);
        Assert.Contains("holds 65536 in 1 tensors", thrown.Message);
        held.Clear();
        device.Synchronize();
    }

    [Fact]
    public void A_workspace_that_finds_no_memory_is_empty_and_usable()
    {
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => new SmallDevice(context, accelerator, capacity: 100_000));
        using TensorBuffer losses = device.Upload<float>([7, 7]), chosen = device.Upload<float>([1, 2]);
        using var workspace = new Workspace(device);
        workspace.Reserve(30_000);
        GpuMemory before = device.Memory;
        for (int time = 0; time < 100; time++)
        {
            Assert.Contains("has no room for 200000 bytes", Assert.Throws<InsufficientMemoryException>(() => workspace.Reserve(200_000)).Message);
            Assert.Equal(0, workspace.Bytes);
            workspace.Reserve(30_000);
        }
        Assert.Equal(before.Tensors, device.Memory.Tensors);
        Assert.Equal(before.TensorBytes, device.Memory.TensorBytes);
        PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosen, Rejected = chosen }, new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace);
        Assert.Equal(MathF.Log(2), losses.ToArray<float>()[0], 1e-6f);
    }

    [Fact]
    public void More_memory_than_the_device_has_is_refused_and_the_device_stays_usable()
    {
        gpu.NeedsOpenCl();
        const long elements = 1L << 47; // a petabyte
        var thrown = Assert.Throws<InsufficientMemoryException>(() => gpu.Device.Allocate(ElementType.Int64, elements));
        Assert.Matches($@"no room for {8 * elements} bytes: it has \d+ in all, (at most )?\d+ of them free; this device handle holds \d+ in \d+ tensors\.", thrown.Message);
        using TensorBuffer small = gpu.Device.Upload<float>([1]);
        Assert.Equal([1f], small.ToArray<float>());
    }

    [Fact]
    public void Pinned_memory_is_copied_without_waiting_and_is_the_hosts()
    {
        const int count = 10_000;
        using GpuDevice device = gpu.OpenAnother(); // tests that run at the same time don't count here
        using TensorBuffer pinned = device.AllocatePinned(ElementType.Float32, count), back = device.AllocatePinned(ElementType.Float32, 2, count / 2);
        using TensorBuffer tensor = device.Allocate(ElementType.Float32, 2, count / 2), copy = device.Allocate(ElementType.Float32, count);
        Span<float> values = pinned.AsSpan<float>();
        for (int i = 0; i < values.Length; i++)
            values[i] = i;
        GpuCounts before = device.Counts;
        device.Copy(pinned, tensor);
        device.Copy(tensor, copy);
        device.Copy(copy.View.Slice(0, count / 2, count / 2), back.View.Select(0, 1));
        device.Copy(tensor.View.Select(0, 1), back.View.Select(0, 0));
        device.Synchronize();
        Assert.Equal(new GpuCounts(0, 4 * count, 4 * count), device.Counts - before);
        Assert.Equal(Enumerable.Range(0, count).Select(i => (float)(count / 2 + i % (count / 2))), back.ToArray<float>());
        Assert.Same(ComputeDevice.Cpu, back.Device);
    }

    [Fact]
    public void A_copy_that_cannot_be_is_refused_by_name()
    {
        using GpuDevice other = GpuUnderTest.OpenSimulator();
        using TensorBuffer tensor = gpu.Device.Allocate(ElementType.Float32, 2, 3), ints = gpu.Device.Allocate(ElementType.Int32, 6), pinned = gpu.Device.AllocatePinned(ElementType.Float32, 6);
        using TensorBuffer theirs = other.Allocate(ElementType.Float32, 6), theirPinned = other.AllocatePinned(ElementType.Float32, 6), host = ComputeDevice.Cpu.Allocate(ElementType.Float32, 6);
        Assert.Contains("6 elements of Float32 can't be copied to 6 of Int32", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(tensor, ints)).Message);
        Assert.Contains("6 elements of Float32 can't be copied to 3", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(pinned, tensor.View.Select(0, 0))).Message);
        Assert.Contains("source has gaps", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(tensor.View.Permute(1, 0), pinned)).Message);
        Assert.Contains("source is neither a tensor of", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(theirs, tensor)).Message);
        Assert.Contains("destination is neither a tensor of", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(tensor, theirPinned)).Message);
        Assert.Contains("use CopyFrom and CopyTo", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(tensor, host)).Message);
        Assert.Contains("share memory", Assert.Throws<ArgumentException>(() => gpu.Device.Copy(tensor, tensor)).Message);
        Assert.Throws<ArgumentException>(() => gpu.Device.Copy(pinned, pinned));
    }

    [Fact]
    public void Parts_of_a_tensor_are_written_and_read()
    {
        using TensorBuffer tensor = gpu.Device.Allocate(ElementType.Float32, 3, 4);
        tensor.CopyFrom<float>([1, 2, 3], start: 3);
        Assert.Equal([0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0], tensor.ToArray<float>());
        var part = new float[2];
        tensor.CopyTo(part.AsSpan(), start: 4);
        Assert.Equal([2, 3], part);
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.CopyTo(part.AsSpan(), start: 11));
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.CopyFrom<float>(part, start: -1));
    }

    [Fact]
    public void Counts_tell_launches_and_bytes_and_nothing_else_happens()
    {
        const int pairs = 100;
        using GpuDevice device = gpu.OpenAnother();
        using var workspace = new Workspace(device);
        float[] data = new float[pairs];
        GpuCounts start = device.Counts;
        using TensorBuffer chosen = device.Upload<float>(data), rejected = device.Upload<float>(data), losses = device.Allocate(ElementType.Float32, pairs);
        Assert.Equal(new GpuCounts(0, 8 * pairs, 0), device.Counts - start);
        start = device.Counts;
        PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosen, Rejected = rejected }, new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace);
        device.Synchronize();
        Assert.Equal(new GpuCounts(1, 0, 0), device.Counts - start);
        losses.ToArray<float>();
        Assert.Equal(new GpuCounts(1, 0, 4 * pairs), device.Counts - start);
        using GpuDevice cancellable = device.With(CancellationToken.None);
        Assert.Equal(device.Counts, cancellable.Counts);
    }

    // 70 tokens take the large tile, and more instructions than the interpreter has for a test.
    [Theory]
    [InlineData(5, 1)]
    [InlineData(5, 2)]
    [InlineData(70, 2)]
    public void Attention_launches_its_kernels_and_copies_nothing(int tokens, int logSumExpTerms)
    {
        const int heads = 2, size = 4;
        using GpuDevice device = gpu.OpenAnother();
        using var workspace = new Workspace(device);
        float[] numbers = Seeded.Normal(heads * tokens * size, 1);
        using TensorBuffer query = Upload(heads), key = Upload(1), value = Upload(1), ofOutput = Upload(heads), bias = New(heads, 2 * tokens - 1);
        using TensorBuffer output = New(1, heads, tokens, size), logSumExp = logSumExpTerms == 2 ? New(1, heads, tokens, 2) : New(1, heads, tokens);
        using TensorBuffer ofQuery = New(1, heads, tokens, size), ofKey = New(1, 1, tokens, size), ofValue = New(1, 1, tokens, size), ofBias = New(heads, 2 * tokens - 1);
        var problem = new AttentionProblem { Query = query, Key = key, Value = value, Causal = true, DistanceBias = bias };

        GpuCounts start = device.Counts;
        Attention.Forward(device, problem, output, logSumExp, workspace);
        device.Synchronize();
        Assert.Equal(new GpuCounts(1, 0, 0), device.Counts - start);

        start = device.Counts;
        Attention.Backward(device, problem, new AttentionSaved { Output = output, LogSumExp = logSumExp }, new AttentionUpstream { Output = ofOutput },
            new AttentionGradients { Query = ofQuery, Key = ofKey, Value = ofValue, DistanceBias = ofBias }, workspace);
        device.Synchronize();
        // Rows, keys, queries, the sums by distance; before them, where what rounding took of the log-sum-exp isn't there, the forward kernel once more.
        Assert.Equal(new GpuCounts(logSumExpTerms == 2 ? 4 : 5, 0, 0), device.Counts - start);
        Assert.Contains(ofBias.ToArray<float>(), gradient => gradient != 0);

        TensorBuffer Upload(int ofHeads) => device.Upload<float>(numbers.AsSpan(0, ofHeads * tokens * size), 1, ofHeads, tokens, size);
        TensorBuffer New(params ReadOnlySpan<long> shape) => device.Allocate(ElementType.Float32, shape);
    }

    /// <summary>A device that tells when it is waited for.</summary>
    private sealed class WaitingDevice(Context context, Accelerator accelerator, Action waits) : GpuQueue(context, accelerator)
    {
        protected override void Wait()
        {
            waits();
            base.Wait();
        }
    }

    /// <summary>A device whose driver gives no more than so many bytes in all.</summary>
    private sealed class SmallDevice(Context context, Accelerator accelerator, long capacity, Action? asked = null) : GpuQueue(context, accelerator)
    {
        private readonly List<MemoryBuffer1D<byte, Stride1D.Dense>> given = [];

        protected override MemoryBuffer1D<byte, Stride1D.Dense> AllocateMemory(long bytes)
        {
            asked?.Invoke();
            if (bytes > capacity - given.Where(memory => !memory.IsDisposed).Sum(memory => memory.Length))
                throw new CLException(CLError.CL_MEM_OBJECT_ALLOCATION_FAILURE);
            MemoryBuffer1D<byte, Stride1D.Dense> memory = base.AllocateMemory(bytes);
            given.Add(memory);
            return memory;
        }
    }
}
