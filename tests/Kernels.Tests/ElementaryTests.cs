using System.Runtime.CompilerServices;
using ILGPU;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>A function of one number, for the kernel that tabulates it.</summary>
public interface ITabulated
{
    Real32 At(Real32 x);
}

public readonly struct ExpTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Exp(x);
}

public readonly struct Expm1Tabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Expm1(x);
}

public readonly struct LogTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Log(x);
}

public readonly struct Log1pTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Log1p(x);
}

public readonly struct TanhTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Tanh(x);
}

public readonly struct SigmoidTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Sigmoid(x);
}

public readonly struct SoftplusTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Softplus(x);
}

public readonly struct SqrtTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Sqrt(x);
}

public readonly struct FloorTabulated : ITabulated
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32 At(Real32 x) => Real32.Floor(x);
}

/// <summary>Where a kernel finds arguments and puts values.</summary>
public readonly struct Table
{
    public ArrayView<float> X { get; init; }
    public ArrayView<float> Y { get; init; }
}

internal static class TabulateKernels
{
    public const int GroupSize = 64;

    public static void Tabulate<TFunction>(TFunction function, Table table) where TFunction : unmanaged, ITabulated
    {
        long i = (long)Grid.IdxX * GroupSize + Group.IdxX;
        if (i < table.X.Length)
            table.Y[i] = function.At(new(table.X[i])).Value;
    }
}

/// <summary>The elementary functions keep on a GPU the bounds that <see cref="IReal{TSelf}"/> states.</summary>
public class ElementaryTests(GpuUnderTest gpu, ITestOutputHelper output)
{
    // Every so manieth of the 2^32 floats; odd, so that all exponents and low bits occur.
    private const uint Step = 16_381, TinyStep = 4_000_037;

    [Fact]
    public void Exp() => Check(new ExpTabulated(), Math.Exp, 1.5);

    [Fact]
    public void Expm1() => Check(new Expm1Tabulated(), x => Math.Abs(x) < 1e-2 ? x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6))))) : Math.Exp(x) - 1, 2);

    [Fact]
    public void Log() => Check(new LogTabulated(), Math.Log, 1.5);

    [Fact]
    public void Log1p() => Check(new Log1pTabulated(), Log1pExact, 2.5);

    [Fact]
    public void Tanh() => Check(new TanhTabulated(), Math.Tanh, 3);

    [Fact]
    public void Sigmoid() => Check(new SigmoidTabulated(), x => 1 / (1 + Math.Exp(-x)), 3);

    [Fact]
    public void Softplus() => Check(new SoftplusTabulated(), x => Math.Max(x, 0) + Log1pExact(Math.Exp(-Math.Abs(x))), 3);

    [Fact]
    public void Sqrt() => Check(new SqrtTabulated(), Math.Sqrt, 0.5);

    [Fact]
    public void Floor() => Check(new FloorTabulated(), Math.Floor, 0);

    private static double Log1pExact(double x)
    {
        double u = 1 + x;
        return u == 1 ? x : double.IsPositiveInfinity(u) ? u : Math.Log(u) * x / (u - 1);
    }

    private void Check<TFunction>(TFunction function, Func<double, double> exact, double bound) where TFunction : unmanaged, ITabulated
    {
        uint step = gpu.IsInterpreted ? TinyStep : Step;
        var arguments = new List<float> { 0f, -0f, 1f, -1f, float.NaN, float.PositiveInfinity, float.NegativeInfinity, float.Epsilon, float.MaxValue, float.MinValue };
        for (ulong bits = 0; bits <= uint.MaxValue; bits += step)
            arguments.Add(BitConverter.UInt32BitsToSingle((uint)bits));

        using TensorBuffer x = gpu.Device.Upload<float>(arguments.ToArray()), y = gpu.Device.Allocate(ElementType.Float32, arguments.Count);
        var table = new Table { X = ((GpuBuffer)x).Use<float>().SubView(0, arguments.Count), Y = ((GpuBuffer)y).Use<float>() };
        gpu.Device.Queue.Launch(TabulateKernels.Tabulate, (arguments.Count + TabulateKernels.GroupSize - 1) / TabulateKernels.GroupSize, TabulateKernels.GroupSize, function, table);
        float[] values = y.ToArray<float>();

        double worst = 0;
        float worstAt = 0;
        for (int i = 0; i < values.Length; i++)
        {
            double expected = exact(arguments[i]), error = Ulps(values[i], expected);
            Assert.False(double.IsNaN(error), $"at {arguments[i]:R}: {values[i]:R}, exactly {expected:R}");
            if (error > worst)
                (worst, worstAt) = (error, arguments[i]);
        }
        output.WriteLine($"{typeof(TFunction).Name}: {values.Length} arguments, at most {worst:F3} ulp, at {worstAt:R}");
        Assert.True(worst <= bound, $"{worst:F3} ulp at {worstAt:R}; {bound} are allowed");
    }

    /// <summary>NaN where one is NaN or infinite and the other is not the same.</summary>
    private static double Ulps(float value, double exact)
    {
        float rounded = (float)exact;
        if (!float.IsFinite(rounded) || !float.IsFinite(value))
        {
            // Overflow within the last unit in the last place of the range counts as that unit.
            if (value.Equals(rounded) || float.IsInfinity(value) && Math.Abs(rounded) == float.MaxValue || float.IsInfinity(rounded) && Math.Abs(value) == float.MaxValue)
                return 0;
            return double.NaN;
        }
        const int fractionBits = 23, smallestExponent = -126;
        int exponent = exact == 0 ? smallestExponent : Math.Max(smallestExponent, Math.ILogB(exact));
        return Math.Abs(value - exact) / Math.ScaleB(1, exponent - fractionBits);
    }
}
