using System.Runtime.Intrinsics.X86;
using Xunit;

namespace TransformerKernels.Tests;

public class InstructionSetTests
{
    // Switching an instruction set off must reach the kernels; otherwise the legs with narrower vectors would test the same code again.
    [Fact]
    public void The_device_uses_the_vectors_that_the_environment_leaves()
    {
        string[] expected = IsOff("DOTNET_EnableHWIntrinsic") ? ["scalar"]
            : IsOff("DOTNET_EnableAVX2") || !Avx2.IsSupported ? ["128-bit vectors"]
            : IsOff("DOTNET_EnableAVX512") || !Avx512F.IsSupported ? ["256-bit vectors"]
            : ["512-bit vectors", "256-bit vectors"]; // the runtime prefers 256 bits on processors that slow down with more

        Assert.Contains(expected, kind => ComputeDevice.Cpu.Name.EndsWith(kind, StringComparison.Ordinal));
    }

    private static bool IsOff(string name) => Environment.GetEnvironmentVariable(name) == "0";
}
