using System.Text.Json;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>What the cases of attention/ say by recipes that the library has no name for, as biases and masks that it has, and the way back for their gradients.</summary>
public sealed class AttentionRecipes
{
    private readonly VectorCase vector;
    private readonly int batch, heads, queries, keys;
    private readonly int[] offsets;
    private readonly List<Chain> chains = [];

    public AttentionRecipes(VectorCase vector)
    {
        this.vector = vector;
        int[] query = vector.Need("query").Shape, key = vector.Need("key").Shape;
        if (query.Length != 4)
            throw new NotReplayedException("packed sequences");
        (batch, heads, queries, keys) = (query[0], query[1], query[2], key[2]);
        offsets = vector.Parameter("query_offset") is { ValueKind: JsonValueKind.Array } ? Integers("query_offset")! : [.. Enumerable.Repeat((int)(vector.Number("query_offset") ?? keys - queries), batch)];
        Slopes();
        Kerple();
        DistancesPerSequence();
        ForgettingGate();
        Lookup();
        SecondDense();
        Masks();
    }

    /// <summary>[h, n] at distance + <see cref="DistanceCentre"/>; null if no recipe makes one. The others likewise.</summary>
    public Grid<double>? DistanceBias { get; private set; }

    public int DistanceCentre { get; private set; }

    public Grid<double>? DenseBias { get; private set; }

    public Grid<double>? RowBias { get; private set; }

    public Grid<double>? ColumnBias { get; private set; }

    public Grid<double>? Mask { get; private set; }

    /// <summary>The gradients of what the recipes read.</summary>
    public IReadOnlyList<Chain> Chains => chains;

    // −m·max(−distance, 0), and +m·j for key j.
    private void Slopes()
    {
        string? form = vector.Text("alibi_form");
        if (form is null or "symmetric" || (form == "one_sided" && vector.Flag("is_causal") && vector.Parameter("prefix_length") is null))
            return;
        Grid<double> slopes = vector.Need("alibi_slopes").Grid;
        if (slopes.Shape.Length == 2 && slopes.Shape[0] > 1)
            throw new NotReplayedException($"alibi_form {form} per batch");
        var terms = new List<(int, string, int, double)>();
        if (form == "key_column")
        {
            Free("column_bias");
            ColumnBias = Grid.Zeros<double>(1, heads, keys);
            for (int h = 0; h < heads; h++)
            {
                for (int j = 0; j < keys; j++)
                {
                    ColumnBias[0, h, j] = slopes.Data[h] * j;
                    terms.Add((h, "column_bias", h * keys + j, j));
                }
            }
        }
        else if (form == "one_sided")
            ByDistance((h, distance) => -slopes.Data[h] * Math.Max(-distance, 0), (h, distance) => -Math.Max(-distance, 0), terms);
        else
            throw new NotReplayedException($"alibi_form {form}");
        chains.Add(new("alibi_slopes", heads, terms));
    }

    // −p·ln(1 + a·|distance|), or −a·|distance|^p.
    private void Kerple()
    {
        if (vector.Text("kerple_form") is not { } form)
            return;
        double[] p = vector.Need("kerple_p").Data, a = vector.Need("kerple_a").Data;
        List<(int, string, int, double)> ofP = [], ofA = [];
        bool log = form == "log";
        double Bias(int h, int d) => log ? -p[h] * Math.Log(1 + a[h] * Math.Abs(d)) : -a[h] * Math.Pow(Math.Abs(d), p[h]);
        double OfP(int h, int d) => log ? -Math.Log(1 + a[h] * Math.Abs(d)) : d == 0 ? 0 : -a[h] * Math.Pow(Math.Abs(d), p[h]) * Math.Log(Math.Abs(d));
        double OfA(int h, int d) => log ? -p[h] * Math.Abs(d) / (1 + a[h] * Math.Abs(d)) : -Math.Pow(Math.Abs(d), p[h]);
        ByDistance(Bias, OfP, ofP);
        ByDistance(null, OfA, ofA);
        chains.Add(new("kerple_p", heads, ofP));
        chains.Add(new("kerple_a", heads, ofA));
    }

    // A distance vector, or its derivative with respect to one number a head alone.
    private void ByDistance(Func<int, int, double>? bias, Func<int, int, double> derivative, List<(int, string, int, double)> terms)
    {
        int least = -(queries - 1 + offsets.Max()), greatest = keys - 1 - offsets.Min(), n = Math.Max(greatest - least + 1, 1);
        if (bias is not null)
        {
            Free("distance_vector");
            if (DistanceBias is not null)
                throw new NotReplayedException("two recipes by distance");
            DistanceBias = Grid.Zeros<double>(heads, n);
            DistanceCentre = -least;
        }
        for (int h = 0; h < heads; h++)
        {
            for (int at = 0; at < n; at++)
            {
                if (bias is not null)
                    DistanceBias![h, at] = bias(h, at + least);
                terms.Add((h, "distance_vector", h * n + at, derivative(h, at + least)));
            }
        }
    }

    // A vector for each sequence too: what it says of every pair.
    private void DistancesPerSequence()
    {
        if (vector.Input("distance_vector") is not { Shape.Length: 3 } vectors)
            return;
        Free("dense_bias");
        int n = vectors.Shape[2], centre = (int)vector.Number("distance_centre")!, at = 0;
        DenseBias = Grid.Zeros<double>(batch, heads, queries, keys);
        var terms = new List<(int, string, int, double)>();
        for (int line = 0; line < batch * heads; line++)
        {
            for (int i = 0; i < queries; i++)
            {
                for (int j = 0; j < keys; j++, at++)
                {
                    int entry = line * n + j - i - offsets[line / heads] + centre;
                    DenseBias.Data[at] = vectors.Data[entry];
                    terms.Add((entry, "dense_bias", at, 1));
                }
            }
        }
        chains.Add(new("distance_vector", vectors.Count, terms));
    }

    // c[p] − c[j], c the running sum of ln sigmoid(f).
    private void ForgettingGate()
    {
        if (vector.Input("forget_logits")?.Grid is not { } logits)
            return;
        Free("row_bias");
        Free("column_bias");
        RowBias = Grid.Zeros<double>(batch, heads, queries);
        ColumnBias = Grid.Zeros<double>(batch, heads, keys);
        var terms = new List<(int, string, int, double)>();
        for (int row = 0; row < batch * heads; row++)
        {
            int offset = offsets[row / heads];
            double sum = 0;
            for (int j = 0; j < keys; j++)
            {
                double f = logits.Data[row * keys + j], derivative = 1 / (1 + Math.Exp(f));
                sum -= Math.Log(1 + Math.Exp(-f));
                ColumnBias.Data[row * keys + j] = -sum;
                if (j >= offset && j - offset < queries)
                    RowBias.Data[row * queries + j - offset] = sum;
                for (int after = j; after < keys; after++)
                {
                    terms.Add((row * keys + j, "column_bias", row * keys + after, -derivative));
                    if (after >= offset && after - offset < queries)
                        terms.Add((row * keys + j, "row_bias", row * queries + after - offset, derivative));
                }
            }
        }
        chains.Add(new("forget_logits", batch * heads * keys, terms));
    }

    // table[index[b, i, j], h], beside a dense bias perhaps.
    private void Lookup()
    {
        if (vector.Input("lookup_table")?.Grid is not { } table)
            return;
        Grid<double> index = vector.Need("lookup_index").Grid;
        Grid<double>? beside = vector.Input("dense_bias")?.Grid;
        DenseBias = Grid.Zeros<double>(batch, heads, queries, keys);
        List<(int, string, int, double)> ofTable = [], ofDense = [];
        int at = 0;
        for (int b = 0; b < batch; b++)
        {
            for (int h = 0; h < heads; h++)
            {
                for (int i = 0; i < queries; i++)
                {
                    for (int j = 0; j < keys; j++, at++)
                    {
                        int entry = (int)index[b, i, j];
                        DenseBias.Data[at] = table[entry, h] + (beside is null ? 0 : beside[b, h, i, j]);
                        ofTable.Add((entry * heads + h, "dense_bias", at, 1));
                    }
                }
            }
        }
        chains.Add(new("lookup_table", table.Data.Length, ofTable));
        if (beside is not null && beside.Data.Length != DenseBias.Data.Length)
            throw new NotReplayedException("a lookup beside a shared dense bias");
    }

    // The first of two dense biases, which all queries share, as a bias of the keys.
    private void SecondDense()
    {
        if (vector.Input("dense_bias_2")?.Grid is not { } second)
            return;
        Grid<double> first = vector.Need("dense_bias").Grid;
        if (first.Shape[2] != 1)
            throw new NotReplayedException("dense_bias_2");
        Free("column_bias");
        ColumnBias = new(first.Data, first.Shape[0], first.Shape[1], first.Shape[3]);
        DenseBias = second;
        chains.Add(Chain.Of("dense_bias", "column_bias", first.Data.Length));
        chains.Add(Chain.Of("dense_bias_2", "dense_bias", second.Data.Length));
    }

    private void Masks()
    {
        int[]? prefix = Integers("prefix_length"), padding = Integers("leftpad_k"), image = Integers("natten_size"), kernel = Integers("natten_kernel");
        int? chunk = (int?)vector.Number("chunk_size"), dilation = (int?)vector.Number("dilation");
        Grid<double>? documents = vector.Input("document_ids")?.Grid;
        if (prefix is null && padding is null && image is null && chunk is null && dilation is null && documents is null)
            return;
        Free("mask");
        Mask = Grid.Zeros<double>(batch, 1, queries, keys);
        for (int b = 0; b < batch; b++)
        {
            for (int i = 0; i < queries; i++)
            {
                int p = i + offsets[b];
                for (int j = 0; j < keys; j++)
                {
                    bool visible = (prefix is null || j <= p || j < prefix[b]) && (padding is null || j >= padding[b]) && (chunk is null || Floor(p, chunk.Value) == Floor(j, chunk.Value))
                        && (dilation is null || (j - p) % dilation.Value == 0) && (documents is null || documents[b, p] == documents[b, j])
                        && (image is null || (IsNear(p / image[1], j / image[1], image[0], kernel![0]) && IsNear(p % image[1], j % image[1], image[1], kernel[1])));
                    Mask[b, 0, i, j] = visible ? 1 : 0;
                }
            }
        }
    }

    private static int Floor(int x, int size) => (int)Math.Floor(x / (double)size);

    // The window around a place, moved so that it stays inside.
    private static bool IsNear(int query, int key, int length, int window)
    {
        int first = Math.Clamp(query - window / 2, 0, length - window);
        return key >= first && key < first + window;
    }

    private int[]? Integers(string name) => vector.Parameter(name) is { } list ? [.. list.EnumerateArray().Select(x => x.GetInt32())] : null;

    private void Free(string input)
    {
        if (vector.Input(input) is not null)
            throw new NotReplayedException($"a recipe beside {input}");
    }
}
