using ILGPU.Runtime;
using ILGPU.Runtime.CPU;
using Xunit;

[assembly: AssemblyFixture(typeof(TransformerKernels.Tests.GpuUnderTest))]

namespace TransformerKernels.Tests;

/// <summary>The device that the tests run on: the first usable OpenCL device; without one, the PTX that CUDA would get, interpreted.</summary>
public sealed class GpuUnderTest : IDisposable
{
    // "cuda", "opencl" or "interpreter", which then interprets everything and takes minutes. What is named must be there, so that a broken driver can't pass as a
    // machine without one.
    private const string Wanted = "TRANSFORMERKERNELS_TEST_DEVICE";

    // Some 60 ms.
    private const long InstructionsPerTest = 500_000;

    private static readonly bool InterpretsAll = Environment.GetEnvironmentVariable(Wanted) is "interpreter";

    private static GpuUnderTest? current;

    private readonly GpuListing? listing;

    public GpuUnderTest()
    {
        current = this;
        string? wanted = Environment.GetEnvironmentVariable(Wanted) is { Length: > 0 } named ? named : null;
        Listing = wanted switch
        {
            null or "opencl" => GpuDevice.ListOpenCl(),
            "cuda" => GpuDevice.ListCuda(),
            "interpreter" => [],
            _ => throw new InvalidOperationException($"{Wanted} is \"{wanted}\"; it should be cuda, opencl or interpreter."),
        };
        listing = Listing.FirstOrDefault(device => device.Refusal is null);
        if (listing is null && wanted is ("opencl" or "cuda"))
            throw new InvalidOperationException($"{Wanted} is \"{wanted}\", but {(Listing.Count == 0 ? "there is no such device." : WhyNoOpenCl)}");
        Device = OpenAnother();
    }

    /// <summary>The fixture of this run.</summary>
    public static GpuUnderTest Current => current ?? throw new InvalidOperationException("The assembly's fixture isn't there yet.");

    public GpuDevice Device { get; }

    public bool IsInterpreted => listing is null;

    public bool HasFloat16 => listing is { Float16: true };

    /// <summary>What was looked through for the device.</summary>
    public IReadOnlyList<GpuListing> Listing { get; }

    /// <summary>A size for the device: the first for OpenCL, the second for the interpreter.</summary>
    public int Size(int full, int tiny) => IsInterpreted ? tiny : full;

    /// <summary>Skips the test, aloud, without OpenCL. What is only too much for the interpreter needs no such call: the interpreter skips it when it finds out.</summary>
    public void NeedsOpenCl() => Assert.SkipWhen(IsInterpreted, WhyNoOpenCl);

    private static GpuDevice OpenInterpreter() => InterpretedDevice.Open(InterpretsAll ? long.MaxValue : InstructionsPerTest).Device;

    /// <summary>The GPU that is tested, opened once more.</summary>
    public GpuDevice OpenAnother() =>
        listing is null ? OpenInterpreter() : listing.Kind == "CUDA" ? GpuDevice.OpenCuda(listing.Index) : GpuDevice.OpenOpenCl(listing.Index);

    /// <summary>A device of its own on ILGPU's simulator: it compiles for no device and takes milliseconds for a barrier.</summary>
    /// <param name="queue">Makes a queue that behaves as a test needs it.</param>
    internal static GpuDevice OpenSimulator(Func<ILGPU.Context, Accelerator, GpuQueue>? queue = null)
    {
        // Groups of 4 x 64 threads, on one processor.
        ILGPU.Context context = GpuQueue.CreateContext(builder => builder.CPU(new CPUDevice(numThreadsPerWarp: 4, numWarpsPerMultiprocessor: 64, numMultiprocessors: 1)));
        Accelerator accelerator = context.CreateCPUAccelerator(0);
        return new GpuDevice("ILGPU's simulator", queue?.Invoke(context, accelerator) ?? new GpuQueue(context, accelerator));
    }

    public void Dispose() => Device.Dispose();

    private string WhyNoOpenCl =>
        Listing.Count == 0 ? "No OpenCL device on this machine; .ci/opencl runs these tests on PoCL." :
        "No usable OpenCL device: " + string.Join("; ", Listing.Select(device => $"{device}: {device.Refusal}"));
}
