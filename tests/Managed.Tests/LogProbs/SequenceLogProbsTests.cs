using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class SequenceLogProbsTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    // What doesn't count is NaN.
    private sealed class Example
    {
        public Example(long[] bounds, bool masked, bool targeted, int tokens)
        {
            Bounds = bounds;
            Values = Seeded.Normal(tokens, 1, 3);
            Mask = [.. Enumerable.Range(0, tokens).Select(i => !masked || i % 5 is not (1 or 2))];
            Targets = [.. Enumerable.Range(0, tokens).Select(i => targeted && i % 7 == 3 ? -100 : i)];
            Counts = [.. Mask.Select((kept, i) => kept && Targets[i] != -100)];
            for (int i = 0; i < tokens; i++)
                Values[i] = Counts[i] ? Values[i] : float.NaN;
        }

        public long[] Bounds { get; }
        public float[] Values { get; }
        public bool[] Mask { get; }
        public int[] Targets { get; }
        public bool[] Counts { get; }
        public double[] Doubles => Array.ConvertAll(Values, x => (double)x);
    }

    public static TheoryData<string> Layouts => ["packed", "packed masked", "packed targeted", "packed masked targeted", "padded", "padded masked", "padded masked targeted"];

    [Theory]
    [MemberData(nameof(Layouts))]
    public void Sums_means_counts_and_gradients_keep_the_contract(string kind)
    {
        bool padded = kind.Contains("padded");
        const int rows = 6, length = 37;
        // Packed: an empty sequence, one token, and tokens that belong to none at both ends.
        long[] bounds = padded ? [.. Enumerable.Range(0, rows + 1).Select(i => (long)i * length)] : [2, 40, 40, 41, 150, 200, 215];
        int tokens = rows * length;
        var example = new Example(bounds, kind.Contains("masked"), kind.Contains("targeted"), tokens);
        TensorView Shaped<T>(T[] data) where T : unmanaged => padded ? TensorView.Of(data, rows, length) : TensorView.Of(data);
        SequenceLayout Layout() => new()
        {
            CumulativeLengths = padded ? default : TensorView.Of(bounds),
            Mask = kind.Contains("masked") ? Shaped(example.Mask) : default,
            Targets = kind.Contains("targeted") ? Shaped(example.Targets) : default,
        };
        float[] sum = new float[rows], mean = new float[rows], ofSum = Seeded.Normal(rows, 2), ofMean = Seeded.Normal(rows, 3);
        long[] count = new long[rows];
        SequenceLogProbs.Reduce(Device, Shaped(example.Values), Layout(), new() { Sum = TensorView.Of(sum), Mean = TensorView.Of(mean), Count = TensorView.Of(count) });
        (double[] exactSum, double[] exactMean, long[] exactCount) = SequenceOracle.Reduce<double>(example.Doubles, bounds, example.Counts);
        (float[] naiveSum, float[] naiveMean, _) = SequenceOracle.Reduce<float>(example.Doubles, bounds, example.Counts);
        Contract.Check(sum, exactSum, naiveSum, Contract.Forward, "sum");
        Contract.Check(mean, exactMean, naiveMean, Contract.Forward, "mean");
        Assert.Equal(exactCount, count);

        float[] gradient = [.. Enumerable.Repeat(7f, tokens)];
        SequenceLogProbs.Backward(Device, Layout(), new() { Sum = TensorView.Of(ofSum), Mean = TensorView.Of(ofMean) }, Shaped(gradient));
        double[] a = Array.ConvertAll(ofSum, x => (double)x), b = Array.ConvertAll(ofMean, x => (double)x);
        Contract.Check(gradient, SequenceOracle.Backward<double>(a, b, bounds, example.Counts), SequenceOracle.Backward<float>(a, b, bounds, example.Counts), Contract.Gradient, "gradient");
    }

    [Fact]
    public void The_target_that_is_ignored_is_minus_100_unless_set()
    {
        Assert.Equal((-100, -100), (default(SequenceLayout).IgnoreTarget, new SequenceLayout().IgnoreTarget));
        Assert.Equal(0, new SequenceLayout { IgnoreTarget = 0 }.IgnoreTarget);
    }

    [Fact]
    public void Gradients_match_finite_differences_of_the_oracle()
    {
        long[] bounds = [1, 4, 4, 9];
        bool[] counts = [true, true, false, true, true, true, false, true, true, true];
        double[] values = Array.ConvertAll(Seeded.Normal(10, 1), x => (double)x), ofSum = [0.5, 2, -1.5], ofMean = [3, 1, 0.25];
        double[] expected = FiniteDifferences.Gradient(values, () =>
        {
            (double[] sum, double[] mean, _) = SequenceOracle.Reduce<double>(values, bounds, counts);
            return sum.Select((x, s) => ofSum[s] * x + ofMean[s] * mean[s]).Sum();
        });
        var gradient = new float[10];
        SequenceLogProbs.Backward(Device, new() { CumulativeLengths = TensorView.Of(bounds), Mask = TensorView.Of(counts) },
            new() { Sum = TensorView.Of(Array.ConvertAll(ofSum, x => (float)x)), Mean = TensorView.Of(Array.ConvertAll(ofMean, x => (float)x)) }, TensorView.Of(gradient));
        for (int i = 0; i < 10; i++)
            Assert.Equal(expected[i], gradient[i], 1e-6);
    }

    [Fact]
    public void No_token_that_counts_gives_zero()
    {
        float[] values = [float.NaN, float.PositiveInfinity], sum = [7], mean = [7], gradient = [7, 7];
        SequenceLayout Layout() => new() { CumulativeLengths = TensorView.Of(new[] { 0, 2 }), Mask = TensorView.Of(new bool[2]) };
        SequenceLogProbs.Reduce(Device, TensorView.Of(values), Layout(), new() { Sum = TensorView.Of(sum), Mean = TensorView.Of(mean) });
        Assert.Equal((0f, 0f), (sum[0], mean[0]));
        SequenceLogProbs.Backward(Device, Layout(), new() { Mean = TensorView.Of(new[] { float.PositiveInfinity }) }, TensorView.Of(gradient));
        Assert.Equal([0f, 0f], gradient);
        SequenceLogProbs.Reduce(Device, TensorView.Of(values), new() { CumulativeLengths = TensorView.Of(new long[1]) }, new() { Sum = TensorView.Of(new float[1]).Slice(0, 0, 0) });
    }

    [Fact]
    public void What_counts_surfaces_even_if_it_is_NaN_or_infinite()
    {
        float[] values = [1, float.NaN, float.NegativeInfinity, 2], sum = new float[2];
        SequenceLogProbs.Reduce(Device, TensorView.Of(values, 2, 2), new(), new() { Sum = TensorView.Of(sum) });
        Assert.Equal([float.NaN, float.NegativeInfinity], sum);
    }

    [Fact]
    public void Strides_change_no_bit()
    {
        float[] values = Seeded.Normal(60, 1), expected = new float[5], sum = new float[15], gradient = new float[60], wide = new float[180];
        bool[] mask = Seeded.Mask(60, 2);
        SequenceLayout layout = new() { Mask = TensorView.Of(mask, 5, 12) };
        SequenceLogProbs.Reduce(Device, TensorView.Of(values, 5, 12), layout, new() { Sum = TensorView.Of(expected) });
        float[] apart = new float[180];
        bool[] maskApart = new bool[180];
        for (int i = 0; i < 60; i++)
            (apart[(i % 12 * 5 + i / 12) * 3 + 1], maskApart[i * 3 + 2]) = (values[i], mask[i]);
        layout.Mask = TensorView.Of(maskApart, 5, 12, 3).Select(2, 2);
        SequenceLogProbs.Reduce(Device, TensorView.Of(apart, 12, 5, 3).Select(2, 1).Permute(1, 0), layout, new() { Sum = TensorView.Of(sum, 5, 3).Select(1, 1) });
        SequenceLogProbs.Backward(Device, layout, new() { Mean = TensorView.Of(expected) }, TensorView.Of(gradient, 5, 12));
        SequenceLogProbs.Backward(Device, layout, new() { Mean = TensorView.Of(sum, 5, 3).Select(1, 1) }, TensorView.Of(wide, 12, 5, 3).Select(2, 1).Permute(1, 0));
        for (int i = 0; i < 15; i++)
            Assert.Equal(i % 3 == 1 ? expected[i / 3] : 0, sum[i]);
        for (int i = 0; i < 60; i++)
            Assert.Equal(gradient[i], wide[(i % 12 * 5 + i / 12) * 3 + 1]);
    }

    [Fact]
    public void Bad_input_throws_naming_it()
    {
        float[] values = new float[6], sum = new float[2];
        Throws("values is required.", default, new(), new() { Sum = TensorView.Of(sum) });
        Throws("values has the shape [1, 2, 3]; it should be [tokens] or [sequences, length].", TensorView.Of(values, 1, 2, 3), new(), new() { Sum = TensorView.Of(sum) });
        Throws("layout.CumulativeLengths is required where values is of rank 1.", TensorView.Of(values), new(), new() { Sum = TensorView.Of(sum) });
        Throws("layout.CumulativeLengths is set, but values has the shape [2, 3]: a row is a sequence there.", TensorView.Of(values, 2, 3), new() { CumulativeLengths = TensorView.Of(new int[3]) }, new() { Sum = TensorView.Of(sum) });
        Throws("layout.CumulativeLengths is empty; for s sequences it has s + 1 entries.", TensorView.Of(values), new() { CumulativeLengths = TensorView.Of(new int[3]).Slice(0, 0, 0) }, new() { Sum = TensorView.Of(sum) });
#if !GPU // whose kernel finds out
        Throws("layout.CumulativeLengths[1] is 7; it must lie between the one before, 0, and the number of tokens, 6.", TensorView.Of(values), new() { CumulativeLengths = TensorView.Of(new[] { 0, 7, 8 }) }, new() { Sum = TensorView.Of(sum) });
        Throws("layout.CumulativeLengths[2] is 2; it must lie between the one before, 4, and the number of tokens, 6.", TensorView.Of(values), new() { CumulativeLengths = TensorView.Of(new[] { 0, 4, 2 }) }, new() { Sum = TensorView.Of(sum) });
        Throws("layout.CumulativeLengths[0] is -1; it must lie between 0 and the number of tokens, 6.", TensorView.Of(values), new() { CumulativeLengths = TensorView.Of(new[] { -1, 4, 5 }) }, new() { Sum = TensorView.Of(sum) });
#endif
        Throws("layout.Mask has the shape [6]; it should be [2, 3].", TensorView.Of(values, 2, 3), new() { Mask = TensorView.Of(new bool[6]) }, new() { Sum = TensorView.Of(sum) });
        Throws("layout.Targets holds Float32; this operation takes Int32 or Int64.", TensorView.Of(values, 2, 3), new() { Targets = TensorView.Of(new float[6], 2, 3) }, new() { Sum = TensorView.Of(sum) });
        Throws("outputs.Sum has the shape [2]; it should be [3].", TensorView.Of(values, 3, 2), new(), new() { Sum = TensorView.Of(sum) });
        Throws("outputs asks for nothing; set at least one of Sum, Mean, Count.", TensorView.Of(values, 2, 3), new(), default);
        Throws("outputs.Sum and outputs.Mean share memory.", TensorView.Of(values, 2, 3), new(), new() { Sum = TensorView.Of(sum), Mean = TensorView.Of(sum) });
        Throws("outputs.Sum and values share memory.", TensorView.Of(values, 2, 3), new(), new() { Sum = TensorView.Of(values, 6).Slice(0, 0, 2) });
        Assert.StartsWith("gradient and upstream.Sum share memory.", Assert.Throws<ArgumentException>(() =>
            SequenceLogProbs.Backward(Device, new(), new() { Sum = TensorView.Of(values, 6).Slice(0, 0, 2) }, TensorView.Of(values, 2, 3))).Message);
        Assert.StartsWith("upstream holds nothing; set at least one of Sum, Mean.", Assert.Throws<ArgumentException>("upstream", () => SequenceLogProbs.Backward(Device, new(), default, TensorView.Of(values, 2, 3))).Message);
        Assert.StartsWith("upstream.Mean has the shape [6]; it should be [2].", Assert.Throws<ArgumentException>(() =>
            SequenceLogProbs.Backward(Device, new(), new() { Mean = TensorView.Of(new float[6]) }, TensorView.Of(values, 2, 3))).Message);
    }

    [Fact]
    public void A_device_that_lacks_it_says_so_by_name()
    {
        var foreign = new ForeignDevice();
        Assert.Equal("The device a foreign device doesn't offer sums of log-probs by sequence yet; use ComputeDevice.Cpu.",
            Assert.Throws<NotSupportedException>(() => SequenceLogProbs.Reduce(foreign, foreign.View(2, 3), new(), new() { Sum = TensorView.FromPointer(foreign, 8192, ElementType.Float32, 2) })).Message);
        Assert.Equal("The device a foreign device doesn't offer gradients of sums by sequence yet; use ComputeDevice.Cpu.",
            Assert.Throws<NotSupportedException>(() => SequenceLogProbs.Backward(foreign, new(), new() { Sum = TensorView.FromPointer(foreign, 8192, ElementType.Float32, 2) }, foreign.View(2, 3))).Message);
    }

    private static void Throws(string message, TensorView values, in SequenceLayout layout, in SequenceOutputs outputs)
    {
        try
        {
            SequenceLogProbs.Reduce(Device, values, layout, outputs);
        }
        catch (ArgumentException thrown)
        {
            Assert.StartsWith(message, thrown.Message);
            return;
        }
        Assert.Fail($"Nothing was thrown: {message}");
    }
}
