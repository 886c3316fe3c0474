using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.OpenCL;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Devices that break, kernels that they can't run, work that is cut off.</summary>
public class GpuFaultTests(GpuUnderTest gpu)
{
    [Fact]
    public void A_device_that_is_lost_says_so_from_then_on_and_can_be_closed()
    {
        Breaking? queue = null;
        GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => queue = new Breaking(context, accelerator));
        TensorBuffer tensor = device.Upload<float>([1, 2]);
        TensorBuffer pinned = device.AllocatePinned(ElementType.Float32, 2);
        device.Copy(pinned, tensor);
        queue!.Broken = true;

        var thrown = Assert.Throws<DeviceLostException>(device.Synchronize);
        Assert.Contains("no longer works (CL_OUT_OF_RESOURCES)", thrown.Message);
        Assert.Contains("Dispose the device and open it again", thrown.Message);
        Assert.IsType<CLException>(thrown.InnerException);
        queue.Broken = false; // even if the driver answers again: what it held is gone
        Assert.Throws<DeviceLostException>(device.Synchronize);
        Assert.Throws<DeviceLostException>(() => device.Allocate(ElementType.Float32, 1));
        Assert.Throws<DeviceLostException>(() => tensor.ToArray<float>());
        Assert.Throws<DeviceLostException>(tensor.Clear);
        Assert.Throws<DeviceLostException>(() => device.Launch(UserKernels.Scale, 1, 1, default(Scaling)));
        Assert.Throws<DeviceLostException>(device.Trim);
        tensor.Dispose();
        pinned.Dispose();
        device.Dispose();
    }

    [Fact]
    public void A_device_lost_at_a_launch_names_the_drivers_error()
    {
        Breaking? queue = null;
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => queue = new Breaking(context, accelerator));
        queue!.LaunchError = CLError.CL_DEVICE_NOT_AVAILABLE;
        var thrown = Assert.Throws<DeviceLostException>(() => device.Launch(UserKernels.Scale, 1, 1, default(Scaling)));
        Assert.Contains("CL_DEVICE_NOT_AVAILABLE", thrown.Message);
    }

    [Fact]
    public void A_device_lost_within_an_operation_says_so_and_what_it_holds_can_be_disposed()
    {
        Breaking? queue = null;
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => queue = new Breaking(context, accelerator));
        using TensorBuffer chosen = device.Upload<float>([1, 2]), losses = device.Upload<float>([7, 7]);
        using var workspace = new Workspace(device);
        queue!.LaunchError = CLError.CL_DEVICE_NOT_AVAILABLE;
        Assert.Throws<DeviceLostException>(() => PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosen, Rejected = chosen }, new DpoSigmoid(), new PairOutputs { Loss = losses }, default, workspace));
        Assert.NotEqual(0, workspace.Bytes); // and no call holds it
        Assert.Throws<DeviceLostException>(() => workspace.Reserve(1 << 20));
        Assert.Equal(0, workspace.Bytes);
    }

    [Fact]
    public void A_device_lost_while_idle_memory_goes_back_says_so()
    {
        Breaking? queue = null;
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => queue = new Breaking(context, accelerator));
        device.Allocate(ElementType.Bool, 1000).Dispose();
        queue!.Broken = true;
        Assert.Throws<DeviceLostException>(device.Trim);
        queue.Broken = false;
        Assert.Throws<DeviceLostException>(() => device.Allocate(ElementType.Bool, 1000));
    }

    [Fact]
    public void A_second_handle_can_be_disposed_while_its_work_is_queued_and_the_first_goes_on()
    {
        gpu.NeedsOpenCl();
        const int rows = 1000, columns = 1000;
        float[] ones = new float[rows * columns];
        Array.Fill(ones, 1f);
        using var source = new CancellationTokenSource();
        using TensorBuffer values = gpu.Device.Upload<float>(ones, rows, columns);
        var scaling = new Scaling { Values = gpu.Device.Tensor<float>(values), Factor = 2f, Rows = rows, Columns = columns };
        using (GpuDevice second = gpu.Device.With(source.Token))
        {
            for (int launch = 0; launch < 10; launch++)
                second.Launch(UserKernels.Scale, rows * columns / 64, 64, scaling);
        }
        gpu.Device.Launch(UserKernels.Scale, rows * columns / 64, 64, scaling);
        Assert.All(values.ToArray<float>(), value => Assert.Equal(2048f, value));
    }

    [Fact]
    public void A_launch_that_the_driver_refuses_writes_nothing_and_loses_nothing()
    {
        Breaking? queue = null;
        using GpuDevice device = GpuUnderTest.OpenSimulator((context, accelerator) => queue = new Breaking(context, accelerator));
        using TensorBuffer values = device.Upload<float>([1, 2], 1, 2);
        var scaling = new Scaling { Values = device.Tensor<float>(values), Factor = 2f, Rows = 1, Columns = 2 };
        GpuCounts before = device.Counts;
        queue!.LaunchError = CLError.CL_INVALID_WORK_GROUP_SIZE;
        var thrown = Assert.Throws<NotSupportedException>(() => device.Launch(UserKernels.Scale, 1, 2, scaling));
        Assert.Contains("UserKernels.Scale can't run in groups of 2 threads", thrown.Message);
        Assert.Contains("more registers or shared memory", thrown.Message);
        Assert.Equal(before, device.Counts);
        queue.LaunchError = null;
        device.Launch(UserKernels.Scale, 1, 2, scaling);
        Assert.Equal([2f, 4f], values.ToArray<float>());
    }

    [Fact]
    public void More_shared_memory_than_the_device_has_is_refused()
    {
        gpu.NeedsOpenCl();
        using TensorBuffer values = gpu.Device.Upload<float>([1, 2]);
        var thrown = Assert.Throws<NotSupportedException>(() => gpu.Device.Launch(GreedyKernels.Spread, 1, 2, new Scaling { Values = gpu.Device.Tensor<float>(values), Columns = 2 }));
        Assert.Contains($"GreedyKernels.Spread takes {sizeof(float) * GreedyKernels.TooMany} bytes of shared memory", thrown.Message);
        Assert.Equal([1f, 2f], values.ToArray<float>());
    }

    [Fact]
    public void A_kernel_in_float16_is_refused_by_a_device_without_it()
    {
        gpu.NeedsOpenCl();
        using GpuDevice device = gpu.OpenAnother(); // a failed compilation would be the last one of the others' device
        using TensorBuffer values = device.Upload<float>([1, 2]);
        var scaling = new Scaling { Values = device.Tensor<float>(values), Factor = 2f, Rows = 1, Columns = 2 };
        if (gpu.HasFloat16)
        {
            device.Launch(GreedyKernels.ScaleInHalf, 1, 2, scaling);
            Assert.Equal([2f, 4f], values.ToArray<float>());
            return;
        }
        var thrown = Assert.Throws<NotSupportedException>(() => device.Launch(GreedyKernels.ScaleInHalf, 1, 2, scaling));
        Assert.Contains("GreedyKernels.ScaleInHalf doesn't compile for", thrown.Message);
        Assert.Contains("Float16 (Half) type is not supported on this device", thrown.Message);
        Assert.Equal([1f, 2f], values.ToArray<float>());
    }

    [Fact]
    public void A_kernel_that_does_not_compile_is_named_with_the_reason()
    {
        using GpuDevice device = GpuUnderTest.OpenSimulator();
        var thrown = Assert.Throws<NotSupportedException>(() => device.Launch(GreedyKernels.Allocate, 1, 1, default(Scaling)));
        Assert.Contains("GreedyKernels.Allocate doesn't compile for", thrown.Message);
        using TensorBuffer values = device.Upload<float>([1]);
        Assert.Equal([1f], values.ToArray<float>());
    }

    [Fact]
    public void A_device_can_be_closed_while_work_is_queued()
    {
        gpu.NeedsOpenCl();
        const int rows = 1000, columns = 1000;
        for (int time = 0; time < 3; time++)
        {
            GpuDevice device = gpu.OpenAnother();
            TensorBuffer values = device.Allocate(ElementType.Float32, rows, columns), pinned = device.AllocatePinned(ElementType.Float32, rows, columns);
            for (int launch = 0; launch < 50; launch++)
            {
                device.Launch(UserKernels.Scale, rows * columns / 64, 64, new Scaling { Values = device.Tensor<float>(values), Factor = 2f, Rows = rows, Columns = columns });
                device.Copy(values, pinned);
            }
            device.Dispose();
            Assert.Throws<ObjectDisposedException>(() => device.Launch(UserKernels.Scale, 1, 1, default(Scaling)));
            values.Dispose();
            pinned.Dispose();
        }
    }

    [Fact]
    public void Two_opened_devices_on_one_GPU_work_in_turns_on_one_thread()
    {
        gpu.NeedsOpenCl();
        using TensorBuffer here = gpu.Device.Upload<float>([1]);
        using (GpuDevice other = gpu.OpenAnother())
        {
            using TensorBuffer there = other.Upload<float>([2]);
            Assert.Equal([1f], here.ToArray<float>());
            Assert.Equal([2f], there.ToArray<float>());
            Assert.Contains("can't address", Assert.Throws<ArgumentException>(() => gpu.Device.Tensor<float>(there)).Message);
        }
        Assert.Equal([1f], here.ToArray<float>());
    }

    /// <summary>A device that breaks when a test wants it to.</summary>
    private sealed class Breaking(Context context, Accelerator accelerator) : GpuQueue(context, accelerator)
    {
        public bool Broken { get; set; }

        public CLError? LaunchError { get; set; }

        protected override void Wait()
        {
            if (Broken)
                throw new CLException(CLError.CL_OUT_OF_RESOURCES);
            base.Wait();
        }

        protected override void Run<T1, T2>(Action<T1, T2> kernel, KernelConfig size, T1 first, T2 second)
        {
            if (LaunchError is { } error)
                throw new CLException(error);
            base.Run(kernel, size, first, second);
        }

        protected override void Run<T>(Action<T> kernel, KernelConfig size, T argument)
        {
            if (LaunchError is { } error)
                throw new CLException(error);
            base.Run(kernel, size, argument);
        }
    }
}

/// <summary>What no device can run.</summary>
public static class GreedyKernels
{
    // More than the largest shared memory there is, 1 MB on PoCL.
    public const int TooMany = 1 << 22;

    public static void Spread(Scaling a)
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(TooMany);
        for (int i = Group.IdxX; i < TooMany; i += Group.DimX)
            tile[i] = i;
        Group.Barrier();
        a.Values[Group.IdxX] = tile[TooMany - 1 - Group.IdxX];
    }

    public static void ScaleInHalf(Scaling a) => a.Values[0, Group.IdxX] = (ILGPU.Half)a.Values[0, Group.IdxX] * (ILGPU.Half)a.Factor;

    public static void Allocate(Scaling a) => a.Values[0] = string.Concat("a", a.Rows.ToString(System.Globalization.CultureInfo.InvariantCulture)).Length;
}
