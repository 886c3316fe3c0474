using System.Reflection;
using Alignment;
using ILGPU.Runtime.Cuda;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>The PTX of the sample's kernels, made without a device: what holds for the library's holds for them.</summary>
public class SamplePtxTests(ITestOutputHelper output)
{
    public static TheoryData<string> Kernels => [.. All().Select(Name)];

    [Theory]
    [MemberData(nameof(Kernels))]
    public void Text_is_sound_and_the_assembler_takes_it_without_spills(string name)
    {
        MethodInfo kernel = All().Single(kernel => Name(kernel) == name);
        int groupSize = (int)kernel.DeclaringType!.GetField("GroupSize")!.GetRawConstantValue()!;
        string? assembler = Ptx.FindAssembler(out string reason);
        foreach ((int number, CudaArchitecture architecture) in new[] { (80, CudaArchitecture.SM_80), (90, CudaArchitecture.SM_90) })
        {
            string text = Ptx.Compile(kernel, groupSize, architecture);
            Assert.Empty(Ptx.Faults(text));
            if (assembler is null)
                continue;
            Assembled assembled = Ptx.Assemble(assembler, text, number);
            output.WriteLine($"{name} sm_{number}: {assembled.Registers} registers, {assembled.SharedBytes} shared bytes");
            Assert.Equal((0, 0), (assembled.SpillBytes, assembled.StackBytes));
        }
        Assert.SkipWhen(assembler is null, reason);
    }

    private static IEnumerable<MethodInfo> All() => typeof(GpuMaths).Assembly.GetTypes().Where(type => type.Name.EndsWith("Kernels", StringComparison.Ordinal))
        .SelectMany(type => type.GetMethods(BindingFlags.Public | BindingFlags.Static | BindingFlags.DeclaredOnly).Where(method => method.ReturnType == typeof(void)));

    private static string Name(MethodInfo kernel) => $"{kernel.DeclaringType!.Name}.{kernel.Name}";
}
