using System.Collections.Concurrent;
using System.Reflection;
using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.CPU;
using ILGPU.Runtime.Cuda;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>A GPU device whose kernels are interpreted PTX: the text that a CUDA device gets, run and checked by <see cref="PtxMachine"/>. Its memory is the host's.</summary>
internal sealed class InterpretedDevice : IDisposable
{
    private readonly InterpretedQueue queue;

    private InterpretedDevice(InterpretedQueue queue)
    {
        this.queue = queue;
        Device = new GpuDevice("PTX interpreter", queue);
    }

    public GpuDevice Device { get; }

    /// <summary>What each launch moved, in their order.</summary>
    public IReadOnlyList<Traffic> Launches => queue.Launches;

    /// <summary>Changes the text of every kernel before it runs, to plant a fault.</summary>
    public Func<string, string>? Edit
    {
        set => queue.Edit = value;
    }

    /// <summary>Opens one more.</summary>
    /// <param name="instructionsPerTest">A test whose warps take more instructions than this is skipped, aloud. The interpreter does some 8 million in a second.</param>
    public static InterpretedDevice Open(long instructionsPerTest = long.MaxValue)
    {
        // Groups as large as CUDA's, which this accelerator is asked for.
        Context context = GpuQueue.CreateContext(builder => builder.CPU(new CPUDevice(numThreadsPerWarp: 32, numWarpsPerMultiprocessor: 32, numMultiprocessors: 1)));
        return new(new InterpretedQueue(context, context.CreateCPUAccelerator(0), instructionsPerTest));
    }

    public void Dispose() => Device.Dispose();

    /// <summary>ILGPU's processor for memory and copies; launches go to the interpreter.</summary>
    private sealed class InterpretedQueue(Context context, Accelerator accelerator, long instructionsPerTest) : GpuQueue(context, accelerator)
    {
        // Of all devices: a text is the same for each.
        private static readonly ConcurrentDictionary<(MethodInfo Kernel, Index3D Group), string> Texts = [];

        private readonly Dictionary<string, (PtxProgram Program, DecodedProgram Decoded)> programs = [];

        private string? spender;
        private long spent;

        public List<Traffic> Launches { get; } = [];

        public Func<string, string>? Edit { get; set; }

        protected override void Run<T>(Action<T> kernel, KernelConfig size, T argument) => Run(kernel.Method, size, [argument]);

        protected override void Run<T1, T2>(Action<T1, T2> kernel, KernelConfig size, T1 first, T2 second) => Run(kernel.Method, size, [first, second]);

        private void Run(MethodInfo kernel, KernelConfig size, object[] arguments)
        {
            RefuseStructs(kernel);
            string text = Texts.GetOrAdd((kernel, size.GroupDim), key => Ptx.Compile(key.Kernel, key.Group.Size, CudaArchitecture.SM_80));
            if (Edit is not null)
                text = Edit(text);
            if (!programs.TryGetValue(text, out var known))
            {
                var program = new PtxProgram(text);
                programs.Add(text, known = (program, new DecodedProgram(program)));
            }
            var memory = new MemoryMap(known.Decoded.WordShift);
            byte[] parameters = KernelArguments.LayOut(known.Program, kernel, arguments, memory);
            var traffic = new Traffic(PtxTests.Name(kernel), Math.Min(RemainingInstructions(), Traffic.Endless));
            try
            {
                PtxMachine.Run(traffic, known.Program, known.Decoded, Coordinates(size.GridDim), Coordinates(size.GroupDim), memory, parameters, size.SharedMemoryConfig.ArraySize);
            }
            catch (PtxFault fault) when (fault.IsEndless && traffic.MaximumInstructions < Traffic.Endless)
            {
                Assert.Skip($"{traffic.Kernel} is too much for the interpreter here: the test has taken {instructionsPerTest} instructions. .ci/opencl runs it on PoCL.");
            }
            GC.KeepAlive(arguments);
            Launches.Add(traffic);
            spent += traffic.Instructions;
        }

        private long RemainingInstructions()
        {
            string? test = TestContext.Current.Test?.UniqueID;
            if (test != spender)
                (spender, spent) = (test, 0);
            return instructionsPerTest - spent;
        }

        private static Coordinates Coordinates(Index3D index) => new(index.X, index.Y, index.Z);
    }
}
