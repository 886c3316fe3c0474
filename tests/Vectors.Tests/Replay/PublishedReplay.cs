using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>published.json: numbers that tests of ONNX Runtime, transformers and keras-hub print, of rotary embedding, relative biases and attention. Tensors are [batch, token, head, size].</summary>
public sealed class PublishedReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.File == "published.json";

    // They are printed with so many digits, or were computed in half precision.
    public double? ReferenceError(VectorCase vector) => vector.Number("tolerance");

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Replay(vector, AttentionReplay.Oracle<T>, AttentionReplay.Oracle<T>, Rotated<T>);

    public Results<float> Library(VectorCase vector) =>
        Replay(vector, read => AttentionReplay.Run(read, new PlainScore()), read => AttentionReplay.Run(read, new GatedBias()), Rotated);

    private static Results<T> Replay<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> plain, Func<AttentionReplay.Case, Results<T>> gated, Func<VectorCase, T[]> rotated)
        where T : unmanaged, IFloatingPointIeee754<T>
    {
        var results = new Results<T>();
        results.Output("output", vector.Text("kind") switch
        {
            "rotary" => First(rotated(vector), vector),
            "t5-bias" => Bias(vector, plain),
            "gated-bias" => GatedBiasOf(vector, gated),
            "attention" => Attended(vector, plain),
            { } kind => throw new NotReplayedException(kind),
            null => throw new NotReplayedException("no kind"),
        });
        return results;
    }

    private static T[] Rotated<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => RotaryReplay.Swap(RotaryOracle.Rotate<T>(RotaryReplay.Swap(Rotary(vector).Grid), vector.Need("position_ids").Grid, Frequencies(vector), vector.Flag("interleaved"))).Data;

    private static float[] Rotated(VectorCase vector)
    {
        VectorTensor input = Rotary(vector), ids = vector.Need("position_ids");
        float[] data = input.Floats;
        using RotaryTable table = RotaryTable.Build(DeviceUnderTest.Device, Frequencies(vector), (int)ids.Integers.Max() + 1);
        RotaryEmbedding.Apply(DeviceUnderTest.Device, TensorView.Of(data, Array.ConvertAll(input.Shape, length => (long)length)).Permute(0, 2, 1, 3), default, table, new RotaryOptions
        {
            Pairing = vector.Flag("interleaved") ? RotaryPairing.Interleaved : RotaryPairing.HalfSplit,
            PositionIds = TensorView.Of(ids.Integers, ids.Shape[0], ids.Shape[1]),
        });
        return data;
    }

    private static VectorTensor Rotary(VectorCase vector)
    {
        vector.KnowsOnly(["kind", "tolerance", "interleaved", "rotary_size", "scaling", "frequencies", "columns"], ["input", "position_ids"]);
        return vector.Need("input");
    }

    // Linear scaling divides the frequencies; one case has a table of its own.
    private static double[] Frequencies(VectorCase vector) => vector.Parameter("frequencies") is { } own ? [.. own.EnumerateArray().Select(x => x.GetDouble())] : Array.ConvertAll(RotaryOracle.Frequencies((int)vector.Number("rotary_size")!), frequency => frequency / (vector.Number("scaling") ?? 1));

    // The first columns, where no more are printed.
    private static T[] First<T>(T[] rows, VectorCase vector)
    {
        int size = vector.Need("input").Shape[3], columns = (int)(vector.Number("columns") ?? size);
        return [.. rows.Where((_, n) => n % size < columns)];
    }

    private static T[] Bias<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> plain) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "tolerance", "bidirectional", "max_distance"], ["table"]);
        int[] shape = vector.Outputs["output"].Shape;
        return BiasProbe.Run(new(BiasProbe.Blank(1, shape[1], shape[2], shape[3]) with
        {
            BucketTable = vector.Need("table").Grid,
            MaximumDistance = (int)vector.Number("max_distance")!,
            IsBidirectional = vector.Flag("bidirectional"),
        }), plain).Outputs["bias"].Values;
    }

    // gate · bias of the pair; gate = u(r·eco − 1) + 2, u and r the sigmoids of sums of four products each.
    private static T[] GatedBiasOf<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> gated) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "tolerance"], ["query_layer", "query_bias", "rel_pos", "weight", "bias", "eco_a"]);
        Grid<double> query = vector.Need("query_layer").Grid, queryBias = vector.Need("query_bias").Grid, weight = vector.Need("weight").Grid;
        (int length, int heads, int size) = (query.Shape[1], query.Shape[2], query.Shape[3]);
        double[] bias = vector.Need("bias").Data, eco = vector.Need("eco_a").Data;
        Grid<double> gate = Grid.Zeros<double>(1, heads, length);
        for (int h = 0; h < heads; h++)
        {
            for (int i = 0; i < length; i++)
            {
                double[] sums = new double[2];
                for (int k = 0; k < bias.Length; k++)
                {
                    sums[2 * k / bias.Length] += bias[k];
                    for (int e = 0; e < size; e++)
                        sums[2 * k / bias.Length] += (query[0, i, h, e] + queryBias[h, e]) * weight[e, k];
                }
                (double u, double r) = (1 / (1 + Math.Exp(-sums[0])), 1 / (1 + Math.Exp(-sums[1])));
                gate[0, h, i] = u * (r * eco[h] - 1) + 2;
            }
        }
        return BiasProbe.Run(new(BiasProbe.Blank(1, heads, length, length) with
        {
            Formula = new GatedBiasFormula(),
            Captured = [new(gate, CapturedBy.Query), new(vector.Need("rel_pos").Grid, CapturedBy.Pair)],
        }), gated).Outputs["bias"].Values;
    }

    private static T[] Attended<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> plain) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "tolerance"], ["query", "key", "value", "past_key", "past_value", "attention_bias", "projection_bias"]);
        Grid<double> query = Projected("query", 0);
        T[] output = plain(new(new AttentionInputs
        {
            Query = query, Key = OnnxAttentionReplay.Append(vector.Input("past_key")?.Grid, Projected("key", 1)), Value = OnnxAttentionReplay.Append(vector.Input("past_value")?.Grid, Projected("value", 2)),
            DenseBias = vector.Input("attention_bias")?.Grid,
        })).Outputs["output"].Values;
        return RotaryReplay.Swap(new Grid<T>(output, query.Shape[0], query.Shape[1], query.Shape[2], output.Length / (query.Shape[0] * query.Shape[1] * query.Shape[2]))).Data;

        // What a projection would have added to queries, keys and values.
        Grid<double> Projected(string name, int row)
        {
            Grid<double> x = vector.Need(name).Grid;
            if (vector.Input("projection_bias")?.Grid is { } bias)
                x = new(x.Data.Select((number, n) => number + bias.Row(row, n / x.Shape[3] % x.Shape[2])[n % x.Shape[3]]).ToArray(), x.Shape);
            return RotaryReplay.Swap(x);
        }
    }
}
