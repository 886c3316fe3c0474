using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>
/// hf/attention-deberta, -shaw, -shaw-clipped, -decomposed, -transfo-xl, -xlnet, -speech: relative keys that meet queries, and position queries that meet keys. Such a term is a number a pair: a dense bias,
/// which the caller makes, and whose gradient goes back to queries, keys and relative keys. WavLM's is a bias by distance with a gate of the query's, which a rule applies.
/// </summary>
public sealed class HfContentReplay : IReplay
{
    private static readonly string[] Files =
        ["attention-deberta.json", "attention-shaw.json", "attention-shaw-clipped.json", "attention-decomposed.json", "attention-transfo-xl.json", "attention-xlnet.json", "attention-speech.json"];

    public bool Owns(VectorCase vector) => vector.Folder == "hf" && Files.Contains(vector.File);

    // Bucket tables are integers, though their reference takes logarithms in float32.
    public double? ReferenceError(VectorCase vector) => null;

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> =>
        vector.Text("kind") == "wavlm-bucket" ? Buckets(vector, d => T.CreateTruncating(AttentionOracle.Bucket((int)d, 320, 800, true))) : Replay(vector, AttentionReplay.Oracle<T>, AttentionReplay.Oracle<T>);

    public Results<float> Library(VectorCase vector) => vector.Text("kind") == "wavlm-bucket" ? Buckets<float>(vector, d => BucketedBias.Bucket(d, 320, 800, true))
        : Replay(vector, read => AttentionReplay.Run(read, new PlainScore()), read => AttentionReplay.Run(read, new GatedBias()));

    private static Results<T> Buckets<T>(VectorCase vector, Func<long, T> bucket) where T : unmanaged
    {
        vector.Requires("num_buckets", 320.0);
        vector.Requires("max_distance", 800.0);
        var results = new Results<T>();
        results.Output("bucket", Array.ConvertAll(vector.Need("relative_position").Integers, d => bucket(d)));
        return results;
    }

    private static Results<T> Replay<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> plain, Func<AttentionReplay.Case, Results<T>> gated) where T : unmanaged, IFloatingPointIeee754<T>
    {
        switch ((vector.File, vector.Text("kind")))
        {
            case ("attention-deberta.json", "attention"):
                return plain(Deberta(vector));
            case ("attention-shaw.json", "relative_key" or "relative_key_query") or ("attention-shaw-clipped.json", "clipped"):
                return plain(Shaw(vector));
            case ("attention-decomposed.json", "attention"):
                return plain(Decomposed(vector));
            case ("attention-transfo-xl.json", _) or ("attention-xlnet.json", "attention") or ("attention-speech.json", "conformer"):
                return plain(RelativeKeys(vector));
            case ("attention-speech.json", "wavlm"):
                return Gated(vector, plain, gated);
            case var (_, kind):
                throw new NotReplayedException(kind ?? "no kind");
        }
    }

    // q·posKey + k·posQuery, both rows that of the pair.
    private static AttentionReplay.Case Deberta(VectorCase vector)
    {
        vector.KnowsOnly(["kind", "pos_att_type", "position_buckets", "max_relative_positions", "share_att_key", "scale", "num_attention_heads"],
            ["query", "key", "value", "pos_key", "pos_query", "mask", "relative_position_index", "upstream_output"]);
        var terms = new Terms(vector);
        Grid<double> index = vector.Need("relative_position_index").Grid;
        foreach ((int b, int h, int i, int j) in terms.Pairs)
        {
            if (vector.Input("pos_key") is { } posKey)
                terms.Add((b, h, i, j), terms.Scale, terms.Query(b, h, i), ("pos_key", posKey.Grid, (h * posKey.Shape[1] + (int)index[i, j]) * posKey.Shape[2]));
            if (vector.Input("pos_query") is { } posQuery)
                terms.Add((b, h, i, j), terms.Scale, terms.Key(b, h, j), ("pos_query", posQuery.Grid, (h * posQuery.Shape[1] + (int)index[i, j]) * posQuery.Shape[2]));
        }
        return terms.Case();
    }

    // q·e + perhaps k·e, e the row of the distance, the same for all heads.
    private static AttentionReplay.Case Shaw(VectorCase vector)
    {
        vector.KnowsOnly(["kind", "max_position_embeddings", "scale", "past", "left_max_position_embeddings", "right_max_position_embeddings"],
            ["query", "key", "value", "distance_embedding", "mask", "upstream_output"]);
        var terms = new Terms(vector);
        VectorTensor rows = vector.Need("distance_embedding");
        int past = (int)(vector.Number("past") ?? 0), left = (int)(vector.Number("left_max_position_embeddings") ?? 0), right = (int)(vector.Number("right_max_position_embeddings") ?? 0);
        foreach ((int b, int h, int i, int j) in terms.Pairs)
        {
            int distance = j - i - past, row = vector.Text("kind") == "clipped" ? Math.Clamp(distance, -left, right) + left : (int)vector.Number("max_position_embeddings")! - 1 - distance;
            (string, Grid<double>, int) embedding = ("distance_embedding", rows.Grid, row * rows.Shape[1]);
            terms.Add((b, h, i, j), terms.Scale, terms.Query(b, h, i), embedding);
            if (vector.Text("kind") == "relative_key_query")
                terms.Add((b, h, i, j), terms.Scale, terms.Key(b, h, j), embedding);
        }
        return terms.Case();
    }

    // q·r of the difference of rows + q·r of the difference of columns; tables of another length are interpolated between the centres of their rows.
    private static AttentionReplay.Case Decomposed(VectorCase vector)
    {
        vector.KnowsOnly(["kind", "height", "width", "scale"], ["query", "key", "value", "rel_pos_h", "rel_pos_w", "upstream_output"]);
        var terms = new Terms(vector);
        int height = (int)vector.Number("height")!, width = (int)vector.Number("width")!;
        foreach ((int b, int h, int i, int j) in terms.Pairs)
        {
            Add("rel_pos_h", height, i / width - j / width);
            Add("rel_pos_w", width, i % width - j % width);

            void Add(string name, int length, int difference)
            {
                VectorTensor table = vector.Need(name);
                int rows = table.Shape[0];
                double at = Math.Max(0, (difference + length - 0.5) * rows / (2 * length - 1) - 0.5);
                int first = (int)at;
                terms.Add((b, h, i, j), 1 - (at - first), terms.Query(b, h, i), (name, table.Grid, first * table.Shape[1]));
                if (at > first)
                    terms.Add((b, h, i, j), at - first, terms.Query(b, h, i), (name, table.Grid, Math.Min(first + 1, rows - 1) * table.Shape[1]));
            }
        }
        return terms.Case();
    }

    // (q + u)·k + (q + v)·r of the distance i − j, rows from the largest distance down, + (q + w)·s of same or other segment.
    private static AttentionReplay.Case RelativeKeys(VectorCase vector)
    {
        vector.KnowsOnly(["kind", "scale", "memory_length", "num_heads", "attn_type"],
            ["query", "key", "value", "relative_key", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed", "segment_ids", "pos_bias_u", "pos_bias_v", "mask", "upstream_output"]);
        bool isConformer = vector.Text("kind") == "conformer";
        (string u, string v) = isConformer ? ("pos_bias_u", "pos_bias_v") : ("r_w_bias", "r_r_bias");
        var terms = new Terms(vector);
        VectorTensor relative = vector.Need("relative_key");
        int memory = (int)(vector.Number("memory_length") ?? 0), keys = vector.Need("key").Shape[2], size = relative.Shape[2], farthest = vector.File == "attention-xlnet.json" ? keys : keys - 1;
        Grid<double>? segments = vector.Input("segment_ids")?.Grid;
        terms.AddToQueries(u);
        foreach ((int b, int h, int i, int j) in terms.Pairs)
        {
            int row = farthest - (memory + i - j);
            // There are no rows for keys ahead where none is seen.
            if (row < relative.Shape[1])
            {
                (string, Grid<double>, int) relativeKey = ("relative_key", relative.Grid, (h * relative.Shape[1] + row) * size);
                terms.Add((b, h, i, j), terms.Scale, terms.Query(b, h, i), relativeKey);
                terms.Add((b, h, i, j), terms.Scale, (v, vector.Need(v).Grid, h * size), relativeKey);
            }
            if (segments is null)
                continue;
            int other = segments[b, memory + i] == segments[b, j] ? 0 : 1;
            (string, Grid<double>, int) segment = ("seg_embed", vector.Need("seg_embed").Grid, (other * relative.Shape[0] + h) * size);
            terms.Add((b, h, i, j), terms.Scale, terms.Query(b, h, i), segment);
            terms.Add((b, h, i, j), terms.Scale, ("r_s_bias", vector.Need("r_s_bias").Grid, h * size), segment);
        }
        return terms.Case();
    }

    // gate·b: b T5's bias of both directions; gate = a(c·const − 1) + 2, a and c the sigmoids of sums of four products each.
    private static Results<T> Gated<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> plain, Func<AttentionReplay.Case, Results<T>> gated) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "num_buckets", "max_distance", "scale"],
            ["query", "key", "value", "gate_input", "rel_attn_embed", "gru_rel_pos_weight", "gru_rel_pos_bias", "gru_rel_pos_const", "mask", "upstream_output"]);
        Grid<double> query = vector.Need("query").Grid, input = vector.Need("gate_input").Grid, table = vector.Need("rel_attn_embed").Grid, weight = vector.Need("gru_rel_pos_weight").Grid;
        double[] bias = vector.Need("gru_rel_pos_bias").Data, constant = vector.Need("gru_rel_pos_const").Data;
        (int batch, int heads, int length, int size) = (query.Shape[0], query.Shape[1], query.Shape[2], input.Shape[3]);
        int buckets = table.Shape[0], maximum = (int)vector.Number("max_distance")!, n = 2 * length - 1, half = bias.Length / 2;
        Grid<double> gate = Grid.Zeros<double>(batch, heads, length), line = Grid.Zeros<double>(heads, n);
        List<(int, string, int, double)> ofInput = [], ofWeight = [], ofBias = [], ofConstant = [], ofTable = [];
        for (int row = 0; row < gate.Data.Length; row++)
        {
            int h = row / length % heads;
            double[] sums = new double[2];
            for (int k = 0; k < bias.Length; k++)
            {
                sums[k / half] += bias[k];
                for (int e = 0; e < size; e++)
                    sums[k / half] += weight[k, e] * input.Data[row * size + e];
            }
            (double a, double c) = (1 / (1 + Math.Exp(-sums[0])), 1 / (1 + Math.Exp(-sums[1])));
            gate.Data[row] = a * (c * constant[h] - 1) + 2;
            ofConstant.Add((h, "gate", row, a * c));
            double[] ofSums = [a * (1 - a) * (c * constant[h] - 1), a * c * (1 - c) * constant[h]];
            for (int k = 0; k < bias.Length; k++)
            {
                ofBias.Add((k, "gate", row, ofSums[k / half]));
                for (int e = 0; e < size; e++)
                {
                    ofWeight.Add((k * size + e, "gate", row, ofSums[k / half] * input.Data[row * size + e]));
                    ofInput.Add((row * size + e, "gate", row, ofSums[k / half] * weight[k, e]));
                }
            }
        }
        for (int at = 0; at < heads * n; at++)
        {
            int entry = AttentionOracle.Bucket(at % n - (length - 1), buckets, maximum, true) * heads + at / n;
            line.Data[at] = table.Data[entry];
            ofTable.Add((entry, "line", at, 1));
        }
        Results<T> results = gated(new AttentionReplay.Case(new AttentionInputs
        {
            Query = query, Key = vector.Need("key").Grid, Value = vector.Need("value").Grid, Scale = vector.Number("scale"), Mask = vector.Need("mask").Grid,
            Formula = new GatedBiasFormula(), Captured = [new(gate, CapturedBy.Query), new(line, CapturedBy.HeadAndDistance, length - 1)],
        }, vector.Need("upstream_output").Grid)
        {
            Captured = ["gate", "line"],
            Chains = [new("gate_input", input.Data.Length, ofInput), new("gru_rel_pos_weight", weight.Data.Length, ofWeight), new("gru_rel_pos_bias", bias.Length, ofBias),
                new("gru_rel_pos_const", constant.Length, ofConstant), new("rel_attn_embed", table.Data.Length, ofTable)],
        });
        results.Output("gate", Array.ConvertAll(gate.Data, T.CreateTruncating));
        results.Output("position_bias", BiasProbe.Run(new(BiasProbe.Blank(1, heads, length, length) with { BucketTable = table, MaximumDistance = maximum, IsBidirectional = true }), plain).Outputs["bias"].Values);
        return results;
    }

    /// <summary>A dense bias that is a sum of products of the inputs' numbers, and where its gradient goes.</summary>
    private sealed class Terms
    {
        private readonly VectorCase vector;
        private readonly Grid<double> query, key, bias;
        private readonly Dictionary<string, (int Count, List<(int, string, int, double)> List)> gradients = [];
        private Grid<double>? queries; // with what is added to them

        public Terms(VectorCase vector)
        {
            this.vector = vector;
            (query, key) = (vector.Need("query").Grid, vector.Need("key").Grid);
            bias = Grid.Zeros<double>(query.Shape[0], query.Shape[1], query.Shape[2], key.Shape[2]);
            foreach ((string name, Grid<double> grid) in ((string, Grid<double>)[])[("query", query), ("key", key)])
            {
                for (int at = 0; at < grid.Data.Length; at++)
                    Of(name, grid).Add((at, name, at, 1));
            }
        }

        public double Scale => vector.Number("scale")!.Value;

        public IEnumerable<(int B, int H, int I, int J)> Pairs
        {
            get
            {
                for (int at = 0; at < bias.Data.Length; at++)
                    yield return (at / (bias.Shape[3] * bias.Shape[2] * bias.Shape[1]), at / (bias.Shape[3] * bias.Shape[2]) % bias.Shape[1], at / bias.Shape[3] % bias.Shape[2], at % bias.Shape[3]);
            }
        }

        public (string, Grid<double>, int) Query(int b, int h, int i) => ("query", query, ((b * query.Shape[1] + h) * query.Shape[2] + i) * query.Shape[3]);

        public (string, Grid<double>, int) Key(int b, int h, int j) => ("key", key, ((b * key.Shape[1] + h) * key.Shape[2] + j) * key.Shape[3]);

        /// <summary>factor · a·b of a pair: rows of d numbers of two inputs.</summary>
        public void Add((int B, int H, int I, int J) pair, double factor, (string Name, Grid<double> Grid, int Start) a, (string Name, Grid<double> Grid, int Start) b)
        {
            int at = ((pair.B * bias.Shape[1] + pair.H) * bias.Shape[2] + pair.I) * bias.Shape[3] + pair.J;
            for (int e = 0; e < query.Shape[3]; e++)
            {
                (double x, double y) = (a.Grid.Data[a.Start + e], b.Grid.Data[b.Start + e]);
                bias.Data[at] += factor * x * y;
                Of(a.Name, a.Grid).Add((a.Start + e, "dense_bias", at, factor * y));
                Of(b.Name, b.Grid).Add((b.Start + e, "dense_bias", at, factor * x));
            }
        }

        /// <summary>Adds a row a head, [h, d], to the queries that meet the keys.</summary>
        public void AddToQueries(string name)
        {
            Grid<double> added = vector.Need(name).Grid;
            (int heads, int length, int size) = (query.Shape[1], query.Shape[2], query.Shape[3]);
            queries = Grid.Zeros<double>(query.Shape);
            for (int at = 0; at < query.Data.Length; at++)
            {
                int from = at / (length * size) % heads * size + at % size;
                queries.Data[at] = query.Data[at] + added.Data[from];
                Of(name, added).Add((from, "query", at, 1));
            }
        }

        public AttentionReplay.Case Case() => new(new AttentionInputs
        {
            Query = queries ?? query, Key = key, Value = vector.Need("value").Grid, Scale = Scale, DenseBias = bias, Mask = vector.Input("mask")?.Grid,
        }, vector.Need("upstream_output").Grid)
        {
            Chains = [.. gradients.Select(one => new Chain(one.Key, one.Value.Count, one.Value.List))],
        };

        private List<(int, string, int, double)> Of(string name, Grid<double> grid)
        {
            if (!gradients.TryGetValue(name, out (int, List<(int, string, int, double)>) found))
                gradients.Add(name, found = (grid.Data.Length, []));
            return found.Item2;
        }
    }
}
