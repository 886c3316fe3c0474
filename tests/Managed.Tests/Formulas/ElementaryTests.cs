using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;
using Definition = TransformerKernels.Oracle.Elementary;

namespace TransformerKernels.Tests;

/// <summary>Largest errors of the elementary functions in float32, measured over the whole line, for every width.</summary>
public partial class ElementaryTests
{
    // Every so many-th float of all 2^32; both are odd, so that all trailing bits occur.
    private const uint SmallGrid = 16411, FullGrid = 1021;

    private static readonly Dictionary<string, Func<double, double>> exact = new()
    {
        ["Exp"] = Math.Exp,
        ["Expm1"] = x => Math.Abs(x) < 1 ? 2 * Math.Sinh(x / 2) * Math.Exp(x / 2) : Math.Exp(x) - 1,
        ["Log"] = Math.Log,
        ["Log1p"] = Definition.Log1p,
        ["Tanh"] = Math.Tanh,
        ["Sigmoid"] = Definition.Sigmoid,
        ["Softplus"] = Definition.Softplus,
        ["LogSigmoid"] = Definition.LogSigmoid,
    };

    /// <summary>The rows of the error table of docs/numerics.md: a function and its bound in units in the last place.</summary>
    public static TheoryData<string, double> Bounds()
    {
        var bounds = new TheoryData<string, double>();
        foreach (Match row in Row().Matches(DocumentTests.Read("docs/numerics.md")))
            bounds.Add(row.Groups["function"].Value, double.Parse(row.Groups["ulp"].Value, CultureInfo.InvariantCulture));
        return bounds;
    }

    [Fact]
    public void The_error_table_has_every_function() =>
        Assert.Equal(exact.Keys.Order(), Bounds().Select(row => row.Data.Item1).Order());

    [Theory]
    [MemberData(nameof(Bounds))]
    public void Errors_stay_below_the_bound_of_the_table(string function, double bound) => CheckAll(function, bound, SmallGrid);

    [Theory]
    [Trait("Grid", "Full")]
    [MemberData(nameof(Bounds))]
    public void Errors_stay_below_the_bound_of_the_table_on_a_fine_grid(string function, double bound) => CheckAll(function, bound, FullGrid);

    private static void CheckAll(string function, double bound, uint step)
    {
        Check<Real32>(function, bound, step);
        Check<Lanes128>(function, bound, step);
        Check<Lanes256>(function, bound, step);
        Check<Lanes512>(function, bound, step);
    }

    private static unsafe void Check<TLanes>(string function, double bound, uint step) where TLanes : struct, ILanes<TLanes>
    {
        Func<double, double> truth = exact[function];
        float[] x = new float[TLanes.Count], y = new float[TLanes.Count];
        double worst = 0;
        float worstAt = 0;
        fixed (float* source = x, destination = y)
        {
            for (ulong bits = 0; bits <= uint.MaxValue;)
            {
                for (int lane = 0; lane < x.Length; lane++, bits += step)
                    x[lane] = BitConverter.UInt32BitsToSingle((uint)Math.Min(bits, uint.MaxValue));
                Evaluate(function, TLanes.Load(source)).Store(destination);
                for (int lane = 0; lane < x.Length; lane++)
                {
                    double error = ErrorInUlp(y[lane], truth(x[lane]));
                    if (error > worst)
                        (worst, worstAt) = (error, x[lane]);
                }
            }
        }
        Assert.True(worst <= bound, $"{function} in {typeof(TLanes).Name}: {worst:F3} ulp at {worstAt:G9}; the table says {bound}.");
    }

    private static TLanes Evaluate<TLanes>(string function, TLanes x) where TLanes : struct, ILanes<TLanes> => function switch
    {
        "Exp" => TLanes.Exp(x),
        "Expm1" => TLanes.Expm1(x),
        "Log" => TLanes.Log(x),
        "Log1p" => TLanes.Log1p(x),
        "Tanh" => TLanes.Tanh(x),
        "Sigmoid" => TLanes.Sigmoid(x),
        "Softplus" => TLanes.Softplus(x),
        "LogSigmoid" => TLanes.LogSigmoid(x),
        _ => throw new ArgumentOutOfRangeException(nameof(function), function, "The error table names a function that this test doesn't know."),
    };

    // NaN and ±∞ must stand where they belong; where float32 overflows, ∞ belongs.
    private static double ErrorInUlp(float ours, double truth)
    {
        float rounded = (float)truth;
        if (!float.IsFinite(rounded) || !float.IsFinite(ours))
            return rounded.Equals(ours) ? 0 : double.PositiveInfinity;
        double magnitude = Math.Abs(rounded);
        return Math.Abs(ours - truth) / ((double)MathF.BitIncrement((float)magnitude) - magnitude);
    }

    [GeneratedRegex(@"^\| `(?<function>\w+)` \|[^|]*\| (?<ulp>[\d.]+) \|", RegexOptions.Multiline)]
    private static partial Regex Row();
}
