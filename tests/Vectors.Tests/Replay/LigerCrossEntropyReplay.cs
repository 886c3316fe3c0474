using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Cross-entropies of Liger from logits and from hidden states, and torch's linear_cross_entropy: −(1 − ε) log-prob − ε (mean logit − log-sum-exp) + z·log-sum-exp², weighted and reduced here.</summary>
public sealed class LigerCrossEntropyReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "liger" && vector.File == "cross-entropy.json"
        || vector.Folder == "logprobs" && vector.File == "fused.json" && vector.Name.StartsWith("linear-cross-entropy", StringComparison.Ordinal);

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["reduction", "label_smoothing", "ignore_index", "lse_square_scale", "softcap", "use_token_scaling"],
            ["logits", "input", "hidden", "weight", "vocabulary", "bias", "ce_weight", "target", "targets", "upstream"]);
        bool fromHidden = vector.Input("logits") is null;
        long ignored = (long)(vector.Number("ignore_index") ?? -100);
        long[] targets = (vector.Input("target") ?? vector.Need("targets")).Integers;
        double[]? classWeights = (vector.Input("ce_weight") ?? (fromHidden && vector.Input("vocabulary") is null ? null : vector.Input("weight")))?.Data;
        var shaping = new LogitShaping(vector.Input("bias")?.Data, vector.Number("softcap") ?? 0) { MeanWeights = classWeights };
        TokenLogits? logits = fromHidden ? null : new(vector.Need("logits"), targets, ignored) { Shaping = shaping };
        TokenHidden? hidden = !fromHidden ? null
            : new((vector.Input("input") ?? vector.Need("hidden")).Grid, (vector.Input("vocabulary") ?? vector.Need("weight")).Grid, targets, ignored) { Shaping = shaping };

        // The smoothed part weighs every token of the vocabulary, not the target.
        double meanWeight = classWeights?.Average() ?? 1, smoothing = vector.Number("label_smoothing") ?? 0;

        TokenResult<T> forward = logits?.Forward<T>(library) ?? hidden!.Forward<T>(library);
        long[] argmax = logits?.Argmax(library) ?? hidden!.Argmax(library);
        bool[] counts = [.. targets.Select(target => target != ignored)];
        double[] weights = [.. targets.Select((target, t) => !counts[t] ? 0 : classWeights?[target] ?? 1)];
        if (vector.Parameter("use_token_scaling") is not null && vector.Flag("use_token_scaling"))
            weights = [.. weights.Select((weight, t) => weight * Math.Exp(double.CreateTruncating(forward.LogProb[t])))];
        bool mean = vector.Text("reduction") == "mean", none = vector.Text("reduction") == "none";
        // With class weights the mean divides by their sum, the z-loss by the count. Token scaling doesn't change the count.
        double divisor = !mean ? 1 : classWeights is null ? counts.Count(x => x) : weights.Sum(), zDivisor = mean ? counts.Count(x => x) : 1, z = vector.Number("lse_square_scale") ?? 0;
        double[] upstream = vector.Input("upstream")?.Data ?? [1];
        double Arriving(int t) => upstream[upstream.Length == 1 ? 0 : t];
        double[] zLosses = [.. targets.Select((_, t) => counts[t] ? z * Math.Pow(double.CreateTruncating(forward.LogSumExp[t]), 2) / zDivisor : 0)];
        T[]? means = smoothing == 0 ? null : logits?.MeanLogit<T>(library) ?? hidden!.MeanLogit<T>(library);
        double Smoothed(int t) => means is null ? 0 : smoothing * (meanWeight * double.CreateTruncating(forward.LogSumExp[t]) - double.CreateTruncating(means[t]));
        double[] losses = [.. targets.Select((_, t) => counts[t] ? (Smoothed(t) - weights[t] * (1 - smoothing) * double.CreateTruncating(forward.LogProb[t])) / divisor + zLosses[t] : 0)];

        var results = new Results<T>();
        T[] Reduced(double[] terms) => none ? Array.ConvertAll(terms, T.CreateTruncating) : [T.CreateTruncating(terms.Sum())];
        results.Output("loss", Reduced(losses), magnitude: none ? 0 : losses.Sum(Math.Abs));
        results.Output("z_loss", Reduced(zLosses), magnitude: none ? 0 : zLosses.Sum());
        T[] hits = [.. targets.Select((target, t) => counts[t] && argmax[t] == target ? T.One : T.Zero)];
        results.Output("token_accuracy", none ? hits : [T.CreateTruncating(hits.Count(hit => hit == T.One) / (double)counts.Count(x => x))]);
        results.Output("predicted_tokens", [.. argmax.Select((token, t) => T.CreateTruncating(counts[t] ? token : -1))]);

        double[] ofLogProb = [.. weights.Select((weight, t) => -(1 - smoothing) * weight / divisor * Arriving(t))];
        double[] ofLogSumExp = [.. targets.Select((_, t) => counts[t] ? (2 * z * double.CreateTruncating(forward.LogSumExp[t]) / zDivisor + smoothing * meanWeight / divisor) * Arriving(t) : 0)];
        double[]? ofMean = smoothing == 0 ? null : [.. targets.Select((_, t) => counts[t] ? -smoothing / divisor * Arriving(t) : 0)];
        if (logits is not null)
        {
            results.Gradient("logits", logits.Backward<T>(library, ofLogProb, ofLogSumExp, null, meanLogit: ofMean));
            return results;
        }
        HiddenGradient<T> gradient = hidden!.Backward<T>(library, ofLogProb, ofLogSumExp, null, ofMean);
        results.Gradient(vector.Input("input") is null ? "hidden" : "input", gradient.Hidden.Data);
        results.Gradient(vector.Input("vocabulary") is null ? "weight" : "vocabulary", gradient.Vocabulary.Data);
        results.Gradient("bias", gradient.Bias);
        return results;
    }
}
