using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Functions that give the log-prob of a token, or the entropy of a row of logits: of TRL, verl and OpenRLHF.</summary>
public sealed class TokenFunctionsReplay : IReplay
{
    public bool Owns(VectorCase vector) => Function(vector) is not null || vector.Folder == "verl" && vector.File == "token-logprobs.json";

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
        if (Function(vector) is not { } function)
            return vector.Name == "response-shift" ? Shifted<T>(vector, library) : EntropyAndSquares<T>(vector, library);
        vector.KnowsOnly(["function", "temperature", "dtype"], ["logits", "labels", "index", "row_mask", "upstream"]);
        if (vector.Text("dtype") is "bfloat16" or "float16")
            throw new NotReplayedException(vector.Text("dtype")!);
        (string output, bool entropy) = function;
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

    private static Results<T> EntropyAndSquares<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["chunk_size"], ["logits", "labels", "upstream_entropy", "upstream_squares"]);
        VectorTensor logits = vector.Need("logits");
        var tokens = new TokenLogits(logits, vector.Input("labels")?.Integers ?? new long[logits.Count / logits.Shape[^1]]);
        TokenResult<T> forward = tokens.Forward<T>(library);
        var results = new Results<T>();
        results.Output("naive", forward.LogProb);
        results.Output("v2", forward.LogProb);
        results.Output("entropy", forward.Entropy);
        results.Output("entropy_chunked", forward.Entropy);
        results.Output("sum_pi_squared", forward.SumOfSquares);
        if (vector.Input("upstream_entropy") is { } ofEntropy)
            results.Gradient("logits_of_entropy", tokens.Backward<T>(library, null, null, ofEntropy.Data));
        if (vector.Input("upstream_squares") is { } ofSquares)
            results.Gradient("logits_of_squares", tokens.Backward<T>(library, null, null, null, squares: ofSquares.Data));
        return results;
    }

    // Of each sequence the last tokens, each scored by the logits one before it.
    private static Results<T> Shifted<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["response_length"], ["logits", "input_ids", "upstream"]);
        VectorTensor logits = vector.Need("logits");
        int length = logits.Shape[1], answer = (int)vector.Number("response_length")!;
        long[] ids = vector.Need("input_ids").Integers;
        bool Scores(int row) => row % length >= length - answer - 1 && row % length < length - 1;
        var tokens = new TokenLogits(logits, [.. ids.Select((_, row) => Scores(row) ? ids[row + 1] : -100)]);
        var upstream = new Queue<double>(vector.Need("upstream").Data);
        var results = new Results<T>();
        results.Output("log_probs", [.. tokens.Forward<T>(library).LogProb.Where((_, row) => Scores(row))]);
        results.Gradient("logits", tokens.Backward<T>(library, [.. ids.Select((_, row) => Scores(row) ? upstream.Dequeue() : 0)], null, null));
        return results;
    }
}
