using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>The Attention cases of ONNX's conformance suite: causal is top-left, and three axes mean [batch, token, heads · size].</summary>
public sealed class OnnxAttentionReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.File == "onnx-rotary-attention.json" && vector.Name.StartsWith("test_attention", StringComparison.Ordinal);

    // The suite's numpy code runs in float32.
    public double? ReferenceError(VectorCase vector) => 1e-6;

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        AttentionReplay.Case read = Read(vector);
        var results = new Results<T>();
        Grid<T> output = AttentionOracle.Forward<T>(read.Inputs).Output;
        results.Output("Y", vector.Need("Q").Shape.Length == 3 ? Join(output).Data : output.Data);
        return results;
    }

    public Results<float> Library(VectorCase vector)
    {
        Result<float> output = AttentionReplay.Run(Read(vector), new PlainScore()).Outputs["output"];
        var results = new Results<float>();
        if (vector.Need("Q").Shape.Length == 4)
            results.Output("Y", output.Values, output.Batch, output.Heads);
        else
            results.Output("Y", Join(new Grid<float>(output.Values, output.Batch, output.Heads, vector.Need("Q").Shape[1], output.Values.Length / (output.Batch * output.Heads * vector.Need("Q").Shape[1]))).Data);
        return results;
    }

    private static AttentionReplay.Case Read(VectorCase vector)
    {
        vector.KnowsOnly(["scale", "is_causal", "q_num_heads", "kv_num_heads", "softcap"], ["Q", "K", "V", "attn_mask"]);
        foreach (string name in (string[])["Q", "K", "V"])
        {
            if (vector.Need(name).Type != "float32")
                throw new NotReplayedException(vector.Need(name).Type);
        }
        int queryHeads = (int)(vector.Number("q_num_heads") ?? 0), keyHeads = (int)(vector.Number("kv_num_heads") ?? 0);
        return new(new AttentionInputs
        {
            Query = Split(vector.Need("Q").Grid, queryHeads),
            Key = Split(vector.Need("K").Grid, keyHeads),
            Value = Split(vector.Need("V").Grid, keyHeads),
            Scale = vector.Number("scale"),
            Causal = vector.Flag("is_causal"),
            QueryOffset = 0,
            Softcap = vector.Number("softcap") is > 0 and var cap ? cap : null,
            DenseBias = Broadcast(vector.Input("attn_mask"), isMask: false),
            Mask = Broadcast(vector.Input("attn_mask"), isMask: true),
        }, null, null, null, []);
    }

    // Broadcast from the last axis on. A boolean mask hides, any other is added.
    private static Grid<double>? Broadcast(VectorTensor? mask, bool isMask) =>
        mask is null || mask.Type == "bool" != isMask ? null : new(mask.Data, [.. Enumerable.Repeat(1, 4 - mask.Shape.Length), .. mask.Shape]);

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
