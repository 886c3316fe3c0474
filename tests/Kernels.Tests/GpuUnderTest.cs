using ILGPU.Runtime;
using ILGPU.Runtime.CPU;
using Xunit;

[assembly: AssemblyFixture(typeof(TransformerKernels.Tests.GpuUnderTest))]

namespace TransformerKernels.Tests;

/// <summary>The device that the tests run on: the first usable OpenCL device; without one, the PTX that CUDA would get, interpreted.</summary>
public sealed class GpuUnderTest : IDisposable
{
    // Set where OpenCL must be there, so that a broken driver can't pass as a machine without one.
    private const string RequireOpenCl = "TRANSFORMERKERNELS_REQUIRE_OPENCL";

    // Set to interpret although there is OpenCL, and to interpret everything, which takes minutes.
    private const string Interpret = "TRANSFORMERKERNELS_INTERPRET";

    // Some 60 ms.
    private const long InstructionsPerTest = 500_000;

    private static readonly bool InterpretsAll = Environment.GetEnvironmentVariable(Interpret) is "1";

    private static GpuUnderTest? current;

    public GpuUnderTest()
    {
        current = this;
        Listing = GpuDevice.ListOpenCl();
        if (!InterpretsAll && Listing.FirstOrDefault(device => device.Refusal is null) is { } usable)
        {
            Device = GpuDevice.OpenOpenCl(usable.Index);
        }
        else if (Environment.GetEnvironmentVariable(RequireOpenCl) is "1")
        {
            throw new InvalidOperationException($"{RequireOpenCl} is set, but {WhyNoOpenCl}");
        }
        else
        {
            Device = OpenInterpreter();
            IsInterpreted = true;
        }
    }

    /// <summary>The fixture of this run.</summary>
    public static GpuUnderTest Current => current ?? throw new InvalidOperationException("The assembly's fixture isn't there yet.");

    public GpuDevice Device { get; }

    public bool IsInterpreted { get; }

    public IReadOnlyList<GpuListing> Listing { get; }

    /// <summary>A size for the device: the first for OpenCL, the second for the interpreter.</summary>
    public int Size(int full, int tiny) => IsInterpreted ? tiny : full;

    /// <summary>Skips the test, aloud, without OpenCL. What is only too much for the interpreter needs no such call: the interpreter skips it when it finds out.</summary>
    public void NeedsOpenCl() => Assert.SkipWhen(IsInterpreted, WhyNoOpenCl);

    private static GpuDevice OpenInterpreter() => InterpretedDevice.Open(InterpretsAll ? long.MaxValue : InstructionsPerTest).Device;

    /// <summary>The GPU that is tested, opened once more.</summary>
    public GpuDevice OpenAnother() => IsInterpreted ? OpenInterpreter() : GpuDevice.OpenOpenCl(Listing.First(device => device.Refusal is null).Index);

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
