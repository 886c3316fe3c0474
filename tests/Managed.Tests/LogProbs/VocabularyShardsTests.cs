using System.Numerics;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class VocabularyShardsTests
{
    private const int Tokens = 6;

    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    public static TheoryData<string, int[]> Cases()
    {
        var cases = new TheoryData<string, int[]>();
        foreach (string kind in (string[])["plain", "far apart", "minus infinity", "peaked", "below -1e4"])
        {
            foreach (int[] slices in (int[][])[[37], [5, 32], [1, 40, 7], [16, 16, 16, 16], [300, 2100, 33]])
                cases.Add(kind, slices);
        }
        return cases;
    }

    // The third token is ignored and full of NaN.
    private static (Grid<double> Logits, long[] Targets) Example(string kind, int[] slices)
    {
        int vocabulary = slices.Sum();
        float[] logits = Seeded.Normal(Tokens * vocabulary, vocabulary, 3);
        long[] targets = [.. Enumerable.Range(0, Tokens).Select(row => row * 977L % vocabulary)];
        for (int i = 0; i < logits.Length; i++)
        {
            int row = i / vocabulary, column = i % vocabulary, slice = 0;
            for (int start = slices[0]; start <= column; start += slices[++slice])
            {
            }
            logits[i] = kind switch
            {
                "far apart" => logits[i] + 10000f * (slice - slices.Length + 1),
                "minus infinity" => slice == row % slices.Length && slices.Length > 1 || column % 3 == 1 && row != column ? float.NegativeInfinity : logits[i],
                "peaked" => column == (row % 2 == 0 ? targets[row] : (targets[row] + 1) % vocabulary) ? 25 + row : logits[i],
                "below -1e4" => MathF.Round(16 * logits[i]) / 16 - 10000,
                _ => logits[i],
            };
        }
        targets[2] = -100;
        logits.AsSpan(2 * vocabulary, vocabulary).Fill(float.NaN);
        return (Grid.Of(logits, Tokens, vocabulary), targets);
    }

    private static float[] Floats(Grid<double> grid) => Array.ConvertAll(grid.Data, x => (float)x);

    private static float[] Column(float[] partials, int field) => [.. partials.Where((_, i) => i % ShardPartials.Count == field)];

    [Theory]
    [MemberData(nameof(Cases))]
    public void From_logits_partials_results_and_gradients_keep_the_contract(string kind, int[] slices)
    {
        (Grid<double> logits, long[] targets) = Example(kind, slices);
        int vocabulary = slices.Sum(), first = 0;
        float[] values = Floats(logits), all = new float[slices.Length * Tokens * ShardPartials.Count];
        TensorView whole = TensorView.Of(values, Tokens, vocabulary), partials = TensorView.Of(all, slices.Length, Tokens, ShardPartials.Count);
        LogitsProblem Slice(int start, int length, TensorView from) => new() { Logits = from.Slice(1, start, length), Targets = TensorView.Of(targets) };
        for (int s = 0; s < slices.Length; first += slices[s++])
        {
            VocabularyShards.FromLogits(Device, Slice(first, slices[s], whole), new(first, vocabulary), partials.Select(0, s));
            var part = Grid.Zeros<double>(Tokens, slices[s]);
            for (int row = 0; row < Tokens; row++)
                logits.Row(row).Slice(first, slices[s]).CopyTo(part.Row(row));
            ShardSums<double> oracle = ShardOracle.Partials<double>(part, targets, first);
            ShardSums<float> naive = ShardOracle.Partials<float>(part, targets, first);
            float[] ours = all[(s * Tokens * ShardPartials.Count)..((s + 1) * Tokens * ShardPartials.Count)];
            Contract.Check(Column(ours, ShardPartials.Max), oracle.Max, naive.Max, Contract.Forward, "max");
            Contract.Check(Column(ours, ShardPartials.Sum), oracle.Sum, naive.Sum, Contract.Forward, "Σ e^t");
            Contract.Check(Column(ours, ShardPartials.WeightedSum), oracle.Weighted, naive.Weighted, Contract.Forward, "Σ e^t t");
            Contract.Check(Column(ours, ShardPartials.SumOfSquares), oracle.Squares, naive.Squares, Contract.Forward, "Σ e^2t");
            Contract.Check(Column(ours, ShardPartials.TargetLogit), oracle.Target, naive.Target, Contract.Forward, "target");
            double[] mean = Array.ConvertAll(oracle.Logits, x => x / vocabulary);
            Contract.Check(Column(ours, ShardPartials.MeanLogit), mean, Array.ConvertAll(naive.Logits, x => x / vocabulary), Contract.Forward, "mean", magnitude: part.Data.Where(double.IsFinite).Sum(Math.Abs) / Tokens / vocabulary);
            for (int row = 0; row < Tokens; row++)
            {
                int largest = row == 2 ? 0 : first + part.Row(row).ToArray().Index().MaxBy(pair => pair.Item).Index;
                Assert.Equal(largest, Column(ours, ShardPartials.Argmax)[row]);
                // Sum and rest together are Σ e^t in nearly double.
                Assert.Equal(oracle.Sum[row], (double)Column(ours, ShardPartials.Sum)[row] + Column(ours, ShardPartials.SumRest)[row], 3e-6 * Math.Abs(oracle.Sum[row] - 1) + 1e-14);
            }
        }

        float[] merged = new float[Tokens * ShardPartials.Count];
        Results results = Merge(partials, TensorView.Of(merged, Tokens, ShardPartials.Count));
        results.Check(LogProbsOracle.Forward<double>(logits, targets), LogProbsOracle.Forward<float>(logits, targets), logits.Data.Where(double.IsFinite).Sum(Math.Abs) / Tokens / vocabulary);
        Assert.Equal(LogProbsOracle.Top(logits, targets, 1), results.Argmax.Select(token => (long)token));

        float[] gradient = new float[values.Length], upstream = Seeded.Normal(5 * Tokens, 3);
        double[] U(int i) => Array.ConvertAll(upstream[(i * Tokens)..((i + 1) * Tokens)], x => (double)x);
        first = 0;
        for (int s = 0; s < slices.Length; first += slices[s++])
        {
            VocabularyShards.FromLogitsBackward(Device, Slice(first, slices[s], whole), new(first, vocabulary), TensorView.Of(merged, Tokens, ShardPartials.Count), Upstream(upstream),
                TensorView.Of(gradient, Tokens, vocabulary).Slice(1, first, slices[s]));
        }
        Grid<T> Backward<T>() where T : IFloatingPointIeee754<T> => LogProbsOracle.Backward<T>(logits, targets, U(0), U(1), U(2), squaresUpstream: U(3), meanUpstream: U(4));
        Contract.Check(gradient, Backward<double>().Data, Backward<float>().Data, Contract.Gradient, "gradient");

        // In place, a slice at a time.
        first = 0;
        for (int s = 0; s < slices.Length; first += slices[s++])
        {
            LogitsProblem problem = Slice(first, slices[s], whole);
            VocabularyShards.FromLogitsBackward(Device, problem, new(first, vocabulary), TensorView.Of(merged, Tokens, ShardPartials.Count), Upstream(upstream), problem.Logits);
        }
        Assert.Equal(gradient, values);
    }

    [Theory]
    [InlineData(new[] { 90 }, "")]
    [InlineData(new[] { 1, 30, 59 }, "ignored")]
    [InlineData(new[] { 600, 700 }, "bias softcap temperature ignored weights")]
    [InlineData(new[] { 64, 64, 40 }, "padded bfloat16 bias")]
    public void From_hidden_results_and_gradients_keep_the_contract(int[] slices, string options)
    {
        const int tokens = 21, width = 19;
        int vocabulary = slices.Sum(), valid = options.Contains("padded") ? vocabulary - 3 : vocabulary, first = 0;
        var example = new HiddenExample(tokens, width, vocabulary, options);
        float[] all = new float[slices.Length * tokens * ShardPartials.Count], merged = new float[tokens * ShardPartials.Count];
        using var workspace = new Workspace(Device);
        for (int s = 0; s < slices.Length; first += slices[s++])
            VocabularyShards.FromHidden(Device, Slice(example, first, slices[s]), new(first, valid), TensorView.Of(all, slices.Length, tokens, ShardPartials.Count).Select(0, s), workspace);
        Results results = Merge(TensorView.Of(all, slices.Length, tokens, ShardPartials.Count), TensorView.Of(merged, tokens, ShardPartials.Count));
        results.Check(example.Forward<double>(), example.Forward<float>(), 3);

        float[] upstream = [.. example.Upstream1, .. example.Upstream2, .. example.Upstream3, .. example.Upstream4, .. example.Upstream5];
        float[] ofHidden = new float[tokens * width], ofEntries = new float[vocabulary * width], ofBias = new float[vocabulary];
        first = 0;
        for (int s = 0; s < slices.Length; first += slices[s++])
        {
            VocabularyShards.FromHiddenBackward(Device, Slice(example, first, slices[s]), new(first, valid), TensorView.Of(merged, tokens, ShardPartials.Count), Upstream(upstream), new()
            {
                Hidden = TensorView.Of(ofHidden, tokens, width),
                Vocabulary = TensorView.Of(ofEntries, vocabulary, width).Slice(0, first, slices[s]),
                Bias = example.Shaping.Bias is null ? default : TensorView.Of(ofBias).Slice(0, first, slices[s]),
                Accumulate = true,
            }, workspace);
        }
        HiddenGradient<double> exact = example.Backward<double>();
        HiddenGradient<float> rough = example.Backward<float>();
        Contract.Check(ofHidden, exact.Hidden.Data, rough.Hidden.Data, Contract.Gradient, "gradient of the hidden states");
        Contract.Check(ofEntries, exact.Vocabulary.Data, rough.Vocabulary.Data, Contract.Gradient, "gradient of the vocabulary");
        if (example.Shaping.Bias is not null)
            Contract.Check(ofBias, exact.Bias, rough.Bias, Contract.Gradient, "gradient of the bias");
    }

    // Maxima in different slices that round to one float32 count as equal: here they are, or are far apart.
    [Theory]
    [InlineData(1, 1e-4f)]
    [InlineData(1, 1e-7f)]
    [InlineData(1, 1e-8f)]
    [InlineData(1, 1e-9f)]
    [InlineData(1, 1e-10f)]
    [InlineData(1e21f, 0.7f)]
    [InlineData(1e30f, 1)]
    public void Results_and_gradients_of_huge_logits_are_those_of_one_slice(float factor, float temperature)
    {
        const int rows = 16, slice = 150, vocabulary = 2 * slice;
        var random = new Random(1);
        float[] values = [.. Enumerable.Range(0, rows * vocabulary).Select(_ => (20 * random.NextSingle() - 10) * factor)], all = new float[2 * rows * ShardPartials.Count], merged = new float[rows * ShardPartials.Count];
        long[] targets = [.. Enumerable.Range(0, rows).Select(_ => (long)random.Next(vocabulary))];
        for (int row = 0; row < rows; row++)
        {
            Span<float> x = values.AsSpan(row * vocabulary, vocabulary);
            int largest = x.IndexOf(x.ToArray().Max()), other = (largest + (row % 4 == 0 ? slice : 1)) % vocabulary;
            x[other] = (row % 4) switch { 0 => x[largest], 1 when largest % slice != slice - 1 => float.BitDecrement(x[largest]), _ => x[other] };
            if (row == 3)
                x[(largest / slice * slice + slice)..].Fill(float.NegativeInfinity);
            targets[row] = row % 3 == 0 ? largest : row % 3 == 1 ? other : targets[row];
        }
        TensorView z = TensorView.Of(values, rows, vocabulary), partials = TensorView.Of(all, 2, rows, ShardPartials.Count);
        LogitsProblem Slice(int s) => new() { Logits = TensorView.Of(values, rows, vocabulary).Slice(1, s * slice, slice), Targets = TensorView.Of(targets), Temperature = temperature };
        for (int s = 0; s < 2; s++)
            VocabularyShards.FromLogits(Device, Slice(s), new(s * slice, vocabulary), partials.Select(0, s));
        Results results = Merge(partials, TensorView.Of(merged, rows, ShardPartials.Count));
        LogitShaping shaping = new(Temperature: temperature);
        Grid<double> logits = Grid.Of(values, rows, vocabulary);
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(logits, targets, shaping: shaping);
        for (int row = 0; row < rows; row++)
        {
            Assert.Equal(oracle.Entropy[row], results.Entropy[row], 2e-6);
            Assert.Equal(oracle.SumOfSquares[row], results.SumOfSquares[row], 2e-6);
        }

        float[] gradient = new float[values.Length], upstream = Array.ConvertAll(Seeded.Normal(5 * rows, 3), u => u * temperature);
        upstream.AsSpan(4 * rows).Clear();
        double[] U(int i) => Array.ConvertAll(upstream[(i * rows)..((i + 1) * rows)], x => (double)x);
        for (int s = 0; s < 2; s++)
            VocabularyShards.FromLogitsBackward(Device, Slice(s), new(s * slice, vocabulary), TensorView.Of(merged, rows, ShardPartials.Count), Upstream(upstream), TensorView.Of(gradient, rows, vocabulary).Slice(1, s * slice, slice));
        double[] expected = LogProbsOracle.Backward<double>(logits, targets, U(0), U(1), U(2), shaping: shaping, squaresUpstream: U(3)).Data;
        for (int i = 0; i < gradient.Length; i++)
            Assert.Equal(expected[i], gradient[i], 4e-6);
    }

    [Fact]
    public void Of_logits_beyond_float32_no_weight_is_above_1()
    {
        // z = ±1e51.
        float[] values = Seeded.Normal(2 * 40, 1, 1e21f), all = new float[2 * 2 * ShardPartials.Count], merged = new float[2 * ShardPartials.Count], gradient = new float[80], u = [1e-30f, 1e-30f];
        int[] targets = [3, 30];
        LogitsProblem Slice(int s) => new() { Logits = TensorView.Of(values, 2, 40).Slice(1, 20 * s, 20), Targets = TensorView.Of(targets), Temperature = 1e-30f };
        for (int s = 0; s < 2; s++)
            VocabularyShards.FromLogits(Device, Slice(s), new(20 * s, 40), TensorView.Of(all, 2, 2, ShardPartials.Count).Select(0, s));
        Merge(TensorView.Of(all, 2, 2, ShardPartials.Count), TensorView.Of(merged, 2, ShardPartials.Count));
        for (int s = 0; s < 2; s++)
            VocabularyShards.FromLogitsBackward(Device, Slice(s), new(20 * s, 40), TensorView.Of(merged, 2, ShardPartials.Count), new() { LogProb = TensorView.Of(u) }, TensorView.Of(gradient, 2, 40).Slice(1, 20 * s, 20));
        Assert.All(gradient, x => Assert.InRange(x, -1.00001f, 1.00001f));
    }

    [Fact]
    public void One_slice_merged_gives_the_bits_of_the_whole()
    {
        var example = new HiddenExample(30, 12, 1300, "bias ignored");
        float[] partials = new float[30 * ShardPartials.Count], logProb = new float[30], entropy = new float[30];
        using var workspace = new Workspace(Device);
        VocabularyShards.FromHidden(Device, example.Problem, new(0, 1300), TensorView.Of(partials, 30, ShardPartials.Count), workspace);
        Results results = Merge(TensorView.Of(partials, 1, 30, ShardPartials.Count), default);
        LogProbs.FromHidden(Device, example.Problem, new() { LogProb = TensorView.Of(logProb), Entropy = TensorView.Of(entropy) }, workspace);
        Assert.Equal(logProb, results.LogProb);
        for (int i = 0; i < 30; i++)
            Assert.Equal(entropy[i], results.Entropy[i], 1e-6 * Math.Abs(entropy[i]));
    }

    [Fact]
    public void Neighbouring_slices_may_be_merged_first()
    {
        (Grid<double> logits, long[] targets) = Example("plain", [40, 30, 50]);
        float[] values = Floats(logits), all = new float[3 * Tokens * ShardPartials.Count], two = new float[2 * Tokens * ShardPartials.Count];
        TensorView partials = TensorView.Of(all, 3, Tokens, ShardPartials.Count), pair = TensorView.Of(two, 2, Tokens, ShardPartials.Count);
        (int First, int Length)[] slices = [(0, 40), (40, 30), (70, 50)];
        for (int s = 0; s < 3; s++)
            VocabularyShards.FromLogits(Device, new() { Logits = TensorView.Of(values, Tokens, 120).Slice(1, slices[s].First, slices[s].Length), Targets = TensorView.Of(targets) }, new(slices[s].First, 120), partials.Select(0, s));
        VocabularyShards.Merge(Device, partials.Slice(0, 0, 2), default, pair.Select(0, 0));
        all.AsSpan(2 * Tokens * ShardPartials.Count).CopyTo(two.AsSpan(Tokens * ShardPartials.Count));
        Results atOnce = Merge(partials, default), inSteps = Merge(pair, default);
        for (int i = 0; i < Tokens; i++)
        {
            Assert.Equal(atOnce.LogProb[i], inSteps.LogProb[i], 1e-6);
            Assert.Equal(atOnce.Entropy[i], inSteps.Entropy[i], 1e-6);
        }
        Assert.Equal(atOnce.Argmax, inSteps.Argmax);
    }

    [Theory]
    [InlineData("plain")]
    [InlineData("minus infinity")]
    public void Slices_out_of_order_or_there_twice_throw_before_anything_is_written(string kind)
    {
        (Grid<double> logits, long[] targets) = Example(kind, [40, 30, 50]);
        float[] values = Floats(logits), all = new float[3 * Tokens * ShardPartials.Count], wrong = new float[all.Length], logProb = [.. Enumerable.Repeat(7f, Tokens)];
        int size = Tokens * ShardPartials.Count;
        foreach ((int s, int first, int length) in ((int, int, int)[])[(0, 0, 40), (1, 40, 30), (2, 70, 50)])
        {
            VocabularyShards.FromLogits(Device, new() { Logits = TensorView.Of(values, Tokens, 120).Slice(1, first, length), Targets = TensorView.Of(targets) }, new(first, 120),
                TensorView.Of(all, 3, Tokens, ShardPartials.Count).Select(0, s));
        }
        foreach (int[] order in (int[][])[[0, 2, 1], [1, 0, 2], [0, 0, 1], [0, 1, 1], [2, 1, 0]])
        {
            for (int s = 0; s < 3; s++)
                all.AsSpan(order[s] * size, size).CopyTo(wrong.AsSpan(s * size));
            string message = Assert.Throws<ArgumentException>("partials", () => VocabularyShards.Merge(Device, TensorView.Of(wrong, 3, Tokens, ShardPartials.Count), new() { LogProb = TensorView.Of(logProb) })).Message;
            Assert.Contains("the slices must stand in the order of the vocabulary, each of them once", message);
        }
        // A token that only one slice ignores.
        all.CopyTo(wrong, 0);
        wrong.AsSpan(size, ShardPartials.Count).Clear();
        Assert.StartsWith("partials[1, 0] has its largest logit at 0,",
            Assert.Throws<ArgumentException>(() => VocabularyShards.Merge(Device, TensorView.Of(wrong, 3, Tokens, ShardPartials.Count), new() { LogProb = TensorView.Of(logProb) })).Message);
        Assert.All(logProb, x => Assert.Equal(7, x));
    }

    [Fact]
    public void Infinities_and_NaN_are_what_they_are_in_one_slice()
    {
        foreach (float value in (float[])[float.NaN, float.PositiveInfinity, float.NegativeInfinity])
        {
            float[] logits = value == float.NegativeInfinity ? [.. Enumerable.Repeat(value, 24)] : Seeded.Normal(24, 1), all = new float[3 * ShardPartials.Count];
            logits[13] = value;
            int[] targets = [2];
            TensorView partials = TensorView.Of(all, 3, 1, ShardPartials.Count);
            for (int s = 0; s < 3; s++)
                VocabularyShards.FromLogits(Device, new() { Logits = TensorView.Of(logits, 1, 24).Slice(1, 8 * s, 8), Targets = TensorView.Of(targets) }, new(8 * s, 24), partials.Select(0, s));
            float[] logProb = new float[1], logSumExp = new float[1], entropy = new float[1], mean = new float[1];
            int[] argmax = new int[1], first = new int[1];
            VocabularyShards.Merge(Device, partials, new() { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(logSumExp), Entropy = TensorView.Of(entropy), Argmax = TensorView.Of(argmax), MeanLogit = TensorView.Of(mean) });
            float[] a = new float[1], b = new float[1], c = new float[1], d = new float[1];
            LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 1, 24), Targets = TensorView.Of(targets) },
                new() { LogProb = TensorView.Of(a), LogSumExp = TensorView.Of(b), Entropy = TensorView.Of(c), Argmax = TensorView.Of(first), MeanLogit = TensorView.Of(d) });
            Assert.Equal((a[0], b[0], c[0], d[0], first[0]), (logProb[0], logSumExp[0], entropy[0], mean[0], argmax[0]));
        }
    }

    [Fact]
    public void Gradients_match_finite_differences_of_the_merged_results()
    {
        (Grid<double> logits, long[] targets) = Example("plain", [4, 6]);
        logits.Row(2).Fill(0.5);
        float[] upstream = Seeded.Normal(5 * Tokens, 3), values = Floats(logits), merged = new float[Tokens * ShardPartials.Count], all = new float[2 * merged.Length], gradient = new float[values.Length];
        double[] expected = FiniteDifferences.Gradient(logits.Data, () =>
        {
            ShardSums<double>[] parts = [Part(0, 4), Part(4, 6)];
            TokenResult<double> whole = ShardOracle.Merge(parts);
            return Enumerable.Range(0, Tokens).Where(row => row != 2).Sum(row => upstream[row] * whole.LogProb[row] + upstream[Tokens + row] * whole.LogSumExp[row] + upstream[2 * Tokens + row] * whole.Entropy[row]
                + upstream[3 * Tokens + row] * whole.SumOfSquares[row] + upstream[4 * Tokens + row] * parts.Sum(part => part.Logits[row]) / 10);
        });
        TensorView partials = TensorView.Of(all, 2, Tokens, ShardPartials.Count), z = TensorView.Of(values, Tokens, 10);
        foreach ((int s, int first, int length) in ((int, int, int)[])[(0, 0, 4), (1, 4, 6)])
            VocabularyShards.FromLogits(Device, new() { Logits = z.Slice(1, first, length), Targets = TensorView.Of(targets) }, new(first, 10), partials.Select(0, s));
        VocabularyShards.Merge(Device, partials, default, TensorView.Of(merged, Tokens, ShardPartials.Count));
        foreach ((int first, int length) in ((int, int)[])[(0, 4), (4, 6)])
            VocabularyShards.FromLogitsBackward(Device, new() { Logits = z.Slice(1, first, length), Targets = TensorView.Of(targets) }, new(first, 10), TensorView.Of(merged, Tokens, ShardPartials.Count), Upstream(upstream),
                TensorView.Of(gradient, Tokens, 10).Slice(1, first, length));
        for (int i = 0; i < gradient.Length; i++)
            Assert.Equal(expected[i], gradient[i], 2e-5);

        ShardSums<double> Part(int first, int length)
        {
            var part = Grid.Zeros<double>(Tokens, length);
            for (int row = 0; row < Tokens; row++)
                logits.Row(row).Slice(first, length).CopyTo(part.Row(row));
            return ShardOracle.Partials<double>(part, targets, first);
        }
    }

    [Fact]
    public void Bad_input_throws_naming_it()
    {
        float[] logits = new float[12], partials = new float[2 * 4 * ShardPartials.Count], out4 = new float[4];
        int[] targets = [0, 7, -100, 2];
        LogitsProblem Problem() => new() { Logits = TensorView.Of(logits, 4, 3), Targets = TensorView.Of(targets) };
        TensorView One() => TensorView.Of(partials, 2, 4, ShardPartials.Count).Select(0, 0);
        Throws("shard.First is 6; with the slice's 3 entries it must lie between 0 and 5, or shard.Whole, 8, is too small.", () => VocabularyShards.FromLogits(Device, Problem(), new(6, 8), One()));
        Throws("shard.First is -1; with", () => VocabularyShards.FromLogits(Device, Problem(), new(-1, 8), One()));
        Throws("shard.Whole is 0; it must lie between 1 and 16777216: partials hold indices as float32.", () => VocabularyShards.FromLogits(Device, Problem(), new(0, 0), One()));
        Throws("shard.Whole is 16777217;", () => VocabularyShards.FromLogits(Device, Problem(), new(0, (1 << 24) + 1), One()));
        Throws("problem.Targets[1] is 7; it must lie between 0 and 5, or be -100 to ignore the token.", () => VocabularyShards.FromLogits(Device, Problem(), new(3, 6), One()));
        Throws("partials has the shape [4, 7]; it should be [4, 8].", () => VocabularyShards.FromLogits(Device, Problem(), new(0, 8), TensorView.Of(new float[28], 4, 7)));
        Throws("partials and problem.Logits share memory.", () => VocabularyShards.FromLogits(Device, new() { Logits = TensorView.Of(partials, 4, 16).Slice(1, 0, 3), Targets = TensorView.Of(targets) }, new(0, 8), One()));
        Throws("partials has the shape [4, 8]; it should be [any, any, 8].", () => VocabularyShards.Merge(Device, One(), new() { LogProb = TensorView.Of(out4) }));
        Throws("partials holds no slices; it must hold at least 1.", () => VocabularyShards.Merge(Device, TensorView.Of(partials, 2, 4, 8).Slice(0, 0, 0), new() { LogProb = TensorView.Of(out4) }));
        Throws("outputs asks for nothing; set at least one of LogProb, LogSumExp, Entropy, SumOfSquares, Argmax, TopLogProbs, MeanLogit.", () => VocabularyShards.Merge(Device, TensorView.Of(partials, 2, 4, 8), default));
        Throws("outputs.LogProb has the shape [12]; it should be [4].", () => VocabularyShards.Merge(Device, TensorView.Of(partials, 2, 4, 8), new() { LogProb = TensorView.Of(logits) }));
        Throws("merged and partials share memory.", () => VocabularyShards.Merge(Device, TensorView.Of(partials, 2, 4, 8), default, One()));
        Throws("merged is required.", () => VocabularyShards.FromLogitsBackward(Device, Problem(), new(0, 8), default, default, TensorView.Of(new float[12], 4, 3)));
        Throws("logitsGradient and merged share memory.", () => VocabularyShards.FromLogitsBackward(Device, Problem(), new(0, 8), One(), default, One().Slice(1, 0, 3)));
        Throws("upstream holds nothing;", () => VocabularyShards.FromLogitsBackward(Device, Problem(), new(0, 8), One(), default, TensorView.Of(new float[12], 4, 3)));
        using var workspace = new Workspace(Device);
        HiddenProblem Hidden() => new() { Hidden = TensorView.Of(logits, 4, 3), Vocabulary = TensorView.Of(new float[15], 5, 3), Targets = TensorView.Of(targets) };
        Throws("shard.First is 4; with", () => VocabularyShards.FromHidden(Device, Hidden(), new(4, 8), One(), workspace));
        Throws("partials and problem.Hidden share memory.", () => VocabularyShards.FromHidden(Device, new() { Hidden = TensorView.Of(partials, 4, 16).Slice(1, 0, 3), Vocabulary = TensorView.Of(new float[15], 5, 3), Targets = TensorView.Of(targets) }, new(0, 8), One(), workspace));
        Throws("gradients.Hidden and merged share memory.", () => VocabularyShards.FromHiddenBackward(Device, Hidden(), new(0, 8), One(), default, new() { Hidden = One().Slice(1, 0, 3) }, workspace));
        Throws("upstream holds nothing;", () => VocabularyShards.FromHiddenBackward(Device, Hidden(), new(0, 8), One(), default, new() { Hidden = TensorView.Of(new float[12], 4, 3) }, workspace));
        Assert.Equal("The likeliest tokens (outputs.TopLogProbs) aren't merged from shards: partials hold the largest logit only.",
            Assert.Throws<NotSupportedException>(() => VocabularyShards.Merge(Device, TensorView.Of(partials, 2, 4, 8), new() { TopLogProbs = TensorView.Of(out4, 4, 1) })).Message);

        static void Throws(string message, Action call) => Assert.StartsWith(message, Assert.ThrowsAny<ArgumentException>(call).Message);
    }

    [Fact]
    public void A_device_that_lacks_them_says_so_by_name()
    {
        var foreign = new ForeignDevice();
        using var workspace = new Workspace(foreign);
        TensorView At(int page, params ReadOnlySpan<long> shape) => TensorView.FromPointer(foreign, 4096 * page, ElementType.Float32, shape);
        LogitsProblem Problem() => new() { Logits = At(1, 2, 3), Targets = TensorView.FromPointer(foreign, 8192, ElementType.Int32, 2) };
        HiddenProblem Hidden() => new() { Hidden = At(1, 2, 3), Vocabulary = At(4, 5, 3), Targets = TensorView.FromPointer(foreign, 8192, ElementType.Int32, 2) };
        Lacks(() => VocabularyShards.FromLogits(foreign, Problem(), new(0, 9), At(3, 2, 8)));
        Lacks(() => VocabularyShards.FromHidden(foreign, Hidden(), new(0, 9), At(3, 2, 8), workspace));
        Lacks(() => VocabularyShards.Merge(foreign, At(3, 1, 2, 8), new() { LogProb = At(5, 2) }));
        Lacks(() => VocabularyShards.FromLogitsBackward(foreign, Problem(), new(0, 9), At(3, 2, 8), new() { LogProb = At(6, 2) }, At(5, 2, 3)));
        Lacks(() => VocabularyShards.FromHiddenBackward(foreign, Hidden(), new(0, 9), At(3, 2, 8), new() { LogProb = At(6, 2) }, new() { Hidden = At(5, 2, 3) }, workspace));

        static void Lacks(Action call) => Assert.Equal("The device a foreign device doesn't offer shards of a vocabulary yet; use ComputeDevice.Cpu.", Assert.Throws<NotSupportedException>(call).Message);
    }

    private static HiddenProblem Slice(HiddenExample example, int first, int length)
    {
        HiddenProblem problem = example.Problem;
        problem.Vocabulary = problem.Vocabulary.Slice(0, first, length);
        if (problem.Bias.IsPresent)
            problem.Bias = problem.Bias.Slice(0, first, length);
        if (problem.MeanWeights.IsPresent)
            problem.MeanWeights = problem.MeanWeights.Slice(0, first, length);
        if (problem.ValidVocabulary is { } valid)
            problem.ValidVocabulary = Math.Min(length, valid - first);
        return problem;
    }

    private static TokenUpstream Upstream(float[] upstream)
    {
        int count = upstream.Length / 5;
        TensorView all = TensorView.Of(upstream, 5, count);
        return new() { LogProb = all.Select(0, 0), LogSumExp = all.Select(0, 1), Entropy = all.Select(0, 2), SumOfSquares = all.Select(0, 3), MeanLogit = all.Select(0, 4) };
    }

    private static Results Merge(TensorView partials, TensorView merged)
    {
        int tokens = (int)partials.Length(1);
        var results = new Results(new float[tokens], new float[tokens], new float[tokens], new float[tokens], new float[tokens], new int[tokens]);
        VocabularyShards.Merge(Device, partials, new()
        {
            LogProb = TensorView.Of(results.LogProb),
            LogSumExp = TensorView.Of(results.LogSumExp),
            Entropy = TensorView.Of(results.Entropy),
            SumOfSquares = TensorView.Of(results.SumOfSquares),
            MeanLogit = TensorView.Of(results.MeanLogit),
            Argmax = TensorView.Of(results.Argmax),
        }, merged);
        return results;
    }

    private sealed record Results(float[] LogProb, float[] LogSumExp, float[] Entropy, float[] SumOfSquares, float[] MeanLogit, int[] Argmax)
    {
        public void Check(TokenResult<double> oracle, TokenResult<float> naive, double meanMagnitude)
        {
            Contract.Check(LogProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
            Contract.Check(LogSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
            Contract.Check(Entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
            Contract.Check(SumOfSquares, oracle.SumOfSquares, naive.SumOfSquares, Contract.Forward, "Σp²");
            Contract.Check(MeanLogit, oracle.MeanLogit, naive.MeanLogit, Contract.Forward, "mean logit", magnitude: meanMagnitude);
        }
    }
}
