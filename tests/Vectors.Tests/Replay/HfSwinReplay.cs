using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>
/// hf/attention-swin: Swin's windows as sequences of a batch, shifted and padded as its module does, and its bias by itself. Swin v2's cosines are attention over normalised queries and keys, and a network makes
/// its table. BEiT's table has rows for a class token, which stands in no window: a dense bias.
/// </summary>
public sealed class HfSwinReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "hf" && vector.File == "attention-swin.json";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Replay(vector, AttentionReplay.Oracle<T>);

    public Results<float> Library(VectorCase vector) => Replay(vector, read => AttentionReplay.Run(read, new PlainScore()));

    private static Results<T> Replay<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
    {
        switch (vector.Text("kind"))
        {
            case "swin-bias":
                return Bias(vector, run);
            case "swin":
                return new Windows(vector).Replay(run);
            case "swin-v2":
                return new Windows(vector).ReplayCosines(run);
            case "beit":
                return Beit(vector, run);
            case { } kind:
                throw new NotReplayedException(kind);
            default:
                throw new NotReplayedException("no kind");
        }
    }

    // A query of zeros that sees one key has that pair's bias as its log-sum-exp; a table that holds its rows' numbers says which row it is.
    private static Results<T> Bias<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "window_size"], ["relative_position_bias_table", "upstream_bias"]);
        Grid<double> table = vector.Need("relative_position_bias_table").Grid, upstream = vector.Need("upstream_bias").Grid;
        int[] window = [.. vector.Parameter("window_size")!.Value.EnumerateArray().Select(x => x.GetInt32())];
        int heads = table.Shape[1], n = window[0] * window[1];
        Grid<double> numbers = Grid.Zeros<double>(table.Shape[0], 1);
        for (int row = 0; row < numbers.Data.Length; row++)
            numbers.Data[row] = row;
        T[] index = new T[n * n], bias = new T[heads * n * n], gradient = new T[table.Data.Length];
        double magnitude = 0;
        for (int key = 0; key < n; key++)
        {
            Grid<double> mask = Grid.Zeros<double>(1, 1, 1, n), arriving = Grid.Zeros<double>(1, heads, n);
            mask.Data[key] = 1;
            for (int at = 0; at < heads * n; at++)
                arriving.Data[at] = upstream.Data[at * n + key];
            AttentionInputs Of(Grid<double> cells) => new()
            {
                Query = Grid.Zeros<double>(1, cells.Shape[1], n, 1), Key = Grid.Zeros<double>(1, cells.Shape[1], n, 1), Value = Grid.Zeros<double>(1, cells.Shape[1], n, 1), Mask = mask,
                CellTable = cells, WindowHeight = window[0], WindowWidth = window[1],
            };
            Results<T> one = run(new(Of(table), Grid.Zeros<double>(1, heads, n, 1), arriving));
            T[] rows = run(new(Of(numbers))).Outputs["lse"].Values;
            for (int at = 0; at < heads * n; at++)
                bias[at * n + key] = one.Outputs["lse"].Values[at];
            for (int at = 0; at < n; at++)
                index[at * n + key] = rows[at];
            for (int at = 0; at < gradient.Length; at++)
                gradient[at] += one.Gradients["table_2d"].Values[at];
            magnitude += one.Gradients["table_2d"].Magnitude;
        }
        var results = new Results<T>();
        results.Output("relative_position_index", index);
        results.Output("bias", bias, 1, heads);
        results.Gradient("relative_position_bias_table", gradient, magnitude: magnitude);
        return results;
    }

    // The last three rows are those of the class token; a table of another window is interpolated between the centres of its cells.
    private static Results<T> Beit<T>(VectorCase vector, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["kind", "window_size", "window_size_now", "scale"], ["query", "key", "value", "relative_position_bias_table", "relative_position_index", "upstream_output"]);
        Grid<double> table = vector.Need("relative_position_bias_table").Grid, query = vector.Need("query").Grid;
        int[] window = Integers("window_size"), now = Integers("window_size_now"), index = Array.ConvertAll(vector.Need("relative_position_index").Data, x => (int)x);
        (int heads, int length) = (query.Shape[1], query.Shape[2]);
        (int height, int width, int newHeight, int newWidth) = (2 * window[0] - 1, 2 * window[1] - 1, 2 * now[0] - 1, 2 * now[1] - 1);
        Grid<double> bias = Grid.Zeros<double>(1, heads, length, length);
        var terms = new List<(int, string, int, double)>();
        for (int at = 0; at < bias.Data.Length; at++)
        {
            int h = at / (length * length), row = index[at % (length * length)];
            foreach ((int from, double share) in row < newHeight * newWidth ? Cells(row) : [(row - newHeight * newWidth + height * width, 1)])
            {
                bias.Data[at] += share * table[from, h];
                terms.Add((from * heads + h, "dense_bias", at, share));
            }
        }
        Results<T> results = run(new(new AttentionInputs { Query = query, Key = vector.Need("key").Grid, Value = vector.Need("value").Grid, Scale = vector.Number("scale"), DenseBias = bias }, vector.Need("upstream_output").Grid)
        {
            Chains = [new("relative_position_bias_table", table.Data.Length, terms)],
        });
        results.Output("bias", BiasProbe.Run(new(BiasProbe.Blank(1, heads, length, length) with { DenseBias = bias }), run).Outputs["bias"].Values, 1, heads);
        return results;

        int[] Integers(string name) => [.. vector.Parameter(name)!.Value.EnumerateArray().Select(x => x.GetInt32())];

        IEnumerable<(int From, double Share)> Cells(int row) => Between(row / newWidth, newHeight, height).SelectMany(y => Between(row % newWidth, newWidth, width), (y, x) => (y.At * width + x.At, y.Share * x.Share));

        static (int At, double Share)[] Between(int at, int count, int of)
        {
            double place = Math.Max(0, (at + 0.5) * of / count - 0.5);
            int first = (int)place;
            return place == first ? [(first, 1)] : [(first, 1 - (place - first)), (Math.Min(first + 1, of - 1), place - first)];
        }
    }

    private sealed class Windows
    {
        private readonly VectorCase vector;
        private readonly int batch, heads, size, height, width, window, shift, across, count;
        private readonly int[] tokens; // [window, cell] of an image: which token stands there, −1 for padding
        private readonly int[] regions;

        public Windows(VectorCase vector)
        {
            vector.KnowsOnly(["kind", "height", "width", "window_size", "shift_size", "scale", "shift_mask_value", "pretrained_window_size", "logit_scale_max"],
                ["query", "key", "value", "relative_position_bias_table", "relative_position_index", "upstream_output", "logit_scale", "mlp_weight_1", "mlp_bias_1", "mlp_weight_2"]);
            this.vector = vector;
            int[] shape = vector.Need("query").Shape;
            (batch, heads, size) = (shape[0], shape[1], shape[3]);
            (height, width, window, shift) = (Number("height"), Number("width"), Number("window_size"), Number("shift_size"));
            int down = (height + window - 1) / window;
            across = (width + window - 1) / window;
            count = down * across;
            tokens = new int[count * window * window];
            regions = new int[tokens.Length];
            for (int at = 0; at < tokens.Length; at++)
            {
                int cell = at % (window * window), y = at / (window * window) / across * window + cell / window, x = at / (window * window) % across * window + cell % window;
                int fromY = (y + shift) % (down * window), fromX = (x + shift) % (across * window);
                tokens[at] = fromY < height && fromX < width ? fromY * width + fromX : -1;
                regions[at] = 3 * Region(y, down * window) + Region(x, across * window);
            }
        }

        public Results<T> Replay<T>(Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
        {
            Grid<double> table = vector.Need("relative_position_bias_table").Grid;
            var read = new AttentionReplay.Case(new AttentionInputs
            {
                Query = Cut(vector.Need("query").Grid), Key = Cut(vector.Need("key").Grid), Value = Cut(vector.Need("value").Grid), Scale = vector.Number("scale"),
                CellTable = table, WindowHeight = window, WindowWidth = window, DenseBias = shift == 0 ? null : Mask(vector.Number("shift_mask_value")!.Value),
            }, Cut(vector.Need("upstream_output").Grid))
            { Chains = [Back("query"), Back("key"), Back("value"), Chain.Of("relative_position_bias_table", "table_2d", table.Data.Length)] };
            return Whole(run(read));
        }

        // Softmax of e^min(τ, τmax)·cos of query and key + 16·sigmoid of a network of the logarithms of the differences.
        public Results<T> ReplayCosines<T>(Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, IFloatingPointIeee754<T>
        {
            double[] logits = vector.Need("logit_scale").Data, weight1 = vector.Need("mlp_weight_1").Data, bias1 = vector.Need("mlp_bias_1").Data, weight2 = vector.Need("mlp_weight_2").Data;
            double largest = vector.Number("logit_scale_max")!.Value;
            double[] scales = Array.ConvertAll(logits, logit => Math.Exp(Math.Min(logit, largest)));
            int side = 2 * window - 1, pretrained = Number("pretrained_window_size"), half = pretrained > 0 ? pretrained : window;
            Grid<double> coordinates = Grid.Zeros<double>(side, side, 2), table = Grid.Zeros<double>(side * side, heads);
            List<(int, string, int, double)> ofWeight1 = [], ofBias1 = [], ofWeight2 = [], ofScale = [];
            for (int cell = 0; cell < side * side; cell++)
            {
                double[] x = [Spread(cell / side), Spread(cell % side)], hidden = new double[bias1.Length];
                (coordinates.Data[2 * cell], coordinates.Data[2 * cell + 1]) = (x[0], x[1]);
                for (int m = 0; m < hidden.Length; m++)
                    hidden[m] = Math.Max(0, bias1[m] + weight1[2 * m] * x[0] + weight1[2 * m + 1] * x[1]);
                for (int h = 0; h < heads; h++)
                {
                    double sum = hidden.Select((value, m) => value * weight2[h * hidden.Length + m]).Sum(), sigmoid = 1 / (1 + Math.Exp(-sum)), slope = 16 * sigmoid * (1 - sigmoid);
                    table[cell, h] = 16 * sigmoid;
                    for (int m = 0; m < hidden.Length; m++)
                    {
                        ofWeight2.Add((h * hidden.Length + m, "table_2d", cell * heads + h, slope * hidden[m]));
                        double back = hidden[m] > 0 ? slope * weight2[h * hidden.Length + m] : 0;
                        ofBias1.Add((m, "table_2d", cell * heads + h, back));
                        ofWeight1.Add((2 * m, "table_2d", cell * heads + h, back * x[0]));
                        ofWeight1.Add((2 * m + 1, "table_2d", cell * heads + h, back * x[1]));
                    }
                }
            }
            (Grid<double> query, Chain ofQuery) = Normalised("query", h => scales[h], ofScale);
            (Grid<double> key, Chain ofKey) = Normalised("key", _ => 1, null);
            Results<T> whole = Whole(run(new(new AttentionInputs
            {
                Query = query, Key = key, Value = Cut(vector.Need("value").Grid), Scale = 1, CellTable = table, WindowHeight = window, WindowWidth = window, DenseBias = shift == 0 ? null : Mask(vector.Number("shift_mask_value")!.Value),
            }, Cut(vector.Need("upstream_output").Grid))
            {
                Chains = [ofQuery, ofKey, Back("value"), new("logit_scale", heads, ofScale), new("mlp_weight_1", weight1.Length, ofWeight1), new("mlp_bias_1", bias1.Length, ofBias1), new("mlp_weight_2", weight2.Length, ofWeight2)],
            }));
            whole.Output("relative_coords_table", Array.ConvertAll(coordinates.Data, T.CreateTruncating));
            whole.Output("bias_table", Array.ConvertAll(table.Data, T.CreateTruncating));
            return whole;

            // A difference of −(window − 1) .. window − 1 as the logarithm that spreads it over −1 .. 1.
            double Spread(int at)
            {
                double x = 8.0 * (at - (window - 1)) / (half - 1);
                return Math.Sign(x) * Math.Log2(Math.Abs(x) + 1) / 3;
            }

            // factor · x / |x| of every row, and the gradients of rows and of the exponent of the factor.
            (Grid<double>, Chain) Normalised(string name, Func<int, double> factor, List<(int, string, int, double)>? ofExponent)
            {
                Grid<double> x = vector.Need(name).Grid, parts = Grid.Zeros<double>(batch * count, heads, window * window, size);
                var terms = new List<(int, string, int, double)>();
                foreach ((int start, int part) in Places().Where(place => place.Part % size == 0))
                {
                    int h = start / (height * width * size) % heads;
                    double[] row = x.Data[start..(start + size)];
                    double norm = Math.Sqrt(row.Sum(value => value * value));
                    for (int e = 0; e < size; e++)
                    {
                        parts.Data[part + e] = factor(h) * row[e] / norm;
                        if (logits[h] < largest)
                            ofExponent?.Add((h, name, part + e, parts.Data[part + e]));
                        for (int f = 0; f < size; f++)
                            terms.Add((start + f, name, part + e, factor(h) / norm * ((e == f ? 1 : 0) - row[e] * row[f] / (norm * norm))));
                    }
                }
                return (parts, new(name, x.Data.Length, terms));
            }
        }

        // −100 (or twice that), not −∞, between what the shift brought together.
        private Grid<double> Mask(double hidden)
        {
            int cells = window * window;
            Grid<double> mask = Grid.Zeros<double>(batch * count, 1, cells, cells);
            for (int n = 0; n < batch * count; n++)
                for (int i = 0; i < cells; i++)
                    for (int j = 0; j < cells; j++)
                        mask[n, 0, i, j] = regions[n % count * cells + i] == regions[n % count * cells + j] ? 0 : hidden;
            return mask;
        }

        private Results<T> Whole<T>(Results<T> results) where T : unmanaged
        {
            var whole = new Results<T>();
            whole.Output("output", Join(results.Outputs["output"].Values), batch, heads);
            foreach ((string name, Result<T> gradient) in results.Gradients)
                whole.Gradient(name, gradient.Values, magnitude: gradient.Magnitude);
            return whole;
        }

        private int Number(string name) => (int)vector.Number(name)!;

        // The rolled image's last windows hold rows of both of its ends.
        private int Region(int at, int length) => shift == 0 || at < length - window ? 0 : at < length - shift ? 1 : 2;

        private IEnumerable<(int Whole, int Part)> Places()
        {
            int cells = window * window;
            for (int b = 0; b < batch; b++)
                for (int h = 0; h < heads; h++)
                    for (int at = 0; at < tokens.Length; at++)
                        for (int e = 0; e < size && tokens[at] >= 0; e++)
                            yield return (((b * heads + h) * height * width + tokens[at]) * size + e, (((b * count + at / cells) * heads + h) * cells + at % cells) * size + e);
        }

        private Grid<double> Cut(Grid<double> x)
        {
            Grid<double> parts = Grid.Zeros<double>(batch * count, heads, window * window, size);
            foreach ((int whole, int part) in Places())
                parts.Data[part] = x.Data[whole];
            return parts;
        }

        private T[] Join<T>(T[] parts)
        {
            var joined = new T[batch * heads * height * width * size];
            foreach ((int whole, int part) in Places())
                joined[whole] = parts[part];
            return joined;
        }

        private Chain Back(string name) => new(name, batch * heads * height * width * size, [.. Places().Select(place => (place.Whole, name, place.Part, 1.0))]);
    }
}
