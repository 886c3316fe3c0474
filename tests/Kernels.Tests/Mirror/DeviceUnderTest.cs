namespace TransformerKernels.Tests;

/// <summary>The GPU that the CPU's tests of operations run on: they hand in host memory, which is copied there and back around each call.</summary>
public static class DeviceUnderTest
{
    private static readonly Lazy<MirroredDevice> Mirrored = new(() => new MirroredDevice(GpuUnderTest.Current.Device));

    public static ComputeDevice Device => Mirrored.Value;

    /// <summary>Whether every operation of a formula is rounded by itself and in the formula's order: then the formula in float32 gives the same bits.</summary>
    public static bool RoundsAsWritten => false;

    /// <summary>How many random cases of so many a test tries. Skips the test, aloud, without OpenCL: what the interpreter throws to skip a test would fail it inside a sample.</summary>
    public static int Samples(int count)
    {
        GpuUnderTest.Current.NeedsOpenCl();
        return count;
    }
}
