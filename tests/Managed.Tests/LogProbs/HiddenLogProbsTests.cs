using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class HiddenLogProbsTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    public static TheoryData<int, int, int, string> Shapes()
    {
        var shapes = new TheoryData<int, int, int, string>();
        foreach (int tokens in (int[])[1, 3, 16, 17, 49, 100])
        {
            foreach ((int width, int vocabulary) in ((int, int)[])[(1, 1), (3, 7), (16, 63), (17, 64), (48, 65), (50, 130), (33, 1100)])
                shapes.Add(tokens, width, vocabulary, "");
        }
        foreach (string options in (string[])["bias", "softcap", "temperature", "padded", "ignored", "bfloat16", "float16", "hidden in float16", "weights", "weights bias softcap padded ignored", "bias softcap temperature padded ignored bfloat16"])
        {
            shapes.Add(20, 9, 40, options);
            shapes.Add(37, 70, 601, options);
        }
        return shapes;
    }

    // Everything that a call writes.
    private sealed record Written(float[] LogProb, float[] LogSumExp, float[] Entropy, float[] SumOfSquares, float[] MeanLogit, int[] Argmax, float[] Hidden, float[] Vocabulary, float[] Bias)
    {
        public Written(HiddenExample example) : this(new float[example.Tokens], new float[example.Tokens], new float[example.Tokens], new float[example.Tokens], new float[example.Tokens], new int[example.Tokens],
            Filled(example.Tokens * example.Width), Filled(example.Vocabulary * example.Width), Filled(example.Vocabulary))
        {
        }

        public TokenOutputs Outputs => new()
        {
            LogProb = TensorView.Of(LogProb),
            LogSumExp = TensorView.Of(LogSumExp),
            Entropy = TensorView.Of(Entropy),
            SumOfSquares = TensorView.Of(SumOfSquares),
            MeanLogit = TensorView.Of(MeanLogit),
            Argmax = TensorView.Of(Argmax),
        };

        public HiddenGradients Gradients(HiddenExample example, bool accumulate = false) => new()
        {
            Hidden = TensorView.Of(Hidden, example.Tokens, example.Width),
            Vocabulary = TensorView.Of(Vocabulary, example.Vocabulary, example.Width),
            Bias = example.Shaping.Bias is null ? default : TensorView.Of(Bias),
            Accumulate = accumulate,
        };

        public void AssertEqual(Written other, bool gradientsOnly = false)
        {
            if (!gradientsOnly)
            {
                Assert.Equal(LogProb, other.LogProb);
                Assert.Equal(LogSumExp, other.LogSumExp);
                Assert.Equal(Entropy, other.Entropy);
                Assert.Equal(SumOfSquares, other.SumOfSquares);
                Assert.Equal(MeanLogit, other.MeanLogit);
                Assert.Equal(Argmax, other.Argmax);
            }
            Assert.Equal(Hidden, other.Hidden);
            Assert.Equal(Vocabulary, other.Vocabulary);
            Assert.Equal(Bias, other.Bias);
        }

        private static float[] Filled(int count)
        {
            var numbers = new float[count];
            Array.Fill(numbers, 7f);
            return numbers;
        }
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Results_and_gradients_keep_the_contract(int tokens, int width, int vocabulary, string options)
    {
        var example = new HiddenExample(tokens, width, vocabulary, options);
        var forward = new Written(example);
        using var workspace = new Workspace(Device);
        LogProbs.FromHidden(Device, example.Problem, forward.Outputs, workspace);
        TokenResult<double> oracle = example.Forward<double>();
        TokenResult<float> naive = example.Forward<float>();
        Contract.Check(forward.LogProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
        Contract.Check(forward.LogSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
        Contract.Check(forward.Entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
        Contract.Check(forward.SumOfSquares, oracle.SumOfSquares, naive.SumOfSquares, Contract.Forward, "Σp²");
        Grid<double> logits = HiddenLogProbsOracle.Logits<double>(Grid.Of(example.Hidden, tokens, width), Grid.Of(example.Entries, vocabulary, width), example.Targets, -100, example.Shaping);
        // A sum of everything is as large as its terms.
        double magnitude = Enumerable.Range(0, tokens).Max(i => example.Shaping.Apply<double>(logits).Row(i).ToArray().Average(Math.Abs));
        Contract.Check(forward.MeanLogit, oracle.MeanLogit, naive.MeanLogit, Contract.Forward, "mean logit", magnitude: magnitude);
        Assert.Equal(LogProbsOracle.Top(logits, example.Targets, 1, shaping: example.Shaping), forward.Argmax.Select(token => (long)token));

        var pairs = new float[2 * tokens];
        LogProbs.FromHidden(Device, example.Problem, new() { LogSumExp = TensorView.Of(pairs, tokens, 2) }, workspace);
        for (int i = 0; i < tokens; i++)
        {
            Assert.Equal(forward.LogSumExp[i], pairs[2 * i]);
            Assert.Equal(oracle.LogSumExp[i], (double)pairs[2 * i] + pairs[2 * i + 1], 1e-6 * (1 + Math.Abs(oracle.LogSumExp[i])));
        }

        var backward = new Written(example);
        LogProbs.FromHiddenBackward(Device, example.Problem, example.Upstream, backward.Gradients(example), workspace);
        HiddenGradient<double> exact = example.Backward<double>();
        HiddenGradient<float> rough = example.Backward<float>();
        Contract.Check(backward.Hidden, exact.Hidden.Data, rough.Hidden.Data, Contract.Gradient, "gradient of the hidden states");
        Contract.Check(backward.Vocabulary, exact.Vocabulary.Data, rough.Vocabulary.Data, Contract.Gradient, "gradient of the vocabulary");
        if (example.Shaping.Bias is not null)
            Contract.Check(backward.Bias, exact.Bias, rough.Bias, Contract.Gradient, "gradient of the bias");

        // Training is both, with the same bits, in any workspace.
        long least = LogProbs.FromHiddenWorkspaceBytes(Device, example.Problem, backward: true, budget: 0), most = LogProbs.FromHiddenWorkspaceBytes(Device, example.Problem, backward: true);
        foreach (long limit in (long[])[least, (least + most) / 2, most])
        {
            var trained = new Written(example);
            using var limited = new Workspace(Device, limit);
            LogProbs.TrainFromHidden(Device, example.Problem, example.Upstream, trained.Outputs, trained.Gradients(example), limited);
            Assert.True(limited.Bytes <= limit);
            (forward with { Hidden = backward.Hidden, Vocabulary = backward.Vocabulary, Bias = backward.Bias }).AssertEqual(trained);
        }
    }

    [Theory]
    [InlineData(61, 30, 1700, "bias softcap temperature padded ignored")]
    [InlineData(40, 50, 3000, "bfloat16 ignored")]
    public void Threads_and_workspace_change_no_bit(int tokens, int width, int vocabulary, string options)
    {
        var example = new HiddenExample(tokens, width, vocabulary, options);
        var expected = new Written(example);
        using var workspace = new Workspace(Device);
        LogProbs.TrainFromHidden(Device, example.Problem, example.Upstream, expected.Outputs, expected.Gradients(example), workspace);
        foreach (int threads in (int[])[1, 2, 3, 7])
        {
            using ComputeDevice device = ComputeDevice.OpenCpu(threads);
            long least = LogProbs.FromHiddenWorkspaceBytes(device, example.Problem, backward: true, budget: 0), most = LogProbs.FromHiddenWorkspaceBytes(device, example.Problem, backward: true);
            for (int step = 0; step <= 6; step++)
            {
                using var limited = new Workspace(device, least + (most - least) * step / 6);
                var written = new Written(example);
                LogProbs.TrainFromHidden(device, example.Problem, example.Upstream, written.Outputs, written.Gradients(example), limited);
                expected.AssertEqual(written);
            }
            least = LogProbs.FromHiddenWorkspaceBytes(device, example.Problem, backward: false, budget: 0);
            using var small = new Workspace(device, least);
            var forward = new Written(example);
            LogProbs.FromHidden(device, example.Problem, forward.Outputs, small);
            (forward with { Hidden = expected.Hidden, Vocabulary = expected.Vocabulary, Bias = expected.Bias }).AssertEqual(expected);
            using var tooSmall = new Workspace(device, least - 1);
            ArgumentException thrown = Assert.Throws<ArgumentException>("workspace", () => LogProbs.FromHidden(device, example.Problem, new() { LogProb = TensorView.Of(forward.LogProb) }, tooSmall));
            Assert.StartsWith($"This needs {least} bytes of workspace; the workspace's limit is {least - 1}.", thrown.Message);
        }
    }

    [Fact]
    public void What_is_of_one_token_does_not_depend_on_the_others()
    {
        var example = new HiddenExample(60, 20, 700, "bias");
        var all = new Written(example);
        using var workspace = new Workspace(Device);
        LogProbs.TrainFromHidden(Device, example.Problem, example.Upstream, all.Outputs, all.Gradients(example), workspace);
        foreach (int token in (int[])[0, 17, 59])
        {
            float[] logProb = new float[1], entropy = new float[1], gradient = new float[20];
            HiddenProblem alone = example.Problem;
            alone.Hidden = alone.Hidden.Slice(0, token, 1);
            alone.Targets = alone.Targets.Slice(0, token, 1);
            TensorView Of(float[] upstream) => TensorView.Of(upstream[token..(token + 1)]);
            TokenUpstream arriving = new() { LogProb = Of(example.Upstream1), LogSumExp = Of(example.Upstream2), Entropy = Of(example.Upstream3), SumOfSquares = Of(example.Upstream4), MeanLogit = Of(example.Upstream5) };
            LogProbs.TrainFromHidden(Device, alone, arriving,
                new() { LogProb = TensorView.Of(logProb), Entropy = TensorView.Of(entropy) }, new() { Hidden = TensorView.Of(gradient, 1, 20) }, workspace);
            Assert.Equal((all.LogProb[token], all.Entropy[token]), (logProb[0], entropy[0]));
            Assert.Equal(all.Hidden[(token * 20)..(token * 20 + 20)], gradient);
        }
    }

    [Theory]
    [InlineData("")]
    [InlineData("bias padded ignored")]
    public void Gradients_are_added_to_what_is_there_if_asked(string options)
    {
        var example = new HiddenExample(9, 21, 200, options);
        var plain = new Written(example);
        var added = new Written(example);
        using var workspace = new Workspace(Device);
        LogProbs.FromHiddenBackward(Device, example.Problem, example.Upstream, plain.Gradients(example), workspace);
        LogProbs.FromHiddenBackward(Device, example.Problem, example.Upstream, added.Gradients(example, accumulate: true), workspace);
        foreach ((float[] before, float[] after) in ((float[], float[])[])[(plain.Hidden, added.Hidden), (plain.Vocabulary, added.Vocabulary)])
        {
            for (int i = 0; i < before.Length; i++)
                Assert.Equal(before[i] + 7, after[i], 1e-5f);
        }
        if (example.Shaping.Bias is not null)
            Assert.All(plain.Bias.Zip(added.Bias), pair => Assert.Equal(pair.First + 7, pair.Second, 1e-5f));
    }

    [Fact]
    public void Nothing_that_counts_gives_zeros_and_adds_nothing()
    {
        foreach (int tokens in (int[])[0, 4])
        {
            var example = new HiddenExample(Math.Max(1, tokens), 6, 30, "bias");
            Array.Fill(example.Targets, -100);
            HiddenProblem problem = example.Problem;
            if (tokens == 0)
            {
                problem.Hidden = problem.Hidden.Slice(0, 0, 0);
                problem.Targets = problem.Targets.Slice(0, 0, 0);
            }
            using var workspace = new Workspace(Device);
            float[] hidden = [.. Enumerable.Repeat(7f, tokens * 6)], vocabulary = [.. Enumerable.Repeat(7f, 180)], bias = [.. Enumerable.Repeat(7f, 30)], logProb = [.. Enumerable.Repeat(7f, tokens)];
            foreach (bool accumulate in (bool[])[true, false])
            {
                LogProbs.TrainFromHidden(Device, problem, new() { LogProb = TensorView.Of(new float[tokens], tokens) }, new() { LogProb = TensorView.Of(logProb, tokens) },
                    new() { Hidden = TensorView.Of(hidden, tokens, 6), Vocabulary = TensorView.Of(vocabulary, 30, 6), Bias = TensorView.Of(bias), Accumulate = accumulate }, workspace);
                Assert.All(hidden.Concat(vocabulary).Concat(bias), x => Assert.Equal(accumulate ? 7 : 0, x));
                Assert.All(logProb, x => Assert.Equal(0, x));
            }
        }
    }

    [Fact]
    public void Gradients_match_finite_differences_of_the_oracle()
    {
        var example = new HiddenExample(4, 5, 11, "bias softcap temperature padded ignored weights");
        var written = new Written(example);
        using var workspace = new Workspace(Device);
        LogProbs.FromHiddenBackward(Device, example.Problem, example.Upstream, written.Gradients(example), workspace);
        Grid<double> hidden = Grid.Of(example.Hidden, 4, 5), vocabulary = Grid.Of(example.Entries, 11, 5);
        hidden.Row(1).Fill(0.5);
        vocabulary.Data.AsSpan(8 * 5).Fill(0.5);
        double[] bias = example.Shaping.Bias!;
        double Loss()
        {
            TokenResult<double> result = HiddenLogProbsOracle.Forward<double>(hidden, vocabulary, example.Targets, shaping: example.Shaping);
            return Enumerable.Range(0, 4).Sum(i => example.Upstream1[i] * result.LogProb[i] + example.Upstream2[i] * result.LogSumExp[i] + example.Upstream3[i] * result.Entropy[i]
                + example.Upstream4[i] * result.SumOfSquares[i] + example.Upstream5[i] * result.MeanLogit[i]);
        }
        foreach ((double[] expected, float[] ours) in ((double[], float[])[])[(FiniteDifferences.Gradient(hidden.Data, Loss), written.Hidden),
            (FiniteDifferences.Gradient(vocabulary.Data, Loss), written.Vocabulary), (FiniteDifferences.Gradient(bias, Loss), written.Bias)])
        {
            for (int i = 0; i < expected.Length; i++)
                Assert.Equal(expected[i], ours[i], 1e-5);
        }
    }

    [Fact]
    public void Infinities_and_NaN_surface_in_their_token_only()
    {
        var example = new HiddenExample(5, 8, 90, "bias");
        example.Hidden[8] = float.NaN;
        example.Shaping.Bias![3] = double.NegativeInfinity;
        var written = new Written(example);
        using var workspace = new Workspace(Device);
        LogProbs.TrainFromHidden(Device, example.Problem, example.Upstream, written.Outputs, written.Gradients(example), workspace);
        for (int token = 0; token < 5; token++)
        {
            Assert.Equal(token == 1, float.IsNaN(written.LogProb[token]));
            Assert.Equal(token == 1, float.IsNaN(written.Entropy[token]));
            Assert.Equal(token == 1, float.IsNaN(written.Hidden[token * 8]));
        }
    }

    [Theory]
    [InlineData(96, 1024, 8192)]
    [InlineData(1024, 1024, 32_000)]
    public void What_is_told_is_what_is_told_for_it(int tokens, int width, int vocabulary)
    {
        // Shapes alone; nothing lies there.
        TensorView At(ElementType type, params ReadOnlySpan<long> shape) => TensorView.FromPointer(Device, 1 << 20, type, shape);
        HiddenProblem Problem() => new() { Hidden = At(ElementType.Float32, tokens, width), Vocabulary = At(ElementType.Float32, vocabulary, width), Targets = At(ElementType.Int32, tokens) };
        foreach (bool backward in (bool[])[false, true])
        {
            for (long budget = 0; budget < 40_000_000; budget += 1_000_000)
            {
                long told = LogProbs.FromHiddenWorkspaceBytes(Device, Problem(), backward, budget);
                Assert.Equal(told, LogProbs.FromHiddenWorkspaceBytes(Device, Problem(), backward, told));
                told = PreferenceLogProbs.WorkspaceBytes(Device, new() { Policy = Problem(), Reference = Problem() }, backward, budget);
                Assert.Equal(told, PreferenceLogProbs.WorkspaceBytes(Device, new() { Policy = Problem(), Reference = Problem() }, backward, told));
            }
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Beyond_a_chunk_the_workspace_grows_neither_with_the_tokens_nor_with_the_vocabulary(bool backward)
    {
        const long most = 32_000_000;
        TensorView At(ElementType type, params ReadOnlySpan<long> shape) => TensorView.FromPointer(Device, 1 << 20, type, shape);
        foreach (long vocabulary in (long[])[32_000, 64_000, 128_256, 151_936, 256_000])
        {
            long Bytes(long tokens, long budget = long.MaxValue) => LogProbs.FromHiddenWorkspaceBytes(Device,
                new() { Hidden = At(ElementType.Float32, tokens, 1024), Vocabulary = At(ElementType.Float32, vocabulary, 1024), Targets = At(ElementType.Int32, tokens) }, backward, budget);
            long bytes = Bytes(6144);
            Assert.InRange(bytes, most / 2, backward ? 2 * most : most);
            Assert.Equal(bytes, Bytes(1_000_000));
            Assert.InRange(Bytes(1_000_000, 4 * most), backward ? 2 * most : bytes, backward ? 4 * most : bytes);
            Assert.Equal(backward ? Bytes(384, 1L << 40) : bytes, Bytes(1_000_000, 1L << 40));
        }
    }

    [Fact]
    public void Bad_input_throws_naming_it()
    {
        using var workspace = new Workspace(Device);
        using var foreign = new Workspace(new ForeignDevice());
        float[] hidden = new float[12], entries = new float[15], out4 = new float[4], bias = new float[5], wide = new float[30];
        int[] targets = [0, 4, -100, 2];
        Throws("problem.Hidden is required.", problem => { problem.Hidden = default; return problem; });
        Throws("problem.Vocabulary has the shape [5, 2]; it should be [any, 3].", problem => { problem.Vocabulary = TensorView.Of(entries, 5, 2); return problem; });
        Throws("problem.Vocabulary has stride 2 along the width; it must be 1.", problem => { problem.Vocabulary = TensorView.Of(wide, 5, 3, 2).Select(2, 0); return problem; });
        Throws("problem.Targets has the shape [5]; it should be [4].", problem => { problem.Targets = TensorView.Of(new int[5]); return problem; });
        Throws("problem.Targets[1] is 4; it must lie between 0 and 3, or be -100 to ignore the token.", problem => { problem.ValidVocabulary = 4; return problem; });
        Throws("problem.Bias has the shape [4]; it should be [5].", problem => { problem.Bias = TensorView.Of(out4); return problem; });
        Throws("problem.Hidden holds Int32; this operation takes Float32 or Float16 or BFloat16.", problem => { problem.Hidden = TensorView.Of(new int[12], 4, 3); return problem; });
        Throws("(tokens + 1) · (vocabulary + width) of problem.Hidden is 360287970189639695; it must be at most 2^48.",
            problem => { problem.Vocabulary = TensorView.Of(new float[3], 1, 3).Expand(0, 1L << 56); return problem; });
        Assert.Throws<ArgumentNullException>("workspace", () => LogProbs.FromHidden(Device, Good(), new() { LogProb = TensorView.Of(out4) }, null!));
        Assert.Throws<ArgumentException>("workspace", () => LogProbs.FromHidden(Device, Good(), new() { LogProb = TensorView.Of(out4) }, foreign));
        Assert.Throws<ArgumentException>("outputs", () => LogProbs.FromHidden(Device, Good(), default, workspace));
        Assert.Throws<ArgumentException>("outputs.LogProb", () => LogProbs.FromHidden(Device, Good(), new() { LogProb = TensorView.Of(hidden, 4) }, workspace));
        Assert.Throws<ArgumentException>("gradients", () => LogProbs.FromHiddenBackward(Device, Good(), default, default, workspace));
        Assert.Throws<ArgumentException>("upstream", () => LogProbs.FromHiddenBackward(Device, Good(), default, new() { Hidden = TensorView.Of(new float[12], 4, 3) }, workspace));
        Assert.Throws<ArgumentException>("upstream", () => LogProbs.TrainFromHidden(Device, Good(), default, new() { LogProb = TensorView.Of(out4) }, new() { Hidden = TensorView.Of(new float[12], 4, 3) }, workspace));
        Assert.Throws<ArgumentException>("gradients.Hidden", () => LogProbs.FromHiddenBackward(Device, Good(), default, new() { Hidden = TensorView.Of(hidden, 4, 3) }, workspace));
        Assert.Throws<ArgumentException>("gradients.Vocabulary", () => LogProbs.FromHiddenBackward(Device, Good(), default, new() { Vocabulary = TensorView.Of(wide, 5, 3, 2).Select(2, 0) }, workspace));
        Assert.Throws<ArgumentException>("gradients.Bias", () => LogProbs.FromHiddenBackward(Device, Good(), default, new() { Bias = TensorView.Of(new float[5]) }, workspace));
        Assert.Throws<ArgumentException>("upstream.LogProb", () => LogProbs.FromHiddenBackward(Device, Good(), new() { LogProb = TensorView.Of(bias) }, new() { Hidden = TensorView.Of(new float[12], 4, 3) }, workspace));
        Assert.Throws<ArgumentException>("outputs.LogProb", () => LogProbs.TrainFromHidden(Device, Good(), new() { LogProb = TensorView.Of(out4) }, new() { LogProb = TensorView.Of(out4) }, new() { Hidden = TensorView.Of(new float[12], 4, 3) }, workspace));

        HiddenProblem Good() => new() { Hidden = TensorView.Of(hidden, 4, 3), Vocabulary = TensorView.Of(entries, 5, 3), Targets = TensorView.Of(targets) };

        void Throws(string message, Change change)
        {
            ArgumentException thrown = Assert.ThrowsAny<ArgumentException>(() => LogProbs.FromHidden(Device, change(Good()), new() { LogProb = TensorView.Of(out4) }, workspace));
            Assert.StartsWith(message, thrown.Message);
        }
    }

    private delegate HiddenProblem Change(HiddenProblem problem);
}
