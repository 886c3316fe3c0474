using ILGPU;
using ILGPU.Backends.OpenCL;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace TransformerKernels;

/// <summary>A GPU that this machine has, and why it can't be used if it can't.</summary>
/// <param name="Index">What <see cref="GpuDevice.OpenOpenCl"/> or <see cref="GpuDevice.OpenCuda"/> takes.</param>
/// <param name="Name">The device's name, as its driver tells it.</param>
/// <param name="Refusal">Why it can't be opened; null if it can.</param>
public sealed record GpuListing(int Index, string Name, string? Refusal);

/// <summary>A GPU and a queue on it, reached by OpenCL or CUDA.</summary>
/// <remarks>
/// Calls are queued and return at once, except copies to and from the host; <see cref="Synchronize"/> waits. A tensor must outlive the work that is queued
/// on it (Debug builds of this library check). Each operation compiles on its first use, which takes some tenths of a second; with a rule or loss of the
/// user's, once per struct; such a struct must be public.
/// Every opened device has its own memory, also if it is the same GPU. Thread-safe; work from several threads is queued one after the other.
/// <para>Not offered yet: everything but <see cref="PreferenceLoss"/>, and views of foreign pointers. Both throw <see cref="NotSupportedException"/>.</para>
/// </remarks>
public sealed partial class GpuDevice : ComputeDevice
{
    private readonly CancellationToken cancellation;
    private readonly bool ownsQueue;

    internal GpuDevice(string kind, Context context, Accelerator accelerator) : this($"{kind}, {accelerator.Name}", new GpuQueue(context, accelerator))
    {
    }

    internal GpuDevice(string name, GpuQueue queue)
    {
        Name = name;
        Queue = queue;
        ownsQueue = true;
    }

    private GpuDevice(GpuDevice device, CancellationToken cancellation)
    {
        Name = device.Name;
        Queue = device.Queue;
        this.cancellation = cancellation;
    }

    /// <summary>The OpenCL devices of this machine. Empty if there is no OpenCL library (libOpenCL.so, OpenCL.dll) or no driver.</summary>
    public static IReadOnlyList<GpuListing> ListOpenCl() => OpenClDevices().Select((device, index) => new GpuListing(index, device.Name, Refusal(device))).ToArray();

    /// <summary>The CUDA devices of this machine. Empty if there is no NVIDIA driver.</summary>
    public static IReadOnlyList<GpuListing> ListCuda() => CudaDevices().Select((device, index) => new GpuListing(index, device.Name, Refusal(device))).ToArray();

    /// <summary>Opens an OpenCL device.</summary>
    /// <param name="index">Its place in <see cref="ListOpenCl"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such device.</exception>
    /// <exception cref="NotSupportedException">The device lacks what the kernels need; the message says what.</exception>
    public static GpuDevice OpenOpenCl(int index)
    {
        CLDevice device = Pick(OpenClDevices(), index, "OpenCL", "OpenCL needs a driver and the loader's library, libOpenCL.so (Debian: ocl-icd-opencl-dev) or OpenCL.dll");
        return Open("OpenCL", device, builder => builder.OpenCL(other => other.DeviceId == device.DeviceId));
    }

    /// <summary>Opens a CUDA device, in a context of its own.</summary>
    /// <param name="index">Its place in <see cref="ListCuda"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such device.</exception>
    /// <exception cref="NotSupportedException">The device lacks what the kernels need; the message says what.</exception>
    public static GpuDevice OpenCuda(int index)
    {
        CudaDevice device = Pick(CudaDevices(), index, "CUDA", "CUDA needs NVIDIA's driver");
        return Open("CUDA", device, builder => builder.Cuda(other => other.DeviceId == device.DeviceId));
    }

    /// <inheritdoc/>
    public override string Name { get; }

    /// <inheritdoc/>
    public override ComputeDevice With(CancellationToken cancellation) => new GpuDevice(this, cancellation);

    /// <inheritdoc/>
    public override void Synchronize() => Queue.Synchronize();

    /// <inheritdoc/>
    public override TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape) => new GpuBuffer(this, Queue, type, shape);

    /// <inheritdoc/>
    protected internal override object MemorySpace => Queue;

    internal GpuQueue Queue { get; }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (ownsQueue)
            Queue.Dispose();
    }

    private static GpuDevice Open(string kind, Device device, Action<Context.Builder> register)
    {
        if (Refusal(device) is { } refusal)
            throw new NotSupportedException($"{device.Name} can't be used: {refusal}.");
        Context context = GpuQueue.CreateContext(register);
        try
        {
            return new GpuDevice(kind, context, context.Devices.Single(other => other.AcceleratorType == device.AcceleratorType).CreateAccelerator(context));
        }
        catch
        {
            context.Dispose();
            throw;
        }
    }

    private static TDevice Pick<TDevice>(TDevice[] devices, int index, string kind, string needs) =>
        (uint)index < (uint)devices.Length ? devices[index] :
        throw new ArgumentOutOfRangeException(nameof(index), index, $"This machine has {devices.Length} {kind} devices; {needs}.");

    private static CLDevice[] OpenClDevices() => CLDevice.GetDevices(_ => true).Cast<CLDevice>().ToArray();

    private static CudaDevice[] CudaDevices() => CudaDevice.GetDevices(_ => true).Cast<CudaDevice>().ToArray();

    private static string? Refusal(Device device) => device switch
    {
        CLDevice { CLStdVersion: var version } when version < CLBackend.MinimumVersion => $"it speaks OpenCL C {version}; {CLBackend.MinimumVersion} is needed",
        CLDevice { Capabilities.GenericAddressSpace: false } => "it has no generic address space, an optional part of OpenCL 3 (PoCL has it from version 4 on)",
        CudaDevice { Architecture: null } => "its compute capability is unknown",
        { MaxNumThreadsPerGroup: < PairLossKernels.GroupSize } => $"its groups have at most {device.MaxNumThreadsPerGroup} threads; {PairLossKernels.GroupSize} are needed",
        _ => null,
    };
}
