using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace TransformerKernels;

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
    private const string NeedsOfCuda = "CUDA needs NVIDIA's driver";
    private const string NeedsOfOpenCl = "OpenCL needs a driver and the loader's library, libOpenCL.so (Debian: ocl-icd-opencl-dev) or OpenCL.dll";

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
    public static IReadOnlyList<GpuListing> ListOpenCl() => OpenClDevices().Select(GpuListing.Of).ToArray();

    /// <summary>The CUDA devices of this machine. Empty if there is no NVIDIA driver.</summary>
    public static IReadOnlyList<GpuListing> ListCuda() => CudaDevices().Select(GpuListing.Of).ToArray();

    /// <summary>Opens an OpenCL device.</summary>
    /// <param name="index">Its place in <see cref="ListOpenCl"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such device.</exception>
    /// <exception cref="NotSupportedException">The device lacks what the kernels need, or its driver fails; the message says what.</exception>
    public static GpuDevice OpenOpenCl(int index)
    {
        CLDevice device = Pick(OpenClDevices(), index, GpuListing.OpenCl, NeedsOfOpenCl);
        return Open(GpuListing.Of(device, index), device, builder => builder.OpenCL(other => other.DeviceId == device.DeviceId));
    }

    /// <summary>Opens a CUDA device, in a context of its own.</summary>
    /// <param name="index">Its place in <see cref="ListCuda"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such device.</exception>
    /// <exception cref="NotSupportedException">The device lacks what the kernels need, or its driver fails; the message says what.</exception>
    public static GpuDevice OpenCuda(int index)
    {
        CudaDevice device = Pick(CudaDevices(), index, GpuListing.Cuda, NeedsOfCuda);
        return Open(GpuListing.Of(device, index), device, builder => builder.Cuda(other => other.DeviceId == device.DeviceId));
    }

    /// <summary>Opens the best device there is: the first CUDA device that can be used, else an OpenCL GPU, else a processor through OpenCL. Its name tells which.</summary>
    /// <exception cref="NotSupportedException">There is none; the message names every device that was refused, and why.</exception>
    public static GpuDevice OpenBest() => OpenBest([.. ListCuda(), .. ListOpenCl()]);

    internal static GpuDevice OpenBest(IReadOnlyList<GpuListing> listings)
    {
        List<string> refusals = [];
        foreach (GpuListing listing in listings.OrderBy(listing => listing.Kind == GpuListing.Cuda ? 0 : listing.IsCpu ? 2 : 1))
        {
            try
            {
                if (listing.Refusal is null)
                    return listing.Kind == GpuListing.Cuda ? OpenCuda(listing.Index) : OpenOpenCl(listing.Index);
                refusals.Add($"{listing}: {listing.Refusal}.");
            }
            catch (Exception failure) when (failure is NotSupportedException or ArgumentOutOfRangeException) // the driver fails, or it is gone since
            {
                refusals.Add(failure.Message);
            }
        }
        if (!listings.Any(listing => listing.Kind == GpuListing.Cuda))
            refusals.Add($"CUDA: no device; {NeedsOfCuda}.");
        if (!listings.Any(listing => listing.Kind == GpuListing.OpenCl))
            refusals.Add($"OpenCL: no device; {NeedsOfOpenCl}.");
        throw new NotSupportedException($"No GPU can be used. {string.Join(' ', refusals)}");
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

    private static GpuDevice Open(GpuListing listing, Device device, Action<Context.Builder> register)
    {
        if (listing.Refusal is { } refusal)
            throw new NotSupportedException($"{listing} can't be used: {refusal}.");
        Context context = GpuQueue.CreateContext(register);
        try
        {
            return new GpuDevice(listing.IsCpu ? $"{listing.Kind} on a processor" : listing.Kind, context,
                context.Devices.Single(other => other.AcceleratorType == device.AcceleratorType).CreateAccelerator(context));
        }
        catch (Exception failure)
        {
            context.Dispose();
            throw new NotSupportedException($"{listing} can't be used: its driver fails. {failure.GetBaseException().Message}", failure);
        }
    }

    private static TDevice Pick<TDevice>(TDevice[] devices, int index, string kind, string needs) =>
        (uint)index < (uint)devices.Length ? devices[index] :
        throw new ArgumentOutOfRangeException(nameof(index), index, $"This machine has {devices.Length} {kind} devices; {needs}.");

    private static CLDevice[] OpenClDevices() => CLDevice.GetDevices(_ => true).Cast<CLDevice>().ToArray();

    private static CudaDevice[] CudaDevices() => CudaDevice.GetDevices(_ => true).Cast<CudaDevice>().ToArray();
}
