namespace TransformerKernels.Tests;

/// <summary>A device that no other test class uses: for tests that count launches or expect faults, which are thrown to whoever synchronizes next.</summary>
public sealed class OwnGpu(GpuUnderTest shared) : IDisposable
{
    private readonly Lazy<GpuDevice> device = new(() => shared.IsSimulator ? GpuUnderTest.OpenSimulator() : GpuDevice.OpenOpenCl(shared.Listing.First(listed => listed.Refusal is null).Index));

    /// <summary>Skips the test, aloud, without OpenCL: the simulator is too slow.</summary>
    public GpuDevice Device
    {
        get
        {
            shared.NeedsOpenCl();
            return device.Value;
        }
    }

    public void Dispose()
    {
        if (device.IsValueCreated)
            device.Value.Dispose();
    }
}
