using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Derivatives by dual numbers: right where a function is smooth, and at kinks those of PyTorch's autograd.</summary>
public class DualTests
{
    private const double Inf = double.PositiveInfinity, NaN = double.NaN;

    internal interface IFunction
    {
        T On<T>(T x, T y) where T : struct, IReal<T>;
    }

    public static TheoryData<string> Names => [.. Smooth.Keys];

    internal static readonly Dictionary<string, IFunction> Smooth = new()
    {
        ["-x"] = default(Negate), ["x + y"] = default(Add), ["x - y"] = default(Subtract), ["x * y"] = default(Multiply), ["x / y"] = default(Divide),
        ["mixed with numbers"] = default(Mixed), ["|x|"] = default(Abs), ["sqrt"] = default(Sqrt), ["exp"] = default(Exp), ["expm1"] = default(Expm1), ["log"] = default(Log),
        ["log1p"] = default(Log1p), ["tanh"] = default(Tanh), ["sigmoid"] = default(Sigmoid), ["log sigmoid"] = default(LogSigmoid), ["softplus"] = default(Softplus),
        ["relu"] = default(Relu), ["min"] = default(Min), ["max"] = default(Max), ["clamp"] = default(Clamp), ["floor"] = default(Floor), ["select less"] = default(SelectLess),
        ["select equal"] = default(SelectEqual), ["composed"] = default(Composed),
    };

    [Theory]
    [MemberData(nameof(Names))]
    public void Derivative_matches_finite_differences_where_the_function_is_smooth(string name)
    {
        IFunction function = Smooth[name];
        double[] at = new double[2];
        foreach (double x in (double[])[0.3, 1.7, 2.4])
        {
            foreach (double y in (double[])[0.8, -1.2, 3.1])
            {
                (at[0], at[1]) = (x, y);
                double[] expected = FiniteDifferences.Gradient(at, () => function.On(new Real64(at[0]), new Real64(at[1])).Value);
                Dual<Real64> byX = function.On(new Dual<Real64>(new(x), Real64.One), new Dual<Real64>(new(y), Real64.Zero));
                Dual<Real64> byY = function.On(new Dual<Real64>(new(x), Real64.Zero), new Dual<Real64>(new(y), Real64.One));
                Assert.Equal(function.On(new Real64(x), new Real64(y)).Value, byX.Value.Value);
                Assert.Equal(expected[0], byX.Derivative.Value, 1e-8);
                Assert.Equal(expected[1], byY.Derivative.Value, 1e-8);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Float32_agrees_with_double(string name)
    {
        IFunction function = Smooth[name];
        foreach (float x in (float[])[0.3f, 1.7f, 2.4f, 0.01f])
        {
            foreach (float y in (float[])[0.8f, -1.2f, 3.1f])
            {
                Dual<Real64> expected = function.On(new Dual<Real64>(new(x), Real64.One), new Dual<Real64>(new(y), new(-2)));
                Dual<Real32> ours = function.On(new Dual<Real32>(new(x), Real32.One), new Dual<Real32>(new(y), new(-2)));
                Assert.Equal(expected.Value.Value, ours.Value.Value, 2e-6 * (1 + Math.Abs(expected.Value.Value)));
                Assert.Equal(expected.Derivative.Value, ours.Derivative.Value, 5e-6 * (1 + Math.Abs(expected.Derivative.Value)));
                Assert.Equal(ours, OnLanes<Lanes128>(function, x, y));
                Assert.Equal(ours, OnLanes<Lanes256>(function, x, y));
                Assert.Equal(ours, OnLanes<Lanes512>(function, x, y));
            }
        }

        // Vectors fuse multiplications and additions, numbers don't: a few units in the last place apart.
        static unsafe Dual<Real32> OnLanes<TLanes>(IFunction function, float x, float y) where TLanes : struct, ILanes<TLanes>
        {
            Dual<TLanes> result = function.On(new Dual<TLanes>(TLanes.From(x), TLanes.One), new Dual<TLanes>(TLanes.From(y), TLanes.From(-2)));
            Dual<Real32> number = function.On(new Dual<Real32>(new(x), Real32.One), new Dual<Real32>(new(y), new(-2)));
            float* each = stackalloc float[TLanes.Count];
            result.Value.Store(each);
            Assert.Equal(number.Value.Value, each[TLanes.Count - 1], 1e-6f * (1 + MathF.Abs(each[0])));
            result.Derivative.Store(each);
            Assert.Equal(number.Derivative.Value, each[TLanes.Count - 1], 1e-6f * (1 + MathF.Abs(each[0])));
            return number;
        }
    }

    [Fact]
    public void Smaller_and_larger_one_of_equals_share_the_derivative()
    {
        Is(2, 0.5 * (3 + 7), Dual<Real64>.Min(D(2, 3), D(2, 7)));
        Is(2, 0.5 * (3 + 7), Dual<Real64>.Max(D(2, 3), D(2, 7)));
        Is(1, 3, Dual<Real64>.Min(D(1, 3), D(2, 7)));
        Is(2, 7, Dual<Real64>.Max(D(1, 3), D(2, 7)));
        Is(1, 7, Dual<Real64>.Min(D(2, 3), D(1, 7)));
        Is(2, 3, Dual<Real64>.Max(D(2, 3), D(1, 7)));
        Is(0, 5, Dual<Real64>.Min(D(0, 3), D(-0.0, 7)));
        Assert.True(double.IsNaN(Dual<Real64>.Min(D(NaN, 3), D(1, 7)).Value.Value) && double.IsNaN(Dual<Real64>.Max(D(1, 3), D(NaN, 7)).Value.Value));
    }

    [Fact]
    public void A_clamp_passes_the_derivative_between_and_on_its_bounds_and_stops_it_beyond()
    {
        Is(0, 3, Dual<Real64>.Clamp(D(0, 3), D(-1, 9), D(1, 9)));
        Is(-1, 3, Dual<Real64>.Clamp(D(-1, 3), D(-1, 9), D(1, 9)));
        Is(1, 3, Dual<Real64>.Clamp(D(1, 3), D(-1, 9), D(1, 9)));
        Is(1, 0, Dual<Real64>.Clamp(D(1.5, 3), D(-1, 9), D(1, 9)));
        Is(-1, 0, Dual<Real64>.Clamp(D(-1.5, 3), D(-1, 9), D(1, 9)));
        Is(2, 3, Dual<Real64>.Clamp(D(2, 3), D(-Inf, 9), D(Inf, 9)));
    }

    [Fact]
    public void Relu_and_absolute_value_have_derivative_0_at_0()
    {
        Is(0, 0, Dual<Real64>.Relu(D(0, 3)));
        Is(0, 0, Dual<Real64>.Relu(D(-2, 3)));
        Is(2, 3, Dual<Real64>.Relu(D(2, 3)));
        Is(0, 0, Dual<Real64>.Abs(D(0, 3)));
        Is(0, 0, Dual<Real64>.Abs(D(-0.0, 3)));
        Is(2, -3, Dual<Real64>.Abs(D(-2, 3)));
    }

    [Fact]
    public void The_root_of_what_does_not_change_has_no_slope_even_at_zero()
    {
        Assert.Equal(0, Dual<Real32>.Sqrt(new(Real32.Zero, Real32.Zero)).Derivative.Value);
        Assert.Equal(float.PositiveInfinity, Dual<Real32>.Sqrt(new(Real32.Zero, Real32.One)).Derivative.Value);
        Assert.Equal(float.NaN, Dual<Real32>.Sqrt(new(Real32.Zero, new(float.NaN))).Derivative.Value);
    }

    [Fact]
    public void Detach_and_floor_stop_the_derivative()
    {
        Is(1.7, 0, Dual<Real64>.Detach(D(1.7, 3)));
        Is(1, 0, Dual<Real64>.Floor(D(1.7, 3)));
        Is(1.7, 3, Dual<Real64>.Detach(D(1.7, 3)) * (D(1.7, 3) / Dual<Real64>.Detach(D(1.7, 3))));
    }

    [Fact]
    public void A_selection_takes_value_and_derivative_of_one_side_and_never_mixes_in_the_other()
    {
        Is(5, 6, Dual<Real64>.SelectLess(D(1, 9), D(2, 9), D(5, 6), D(NaN, NaN)));
        Is(5, 6, Dual<Real64>.SelectLess(D(2, 9), D(2, 9), D(NaN, NaN), D(5, 6)));
        Is(5, 6, Dual<Real64>.SelectEqual(D(2, 1), D(2, 9), D(5, 6), D(Inf, NaN)));
        Is(5, 6, Dual<Real64>.SelectEqual(D(2, 9), D(3, 9), D(NaN, NaN), D(5, 6)));
        Is(5, 6, Dual<Real64>.SelectEqual(D(0, 9), D(-0.0, 9), D(5, 6), D(NaN, NaN)));
        foreach ((double a, double b) in ((double, double)[])[(NaN, 1), (1, NaN), (NaN, NaN)])
        {
            Is(7, 8, Dual<Real64>.SelectLess(D(a, 0), D(b, 0), D(5, 6), D(7, 8)));
            Is(7, 8, Dual<Real64>.SelectEqual(D(a, 0), D(b, 0), D(5, 6), D(7, 8)));
        }
    }

    [Fact]
    public void Far_out_derivatives_stay_finite()
    {
        foreach (double x in (double[])[-1e4, -800, 800, 1e4])
        {
            Assert.Equal(x > 0 ? 3 : 0, Dual<Real64>.Softplus(D(x, 3)).Derivative.Value);
            Assert.Equal(x > 0 ? 0 : 3, Dual<Real64>.LogSigmoid(D(x, 3)).Derivative.Value);
            Assert.Equal(0, Dual<Real64>.Sigmoid(D(x, 3)).Derivative.Value);
            Assert.Equal(0, Dual<Real64>.Tanh(D(x, 3)).Derivative.Value);
            Assert.Equal(x > 0 ? 3f : 0f, Dual<Real32>.Softplus(new(new((float)x), new(3))).Derivative.Value);
            Assert.Equal(x > 0 ? 0f : 3f, Dual<Real32>.LogSigmoid(new(new((float)x), new(3))).Derivative.Value);
        }
    }

    [Fact]
    public void A_second_derivative_comes_from_duals_of_duals()
    {
        // d²/dx² softplus = σ(x) σ(−x)
        var x = new Dual<Dual<Real64>>(D(0.7, 1), D(1, 0));
        double sigmoid = 1 / (1 + Math.Exp(-0.7));
        Assert.Equal(sigmoid * (1 - sigmoid), Dual<Dual<Real64>>.Softplus(x).Derivative.Derivative.Value, 1e-15);
    }

    // What holds at kinks must hold on every type that formulas run on.
    [Fact]
    public void Kinks_and_selections_are_the_same_on_numbers_and_vectors()
    {
        float[] special = [0f, -0f, 1f, -1f, 2f, float.NaN, float.PositiveInfinity, float.NegativeInfinity, float.Epsilon];
        foreach (float a in special)
        {
            foreach (float b in special)
            {
                Check(a, b, Of<Real32>(a, b), Of<Lanes128>(a, b));
                Check(a, b, Of<Real32>(a, b), Of<Lanes256>(a, b));
                Check(a, b, Of<Real32>(a, b), Of<Lanes512>(a, b));
            }
        }

        static void Check(float a, float b, float[] number, float[] lanes)
        {
            for (int i = 0; i < number.Length; i++)
                Assert.True(number[i].Equals(lanes[i]) || number[i] == lanes[i], $"result {i} of ({a}, {b}) is {number[i]} on numbers, {lanes[i]} on vectors");
        }

        static unsafe float[] Of<T>(float a, float b) where T : struct, ILanes<T>
        {
            var x = new Dual<T>(T.From(a), T.From(3));
            var y = new Dual<T>(T.From(b), T.From(7));
            Dual<T>[] results =
            [
                Dual<T>.Min(x, y), Dual<T>.Max(x, y), Dual<T>.Clamp(x, Dual<T>.From(-1), Dual<T>.From(1)), Dual<T>.Relu(x), Dual<T>.Abs(x), Dual<T>.Floor(x), Dual<T>.Detach(x),
                Dual<T>.SelectLess(x, y, x, y), Dual<T>.SelectEqual(x, y, x, y),
            ];
            float* each = stackalloc float[T.Count];
            var all = new List<float>();
            foreach (Dual<T> result in results)
            {
                result.Value.Store(each);
                all.Add(each[0]);
                result.Derivative.Store(each);
                all.Add(each[0]);
            }
            return [.. all];
        }
    }

    private static Dual<Real64> D(double value, double derivative) => new(new(value), new(derivative));

    private static void Is(double value, double derivative, Dual<Real64> dual) => Assert.Equal((value, derivative), (dual.Value.Value, dual.Derivative.Value));

    private readonly struct Negate : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => -x; }
    private readonly struct Add : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => x + y; }
    private readonly struct Subtract : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => x - y; }
    private readonly struct Multiply : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => x * y; }
    private readonly struct Divide : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => x / y; }
    private readonly struct Mixed : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => (2f + x) * 3f - (y - 1f) / 4f + (5f - x) * (6f * y) + 7f / y - (x + 8f) + T.From(9) * T.One - T.Zero; }
    private readonly struct Abs : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Abs(y) * x; }
    private readonly struct Sqrt : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Sqrt(x) * y; }
    private readonly struct Exp : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Exp(x * 0.5f) * y; }
    private readonly struct Expm1 : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Expm1(x * 0.5f) * y; }
    private readonly struct Log : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Log(x) * y; }
    private readonly struct Log1p : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Log1p(x) * y; }
    private readonly struct Tanh : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Tanh(x) * y; }
    private readonly struct Sigmoid : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Sigmoid(y) * x; }
    private readonly struct LogSigmoid : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.LogSigmoid(y) * x; }
    private readonly struct Softplus : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Softplus(y) * x; }
    private readonly struct Relu : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Relu(y) * x; }
    private readonly struct Min : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Min(x, y); }
    private readonly struct Max : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Max(x, y); }
    private readonly struct Clamp : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Clamp(y, T.From(-1), T.From(2)) * x; }
    private readonly struct Floor : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.Floor(y) * x; }
    private readonly struct SelectLess : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.SelectLess(x, y, x * y, x / y); }
    private readonly struct SelectEqual : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.SelectEqual(x, y, x * y, x / y); }
    private readonly struct Composed : IFunction { public T On<T>(T x, T y) where T : struct, IReal<T> => T.LogSigmoid(T.Tanh(x * y) / (1f + T.Abs(y)) - T.Sqrt(x)) * T.Exp(-0.1f * y); }
}
