using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>logprobs/: log-prob, log-sum-exp and entropy from logits, with the gradient of all three.</summary>
public sealed class LogProbsReplay : IReplay
{
    // large.json is made again from a seed: streams of a linear congruential generator, 24 bits of each number.
    private const uint StreamStep = 2654435761;
    private const int LogitsExponent = 22, UpstreamExponent = 23, IgnoredRow = 11, PeakedRow = 5;
    private const double PeakedLogit = 24;

    public bool Owns(VectorCase vector) => vector.Folder == "logprobs" && vector.File is "from-logits.json" or "special-rows.json" or "large.json" or "low-precision.json"
        && !vector.Name.StartsWith("fused", StringComparison.Ordinal);

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    /// <summary>What torch, TRL and verl make of a special row is a remark where the file defines the value; where nothing does, torch's is compared with.</summary>
    public bool IsRemark(VectorCase vector, string output) =>
        output.StartsWith("float32.", StringComparison.Ordinal) || output.StartsWith("naive.", StringComparison.Ordinal)
        || output.StartsWith("trl.", StringComparison.Ordinal) || output.StartsWith("verl.", StringComparison.Ordinal)
        || output is "topkLogprobTiesPossible" or "logitsRowSum"
        || output == "topkIndex" && vector.Name == "argmax-ties" // torch takes any of several; we take the first
        || output.StartsWith("torch.", StringComparison.Ordinal) && Defined(vector);

    private static bool Defined(VectorCase vector) => vector.Outputs.ContainsKey("logprob");

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["temperature", "softcap", "ignoreIndex", "topk", "validVocabulary", "storage", "tokens", "vocabulary", "width", "seed", "sampledRows", "sampledColumns", "defined"],
            ["logits", "bias", "targets", "upstreamLogprob", "upstreamLse", "upstreamEntropy", "firstLogits", "lastLogits"]);
        TokenLogits tokens = vector.Parameter("seed") is null ? Given(vector) : Generated(vector);
        TokenResult<T> forward = tokens.Forward<T>(library);
        var results = new Results<T>();
        bool defined = Defined(vector);
        (string logProb, string logSumExp, string entropy, string gradient) = defined ? ("logprob", "lse", "entropy", "logits")
            : ("torch.logSoftmaxGather", "torch.logsumexp", "torch.categoricalEntropy", "torch.logits");
        results.Output(logProb, forward.LogProb);
        results.Output(logSumExp, forward.LogSumExp);
        results.Output(entropy, forward.Entropy);
        results.Output("sumP2", forward.SumOfSquares);
        results.Output(defined ? "argmax" : "torch.argmax", Array.ConvertAll(tokens.Argmax(library), T.CreateTruncating));
        if ((int?)vector.Number("topk") is { } count)
        {
            (long[] top, T[] topLogProbs) = tokens.Top<T>(library, count);
            results.Output("topkLogprob", topLogProbs);
            results.Output("topkIndex", Array.ConvertAll(top, T.CreateTruncating));
        }
        else if (vector.Outputs.TryGetValue("topkLogprob", out VectorTensor? best))
            results.Output("topkLogprob", tokens.Top<T>(library, best.Shape[^1]).LogProbs);
        if (vector.Input("upstreamLogprob") is { } upstream)
        {
            T[] logits = tokens.Backward<T>(library, upstream.Data, vector.Need("upstreamLse").Data, vector.Need("upstreamEntropy").Data);
            if (vector.Gradients.ContainsKey("logitsRounded"))
                results.Gradient("logitsRounded", tokens.Backward<T>(library, upstream.Data, vector.Need("upstreamLse").Data, vector.Need("upstreamEntropy").Data, rounded: true));
            if (vector.Parameter("seed") is null)
                results.Gradient(gradient, logits);
            else
                Digest(vector, tokens, logits, results);
            if (tokens.Shaping.Bias is not null)
            {
                // The caller adds up the rows.
                double[] magnitudes = [.. Columns(tokens, logits, Math.Abs)];
                results.Gradient("bias", [.. Columns(tokens, logits, x => x).Select(T.CreateTruncating)], magnitude: magnitudes.Max());
            }
            return results;
        }
        double[] ones = [.. tokens.Targets.Select(_ => 1.0)];
        results.Gradient(gradient + ".fromLogprob", tokens.Backward<T>(library, ones, null, null));
        results.Gradient(gradient + ".fromLse", tokens.Backward<T>(library, null, ones, null));
        results.Gradient(gradient + ".fromEntropy", tokens.Backward<T>(library, null, null, ones));
        return results;
    }

    private static IEnumerable<double> Columns<T>(TokenLogits tokens, T[] gradient, Func<double, double> term) where T : unmanaged, IFloatingPointIeee754<T> =>
        Enumerable.Range(0, tokens.Vocabulary).Select(j => Enumerable.Range(0, tokens.Targets.Length).Sum(row => term(double.CreateTruncating(gradient[row * tokens.Vocabulary + j]))));

    private static LogitShaping Shaping(VectorCase vector) => new(vector.Input("bias")?.Data, vector.Number("softcap") ?? 0, vector.Number("temperature") ?? 1, (int?)vector.Number("validVocabulary"));

    private static TokenLogits Given(VectorCase vector) => new(vector.Need("logits"), vector.Need("targets").Integers, (long)(vector.Number("ignoreIndex") ?? -100))
    {
        Shaping = Shaping(vector),
        Storage = vector.Text("storage") switch { "bfloat16" => ElementType.BFloat16, "float16" => ElementType.Float16, _ => ElementType.Float32 },
    };

    private static TokenLogits Generated(VectorCase vector)
    {
        int rows = (int)vector.Number("tokens")!, vocabulary = (int)vector.Number("vocabulary")!;
        uint seed = (uint)vector.Number("seed")!;
        long[] targets = GeneratedTargets(seed, rows, vocabulary);
        uint[] draws = Stream(seed, 1, rows * vocabulary);
        var logits = new double[draws.Length];
        for (int row = 0; row < rows; row++)
        {
            double unit = Math.ScaleB(1 << (row % 4), -LogitsExponent);
            for (int j = 0; j < vocabulary; j++)
                logits[row * vocabulary + j] = (draws[row * vocabulary + j] - (double)(1 << 23)) * unit;
            if (row % 8 == PeakedRow && targets[row] != -100)
                logits[row * vocabulary + targets[row]] = PeakedLogit;
        }
        if (!logits[..5].SequenceEqual(vector.Need("firstLogits").Data) || !logits[^5..].SequenceEqual(vector.Need("lastLogits").Data) || !targets.SequenceEqual(vector.Need("targets").Integers)
            || !GeneratedUnits(seed, 2, rows).SequenceEqual(vector.Need("upstreamLogprob").Data))
            throw new InvalidDataException($"{vector.Id}: the generated numbers aren't the file's.");
        return new(logits, vocabulary, targets) { Shaping = Shaping(vector) };
    }

    internal static long[] GeneratedTargets(uint seed, int rows, int vocabulary) => [.. Stream(seed, 0, rows).Select((draw, row) => row % 16 == IgnoredRow ? -100L : draw % vocabulary)];

    /// <summary>Numbers from −1 to below 1.</summary>
    internal static double[] GeneratedUnits(uint seed, uint stream, int count) => Array.ConvertAll(Stream(seed, stream, count), draw => (draw - (double)(1 << 23)) * Math.ScaleB(1, -UpstreamExponent));

    private static uint[] Stream(uint seed, uint stream, int count)
    {
        var draws = new uint[count];
        uint state = unchecked(seed + stream * StreamStep);
        for (int i = 0; i < count; i++)
        {
            state = unchecked(1664525 * state + 1013904223);
            draws[i] = state >> 8;
        }
        return draws;
    }

    private static void Digest<T>(VectorCase vector, TokenLogits tokens, T[] gradient, Results<T> results) where T : unmanaged, IFloatingPointIeee754<T>
    {
        int[] rows = [.. vector.Parameter("sampledRows")!.Value.EnumerateArray().Select(x => x.GetInt32())], columns = [.. vector.Parameter("sampledColumns")!.Value.EnumerateArray().Select(x => x.GetInt32())];
        int vocabulary = tokens.Vocabulary;
        T[] PerRow(Func<double, double> term) => [.. tokens.Targets.Select((_, row) =>
            T.CreateTruncating(Enumerable.Range(0, vocabulary).Sum(j => term(double.CreateTruncating(gradient[row * vocabulary + j])))))];
        results.Gradient("logits.sampled", [.. rows.SelectMany(row => columns.Select(column => gradient[row * vocabulary + column]))]);
        results.Gradient("logits.atTarget", [.. tokens.Targets.Select((target, row) => target < 0 ? T.Zero : gradient[row * vocabulary + target])]);
        results.Gradient("logits.rowSum", PerRow(x => x));
        results.Gradient("logits.rowSumOfAbsolutes", PerRow(Math.Abs));
        results.Gradient("logits.rowSumOfSquares", PerRow(x => x * x));
    }
}
