using System.Collections.Concurrent;

namespace TransformerKernels.Tests;

/// <summary>The GPU that the CPU's tests of operations run on: they hand in host memory, which is copied there and back around each call.</summary>
public static class DeviceUnderTest
{
    private static readonly ConcurrentDictionary<int, MirroredDevice> Mirrored = [];

    /// <summary>The same for all tests, but for those of a class with <see cref="TilesAttribute"/>.</summary>
    public static ComputeDevice Device => WithTiles(TilesAttribute.SideOfThisTest);

    /// <summary>Attention has tiles of this side there; 0 leaves it to the shapes.</summary>
    public static ComputeDevice WithTiles(int side) =>
        Mirrored.GetOrAdd(side, side => new MirroredDevice(side == 0 ? GpuUnderTest.Current.Device : GpuUnderTest.Current.Device.WithTiles(side)));

    /// <summary>Whether every operation of a formula is rounded by itself and in the formula's order: then the formula in float32 gives the same bits.</summary>
    public static bool RoundsAsWritten => false;

    /// <summary>How many random cases of so many a test tries. Skips the test, aloud, without OpenCL: what the interpreter throws to skip a test would fail it inside a sample.</summary>
    public static int Samples(int count)
    {
        GpuUnderTest.Current.NeedsOpenCl();
        return count;
    }
}
