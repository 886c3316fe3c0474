using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/bias-alibi: slopes, and the biases of BLOOM, Falcon and MPT, which add to keys whatever the query is.</summary>
public sealed class AlibiReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "hf" && vector.File == "bias-alibi.json";

    // Up to 2 ulp off: products of a rounded ratio.
    public bool IsRemark(VectorCase vector, string output) => output == "slopes_float32";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> =>
        Replay(vector, Array.ConvertAll(AlibiOracle.Slopes(Heads(vector), BiasMax(vector)), T.CreateTruncating), AttentionReplay.Oracle<T>);

    public Results<float> Library(VectorCase vector) =>
        Replay(vector, Alibi.Slopes(Heads(vector), BiasMax(vector)), read => AttentionReplay.Run(read, new PlainScore()));

    /// <summary>BLOOM and Falcon: slope · (visible keys up to j, less 1), 0 where masked. MPT: −slope · (Sk − 1 − j). [b, h, Sk].</summary>
    internal static Grid<double> KeyBias(double[] slopes, Grid<double>? visible, int keys)
    {
        Grid<double> bias = Grid.Zeros<double>(visible?.Shape[0] ?? 1, slopes.Length, keys);
        for (int b = 0; b < bias.Shape[0]; b++)
        {
            for (int h = 0; h < slopes.Length; h++)
            {
                double seen = 0;
                for (int j = 0; j < keys; j++)
                {
                    seen += visible?[b, j] ?? 0;
                    bias[b, h, j] = slopes[h] * (visible is null ? j - (keys - 1) : visible[b, j] == 0 ? 0 : seen - 1);
                }
            }
        }
        return bias;
    }

    private static Results<T> Replay<T>(VectorCase vector, T[] slopes, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["num_heads", "alibi_bias_max", "sequence_length"], ["attention_mask"]);
        Grid<double>? visible = vector.Input("attention_mask")?.Grid;
        int keys = visible?.Shape[1] ?? (int)(vector.Number("sequence_length") ?? 0);
        T[] rounded = Array.ConvertAll(slopes, slope => T.CreateTruncating(ToBFloat16(float.CreateTruncating(slope))));
        var results = new Results<T>();
        results.Output("slopes", slopes);
        results.Output("slopes_falcon_bfloat16", rounded);
        if (keys == 0)
            return results;
        results.Output("bias", Bias(slopes));
        results.Output("bias_falcon_bfloat16", Bias(rounded));
        return results;

        T[] Bias(T[] slopes)
        {
            Grid<double> columns = KeyBias(Array.ConvertAll(slopes, double.CreateTruncating), visible, keys);
            return BiasProbe.Run(new(BiasProbe.Blank(columns.Shape[0], slopes.Length, 1, keys) with { ColumnBias = columns }), run).Outputs["bias"].Values;
        }
    }

    // The nearest number of 8 significant bits; there are no ties among slopes.
    private static float ToBFloat16(float x) => BitConverter.UInt32BitsToSingle((BitConverter.SingleToUInt32Bits(x) + 0x8000) & 0xFFFF0000);

    private static int Heads(VectorCase vector) => (int)vector.Number("num_heads")!;

    private static double BiasMax(VectorCase vector) => vector.Number("alibi_bias_max") ?? 8;
}
