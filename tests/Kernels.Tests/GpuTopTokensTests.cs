using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What only a GPU's likeliest tokens can get wrong: rows that don't fit into shared memory, numbers of tokens that don't either, equal logits, and whoever comes first to a place.</summary>
public class GpuTopTokensTests(OwnGpu gpu) : IClassFixture<OwnGpu>
{
    private const int Rows = 4;

    // Up to 2,048 ranks are sorted in shared memory; longer rows are counted by their first bits. The second row is ignored and full of NaN.
    public static TheoryData<int, int, string> Shapes
    {
        get
        {
            var shapes = new TheoryData<int, int, string>();
            foreach ((int vocabulary, int count) in ((int, int)[])[(1, 1), (2, 1), (2, 2), (255, 3), (257, 257), (1025, 17), (2048, 2048), (2049, 1), (2049, 2048), (2049, 2049), (4099, 20), (5000, 2049), (5000, 5000), (20_011, 64), (20_011, 6000), (151_936, 20)])
            {
                foreach (string kind in (string[])["plain", "equal", "few values", "rising", "minus infinity", "zeros of both signs"])
                    shapes.Add(vocabulary, count, kind);
            }
            return shapes;
        }
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Tokens_are_the_likeliest_ones_in_order_and_their_log_probs_keep_the_contract(int vocabulary, int count, string kind)
    {
        float[] logits = Logits(vocabulary, kind);
        long[] targets = [.. Enumerable.Range(0, Rows).Select(row => row == 1 ? -100L : vocabulary - 1)];
        logits.AsSpan(vocabulary, vocabulary).Fill(float.NaN);
        (float[] logProbs, long[] tokens) = Top(logits, targets, vocabulary, count);
        Grid<double> z = Grid.Of(logits, Rows, vocabulary);
        Assert.Equal(LogProbsOracle.Top(z, targets, count), tokens);
        // Those of a few tokens as the log-probs of targets.
        for (int place = 0; place < count; place += Math.Max(1, count / 3))
        {
            long[] chosen = [.. targets.Select((target, row) => target == -100 ? -100 : tokens[row * count + place])];
            Contract.Check([.. Enumerable.Range(0, Rows).Select(row => logProbs[row * count + place])], LogProbsOracle.Forward<double>(z, chosen).LogProb,
                LogProbsOracle.Forward<float>(z, chosen).LogProb, Contract.Forward, $"log-prob {place}");
        }
        Assert.Equal(logProbs, Top(logits, targets, vocabulary, count, hasTokens: false).LogProbs);
    }

    [Theory]
    [InlineData(300, 5)]
    [InlineData(5000, 40)]
    [InlineData(5000, 3000)]
    public void Tokens_of_shaped_logits_are_found_among_the_columns_that_count(int vocabulary, int count)
    {
        float[] logits = Logits(vocabulary, "plain"), bias = Seeded.Normal(vocabulary, 5);
        int valid = vocabulary - 100;
        for (int i = 0; i < logits.Length; i++)
            logits[i] = i % vocabulary >= valid ? float.NaN : logits[i];
        var shaping = new LogitShaping(Array.ConvertAll(bias, x => (double)x), 0, 0.25, valid);
        long[] targets = [3, 2, 1, 0];
        using TensorBuffer z = gpu.Device.Upload<float>(logits, Rows, vocabulary), y = gpu.Device.Upload<long>(targets), b = gpu.Device.Upload<float>(bias);
        using TensorBuffer logProbs = gpu.Device.Allocate(ElementType.Float32, Rows, count), tokens = gpu.Device.Allocate(ElementType.Int32, Rows, count), logProb = gpu.Device.Allocate(ElementType.Float32, Rows);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = y, Bias = b, Temperature = 0.25f, ValidVocabulary = valid }, new() { TopLogProbs = logProbs, TopTokens = tokens, LogProb = logProb });
        int[] top = tokens.ToArray<int>();
        Assert.Equal(LogProbsOracle.Top(Grid.Of(logits, Rows, vocabulary), targets, count, shaping: shaping), top.Select(token => (long)token));
        long[] likeliest = [.. Enumerable.Range(0, Rows).Select(row => (long)top[row * count])];
        using TensorBuffer first = gpu.Device.Upload<long>(likeliest);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = first, Bias = b, Temperature = 0.25f, ValidVocabulary = valid }, new() { LogProb = logProb });
        float[] ours = logProbs.ToArray<float>();
        Assert.Equal(logProb.ToArray<float>(), Enumerable.Range(0, Rows).Select(row => ours[row * count]));
    }

    [Fact]
    public void A_softcap_that_makes_logits_equal_leaves_their_tokens_in_order()
    {
        const int vocabulary = 3000;
        float[] logits = [.. Enumerable.Range(0, vocabulary).Select(j => j % 3 == 0 ? 1000f + j : -j)];
        using TensorBuffer z = gpu.Device.Upload<float>(logits, 1, vocabulary), y = gpu.Device.Upload<int>([0]), logProbs = gpu.Device.Allocate(ElementType.Float32, 1, 5), tokens = gpu.Device.Allocate(ElementType.Int64, 1, 5);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = y, Softcap = 5 }, new() { TopLogProbs = logProbs, TopTokens = tokens });
        Assert.Equal([0L, 3, 6, 9, 12], tokens.ToArray<long>());
    }

    [Theory]
    [InlineData(40, 3)]
    [InlineData(5000, 40)]
    [InlineData(5000, 3000)]
    public void A_NaN_leaves_tokens_that_are_there_and_infinities_come_first_and_last(int vocabulary, int count)
    {
        float[] logits = Logits(vocabulary, "plain");
        logits[7] = float.NaN;
        logits[vocabulary + 9] = logits[vocabulary + 30] = float.PositiveInfinity;
        logits.AsSpan(2 * vocabulary, vocabulary).Fill(float.NegativeInfinity);
        logits[3 * vocabulary + 5] = float.NegativeInfinity;
        (float[] logProbs, long[] tokens) = Top(logits, [0, 0, 0, 0], vocabulary, count);
        Assert.All(tokens[..count], token => Assert.InRange(token, 0, vocabulary - 1));
        Assert.Equal(count, tokens[..count].Distinct().Count());
        Assert.All(logProbs[..count], value => Assert.True(float.IsNaN(value)));
        Assert.Equal(LogProbsOracle.Top(Grid.Of(logits, Rows, vocabulary), [0, 0, 0, 0], count)[count..], tokens[count..]);
        Assert.Equal([9L, 30], tokens[count..(count + 2)]);
        Assert.Equal([float.NaN, float.NaN, float.NegativeInfinity], logProbs[count..(count + 3)]);
        Assert.All(logProbs[(2 * count)..(3 * count)], value => Assert.True(float.IsNaN(value)));
        Assert.All(logProbs[(3 * count)..], value => Assert.True(float.IsFinite(value)));
    }

    [Theory]
    [InlineData(50, 3)]
    [InlineData(5000, 3000)]
    public void A_target_outside_the_vocabulary_spoils_its_row_alone_and_the_next_synchronize_names_it(int vocabulary, int count)
    {
        float[] logits = Logits(vocabulary, "plain");
        (float[] logProbs, long[] tokens) = Top(logits, [0, 0, 0, 0], vocabulary, count);
        using TensorBuffer z = gpu.Device.Upload<float>(logits, Rows, vocabulary), y = gpu.Device.Upload<long>([0, -100, vocabulary, 0]);
        using TensorBuffer top = gpu.Device.Upload<float>([.. Enumerable.Repeat(7f, Rows * count)], Rows, count), found = gpu.Device.Upload<int>([.. Enumerable.Repeat(7, Rows * count)], Rows, count);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = y }, new() { TopLogProbs = top, TopTokens = found });
        Assert.Equal((long)vocabulary, Assert.Throws<ArgumentOutOfRangeException>("problem.Targets", gpu.Device.Synchronize).ActualValue);
        gpu.Device.Synchronize();
        Assert.Equal([.. logProbs[..count], .. new float[count], .. Enumerable.Repeat(float.NaN, count), .. logProbs[(3 * count)..]], top.ToArray<float>());
        Assert.Equal([.. tokens[..count], .. new long[count], .. Enumerable.Repeat(-1L, count), .. tokens[(3 * count)..]], found.ToArray<int>().Select(token => (long)token));
    }

    [Theory]
    [InlineData(9001, 30)]
    [InlineData(9001, 2500)]
    public void Results_are_bitwise_the_same_every_time_and_take_one_launch(int vocabulary, int count)
    {
        float[] logits = Logits(vocabulary, "few values");
        long before = gpu.Device.Counts.Launches;
        (float[] logProbs, long[] tokens) = Top(logits, [0, 1, 2, 3], vocabulary, count);
        Assert.Equal(before + 1, gpu.Device.Counts.Launches);
        for (int time = 0; time < 20; time++)
        {
            (float[] again, long[] tokensAgain) = Top(logits, [0, 1, 2, 3], vocabulary, count);
            Assert.Equal(logProbs, again);
            Assert.Equal(tokens, tokensAgain);
        }
        (float[] last, long[] lastTokens) = Top(logits[(3 * vocabulary)..], [3], vocabulary, count);
        Assert.Equal(logProbs[(3 * count)..], last);
        Assert.Equal(tokens[(3 * count)..], lastTokens);
    }

    [Theory]
    [InlineData(9)]
    [InlineData(2100)]
    public void Strides_are_followed_and_nothing_else_is_written(int count)
    {
        const int vocabulary = 2500, stride = 2600;
        float[] logits = Logits(stride, "plain"), guard = [.. Enumerable.Repeat(42f, 3 * Rows * count)];
        float[] dense = [.. Enumerable.Range(0, Rows * vocabulary).Select(i => logits[i / vocabulary * stride + i % vocabulary + 11])];
        (float[] logProbs, long[] tokens) = Top(dense, [0, 1, 2, 3], vocabulary, count);
        using TensorBuffer z = gpu.Device.Upload<float>(logits, Rows, stride), y = gpu.Device.Upload<int>([0, 1, 2, 3]), top = gpu.Device.Upload<float>(guard, count, Rows, 3);
        using TensorBuffer found = gpu.Device.Upload<int>([.. guard.Select(x => (int)x)], Rows, 3, count);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z.View.Slice(1, 11, vocabulary), Targets = y }, new() { TopLogProbs = top.View.Select(2, 1).Permute(1, 0), TopTokens = found.View.Select(1, 2) });
        float[] written = top.ToArray<float>();
        int[] places = found.ToArray<int>();
        for (int i = 0; i < written.Length; i++)
        {
            Assert.Equal(i % 3 == 1 ? logProbs[i / 3 % Rows * count + i / 3 / Rows] : 42f, written[i]);
            Assert.Equal(i / count % 3 == 2 ? tokens[i / count / 3 * count + i % count] : 42, places[i]);
        }
        Assert.Equal(logits, z.ToArray<float>());
    }

    private static float[] Logits(int vocabulary, string kind)
    {
        float[] logits = Seeded.Normal(Rows * (long)vocabulary, vocabulary, 3);
        for (int i = 0; i < logits.Length; i++)
        {
            logits[i] = kind switch
            {
                "equal" => 1.5f,
                "few values" => MathF.Round(logits[i]),
                "rising" => i % vocabulary * 1e-3f,
                "minus infinity" => i % vocabulary % 3 == 1 ? logits[i] : float.NegativeInfinity,
                "zeros of both signs" => i % vocabulary % 2 == 0 ? 0f : -0f,
                _ => logits[i],
            };
        }
        if (kind == "minus infinity")
            logits[vocabulary - 1] = 1; // a target
        return logits;
    }

    private (float[] LogProbs, long[] Tokens) Top(float[] logits, long[] targets, int vocabulary, int count, bool hasTokens = true)
    {
        using TensorBuffer z = gpu.Device.Upload<float>(logits, targets.Length, vocabulary), y = gpu.Device.Upload<long>(targets);
        using TensorBuffer logProbs = gpu.Device.Allocate(ElementType.Float32, targets.Length, count), tokens = gpu.Device.Allocate(ElementType.Int64, targets.Length, count);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = y }, new() { TopLogProbs = logProbs, TopTokens = hasTokens ? tokens.View : default });
        return (logProbs.ToArray<float>(), tokens.ToArray<long>());
    }
}
