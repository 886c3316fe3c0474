using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/rope-apply: queries, keys and values rotated as 28 model families do it, with gradients and tables.</summary>
public sealed class RotaryReplay : IReplay
{
    private const string HeadsFirst = "batch,heads,sequence,head_dim", TokensFirst = "batch,sequence,heads,head_dim";

    private static readonly string[] Rotated = ["query", "key", "value"];

    public bool Owns(VectorCase vector) => vector.Folder == "hf" && vector.File == "rope-apply.json";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        Case read = Read(vector);
        var results = new Results<T>();
        foreach (string name in Rotated)
        {
            if (vector.Input(name) is not { } x)
                continue;
            results.Output("rotated_" + name, Rotate<T>(read, x.Grid, read.Turned));
            if (vector.Input("upstream_" + name) is { } upstream)
                results.Gradient(name, Rotate<T>(read, upstream.Grid, !read.Turned));
        }
        (Grid<T> cosines, Grid<T> sines) = RotaryOracle.Table<T>(read.Positions.Grid, read.Frequencies);
        results.Output("cos", cosines.Data);
        results.Output("sin", sines.Data);
        return results;
    }

    public Results<float> Library(VectorCase vector)
    {
        Case read = Read(vector);
        ComputeDevice device = DeviceUnderTest.Device;
        long[] ids = read.Positions.Integers;
        using RotaryTable table = RotaryTable.Build(device, read.RotarySize, (int)Math.Max(1, ids.Max() + 1), read.Theta);
        var results = new Results<float>();
        foreach (string name in Rotated)
        {
            if (vector.Input(name) is not { } x)
                continue;
            results.Output("rotated_" + name, Rotate(read, x, table, read.Turned), x.Shape[0], read.HeadsFirst ? x.Shape[1] : 1);
            if (vector.Input("upstream_" + name) is { } upstream)
                results.Gradient(name, Rotate(read, upstream, table, !read.Turned), x.Shape[0], read.HeadsFirst ? x.Shape[1] : 1);
        }
        results.Output("cos", Rows(table, ids, table.Cosines));
        results.Output("sin", Rows(table, ids, table.Sines));
        return results;
    }

    private static float[] Rotate(Case read, VectorTensor x, RotaryTable table, bool backward)
    {
        float[] data = x.Floats;
        TensorView view = TensorView.Of(data, Array.ConvertAll(x.Shape, length => (long)length));
        if (!read.HeadsFirst)
            view = view.Permute(0, 2, 1, 3);
        // What is rotated is the last channels in one family.
        view = view.Slice(3, read.FirstChannel, view.Length(3) - read.FirstChannel);
        TensorView ids = TensorView.Of(read.Positions.Integers, Array.ConvertAll(read.Positions.Shape, length => (long)length));
        if (read.Positions.Shape[0] == 1)
            ids = ids.Reshape(read.Positions.Shape[1]);
        var options = new RotaryOptions { Pairing = read.Interleaved ? RotaryPairing.Interleaved : RotaryPairing.HalfSplit, PositionIds = ids };
        if (backward)
            RotaryEmbedding.Backward(DeviceUnderTest.Device, view, default, table, options);
        else
            RotaryEmbedding.Apply(DeviceUnderTest.Device, view, default, table, options);
        return data;
    }

    private static unsafe float[] Rows(RotaryTable table, long[] ids, TensorView values)
    {
        int pairs = table.RotarySize / 2;
        var rows = new float[ids.Length * pairs];
        fixed (byte* start = values)
        {
            for (int i = 0; i < ids.Length; i++)
                new ReadOnlySpan<float>((float*)start + ids[i] * pairs, pairs).CopyTo(rows.AsSpan(i * pairs));
        }
        return rows;
    }

    private static T[] Rotate<T>(Case read, Grid<double> x, bool backward) where T : IFloatingPointIeee754<T>
    {
        Grid<double> heads = read.HeadsFirst ? x : Swap(x);
        Grid<double> part = Grid.Zeros<double>(heads.Shape[0], heads.Shape[1], heads.Shape[2], heads.Shape[3] - read.FirstChannel);
        Grid<T> whole = heads.To<T>();
        int rows = heads.Shape[0] * heads.Shape[1] * heads.Shape[2], size = heads.Shape[3], partSize = part.Shape[3];
        for (int row = 0; row < rows; row++)
            heads.Data.AsSpan(row * size + read.FirstChannel, partSize).CopyTo(part.Data.AsSpan(row * partSize));
        Grid<T> rotated = RotaryOracle.Rotate<T>(part, read.Positions.Grid, read.Frequencies, read.Interleaved, backward);
        for (int row = 0; row < rows; row++)
            rotated.Data.AsSpan(row * partSize, partSize).CopyTo(whole.Data.AsSpan(row * size + read.FirstChannel));
        return read.HeadsFirst ? whole.Data : Swap(whole).Data;
    }

    /// <summary>[batch, token, head, size] to [batch, head, token, size] and back.</summary>
    public static Grid<T> Swap<T>(Grid<T> x) where T : INumberBase<T>
    {
        Grid<T> swapped = Grid.Zeros<T>(x.Shape[0], x.Shape[2], x.Shape[1], x.Shape[3]);
        for (int b = 0; b < x.Shape[0]; b++)
            for (int i = 0; i < x.Shape[1]; i++)
                for (int j = 0; j < x.Shape[2]; j++)
                    x.Row(b, i, j).CopyTo(swapped.Row(b, j, i));
        return swapped;
    }

    private static Case Read(VectorCase vector)
    {
        vector.KnowsOnly(
            ["model_type", "rope_parameters", "head_dim", "attention_factor", "stored", "layout", "pairing", "rotary_dim", "rotary_offset", "sign", "rope_theta", "rotary_value", "past_key_values_length"],
            ["query", "key", "value", "upstream_query", "upstream_key", "upstream_value", "position_ids"]);
        vector.Requires("attention_factor", 1.0);
        vector.Requires("past_key_values_length", 0.0);
        double? theta = vector.Number("rope_theta");
        if (vector.Parameter("rope_parameters") is { } recipe)
        {
            string type = recipe.GetProperty("rope_type").GetString()!;
            if (type != "default")
                throw new NotReplayedException($"rope_type {type}");
            theta = recipe.GetProperty("rope_theta").GetDouble();
        }
        string layout = vector.Text("layout")!, pairing = vector.Text("pairing")!;
        if (layout is not (HeadsFirst or TokensFirst))
            throw new NotReplayedException($"layout {layout}");
        if (pairing is not ("half-split" or "interleaved"))
            throw new NotReplayedException($"pairing {pairing}");
        int rotarySize = (int)vector.Number("rotary_dim")!;
        return new(vector.Need("position_ids"), rotarySize, theta!.Value, layout == HeadsFirst, pairing == "interleaved",
            (int)(vector.Number("rotary_offset") ?? 0), vector.Number("sign") is < 0);
    }

    /// <summary>A case; Turned: it rotates the other way, which here is the backward rotation.</summary>
    private sealed record Case(VectorTensor Positions, int RotarySize, double Theta, bool HeadsFirst, bool Interleaved, int FirstChannel, bool Turned)
    {
        public double[] Frequencies => RotaryOracle.Frequencies(RotarySize, Theta);
    }
}
