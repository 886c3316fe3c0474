namespace TransformerKernels.Tests;

/// <summary>The GPU that the CPU's tests of operations run on: they hand in host memory, which is copied there and back around each call.</summary>
public static class DeviceUnderTest
{
    private static readonly Lazy<MirroredDevice> Mirrored = new(() => new MirroredDevice(GpuUnderTest.Current.Device));

    /// <summary>Skips the test, aloud, without OpenCL: the CPU's tests are too large for the simulator.</summary>
    public static ComputeDevice Device
    {
        get
        {
            GpuUnderTest.Current.NeedsOpenCl();
            return Mirrored.Value;
        }
    }

    /// <summary>Whether a multiplication and an addition may be rounded once, by a compiler that isn't ours.</summary>
    public static bool Fuses => true;
}
