using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>trl/functions-*: log-prob of a token, entropy of a row of logits.</summary>
public sealed class TokenFunctionsReplay : IReplay
{
    private static readonly string[] LogProb = ["core.logprobs_from_logits", "selective_log_softmax"], Entropy = ["core.entropy_from_logits", "entropy_from_logits"];

    public bool Owns(VectorCase vector) => vector.Folder == "trl" && vector.File.StartsWith("functions-", StringComparison.Ordinal)
        && (LogProb.Contains(vector.Text("function")) || Entropy.Contains(vector.Text("function")));

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["function", "temperature", "dtype"], ["logits", "labels", "index", "row_mask", "upstream"]);
        vector.Requires("temperature", 1.0);
        if (vector.Text("dtype") is "bfloat16" or "float16")
            throw new NotReplayedException(vector.Text("dtype")!);
        bool entropy = Entropy.Contains(vector.Text("function"));
        VectorTensor logits = vector.Need("logits");
        int rows = logits.Count / logits.Shape[^1];
        long[] targets = entropy ? new long[rows] : (vector.Input("labels") ?? vector.Need("index")).Integers;
        if (targets.Length != rows)
            throw new NotReplayedException("several targets a row");
        if (vector.Input("row_mask") is { } mask)
            targets = [.. targets.Select((target, row) => mask.Data[row] == 0 ? -100 : target)];
        var tokens = new TokenLogits(logits, targets);
        TokenResult<T> forward = tokens.Forward<T>(library);
        var results = new Results<T>();
        results.Output("output", entropy ? forward.Entropy : forward.LogProb);
        if (vector.Input("upstream") is { } upstream)
            results.Gradient("logits", tokens.Backward<T>(library, entropy ? null : upstream.Data, null, entropy ? upstream.Data : null));
        return results;
    }
}
