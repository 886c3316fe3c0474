using BenchmarkDotNet.Attributes;

namespace TransformerKernels.Benchmarks;

/// <summary>The cases of one family under BenchmarkDotNet, which adds statistics and allocated memory; what they compete with is the matter of <c>compare</c>.</summary>
[MemoryDiagnoser]
public abstract class Suite(string prefix)
{
    private Contest? contest;

    /// <summary>The cases, without the family's name.</summary>
    public IEnumerable<string> Names => Cases.All.Where(@case => @case.Name.StartsWith(prefix, StringComparison.Ordinal)).Select(@case => @case.Name[prefix.Length..]);

    /// <summary>Which case runs.</summary>
    [ParamsSource(nameof(Names))]
    public string Case { get; set; } = "";

    /// <summary>Makes its data.</summary>
    [GlobalSetup]
    public void Prepare() => contest = Cases.All.Single(@case => @case.Name == prefix + Case).Prepare(ComputeDevice.Cpu);

    /// <summary>Frees it.</summary>
    [GlobalCleanup]
    public void Free() => contest?.Dispose();

    /// <summary>The operation.</summary>
    [Benchmark]
    public void Run() => contest!.Run();
}

/// <summary>Rotary embedding.</summary>
public class PositionsSuite() : Suite("positions/");

/// <summary>Attention, forward and backward.</summary>
public class AttentionSuite() : Suite("attention/");

/// <summary>Log-probabilities.</summary>
public class LogProbsSuite() : Suite("logprobs/");

/// <summary>Losses and advantages.</summary>
public class AlignmentSuite() : Suite("alignment/");
