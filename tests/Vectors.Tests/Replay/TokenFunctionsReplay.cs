using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Functions that give the log-prob of a token, or the entropy of a row of logits: of TRL, verl and OpenRLHF.</summary>
public sealed class TokenFunctionsReplay : IReplay
{
    public bool Owns(VectorCase vector) => Function(vector) is not null || vector.Folder == "verl" && vector.File == "token-logprobs.json"
        || vector.Folder == "liger" && vector.Name == "selective-log-softmax";

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    // The name of what it returns, and whether that is the entropy.
    private static (string Output, bool IsEntropy)? Function(VectorCase vector) => (vector.Folder, vector.File, vector.Text("function")) switch
    {
        ("trl", _, "core.logprobs_from_logits" or "selective_log_softmax") => ("output", false),
        ("trl", _, "selective_log_softmax_and_entropy") => ("logprobs", false),
        ("trl", _, "core.entropy_from_logits" or "entropy_from_logits") => ("output", true),
        ("verl", "token-logprobs.json", _) when vector.Name.StartsWith("logprobs-", StringComparison.Ordinal) || vector.Name.StartsWith("temperature-", StringComparison.Ordinal) => ("logprobs", false),
        ("openrlhf", "supervised-and-statistics.json", _) when vector.Name.StartsWith("log-probs-", StringComparison.Ordinal) => ("log_probs", false),
        ("openrlhf", "supervised-and-statistics.json", _) when vector.Name.StartsWith("entropy-", StringComparison.Ordinal) => ("entropy", true),
        _ => null,
    };

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (Function(vector) is not { } function)
            return vector.Folder == "liger" || vector.Name == "response-shift" ? Shifted<T>(vector, library) : EntropyAndSquares<T>(vector, library);
        vector.KnowsOnly(["function", "temperature", "dtype"], ["logits", "labels", "index", "row_mask", "upstream"]);
        (string output, bool entropy) = function;
        VectorTensor logits = vector.Need("logits");
        int rows = logits.Count / logits.Shape[^1];
        long[] targets = entropy ? new long[rows] : (vector.Input("labels") ?? vector.Need("index")).Integers;
        var results = new Results<T>();
        if (targets.Length != rows)
        {
            // Several tokens of one row: a call for each.
            int each = targets.Length / rows;
            T[][] ranks = [.. Enumerable.Range(0, each).Select(rank => Tokens([.. targets.Where((_, i) => i % each == rank)]).Forward<T>(library).LogProb)];
            results.Output(output, [.. targets.Select((_, i) => ranks[i % each][i / each])]);
            return results;
        }
        if (vector.Input("row_mask") is { } mask)
            targets = [.. targets.Select((target, row) => mask.Data[row] == 0 ? -100 : target)];
        TokenLogits tokens = Tokens(targets);
        TokenResult<T> forward = tokens.Forward<T>(library);
        results.Output(output, entropy ? forward.Entropy : forward.LogProb);
        if (output != "entropy")
            results.Output("entropy", forward.Entropy);
        if (vector.Input("upstream") is { } upstream)
            results.Gradient("logits", tokens.Backward<T>(library, entropy ? null : upstream.Data, null, entropy ? upstream.Data : null));
        return results;

        TokenLogits Tokens(long[] of) => new(logits, of)
        {
            Shaping = new(Temperature: vector.Number("temperature") ?? 1),
            Storage = vector.Text("dtype") switch { "bfloat16" => ElementType.BFloat16, "float16" => ElementType.Float16, _ => ElementType.Float32 },
        };
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

    // Of each sequence the last tokens, each scored by the logits one before it. Liger's list of tokens has only those, and a mask.
    private static Results<T> Shifted<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["response_length", "temperature"], ["logits", "input_ids", "upstream", "mask"]);
        VectorTensor logits = vector.Need("logits"), given = vector.Need("input_ids");
        int length = logits.Shape[1], listed = given.Shape[1], answer = (int)(vector.Number("response_length") ?? listed);
        bool Scores(int row) => row % length >= length - answer - 1 && row % length < length - 1;
        int At(int row) => row / length * listed + row % length + 1 - (length - listed);
        bool Counts(int row) => Scores(row) && (vector.Input("mask") is not { } mask || mask.Data[At(row)] != 0);
        int[] rows = [.. Enumerable.Range(0, logits.Shape[0] * length)];
        var tokens = new TokenLogits(logits, [.. rows.Select(row => Counts(row) ? given.Integers[At(row)] : -100)]) { Shaping = new(Temperature: vector.Number("temperature") ?? 1) };
        var results = new Results<T>();
        results.Output("log_probs", [.. tokens.Forward<T>(library).LogProb.Where((_, row) => Scores(row))]);
        if (vector.Input("upstream") is not { } arriving)
            return results;
        var upstream = new Queue<double>(arriving.Data);
        results.Gradient("logits", tokens.Backward<T>(library, [.. rows.Select(row => Scores(row) ? upstream.Dequeue() : 0)], null, null));
        return results;
    }
}
