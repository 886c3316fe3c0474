using System.Globalization;
using System.Reflection;
using Alignment;
using ILGPU.Runtime.Cuda;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Every kernel's PTX, made without a device, is what it should be, and NVIDIA's assembler takes it.</summary>
public class PtxTests(ITestOutputHelper output)
{
    private static readonly int[] Architectures = [80, 90];

    // What the kernels of the test project are instantiated with.
    private static readonly Type Rule = typeof(Gated<OffsetTemperature>);

    /// <summary>Kernel name, and what it is instantiated with.</summary>
    public static TheoryData<string> Kernels => [.. All().Select(kernel => kernel.Name)];

    [Theory]
    [MemberData(nameof(Kernels))]
    public void Text_has_no_calls_no_local_memory_and_no_false_uniform_branch(string name)
    {
        // Left there for people and for nvdisasm to read.
        string folder = Directory.CreateDirectory(Path.Combine(AppContext.BaseDirectory, "ptx")).FullName;
        foreach (int architecture in Architectures)
        {
            string text = Text(name, architecture);
            File.WriteAllText(Path.Combine(folder, $"{name.Replace('<', '(').Replace('>', ')')}.sm_{architecture}.ptx"), text);
            Assert.Empty(Ptx.Faults(text));
        }
    }

    [Theory]
    [MemberData(nameof(Kernels))]
    public void Assembler_takes_it_without_spills_and_with_the_resources_on_record(string name)
    {
        string? assembler = Ptx.FindAssembler(out string reason);
        Assert.SkipWhen(assembler is null, reason);
        foreach (int architecture in Architectures)
        {
            Assembled assembled = Ptx.Assemble(assembler!, Text(name, architecture), architecture);
            output.WriteLine(Line(name, architecture, assembled)); // as resources.txt has it
            Assert.Equal((0, 0), (assembled.SpillBytes, assembled.StackBytes));
            Assert.True(Record().TryGetValue($"{name} sm_{architecture}", out Assembled onRecord), $"resources.txt lacks \"{Line(name, architecture, assembled)}\"");
            Assert.True(assembled.Registers <= onRecord.Registers && assembled.SharedBytes <= onRecord.SharedBytes,
                $"\"{Line(name, architecture, assembled)}\" is more than resources.txt has: {onRecord}");
        }
    }

    [Fact]
    public void Every_line_of_the_record_is_a_kernel() =>
        Assert.Equal(All().SelectMany(kernel => Architectures.Select(architecture => $"{kernel.Name} sm_{architecture}")).Order(StringComparer.Ordinal),
            Record().Keys.Order(StringComparer.Ordinal));

    [Fact]
    public void The_check_of_the_text_finds_every_fault()
    {
        Assert.Single(Ptx.Faults("\t@%p3 bra.uni L_2;"));
        Assert.Single(Ptx.Faults("\t@!%p3 brx.idx.uni %r1, table;"));
        Assert.Single(Ptx.Faults(".extern .func FusedMultiplyAdd"));
        Assert.Single(Ptx.Faults("\tcall.uni (retval), f;"));
        Assert.Single(Ptx.Faults("\t.local .align 4 .b8 depot[8];"));
        Assert.Single(Ptx.Faults("\t.shared .align 4 .b8 tile[49153];"));
        Assert.Single(Ptx.Faults("\tatom.global.add.f32 %f1, [%rd1], %f2;"));
        Assert.Single(Ptx.Faults("\t@%p3 red.relaxed.gpu.global.add.v2.f32 [%rd1], {%f1, %f2};"));
        Assert.Single(Ptx.Faults("\tdiv.full.f32 %f1, %f2, %f3;"));
        Assert.Single(Ptx.Faults("\tex2.approx.ftz.f32 %f1, %f2;"));
        Assert.Single(Ptx.Faults("\tsetp.gtu.f32\t%p2, %f1, 0f42B20000;\n\tselp.b32\t%f2, 0f42B20000, %f1, %p2;"));
        Assert.Single(Ptx.Faults("\tsetp.lt.f32\t%p1, %f1, 0f00000000;\n\tsetp.ltu.f32\t%p2, %f1, 0f00000000;\n\tselp.b32\t%f2, %f3, %f4, %p2;"));
        Assert.Single(Ptx.Faults("\tsetp.lt.f32\t%p1, %f1, 0f00000000;\n\tsetp.ltu.f32\t%p2, %f1, 0f3F800000;\n\tand.pred\t%p3, %p1, %p2;"));
        Assert.Empty(Ptx.Faults("\tsetp.lt.f32\t%p1, %f1, 0f00000000;\n\tsetp.ltu.f32\t%p2, %f1, 0f00000000;\n\tand.pred\t%p3, %p1, %p2;"));
        Assert.Empty(Ptx.Faults("\tatom.global.add.s32 %r1, [%rd1], %r2;"));
        Assert.Empty(Ptx.Faults("\t@%p3 bra L_2;\n\tbra.uni L_3;\n\t.shared .align 4 .b8 tile[49152];\n\tst.shared.f32 [%r1], %f1;"));
    }

    /// <summary>The library's kernels with every tile, every built-in loss or rule and a rule that does everything, the sample's, and the ones of the test project.</summary>
    internal static IEnumerable<(string Name, MethodInfo Method, int GroupSize)> All()
    {
        IEnumerable<(MethodInfo, int)> products = ((Assembly[])[typeof(GpuDevice).Assembly, typeof(GpuMaths).Assembly]).SelectMany(assembly => assembly.GetTypes())
            .Where(type => type.Name.Split('`')[0].EndsWith("Kernels", StringComparison.Ordinal))
            .SelectMany(Variants).SelectMany(type => KernelsOf(type).SelectMany(Instances).Select(instance => (instance, GroupSize(type))));
        IEnumerable<(MethodInfo, int)> proof = KernelsOf(typeof(ProofKernels)).Select(kernel => (kernel.MakeGenericMethod(Rule), GroupSize(typeof(ProofKernels))));
        IEnumerable<(MethodInfo, int)> comparisons = KernelsOf(typeof(ComparisonKernels)).Select(kernel => (kernel, GroupSize(typeof(ComparisonKernels))));
        IEnumerable<(MethodInfo, int)> tables = typeof(ITabulated).Assembly.GetTypes().Where(type => type.IsValueType && type.IsAssignableTo(typeof(ITabulated)))
            .SelectMany(type => KernelsOf(typeof(TabulateKernels)).Select(kernel => (kernel.MakeGenericMethod(type), GroupSize(typeof(TabulateKernels)))));
        return products.Concat(proof).Concat(comparisons).Concat(tables).Select(kernel => (Name(kernel.Item1), kernel.Item1, kernel.Item2));
    }

    // A class whose kernels have a tile, or read logits of some kind, with every one.
    private static IEnumerable<Type> Variants(Type type)
    {
        if (!type.IsGenericTypeDefinition)
            return [type];
        string kind = type.GetGenericArguments()[0].GetGenericParameterConstraints().Single(constraint => constraint.IsInterface).Name;
        return type.Assembly.GetTypes().Where(variant => variant.IsValueType && variant.GetInterface(kind) is not null).Select(variant => type.MakeGenericType(variant));
    }

    // A kernel that takes a struct, with every built-in one of the kind that it asks for, and with the proof rule.
    private static IEnumerable<MethodInfo> Instances(MethodInfo kernel)
    {
        if (!kernel.IsGenericMethod)
            return [kernel];
        Type formula = kernel.GetGenericArguments()[0].GetGenericParameterConstraints().Single(constraint => constraint.IsInterface);
        return formula.Assembly.GetExportedTypes().Append(Rule).Where(type => type.IsValueType && !type.IsGenericTypeDefinition && type.IsAssignableTo(formula))
            .Select(type => kernel.MakeGenericMethod(type));
    }

    private static IEnumerable<MethodInfo> KernelsOf(Type type) =>
        type.GetMethods(BindingFlags.Public | BindingFlags.Static | BindingFlags.DeclaredOnly).Where(method => method.ReturnType == typeof(void));

    private static int GroupSize(Type type) => (int)(type.GetField("GroupSize")?.GetRawConstantValue() ?? type.GetProperty("GroupSize")!.GetValue(null))!;

    internal static string Name(MethodInfo kernel) =>
        $"{Short(kernel.DeclaringType!)}.{kernel.Name}{(kernel.IsGenericMethod ? $"<{string.Join(",", kernel.GetGenericArguments().Select(Short))}>" : "")}";

    private static string Short(Type type) =>
        type.IsGenericType ? $"{type.Name.Split('`')[0]}<{string.Join(",", type.GetGenericArguments().Select(Short))}>" : type.Name;

    private static string Text(string name, int architecture)
    {
        (_, MethodInfo method, int groupSize) = All().Single(kernel => kernel.Name == name);
        return Ptx.Compile(method, groupSize, architecture == 80 ? CudaArchitecture.SM_80 : CudaArchitecture.SM_90);
    }

    private static string Line(string name, int architecture, Assembled assembled) =>
        string.Create(CultureInfo.InvariantCulture, $"{name} sm_{architecture} {assembled.Registers} {assembled.SpillBytes} {assembled.StackBytes} {assembled.SharedBytes}");

    // Kernel, architecture, registers a thread, spilled bytes, bytes of stack, bytes of shared memory.
    private static Dictionary<string, Assembled> Record() =>
        File.ReadLines(Path.Combine(AppContext.BaseDirectory, "resources.txt")).Where(line => line.Length > 0 && line[0] != '#').Select(line => line.Split(' '))
            .ToDictionary(words => $"{words[0]} {words[1]}", words => new Assembled(Number(words[2]), Number(words[3]), Number(words[4]), Number(words[5])));

    private static int Number(string word) => int.Parse(word, CultureInfo.InvariantCulture);
}
