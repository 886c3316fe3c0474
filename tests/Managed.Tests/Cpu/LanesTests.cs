using System.Text.RegularExpressions;
using Xunit;

namespace TransformerKernels.Tests;

public partial class LanesTests
{
    [Fact]
    public void The_three_widths_have_one_text_up_to_the_width_and_what_only_one_instruction_set_has()
    {
        string narrow = Text(128, 4), middle = Text(256, 8), wide = Text(512, 16);
        Assert.Equal(narrow, middle);
        Assert.Equal(narrow, wide);
    }

    private static string Text(int bits, int count)
    {
        string text = DocumentTests.Read($"src/Managed/Cpu/Lanes{bits}.cs");
        text = text.Replace($"Vector{bits}", "Vector", StringComparison.Ordinal).Replace($"Lanes{bits}", "Lanes", StringComparison.Ordinal);
        text = text.Replace($"get => {count};", "get => N;", StringComparison.Ordinal).Replace($"<summary>{count} floats", "<summary>N floats", StringComparison.Ordinal);
        text = text.Replace("using System.Runtime.Intrinsics.X86;\n", "", StringComparison.Ordinal);
        text = Regex.Replace(text, "Lanes128, Lanes256 and Lanes512|Lanes, Lanes256 and Lanes512|Lanes128, Lanes and Lanes512|Lanes128, Lanes256 and Lanes", "all", RegexOptions.None);
        return OneInstructionSet().Replace(text, "");
    }

    // if (Avx512F.IsSupported) return ...; or { ... }
    [GeneratedRegex(@" *if \(\w+\.IsSupported\)\n( *return [^;]*;\n| *\{\n[^}]*\}\n)")]
    private static partial Regex OneInstructionSet();

    [Fact]
    public void Operations_between_lanes_do_what_they_say()
    {
        Check<Real32>();
        Check<Lanes128>();
        Check<Lanes256>();
        Check<Lanes512>();
        Check<Lockstep<Real32>>();
        Check<Lockstep<Lanes256>>();

        static unsafe void Check<T>() where T : struct, ILanes<T>
        {
            int n = T.Count;
            float[] numbers = new float[2 * n], result = new float[2 * n];
            for (int i = 0; i < 2 * n; i++)
                numbers[i] = (i * 7 + 3) % 31 - 10;
            fixed (float* from = numbers, to = result)
            {
                T a = T.Load(from), b = T.Load(from + n);
                Assert.Equal(numbers[..n].Sum(), a.Sum());
                Assert.Equal(numbers[..n].Max(), a.Largest());
                T.Iota(5).Store(to);
                Assert.Equal(Enumerable.Range(5, n).Select(i => (float)i), result[..n]);
                T.Unzip(a, b, out T even, out T odd);
                even.Store(to);
                odd.Store(to + n);
                Assert.Equal(numbers.Where((_, i) => i % 2 == 0).Concat(numbers.Where((_, i) => i % 2 == 1)), result);
                T.Zip(even, odd, out T low, out T high);
                low.Store(to);
                high.Store(to + n);
                Assert.Equal(numbers, result);
                T.Fold(a, b).Store(to);
                Assert.Equal((numbers[..n].Sum(), n > 1 ? numbers[n..].Sum() : 0), (result[..n].Where((_, i) => i % 2 == 0).Sum(), result[..n].Where((_, i) => i % 2 == 1).Sum()));
                T.MaxNative(a, b).Store(to);
                for (int i = 0; i < n; i++)
                    Assert.Equal(Math.Max(numbers[i], numbers[n + i]), result[i]);
                T.SelectBits(unchecked((int)0xa5c396e1), a, b).Store(to);
                for (int i = 0; i < n; i++)
                    Assert.Equal((0xa5c396e1 >> i & 1) != 0 ? numbers[i] : numbers[n + i], result[i]);
                for (int lane = 0; lane < n; lane++)
                {
                    float[] spike = new float[n];
                    spike[lane] = 1;
                    fixed (float* s = spike)
                    {
                        Assert.Equal(1f, T.Load(s).Largest());
                        Assert.True(T.AnyLess(T.Zero, T.Load(s)) && T.AnyEqual(T.One, T.Load(s)));
                        // What folds twice needs the sums of even lanes apart from those of odd ones.
                        T.Fold(T.Load(s), T.Load(s)).Store(to);
                        int[] places = [.. Enumerable.Range(0, n).Where(place => result[place] != 0)];
                        int first = n < 4 ? 0 : places[0] / 4 * 4 + lane % 2 * 2;
                        Assert.Equal(n > 1 ? [first, first + 1] : [0], places);
                    }
                }
                Assert.False(T.AnyLess(T.One, T.One) || T.AnyEqual(T.Zero, T.One) || T.AnyLess(T.From(float.NaN), T.One) || T.AnyEqual(T.From(float.NaN), T.From(float.NaN)));
            }
        }
    }

    [Fact]
    public void Every_16_bit_number_is_read_and_written_back_and_others_round_to_the_nearest()
    {
        Check<Real32>();
        Check<Lanes128>();
        Check<Lanes256>();
        Check<Lanes512>();

        static unsafe void Check<T>() where T : struct, ILanes<T>
        {
            int n = T.Count;
            ushort* bits = stackalloc ushort[2 * n];
            float* numbers = stackalloc float[2 * n];
            for (int start = 0; start < 0x10000; start += n)
            {
                Fill(start);
                T.LoadFloat16(bits).Store(numbers);
                for (int i = 0; i < n; i++)
                    Same((float)BitConverter.UInt16BitsToHalf(bits[i]), numbers[i]);
                T.Load(numbers).StoreFloat16(bits);
                for (int i = 0; i < n; i++)
                    Assert.True(float.IsNaN(numbers[i]) ? Half.IsNaN(BitConverter.UInt16BitsToHalf(bits[i])) : bits[i] == start + i, $"{start + i:x4}");

                Fill(start);
                T.LoadBFloat16(bits).Store(numbers);
                for (int i = 0; i < n; i++)
                    Same(BitConverter.Int32BitsToSingle(bits[i] << 16), numbers[i]);
                T.Load(numbers).StoreBFloat16(bits);
                for (int i = 0; i < n; i++)
                    Assert.True(float.IsNaN(numbers[i]) ? float.IsNaN(BitConverter.Int32BitsToSingle(bits[i] << 16)) : bits[i] == start + i, $"{start + i:x4}");

                Fill(start);
                T.LoadBFloat16(bits, out T even, out T odd);
                even.Store(numbers);
                odd.Store(numbers + n);
                for (int i = 0; i < 2 * n; i++)
                    Same(BitConverter.Int32BitsToSingle(bits[i] << 16), numbers[(i & 1) * n + i / 2]);
            }

            // Between neighbours: below the middle, the middle, above it.
            foreach (uint pattern in (uint[])[0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff])
            {
                for (uint upper = 0; upper < 0x10000; upper += 7)
                {
                    float x = BitConverter.UInt32BitsToSingle(upper << 16 | pattern);
                    if (float.IsNaN(x))
                        continue;
                    T.From(x).StoreFloat16(bits);
                    Assert.True(bits[0] == BitConverter.HalfToUInt16Bits((Half)x), $"{x:R}: {bits[0]:x4}");
                    T.From(x).StoreBFloat16(bits);
                    Assert.True(bits[0] == upper + (pattern > 0x8000 || pattern == 0x8000 && (upper & 1) == 1 ? 1u : 0), $"{x:R}: {bits[0]:x4}");
                }
            }

            void Fill(int start)
            {
                for (int i = 0; i < 2 * n; i++)
                    bits[i] = (ushort)(start + i);
            }
        }

        static void Same(float expected, float actual) =>
            Assert.True(float.IsNaN(expected) ? float.IsNaN(actual) : BitConverter.SingleToUInt32Bits(expected) == BitConverter.SingleToUInt32Bits(actual), $"{expected:R}: {actual:R}");
    }

    [Fact]
    public void Powers_of_e_up_to_1_are_as_exact_as_promised()
    {
        Check<Real32>();
        Check<Lanes128>();
        Check<Lanes256>();
        Check<Lanes512>();

        // 1.3 units for the polynomial, and what rounding x log₂e costs.
        static unsafe void Check<T>() where T : struct, ILanes<T>
        {
            float* result = stackalloc float[T.Count];
            for (float x = -104; x <= 0; x += 0.001f)
            {
                double truth = Math.Exp(x), allowed = truth * (1.3 + Math.Abs(x)) * Math.ScaleB(1, -23) + 1.2e-38;
                Exponential.OfNonPositive(T.From(x)).Store(result);
                Assert.True(Math.Abs(result[T.Count - 1] - truth) <= allowed, $"{x}: {result[0]}, {truth}");
                T y = T.MaxNative(T.From(T.LowestPower), T.From(x) * Exponential.Log2E);
                Exponential.PowersOfTwo(y, y, y, y, y, y, y, y, out _, out _, out _, out _, out _, out _, out _, out T last);
                float other = result[T.Count - 1];
                last.Store(result);
                Assert.Equal(other, result[T.Count - 1]);

                allowed = truth * (Math.ScaleB(1, -23) + 3e-9 * Math.Abs(x)) + 1.5e-45;
                Exponential.Precise(T.From(x)).Store(result);
                Assert.True(Math.Abs(result[T.Count - 1] - truth) <= allowed, $"{x}: {result[0]}, {truth}");
                other = result[T.Count - 1];
                Exponential.Precise(T.One, T.From(x), T.One, T.From(x), out _, out _, out _, out last);
                last.Store(result);
                Assert.Equal(other, result[T.Count - 1]);
            }
            foreach ((float x, float power) in ((float, float)[])[(0, 1), (-0f, 1), (-104, 0), (float.NaN, float.NaN), (BitConverter.UInt32BitsToSingle(0xffc001ff), float.NaN)])
            {
                Exponential.OfNonPositive(T.From(x)).Store(result);
                Assert.Equal(power, result[0]);
                Exponential.OfNonPositive(T.From(x), T.One, T.From(x), T.One, out T first, out _, out _, out _);
                first.Store(result);
                Assert.Equal(power, result[0]);
                Exponential.Precise(T.From(x)).Store(result);
                Assert.Equal(power, result[0]);
            }
            // Whatever is far below the largest is nothing, to the last bit.
            foreach (float x in (float[])[-89, -1e9f, float.MinValue, float.NegativeInfinity])
            {
                Exponential.OfNonPositive(T.From(x), T.Zero, T.From(2 * x), T.Zero, out T first, out _, out T third, out _);
                first.Store(result);
                Assert.InRange(result[0], 0, 1.2e-38f);
                third.Store(result);
                Assert.Equal(0f, result[0]);
            }
        }
    }
}
