using System.Runtime.Intrinsics.X86;
using Xunit;

namespace TransformerKernels.Tests;

public sealed class TanhTableTests
{
    // tanh(x) is tanh(x · Scale · ½ ln 2).
    private const float Scale = 2.88539008f, Bound = 26 / Scale;

    private const int Width = 16;

    [Fact]
    public void Tanh_is_within_its_bound_and_the_same_in_a_row_and_alone()
    {
        Assert.SkipUnless(Avx512F.IsSupported, "The table is AVX-512's.");
        // Steps of 1/4096, the halfway points of the table among them; and in every power of two.
        float[] numbers = [.. Enumerable.Range(-40_960, 81_920).Select(i => i / 4096f), .. Enumerable.Range(-120, 128).Select(n => MathF.ScaleB(1.37f, n)), .. Enumerable.Range(1, 63).Select(i => i * 0.34657359f)];
        Array.Resize(ref numbers, (numbers.Length + Width - 1) / Width * Width);
        float[] row = Tanh(numbers, out float largest);
        Assert.Equal(row.Max(), largest);
        for (int i = 0; i < numbers.Length; i++)
            Assert.True(Math.Abs(row[i] - Math.Tanh(numbers[i])) <= 4e-7 * Math.Abs(Math.Tanh(numbers[i])), $"{numbers[i]}: {row[i]}");
        for (int start = 0; start < numbers.Length; start += Width)
            Assert.Equal(row[start..(start + Width)], Tanh(numbers[start..(start + Width)], out _));
    }

    [Theory]
    [InlineData(8 * Width)]
    [InlineData(Width)]
    public void Infinities_are_bounded_and_NaN_stays(int count)
    {
        Assert.SkipUnless(Avx512F.IsSupported, "The table is AVX-512's.");
        var numbers = new float[count];
        (numbers[0], numbers[3], numbers[5], numbers[count - 1]) = (float.PositiveInfinity, float.NegativeInfinity, float.NaN, float.MaxValue);
        float[] tanh = Tanh(numbers, out _);
        Assert.Equal((1, -1, float.NaN, 1, 0), (tanh[0], tanh[3], tanh[5], tanh[count - 1], tanh[6]));
    }

    [Theory]
    [InlineData(9 * Width)]
    [InlineData(Width)]
    public unsafe void Without_bounds_and_with_an_offset_it_is_the_same_and_what_lies_beyond_is_told(int count)
    {
        Assert.SkipUnless(Avx512F.IsSupported, "The table is AVX-512's.");
        float last = TanhTable.Last / Scale;
        float[] numbers = [.. Enumerable.Range(0, count).Select(i => last * (2f * i / (count - 1) - 1))], tanh = new float[count];
        (numbers[0], numbers[^1]) = (-last, last);
        float[] halves = [.. numbers.Select(x => x / 2)], expected = Tanh(numbers, out _);
        fixed (float* source = numbers, half = halves, destination = tanh)
        {
            Assert.Equal(1, TanhTable.Look<Float32Storage, No, No>((byte*)source, null, Scale, last, count, destination, 0));
            Assert.Equal(expected, tanh);
            Assert.Equal(1, TanhTable.Look<Float32Storage, Yes, Yes>((byte*)half, half, Scale, Bound, count, destination, 0));
            Assert.Equal(expected, tanh);
            source[count - 1] = -MathF.BitIncrement(last);
            Assert.Equal(float.NaN, TanhTable.Look<Float32Storage, No, No>((byte*)source, null, Scale, last, count, destination, 0));
        }
    }

    private static unsafe float[] Tanh(float[] numbers, out float largest)
    {
        var tanh = new float[numbers.Length];
        fixed (float* source = numbers, destination = tanh)
            largest = TanhTable.Look<Float32Storage, No, Yes>((byte*)source, null, Scale, Bound, numbers.Length, destination, 0);
        return tanh;
    }
}
