namespace TransformerKernels.Tests;

/// <summary>The device that the tests of operations run on. Kernels.Tests compiles the same tests with a GPU in its place.</summary>
public static class DeviceUnderTest
{
    public static ComputeDevice Device => ComputeDevice.Cpu;
}
