using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>The loops that hold a user's rule or loss are straight-line machine code: a child process runs them and writes down what the JIT made of them.</summary>
public class LoopTests(ITestOutputHelper output)
{
    // The methods whose main loop evaluates a rule or loss, or sums what it gave.
    private static readonly string[] Methods =
    [
        "PairLossWork`1[DpoSigmoid]:Value", "PairLossWork`1[DpoSigmoid]:Differentiate", "PairLossWork`1[DpoSigmoid]:Summarise",
        "TokenLossWork`1[PpoClip]:Value", "TokenLossWork`1[PpoClip]:Differentiate",
        "AttentionForwardWork`2[Gained`1[Temperature],Uncapped]:ScoreLanes", "AttentionForwardWork`2[Gained`1[Temperature],Uncapped]:Weigh",
        "AttentionBackwardWork`2[Gained`1[Temperature],Uncapped]:ApplyLanes", "AttentionBackwardWork`2[Gained`1[Temperature],Uncapped]:AddCaptured",
        "AttentionBackwardWork`2[Gained`1[Temperature],Uncapped]:Differentiate", "AttentionBackwardWork`2[Temperature,Uncapped]:ApplyBothWays", "AttentionBackwardWork`2[Temperature,Uncapped]:MultiplyByBothSlopes",
        "AttentionForwardWork`2[PlainScore,Softcapped]:ScoreLanes", "AttentionBackwardWork`2[PlainScore,Softcapped]:ApplyCap", "AttentionBackwardWork`2[PlainScore,Softcapped]:Differentiate",
        "AttentionForwardWork`2[Temperature,Softcapped]:ScoreLanes", "AttentionBackwardWork`2[Temperature,Softcapped]:ApplyBothWays", "AttentionBackwardWork`2[Temperature,Softcapped]:ApplyCap",
    ];

    [Fact]
    public void Loops_over_rules_and_losses_call_nothing_and_keep_vectors_in_registers()
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "The listing is read for x86-64 only.");
        Assert.SkipUnless(Vector128.IsHardwareAccelerated, "Without vectors there are calls to the mathematics of the runtime.");
        Loop[] loops = Disassembly.MainLoops(ListingOf(nameof(LoopProbe), "*LossWork*:* *AttentionForwardWork*:* *AttentionBackwardWork*:*"))
            .Where(loop => Methods.Any(method => Name(loop).StartsWith(method + "[", StringComparison.Ordinal))).ToArray();
        foreach (Loop loop in loops)
            output.WriteLine(loop.ToString());

        Assert.All(Methods, method => Assert.Contains(loops, loop => Name(loop).StartsWith(method + "[", StringComparison.Ordinal)));
        Assert.All(loops, loop => Assert.True(loop.Vector > 0 && loop.Calls == 0, loop.ToString()));
        // 16 registers hold less than 32.
        if (Vector512.IsHardwareAccelerated)
            Assert.All(loops, loop => Assert.True(loop.VectorSpills == 0, loop.ToString()));
    }

    [Fact]
    public void Steps_of_a_long_rule_are_loops_that_call_nothing()
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "The listing is read for x86-64 only.");
        Assert.SkipUnless(Vector128.IsHardwareAccelerated, "Without vectors there are calls to the mathematics of the runtime.");
        Loop[] loops = Disassembly.MainLoops(ListingOf(nameof(LoopProbe), "*Strip*:Take*")).Where(loop => Name(loop).StartsWith("Strip`1[Lanes", StringComparison.Ordinal)).ToArray();
        foreach (Loop loop in loops)
            output.WriteLine(loop.ToString());

        Assert.All((string[])["Product", "LogarithmOf1Plus", "Exponential"], step => Assert.Contains(loops, loop => Name(loop).Contains($"+{step}[", StringComparison.Ordinal)));
        Assert.All(loops, loop => Assert.True(loop.Vector > 0 && loop.Calls == 0, loop.ToString()));
    }

    [Fact]
    public void The_reader_of_listings_finds_calls_branches_and_spills()
    {
        const string listing = """
            ; Assembly listing for method A:B[C](int) (FullOpts)
            G_M000_IG01:                ;; offset=0x0000
                   push     rbp
            G_M000_IG02:                ;; offset=0x0001
                   vmovups  zmm0, zmmword ptr [rdi]
                   call     [D:E()]
                   vmovups  zmmword ptr [rbp-0x40], zmm0
                   vbroadcastss zmm1, dword ptr [rbp-0x48]
                   je       SHORT G_M000_IG03
                   vaddps   zmm0, zmm0, zmmword ptr [rsp+0x40]
            G_M000_IG03:                ;; offset=0x0010
                   cmp      rax, rcx
                   jl       SHORT G_M000_IG02
                   ret
            ; Total bytes of code 40
            """;
        Loop loop = Assert.Single(Disassembly.MainLoops(listing));
        Assert.Equal(("A:B[C](int)", 8, 4, 1, 1, 2), (loop.Method, loop.Instructions, loop.Vector, loop.Calls, loop.Branches, loop.VectorSpills));
    }

    // Without namespaces and outer classes.
    private static string Name(Loop loop) => loop.Method.Replace("TransformerKernels.Tests.", "").Replace("TransformerKernels.", "").Replace("CpuDevice+", "");

    private static string ListingOf(string testClass, string methods)
    {
        string listing = Path.GetTempFileName(), program = Environment.ProcessPath!, assembly = typeof(LoopTests).Assembly.Location;
        try
        {
            bool hosted = Path.GetFileNameWithoutExtension(program) == "dotnet";
            var start = new ProcessStartInfo(program, [.. hosted ? [assembly] : Array.Empty<string>(), "-class", $"{typeof(LoopTests).Namespace}.{testClass}", "-noColor"])
            {
                RedirectStandardOutput = true,
                Environment =
                {
                    ["DOTNET_JitDisasm"] = methods,
                    ["DOTNET_JitStdOutFile"] = listing,
                    ["DOTNET_TieredCompilation"] = "0",
                    // Two threads that compile at once write into each other's listing.
                    ["DOTNET_PROCESSOR_COUNT"] = "1",
                },
            };
            using Process child = Process.Start(start)!;
            string told = child.StandardOutput.ReadToEnd();
            child.WaitForExit();
            Assert.True(child.ExitCode == 0, told);
            return File.ReadAllText(listing);
        }
        finally
        {
            File.Delete(listing);
        }
    }
}

/// <summary>Runs the loops that <see cref="LoopTests"/> reads.</summary>
public class LoopProbe
{
    private const int Count = 2048;

    private readonly Workspace workspace = new(ComputeDevice.Cpu);

    [Fact]
    public void Pair_losses_run()
    {
        float[] chosen = Numbers(1), rejected = Numbers(2), losses = new float[Count], byChosen = new float[Count], byRejected = new float[Count];
        var batch = new PairBatch { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) };
        float[] metrics = new float[PreferenceMetrics.Count];
        var loss = new DpoSigmoid(0.1f, 0.1f);
        PreferenceLoss.Evaluate(ComputeDevice.Cpu, batch, loss, new PairOutputs { Loss = TensorView.Of(losses) }, TensorView.Of(metrics), workspace);
        PreferenceLoss.Evaluate(ComputeDevice.Cpu, batch, loss, new PairOutputs { ChosenGradient = TensorView.Of(byChosen) }, default, workspace);
        PreferenceLoss.Evaluate(ComputeDevice.Cpu, batch, loss, new PairOutputs { ChosenGradient = TensorView.Of(byChosen), RejectedGradient = TensorView.Of(byRejected) }, default, workspace);
        Assert.All(losses, x => Assert.True(x > 0));
        Assert.Equal(byChosen, byRejected.Select(x => -x));
    }

    [Fact]
    public void Token_losses_run()
    {
        float[] logProb = Numbers(3), old = Numbers(4), advantage = Numbers(5), losses = new float[Count], gradient = new float[Count], metrics = new float[PolicyMetrics.Count];
        var batch = new TokenBatch { LogProb = TensorView.Of(logProb, 4, Count / 4), OldLogProb = TensorView.Of(old, 4, Count / 4), Advantage = TensorView.Of(advantage, 4, Count / 4) };
        PolicyLoss.Evaluate(ComputeDevice.Cpu, batch, new PpoClip(), new TokenLossOutputs { Loss = TensorView.Of(losses, 4, Count / 4) }, TensorView.Of(metrics), workspace);
        PolicyLoss.Evaluate(ComputeDevice.Cpu, batch, new PpoClip(), new TokenLossOutputs { LogProbGradient = TensorView.Of(gradient, 4, Count / 4) }, TensorView.Of(metrics), workspace);
        Assert.Equal(Count, metrics[PolicyMetrics.Tokens]);
    }

    [Fact]
    public void A_rule_with_captured_tables_around_another_rule_runs_forward_and_backward() => new AttentionCase
    {
        Queries = 96,
        Keys = 96,
        HeadSize = 16,
        ValueSize = 16,
        Captured = [new(AttentionCase.Numbers(20, 0.3f, 2), CapturedBy.Head), new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
    }.Check(ComputeDevice.Cpu, new Gained<Temperature>(new Temperature(0.25f, 70f)), new GainedTemperatureFormula(0.25f, 70f));

    [Fact]
    public void A_rule_with_one_captured_table_runs_forward_and_backward() => new AttentionCase
    {
        Queries = 96,
        Keys = 96,
        HeadSize = 16,
        ValueSize = 16,
        Captured = [new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
    }.Check(ComputeDevice.Cpu, new Temperature(0.25f, 70f), new TemperatureFormula(0.25f, 70f));

    [Fact]
    public void A_softcap_runs_forward_and_backward() => new AttentionCase { Queries = 96, Keys = 96, HeadSize = 16, ValueSize = 16, Softcap = 2 }.Check(ComputeDevice.Cpu, default(PlainScore));

    [Fact]
    public void A_softcap_after_a_rule_runs_forward_and_backward() => new AttentionCase
    {
        Queries = 96,
        Keys = 96,
        HeadSize = 16,
        ValueSize = 16,
        Softcap = 2,
        Captured = [new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
    }.Check(ComputeDevice.Cpu, new Temperature(0.25f, 70f), new TemperatureFormula(0.25f, 70f));

    [Fact]
    public void A_long_rule_runs_forward_and_backward() => new AttentionCase
    {
        Queries = 96,
        Keys = 96,
        HeadSize = 16,
        ValueSize = 16,
        Captured = [new(AttentionCase.Numbers(20, 0.3f, 2), CapturedBy.Head), new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
    }.Check(ComputeDevice.Cpu, new LongWay<LongWay<LongWay<LongWay<Gained<Temperature>>>>>(new(new(new(new(new(0.25f, 70f)))))), new GainedTemperatureFormula(0.25f, 70f));

    private static float[] Numbers(int seed)
    {
        var random = new Random(seed);
        return Enumerable.Range(0, Count).Select(_ => (float)(random.NextDouble() - 0.5)).ToArray();
    }
}
