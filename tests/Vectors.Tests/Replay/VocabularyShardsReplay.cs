using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>logprobs/vocabulary-shards.json: the sums of each slice of the vocabulary, the results that they merge to, and the gradients of all slices side by side.</summary>
public sealed class VocabularyShardsReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "logprobs" && vector.File == "vocabulary-shards.json";

    public Results<float> Library(VectorCase vector) => Run(vector, Library);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run(vector, Oracle<T>);

    public bool IsRemark(VectorCase vector, string output) => output.StartsWith("verl.", StringComparison.Ordinal) || output.StartsWith("megatron.", StringComparison.Ordinal);

    // What is computed of logits, targets and slices: the sums of each slice, the results, the likeliest tokens of each slice and of all, and the gradients of log-prob and entropy.
    private delegate (ShardSums<T>[] Shards, TokenResult<T> Whole, T[][] Argmax, T[] OfLogProb, T[] OfEntropy) Computation<T>(Grid<double> logits, long[] targets, int[] slices, double[] upstream);

    private static Results<T> Run<T>(VectorCase vector, Computation<T> compute) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["slices"], ["logits", "targets", "upstream"]);
        int[] slices = [.. vector.Parameter("slices")!.Value.EnumerateArray().Select(slice => slice.GetInt32())];
        long[] targets = vector.Need("targets").Integers;
        (ShardSums<T>[] shards, TokenResult<T> whole, T[][] argmax, T[] ofLogProb, T[] ofEntropy) = compute(vector.Need("logits").Grid, targets, slices, vector.Need("upstream").Data);
        var results = new Results<T>();
        for (int s = 0; s < slices.Length; s++)
        {
            ShardSums<T> shard = shards[s];
            results.Output($"shard{s}.max", shard.Max);
            results.Output($"shard{s}.sumExp", shard.Sum);
            // Theirs is weighted with z, ours with z − max.
            results.Output($"shard{s}.sumExpLogit", [.. shard.Weighted.Select((weighted, t) => T.IsNegativeInfinity(shard.Max[t]) ? weighted : weighted + shard.Max[t] * shard.Sum[t])]);
            results.Output($"shard{s}.sumExp2", shard.Squares);
            int first = slices[..s].Sum();
            bool[] here = [.. targets.Select(target => target >= first && target < first + slices[s])];
            results.Output($"shard{s}.targetLogit", [.. shard.Target.Select((target, t) => here[t] ? target : T.Zero)]);
            results.Output($"shard{s}.targetPresent", [.. here.Select(present => present ? T.One : T.Zero)]);
            results.Output($"shard{s}.argmax", argmax[s]);
        }
        results.Output("logprob", whole.LogProb);
        results.Output("lse", whole.LogSumExp);
        results.Output("entropy", whole.Entropy);
        results.Output("sumP2", whole.SumOfSquares);
        results.Output("argmax", argmax[^1]);
        results.Gradient("logits.fromLogprob", ofLogProb);
        results.Gradient("logits.fromEntropy", ofEntropy);
        return results;
    }

    private static (ShardSums<float>[], TokenResult<float>, float[][], float[], float[]) Library(Grid<double> logits, long[] targets, int[] slices, double[] upstream)
    {
        ComputeDevice device = DeviceUnderTest.Device;
        int tokens = targets.Length, vocabulary = slices.Sum();
        float[] values = Array.ConvertAll(logits.Data, x => (float)x), all = new float[slices.Length * tokens * ShardPartials.Count], merged = new float[tokens * ShardPartials.Count];
        TensorView partials = TensorView.Of(all, slices.Length, tokens, ShardPartials.Count);
        VocabularyShard Shard(int s) => new(slices[..s].Sum(), vocabulary);
        LogitsProblem Problem(int s) => new() { Logits = TensorView.Of(values, tokens, vocabulary).Slice(1, Shard(s).First, slices[s]), Targets = TensorView.Of(targets) };
        for (int s = 0; s < slices.Length; s++)
            VocabularyShards.FromLogits(device, Problem(s), Shard(s), partials.Select(0, s));
        var whole = new TokenResult<float>(new float[tokens], new float[tokens], new float[tokens], new float[tokens]);
        var largest = new int[tokens];
        VocabularyShards.Merge(device, partials, new()
        {
            LogProb = TensorView.Of(whole.LogProb),
            LogSumExp = TensorView.Of(whole.LogSumExp),
            Entropy = TensorView.Of(whole.Entropy),
            SumOfSquares = TensorView.Of(whole.SumOfSquares),
            Argmax = TensorView.Of(largest),
        }, TensorView.Of(merged, tokens, ShardPartials.Count));

        float[] Field(int s, int field) => [.. Enumerable.Range(0, tokens).Select(t => all[(s * tokens + t) * ShardPartials.Count + field])];
        float[] Gradient(bool entropy)
        {
            float[] gradient = new float[values.Length], arriving = Array.ConvertAll(upstream, x => (float)x);
            for (int s = 0; s < slices.Length; s++)
            {
                TokenUpstream of = entropy ? new() { Entropy = TensorView.Of(arriving) } : new() { LogProb = TensorView.Of(arriving) };
                VocabularyShards.FromLogitsBackward(device, Problem(s), Shard(s), TensorView.Of(merged, tokens, ShardPartials.Count), of, TensorView.Of(gradient, tokens, vocabulary).Slice(1, Shard(s).First, slices[s]));
            }
            return gradient;
        }
        ShardSums<float>[] shards = [.. slices.Select((_, s) => new ShardSums<float>(Field(s, ShardPartials.Max), Field(s, ShardPartials.Sum), Field(s, ShardPartials.WeightedSum), Field(s, ShardPartials.SumOfSquares),
            Field(s, ShardPartials.MeanLogit), Field(s, ShardPartials.TargetLogit)))];
        return (shards, whole, [.. slices.Select((_, s) => Field(s, ShardPartials.Argmax)), Array.ConvertAll(largest, x => (float)x)], Gradient(entropy: false), Gradient(entropy: true));
    }

    private static (ShardSums<T>[], TokenResult<T>, T[][], T[], T[]) Oracle<T>(Grid<double> logits, long[] targets, int[] slices, double[] upstream) where T : unmanaged, IFloatingPointIeee754<T>
    {
        Grid<double>[] parts = [.. slices.Select((length, s) =>
        {
            var part = Grid.Zeros<double>(targets.Length, length);
            for (int row = 0; row < targets.Length; row++)
                logits.Row(row).Slice(slices[..s].Sum(), length).CopyTo(part.Row(row));
            return part;
        })];
        ShardSums<T>[] shards = [.. parts.Select((part, s) => ShardOracle.Partials<T>(part, targets, slices[..s].Sum()))];
        T[][] argmax = [.. parts.Select((part, s) => Array.ConvertAll(LogProbsOracle.Top(part, targets, 1), x => T.CreateTruncating(x + slices[..s].Sum()))), Array.ConvertAll(LogProbsOracle.Top(logits, targets, 1), T.CreateTruncating)];
        return (shards, ShardOracle.Merge(shards), argmax, LogProbsOracle.Backward<T>(logits, targets, upstream, null, null).Data, LogProbsOracle.Backward<T>(logits, targets, null, null, upstream).Data);
    }
}
