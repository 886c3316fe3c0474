using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/bias-t5: buckets, and the bias itself with its table's gradient.</summary>
/// <remarks>A query of zeros that sees one key has that pair's bias as its log-sum-exp. So every key is shown by itself, and what arrives at the log-sum-exps arrives at the bias.</remarks>
public sealed class BiasReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "hf" && vector.File == "bias-t5.json";

    // The table's reference computes its buckets in float32: they are exact.
    public double? ReferenceError(VectorCase vector) => null;

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        var results = new Results<T>();
        if (Distances(vector) is { } distances)
        {
            results.Output("bucket", Array.ConvertAll(distances, d => T.CreateTruncating(AttentionOracle.Bucket((int)d, Buckets(vector), MaximumDistance(vector), IsBidirectional(vector)))));
            return results;
        }
        Problem read = Read(vector);
        Grid<T> bias = Grid.Zeros<T>(1, read.Heads, read.Queries, read.Keys), gradient = Grid.Zeros<T>(read.Table.Shape), magnitude = Grid.Zeros<T>(read.Table.Shape);
        for (int key = 0; key < read.Keys; key++)
        {
            AttentionInputs inputs = read.Of(key);
            Grid<T> column = AttentionOracle.Forward<T>(inputs).LogSumExp;
            AttentionGradient<T> backward = AttentionOracle.Backward<T>(inputs, Grid.Zeros<double>(1, read.Heads, read.Queries, 1), read.Upstream(key));
            for (int at = 0; at < column.Data.Length; at++)
                bias.Data[at * read.Keys + key] = column.Data[at];
            for (int at = 0; at < gradient.Data.Length; at++)
            {
                gradient.Data[at] += backward.BucketTable!.Data[at];
                magnitude.Data[at] += backward.BucketTableMagnitude!.Data[at];
            }
        }
        results.Output("bias", bias.Data);
        results.Gradient("relative_attention_bias", gradient.Data, magnitude: magnitude.Data.Select(double.CreateTruncating).Max());
        return results;
    }

    public Results<float> Library(VectorCase vector)
    {
        var results = new Results<float>();
        if (Distances(vector) is { } distances)
        {
            results.Output("bucket", Array.ConvertAll(distances, d => (float)BucketedBias.Bucket(d, Buckets(vector), MaximumDistance(vector), IsBidirectional(vector))));
            return results;
        }
        Problem read = Read(vector);
        var bias = new float[read.Heads * read.Queries * read.Keys];
        var gradient = new float[read.Table.Data.Length];
        for (int key = 0; key < read.Keys; key++)
        {
            Results<float> one = AttentionReplay.Run(new(read.Of(key), Grid.Zeros<double>(1, read.Heads, read.Queries, 1), read.Upstream(key)), new PlainScore());
            for (int at = 0; at < read.Heads * read.Queries; at++)
                bias[at * read.Keys + key] = one.Outputs["lse"].Values[at];
            for (int at = 0; at < gradient.Length; at++)
                gradient[at] += one.Gradients["t5_table"].Values[at];
        }
        results.Output("bias", bias, 1, read.Heads);
        results.Gradient("relative_attention_bias", gradient);
        return results;
    }

    private static long[]? Distances(VectorCase vector) => vector.Input("relative_position")?.Integers;

    private static int Buckets(VectorCase vector) => (int)vector.Number("num_buckets")!;

    private static int MaximumDistance(VectorCase vector) => (int)vector.Number("max_distance")!;

    private static bool IsBidirectional(VectorCase vector) => vector.Flag("bidirectional");

    private static Problem Read(VectorCase vector)
    {
        vector.KnowsOnly(["bidirectional", "num_buckets", "max_distance", "num_heads", "query_length", "key_length", "past_seen_tokens"], ["relative_attention_bias", "upstream_bias"]);
        return new(vector.Need("relative_attention_bias").Grid, MaximumDistance(vector), IsBidirectional(vector), vector.Need("upstream_bias").Grid, (int)vector.Number("past_seen_tokens")!);
    }

    private sealed record Problem(Grid<double> Table, int MaximumDistance, bool IsBidirectional, Grid<double> UpstreamBias, int Past)
    {
        public int Heads => UpstreamBias.Shape[1];
        public int Queries => UpstreamBias.Shape[2];
        public int Keys => UpstreamBias.Shape[3];

        // The one key stands where the first one does, the queries so much further back.
        public AttentionInputs Of(int key) => new()
        {
            Query = Grid.Zeros<double>(1, Heads, Queries, 1), Key = Grid.Zeros<double>(1, Heads, 1, 1), Value = Grid.Zeros<double>(1, Heads, 1, 1),
            QueryOffset = Past - key, BucketTable = Table, MaximumDistance = MaximumDistance, IsBidirectional = IsBidirectional,
        };

        public Grid<double> Upstream(int key)
        {
            Grid<double> upstream = Grid.Zeros<double>(1, Heads, Queries);
            for (int at = 0; at < upstream.Data.Length; at++)
                upstream.Data[at] = UpstreamBias.Data[at * Keys + key];
            return upstream;
        }
    }
}
