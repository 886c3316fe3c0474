using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Cross-entropy: −(1 − ε) log-prob − ε (mean logit − log-sum-exp) + z·log-sum-exp², weighted and reduced here, its gradient by the upstreams of the three.</summary>
public sealed class CrossEntropyReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "logprobs" && vector.File == "cross-entropy.json"
        || vector.Folder == "supervised" && vector.File == "causal-lm-loss.json"
        || vector.Folder == "openrlhf" && vector.File == "supervised-and-statistics.json" && vector.Name.StartsWith("gptlm-", StringComparison.Ordinal)
        || IsChunked(vector);

    // torchtune's, whose chunks change nothing; labels are aligned.
    private static bool IsChunked(VectorCase vector) => vector.Folder == "openrlhf" && vector.File == "torchtune.json" && vector.Name.StartsWith("chunked-cross-entropy", StringComparison.Ordinal);

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["reduction", "label_smoothing", "ignore_index", "z_loss", "num_items_in_batch", "vocab_size", "shift_labels_given", "num_output_chunks"],
            ["logits", "targets", "targetProbabilities", "upstream", "weight", "labels", "shift_labels"]);
        if (vector.Input("targetProbabilities") is { } distributions)
            return OfDistributions<T>(vector, distributions, library);
        long ignored = (long)(vector.Number("ignore_index") ?? -100);
        var tokens = new TokenLogits(vector.Need("logits"), vector.Input("labels") is { } labels ? IsChunked(vector) ? labels.Integers : Shifted(labels, ignored)
            : (vector.Input("shift_labels") ?? vector.Need("targets")).Integers, ignored)
        {
            Shaping = new() { MeanWeights = vector.Input("weight")?.Data },
        };
        long[] targets = tokens.Targets;
        // Megatron spreads its smoothing over the other tokens only, and rounds what the target keeps to float32 in the gradient.
        bool megatron = vector.Name.StartsWith("megatron", StringComparison.Ordinal);
        double smoothing = (vector.Number("label_smoothing") ?? 0) * (megatron ? tokens.Vocabulary / (tokens.Vocabulary - 1.0) : 1), kept = megatron ? (float)(1 - smoothing) : 1 - smoothing;
        double zLoss = vector.Number("z_loss") ?? 0;
        bool[] counts = [.. targets.Select(target => target != ignored)];
        double[]? classWeights = vector.Input("weight")?.Data;
        double[] weights = [.. targets.Select((target, t) => !counts[t] ? 0 : classWeights is null ? 1 : classWeights[target])];
        // No valid token: loss 0 and no gradient.
        double divisor = vector.Text("reduction") is "none" or "sum" ? 1 : vector.Number("num_items_in_batch") ?? (counts.Contains(true) ? weights.Sum() : 1);
        double[] upstream = vector.Input("upstream")?.Data ?? [1];
        double[] share = [.. targets.Select((_, t) => upstream[upstream.Length == 1 ? 0 : t] / divisor)];

        TokenResult<T> forward = tokens.Forward<T>(library);
        double[] logSumExp = Array.ConvertAll(forward.LogSumExp, double.CreateTruncating);
        // The smoothed part weighs every token of the vocabulary, not the target.
        double meanWeight = classWeights?.Average() ?? 1;
        double[] smoothed = smoothing == 0 ? logSumExp : [.. tokens.MeanLogit<T>(library).Select((mean, t) => meanWeight * logSumExp[t] - double.CreateTruncating(mean))];
        double[] losses = [.. targets.Select((_, t) => counts[t]
            ? -(1 - smoothing) * weights[t] * double.CreateTruncating(forward.LogProb[t]) + smoothing * smoothed[t] + zLoss * Math.Pow(logSumExp[t], 2) : 0)];
        var results = new Results<T>();
        results.Output("loss", vector.Text("reduction") == "none" ? Array.ConvertAll(losses, T.CreateTruncating) : [T.CreateTruncating(losses.Sum() / divisor)]);
        results.Output("predicted", [T.CreateTruncating(counts.Count(counted => counted))]);
        double[] logProbUpstream = [.. weights.Select((weight, t) => -kept * weight * share[t])];
        double[] logSumExpUpstream = [.. targets.Select((_, t) => counts[t] ? (2 * zLoss * logSumExp[t] + (1 - kept) * meanWeight) * share[t] : 0)];
        double[]? meanUpstream = smoothing == 0 ? null : [.. targets.Select((_, t) => counts[t] ? -smoothing * share[t] : 0)];
        results.Gradient("logits", tokens.Backward<T>(library, logProbUpstream, logSumExpUpstream, null, meanLogit: meanUpstream));
        return results;
    }

    // Where a row's target is a distribution q it goes in as the weights of the row's mean: −Σ q ln p = L Σ q − V · mean logit. Label smoothing mixes it with 1 / V.
    private static Results<T> OfDistributions<T>(VectorCase vector, VectorTensor distributions, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (vector.Text("reduction") != "mean" || vector.Input("weight") is not null || vector.Input("upstream") is not null || vector.Number("z_loss") is not null || vector.Number("num_items_in_batch") is not null)
            throw new NotReplayedException("distributions with another reduction, class weights, an upstream gradient or a z-loss");
        VectorTensor logits = vector.Need("logits");
        int rows = logits.Shape[0], vocabulary = logits.Shape[1];
        double smoothing = vector.Number("label_smoothing") ?? 0, loss = 0;
        var gradient = new List<T>();
        foreach ((double[] row, double[] target) in logits.Data.Chunk(vocabulary).Zip(distributions.Data.Chunk(vocabulary)))
        {
            double[] q = Array.ConvertAll(target, x => (1 - smoothing) * x + smoothing / vocabulary);
            var token = new TokenLogits(row, vocabulary, [0]) { Shaping = new() { MeanWeights = q } };
            loss += q.Sum() * double.CreateTruncating(token.Forward<T>(library).LogSumExp[0]) - vocabulary * double.CreateTruncating(token.MeanLogit<T>(library)[0]);
            gradient.AddRange(token.Backward<T>(library, null, [q.Sum() / rows], null, meanLogit: [-(double)vocabulary / rows]));
        }
        var results = new Results<T>();
        results.Output("loss", [T.CreateTruncating(loss / rows)]);
        results.Gradient("logits", [.. gradient]);
        return results;
    }

    // Logits at t meet the label at t + 1; the last ones meet none.
    private static long[] Shifted(VectorTensor labels, long ignored)
    {
        int length = labels.Shape[1];
        return [.. labels.Integers.Select((_, i) => i % length == length - 1 ? ignored : labels.Integers[i + 1])];
    }
}
