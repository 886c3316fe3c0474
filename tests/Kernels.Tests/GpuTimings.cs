using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>How long the operations take on the device, as JSON: half of <c>benchmarks/gpu.sh</c>, which times other libraries on the same shapes and sets both side by side.</summary>
/// <remarks>The shapes stand here and in <c>benchmarks/gpu_peers.py</c>. A number is the median of rounds of several calls each, synchronised at the end of a round.</remarks>
[Collection(nameof(Alone))]
public class GpuTimings(GpuUnderTest gpu, ITestOutputHelper output)
{
    // A file for the results; without it nothing is timed.
    private const string ResultsVariable = "TRANSFORMERKERNELS_TIMINGS";

    // Named in gpu_peers.py too. On a processor a call may take seconds.
    private const int Rounds = 15, CallsPerRound = 5;

    private int rounds = Rounds, callsPerRound = CallsPerRound;

    private readonly List<Timing> timings = [];

    /// <param name="Case">The same as in gpu_peers.py.</param>
    /// <param name="Milliseconds">Of one call.</param>
    /// <param name="Work">Floating-point operations or bytes that the case needs, whatever is executed.</param>
    /// <param name="Unit">"flop" or "byte".</param>
    private sealed record Timing(string Case, double Milliseconds, double Work, string Unit);

    [Fact]
    public void Operations_are_timed()
    {
        string? file = Environment.GetEnvironmentVariable(ResultsVariable);
        Assert.SkipWhen(string.IsNullOrEmpty(file), $"{ResultsVariable} names no file; benchmarks/gpu.sh does.");
        // On a processor the shapes only show that the program works.
        bool small = gpu.IsInterpreted || gpu.Device.Name.Contains("on a processor", StringComparison.Ordinal);
        if (small)
            (rounds, callsPerRound) = (1, 1);

        Copy(small ? 1 << 22 : 1 << 30);
        foreach (int headSize in (int[])[64, 128])
        {
            foreach (string bias in (string[])["none", "causal", "distance"])
                AttentionCase(bias, batch: small ? 1 : 4, heads: small ? 2 : 16, length: small ? 128 : 2048, headSize);
        }
        LogProbsCase(small ? 16 : 4096, small ? 1000 : 32_000);
        RotaryCase(small ? 64 : 2048);

        File.WriteAllText(file!, JsonSerializer.Serialize(new { device = gpu.Device.Name, small, timings }, JsonSerializerOptions.Web));
    }

    private void Copy(int elements)
    {
        using TensorBuffer from = gpu.Device.Allocate(ElementType.Float32, elements), to = gpu.Device.Allocate(ElementType.Float32, elements);
        Time("copy", 2.0 * sizeof(float) * elements, "byte", () => gpu.Device.Copy(from, to));
    }

    private void AttentionCase(string bias, int batch, int heads, int length, int headSize)
    {
        int count = batch * heads * length * headSize;
        using TensorBuffer q = Random(count, 1), k = Random(count, 2), v = Random(count, 3), upstream = Random(count, 4), distances = Random(heads * (2 * length - 1), 5);
        using TensorBuffer o = gpu.Device.Allocate(ElementType.Float32, batch, heads, length, headSize), logSumExp = gpu.Device.Allocate(ElementType.Float32, batch, heads, length, 2);
        using TensorBuffer dq = Like(), dk = Like(), dv = Like(), dBias = gpu.Device.Allocate(ElementType.Float32, heads, 2 * length - 1);
        using var workspace = new Workspace(gpu.Device);
        // Work counts the pairs that are seen: 2 P (d + dv) forward, 2 P (3 d + 2 dv) backward.
        double pairs = (double)batch * heads * (bias == "causal" ? length * (length + 1.0) / 2 : (double)length * length);
        Time($"attention/forward-d{headSize}/{bias}", 4 * pairs * headSize, "flop", Forward);
        Time($"attention/train-d{headSize}/{bias}", 14 * pairs * headSize, "flop", () =>
        {
            Forward();
            Attention.Backward(gpu.Device, Problem(), new AttentionSaved { Output = o, LogSumExp = logSumExp }, new AttentionUpstream { Output = Shaped(upstream) },
                new AttentionGradients { Query = dq, Key = dk, Value = dv, DistanceBias = bias == "distance" ? dBias.View : default }, workspace);
        });

        void Forward() => Attention.Forward(gpu.Device, Problem(), o, logSumExp, workspace);

        AttentionProblem Problem() => new()
        {
            Query = Shaped(q),
            Key = Shaped(k),
            Value = Shaped(v),
            Causal = bias == "causal",
            DistanceBias = bias == "distance" ? distances.View.Reshape(heads, 2 * length - 1) : default,
        };

        TensorView Shaped(TensorBuffer tensor) => tensor.View.Reshape(batch, heads, length, headSize);

        TensorBuffer Like() => gpu.Device.Allocate(ElementType.Float32, batch, heads, length, headSize);
    }

    private void LogProbsCase(int tokens, int vocabulary)
    {
        using TensorBuffer logits = Random(tokens * vocabulary, 6), logProb = gpu.Device.Allocate(ElementType.Float32, tokens), entropy = gpu.Device.Allocate(ElementType.Float32, tokens);
        using TensorBuffer targets = gpu.Device.Upload<int>(Enumerable.Range(0, tokens).Select(i => i % vocabulary).ToArray());
        Time($"logprobs/from-logits/{vocabulary}", sizeof(float) * (double)tokens * vocabulary, "byte", () => LogProbs.FromLogits(gpu.Device,
            new LogitsProblem { Logits = logits.View.Reshape(tokens, vocabulary), Targets = targets }, new TokenOutputs { LogProb = logProb, Entropy = entropy }));
    }

    private void RotaryCase(int length)
    {
        const int batch = 4, heads = 32, keyHeads = 8, headSize = 128;
        using TensorBuffer q = Random(batch * length * heads * headSize, 7), k = Random(batch * length * keyHeads * headSize, 8);
        using RotaryTable table = RotaryTable.Build(gpu.Device, headSize, length);
        Time("positions/rotary/in-place", 2.0 * sizeof(float) * batch * length * (heads + keyHeads) * headSize, "byte",
            () => RotaryEmbedding.Apply(gpu.Device, q.View.Reshape(batch, length, heads, headSize), k.View.Reshape(batch, length, keyHeads, headSize), table));
    }

    private TensorBuffer Random(int count, int seed) => gpu.Device.Upload<float>(Seeded.Normal(count, seed));

    private void Time(string name, double work, string unit, Action call)
    {
        var times = new double[rounds];
        try
        {
            call(); // compiles
            gpu.Device.Synchronize();
            for (int round = 0; round < rounds; round++)
            {
                long start = Stopwatch.GetTimestamp();
                for (int time = 0; time < callsPerRound; time++)
                    call();
                gpu.Device.Synchronize();
                times[round] = Stopwatch.GetElapsedTime(start).TotalMilliseconds / callsPerRound;
            }
        }
        catch (NotSupportedException refusal)
        {
            output.WriteLine($"{name}: {refusal.Message}");
            return;
        }
        Array.Sort(times);
        timings.Add(new(name, times[rounds / 2], work, unit));
        output.WriteLine($"{name}: {times[rounds / 2]:F3} ms");
    }
}
