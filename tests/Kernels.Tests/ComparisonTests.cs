using System.Runtime.CompilerServices;
using Xunit;
using Grid = ILGPU.Grid;
using Group = ILGPU.Group;

namespace TransformerKernels.Tests;

/// <summary>A number that the compiler knows.</summary>
public interface IConstant
{
    float Value { get; }
}

public readonly struct ZeroConstant : IConstant
{
    public float Value => 0f;
}

public readonly struct MinusZeroConstant : IConstant
{
    public float Value => -0f;
}

public readonly struct OneConstant : IConstant
{
    public float Value => 1f;
}

public readonly struct InfinityConstant : IConstant
{
    public float Value => float.PositiveInfinity;
}

public readonly struct MinusInfinityConstant : IConstant
{
    public float Value => float.NegativeInfinity;
}

public readonly struct NotANumberConstant : IConstant
{
    public float Value => float.NaN;
}

/// <summary>What takes results one after the other.</summary>
internal interface IResults<T, TSelf> where T : struct, IReal<T>
{
    TSelf With(Dual<T> result);
}

/// <summary>Everything in <see cref="IReal{TSelf}"/> that compares, between a constant on either side and a number, with derivatives.</summary>
internal static class Comparisons
{
    /// <summary>How many results there are of one number.</summary>
    public const int Count = 6 * 14;

    // The derivatives tell which side was taken.
    private const float OfNumber = 3f, OfConstant = 5f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void All<T, TResults>(TResults to, T number) where T : struct, IReal<T> where TResults : struct, IResults<T, TResults>
    {
        Dual<T> x = new(number, T.From(OfNumber));
        to = With(to, default(ZeroConstant), x);
        to = With(to, default(MinusZeroConstant), x);
        to = With(to, default(OneConstant), x);
        to = With(to, default(InfinityConstant), x);
        to = With(to, default(MinusInfinityConstant), x);
        With(to, default(NotANumberConstant), x);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TResults With<T, TConstant, TResults>(TResults to, TConstant constant, Dual<T> x)
        where T : struct, IReal<T> where TConstant : unmanaged, IConstant where TResults : struct, IResults<T, TResults>
    {
        Dual<T> c = new(T.From(constant.Value), T.From(OfConstant)), one = Dual<T>.One;
        return to.With(Dual<T>.SelectLess(c, x, x, one)).With(Dual<T>.SelectLess(x, c, x, one)).With(Dual<T>.SelectEqual(c, x, x, one)).With(Dual<T>.SelectEqual(x, c, x, one))
            .With(Dual<T>.Min(c, x)).With(Dual<T>.Min(x, c)).With(Dual<T>.Max(c, x)).With(Dual<T>.Max(x, c))
            .With(Dual<T>.Clamp(x, c, one)).With(Dual<T>.Clamp(x, -one, c)).With(Dual<T>.Clamp(c, -one, x)).With(Dual<T>.Clamp(c, x, one))
            .With(Dual<T>.Relu(x)).With(Dual<T>.Abs(x));
    }
}

internal static class ComparisonKernels
{
    public const int GroupSize = 64;

    /// <summary>Values and derivatives of every x in [n], [<see cref="Comparisons.Count"/>, 2, n].</summary>
    public static void Compare(Table table)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i < table.X.IntLength)
            Comparisons.All(new InTable(table, i), new Real32(table.X[i]));
    }

    private readonly struct InTable(Table table, long at) : IResults<Real32, InTable>
    {
        private readonly Table table = table;
        private readonly long at = at;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public InTable With(Dual<Real32> result)
        {
            table.Y[at] = result.Value.Value;
            table.Y[at + table.X.Length] = result.Derivative.Value;
            return new(table, at + 2 * table.X.Length);
        }
    }
}

/// <summary>Comparisons mean the same everywhere: also with a constant on the left, which ILGPU turns around, and then they are true for NaN on CUDA.</summary>
public class ComparisonTests(GpuUnderTest gpu)
{
    [Fact]
    public void What_compares_a_number_with_a_constant_is_what_it_is_in_double()
    {
        float[] numbers = [0f, -0f, 1f, -1f, 0.5f, 2f, float.Epsilon, float.MaxValue, float.MinValue, float.PositiveInfinity, float.NegativeInfinity, float.NaN];
        using TensorBuffer x = gpu.Device.Upload<float>(numbers), y = gpu.Device.Allocate(ElementType.Float32, 2 * Comparisons.Count, numbers.Length);
        gpu.Device.Queue.Launch(ComparisonKernels.Compare, 1, ComparisonKernels.GroupSize,
            new Table { X = ((GpuBuffer)x).Use<float>().SubView(0, numbers.Length), Y = ((GpuBuffer)y).Use<float>() });
        float[] results = y.ToArray<float>();
        for (int i = 0; i < numbers.Length; i++)
        {
            var expected = new InList([]);
            Comparisons.All(expected, new Real64(numbers[i]));
            Assert.Equal(2 * Comparisons.Count, expected.Numbers.Count);
            for (int k = 0; k < expected.Numbers.Count; k++)
            {
                float result = results[k * numbers.Length + i];
                Assert.True(expected.Numbers[k].Equals(result), $"result {k} of {numbers[i]} is {result}; it should be {expected.Numbers[k]}");
            }
        }
    }

    private readonly struct InList(List<float> numbers) : IResults<Real64, InList>
    {
        public List<float> Numbers { get; } = numbers;

        public InList With(Dual<Real64> result)
        {
            Numbers.Add((float)result.Value.Value);
            Numbers.Add((float)result.Derivative.Value);
            return this;
        }
    }
}
