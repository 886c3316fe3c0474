using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What only a GPU's sums by sequence can get wrong: the order of sums, groups of threads beside short and long sequences, cumulative lengths that lie in its memory.</summary>
public class GpuSequenceLogProbsTests(OwnGpu gpu) : IClassFixture<OwnGpu>
{
    // A group has 256 threads. Behind the last sequence lie tokens that belong to none.
    public static TheoryData<string, int, int> Shapes => new()
    {
        { "one token", 1, 1 }, { "threads without", 3, 255 }, { "each thread one", 2, 256 }, { "a second round", 2, 257 }, { "long", 1, 700_001 }, { "many", 100_003, 3 }, { "some", 37, 1500 },
    };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Sums_means_counts_and_gradients_keep_the_contract(string name, int sequences, int length)
    {
        Assert.NotEmpty(name);
        foreach (double share in (double[])[1, 0.7, 0.002])
        {
            (long[] bounds, float[] values, bool[] counts) = Example(sequences, length, share);
            double[] doubles = Array.ConvertAll(values, x => (double)x);
            (double[] exactSum, double[] exactMean, long[] exactCount) = SequenceOracle.Reduce<double>(doubles, bounds, counts);
            (float[] naiveSum, float[] naiveMean, _) = SequenceOracle.Reduce<float>(doubles, bounds, counts);
            (float[] sum, float[] mean, long[] count) = Reduce(values, bounds, share == 1 ? null : counts);
            Contract.Check(sum, exactSum, naiveSum, Contract.Forward, "sum");
            Contract.Check(mean, exactMean, naiveMean, Contract.Forward, "mean");
            Assert.Equal(exactCount, count);

            float[] ofSum = Seeded.Normal(sequences, 4), ofMean = Seeded.Normal(sequences, 5);
            double[] a = Array.ConvertAll(ofSum, x => (double)x), b = Array.ConvertAll(ofMean, x => (double)x);
            foreach ((bool hasSum, bool hasMean) in ((bool, bool)[])[(true, true), (true, false), (false, true)])
            {
                Contract.Check(Backward(bounds, share == 1 ? null : counts, hasSum ? ofSum : null, hasMean ? ofMean : null),
                    SequenceOracle.Backward<double>(hasSum ? a : null, hasMean ? b : null, bounds, counts), SequenceOracle.Backward<float>(hasSum ? a : null, hasMean ? b : null, bounds, counts),
                    Contract.Gradient, "gradient");
            }
        }
    }

    [Theory]
    [InlineData(100)]
    [InlineData(20_000)]
    public void Sums_are_exact_to_the_last_place_where_most_of_them_cancels(int length)
    {
        float[] values = Seeded.Normal(length, 1, 1e-3f);
        for (int i = 0; i < length; i++)
            values[i] += i % 2 == 0 ? 3e4f + i : -3e4f - i + 1;
        (float[] sum, _, _) = Reduce(values, [0, length], null);
        double exact = values.Sum(x => (double)x);
        Assert.Equal(exact, sum[0], MathF.BitIncrement(MathF.Abs((float)exact)) - MathF.Abs((float)exact));
    }

    [Fact]
    public void Results_are_bitwise_the_same_every_time_and_in_any_batch()
    {
        const int sequences = 29, length = 900;
        (long[] bounds, float[] values, bool[] counts) = Example(sequences, length, 0.8);
        (float[] sum, float[] mean, _) = Reduce(values, bounds, counts);
        float[] gradient = Backward(bounds, counts, sum, mean);
        for (int time = 0; time < 20; time++)
        {
            (float[] again, float[] meanAgain, _) = Reduce(values, bounds, counts);
            Assert.Equal(sum, again);
            Assert.Equal(mean, meanAgain);
            Assert.Equal(gradient, Backward(bounds, counts, sum, mean));
        }
        for (int s = 0; s < sequences; s++)
        {
            int start = (int)bounds[s], end = (int)bounds[s + 1];
            Assert.Equal(sum[s], Reduce(values[start..end], [0, end - start], counts[start..end]).Sum[0]);
            Assert.Equal(gradient[start..end], Backward([0, end - start], counts[start..end], [sum[s]], [mean[s]]));
        }
    }

    [Fact]
    public void Packed_vectors_with_strides_give_the_same_bits_and_nothing_between_them_is_touched()
    {
        const int sequences = 5, length = 300;
        (long[] bounds, float[] values, bool[] counts) = Example(sequences, length, 0.8);
        (float[] sum, float[] mean, long[] count) = Reduce(values, bounds, counts);
        float[] gradient = Backward(bounds, counts, sum, mean), guard = [.. Enumerable.Repeat(42f, 3 * values.Length)];
        int tokens = values.Length;
        long[] targets = [.. counts.Select(kept => kept ? 5L : 7L)];
        int[] narrowBounds = [.. bounds.Select(bound => (int)bound)];
        using TensorBuffer x = gpu.Device.Upload<float>(Spread(values), tokens, 3), y = gpu.Device.Upload<long>(Spread(targets), tokens, 3), c = gpu.Device.Upload<int>(Spread(narrowBounds), sequences + 1, 3);
        using TensorBuffer results = gpu.Device.Upload<float>(guard[..(3 * sequences)], sequences, 3), counted = gpu.Device.Allocate(ElementType.Int32, sequences, 3);
        using TensorBuffer dx = gpu.Device.Upload<float>(guard, tokens, 3), ofSum = gpu.Device.Upload<float>(Spread(sum), sequences, 3), ofMean = gpu.Device.Upload<float>(mean);
        var layout = new SequenceLayout { CumulativeLengths = c.View.Select(1, 1), Targets = y.View.Select(1, 1), IgnoreTarget = 7 };
        long before = gpu.Device.Counts.Launches;
        SequenceLogProbs.Reduce(gpu.Device, x.View.Select(1, 1), layout, new() { Sum = results.View.Select(1, 0), Mean = results.View.Select(1, 2), Count = counted.View.Select(1, 1) });
        Assert.Equal(before + 1, gpu.Device.Counts.Launches);
        SequenceLogProbs.Backward(gpu.Device, layout, new() { Sum = ofSum.View.Select(1, 1), Mean = ofMean }, dx.View.Select(1, 1));
        Assert.Equal(before + 3, gpu.Device.Counts.Launches);
        float[] written = results.ToArray<float>(), spread = dx.ToArray<float>();
        int[] numbers = counted.ToArray<int>();
        for (int s = 0; s < sequences; s++)
        {
            Assert.Equal((sum[s], 42f, mean[s]), (written[3 * s], written[3 * s + 1], written[3 * s + 2]));
            Assert.Equal((0, count[s], 0), (numbers[3 * s], numbers[3 * s + 1], numbers[3 * s + 2]));
        }
        for (int i = 0; i < spread.Length; i++)
            Assert.Equal(i % 3 == 1 ? gradient[i / 3] : 42f, spread[i]);

        static T[] Spread<T>(T[] packed) where T : struct => [.. Enumerable.Range(0, 3 * packed.Length).Select(i => i % 3 == 1 ? packed[i / 3] : default)];
    }

    [Fact]
    public void Padded_gradients_take_one_launch_and_rows_without_tokens_none()
    {
        using TensorBuffer ones = gpu.Device.Upload<float>([1, 2]), gradient = gpu.Device.Allocate(ElementType.Float32, 2, 3), none = gpu.Device.Allocate(ElementType.Float32, 2, 0);
        using TensorBuffer sums = gpu.Device.Upload<float>([7, 7]);
        long before = gpu.Device.Counts.Launches;
        SequenceLogProbs.Backward(gpu.Device, new(), new() { Mean = ones }, gradient);
        SequenceLogProbs.Backward(gpu.Device, new(), new() { Mean = ones }, none);
        Assert.Equal(before + 1, gpu.Device.Counts.Launches);
        Assert.Equal([1f / 3, 1f / 3, 1f / 3, 2f / 3, 2f / 3, 2f / 3], gradient.ToArray<float>());
        SequenceLogProbs.Reduce(gpu.Device, none, new(), new() { Sum = sums });
        Assert.Equal([0f, 0f], sums.ToArray<float>());
    }

    [Fact]
    public void Without_a_sequence_all_gradients_are_zero()
    {
        using TensorBuffer bounds = gpu.Device.Upload<int>([4]), nothing = gpu.Device.Allocate(ElementType.Float32, 0), gradient = gpu.Device.Upload<float>([7, 7, 7, 7, 7, 7]);
        SequenceLogProbs.Backward(gpu.Device, new() { CumulativeLengths = bounds }, new() { Sum = nothing }, gradient);
        Assert.Equal(new float[6], gradient.ToArray<float>());
    }

    // As on the CPU, the first one that is wrong; others spoil their own sequences.
    [Theory]
    [InlineData(1, new long[] { 0, 7, 7 }, new[] { true, true })]
    [InlineData(2, new long[] { 0, 4, 2 }, new[] { false, true })]
    [InlineData(0, new long[] { -1, 4, 5 }, new[] { true, false })]
    [InlineData(2, new long[] { 0, 6, long.MaxValue }, new[] { false, true })]
    [InlineData(1, new long[] { 2, long.MinValue, 6 }, new[] { true, true })]
    public void A_cumulative_length_that_is_wrong_spoils_its_sequence_and_all_gradients_and_the_next_synchronize_names_it(int index, long[] bounds, bool[] spoilt)
    {
        using TensorBuffer values = gpu.Device.Upload<float>([1, 1, 1, 1, 1, 1]), wide = gpu.Device.Upload<long>(bounds), sum = gpu.Device.Allocate(ElementType.Float32, 2);
        using TensorBuffer mean = gpu.Device.Allocate(ElementType.Float32, 2), count = gpu.Device.Upload<int>([7, 7]), ones = gpu.Device.Upload<float>([1, 1]);
        using TensorBuffer gradient = gpu.Device.Allocate(ElementType.Float32, 6);
        var layout = new SequenceLayout { CumulativeLengths = wide };
        SequenceLogProbs.Reduce(gpu.Device, values, layout, new() { Sum = sum, Mean = mean, Count = count });
        Check();
        Assert.Equal(spoilt, sum.ToArray<float>().Select(float.IsNaN));
        Assert.Equal(spoilt, mean.ToArray<float>().Select(float.IsNaN));
        Assert.Equal(spoilt, count.ToArray<int>().Select(number => number == 0));

        SequenceLogProbs.Backward(gpu.Device, layout, new() { Mean = ones }, gradient);
        Check();
        Assert.All(gradient.ToArray<float>(), value => Assert.True(float.IsNaN(value)));
        using TensorBuffer right = gpu.Device.Upload<long>([1, 3, 6]);
        SequenceLogProbs.Backward(gpu.Device, new() { CumulativeLengths = right }, new() { Sum = ones }, gradient);
        gpu.Device.Synchronize();
        Assert.Equal([0f, 1f, 1f, 1f, 1f, 1f], gradient.ToArray<float>());

        void Check()
        {
            string message = Assert.Throws<ArgumentOutOfRangeException>("layout.CumulativeLengths", gpu.Device.Synchronize).Message;
            Assert.StartsWith($"layout.CumulativeLengths[{index}] is wrong; it must lie between {(index == 0 ? "0" : "the one before")} and the number of tokens, 6.", message);
            gpu.Device.Synchronize();
        }
    }

    [Fact]
    public void A_cancelled_call_throws_and_writes_nothing()
    {
        using var source = new CancellationTokenSource();
        source.Cancel();
        using GpuDevice cancelled = gpu.Device.With(source.Token);
        using TensorBuffer values = gpu.Device.Upload<float>([1, 2]), sum = gpu.Device.Upload<float>([7]);
        Assert.Throws<OperationCanceledException>(() => SequenceLogProbs.Reduce(cancelled, values.View.Reshape(1, 2), new(), new() { Sum = sum }));
        Assert.Throws<OperationCanceledException>(() => SequenceLogProbs.Backward(cancelled, new(), new() { Sum = sum }, values.View.Reshape(1, 2)));
        Assert.Equal([7f], sum.ToArray<float>());
        Assert.Equal([1f, 2f], values.ToArray<float>());
    }

    // Sequences of any length around the one given, the first one not at token 0, the last one not to the end; what doesn't count is NaN.
    private static (long[] Bounds, float[] Values, bool[] Counts) Example(int sequences, int length, double share)
    {
        var random = new Random(1);
        var bounds = new long[sequences + 1];
        bounds[0] = 2;
        for (int s = 0; s < sequences; s++)
            bounds[s + 1] = bounds[s] + (sequences > 3 ? random.Next(2 * length + 1) : length);
        float[] values = Seeded.Normal(bounds[^1] + 5, 2, 3);
        bool[] counts = share == 1 ? [.. Enumerable.Repeat(true, values.Length)] : Seeded.Mask(values.Length, 3, share);
        for (int i = 0; i < values.Length; i++)
            values[i] = counts[i] ? values[i] : float.NaN;
        return (bounds, values, counts);
    }

    private (float[] Sum, float[] Mean, long[] Count) Reduce(float[] values, long[] bounds, bool[]? mask)
    {
        int sequences = bounds.Length - 1;
        using TensorBuffer x = gpu.Device.Upload<float>(values), c = gpu.Device.Upload<long>(bounds), keeps = gpu.Device.Upload<bool>(mask ?? []);
        using TensorBuffer sum = gpu.Device.Allocate(ElementType.Float32, sequences), mean = gpu.Device.Allocate(ElementType.Float32, sequences), count = gpu.Device.Allocate(ElementType.Int64, sequences);
        SequenceLogProbs.Reduce(gpu.Device, x, new() { CumulativeLengths = c, Mask = mask is null ? default : keeps.View }, new() { Sum = sum, Mean = mean, Count = count });
        return (sum.ToArray<float>(), mean.ToArray<float>(), count.ToArray<long>());
    }

    private float[] Backward(long[] bounds, bool[]? mask, float[]? ofSum, float[]? ofMean)
    {
        using TensorBuffer c = gpu.Device.Upload<long>(bounds), keeps = gpu.Device.Upload<bool>(mask ?? []), a = gpu.Device.Upload<float>(ofSum ?? []), b = gpu.Device.Upload<float>(ofMean ?? []);
        long tokens = mask?.Length ?? bounds[^1] + 5;
        using TensorBuffer gradient = gpu.Device.Upload<float>([.. Enumerable.Repeat(7f, (int)tokens)]);
        SequenceLogProbs.Backward(gpu.Device, new() { CumulativeLengths = c, Mask = mask is null ? default : keeps.View },
            new() { Sum = ofSum is null ? default : a.View, Mean = ofMean is null ? default : b.View }, gradient);
        return gradient.ToArray<float>();
    }
}
