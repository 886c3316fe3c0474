using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Log-probs from hidden states: logprobs/fused.json, verl's FusedLinearForPPO, Liger's scaled cross-entropy.</summary>
public sealed class HiddenLogProbsReplay : IReplay
{
    public bool Owns(VectorCase vector) =>
        vector.Folder == "logprobs" && vector.File == "fused.json" && !vector.Name.StartsWith("linear-cross-entropy", StringComparison.Ordinal)
        || vector.Folder == "logprobs" && vector.File == "large.json" && vector.Name.StartsWith("fused", StringComparison.Ordinal)
        || vector.Folder == "verl" && vector.File == "fused-linear.json" || vector.Folder == "liger" && vector.File == "scaled-cross-entropy.json";

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    /// <summary>The mean logit is a metric of TRL's, not one of ours.</summary>
    public bool IsRemark(VectorCase vector, string output) => output == "meanLogit"
        || output.StartsWith("float32.", StringComparison.Ordinal) || output.StartsWith("naive.", StringComparison.Ordinal);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (vector.Parameter("seed") is not null)
            return Large<T>(vector, library);
        // Chunks change nothing.
        vector.KnowsOnly(["temperature", "softcap", "ignoreIndex", "ignore_index", "validVocabulary", "storage", "chunk_size", "return_entropy", "selected_token_ids"],
            ["hidden", "vocabulary", "bias", "targets", "upstreamLogprob", "upstreamLse", "upstreamEntropy", "hidden_states", "vocab_weights", "input_ids", "upstream_log_probs", "upstream_entropy",
                "input", "weight", "target", "upstream_nll", "upstream_selected"]);
        VectorTensor hidden = vector.Input("hidden") ?? vector.Input("hidden_states") ?? vector.Need("input"), entries = vector.Input("vocabulary") ?? vector.Input("vocab_weights") ?? vector.Need("weight");
        long[] targets = (vector.Input("targets") ?? vector.Input("input_ids") ?? vector.Need("target")).Integers;
        int width = hidden.Shape[^1];
        var tokens = new TokenHidden(new(hidden.Data, hidden.Count / width, width), entries.Grid, targets, (long)(vector.Number("ignoreIndex") ?? vector.Number("ignore_index") ?? -100))
        {
            Shaping = new(vector.Input("bias")?.Data, vector.Number("softcap") ?? 0, vector.Number("temperature") ?? 1, (int?)vector.Number("validVocabulary")),
            Storage = vector.Text("storage") switch { "bfloat16" => ElementType.BFloat16, "float16" => ElementType.Float16, _ => ElementType.Float32 },
        };
        TokenResult<T> forward = tokens.Forward<T>(library);
        var results = new Results<T>();
        bool negated = vector.Input("target") is not null;
        results.Output(negated ? "nll" : vector.Input("hidden_states") is null ? "logprob" : "log_probs", negated ? Array.ConvertAll(forward.LogProb, x => T.Zero - x) : forward.LogProb);
        results.Output("lse", forward.LogSumExp);
        results.Output("entropy", forward.Entropy);
        results.Output("sumP2", forward.SumOfSquares);
        results.Output("argmax", Array.ConvertAll(tokens.Argmax(library), T.CreateTruncating));

        double[]? ofLogProb = (vector.Input("upstreamLogprob") ?? vector.Input("upstream_log_probs"))?.Data ?? vector.Input("upstream_nll")?.Data.Select(x => -x).ToArray();
        HiddenGradient<T> gradient = tokens.Backward<T>(library, ofLogProb, vector.Input("upstreamLse")?.Data, (vector.Input("upstreamEntropy") ?? vector.Input("upstream_entropy"))?.Data);
        if (vector.Parameter("selected_token_ids") is { } ids)
        {
            // The same tokens of every row: a call for each; their gradients add up.
            int[] selected = [.. ids.EnumerateArray().Select(id => id.GetInt32())];
            double[] arriving = vector.Need("upstream_selected").Data;
            T[][] ranks = new T[selected.Length][];
            for (int rank = 0; rank < selected.Length; rank++)
            {
                TokenHidden of = tokens with { Targets = [.. targets.Select(target => target == tokens.IgnoreTarget ? target : selected[rank])] };
                ranks[rank] = of.Forward<T>(library).LogProb;
                HiddenGradient<T> part = of.Backward<T>(library, [.. arriving.Where((_, i) => i % selected.Length == rank)], null, null);
                gradient = new(Sum(gradient.Hidden, part.Hidden), Sum(gradient.Vocabulary, part.Vocabulary), gradient.Bias);
            }
            results.Output("selected_log_probs", [.. Enumerable.Range(0, arriving.Length).Select(i => ranks[i % selected.Length][i / selected.Length])]);
        }
        foreach (string name in (string[])["hidden", "hidden_states", "input"])
            results.Gradient(name, gradient.Hidden.Data);
        foreach (string name in (string[])["vocabulary", "vocab_weights", "weight"])
            results.Gradient(name, gradient.Vocabulary.Data);
        results.Gradient("bias", gradient.Bias);
        return results;

        static Grid<T> Sum(Grid<T> a, Grid<T> b) => new([.. a.Data.Zip(b.Data, (x, y) => x + y)], a.Shape);
    }

    // Made again from a seed: targets, hidden states, vocabulary and three upstreams are its streams 0 to 5.
    private static Results<T> Large<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["temperature", "ignoreIndex", "tokens", "width", "vocabulary", "seed", "sampledRows", "sampledWords"],
            ["targets", "firstHidden", "firstVocabulary", "lastVocabulary", "upstreamLogprob", "upstreamLse", "upstreamEntropy"]);
        int count = (int)vector.Number("tokens")!, width = (int)vector.Number("width")!, entries = (int)vector.Number("vocabulary")!;
        uint seed = (uint)vector.Number("seed")!;
        var tokens = new TokenHidden(new(LogProbsReplay.GeneratedUnits(seed, 1, count * width), count, width), new(LogProbsReplay.GeneratedUnits(seed, 2, entries * width), entries, width),
            LogProbsReplay.GeneratedTargets(seed, count, entries));
        double[] a = LogProbsReplay.GeneratedUnits(seed, 3, count), b = LogProbsReplay.GeneratedUnits(seed, 4, count), c = LogProbsReplay.GeneratedUnits(seed, 5, count);
        if (!tokens.Targets.SequenceEqual(vector.Need("targets").Integers) || !tokens.Hidden.Data[..5].SequenceEqual(vector.Need("firstHidden").Data)
            || !tokens.Vocabulary.Data[^5..].SequenceEqual(vector.Need("lastVocabulary").Data) || !a.SequenceEqual(vector.Need("upstreamLogprob").Data))
            throw new InvalidDataException($"{vector.Id}: the generated numbers aren't the file's.");
        TokenResult<T> forward = tokens.Forward<T>(library);
        HiddenGradient<T> gradient = tokens.Backward<T>(library, a, b, c);
        var results = new Results<T>();
        results.Output("logprob", forward.LogProb);
        results.Output("lse", forward.LogSumExp);
        results.Output("entropy", forward.Entropy);
        results.Output("sumP2", forward.SumOfSquares);
        results.Output("argmax", Array.ConvertAll(tokens.Argmax(library), T.CreateTruncating));
        results.Gradient("hidden.sampled", Rows(gradient.Hidden, "sampledRows"));
        results.Gradient("vocabulary.sampled", Rows(gradient.Vocabulary, "sampledWords"));
        results.Gradient("hidden.rowSumOfSquares", [.. Enumerable.Range(0, count).Select(row => T.CreateTruncating(gradient.Hidden.Row(row).ToArray().Sum(x => Square(x))))]);
        results.Gradient("vocabulary.columnSum", Columns(double.CreateTruncating, out double magnitude), magnitude: magnitude);
        results.Gradient("vocabulary.columnSumOfSquares", Columns(Square, out _));
        return results;

        static double Square(T x) => double.CreateTruncating(x) * double.CreateTruncating(x);

        T[] Rows(Grid<T> grid, string name) => [.. vector.Parameter(name)!.Value.EnumerateArray().SelectMany(row => grid.Row(row.GetInt32()).ToArray())];

        T[] Columns(Func<T, double> term, out double magnitude)
        {
            double[] sums = [.. Enumerable.Range(0, width).Select(w => Enumerable.Range(0, entries).Sum(j => term(gradient.Vocabulary[j, w])))];
            magnitude = Enumerable.Range(0, width).Max(w => Enumerable.Range(0, entries).Sum(j => Math.Abs(term(gradient.Vocabulary[j, w]))));
            return Array.ConvertAll(sums, T.CreateTruncating);
        }
    }
}
