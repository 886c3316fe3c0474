using TransformerKernels.Tests;

namespace Alignment.Tests;

/// <summary>The mathematics that the tests of the sample's model run on: a GPU's.</summary>
internal static class MathsUnderTest
{
    /// <summary>Without OpenCL the interpreter takes the tests that are small enough.</summary>
    public static ModelMaths Open() => new GpuMaths(GpuUnderTest.Current.Device);
}
