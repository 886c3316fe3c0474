namespace TransformerKernels.Tests;

/// <summary>The device that the tests of operations run on. Kernels.Tests compiles the same tests with a GPU in its place.</summary>
public static class DeviceUnderTest
{
    public static ComputeDevice Device => ComputeDevice.Cpu;

    /// <summary>Whether every operation of a formula is rounded by itself and in the formula's order: then the formula in float32 gives the same bits.</summary>
    public static bool RoundsAsWritten => true;

    /// <summary>How many random cases of so many a test tries.</summary>
    public static int Samples(int count) => count;
}
