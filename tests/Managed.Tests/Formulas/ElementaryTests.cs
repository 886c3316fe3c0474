using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>The elementary functions in float32, on vectors of every width and on numbers, against double.</summary>
public partial class ElementaryTests(ITestOutputHelper output)
{
    // Primes, so that the samples meet all low bits.
    private const uint Coarse = 20_011, Fine = 2_003;

    // The largest error in units in the last place: those that IReal documents.
    private static readonly (string Name, IFunction Function, double Bound)[] Functions =
    [
        ("Exp", default(Exp), 1.5), ("Expm1", default(Expm1), 2), ("Log", default(Log), 1.5), ("Log1p", default(Log1p), 2.5), ("Tanh", default(Tanh), 3),
        ("Sigmoid", default(Sigmoid), 3), ("LogSigmoid", default(LogSigmoid), 2.5), ("Softplus", default(Softplus), 2.5), ("Sqrt", default(Sqrt), 0.5), ("Floor", default(Floor), 0),
        ("Abs", default(Abs), 0), ("Relu", default(Relu), 0),
    ];

    public static TheoryData<string> Names => [.. Functions.Select(f => f.Name)];

    [Theory]
    [MemberData(nameof(Names))]
    public void Error_stays_below_the_documented_bound(string name) => Check(name, Coarse);

    [Theory]
    [MemberData(nameof(Names))]
    [Trait("Grid", "Full")]
    public void Error_stays_below_the_documented_bound_densely(string name) => Check(name, Fine);

    [Fact]
    public void The_error_table_of_the_documents_names_every_inexact_function_and_its_bound()
    {
        IEnumerable<(string, double)> table = TableRow().Matches(DocumentTests.Read("docs/numerics.md"))
            .Select(row => (row.Groups["function"].Value, double.Parse(row.Groups["ulp"].Value, CultureInfo.InvariantCulture)));
        Assert.Equal(Functions.Where(f => f.Bound > 0).Select(f => (f.Name, f.Bound)).Order(), table.Order());
    }

    [GeneratedRegex(@"^\| `(?<function>\w+)` \|[^|]*\| (?<ulp>[\d.]+) \|", RegexOptions.Multiline)]
    private static partial Regex TableRow();

    [Fact]
    public void Tanh_is_nowhere_beyond_1()
    {
        IFunction tanh = default(Tanh);
        Assert.All(Samples(Coarse).Where(x => !float.IsNaN(x)), x => Assert.True(Math.Abs(tanh.On<Lanes128>(x)) <= 1 && Math.Abs(tanh.On(new Real32(x)).Value) <= 1, $"{x:R}"));
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Every_width_gives_the_same_bits(string name)
    {
        // What is fused is fused in all of them (or in none): a number differs, for .NET has no fast fused operation on single numbers everywhere.
        IFunction function = Functions.Single(f => f.Name == name).Function;
        foreach (float x in Samples(Coarse))
        {
            int bits = BitConverter.SingleToInt32Bits(function.On<Lanes128>(x));
            if (float.IsNaN(function.On<Lanes128>(x)) && float.IsNaN(function.On<Lanes256>(x)) && float.IsNaN(function.On<Lanes512>(x)))
                continue;
            Assert.True(bits == BitConverter.SingleToInt32Bits(function.On<Lanes256>(x)) && bits == BitConverter.SingleToInt32Bits(function.On<Lanes512>(x)),
                $"{name}({x:R}) is {function.On<Lanes128>(x):R} in 128 bits, {function.On<Lanes256>(x):R} in 256, {function.On<Lanes512>(x):R} in 512");
        }
    }

    private void Check(string name, uint step)
    {
        (_, IFunction function, double bound) = Functions.Single(f => f.Name == name);
        foreach ((string width, Func<float, float> ours) in ((string, Func<float, float>)[])
            [("512", function.On<Lanes512>), ("256", function.On<Lanes256>), ("128", function.On<Lanes128>), ("scalar", function.On<Real32>)])
        {
            double worst = 0;
            float worstAt = 0;
            foreach (float x in Samples(step))
            {
                double truth = function.On(new Real64(x)).Value;
                double error = Error(ours(x), truth);
                if (!(error <= worst))
                    (worst, worstAt) = (error, x);
            }
            string text = string.Create(CultureInfo.InvariantCulture, $"{name}, {width}: {worst:F3} ulp at {worstAt:R}: {ours(worstAt):R}, truth {function.On(new Real64(worstAt)).Value:R}");
            output.WriteLine(text);
            Assert.True(worst <= bound, text);
        }
    }

    // In units in the last place of the truth; a NaN, an infinity or a sign too many counts as infinitely wrong.
    private static double Error(float ours, double truth)
    {
        float rounded = (float)truth;
        if (float.IsNaN(rounded) || float.IsNaN(ours))
            return float.IsNaN(rounded) == float.IsNaN(ours) ? 0 : double.PositiveInfinity;
        if (!float.IsFinite(rounded) || !float.IsFinite(ours))
        {
            // Where the largest numbers go over into infinity, an error of some units is the step from one to the other.
            bool sameSide = MathF.Sign(ours) == MathF.Sign(rounded) && Math.Min(Math.Abs(ours), Math.Abs(rounded)) > (1 - 4e-7f) * float.MaxValue;
            return sameSide ? 0 : double.PositiveInfinity;
        }
        double ulp = Math.Max(MathF.BitIncrement(MathF.Abs(rounded)) - (double)MathF.Abs(rounded), float.Epsilon);
        return float.IsFinite((float)ulp) ? Math.Abs(ours - truth) / ulp : 0;
    }

    // All signs and exponents, infinities, NaN, zeros and subnormals, and the neighbourhood of where something changes.
    private static IEnumerable<float> Samples(uint step)
    {
        foreach (float edge in (float[])[0, -0f, float.Epsilon, -float.Epsilon, 1.17549435e-38f, 1, -1, 0.5f, 2, MathF.Sqrt(0.5f), MathF.Sqrt(2), 88.722839f, 89, -87.33655f, -103.97208f, -104,
            20, -60, 9.01f, 16.6f, float.MaxValue, float.MinValue, float.PositiveInfinity, float.NegativeInfinity, float.NaN])
        {
            yield return edge;
            float up = edge, down = edge;
            for (int i = 0; i < 20 && float.IsFinite(edge); i++)
            {
                yield return up = MathF.BitIncrement(up);
                yield return down = MathF.BitDecrement(down);
            }
        }
        for (ulong bits = 0; bits <= uint.MaxValue; bits += step)
            yield return BitConverter.UInt32BitsToSingle((uint)bits);
    }

    private interface IFunction
    {
        T On<T>(T x) where T : struct, IReal<T>;

        // In every lane the same number; all lanes must say the same.
        unsafe float On<TLanes>(float x) where TLanes : struct, ILanes<TLanes>
        {
            float* each = stackalloc float[TLanes.Count];
            On(TLanes.From(x)).Store(each);
            for (int lane = 1; lane < TLanes.Count; lane++)
                Assert.True(each[lane].Equals(each[0]));
            return each[0];
        }
    }

    private readonly struct Exp : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Exp(x); }
    private readonly struct Expm1 : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Expm1(x); }
    private readonly struct Log : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Log(x); }
    private readonly struct Log1p : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Log1p(x); }
    private readonly struct Tanh : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Tanh(x); }
    private readonly struct Sigmoid : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Sigmoid(x); }
    private readonly struct LogSigmoid : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.LogSigmoid(x); }
    private readonly struct Softplus : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Softplus(x); }
    private readonly struct Sqrt : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Sqrt(x); }
    private readonly struct Floor : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Floor(x); }
    private readonly struct Abs : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Abs(x); }
    private readonly struct Relu : IFunction { public T On<T>(T x) where T : struct, IReal<T> => T.Relu(x); }
}
