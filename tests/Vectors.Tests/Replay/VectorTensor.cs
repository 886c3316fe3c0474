using System.Text.Json;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>A tensor of a case: its numbers, or the recipe that makes them, or samples of them. A bare number or list of numbers is one too.</summary>
public sealed class VectorTensor
{
    private readonly JsonElement json;
    private double[]? data;

    public VectorTensor(JsonElement json)
    {
        this.json = json;
        if (json.ValueKind == JsonValueKind.Array)
            Shape = [json.GetArrayLength()];
        else
            Shape = json.ValueKind == JsonValueKind.Object && json.TryGetProperty("shape", out JsonElement shape) ? [.. shape.EnumerateArray().Select(x => x.GetInt32())] : [];
        if (json.ValueKind == JsonValueKind.Object && json.TryGetProperty("indices", out JsonElement indices))
            Indices = [.. indices.EnumerateArray().Select(x => x.GetInt32())];
    }

    public int[] Shape { get; }

    public int Count => Shape.Aggregate(1, (product, length) => product * length);

    /// <summary>Where <see cref="Data"/> stands in the tensor, if those are samples.</summary>
    public int[]? Indices { get; }

    public string Type => json.ValueKind == JsonValueKind.Object && json.TryGetProperty("dtype", out JsonElement type) ? type.GetString()! : "float";

    /// <summary>The numbers, row-major.</summary>
    public double[] Data => data ??= Read();

    public Grid<double> Grid => new(Data, Shape);

    public float[] Floats => Array.ConvertAll(Data, x => (float)x);

    public long[] Integers => Array.ConvertAll(Data, x => (long)x);

    public bool[] Booleans => Array.ConvertAll(Data, x => x != 0);

    /// <summary>A number over the whole tensor that goes with samples: sum, sumAbs, dot.</summary>
    public double Digest(string name) => json.GetProperty(name).GetDouble();

    /// <summary>n numbers of the generator, exact in so many bits.</summary>
    public static double[] Generate(uint seed, double scale, int bits, int count)
    {
        var numbers = new double[count];
        uint x = seed;
        double half = 1u << (bits - 1);
        for (int i = 0; i < count; i++)
        {
            x = unchecked(1664525 * x + 1013904223);
            numbers[i] = ((x >> (32 - bits)) - half) / half * scale;
        }
        return numbers;
    }

    private double[] Read()
    {
        if (json.ValueKind == JsonValueKind.Object && json.TryGetProperty("generator", out JsonElement generator))
            return Generate(generator.GetProperty("seed").GetUInt32(), generator.GetProperty("scale").GetDouble(), generator.GetProperty("bits").GetInt32(), Count);
        if (json.ValueKind == JsonValueKind.Number)
            return [json.GetDouble()];
        JsonElement list = json;
        if (json.ValueKind != JsonValueKind.Array && (json.ValueKind != JsonValueKind.Object || !json.TryGetProperty("data", out list)))
            throw new NotReplayedException("not a tensor of numbers");
        var numbers = new double[list.GetArrayLength()];
        int i = 0;
        foreach (JsonElement item in list.EnumerateArray())
            numbers[i++] = Number(item);
        return numbers;
    }

    private static double Number(JsonElement item) => item.ValueKind switch
    {
        JsonValueKind.Number => item.GetDouble(),
        JsonValueKind.True => 1,
        JsonValueKind.False => 0,
        JsonValueKind.String => item.GetString() switch
        {
            "NaN" => double.NaN,
            "Infinity" => double.PositiveInfinity,
            "-Infinity" => double.NegativeInfinity,
            _ => throw new NotReplayedException($"text {item}"),
        },
        _ => throw new NotReplayedException($"{item.ValueKind}"),
    };
}
