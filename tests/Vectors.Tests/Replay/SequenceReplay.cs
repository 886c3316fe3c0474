using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>logprobs/sequences.json: sums and means by mask and by cumulative lengths; targets shifted in packed documents and in padded answers. torchtune's log-probs of a batch.</summary>
public sealed class SequenceReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "logprobs" && vector.File == "sequences.json"
        || vector.Folder == "openrlhf" && vector.File == "torchtune.json" && vector.Name.StartsWith("batch-log-probs", StringComparison.Ordinal);

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    public bool IsRemark(VectorCase vector, string output) => output.StartsWith("verl.", StringComparison.Ordinal) || output.StartsWith("torch.", StringComparison.Ordinal);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["ignoreIndex", "return_average_logprobs"], ["logprob", "mask", "cumulativeLengths", "upstream", "logits", "tokens", "responseMask", "labels"]);
        double[] upstream = vector.Input("upstream")?.Data ?? [.. Enumerable.Repeat(1.0, vector.Need("labels").Shape[0])];
        var results = new Results<T>();
        if (vector.Input("logprob") is { } given)
        {
            bool[] counts = vector.Input("mask")?.Booleans ?? [.. Enumerable.Repeat(true, given.Count)];
            long[] bounds = vector.Input("cumulativeLengths")?.Integers ?? [.. Enumerable.Range(0, given.Shape[0] + 1).Select(row => (long)row * given.Shape[1])];
            (T[] sum, T[] mean, long[] count) = Reduce<T>(library, given.Data, bounds, counts);
            results.Output("sum", sum);
            results.Output("mean", mean);
            results.Output("count", Array.ConvertAll(count, T.CreateTruncating));
            results.Output("batchMean", Reduce<T>(library, given.Data, [0, given.Count], counts).Mean);
            results.Gradient("logprob.fromSum", Backward<T>(library, upstream, null, bounds, counts));
            results.Gradient("logprob.fromMean", Backward<T>(library, null, upstream, bounds, counts));
            return results;
        }

        VectorTensor logits = vector.Need("logits");
        long[] ids = (vector.Input("tokens") ?? vector.Need("labels")).Integers;
        bool padded = vector.Input("cumulativeLengths") is null, average = vector.Parameter("return_average_logprobs") is not null && vector.Flag("return_average_logprobs");
        int length = padded ? logits.Shape[1] : 0, rows = ids.Length;
        long[] limits = vector.Input("cumulativeLengths")?.Integers ?? [.. Enumerable.Range(0, logits.Shape[0] + 1).Select(row => (long)row * length)];
        bool[]? answer = vector.Input("responseMask")?.Booleans;
        // A row's target is the next token of its sequence; the last one has none.
        long[] targets = [.. Enumerable.Range(0, rows).Select(i => limits.Contains(i + 1L) || answer is not null && !answer[i + 1] ? -100 : ids[i + 1])];
        results.Output("targets", Array.ConvertAll(targets, T.CreateTruncating));
        results.Output("positions", [.. Enumerable.Range(0, rows).Select(i => T.CreateTruncating(i - limits.Last(limit => limit <= i)))]);
        var tokens = new TokenLogits(logits, targets);
        T[] logProb = tokens.Forward<T>(library).LogProb;
        results.Output("logprob", padded ? [.. logProb.Where((_, i) => i % length != length - 1)] : logProb);
        bool[] valid = [.. targets.Select(target => target != -100)];
        (T[] sums, T[] means, long[] valids) = Reduce<T>(library, Array.ConvertAll(logProb, double.CreateTruncating), limits, valid);
        results.Output("sum", sums);
        results.Output("mean", means);
        // torchtune divides by the count and 1e-8 more.
        double[] shares = [.. valids.Select(count => count / (count + 1e-8))];
        results.Output("log_probs", average ? [.. means.Select((x, s) => x * T.CreateTruncating(shares[s]))] : sums);
        results.Output("count", Array.ConvertAll(valids, T.CreateTruncating));
        T[] ofLogProb = Backward<T>(library, average ? null : upstream, average ? [.. upstream.Select((x, s) => x * shares[s])] : null, limits, valid);
        results.Gradient("logits", tokens.Backward<T>(library, Array.ConvertAll(ofLogProb, double.CreateTruncating), null, null));
        return results;
    }

    private static (T[] Sum, T[] Mean, long[] Count) Reduce<T>(bool library, double[] values, long[] bounds, bool[] counts) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return SequenceOracle.Reduce<T>(values, bounds, counts);
        float[] sum = new float[bounds.Length - 1], mean = new float[sum.Length];
        long[] count = new long[sum.Length];
        SequenceLogProbs.Reduce(DeviceUnderTest.Device, TensorView.Of(Array.ConvertAll(values, x => (float)x)), new() { CumulativeLengths = TensorView.Of(bounds), Mask = TensorView.Of(counts) },
            new() { Sum = TensorView.Of(sum), Mean = TensorView.Of(mean), Count = TensorView.Of(count) });
        return ((T[])(object)sum, (T[])(object)mean, count);
    }

    private static T[] Backward<T>(bool library, double[]? ofSum, double[]? ofMean, long[] bounds, bool[] counts) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return SequenceOracle.Backward<T>(ofSum, ofMean, bounds, counts);
        var gradient = new float[counts.Length];
        SequenceLogProbs.Backward(DeviceUnderTest.Device, new() { CumulativeLengths = TensorView.Of(bounds), Mask = TensorView.Of(counts) }, new() { Sum = View(ofSum), Mean = View(ofMean) }, TensorView.Of(gradient));
        return (T[])(object)gradient;
    }

    private static TensorView View(double[]? values) => values is null ? default : TensorView.Of(Array.ConvertAll(values, x => (float)x));
}
