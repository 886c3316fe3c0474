namespace TransformerKernels.Tests;

/// <summary>The GPU that the CPU's tests of operations run on: they hand in host memory, which is copied there and back around each call.</summary>
public static class DeviceUnderTest
{
    private static readonly Lazy<MirroredDevice> Mirrored = new(() => new MirroredDevice(GpuUnderTest.Current.Device));

    public static ComputeDevice Device => Mirrored.Value;

    /// <summary>Whether a multiplication and an addition may be rounded once, by a compiler that isn't ours.</summary>
    public static bool Fuses => !GpuUnderTest.Current.IsInterpreted;

    /// <summary>How many random cases of so many a test tries: fewer on the interpreter.</summary>
    public static int Samples(int count) => GpuUnderTest.Current.IsInterpreted ? 1 + count / InterpretedShare : count;

    private const int InterpretedShare = 60;
}
