using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What only a GPU's log-probs can get wrong: targets that lie in its memory, rows longer than what it keeps, what it touches.</summary>
public class GpuLogProbsTests(OwnGpu gpu) : IClassFixture<OwnGpu>
{
    // In the backward pass a row of 11,264 logits stays in shared memory; with sums that are saved, a group takes 4,096, however long the row is.
    private const int KeptLogits = 11_264;

    public static TheoryData<int> Vocabularies => [1, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 8193, 11_263, KeptLogits, 11_265, 20_011];

    [Theory]
    [MemberData(nameof(Vocabularies))]
    public void Results_and_gradients_keep_the_contract_at_the_edges_of_blocks_and_of_what_is_kept(int vocabulary)
    {
        const int rows = 3;
        float[] logits = Seeded.Normal(rows * vocabulary, vocabulary, 3);
        long[] targets = [vocabulary - 1, vocabulary / 2, 0];
        float[] a = Seeded.Normal(rows, 1), b = Seeded.Normal(rows, 2), c = Seeded.Normal(rows, 3);
        Grid<double> z = Grid.Of(logits, rows, vocabulary);
        (TokenResult<double> oracle, TokenResult<float> naive) = (LogProbsOracle.Forward<double>(z, targets), LogProbsOracle.Forward<float>(z, targets));
        double[] Wide(float[] x) => Array.ConvertAll(x, v => (double)v);
        (double[] exact, float[] plain) = (LogProbsOracle.Backward<double>(z, targets, Wide(a), Wide(b), Wide(c)).Data, LogProbsOracle.Backward<float>(z, targets, Wide(a), Wide(b), Wide(c)).Data);
        foreach (bool keepsRemainder in (bool[])[false, true])
        {
            Outcome outcome = Run(logits, targets, vocabulary, a, b, c, inPlace: vocabulary % 2 == 0, keepsRemainder);
            float[] logSumExp = keepsRemainder ? [.. outcome.LogSumExp.Where((_, i) => i % 2 == 0)] : outcome.LogSumExp;
            Contract.Check(outcome.LogProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
            Contract.Check(logSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
            Contract.Check(outcome.Entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
            Contract.Check(outcome.Gradient, exact, plain, Contract.Gradient, keepsRemainder ? "gradient with what rounding took" : "gradient");
        }
    }

    public static TheoryData<int, string> Shaped()
    {
        var rows = new TheoryData<int, string>();
        foreach (int vocabulary in (int[])[1, 2, 257, 1024, 4097, 11_265, 20_011])
        {
            foreach (string options in (string[])["bias", "softcap", "temperature", "padded", "bias softcap temperature padded"])
                rows.Add(vocabulary, options);
        }
        return rows;
    }

    [Fact]
    public void Logits_that_the_softcap_has_bent_flat_have_no_gradient()
    {
        float[] logits = [20, -20, 30, 9.03f, float.PositiveInfinity, float.NegativeInfinity];
        foreach (bool keepsRemainder in (bool[])[false, true])
            Assert.All(Run(logits, [1], logits.Length, [1], [0], [0], inPlace: false, keepsRemainder, new LogitShaping(null, 1, 1, logits.Length)).Gradient, slope => Assert.Equal(0, slope));
    }

    [Fact]
    public void An_entropy_that_no_gradient_arrives_at_is_not_read()
    {
        using TensorBuffer z = gpu.Device.Upload<float>([1, 2, 3], 1, 3), y = gpu.Device.Upload<long>([1]), ones = gpu.Device.Upload<float>([1]), never = gpu.Device.Upload<float>([float.NaN]), sums = gpu.Device.Allocate(ElementType.Float32, 1, 2);
        LogitsProblem problem = new() { Logits = z, Targets = y };
        LogProbs.FromLogits(gpu.Device, problem, new() { LogSumExp = sums });
        LogProbs.FromLogitsBackward(gpu.Device, problem, new() { LogSumExp = sums, Entropy = never }, new() { LogProb = ones }, z);
        Assert.All(z.ToArray<float>(), slope => Assert.InRange(slope, -1, 1));
    }

    // The third row is ignored and full of NaN, as is the padding: a column, or a slice and some.
    [Theory]
    [MemberData(nameof(Shaped))]
    public void Bias_softcap_temperature_and_padding_keep_the_contract_with_and_without_saved_sums(int vocabulary, string options)
    {
        const int rows = 4;
        int valid = options.Contains("padded") ? Math.Max(1, vocabulary - (vocabulary > KeptLogits ? 5000 : 1)) : vocabulary;
        float[] logits = Seeded.Normal(rows * vocabulary, vocabulary, 3), bias = [.. Seeded.Normal(vocabulary, 5).Select((x, j) => j >= valid ? float.NaN : x)];
        for (int i = 0; i < logits.Length; i++)
            logits[i] = i / vocabulary == 2 || i % vocabulary >= valid ? float.NaN : logits[i];
        long[] targets = [valid - 1, valid / 2, -100, 0];
        LogitShaping shaping = new(options.Contains("bias") ? Wide(bias) : null, options.Contains("softcap") ? 5 : 0, options.Contains("temperature") ? 0.7f : 1, valid);
        float[] a = Seeded.Normal(rows, 1), b = Seeded.Normal(rows, 2), c = Seeded.Normal(rows, 3);
        Grid<double> z = Grid.Of(logits, rows, vocabulary);
        (TokenResult<double> oracle, TokenResult<float> naive) = (LogProbsOracle.Forward<double>(z, targets, shaping: shaping), LogProbsOracle.Forward<float>(z, targets, shaping: shaping));
        (double[] exact, float[] plain) = (LogProbsOracle.Backward<double>(z, targets, Wide(a), Wide(b), Wide(c), shaping: shaping).Data, LogProbsOracle.Backward<float>(z, targets, Wide(a), Wide(b), Wide(c), shaping: shaping).Data);
        foreach (bool keepsRemainder in (bool[])[false, true])
        {
            Outcome outcome = Run(logits, targets, vocabulary, a, b, c, inPlace: vocabulary % 2 == 0, keepsRemainder, shaping);
            float[] logSumExp = keepsRemainder ? [.. outcome.LogSumExp.Where((_, i) => i % 2 == 0)] : outcome.LogSumExp;
            Contract.Check(outcome.LogProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
            Contract.Check(logSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
            Contract.Check(outcome.Entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
            Contract.Check(outcome.Gradient, exact, plain, Contract.Gradient, keepsRemainder ? "gradient with what rounding took" : "gradient");
            for (int i = 0; i < outcome.Gradient.Length; i++)
                Assert.True(i % vocabulary < valid || outcome.Gradient[i] == 0, $"{i}: {outcome.Gradient[i]}");
        }
        double[] Wide(float[] x) => Array.ConvertAll(x, v => (double)v);
    }

    // |z| goes from 10 to 1e38 and beyond.
    [Theory]
    [InlineData(1, 0.7f)]
    [InlineData(1, 1e-6f)]
    [InlineData(1, 3e-7f)]
    [InlineData(1, 1e-9f)]
    [InlineData(1, 1e-37f)]
    [InlineData(1e21f, 0.7f)]
    [InlineData(1e30f, 1e-10f)]
    [InlineData(1e20f, 1e20f)]
    [InlineData(1e20f, 1e-30f)]
    public void What_rounding_took_restores_the_log_sum_exp_and_gradients_are_exact_however_small_the_temperature_is(float factor, float temperature)
    {
        const int rows = 6, vocabulary = 4200;
        var random = new Random(1);
        float[] logits = [.. Enumerable.Range(0, rows * vocabulary).Select(_ => (20 * random.NextSingle() - 10) * factor)], gradients = Seeded.Normal(rows, 1);
        long[] targets = [.. Enumerable.Range(0, rows).Select(_ => (long)random.Next(vocabulary))];
        for (int row = 0; row < rows; row++)
        {
            Span<float> x = logits.AsSpan(row * vocabulary, vocabulary);
            int largest = x.IndexOf(x.ToArray().Max()), other = (largest + 4150) % vocabulary;
            x[other] = (row % 3) switch { 0 => x[largest], 1 => float.BitDecrement(x[largest]), _ => x[other] };
            targets[row] = (row % 3) switch { 0 => largest, 1 => other, _ => targets[row] };
        }
        float[] a = [.. gradients.Select(u => u * temperature)];
        double[] upstream = Array.ConvertAll(a, u => (double)u);
        LogitShaping shaping = new(Temperature: temperature);
        Grid<double> z = Grid.Of(logits, rows, vocabulary);
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(z, targets, shaping: shaping);
        double[] expected = LogProbsOracle.Backward<double>(z, targets, upstream, upstream, upstream, shaping: shaping).Data;
        foreach (bool keepsRemainder in (bool[])[false, true])
        {
            Outcome outcome = Run(logits, targets, vocabulary, a, a, a, inPlace: keepsRemainder, keepsRemainder, shaping);
            for (int row = 0; keepsRemainder && row < rows; row++)
            {
                double size = Math.Abs(oracle.LogSumExp[row]), ours = (double)outcome.LogSumExp[2 * row] + outcome.LogSumExp[2 * row + 1];
                if (size < float.MaxValue)
                    Assert.Equal(oracle.LogSumExp[row], ours, 4e-6 + size * 1e-14);
                else
                    Assert.Equal((float)oracle.LogSumExp[row], ours);
            }
            for (int i = 0; i < expected.Length; i++)
                Assert.Equal(expected[i], outcome.Gradient[i], 2e-6);
        }
    }

    [Theory]
    [InlineData(KeptLogits)]
    [InlineData(KeptLogits + 1)]
    public void Without_what_rounding_took_ignored_rows_are_0_and_those_of_wrong_targets_NaN_whether_or_not_rows_are_kept(int vocabulary)
    {
        float[] logits = Seeded.Normal(4 * vocabulary, 1);
        Array.Fill(logits, float.NaN, vocabulary, vocabulary);
        using TensorBuffer z = gpu.Device.Upload<float>(logits, 4, vocabulary), y = gpu.Device.Upload<long>([1, -100, vocabulary, 2]), ones = gpu.Device.Upload<float>([1, 1, 1, 1]);
        using TensorBuffer logSumExp = gpu.Device.Allocate(ElementType.Float32, 4), other = gpu.Device.Upload<float>(logits, 4, vocabulary), right = gpu.Device.Upload<long>([1, -100, 0, 2]);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = right }, new() { LogSumExp = logSumExp });
        LogProbs.FromLogitsBackward(gpu.Device, new() { Logits = z, Targets = y }, new() { LogSumExp = logSumExp }, new() { LogProb = ones }, z);
        LogProbs.FromLogitsBackward(gpu.Device, new() { Logits = other, Targets = right }, new() { LogSumExp = logSumExp }, new() { LogProb = ones }, other);
        Assert.Contains($"holds {vocabulary}", Assert.Throws<ArgumentOutOfRangeException>(gpu.Device.Synchronize).Message);
        float[] gradient = z.ToArray<float>(), expected = other.ToArray<float>();
        Assert.All(gradient[vocabulary..(2 * vocabulary)], value => Assert.Equal(0, value));
        Assert.All(gradient[(2 * vocabulary)..(3 * vocabulary)], value => Assert.Equal(float.NaN, value));
        Assert.Equal(expected[..vocabulary], gradient[..vocabulary]);
        Assert.Equal(expected[(3 * vocabulary)..], gradient[(3 * vocabulary)..]);
    }

    [Theory]
    [InlineData(3L)]
    [InlineData(-1L)]
    [InlineData(-101L)]
    [InlineData(long.MaxValue)]
    [InlineData((long)int.MaxValue + 2)]
    public void A_target_outside_the_vocabulary_spoils_its_row_alone_and_the_next_synchronize_names_it(long target)
    {
        float[] logits = Seeded.Normal(12, 1);
        long[] targets = [0, -100, target, 1];
        using TensorBuffer z = gpu.Device.Upload<float>(logits, 4, 3), y = gpu.Device.Upload<long>(targets), logProb = gpu.Device.Allocate(ElementType.Float32, 4);
        using TensorBuffer logSumExp = gpu.Device.Allocate(ElementType.Float32, 4), entropy = gpu.Device.Allocate(ElementType.Float32, 4), squares = gpu.Device.Allocate(ElementType.Float32, 4);
        using TensorBuffer mean = gpu.Device.Allocate(ElementType.Float32, 4), argmax = gpu.Device.Allocate(ElementType.Int32, 4);
        LogitsProblem problem = new() { Logits = z, Targets = y };
        LogProbs.FromLogits(gpu.Device, problem, new() { LogProb = logProb, LogSumExp = logSumExp, Entropy = entropy });
        Check();
        LogProbs.FromLogits(gpu.Device, problem, new() { SumOfSquares = squares, MeanLogit = mean, Argmax = argmax });
        Check();
        Assert.Equal((0, -1), (argmax.ToArray<int>()[1], argmax.ToArray<int>()[2]));
        foreach (float[] results in (float[][])[logProb.ToArray<float>(), logSumExp.ToArray<float>(), entropy.ToArray<float>(), squares.ToArray<float>(), mean.ToArray<float>()])
        {
            Assert.Equal(0f, results[1]);
            Assert.Equal([false, false, true, false], results.Select(float.IsNaN));
        }

        using TensorBuffer ones = gpu.Device.Upload<float>([1, 1, 1, 1]);
        using TensorBuffer pairs = gpu.Device.Allocate(ElementType.Float32, 4, 2), elsewhere = gpu.Device.Allocate(ElementType.Float32, 4, 3);
        LogProbs.FromLogits(gpu.Device, problem, new() { LogSumExp = pairs });
        Check();
        LogProbs.FromLogitsBackward(gpu.Device, problem, new() { LogSumExp = pairs }, new() { LogProb = ones }, elsewhere);
        Check();
        LogProbs.FromLogitsBackward(gpu.Device, problem, new() { LogSumExp = logSumExp }, new() { LogProb = ones }, z);
        Check();
        foreach (float[] gradient in (float[][])[z.ToArray<float>(), elsewhere.ToArray<float>()])
        {
            for (int i = 0; i < 12; i++)
                Assert.Equal(i / 3 == 2, float.IsNaN(gradient[i]));
            Assert.Equal([0f, 0f, 0f], gradient[3..6]);
        }

        void Check()
        {
            ArgumentOutOfRangeException thrown = Assert.Throws<ArgumentOutOfRangeException>("problem.Targets", gpu.Device.Synchronize);
            Assert.Equal(target, thrown.ActualValue);
            Assert.Contains("between 0 and 2", thrown.Message);
            gpu.Device.Synchronize();
        }
    }

    [Fact]
    public void A_narrow_target_outside_the_vocabulary_is_found_and_one_exception_tells_of_many()
    {
        const int rows = 200; // few enough for the interpreter: what it leaves off would leave its fault to the next test
        using TensorBuffer z = gpu.Device.Allocate(ElementType.Float32, rows, 5), y = gpu.Device.Upload<int>([.. Enumerable.Repeat(5, rows)]);
        using TensorBuffer logProb = gpu.Device.Allocate(ElementType.Float32, rows);
        LogProbs.FromLogits(gpu.Device, new() { Logits = z, Targets = y }, new() { LogProb = logProb });
        Assert.Equal(5L, Assert.Throws<ArgumentOutOfRangeException>(gpu.Device.Synchronize).ActualValue);
        gpu.Device.Synchronize();
        Assert.All(logProb.ToArray<float>(), value => Assert.True(float.IsNaN(value)));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Rows_lie_apart_anywhere_and_nothing_between_them_is_touched(bool keepsRemainder)
    {
        const int rows = 5, vocabulary = 1030, stride = 1100;
        float[] logits = Seeded.Normal(rows * stride, 1), guard = [.. Enumerable.Repeat(42f, rows * stride)];
        using TensorBuffer z = gpu.Device.Upload<float>(logits, rows, stride), dz = gpu.Device.Upload<float>(guard, rows, stride), y = gpu.Device.Upload<long>([3, -100, 9, 0, 1]);
        using TensorBuffer saved = keepsRemainder ? gpu.Device.Allocate(ElementType.Float32, rows, 2) : gpu.Device.Allocate(ElementType.Float32, rows), ones = gpu.Device.Upload<float>([1, 1, 1, 1, 1]);
        LogitsProblem problem = new() { Logits = z.View.Slice(1, 7, vocabulary), Targets = y };
        LogProbs.FromLogits(gpu.Device, problem, new() { LogSumExp = saved });
        LogProbs.FromLogitsBackward(gpu.Device, problem, new() { LogSumExp = saved }, new() { LogProb = ones }, dz.View.Slice(1, 50, vocabulary));
        float[] written = dz.ToArray<float>();
        for (int i = 0; i < written.Length; i++)
            Assert.Equal(i % stride is >= 50 and < 50 + vocabulary, written[i] != 42f);
        Assert.Equal(logits, z.ToArray<float>());
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Results_are_bitwise_the_same_every_time_and_take_one_launch_each(bool keepsRemainder)
    {
        const int rows = 33, vocabulary = 9001;
        float[] logits = Seeded.Normal(rows * vocabulary, 1, 3), a = Seeded.Normal(rows, 1), b = Seeded.Normal(rows, 2), c = Seeded.Normal(rows, 3);
        long[] targets = [.. Enumerable.Range(0, rows).Select(i => (long)i * 7)];
        long before = gpu.Device.Counts.Launches;
        Outcome first = Run(logits, targets, vocabulary, a, b, c, inPlace: true, keepsRemainder);
        Assert.Equal(before + 2, gpu.Device.Counts.Launches);
        for (int time = 0; time < 20; time++)
        {
            Outcome again = Run(logits, targets, vocabulary, a, b, c, inPlace: time % 2 == 0, keepsRemainder);
            Assert.Equal(first.LogProb, again.LogProb);
            Assert.Equal(first.LogSumExp, again.LogSumExp);
            Assert.Equal(first.Entropy, again.Entropy);
            Assert.Equal(first.Gradient, again.Gradient);
        }
    }

    [Fact]
    public void A_row_does_not_depend_on_the_rows_beside_it()
    {
        const int vocabulary = 300;
        float[] logits = Seeded.Normal(3 * vocabulary, 1), ones = [1, 1, 1];
        logits[vocabulary + 5] = float.NaN;
        Outcome all = Run(logits, [1, 2, 3], vocabulary, ones, ones, ones, inPlace: false), last = Run(logits[(2 * vocabulary)..], [3], vocabulary, ones[..1], ones[..1], ones[..1], inPlace: true);
        Assert.True(float.IsNaN(all.LogProb[1]));
        Assert.Equal(last.Entropy[0], all.Entropy[2]);
        Assert.Equal(last.Gradient, all.Gradient[(2 * vocabulary)..]);
    }

    private sealed record Outcome(float[] LogProb, float[] LogSumExp, float[] Entropy, float[] Gradient);

    private Outcome Run(float[] logits, long[] targets, int vocabulary, float[] ofLogProb, float[] ofLogSumExp, float[] ofEntropy, bool inPlace, bool keepsRemainder = false, LogitShaping? shaping = null)
    {
        int rows = targets.Length;
        using TensorBuffer? bias = shaping?.Bias is { } added ? gpu.Device.Upload<float>(Array.ConvertAll(added, x => (float)x)) : null;
        using TensorBuffer z = gpu.Device.Upload<float>(logits, rows, vocabulary), y = gpu.Device.Upload<long>(targets), elsewhere = gpu.Device.Allocate(ElementType.Float32, rows, vocabulary);
        using TensorBuffer logProb = gpu.Device.Allocate(ElementType.Float32, rows), entropy = gpu.Device.Allocate(ElementType.Float32, rows);
        using TensorBuffer logSumExp = keepsRemainder ? gpu.Device.Allocate(ElementType.Float32, rows, 2) : gpu.Device.Allocate(ElementType.Float32, rows);
        using TensorBuffer a = gpu.Device.Upload<float>(ofLogProb), b = gpu.Device.Upload<float>(ofLogSumExp), c = gpu.Device.Upload<float>(ofEntropy);
        LogitsProblem problem = new()
        {
            Logits = z,
            Targets = y,
            Bias = bias is null ? default : bias.View,
            Softcap = shaping is { Softcap: not 0 } ? (float)shaping.Softcap : null,
            Temperature = (float)(shaping?.Temperature ?? 1),
            ValidVocabulary = shaping?.Valid,
        };
        LogProbs.FromLogits(gpu.Device, problem, new() { LogProb = logProb, LogSumExp = logSumExp, Entropy = entropy });
        TensorBuffer gradient = inPlace ? z : elsewhere;
        LogProbs.FromLogitsBackward(gpu.Device, problem, new() { LogSumExp = logSumExp, Entropy = entropy }, new() { LogProb = a, LogSumExp = b, Entropy = c }, gradient);
        return new(logProb.ToArray<float>(), logSumExp.ToArray<float>(), entropy.ToArray<float>(), gradient.ToArray<float>());
    }
}
