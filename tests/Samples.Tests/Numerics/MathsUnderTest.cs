using TransformerKernels;

namespace Alignment.Tests;

/// <summary>The mathematics that the tests of the model run on, here the processor's; tests/Kernels.Tests runs the same tests on a GPU's.</summary>
internal static class MathsUnderTest
{
    public static ModelMaths Open() => new CpuMaths(ComputeDevice.Cpu, threads: 2);
}
