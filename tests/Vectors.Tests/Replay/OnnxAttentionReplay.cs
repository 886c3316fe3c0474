using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>The Attention cases of ONNX's conformance suite: causal is top-left, or counts from the keys before; three axes mean [batch, token, heads · size].</summary>
public sealed class OnnxAttentionReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.File == "onnx-rotary-attention.json" && vector.Name.StartsWith("test_attention", StringComparison.Ordinal);

    // The suite's numpy code runs in float32.
    public double? ReferenceError(VectorCase vector) => 1e-6;

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Replay(vector, AttentionReplay.Oracle<T>);

    public Results<float> Library(VectorCase vector) => Replay(vector, read => AttentionReplay.Run(read, new PlainScore()));

    private static Results<T> Replay<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
    {
        AttentionReplay.Case read = Read(vector);
        int batch = read.Inputs.Query.Shape[0], heads = read.Inputs.Query.Shape[1];
        T[] output = run(read).Outputs["output"].Values;
        var results = new Results<T>();
        if (vector.Need("Q").Shape.Length == 4)
            results.Output("Y", output, batch, heads);
        else
            results.Output("Y", Join(new Grid<T>(output, batch, heads, read.Inputs.Query.Shape[2], read.Inputs.Value.Shape[3])).Data);
        Present(vector, read, results);
        if (vector.Outputs.ContainsKey("qk_matmul_output"))
            results.Output("qk_matmul_output", (int)(vector.Number("qk_matmul_output_mode") ?? 0) is var mode && mode == 3 ? Weights(read.Inputs, run) : Scores(read.Inputs, mode, run), batch, heads);
        return results;
    }

    // Neither is an output of attention that never stores them. Values that are the rows of the identity give the weights.
    private static T[] Weights<T>(AttentionInputs inputs, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged
    {
        (int batch, int keyHeads, int keys) = (inputs.Key.Shape[0], inputs.Key.Shape[1], inputs.Key.Shape[2]);
        Grid<double> identity = Grid.Zeros<double>(batch, keyHeads, keys, keys);
        for (int row = 0; row < batch * keyHeads * keys; row++)
            identity.Data[row * keys + row % keys] = 1;
        return run(new(inputs with { Value = identity })).Outputs["output"].Values;
    }

    // A query that sees one key has its score as log-sum-exp: scaled (mode 0), capped too (1), with mask and bias too (2).
    private static T[] Scores<T>(AttentionInputs inputs, int mode, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged
    {
        (int batch, int heads, int queries, int keys) = (inputs.Query.Shape[0], inputs.Query.Shape[1], inputs.Query.Shape[2], inputs.Key.Shape[2]);
        AttentionInputs upTo = mode == 2 ? inputs : inputs with { Softcap = mode == 0 ? null : inputs.Softcap, Causal = false, KeyLengths = null, DenseBias = null };
        var scores = new T[batch * heads * queries * keys];
        for (int key = 0; key < keys; key++)
        {
            Grid<double> alone = Grid.Zeros<double>(batch, heads, queries, keys);
            for (int row = 0; row < batch * heads * queries; row++)
                alone.Data[row * keys + key] = mode < 2 || inputs.Mask is null ? 1 : inputs.Mask[row / (heads * queries), row / queries % heads, row % queries, key];
            T[] column = run(new(upTo with { Mask = alone })).Outputs["lse"].Values;
            for (int row = 0; row < column.Length; row++)
                scores[row * keys + key] = column[row];
        }
        return scores;
    }

    // The cache after the call is what the caller put together for it.
    private static void Present<T>(VectorCase vector, AttentionReplay.Case read, Results<T> results) where T : unmanaged, INumberBase<T>
    {
        if (vector.Input("past_key") is null)
            return;
        results.Output("present_key", read.Inputs.Key.To<T>().Data);
        results.Output("present_value", read.Inputs.Value.To<T>().Data);
    }

    private static AttentionReplay.Case Read(VectorCase vector)
    {
        vector.KnowsOnly(["scale", "is_causal", "q_num_heads", "kv_num_heads", "softcap", "qk_matmul_output_mode", "left_window_size", "right_window_size"], ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]);
        vector.Requires("left_window_size", -1.0);
        vector.Requires("right_window_size", -1.0);
        foreach (string name in (string[])["Q", "K", "V"])
        {
            if (vector.Need(name).Type != "float32")
                throw new NotReplayedException(vector.Need(name).Type);
        }
        int queryHeads = (int)(vector.Number("q_num_heads") ?? 0), keyHeads = (int)(vector.Number("kv_num_heads") ?? 0);
        Grid<double> query = Split(vector.Need("Q").Grid, queryHeads), key = Append(vector.Input("past_key")?.Grid, Split(vector.Need("K").Grid, keyHeads));
        int[]? lengths = vector.Input("nonpad_kv_seqlen") is { } given ? Array.ConvertAll(given.Integers, length => (int)length) : null;
        return new(new AttentionInputs
        {
            Query = query,
            Key = key,
            Value = Append(vector.Input("past_value")?.Grid, Split(vector.Need("V").Grid, keyHeads)),
            Scale = vector.Number("scale"),
            Causal = vector.Flag("is_causal"),
            QueryOffset = lengths is null ? vector.Input("past_key")?.Shape[2] ?? 0 : null,
            QueryOffsets = lengths is null ? null : Array.ConvertAll(lengths, length => length - query.Shape[2]),
            KeyLengths = lengths,
            Softcap = vector.Number("softcap") is > 0 and var cap ? cap : null,
            DenseBias = Broadcast(vector.Input("attn_mask"), key.Shape[2], isMask: false),
            Mask = Broadcast(vector.Input("attn_mask"), key.Shape[2], isMask: true),
        });
    }

    // Broadcast from the last axis on. A boolean mask hides, any other is added; keys beyond it are hidden.
    private static Grid<double>? Broadcast(VectorTensor? mask, int keys, bool isMask)
    {
        if (mask is null || mask.Type == "bool" != isMask)
            return null;
        int columns = mask.Shape[^1], rows = mask.Count / Math.Max(columns, 1), all = columns == 1 ? 1 : keys;
        Grid<double> filled = Grid.Zeros<double>([.. Enumerable.Repeat(1, 4 - mask.Shape.Length), .. mask.Shape[..^1], all]);
        filled.Data.AsSpan().Fill(isMask ? 0 : double.NegativeInfinity);
        for (int row = 0; row < rows; row++)
            mask.Data.AsSpan(row * columns, columns).CopyTo(filled.Data.AsSpan(row * all));
        return filled;
    }

    internal static Grid<double> Append(Grid<double>? past, Grid<double> x)
    {
        if (past is null)
            return x;
        Grid<double> joined = Grid.Zeros<double>(x.Shape[0], x.Shape[1], past.Shape[2] + x.Shape[2], x.Shape[3]);
        for (int b = 0; b < x.Shape[0]; b++)
            for (int h = 0; h < x.Shape[1]; h++)
                for (int t = 0; t < joined.Shape[2]; t++)
                    (t < past.Shape[2] ? past.Row(b, h, t) : x.Row(b, h, t - past.Shape[2])).CopyTo(joined.Row(b, h, t));
        return joined;
    }

    private static Grid<double> Split(Grid<double> x, int heads)
    {
        if (x.Shape.Length == 4)
            return x;
        (int batch, int tokens, int size) = (x.Shape[0], x.Shape[1], x.Shape[2] / heads);
        Grid<double> split = Grid.Zeros<double>(batch, heads, tokens, size);
        for (int b = 0; b < batch; b++)
            for (int t = 0; t < tokens; t++)
                for (int h = 0; h < heads; h++)
                    x.Row(b, t).Slice(h * size, size).CopyTo(split.Row(b, h, t));
        return split;
    }

    private static Grid<T> Join<T>(Grid<T> x) where T : INumberBase<T>
    {
        (int batch, int heads, int tokens, int size) = (x.Shape[0], x.Shape[1], x.Shape[2], x.Shape[3]);
        Grid<T> joined = Grid.Zeros<T>(batch, tokens, heads * size);
        for (int b = 0; b < batch; b++)
            for (int t = 0; t < tokens; t++)
                for (int h = 0; h < heads; h++)
                    x.Row(b, h, t).CopyTo(joined.Row(b, t).Slice(h * size, size));
        return joined;
    }
}
