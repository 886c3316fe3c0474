using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/attention-t5, -t5-kin, -gpt-oss, -gemma2, -forgetting, -bloom-mpt: the cores of transformers' modules. Their masks are complete: causality, window and padding are in them.</summary>
public sealed class HfAttentionReplay : IReplay
{
    private static readonly string[] Files = ["attention-t5.json", "attention-t5-kin.json", "attention-gpt-oss.json", "attention-gemma2.json", "attention-forgetting.json", "attention-bloom-mpt.json"];

    public bool Owns(VectorCase vector) => vector.Folder == "hf" && Files.Contains(vector.File);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        AttentionReplay.Case read = Read(vector);
        Results<T> results = AttentionReplay.Oracle<T>(read);
        if (BiasName(vector) is { } name)
            results.Output(name, BiasOf(vector, read.Inputs, one => AttentionOracle.Forward<T>(one).LogSumExp.Data));
        return results;
    }

    public Results<float> Library(VectorCase vector)
    {
        AttentionReplay.Case read = Read(vector);
        Results<float> results = AttentionReplay.Run(read, new PlainScore());
        if (BiasName(vector) is { } name)
            results.Output(name, BiasOf(vector, read.Inputs, one => AttentionReplay.Run(new(one), new PlainScore()).Outputs["lse"].Values));
        return results;
    }

    private static string? BiasName(VectorCase vector) => vector.Outputs.ContainsKey("bias") ? "bias" : vector.Outputs.ContainsKey("position_bias") ? "position_bias" : null;

    // A query of zeros that sees one key has that pair's bias as its log-sum-exp: all keys are shown one by one.
    private static T[] BiasOf<T>(VectorCase vector, AttentionInputs inputs, Func<AttentionInputs, T[]> logSumExp) where T : unmanaged, IFloatingPointIeee754<T>
    {
        int[] shape = vector.Outputs[BiasName(vector)!].Shape;
        (int batch, int heads, int queries, int keys) = (shape[0], shape[1], shape[2], shape[3]);
        var bias = new T[batch * heads * queries * keys];
        // Falcon divides its bias as it does its scores; mpnet's is of no use where its mask hides.
        T factor = T.CreateTruncating(vector.Text("kind") == "falcon" ? 1 / inputs.Scale!.Value : 1);
        for (int key = 0; key < keys; key++)
        {
            Grid<double> mask = Grid.Zeros<double>(1, 1, 1, inputs.Key.Shape[2]);
            mask.Data[key] = 1;
            T[] column = logSumExp(new AttentionInputs
            {
                Query = Grid.Zeros<double>(batch, heads, queries, 1), Key = Grid.Zeros<double>(batch, 1, inputs.Key.Shape[2], 1), Value = Grid.Zeros<double>(batch, 1, inputs.Key.Shape[2], 1),
                Mask = mask, QueryOffset = inputs.QueryOffset, BucketTable = inputs.BucketTable, MaximumDistance = inputs.MaximumDistance, IsBidirectional = inputs.IsBidirectional,
                ColumnBias = inputs.ColumnBias,
            });
            for (int at = 0; at < column.Length; at++)
                bias[at * keys + key] = column[at] * factor;
        }
        return bias;
    }

    private static AttentionReplay.Case Read(VectorCase vector)
    {
        // Heads and windows are in the tensors and in the mask; a bias that was handed on is what counts, not what it was made of.
        vector.KnowsOnly(["kind", "scale", "is_causal", "past", "past_seen_tokens", "cross_attention", "bidirectional", "num_buckets", "max_distance", "local_radius", "softcap", "query_pre_attn_scalar",
                "num_heads", "num_attention_heads", "num_key_value_heads", "sliding_window", "window_size", "alibi_bias_max", "sequence_length", "clip_qkv",
                "rel_pos_bins", "max_rel_pos", "rel_2d_pos_bins", "max_rel_2d_pos"],
            ["query", "key", "value", "mask", "upstream_output", "relative_attention_bias", "position_bias", "bias", "sinks", "log_forget_gate", "attention_mask",
                "bbox", "rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"]);
        Grid<double> query = vector.Need("query").Grid, key = vector.Need("key").Grid, value = vector.Need("value").Grid;
        var chains = new List<Chain>();
        if (vector.Number("clip_qkv") is > 0 and var clip)
        {
            chains.AddRange([Clip("query", query, clip), Clip("key", key, clip), Clip("value", value, clip)]);
            (query, key, value) = (Clipped(query, clip), Clipped(key, clip), Clipped(value, clip));
        }
        Grid<double>? table = vector.Input("relative_attention_bias")?.Grid, dense = vector.Input("position_bias")?.Grid, rows = null, columns = null;
        if (table is not null)
            chains.Add(Chain.Of("relative_attention_bias", "t5_table", table.Data.Length));
        if (dense is not null)
            chains.Add(Chain.Of("position_bias", "dense_bias", dense.Data.Length));
        if (vector.Text("kind") == "layoutlmv3")
        {
            dense = Times(vector.Need("bias").Grid, vector.Number("scale")!.Value);
            chains.Add(Chain.Of("bias", "dense_bias", dense.Data.Length, vector.Number("scale")!.Value));
        }
        if (vector.Input("log_forget_gate")?.Grid is { } gates)
            (rows, columns) = Forget(gates, chains);
        if (vector.Text("kind") is "bloom" or "falcon" or "mpt")
            columns = KeyBias(vector, query.Shape[1], key.Shape[2]);
        return new(new AttentionInputs
        {
            Query = query, Key = key, Value = value, Scale = vector.Number("scale"),
            QueryOffset = (int?)(vector.Number("past_seen_tokens") ?? vector.Number("past")) ?? 0,
            BucketTable = table, MaximumDistance = (int)(vector.Number("max_distance") ?? 128), IsBidirectional = vector.Parameter("bidirectional") is null || vector.Flag("bidirectional"),
            DenseBias = dense, RowBias = rows, ColumnBias = columns, Sinks = vector.Input("sinks")?.Grid, Mask = vector.Need("mask").Grid,
            Softcap = vector.Number("softcap") is > 0 and var cap ? cap : null,
        }, vector.Input("upstream_output")?.Grid)
        { Chains = chains };
    }

    // c[i] − c[j], c the running sum of the gates' logarithms.
    private static (Grid<double> Rows, Grid<double> Columns) Forget(Grid<double> gates, List<Chain> chains)
    {
        int length = gates.Shape[2];
        Grid<double> rows = Grid.Zeros<double>(gates.Shape), columns = Grid.Zeros<double>(gates.Shape);
        var terms = new List<(int, string, int, double)>();
        for (int start = 0; start < gates.Data.Length; start += length)
        {
            double sum = 0;
            for (int t = start; t < start + length; t++)
            {
                sum += gates.Data[t];
                (rows.Data[t], columns.Data[t]) = (sum, -sum);
                for (int after = t; after < start + length; after++)
                {
                    terms.Add((t, "row_bias", after, 1));
                    terms.Add((t, "column_bias", after, -1));
                }
            }
        }
        chains.Add(new("log_forget_gate", gates.Data.Length, terms));
        return (rows, columns);
    }

    // Falcon divides its bias as it does its scores.
    private static Grid<double> KeyBias(VectorCase vector, int heads, int keys)
    {
        Grid<double> bias = AlibiReplay.KeyBias(AlibiOracle.Slopes(heads, vector.Number("alibi_bias_max") ?? 8), vector.Input("attention_mask")?.Grid, keys);
        return vector.Text("kind") == "falcon" ? Times(bias, vector.Number("scale")!.Value) : bias;
    }

    private static Chain Clip(string name, Grid<double> x, double clip) => new(name, x.Data.Length, [.. x.Data.Select((value, i) => (i, name, i, Math.Abs(value) <= clip ? 1.0 : 0.0))]);

    private static Grid<double> Clipped(Grid<double> x, double clip) => new(Array.ConvertAll(x.Data, value => Math.Clamp(value, -clip, clip)), x.Shape);

    private static Grid<double> Times(Grid<double> x, double factor) => new(Array.ConvertAll(x.Data, value => value * factor), x.Shape);
}
