using Xunit;

namespace TransformerKernels.Tests;

public class WorkspaceTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    [Fact]
    public void It_grows_to_what_is_asked_for_and_keeps_it()
    {
        using var workspace = new Workspace(Device);
        Assert.Equal(0, workspace.Bytes);
        using (Workspace.Lease nothing = workspace.Rent(0))
            Assert.True(nothing.Buffer is null && !nothing.View.IsPresent);
        workspace.Reserve(1000);
        Assert.Equal(1000, workspace.Bytes);
        TensorBuffer first;
        using (Workspace.Lease lease = workspace.Rent(10))
            first = lease.Buffer!;
        using (Workspace.Lease lease = workspace.Rent(1000))
            Assert.Same(first, lease.Buffer);
        using (Workspace.Lease lease = workspace.Rent(1001))
            Assert.Equal(1001, lease.View.ElementCount);
        Assert.True(first.IsDisposed);
    }

    [Fact]
    public void Its_limit_holds_and_what_throws_leaves_it_usable()
    {
        using var workspace = new Workspace(Device, limit: 100);
        workspace.Reserve(100);
        Assert.Contains("100", Assert.Throws<ArgumentException>("workspace", () => workspace.Reserve(101)).Message);
        Assert.Throws<ArgumentException>("workspace", () => workspace.Rent(101).Dispose());
        Assert.Throws<ArgumentOutOfRangeException>("bytes", () => workspace.Rent(-1).Dispose());
        Assert.Equal(100, workspace.Bytes);
        workspace.Rent(50).Dispose();
        Assert.Throws<ArgumentNullException>("device", () => new Workspace(null!));
        Assert.Throws<ArgumentOutOfRangeException>("limit", () => new Workspace(Device, -1));
    }

    [Fact]
    public void A_second_use_at_the_same_time_throws()
    {
        using var workspace = new Workspace(Device);
        using (workspace.Rent(10))
        {
            Assert.Throws<InvalidOperationException>(() => workspace.Rent(10).Dispose());
            Assert.Throws<InvalidOperationException>(() => workspace.Reserve(1000));
            Assert.Throws<InvalidOperationException>(workspace.Dispose);
            float[] pair = [1];
            Assert.Throws<InvalidOperationException>(() => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(pair), Rejected = TensorView.Of(pair) }, new DpoSigmoid(), new() { Loss = TensorView.Of(new float[1]) }, default, workspace));
        }
        workspace.Rent(1000).Dispose();
    }

    [Fact]
    public void A_lease_that_is_disposed_again_frees_no_later_one()
    {
        using var workspace = new Workspace(Device);
        Workspace.Lease first = workspace.Rent(10);
        first.Dispose();
        first.Dispose();
        using (workspace.Rent(10))
        {
            first.Dispose();
            Assert.Throws<InvalidOperationException>(() => workspace.Reserve(10));
        }
        workspace.Reserve(10);
    }

    [Fact]
    public void It_says_that_its_own_device_was_disposed()
    {
        ComputeDevice device = ComputeDevice.OpenCpu(2);
        using var workspace = new Workspace(device);
        workspace.Reserve(10);
        device.Dispose();
        float[] pair = [1];
        ObjectDisposedException thrown = Assert.Throws<ObjectDisposedException>(() => PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(pair), Rejected = TensorView.Of(pair) }, new DpoSigmoid(), new(),
            TensorView.Of(new float[PreferenceMetrics.Count]), workspace));
        Assert.StartsWith("The workspace can't grow to ", thrown.Message);
        Assert.Contains("bytes: the device that it was made for was disposed.", thrown.Message);
    }

    [Fact]
    public void Threads_that_share_one_either_work_alone_or_are_told()
    {
        using var workspace = new Workspace(Device);
        int[] done = new int[2];
        float[] chosen = Seeded.Normal(3000, 1), rejected = Seeded.Normal(3000, 2), expected = Losses(new Workspace(Device));
        Parallel.For(0, 200, _ =>
        {
            try
            {
                Assert.Equal(expected, Losses(workspace));
                Interlocked.Increment(ref done[0]);
            }
            catch (InvalidOperationException)
            {
                Interlocked.Increment(ref done[1]);
            }
        });
        Assert.True(done[0] > 0);
        Assert.Equal(200, done[0] + done[1]);

        float[] Losses(Workspace own)
        {
            float[] losses = new float[3000], metrics = new float[PreferenceMetrics.Count];
            PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) }, new DpoSigmoid(), new() { Loss = TensorView.Of(losses) }, TensorView.Of(metrics), own);
            return [.. losses, .. metrics];
        }
    }

    [Fact]
    public void A_disposed_workspace_throws()
    {
        var workspace = new Workspace(Device);
        workspace.Reserve(10);
        workspace.Dispose();
        workspace.Dispose();
        Assert.Equal(0, workspace.Bytes);
        Assert.Throws<ObjectDisposedException>(() => workspace.Reserve(10));
        Assert.Throws<ObjectDisposedException>(() => workspace.Rent(0).Dispose());
        workspace.Dispose();
    }

    [Fact]
    public void Results_do_not_depend_on_what_lies_in_it_or_on_its_size()
    {
        Calls.Call call = Calls.Of("preference loss", large: true);
        byte[]? expected = null;
        foreach (long bytes in (long[])[0, 100_000, 1_000_000])
        {
            using var memory = new CallMemory(CallMemory.Place.Arrays);
            Workspace workspace = memory.Workspace(Device);
            workspace.Reserve(bytes);
            using (Workspace.Lease lease = workspace.Rent(0))
                lease.Buffer?.AsSpan<bool>().Fill(true);
            call(Device, memory);
            expected ??= memory.Bits();
            Assert.Equal(expected, memory.Bits());
        }
    }
}
