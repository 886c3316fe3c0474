using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/bias-x-transformers: T5's table, a network of the distance, ALiBi, gates that depend on the data. Contextual positions (CoPE) and gates of each row's own are made of scores, which no bias here is.</summary>
public sealed class XTransformersReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "hf" && vector.File == "bias-x-transformers.json";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> =>
        Replay(vector, heads => AlibiOracle.Slopes(heads), AttentionReplay.Oracle<T>, AttentionReplay.Oracle<T>, AttentionReplay.Oracle<T>);

    public Results<float> Library(VectorCase vector) => Replay(vector, heads => Array.ConvertAll(Alibi.Slopes(heads), slope => (double)slope),
        read => AttentionReplay.Run(read, new PlainScore()), read => AttentionReplay.Run(read, new SlopedPositions()), read => AttentionReplay.Run(read, new TwoSidedGates()));

    private static Results<T> Replay<T>(VectorCase vector, Func<int, double[]> slopes, Func<AttentionReplay.Case, Results<T>> plain, Func<AttentionReplay.Case, Results<T>> positions,
        Func<AttentionReplay.Case, Results<T>> gates) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "scale", "causal", "num_buckets", "max_distance", "query_length", "key_length", "log_distance", "depth", "dim", "heads", "total_heads", "post_log_scale"],
            ["relative_attention_bias", "upstream_output", "position_ids", "gate_logits", "weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2"]);
        int[] shape = (vector.Outputs.GetValueOrDefault("bias") ?? vector.Outputs["output"]).Shape;
        (int batch, int heads, int queries, int keys) = (shape.Length == 4 ? shape[0] : 1, shape[^3], shape[^2], shape[^1]);
        AttentionInputs blank = BiasProbe.Blank(batch, heads, queries, keys);
        var read = new AttentionReplay.Case(blank, null, vector.Input("upstream_output")?.Grid);
        switch (vector.Text("kind"))
        {
            case "t5":
                Grid<double> table = vector.Need("relative_attention_bias").Grid;
                double scale = vector.Number("scale")!.Value;
                return Named("output", BiasProbe.Run(read with
                {
                    Inputs = blank with
                    {
                        BucketTable = new(Array.ConvertAll(table.Data, x => x * scale), table.Shape),
                        MaximumDistance = (int)vector.Number("max_distance")!,
                        IsBidirectional = !vector.Flag("causal"),
                    },
                    Chains = [Chain.Of("relative_attention_bias", "t5_table", table.Data.Length, scale)],
                }, plain));
            case "dynamic":
                var network = new Network(vector, heads, queries, keys);
                return Named("output", BiasProbe.Run(read with { Inputs = blank with { DistanceBias = network.Bias }, Chains = network.Chains }, plain));
            case "alibi":
                double[] all = [.. slopes((int)vector.Number("heads")!), .. new double[heads - (int)vector.Number("heads")!]];
                Grid<double>? ids = vector.Input("position_ids")?.Grid;
                Grid<double>? ofQueries = ids is null ? null : new(ids.Data, batch, 1, queries), ofKeys = ids is null ? null : new(ids.Data, batch, 1, keys);
                Results<T> results = ids is null ? BiasProbe.Run(new(blank with { Slopes = new(all, heads) }), plain) : BiasProbe.Run(new(blank with
                {
                    Formula = new SlopedPositionsFormula(),
                    Captured = [new(ofQueries!, CapturedBy.Query), new(ofKeys!, CapturedBy.Key), new(new(all, heads), CapturedBy.Head)],
                }), positions);
                results.Output("slopes", Array.ConvertAll(all, T.CreateTruncating));
                return results;
            case "data-dependent-alibi":
                return Named("output", Gates());
            case { } kind:
                throw new NotReplayedException(kind);
            default:
                throw new NotReplayedException("no kind");
        }

        // c[i] − c[j], c the running sum of ln sigmoid of the gates; of two directions the second half of the channels for keys ahead, the other way round.
        Results<T> Gates()
        {
            Grid<double> logits = vector.Need("gate_logits").Grid;
            double factor = vector.Number("post_log_scale")!.Value;
            int directions = logits.Shape[1] / heads;
            Grid<double>[] sums = [Grid.Zeros<double>(batch, heads, keys), Grid.Zeros<double>(batch, heads, keys)];
            (string Query, string Key)[] names = directions == 1 ? [("row_bias", "column_bias")] : [("c", "c'"), ("d", "d'")];
            var terms = new List<(int, string, int, double)>();
            for (int row = 0; row < batch * heads * directions; row++)
            {
                int direction = row / heads % directions, line = row / heads / directions * heads + row % heads, sign = direction == 0 ? 1 : -1;
                double sum = 0;
                for (int t = 0; t < keys; t++)
                {
                    double f = logits.Data[row * keys + t], derivative = factor / (1 + Math.Exp(f));
                    sum -= factor * Math.Log(1 + Math.Exp(-f));
                    sums[direction].Data[line * keys + t] = sum;
                    for (int after = t; after < keys; after++)
                    {
                        // The columns of a rank-two bias are −c themselves.
                        terms.Add((row * keys + t, names[direction].Query, line * keys + after, derivative));
                        terms.Add((row * keys + t, names[direction].Key, line * keys + after, directions == 1 ? -derivative : derivative));
                    }
                }
            }
            Chain[] chains = [new("gate_logits", logits.Data.Length, terms)];
            if (directions == 1)
                return BiasProbe.Run(read with { Inputs = blank with { RowBias = sums[0], ColumnBias = new(Array.ConvertAll(sums[0].Data, x => -x), sums[0].Shape) }, Chains = chains }, plain);
            return BiasProbe.Run(read with
            {
                Inputs = blank with
                {
                    Formula = new TwoSidedGatesFormula(),
                    Captured = [new(sums[0], CapturedBy.Query), new(sums[0], CapturedBy.Key), new(sums[1], CapturedBy.Query), new(sums[1], CapturedBy.Key)],
                },
                Captured = ["c", "c'", "d", "d'"],
                Chains = chains,
            }, gates);
        }
    }

    private static Results<T> Named<T>(string name, Results<T> results) where T : unmanaged
    {
        var named = new Results<T>();
        named.Output(name, results.Outputs["bias"].Values, results.Outputs["bias"].Batch, results.Outputs["bias"].Heads);
        foreach ((string gradientName, Result<T> gradient) in results.Gradients)
            named.Gradient(gradientName, gradient.Values, magnitude: gradient.Magnitude);
        return named;
    }

    /// <summary>A bias by distance that a small network makes of i − j, or of its logarithm with sign: linear layers with SiLU between them.</summary>
    private sealed class Network
    {
        private readonly double[][] weights, biases;
        private readonly List<(int, string, int, double)>[] ofWeights, ofBiases;

        public Network(VectorCase vector, int heads, int queries, int keys)
        {
            int layers = (int)vector.Number("depth")! + 1, distances = queries + keys - 1;
            weights = [.. Enumerable.Range(0, layers).Select(layer => vector.Need($"weight_{layer}").Data)];
            biases = [.. Enumerable.Range(0, layers).Select(layer => vector.Need($"bias_{layer}").Data)];
            ofWeights = [.. weights.Select(_ => new List<(int, string, int, double)>())];
            ofBiases = [.. weights.Select(_ => new List<(int, string, int, double)>())];
            Bias = Grid.Zeros<double>(heads, distances);
            for (int at = 0; at < distances; at++)
            {
                double behind = keys - 1 - at;
                Run(vector.Flag("log_distance") ? Math.Sign(behind) * Math.Log(Math.Abs(behind) + 1) : behind, at);
            }
            Chains = [.. Enumerable.Range(0, layers).SelectMany(layer => (Chain[])[new($"weight_{layer}", weights[layer].Length, ofWeights[layer]), new($"bias_{layer}", biases[layer].Length, ofBiases[layer])])];
        }

        /// <summary>[h, n], the centre at Sk − 1.</summary>
        public Grid<double> Bias { get; }

        public IReadOnlyList<Chain> Chains { get; }

        private void Run(double input, int at)
        {
            int layers = weights.Length;
            double[][] entering = new double[layers][], sums = new double[layers][];
            double[] x = [input];
            for (int layer = 0; layer < layers; layer++)
            {
                entering[layer] = x;
                sums[layer] = [.. biases[layer]];
                for (int row = 0; row < sums[layer].Length; row++)
                    for (int column = 0; column < x.Length; column++)
                        sums[layer][row] += weights[layer][row * x.Length + column] * x[column];
                x = Array.ConvertAll(sums[layer], sum => sum / (1 + Math.Exp(-sum)));
            }
            for (int head = 0; head < Bias.Shape[0]; head++)
            {
                Bias[head, at] = sums[^1][head];
                double[] arriving = new double[Bias.Shape[0]];
                arriving[head] = 1;
                for (int layer = layers - 1; layer >= 0; layer--)
                {
                    double[] before = entering[layer], next = new double[before.Length];
                    for (int row = 0; row < arriving.Length; row++)
                    {
                        ofBiases[layer].Add((row, "distance_vector", head * Bias.Shape[1] + at, arriving[row]));
                        for (int column = 0; column < before.Length; column++)
                        {
                            ofWeights[layer].Add((row * before.Length + column, "distance_vector", head * Bias.Shape[1] + at, arriving[row] * before[column]));
                            next[column] += arriving[row] * weights[layer][row * before.Length + column];
                        }
                    }
                    for (int column = 0; column < next.Length && layer > 0; column++)
                    {
                        double sum = sums[layer - 1][column], share = 1 / (1 + Math.Exp(-sum));
                        next[column] *= share * (1 + sum * (1 - share));
                    }
                    arriving = next;
                }
            }
        }
    }
}
