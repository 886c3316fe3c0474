using ILGPU.Runtime.CPU;
using Xunit;

[assembly: AssemblyFixture(typeof(TransformerKernels.Tests.GpuUnderTest))]

namespace TransformerKernels.Tests;

/// <summary>The device that the tests run on: the first usable OpenCL device, or ILGPU's simulator, which is so slow that sizes must be tiny.</summary>
public sealed class GpuUnderTest : IDisposable
{
    // Set where OpenCL must be there, so that a broken driver can't pass as a machine without one.
    private const string RequireOpenCl = "TRANSFORMERKERNELS_REQUIRE_OPENCL";

    private static GpuUnderTest? current;

    public GpuUnderTest()
    {
        current = this;
        Listing = GpuDevice.ListOpenCl();
        if (Listing.FirstOrDefault(device => device.Refusal is null) is { } usable)
        {
            Device = GpuDevice.OpenOpenCl(usable.Index);
            IsSimulator = false;
        }
        else if (Environment.GetEnvironmentVariable(RequireOpenCl) is "1")
        {
            throw new InvalidOperationException($"{RequireOpenCl} is set, but {WhyNoOpenCl}");
        }
        else
        {
            Device = OpenSimulator();
            IsSimulator = true;
        }
    }

    /// <summary>The fixture of this run.</summary>
    public static GpuUnderTest Current => current ?? throw new InvalidOperationException("The assembly's fixture isn't there yet.");

    public GpuDevice Device { get; }

    public bool IsSimulator { get; }

    public IReadOnlyList<GpuListing> Listing { get; }

    /// <summary>A size for the device: the first for OpenCL, the second for the simulator.</summary>
    public int Size(int full, int tiny) => IsSimulator ? tiny : full;

    /// <summary>Skips the test, aloud, without OpenCL: it is too slow for the simulator, whose barriers take milliseconds.</summary>
    /// <param name="smallEnough">Whether the simulator can do this one.</param>
    public void NeedsOpenCl(bool smallEnough = false) => Assert.SkipWhen(IsSimulator && !smallEnough, WhyNoOpenCl);

    public static GpuDevice OpenSimulator()
    {
        // Groups of 4 x 64 threads, on one processor.
        ILGPU.Context context = GpuQueue.CreateContext(builder => builder.CPU(new CPUDevice(numThreadsPerWarp: 4, numWarpsPerMultiprocessor: 64, numMultiprocessors: 1)));
        return new GpuDevice("ILGPU's simulator", context, context.CreateCPUAccelerator(0));
    }

    public void Dispose() => Device.Dispose();

    private string WhyNoOpenCl =>
        Listing.Count == 0 ? "No OpenCL device on this machine; .ci/opencl runs these tests on PoCL." :
        "No usable OpenCL device: " + string.Join("; ", Listing.Select(device => $"{device}: {device.Refusal}"));
}
