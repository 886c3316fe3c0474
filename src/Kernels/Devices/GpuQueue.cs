using System.Reflection;
using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Algorithms;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;

namespace TransformerKernels;

/// <summary>One opened GPU: its context, its stream, its memory, and the kernels compiled for it. Everything that ILGPU's runtime does is asked for here.</summary>
/// <remarks>ILGPU's accelerators are not thread-safe; every use holds the lock.</remarks>
internal class GpuQueue : IDisposable, GpuPool.ISource
{
    // The words of faults, and room for one element of any type.
    private const int SpareBytes = 64;

    // Some words for each group of an operation that has at most so many.
    private const int SumsBytes = 8 * TokenGrid.MaximumGroups * sizeof(float);

    private readonly object gate = new();
    private readonly Context context;
    private readonly Accelerator accelerator;
    private readonly AcceleratorStream stream;
    private readonly Dictionary<MethodInfo, Delegate> launchers = [];
    private readonly MemoryBuffer1D<int, Stride1D.Dense> faults, sums;
    private readonly GpuPool pool;
    private string? failedKernel;
    private Exception? lost;

    private bool disposed;
    private long queued, finished;
    private GpuCounts counts;

    public GpuQueue(Context context, Accelerator accelerator)
    {
        this.context = context;
        this.accelerator = accelerator;
        stream = accelerator.DefaultStream;
        faults = accelerator.Allocate1D<int>(SpareBytes / sizeof(int));
        faults.MemSetToZero(stream);
        sums = accelerator.Allocate1D<int>(SumsBytes / sizeof(int));
        pool = new GpuPool(this);
    }

    /// <summary>A context as every kernel here needs it; <paramref name="register"/> adds the device.</summary>
    /// <remarks>Level 2 would put <c>bra.uni</c> on branches that diverge.</remarks>
    public static Context CreateContext(Action<Context.Builder> register) => Context.Create(builder =>
    {
        builder.EnableAlgorithms().Optimize(OptimizationLevel.O1);
        SetKernelInformation(builder, true); // how much shared memory a kernel takes
        register(builder);
    });

    // ILGPU has the setting, and nothing public that sets it.
    [UnsafeAccessor(UnsafeAccessorKind.Method, Name = "set_EnableKernelInformation")]
    private static extern void SetKernelInformation(ContextProperties properties, bool value);

    /// <summary>The number of the last thing queued; compare with <see cref="IsFinished"/>.</summary>
    public long LastQueued => Volatile.Read(ref queued);

    /// <summary>Whether the host has waited for what had this number, or it failed to be queued.</summary>
    public bool IsFinished(long number) => number <= Volatile.Read(ref finished) || number > Volatile.Read(ref queued);

    public GpuCounts Counts
    {
        get
        {
            lock (gate)
                return counts;
        }
    }

    public GpuMemory Memory
    {
        get
        {
            lock (gate)
                return pool.State;
        }
    }

    /// <summary>Memory filled with zeros.</summary>
    /// <exception cref="InsufficientMemoryException">The device has too little.</exception>
    public MemoryBuffer1D<byte, Stride1D.Dense> Allocate(long bytes)
    {
        using Use use = new(this);
        try
        {
            MemoryBuffer1D<byte, Stride1D.Dense> memory = pool.Rent(bytes) ?? throw new InsufficientMemoryException(TooLittleMemory(bytes));
            memory.MemSetToZero(stream);
            queued++;
            return memory;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    /// <summary>Takes memory back. Work that is queued may still use it.</summary>
    public void Free(MemoryBuffer1D<byte, Stride1D.Dense> memory)
    {
        // Closing the device has freed it.
        lock (gate)
        {
            if (!disposed)
                pool.Return(memory);
        }
    }

    /// <summary>Gives the memory that lies idle back to the driver.</summary>
    public void Trim()
    {
        using Use use = new(this);
        try
        {
            pool.Trim();
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    public void Clear(MemoryBuffer1D<byte, Stride1D.Dense> memory)
    {
        using Use use = new(this);
        try
        {
            memory.MemSetToZero(stream);
            queued++;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    // The overloads by span pin it until the copy is done; those by reference let the garbage collector move it meanwhile.
    public void Upload(MemoryBuffer1D<byte, Stride1D.Dense> memory, long offset, ReadOnlySpan<byte> source)
    {
        using Use use = new(this);
        try
        {
            memory.View.BaseView.SubView(offset, source.Length).CopyFromCPU(stream, source);
            counts = counts with { BytesUploaded = counts.BytesUploaded + source.Length };
            finished = queued;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    public void Download(MemoryBuffer1D<byte, Stride1D.Dense> memory, long offset, Span<byte> destination)
    {
        using Use use = new(this);
        try
        {
            memory.View.BaseView.SubView(offset, destination.Length).CopyToCPU(stream, destination);
            counts = counts with { BytesDownloaded = counts.BytesDownloaded + destination.Length };
            finished = queued;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    /// <summary>Locks pages of the host's memory, so that copies of them needn't wait.</summary>
    /// <returns>What ends it. OpenCL knows no such thing; there it does nothing.</returns>
    public IDisposable Pin(nint address, long bytes)
    {
        using Use use = new(this);
        try
        {
            return accelerator.CreatePageLockFromPinned<byte>(address, bytes);
        }
        catch (AcceleratorException failure) when (DriverErrors.IsOutOfMemory(failure))
        {
            throw new InsufficientMemoryException($"{bytes} bytes of the host's memory can't be pinned: {DriverErrors.Describe(failure)}.", failure);
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    /// <summary>Ends a <see cref="Pin"/> once nothing queued uses the pages.</summary>
    public void Unpin(IDisposable pages, long lastUse)
    {
        lock (gate)
        {
            if (disposed)
                return;
            accelerator.Bind();
            try
            {
                if (!IsFinished(lastUse))
                    stream.Synchronize();
                pages.Dispose();
            }
            catch (AcceleratorException failure)
            {
                lost ??= failure; // the pages go all the same
            }
        }
    }

    /// <summary>Queues a copy from pinned memory.</summary>
    public unsafe void Upload(MemoryBuffer1D<byte, Stride1D.Dense> memory, long offset, nint source, long bytes)
    {
        using Use use = new(this);
        try
        {
            memory.View.BaseView.SubView(offset, bytes).CopyFromCPUUnsafeAsync(stream, ref *(byte*)source, bytes);
            counts = counts with { BytesUploaded = counts.BytesUploaded + bytes };
            queued++;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    /// <summary>Queues a copy into pinned memory.</summary>
    public unsafe void Download(MemoryBuffer1D<byte, Stride1D.Dense> memory, long offset, nint destination, long bytes)
    {
        using Use use = new(this);
        try
        {
            memory.View.BaseView.SubView(offset, bytes).CopyToCPUUnsafeAsync(stream, ref *(byte*)destination, bytes);
            counts = counts with { BytesDownloaded = counts.BytesDownloaded + bytes };
            queued++;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    /// <summary>Queues a copy from one tensor to another.</summary>
    public void Copy(MemoryBuffer1D<byte, Stride1D.Dense> source, long from, MemoryBuffer1D<byte, Stride1D.Dense> destination, long to, long bytes)
    {
        using Use use = new(this);
        try
        {
            source.View.BaseView.SubView(from, bytes).CopyTo(stream, destination.View.BaseView.SubView(to, bytes));
            queued++;
        }
        catch (AcceleratorException failure)
        {
            throw Lost(failure);
        }
    }

    /// <summary>Where kernels report indices that lie outside.</summary>
    public GpuFaults Faults => new(faults.View.BaseView);

    /// <summary>A little memory for the sums of operations that take no workspace: who queues them holds <see cref="SumsGate"/> from the first launch to the last.</summary>
    public ArrayView<T> Sums<T>() where T : unmanaged => sums.View.BaseView.Cast<T>();

    /// <inheritdoc cref="Sums"/>
    public Lock SumsGate { get; } = new();

    /// <summary>Memory for the place of an absent tensor, which no kernel touches.</summary>
    public ArrayView<T> Spare<T>() where T : unmanaged => faults.View.BaseView.Cast<T>();

    /// <summary>The memory of a workspace that a call has rented, for a kernel that is about to be queued; spare memory if nothing was asked for yet.</summary>
    public ArrayView<T> Scratch<T>(Workspace.Lease lease) where T : unmanaged => lease.Buffer is GpuBuffer buffer ? buffer.Use<T>() : Spare<T>();

    /// <summary>Waits for what is queued, then throws what its kernels reported.</summary>
    public void Synchronize()
    {
        Span<int> words = stackalloc int[GpuFaults.Words];
        using (Use use = new(this))
        {
            try
            {
                Wait();
                faults.View.BaseView.SubView(0, words.Length).CopyToCPU(stream, words);
                finished = queued;
                if (words[0] != 0)
                    faults.MemSetToZero(stream);
            }
            catch (AcceleratorException failure)
            {
                throw Lost(failure);
            }
        }
        if (GpuFaults.Read(words) is { } fault)
            throw fault;
    }

    /// <summary>Queues a kernel, compiling it on its first use: a kernel with a user's struct once per struct.</summary>
    public void Launch<T1, T2>(Action<T1, T2> kernel, int groups, int groupSize, T1 first, T2 second) where T1 : struct where T2 : struct
    {
        using Use use = new(this);
        CheckGroup(kernel.Method, groupSize);
        try
        {
            Run(kernel, (groups, groupSize), first, second);
        }
        catch (AcceleratorException failure)
        {
            throw NotLaunched(kernel.Method, groupSize, failure);
        }
        Launched();
    }

    /// <summary>Queues a kernel of one argument.</summary>
    public void Launch<T>(Action<T> kernel, int groups, int groupSize, T argument) where T : struct
    {
        using Use use = new(this);
        CheckGroup(kernel.Method, groupSize);
        try
        {
            Run(kernel, (groups, groupSize), argument);
        }
        catch (AcceleratorException failure)
        {
            throw NotLaunched(kernel.Method, groupSize, failure);
        }
        Launched();
    }

    /// <summary>Waits for what is queued, then closes the device. What it reports by now nobody can use.</summary>
    public void Dispose()
    {
        lock (gate)
        {
            if (disposed)
                return;
            disposed = true;
            try
            {
                accelerator.Bind();
                stream.Synchronize();
                faults.Dispose();
                sums.Dispose();
                accelerator.Dispose();
            }
            catch (AcceleratorException failure)
            {
                lost ??= failure; // a driver that can't even close it
            }
            context.Dispose();
        }
    }

    MemoryBuffer1D<byte, Stride1D.Dense>? GpuPool.ISource.Allocate(long bytes)
    {
        // Some systems promise any amount and fail when it is used.
        if (bytes > accelerator.MemorySize - pool.State.TensorBytes - pool.State.CachedBytes)
            return null;
        try
        {
            return AllocateMemory(bytes);
        }
        catch (AcceleratorException failure) when (DriverErrors.IsOutOfMemory(failure))
        {
            return null;
        }
        catch (OutOfMemoryException) // the simulator's memory is the host's
        {
            return null;
        }
    }

    void GpuPool.ISource.Free(IReadOnlyList<MemoryBuffer1D<byte, Stride1D.Dense>> memory)
    {
        Wait();
        foreach (MemoryBuffer1D<byte, Stride1D.Dense> each in memory)
            each.Dispose();
    }

    /// <summary>Asks the driver for memory. Tests put a small device here.</summary>
    protected virtual MemoryBuffer1D<byte, Stride1D.Dense> AllocateMemory(long bytes) => accelerator.Allocate1D<byte>(bytes);

    /// <summary>Waits for the stream. Tests count it, and let the device break here.</summary>
    protected virtual void Wait() => stream.Synchronize();

    /// <summary>Hands a kernel to the accelerator. Tests put an interpreter of its PTX here.</summary>
    protected virtual void Run<T1, T2>(Action<T1, T2> kernel, KernelConfig size, T1 first, T2 second) where T1 : struct where T2 : struct
    {
        if (!launchers.TryGetValue(kernel.Method, out Delegate? launcher))
            launchers.Add(kernel.Method, launcher = Compile(kernel.Method, () => accelerator.LoadKernel(kernel)));
        ((Action<AcceleratorStream, KernelConfig, T1, T2>)launcher)(stream, size, first, second);
    }

    /// <inheritdoc cref="Run{T1, T2}"/>
    protected virtual void Run<T>(Action<T> kernel, KernelConfig size, T argument) where T : struct
    {
        if (!launchers.TryGetValue(kernel.Method, out Delegate? launcher))
            launchers.Add(kernel.Method, launcher = Compile(kernel.Method, () => accelerator.LoadKernel(kernel)));
        ((Action<AcceleratorStream, KernelConfig, T>)launcher)(stream, size, argument);
    }

    private void Launched()
    {
        counts = counts with { Launches = counts.Launches + 1 };
        queued++;
    }

    private Exception NotLaunched(MethodInfo kernel, int groupSize, AcceleratorException failure) => DriverErrors.IsRefusedLaunch(failure)
        ? new NotSupportedException($"{Describe(kernel)} can't run in groups of {groupSize} threads on {accelerator.Name}: it takes more registers or shared memory than a group "
            + $"has there ({DriverErrors.Describe(failure)}). Nothing was written.", failure)
        : Lost(failure);

    private DeviceLostException Lost(AcceleratorException failure)
    {
        lost = failure;
        return new DeviceLostException(LostMessage, failure);
    }

    private string LostMessage =>
        $"{accelerator.Name} no longer works ({(lost is AcceleratorException failure ? DriverErrors.Describe(failure) : lost?.Message)}); what it holds is lost. Dispose the device and open it again.";

    private string TooLittleMemory(long bytes)
    {
        GpuMemory memory = pool.State;
        // OpenCL doesn't tell what other programs hold.
        string free = accelerator is CudaAccelerator cuda ? $"{cuda.GetFreeMemory()}" : $"at most {accelerator.MemorySize - memory.TensorBytes - memory.CachedBytes}";
        return $"{accelerator.Name} has no room for {bytes} bytes: it has {accelerator.MemorySize} in all, {free} of them free; this device handle holds {memory.TensorBytes} in {memory.Tensors} tensors.";
    }

    private void CheckGroup(MethodInfo kernel, int groupSize)
    {
        if (groupSize > accelerator.MaxNumThreadsPerGroup)
            throw new NotSupportedException($"{Describe(kernel)} wants groups of {groupSize} threads; {accelerator.Name} has at most {accelerator.MaxNumThreadsPerGroup} in one.");
    }

    private static string Describe(MethodInfo kernel) =>
        $"{kernel.DeclaringType?.Name}.{kernel.Name}{(kernel.IsGenericMethod ? $"<{string.Join(", ", kernel.GetGenericArguments().Select(type => type.Name))}>" : "")}";

    /// <summary>Throws if a kernel has a struct that isn't public, or one with a field of bool or char.</summary>
    // CUDA's launcher is generated into another assembly, which has to name the structs; this assembly lets it. One rule for all devices.
    // ILGPU would refuse the fields too ("not blittable"), and compile nothing more afterwards.
    protected static void RefuseStructs(MethodInfo kernel)
    {
        Type[] structs = [.. kernel.GetGenericArguments(), .. kernel.GetParameters().Select(parameter => parameter.ParameterType)];
        if (structs.FirstOrDefault(type => !type.IsVisible && type.Assembly != typeof(GpuQueue).Assembly) is { } hidden)
            throw new NotSupportedException($"{hidden.Name} isn't public: a GPU runs only public structs.");
        if (structs.SelectMany(Fields).FirstOrDefault(field => field.FieldType == typeof(bool) || field.FieldType == typeof(char)) is { } field)
            throw new NotSupportedException($"{field.DeclaringType!.Name} has a {(field.FieldType == typeof(bool) ? "bool" : "char")} as a field ({field.Name}): a GPU takes numbers of fixed size only.");
    }

    private static IEnumerable<FieldInfo> Fields(Type type) => !type.IsValueType || type.IsPrimitive || type.IsEnum ? [] :
        type.GetFields(BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic).SelectMany(field => Fields(field.FieldType).Prepend(field));

    private Delegate Compile(MethodInfo kernel, Func<Delegate> load)
    {
        string name = Describe(kernel);
        RefuseStructs(kernel);
        // After a failure ILGPU's context answers every compilation with a null reference.
        if (failedKernel is not null)
            throw new InvalidOperationException($"{failedKernel} failed to compile on this device before, which leaves its compiler unusable; open the device again.");
        Delegate launcher;
        try
        {
            launcher = load();
        }
        catch (Exception failure)
        {
            failedKernel = name;
            throw new NotSupportedException($"{name} doesn't compile for {accelerator.Name}: {failure.GetBaseException().Message}", failure);
        }
        // PoCL ends the program when such a kernel is launched.
        if (launcher.GetKernelInfo() is { SharedAllocations.TotalSize: var shared } && shared > accelerator.MaxSharedMemoryPerGroup)
            throw new NotSupportedException($"{name} takes {shared} bytes of shared memory; {accelerator.Name} has {accelerator.MaxSharedMemoryPerGroup} for a group.");
        return launcher;
    }

    // The lock, with the device's context current on this thread. It stays current: the one that was before may be closed, and can't be made current again.
    private readonly ref struct Use
    {
        private readonly GpuQueue queue;

        public Use(GpuQueue queue)
        {
            this.queue = queue;
            Monitor.Enter(queue.gate);
            try
            {
                ObjectDisposedException.ThrowIf(queue.disposed, typeof(GpuDevice));
                if (queue.lost is not null)
                    throw new DeviceLostException(queue.LostMessage, queue.lost);
                queue.accelerator.Bind();
            }
            catch
            {
                Monitor.Exit(queue.gate);
                throw;
            }
        }

        public void Dispose() => Monitor.Exit(queue.gate);
    }
}
