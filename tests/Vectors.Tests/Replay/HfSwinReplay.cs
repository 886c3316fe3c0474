using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/attention-swin: Swin's windows as sequences of a batch, shifted and padded as its module does, and its bias by itself. Not Swin v2's cosine, not BEiT's rows for a class token.</summary>
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

    private sealed class Windows
    {
        private readonly VectorCase vector;
        private readonly int batch, heads, size, height, width, window, shift, across, count;
        private readonly int[] tokens; // [window, cell] of an image: which token stands there, −1 for padding
        private readonly int[] regions;

        public Windows(VectorCase vector)
        {
            vector.KnowsOnly(["kind", "height", "width", "window_size", "shift_size", "scale", "shift_mask_value"],
                ["query", "key", "value", "relative_position_bias_table", "relative_position_index", "upstream_output"]);
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
            int cells = window * window;
            Grid<double> table = vector.Need("relative_position_bias_table").Grid;
            var read = new AttentionReplay.Case(new AttentionInputs
            {
                Query = Cut(vector.Need("query").Grid), Key = Cut(vector.Need("key").Grid), Value = Cut(vector.Need("value").Grid), Scale = vector.Number("scale"),
                CellTable = table, WindowHeight = window, WindowWidth = window, DenseBias = shift == 0 ? null : Mask(vector.Number("shift_mask_value")!.Value),
            }, Cut(vector.Need("upstream_output").Grid)) { Chains = [Back("query"), Back("key"), Back("value"), Chain.Of("relative_position_bias_table", "table_2d", table.Data.Length)] };
            Results<T> results = run(read), whole = new();
            whole.Output("output", Join(results.Outputs["output"].Values), batch, heads);
            foreach ((string name, Result<T> gradient) in results.Gradients)
                whole.Gradient(name, gradient.Values, magnitude: gradient.Magnitude);
            return whole;

            // −100, not −∞, between what the shift brought together.
            Grid<double> Mask(double hidden)
            {
                Grid<double> mask = Grid.Zeros<double>(batch * count, 1, cells, cells);
                for (int n = 0; n < batch * count; n++)
                    for (int i = 0; i < cells; i++)
                        for (int j = 0; j < cells; j++)
                            mask[n, 0, i, j] = regions[n % count * cells + i] == regions[n % count * cells + j] ? 0 : hidden;
                return mask;
            }
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
