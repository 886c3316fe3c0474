using TransformerKernels.Tests;

namespace Alignment.Tests;

/// <summary>The mathematics that the tests of the sample's model run on: a GPU's.</summary>
internal static class MathsUnderTest
{
    /// <summary>Skips the test, aloud, without OpenCL: these tests are too large for the simulator.</summary>
    public static ModelMaths Open()
    {
        GpuUnderTest.Current.NeedsOpenCl();
        return new GpuMaths(GpuUnderTest.Current.Device);
    }
}
