using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace TransformerKernels;

/// <summary>A GPU and a queue on it, reached by OpenCL or CUDA.</summary>
/// <remarks>
/// Calls are queued and return at once, except copies to and from the host; <see cref="Synchronize"/> waits. They run in the order in which they were made. A
/// tensor may be disposed while queued work still uses it: what gets its memory next is queued later. Each operation compiles on its first use, which takes
/// some tenths of a second; with a rule or loss of the user's, once per struct; such a struct must be public.
/// Every opened device has its own memory and its own queue, also if it is the same GPU; the handles of <see cref="With"/> share them. Thread-safe; work from
/// several threads is queued one after the other. When a device breaks, it throws <see cref="DeviceLostException"/> from then on.
/// <para>Not offered yet: attention with masks, sinks, softcap, key lengths, an offset per sequence, or other biases than slopes and a distance vector, its gradients without <c>upstream.Output</c>;
/// everything from hidden states or in slices of the vocabulary; views
/// of foreign pointers. They throw <see cref="NotSupportedException"/>.</para>
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

    private GpuDevice(GpuDevice device, CancellationToken cancellation, int tileSide)
    {
        Name = device.Name;
        Queue = device.Queue;
        this.cancellation = cancellation;
        this.tileSide = tileSide;
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
    public override GpuDevice With(CancellationToken cancellation) => new GpuDevice(this, cancellation, tileSide);

    /// <inheritdoc/>
    public override void Synchronize() => Queue.Synchronize();

    /// <summary>Allocates a row-major tensor in the device's memory, filled with zeros. Memory of disposed tensors is used again, without asking the driver.</summary>
    /// <param name="type">The type of the elements.</param>
    /// <param name="shape">The lengths of the axes, at most <see cref="TensorView.MaximumRank"/>.</param>
    /// <exception cref="InsufficientMemoryException">The device has too little memory; the message says how much is asked for, how much there is, how much of it is free (on OpenCL at most), and how much this device holds, by all its handles.</exception>
    public override TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape) => new GpuBuffer(this, Queue, type, shape);

    /// <summary>Allocates a row-major tensor in the host's memory that <see cref="Copy"/> copies from and to without waiting.</summary>
    /// <remarks>
    /// It is a tensor of <see cref="ComputeDevice.Cpu"/>: <see cref="TensorBuffer.AsSpan{T}"/> gives its elements. On CUDA its pages are locked, which takes them from other
    /// programs; OpenCL knows no such thing, there it only saves the wait. Disposing it waits for the copies queued on it.
    /// </remarks>
    /// <param name="type">The type of the elements.</param>
    /// <param name="shape">The lengths of the axes.</param>
    /// <exception cref="InsufficientMemoryException">So many pages can't be locked.</exception>
    public TensorBuffer AllocatePinned(ElementType type, params ReadOnlySpan<long> shape) => new PinnedBuffer(Queue, type, shape);

    /// <summary>Queues a copy between tensors of this device, or between one and a pinned tensor (<see cref="AllocatePinned"/>), and returns at once.</summary>
    /// <remarks>The pinned tensor must not be read or written before the next <see cref="Synchronize"/>.</remarks>
    /// <param name="source">Row-major without gaps: a whole tensor, or a slice of its first axis.</param>
    /// <param name="destination">The same, of the same type and as many elements.</param>
    /// <exception cref="ArgumentException">They differ in type or number, have gaps, overlap, or lie in other memory; the message says which.</exception>
    public void Copy(TensorView source, TensorView destination)
    {
        CheckCopy(source, nameof(source));
        CheckCopy(destination, nameof(destination));
        if (source.Type != destination.Type || source.ElementCount != destination.ElementCount)
            throw new ArgumentException($"{source.ElementCount} elements of {source.Type} can't be copied to {destination.ElementCount} of {destination.Type}.", nameof(destination));
        Require.Disjoint(source, nameof(source), destination, nameof(destination));
        cancellation.ThrowIfCancellationRequested();
        long bytes = source.ElementCount * source.Type.Size();
        if (bytes == 0)
            return;
        switch (source.Owner, destination.Owner)
        {
            case (GpuBuffer from, GpuBuffer to):
                Queue.Copy(from.Memory, source.Address, to.Memory, destination.Address, bytes);
                break;
            case (PinnedBuffer from, GpuBuffer to):
                Queue.Upload(to.Memory, destination.Address, source.Address, bytes);
                from.LastUse = Queue.LastQueued;
                break;
            case (GpuBuffer from, PinnedBuffer to):
                Queue.Download(from.Memory, source.Address, destination.Address, bytes);
                to.LastUse = Queue.LastQueued;
                break;
            default:
                throw new ArgumentException("Both tensors lie in the host's memory; no device is needed to copy them.", nameof(destination));
        }
    }

    /// <summary>What was done on the device since it was opened, by all handles of it.</summary>
    public GpuCounts Counts => Queue.Counts;

    /// <summary>The memory that the device holds for this program.</summary>
    public GpuMemory Memory => Queue.Memory;

    /// <summary>Waits for what is queued and gives the memory of disposed tensors back to the driver, for other programs.</summary>
    public void Trim() => Queue.Trim();

    /// <inheritdoc/>
    protected internal override object MemorySpace => Queue;

    internal GpuQueue Queue { get; }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (ownsQueue)
            Queue.Dispose();
    }

    private void CheckCopy(in TensorView tensor, string name)
    {
        if (!tensor.IsPresent)
            throw new ArgumentNullException(name, $"{name} is required.");
        ObjectDisposedException.ThrowIf(tensor.Owner is { IsDisposed: true }, typeof(TensorBuffer));
        if (tensor.Owner is not (GpuBuffer or PinnedBuffer) || (tensor.Owner as GpuBuffer)?.Queue != Queue && (tensor.Owner as PinnedBuffer)?.Queue != Queue)
            throw new ArgumentException($"{name} is neither a tensor of {Name} nor pinned for it: use CopyFrom and CopyTo, or AllocatePinned.", name);
        if (!tensor.IsContiguous)
            throw new ArgumentException($"{name} has gaps or another order than row-major.", name);
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
