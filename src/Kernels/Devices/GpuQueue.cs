using System.Reflection;
using ILGPU;
using ILGPU.Algorithms;
using ILGPU.Runtime;

namespace TransformerKernels;

/// <summary>One opened GPU: its context, its stream, and the kernels compiled for it. Everything that ILGPU's runtime does is asked for here.</summary>
/// <remarks>ILGPU's accelerators are not thread-safe; every use holds the lock.</remarks>
internal class GpuQueue : IDisposable
{
    // The words of faults, and room for one element of any type.
    private const int SpareBytes = 64;

    private readonly object gate = new();
    private readonly Context context;
    private readonly Accelerator accelerator;
    private readonly AcceleratorStream stream;
    private readonly Dictionary<MethodInfo, Delegate> launchers = [];
    private readonly MemoryBuffer1D<int, Stride1D.Dense> faults;
    private string? failedKernel;

    private bool disposed;
    private long queued, finished;

    public GpuQueue(Context context, Accelerator accelerator)
    {
        this.context = context;
        this.accelerator = accelerator;
        stream = accelerator.DefaultStream;
        faults = accelerator.Allocate1D<int>(SpareBytes / sizeof(int));
        faults.MemSetToZero(stream);
    }

    /// <summary>A context as every kernel here needs it; <paramref name="register"/> adds the device.</summary>
    /// <remarks>Level 2 would put <c>bra.uni</c> on branches that diverge.</remarks>
    public static Context CreateContext(Action<Context.Builder> register) => Context.Create(builder =>
    {
        builder.EnableAlgorithms().Optimize(OptimizationLevel.O1);
        register(builder);
    });

    /// <summary>The number of the last thing queued; compare with <see cref="IsFinished"/>.</summary>
    public long LastQueued => Volatile.Read(ref queued);

    /// <summary>Whether the host has waited for what had this number, or it failed to be queued.</summary>
    public bool IsFinished(long number) => number <= Volatile.Read(ref finished) || number > Volatile.Read(ref queued);

    public MemoryBuffer1D<byte, Stride1D.Dense> Allocate(long bytes)
    {
        using Use use = new(this);
        MemoryBuffer1D<byte, Stride1D.Dense> memory = accelerator.Allocate1D<byte>(bytes);
        memory.MemSetToZero(stream);
        return memory;
    }

    public void Clear(MemoryBuffer1D<byte, Stride1D.Dense> memory)
    {
        using Use use = new(this);
        memory.MemSetToZero(stream);
    }

    // The overloads by span pin it until the copy is done; those by reference let the garbage collector move it meanwhile.
    public void Upload(MemoryBuffer1D<byte, Stride1D.Dense> memory, ReadOnlySpan<byte> source)
    {
        using Use use = new(this);
        memory.View.BaseView.SubView(0, source.Length).CopyFromCPU(stream, source);
        finished = queued;
    }

    public void Download(MemoryBuffer1D<byte, Stride1D.Dense> memory, Span<byte> destination)
    {
        using Use use = new(this);
        memory.View.BaseView.SubView(0, destination.Length).CopyToCPU(stream, destination);
        finished = queued;
    }

    public void Free(MemoryBuffer1D<byte, Stride1D.Dense> memory)
    {
        // Closing the device has freed it.
        lock (gate)
        {
            if (!disposed)
                memory.Dispose();
        }
    }

    /// <summary>Where kernels report indices that lie outside.</summary>
    public GpuFaults Faults => new(faults.View.BaseView);

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
            faults.View.BaseView.SubView(0, words.Length).CopyToCPU(stream, words);
            stream.Synchronize();
            finished = queued;
            if (words[0] != 0)
                faults.MemSetToZero(stream);
        }
        if (GpuFaults.Read(words) is { } fault)
            throw fault;
    }

    /// <summary>Queues a kernel, compiling it on its first use: a kernel with a user's struct once per struct.</summary>
    public void Launch<T1, T2>(Action<T1, T2> kernel, int groups, int groupSize, T1 first, T2 second) where T1 : struct where T2 : struct
    {
        using Use use = new(this);
        CheckGroup(kernel.Method, groupSize);
        Run(kernel, (groups, groupSize), first, second);
        queued++;
    }

    /// <summary>Queues a kernel of one argument.</summary>
    public void Launch<T>(Action<T> kernel, int groups, int groupSize, T argument) where T : struct
    {
        using Use use = new(this);
        CheckGroup(kernel.Method, groupSize);
        Run(kernel, (groups, groupSize), argument);
        queued++;
    }

    public void Dispose()
    {
        lock (gate)
        {
            if (disposed)
                return;
            disposed = true;
            faults.Dispose();
            accelerator.Dispose();
            context.Dispose();
        }
    }

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

    private void CheckGroup(MethodInfo kernel, int groupSize)
    {
        if (groupSize > accelerator.MaxNumThreadsPerGroup)
            throw new NotSupportedException($"{Describe(kernel)} wants groups of {groupSize} threads; {accelerator.Name} has at most {accelerator.MaxNumThreadsPerGroup} in one.");
    }

    private static string Describe(MethodInfo kernel) =>
        $"{kernel.DeclaringType?.Name}.{kernel.Name}{(kernel.IsGenericMethod ? $"<{string.Join(", ", kernel.GetGenericArguments().Select(type => type.Name))}>" : "")}";

    /// <summary>Throws if a kernel has a struct that isn't public.</summary>
    // CUDA's launcher is generated into another assembly, which has to name the structs; this assembly lets it. One rule for all devices.
    protected static void RefuseHiddenStructs(MethodInfo kernel)
    {
        IEnumerable<Type> structs = kernel.GetGenericArguments().Concat(kernel.GetParameters().Select(parameter => parameter.ParameterType));
        if (structs.FirstOrDefault(type => !type.IsVisible && type.Assembly != typeof(GpuQueue).Assembly) is { } hidden)
            throw new NotSupportedException($"{hidden.Name} isn't public: a GPU runs only public structs.");
    }

    private Delegate Compile(MethodInfo kernel, Func<Delegate> load)
    {
        string name = Describe(kernel);
        RefuseHiddenStructs(kernel);
        // After a failure ILGPU's context answers every compilation with a null reference.
        if (failedKernel is not null)
            throw new InvalidOperationException($"{failedKernel} failed to compile on this device before, which leaves its compiler unusable; open the device again.");
        try
        {
            return load();
        }
        catch (Exception failure)
        {
            failedKernel = name;
            throw new NotSupportedException($"{name} doesn't compile for {accelerator.Name}: {failure.GetBaseException().Message}", failure);
        }
    }

    // The lock, with the device's context current on this thread.
    private readonly ref struct Use
    {
        private readonly GpuQueue queue;
        private readonly ScopedAcceleratorBinding binding;

        public Use(GpuQueue queue)
        {
            Monitor.Enter(queue.gate);
            this.queue = queue;
            if (queue.disposed)
            {
                Monitor.Exit(queue.gate);
                throw new ObjectDisposedException(nameof(GpuDevice), "The GPU device was closed.");
            }
            binding = queue.accelerator.BindScoped();
        }

        public void Dispose()
        {
            binding.Recover();
            Monitor.Exit(queue.gate);
        }
    }
}
