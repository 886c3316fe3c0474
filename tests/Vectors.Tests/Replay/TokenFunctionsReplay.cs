using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Functions that give the log-prob of a token, or the entropy of a row of logits: of TRL, verl and OpenRLHF.</summary>
public sealed class TokenFunctionsReplay : IReplay
{
    public bool Owns(VectorCase vector) => Function(vector) is not null;

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    // The name of what it returns, and whether that is the entropy.
    private static (string Output, bool IsEntropy)? Function(VectorCase vector) => (vector.Folder, vector.File, vector.Text("function")) switch
    {
        ("trl", _, "core.logprobs_from_logits" or "selective_log_softmax") => ("output", false),
        ("trl", _, "core.entropy_from_logits" or "entropy_from_logits") => ("output", true),
        ("verl", "token-logprobs.json", _) when vector.Name.StartsWith("logprobs-", StringComparison.Ordinal) || vector.Name.StartsWith("temperature-", StringComparison.Ordinal) => ("logprobs", false),
        ("openrlhf", "supervised-and-statistics.json", _) when vector.Name.StartsWith("log-probs-", StringComparison.Ordinal) => ("log_probs", false),
        ("openrlhf", "supervised-and-statistics.json", _) when vector.Name.StartsWith("entropy-", StringComparison.Ordinal) => ("entropy", true),
        _ => null,
    };

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["function", "temperature", "dtype"], ["logits", "labels", "index", "row_mask", "upstream"]);
        if (vector.Text("dtype") is "bfloat16" or "float16")
            throw new NotReplayedException(vector.Text("dtype")!);
        (string output, bool entropy) = Function(vector)!.Value;
        VectorTensor logits = vector.Need("logits");
        int rows = logits.Count / logits.Shape[^1];
        long[] targets = entropy ? new long[rows] : (vector.Input("labels") ?? vector.Need("index")).Integers;
        if (targets.Length != rows)
            throw new NotReplayedException("several targets a row");
        if (vector.Input("row_mask") is { } mask)
            targets = [.. targets.Select((target, row) => mask.Data[row] == 0 ? -100 : target)];
        var tokens = new TokenLogits(logits, targets) { Shaping = new(Temperature: vector.Number("temperature") ?? 1) };
        TokenResult<T> forward = tokens.Forward<T>(library);
        var results = new Results<T>();
        results.Output(output, entropy ? forward.Entropy : forward.LogProb);
        if (vector.Input("upstream") is { } upstream)
            results.Gradient("logits", tokens.Backward<T>(library, entropy ? null : upstream.Data, null, entropy ? upstream.Data : null));
        return results;
    }
}
