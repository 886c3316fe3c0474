using System.Diagnostics;
using System.Reflection;
using System.Text.RegularExpressions;
using ILGPU;
using ILGPU.Backends.EntryPoints;
using ILGPU.Backends.PTX;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;

namespace TransformerKernels.Tests;

/// <summary>What <c>ptxas</c> tells about a kernel.</summary>
public readonly record struct Assembled(int Registers, int SpillBytes, int StackBytes, int SharedBytes);

/// <summary>ILGPU's PTX of a kernel, made without a device; a check of its text; NVIDIA's assembler.</summary>
internal static partial class Ptx
{
    public const string AssemblerVariable = "TRANSFORMERKERNELS_PTXAS";

    // What a group may have without asking the driver for more.
    private const int SharedLimit = 48 * 1024;

    /// <summary>The text of a kernel as a CUDA device of this architecture gets it.</summary>
    public static string Compile(MethodInfo kernel, int groupSize, CudaArchitecture architecture)
    {
        // A context of its own: one that failed once can't be used again.
        using Context context = GpuQueue.CreateContext(_ => { });
        using var backend = new PTXBackend(context, architecture, CudaInstructionSet.ISA_80, null!);
        return ((PTXCompiledKernel)backend.Compile(EntryPointDescription.FromExplicitlyGroupedKernel(kernel), new KernelSpecialization(groupSize, 1))).PTXAssembly;
    }

    /// <summary>What no kernel here may contain, if it does.</summary>
    public static IEnumerable<string> Faults(string text)
    {
        if (PredicatedUniformBranch().Match(text) is { Success: true } branch)
            yield return $"a branch that threads may take differently is marked uniform: {branch.Value.Trim()}";
        if (text.Contains(".extern .func", StringComparison.Ordinal))
            yield return "it calls a function that isn't there";
        if (Call().IsMatch(text))
            yield return "it calls a function; everything should have been inlined";
        if (Local().Match(text) is { Success: true } local)
            yield return $"it keeps variables in memory instead of registers: {local.Value.Trim()}";
        if (FloatAtomic().Match(text) is { Success: true } atomic)
            yield return $"it adds floats in whatever order threads come: {atomic.Value.Trim()}";
        if (Approximate().Match(text) is { Success: true } approximate)
            yield return $"it approximates more coarsely than the library's own functions: {approximate.Value.Trim()}";
        foreach (Match mirrored in MirroredComparison().Matches(text))
        {
            if (!IsHeldToItsTwin(text, mirrored))
                yield return $"a comparison is true for NaN, where C# has the constant on the left; write it on the right: {mirrored.Value.Trim()}";
        }
        int shared = Shared().Matches(text).Sum(match => int.Parse(match.Groups[1].Value, System.Globalization.CultureInfo.InvariantCulture));
        if (shared > SharedLimit)
            yield return $"it has {shared} bytes of shared memory; {SharedLimit} are allowed";
    }

    // Real32 compares both ways around and takes what both say.
    private static bool IsHeldToItsTwin(string text, Match mirrored)
    {
        (string kind, string predicate, string operands) = (mirrored.Groups["kind"].Value, mirrored.Groups["predicate"].Value, Regex.Escape(mirrored.Groups["operands"].Value));
        return Regex.Matches(text, $@"setp\.{kind}\.f(?:32|64)\s+(%p\d+), {operands};").Any(twin =>
            Regex.IsMatch(text, $@"and\.pred\s+%p\d+, (?:{twin.Groups[1].Value}, {predicate}|{predicate}, {twin.Groups[1].Value});"));
    }

    /// <summary>The path of ptxas, from the environment or the PATH.</summary>
    /// <param name="reason">Why there is none.</param>
    public static string? FindAssembler(out string reason)
    {
        reason = $"ptxas isn't on the PATH and {AssemblerVariable} doesn't name it; .ci/ptxas fetches it.";
        if (Environment.GetEnvironmentVariable(AssemblerVariable) is { Length: > 0 } named)
            return File.Exists(named) ? named : throw new FileNotFoundException($"{AssemblerVariable} names {named}, which isn't there.");
        return (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator)
            .Select(folder => Path.Combine(folder, OperatingSystem.IsWindows() ? "ptxas.exe" : "ptxas")).FirstOrDefault(File.Exists);
    }

    public static Assembled Assemble(string assembler, string text, int architecture)
    {
        string source = Path.GetTempFileName();
        try
        {
            File.WriteAllText(source, text);
            var start = new ProcessStartInfo(assembler, ["-v", $"-arch=sm_{architecture}", "-o", OperatingSystem.IsWindows() ? "NUL" : "/dev/null", source])
            {
                RedirectStandardError = true,
                RedirectStandardOutput = true,
            };
            using Process process = Process.Start(start)!;
            Task<string> output = process.StandardOutput.ReadToEndAsync();
            string told = process.StandardError.ReadToEnd() + output.Result;
            process.WaitForExit();
            if (process.ExitCode != 0)
                throw new InvalidOperationException($"ptxas refuses it:\n{told}\n{text}");
            return new Assembled(Number(told, Registers()), Number(told, SpillStores()) + Number(told, SpillLoads()), Number(told, Stack()), Number(told, SharedUsed()));
        }
        finally
        {
            File.Delete(source);
        }
    }

    private static int Number(string text, Regex pattern) =>
        pattern.Match(text) is { Success: true } match ? int.Parse(match.Groups[1].Value, System.Globalization.CultureInfo.InvariantCulture) : 0;

    [GeneratedRegex(@"^\s*@!?%p\d+\s+br(a|x\.idx)\.uni.*$", RegexOptions.Multiline)]
    private static partial Regex PredicatedUniformBranch();

    [GeneratedRegex(@"^\s*(@!?%p\d+\s+)?call\b", RegexOptions.Multiline)]
    private static partial Regex Call();

    [GeneratedRegex(@"^.*\.local\b.*$", RegexOptions.Multiline)]
    private static partial Regex Local();

    [GeneratedRegex(@"^.*\b(atom|red)\.[\w.]*\.b?f(16|32|64)\w*\b.*$", RegexOptions.Multiline)]
    private static partial Regex FloatAtomic();

    [GeneratedRegex(@"^.*\.(approx|full|ftz)\b.*$", RegexOptions.Multiline)]
    private static partial Regex Approximate();

    // Of "constant < x" ILGPU makes "x > constant or NaN".
    [GeneratedRegex(@"setp\.(?<kind>[lg][te])u\.f(?:32|64)\s+(?<predicate>%p\d+), (?<operands>%fd?\d+, 0[fd]\w+);")]
    private static partial Regex MirroredComparison();

    [GeneratedRegex(@"\.shared\s+\.align\s+\d+\s+\.b8\s+\w+\[(\d+)\]")]
    private static partial Regex Shared();

    [GeneratedRegex(@"Used (\d+) registers")]
    private static partial Regex Registers();

    [GeneratedRegex(@"(\d+) bytes spill stores")]
    private static partial Regex SpillStores();

    [GeneratedRegex(@"(\d+) bytes spill loads")]
    private static partial Regex SpillLoads();

    [GeneratedRegex(@"(\d+) bytes stack frame")]
    private static partial Regex Stack();

    [GeneratedRegex(@"(\d+) bytes smem")]
    private static partial Regex SharedUsed();
}
