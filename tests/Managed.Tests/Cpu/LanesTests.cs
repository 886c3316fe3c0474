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
                T.MaxNative(a, b).Store(to);
                for (int i = 0; i < n; i++)
                    Assert.Equal(Math.Max(numbers[i], numbers[n + i]), result[i]);
                for (int lane = 0; lane < n; lane++)
                {
                    float[] spike = new float[n];
                    spike[lane] = 1;
                    fixed (float* s = spike)
                    {
                        Assert.Equal(1f, T.Load(s).Largest());
                        Assert.True(T.AnyLess(T.Zero, T.Load(s)) && T.AnyEqual(T.One, T.Load(s)));
                    }
                }
                Assert.False(T.AnyLess(T.One, T.One) || T.AnyEqual(T.Zero, T.One) || T.AnyLess(T.From(float.NaN), T.One) || T.AnyEqual(T.From(float.NaN), T.From(float.NaN)));
            }
        }
    }
}
