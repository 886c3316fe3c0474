using TransformerKernels.Tests;
using Xunit;

namespace Alignment.Tests;

public class MatrixProductTests
{
    // Rows, inputs, outputs: on both sides of a register tile, of a packed strip and of a block of terms.
    public static TheoryData<int, int, int> Sizes => new()
    {
        { 1, 1, 1 }, { 5, 3, 7 }, { 6, 16, 32 }, { 7, 17, 33 }, { 13, 257, 31 }, { 61, 300, 129 }, { 259, 65, 70 },
    };

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Product_is_that_of_plain_loops(int rows, int inputs, int outputs)
    {
        using var team = new Team(2);
        float[] x = Seeded.Normal(rows * inputs, 1), weight = Seeded.Normal(outputs * inputs, 2), y = new float[rows * outputs];
        // What stands there doesn't matter, unless it is to be added to.
        y.AsSpan().Fill(float.NaN);
        MatrixProduct.Forward(team, x, weight, y, rows, inputs, outputs);
        Check(y, rows, outputs, inputs, (i, j, p) => (x[i * inputs + p], weight[j * inputs + p]));
        y.AsSpan().Fill(1);
        MatrixProduct.Forward(team, x, weight, y, rows, inputs, outputs, accumulate: true);
        Check(y, rows, outputs, inputs, (i, j, p) => (x[i * inputs + p], weight[j * inputs + p]), before: 1);
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Gradients_are_those_of_plain_loops(int rows, int inputs, int outputs)
    {
        using var team = new Team(2);
        float[] x = Seeded.Normal(rows * inputs, 1), weight = Seeded.Normal(outputs * inputs, 2), dy = Seeded.Normal(rows * outputs, 3);
        float[] dx = new float[rows * inputs], dw = new float[outputs * inputs];
        dx.AsSpan().Fill(float.NaN);
        MatrixProduct.InputGradient(team, dy, weight, dx, rows, inputs, outputs);
        Check(dx, rows, inputs, outputs, (i, j, p) => (dy[i * outputs + p], weight[p * inputs + j]));
        dx.AsSpan().Fill(1);
        MatrixProduct.InputGradient(team, dy, weight, dx, rows, inputs, outputs, accumulate: true);
        Check(dx, rows, inputs, outputs, (i, j, p) => (dy[i * outputs + p], weight[p * inputs + j]), before: 1);
        dw.AsSpan().Fill(1);
        MatrixProduct.WeightGradient(team, dy, x, dw, rows, inputs, outputs);
        Check(dw, outputs, inputs, rows, (i, j, p) => (dy[p * outputs + i], x[p * inputs + j]), before: 1);
    }

    [Fact]
    public void Results_are_bitwise_equal_for_1_2_and_3_threads()
    {
        const int Rows = 101, Inputs = 275, Outputs = 67;
        float[] x = Seeded.Normal(Rows * Inputs, 1), weight = Seeded.Normal(Outputs * Inputs, 2), dy = Seeded.Normal(Rows * Outputs, 3);
        float[] Run(int threads)
        {
            using var team = new Team(threads);
            float[] y = new float[Rows * Outputs], dx = new float[Rows * Inputs], dw = new float[Outputs * Inputs];
            MatrixProduct.Forward(team, x, weight, y, Rows, Inputs, Outputs);
            MatrixProduct.InputGradient(team, dy, weight, dx, Rows, Inputs, Outputs);
            MatrixProduct.WeightGradient(team, dy, x, dw, Rows, Inputs, Outputs);
            return [.. y, .. dx, .. dw];
        }
        float[] one = Run(1);
        Assert.Equal(one, Run(2));
        Assert.Equal(one, Run(3));
    }

    [Fact]
    public void Matrices_that_are_too_small_are_refused()
    {
        using var team = new Team(1);
        Assert.Throws<ArgumentException>(() => MatrixProduct.Forward(team, new float[6], new float[6], new float[3], 2, 3, 2));
    }

    // A sum of n products in float32, in whatever order, fused or not, is within (n + 1) ε Σ|ab| of the true one, ε = 2⁻²⁴.
    private static void Check(float[] result, int rows, int columns, int terms, Func<int, int, int, (float A, float B)> factors, float before = 0)
    {
        const double Epsilon = 1.0 / (1 << 24);
        for (int i = 0; i < rows; i++)
        {
            for (int j = 0; j < columns; j++)
            {
                double sum = before, size = Math.Abs(before);
                for (int p = 0; p < terms; p++)
                {
                    (float a, float b) = factors(i, j, p);
                    sum += (double)a * b;
                    size += Math.Abs((double)a * b);
                }
                double error = Math.Abs(result[i * columns + j] - sum);
                Assert.True(error <= (terms + 1) * Epsilon * size, $"[{i}, {j}] is {result[i * columns + j]}, not {sum}");
            }
        }
    }
}
