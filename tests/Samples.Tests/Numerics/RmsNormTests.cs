using TransformerKernels.Tests;
using Xunit;

namespace Alignment.Tests;

public class RmsNormTests
{
    // More rows than one work item has, and a width that no vector divides.
    private const int Rows = 131, Width = 37;
    private const float Epsilon = 1e-5f;

    // Of values near 1, after sums over a row or over the rows.
    private const double Tolerance = 1e-5;

    // Central differences in double are then right to 1e-9.
    private const double Step = 1e-5;

    private readonly float[] x = Seeded.Normal(Rows * Width, 1), weight = Seeded.Normal(Width, 2), upstream = Seeded.Normal(Rows * Width, 3);

    [Fact]
    public void Rows_are_divided_by_their_root_mean_square()
    {
        using var team = new Team(3);
        (float[] y, float[] inverseRms) = Forward(team);
        for (int row = 0; row < Rows; row++)
        {
            double rms = Rms(row, -1, 0);
            Assert.Equal(1 / rms, inverseRms[row], Tolerance);
            for (int i = 0; i < Width; i++)
                Assert.Equal(x[row * Width + i] / rms * weight[i], y[row * Width + i], Tolerance);
        }
    }

    [Fact]
    public void Gradients_match_finite_differences_and_are_added()
    {
        using var team = new Team(3);
        (_, float[] inverseRms) = Forward(team);
        float[] dx = new float[x.Length], dw = new float[Width];
        dx.AsSpan().Fill(2);
        dw.AsSpan().Fill(3);
        RmsNorm.Backward(team, upstream, x, weight, inverseRms, dx, dw);
        for (int at = 0; at < x.Length; at++)
        {
            (int row, int i) = (at / Width, at % Width);
            double slope = (Loss(row, i, Step) - Loss(row, i, -Step)) / (2 * Step);
            Assert.Equal(2 + slope, dx[at], Tolerance);
        }
        for (int i = 0; i < Width; i++)
        {
            // Linear in the weight: no difference needed.
            double slope = Enumerable.Range(0, Rows).Sum(row => upstream[row * Width + i] * x[row * Width + i] / Rms(row, -1, 0));
            Assert.Equal(3 + slope, dw[i], 5 * Tolerance);
        }
    }

    [Fact]
    public void Results_are_bitwise_equal_for_1_2_and_3_threads()
    {
        float[] Run(int threads)
        {
            using var team = new Team(threads);
            (float[] y, float[] inverseRms) = Forward(team);
            float[] dx = new float[x.Length], dw = new float[Width];
            RmsNorm.Backward(team, upstream, x, weight, inverseRms, dx, dw);
            return [.. y, .. dx, .. dw];
        }
        float[] one = Run(1);
        Assert.Equal(one, Run(2));
        Assert.Equal(one, Run(3));
    }

    private (float[] Y, float[] InverseRms) Forward(Team team)
    {
        float[] y = new float[x.Length], inverseRms = new float[Rows];
        RmsNorm.Forward(team, x, weight, Epsilon, y, inverseRms);
        return (y, inverseRms);
    }

    // With one element of the row moved by so much.
    private double X(int row, int i, int moved, double by) => x[row * Width + i] + (i == moved ? by : 0);

    private double Rms(int row, int moved, double by) => Math.Sqrt(Enumerable.Range(0, Width).Average(i => Math.Pow(X(row, i, moved, by), 2)) + Epsilon);

    private double Loss(int row, int moved, double by)
    {
        double rms = Rms(row, moved, by);
        return Enumerable.Range(0, Width).Sum(i => upstream[row * Width + i] * weight[i] * X(row, i, moved, by) / rms);
    }
}
