using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Log-probs from hidden states: logprobs/fused.json, verl's FusedLinearForPPO, Liger's scaled cross-entropy.</summary>
public sealed class HiddenLogProbsReplay : IReplay
{
    public bool Owns(VectorCase vector) =>
        vector.Folder == "logprobs" && vector.File == "fused.json" && !vector.Name.StartsWith("linear-cross-entropy", StringComparison.Ordinal)
        || vector.Folder == "verl" && vector.File == "fused-linear.json" || vector.Folder == "liger" && vector.File == "scaled-cross-entropy.json";

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    /// <summary>The mean logit is a metric of TRL's, not one of ours.</summary>
    public bool IsRemark(VectorCase vector, string output) => output == "meanLogit"
        || output.StartsWith("float32.", StringComparison.Ordinal) || output.StartsWith("naive.", StringComparison.Ordinal);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        // Chunks change nothing.
        vector.KnowsOnly(["temperature", "softcap", "ignoreIndex", "ignore_index", "validVocabulary", "storage", "chunk_size", "return_entropy"],
            ["hidden", "vocabulary", "bias", "targets", "upstreamLogprob", "upstreamLse", "upstreamEntropy", "hidden_states", "vocab_weights", "input_ids", "upstream_log_probs", "upstream_entropy",
                "input", "weight", "target", "upstream_nll"]);
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
        foreach (string name in (string[])["hidden", "hidden_states", "input"])
            results.Gradient(name, gradient.Hidden.Data);
        foreach (string name in (string[])["vocabulary", "vocab_weights", "weight"])
            results.Gradient(name, gradient.Vocabulary.Data);
        results.Gradient("bias", gradient.Bias);
        return results;
    }
}
