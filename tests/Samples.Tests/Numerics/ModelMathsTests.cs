using TransformerKernels;
using TransformerKernels.Tests;
using Xunit;

namespace Alignment.Tests;

/// <summary>Every operation of the model's mathematics against its definition in double, on whatever runs it.</summary>
public sealed class ModelMathsTests : IDisposable
{
    // Half a unit in the last place of 1.
    private const double Unit = 1.0 / (1 << 24);

    private readonly ModelMaths maths = MathsUnderTest.Open();
    private readonly List<TensorBuffer> buffers = [];

    public void Dispose()
    {
        maths.Device.Synchronize();
        foreach (TensorBuffer buffer in buffers)
            buffer.Dispose();
        maths.Dispose();
    }

    // Rows, inputs, outputs: on both sides of the tiles that any of the devices has; the long ones are summed in pieces.
    public static TheoryData<int, int, int> Sizes => new()
    {
        { 1, 1, 1 }, { 15, 3, 7 }, { 16, 16, 64 }, { 17, 17, 65 }, { 13, 257, 31 }, { 61, 300, 129 }, { 259, 65, 70 }, { 1031, 20, 33 }, { 3, 1031, 5 },
    };

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Products_are_those_of_the_definition(int rows, int inputs, int outputs)
    {
        float[] x = Seeded.Normal(rows * inputs, 1), weight = Seeded.Normal(outputs * inputs, 2), other = Seeded.Normal(rows * outputs, 3);
        TensorBuffer y = Put(Enumerable.Repeat(float.NaN, rows * outputs).ToArray(), rows, outputs), addend = Put(other, rows, outputs);
        (float, float) Factors(int i, int j, int p) => (x[i * inputs + p], weight[j * inputs + p]);
        maths.Product(Put(x, rows, inputs), Put(weight, outputs, inputs), y);
        CheckProduct(y, rows, outputs, inputs, Factors, new float[other.Length]);
        maths.Product(Put(x, rows, inputs), Put(weight, outputs, inputs), y, addend);
        CheckProduct(y, rows, outputs, inputs, Factors, other);
        maths.Product(Put(x, rows, inputs), Put(weight, outputs, inputs), addend, addend);
        Assert.Equal(y.ToArray<float>(), addend.ToArray<float>());
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Gradients_of_a_product_are_those_of_the_definition(int rows, int inputs, int outputs)
    {
        float[] x = Seeded.Normal(rows * inputs, 1), weight = Seeded.Normal(outputs * inputs, 2), dy = Seeded.Normal(rows * outputs, 3);
        float[] before = Seeded.Normal(rows * inputs, 4), weightBefore = Seeded.Normal(outputs * inputs, 5);
        TensorBuffer dx = Put(Enumerable.Repeat(float.NaN, rows * inputs).ToArray(), rows, inputs), dw = Put(weightBefore, outputs, inputs);
        (float, float) Factors(int i, int j, int p) => (dy[i * outputs + p], weight[p * inputs + j]);
        maths.ProductInputGradient(Put(dy, rows, outputs), Put(weight, outputs, inputs), dx);
        CheckProduct(dx, rows, inputs, outputs, Factors, new float[before.Length]);
        dx.CopyFrom<float>(before);
        maths.ProductInputGradient(Put(dy, rows, outputs), Put(weight, outputs, inputs), dx, dx);
        CheckProduct(dx, rows, inputs, outputs, Factors, before);
        maths.ProductWeightGradient(Put(dy, rows, outputs), Put(x, rows, inputs), dw);
        CheckProduct(dw, outputs, inputs, rows, (i, j, p) => (dy[p * outputs + i], x[p * inputs + j]), weightBefore);
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(131, 37)]
    [InlineData(66, 64)]
    [InlineData(5, 1000)]
    public void Norm_and_its_gradients_are_those_of_the_definition(int rows, int width)
    {
        const float Epsilon = 1e-5f;
        float[] x = Seeded.Normal(rows * width, 1), weight = Seeded.Normal(width, 2), upstream = Seeded.Normal(rows * width, 3);
        float[] dxBefore = Seeded.Normal(rows * width, 4), dwBefore = Seeded.Normal(width, 5);
        TensorBuffer y = Put(new float[x.Length], rows, width), inverse = Put(new float[rows], rows), dx = Put(dxBefore, rows, width), dw = Put(dwBefore, width);
        maths.Norm(Put(x, rows, width), Put(weight, width), Epsilon, y, inverse);
        maths.NormBackward(Put(upstream, rows, width), Put(x, rows, width), Put(weight, width), inverse, dx, dw);

        float[] ours = y.ToArray<float>(), oursInverse = inverse.ToArray<float>(), oursDx = dx.ToArray<float>(), oursDw = dw.ToArray<float>();
        double[] wantedDw = Array.ConvertAll(dwBefore, w => (double)w), sizesDw = Array.ConvertAll(dwBefore, w => Math.Abs((double)w));
        for (int row = 0; row < rows; row++)
        {
            ReadOnlySpan<float> rowX = x.AsSpan(row * width, width), rowUp = upstream.AsSpan(row * width, width);
            double square = 0;
            foreach (float value in rowX)
                square += (double)value * value;
            double rms = Math.Sqrt(square / width + Epsilon), mean = 0, size = 0;
            Near(1 / rms, oursInverse[row], width * Unit / rms);
            for (int i = 0; i < width; i++)
            {
                double normed = rowX[i] / rms, term = rowUp[i] * weight[i] * normed;
                (mean, size) = (mean + term / width, size + Math.Abs(term) / width);
                wantedDw[i] += rowUp[i] * normed;
                sizesDw[i] += Math.Abs(rowUp[i] * normed);
            }
            for (int i = 0; i < width; i++)
            {
                double normed = rowX[i] / rms;
                Near(normed * weight[i], ours[row * width + i], (width + 4) * Unit * Math.Abs(normed * weight[i]));
                double wanted = dxBefore[row * width + i] + (rowUp[i] * weight[i] - normed * mean) / rms;
                double terms = Math.Abs(dxBefore[row * width + i]) + (Math.Abs(rowUp[i] * weight[i]) + Math.Abs(normed) * size) / rms;
                Near(wanted, oursDx[row * width + i], (2 * width + 8) * Unit * terms);
            }
        }
        for (int i = 0; i < width; i++)
            Near(wantedDw[i], oursDw[i], (rows + width + 4) * Unit * sizesDw[i]);
    }

    [Fact]
    public void Gate_and_its_gradients_are_those_of_the_definition()
    {
        const int Rows = 77, Width = 31, Count = Rows * Width;
        // σ is right to a few units in the last place, and so is what is made of it; 1 − σ may cancel.
        const double Within = 16 * Unit;
        float[] gate = Seeded.Normal(Count, 1, scale: 3), up = Seeded.Normal(Count, 2), upstream = Seeded.Normal(Count, 3);
        (gate[0], gate[1]) = (-200, 200);
        TensorBuffer g = Put(gate, Rows, Width), u = Put(up, Rows, Width), sigmoid = Put(new float[Count], Rows, Width), y = Put(new float[Count], Rows, Width);
        maths.Gate(g, u, sigmoid, y);
        maths.GateBackward(Put(upstream, Rows, Width), g, u, sigmoid);
        float[] oursY = y.ToArray<float>(), oursSigmoid = sigmoid.ToArray<float>(), dGate = g.ToArray<float>(), dUp = u.ToArray<float>();
        for (int i = 0; i < Count; i++)
        {
            double s = 1 / (1 + Math.Exp(-gate[i]));
            Near(s, oursSigmoid[i], Within);
            Near(gate[i] * s * up[i], oursY[i], Within * Math.Max(1, Math.Abs(gate[i] * up[i])));
            Near(upstream[i] * up[i] * s * (1 + gate[i] * (1 - s)), dGate[i], Within * Math.Max(1, Math.Abs(upstream[i] * up[i] * gate[i])));
            Near(upstream[i] * gate[i] * s, dUp[i], Within * Math.Max(1, Math.Abs(upstream[i] * gate[i])));
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(64)]
    [InlineData(67)]
    public void Rows_go_where_the_list_says(int width)
    {
        const int Rows = 41;
        float[] table = Seeded.Normal(Rows * width, 1);
        int[] places = [.. Enumerable.Range(0, 90).Select(i => i * 17 % Rows)], order = [.. Enumerable.Range(0, Rows).Select(i => i * 11 % Rows).Take(30)];
        TensorBuffer gathered = Put(new float[places.Length * width], places.Length, width), scattered = Put(Enumerable.Repeat(7f, Rows * width).ToArray(), Rows, width);
        maths.Gather(Put(table, Rows, width), Put(places), gathered);
        Assert.Equal(places.SelectMany(place => table[(place * width)..((place + 1) * width)]), gathered.ToArray<float>());
        maths.Scatter(gathered.View.Slice(0, 0, order.Length), Put(order), scattered);
        float[] ours = scattered.ToArray<float>(), from = gathered.ToArray<float>();
        for (int row = 0; row < Rows; row++)
        {
            int at = Array.IndexOf(order, row);
            Assert.Equal(at < 0 ? Enumerable.Repeat(7f, width) : from[(at * width)..((at + 1) * width)], ours[(row * width)..((row + 1) * width)]);
        }
    }

    [Fact]
    public void Rows_are_added_by_token_in_their_order()
    {
        const int Vocabulary = 23, Width = 70;
        List<Example> examples = SmallModel.Examples(19);
        using var batch = new TokenBatch(maths.Device);
        batch.Fill(examples);
        float[] values = Seeded.Normal(batch.Tokens.Length * Width, 1), table = new float[Vocabulary * Width];
        TensorBuffer sums = Put(table, Vocabulary, Width);
        maths.AddByToken(Put(values, batch.Tokens.Length, Width), batch, sums);
        // Float32 in the order of the rows: no other sum has these bits.
        for (int row = 0; row < batch.Tokens.Length; row++)
        {
            for (int i = 0; i < Width; i++)
                table[batch.Tokens[row] * Width + i] += values[row * Width + i];
        }
        Assert.Equal(table, sums.ToArray<float>());
        maths.AddByToken(Put(values, batch.Tokens.Length, Width), batch, sums);
        Assert.Equal(Array.ConvertAll(table, sum => 2 * sum), sums.ToArray<float>(), (a, b) => Math.Abs(a - b) <= 100 * Unit * Math.Max(1, Math.Abs(a)));
    }

    [Fact]
    public void Copies_follow_strides_and_write_nothing_else()
    {
        const int Batch = 3, Positions = 4, Width = 5, Capacity = 9, Start = 2;
        float[] data = Seeded.Normal(Batch * Positions * Width, 1);
        TensorBuffer cache = Put(Enumerable.Repeat(7f, Batch * Capacity * Width).ToArray(), Batch, Capacity, Width), vector = Put(new float[data.Length], data.Length);
        maths.Copy(Put(data, Batch, Positions, Width), cache.View.Slice(1, Start, Positions));
        maths.Copy(Put(data, data.Length), vector);
        Assert.Equal(data, vector.ToArray<float>());
        float[] ours = cache.ToArray<float>();
        for (int i = 0; i < ours.Length; i++)
        {
            int column = i % Width, position = i / Width % Capacity - Start, sequence = i / Width / Capacity;
            Assert.Equal(position is >= 0 and < Positions ? data[(sequence * Positions + position) * Width + column] : 7f, ours[i]);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(255)]
    [InlineData(1000)]
    public void Sums_and_means_are_those_of_the_definition(int count)
    {
        float[] values = Seeded.Normal(count, 1);
        int[] starts = [0, 0, count / 3, count / 3 + 1, count];
        TensorBuffer vector = Put(values, count), mean = Put(new float[1], 1), sums = Put(new float[4], 4);
        maths.Mean(vector, mean);
        Near(values.Average(value => (double)value), mean.ToArray<float>()[0], count * Unit * values.Average(Math.Abs));
        maths.SumSegments(vector, Put(starts), sums);
        for (int i = 0; i < 4; i++)
        {
            float[] part = values[starts[i]..starts[i + 1]];
            Near(part.Sum(value => (double)value), sums.ToArray<float>()[i], count * Unit * part.Sum(Math.Abs));
        }
        maths.Fill(vector.View.Slice(0, 0, count - 1), 3);
        Assert.Equal([.. Enumerable.Repeat(3f, count - 1), values[^1]], vector.ToArray<float>());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(13)]
    [InlineData(64)]
    [InlineData(1000)]
    public void The_likeliest_token_is_chosen_and_of_equals_the_first(int vocabulary)
    {
        const int Rows = 37;
        float[] logits = Seeded.Normal(Rows * vocabulary, 1);
        for (int row = 0; row < Rows; row++)
            logits[row * vocabulary + vocabulary / 2] = logits[row * vocabulary + vocabulary - 1] = row % 3 == 0 ? 50 : -50;
        var tokens = new int[Rows];
        maths.Choose(Put(logits, Rows, vocabulary), [], tokens);
        Assert.Equal(Enumerable.Range(0, Rows).Select(row => Array.IndexOf(logits[(row * vocabulary)..((row + 1) * vocabulary)], logits[(row * vocabulary)..((row + 1) * vocabulary)].Max())), tokens);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(13)]
    [InlineData(64)]
    [InlineData(1000)]
    public void Tokens_are_drawn_where_the_distribution_says(int vocabulary)
    {
        const int Rows = 199;
        const double Within = 1e-5;
        float[] logits = Seeded.Normal(Rows * vocabulary, 1, scale: 2);
        double[] draws = [0, .. Enumerable.Range(1, Rows - 1).Select(i => i / (double)Rows)];
        var tokens = new int[Rows];
        maths.Choose(Put(logits, Rows, vocabulary), draws, tokens);
        for (int row = 0; row < Rows; row++)
        {
            double[] weights = Array.ConvertAll(logits[(row * vocabulary)..((row + 1) * vocabulary)], logit => Math.Exp(logit));
            double all = weights.Sum(), below = weights[..tokens[row]].Sum() / all, through = weights[..(tokens[row] + 1)].Sum() / all;
            Assert.InRange(draws[row], below - Within, through + Within);
        }
    }

    // A sum of n products in float32, in whatever order, fused or not, is within (n + 1) ε Σ|ab| of the true one.
    private static void CheckProduct(TensorBuffer result, int rows, int columns, int terms, Func<int, int, int, (float A, float B)> factors, float[] before)
    {
        float[] ours = result.ToArray<float>();
        for (int i = 0; i < rows; i++)
        {
            for (int j = 0; j < columns; j++)
            {
                double sum = before[i * columns + j], size = Math.Abs(sum);
                for (int p = 0; p < terms; p++)
                {
                    (float a, float b) = factors(i, j, p);
                    sum += (double)a * b;
                    size += Math.Abs((double)a * b);
                }
                double error = Math.Abs(ours[i * columns + j] - sum);
                Assert.True(error <= (terms + 1) * Unit * size, $"[{i}, {j}] is {ours[i * columns + j]}, not {sum}");
            }
        }
    }

    private static void Near(double expected, float actual, double within) => Assert.True(Math.Abs(expected - actual) <= within, $"{actual} is not {expected} within {within}");

    private TensorBuffer Put(float[] data, params ReadOnlySpan<long> shape) => Keep(maths.Device.Upload<float>(data, shape));

    private TensorBuffer Put(int[] data) => Keep(maths.Device.Upload<int>(data));

    private TensorBuffer Keep(TensorBuffer buffer)
    {
        buffers.Add(buffer);
        return buffer;
    }
}
