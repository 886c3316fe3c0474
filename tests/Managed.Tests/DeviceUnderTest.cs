namespace TransformerKernels.Tests;

/// <summary>The device that the tests of operations run on. Kernels.Tests compiles the same tests with a GPU in its place.</summary>
public static class DeviceUnderTest
{
    public static ComputeDevice Device => ComputeDevice.Cpu;

    /// <summary>Whether a multiplication and an addition may be rounded once, by a compiler that isn't ours.</summary>
    public static bool Fuses => false;

    /// <summary>How many random cases of so many a test tries.</summary>
    public static int Samples(int count) => count;
}
