using TransformerKernels.Tests;
using Xunit;

namespace Alignment.Tests;

public class SwiGluTests
{
    // More than one work item, and a rest that fills no vector.
    private const int Count = 2 * 8192 + 13;
    private const double Tolerance = 1e-6, Step = 1e-5;

    private readonly float[] gate = Seeded.Normal(Count, 1, scale: 3), up = Seeded.Normal(Count, 2), upstream = Seeded.Normal(Count, 3);

    [Fact]
    public void Gate_lets_through_its_sigmoid()
    {
        (float[] sigmoid, float[] y) = Forward(2);
        for (int i = 0; i < Count; i++)
        {
            Near(1 / (1 + Math.Exp(-gate[i])), sigmoid[i]);
            Near(Value(gate[i], up[i]), y[i]);
        }
    }

    [Fact]
    public void Gradients_match_finite_differences_and_take_the_inputs_places()
    {
        using var team = new Team(2);
        (float[] sigmoid, _) = Forward(2);
        float[] dGate = [.. gate], dUp = [.. up];
        SwiGlu.Backward(team, upstream, dGate, dUp, sigmoid);
        for (int i = 0; i < Count; i++)
        {
            Near(upstream[i] * (Value(gate[i] + Step, up[i]) - Value(gate[i] - Step, up[i])) / (2 * Step), dGate[i]);
            Near(upstream[i] * (Value(gate[i], up[i] + Step) - Value(gate[i], up[i] - Step)) / (2 * Step), dUp[i]);
        }
    }

    [Fact]
    public void Large_gates_give_no_NaN()
    {
        using var team = new Team(1);
        float[] gates = [-200, 200, -200, 200, -200, 200, -200, 200, -200, 200, -200, 200, -200, 200, -200, 200, -200], ones = new float[gates.Length];
        float[] sigmoid = new float[gates.Length], y = new float[gates.Length];
        ones.AsSpan().Fill(1);
        SwiGlu.Forward(team, gates, ones, sigmoid, y);
        Assert.Equal(gates.Select(g => g > 0 ? g : 0), y.Select(value => MathF.Abs(value) < 1e-30f ? 0 : value));
        SwiGlu.Backward(team, [.. ones], gates, ones, sigmoid);
        Assert.All([.. gates, .. ones], value => Assert.True(float.IsFinite(value)));
    }

    private static double Value(double gate, double up) => gate / (1 + Math.Exp(-gate)) * up;

    private static void Near(double expected, float actual) => Assert.Equal(expected, actual, Tolerance * Math.Max(1, Math.Abs(expected)));

    private (float[] Sigmoid, float[] Y) Forward(int threads)
    {
        using var team = new Team(threads);
        float[] sigmoid = new float[Count], y = new float[Count];
        SwiGlu.Forward(team, gate, up, sigmoid, y);
        return (sigmoid, y);
    }
}
