using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class PreferenceLogProbsTests
{
    private const int Pairs = 4, Tokens = 96, Width = 13, Vocabulary = 650;

    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    // What belongs to no answer has NaN for hidden states and a target that doesn't exist.
    private sealed class Answers
    {
        private readonly HiddenExample example, other;
        private readonly bool[] mask;
        private readonly bool masked, packed;

        public Answers(string kind)
        {
            (masked, packed, Mean) = (kind.Contains("masked"), kind.Contains("packed"), kind.Contains("mean"));
            string options = kind.Contains("shaped") ? "bias softcap temperature padded ignored" : kind.Contains("bfloat16") ? "bfloat16" : "";
            example = new(Tokens, Width, Vocabulary, options);
            other = new(Tokens, Width - 4, Vocabulary, options);
            // Packed: an empty answer, one token, and tokens before the first and after the last.
            Bounds = packed ? [3, 40, 40, 41, 60, 70, 80, 85, 90] : [.. Enumerable.Range(0, 2 * Pairs + 1).Select(s => s * (Tokens / (2L * Pairs)))];
            mask = [.. Enumerable.Range(0, Tokens).Select(i => !masked || i % 5 != 2)];
            Targets = [.. example.Targets.Select((target, i) => i < Bounds[0] || i >= Bounds[^1] || !mask[i] ? -100 : target)];
            for (int i = 0; i < Tokens; i++)
            {
                if (Targets[i] != -100 || example.Targets[i] == -100)
                    continue;
                example.Hidden.AsSpan(i * Width, Width).Fill(float.NaN);
                example.Targets[i] = 100_000;
            }
        }

        public bool Mean { get; }
        public long[] Bounds { get; }
        public long[] Targets { get; }
        public LogitShaping Shaping => example.Shaping;
        public Grid<double> Hidden => Grid.Of(example.Hidden, Tokens, Width);
        public Grid<double> Entries => Grid.Of(example.Entries, Vocabulary, Width);
        public Grid<double> ReferenceHidden => Grid.Of(other.Hidden, Tokens, Width - 4);
        public Grid<double> ReferenceEntries => Grid.Of(other.Entries, Vocabulary, Width - 4);
        public bool HasBias => example.Shaping.Bias is not null;

        public PreferenceProblem Problem
        {
            get
            {
                HiddenProblem reference = other.Problem;
                reference.Targets = example.Problem.Targets;
                return new()
                {
                    Policy = example.Problem,
                    Reference = reference,
                    CumulativeLengths = packed ? TensorView.Of(Bounds) : default,
                    Mask = masked ? TensorView.Of(mask) : default,
                    Reduction = Mean ? SequenceReduction.Mean : SequenceReduction.Sum,
                };
            }
        }
    }

    private sealed record Written(float[] Chosen, float[] Rejected, float[] ReferenceChosen, float[] ReferenceRejected, float[] Hidden, float[] Vocabulary, float[] Bias)
    {
        public Written() : this(new float[Pairs], new float[Pairs], new float[Pairs], new float[Pairs], new float[Tokens * Width], new float[PreferenceLogProbsTests.Vocabulary * Width], new float[PreferenceLogProbsTests.Vocabulary])
        {
        }

        public void Run(ComputeDevice device, Answers answers, float[] ofChosen, float[] ofRejected, Workspace workspace, bool accumulate = false)
        {
            PreferenceLogProbs.FromHidden(device, answers.Problem, new()
            {
                Chosen = TensorView.Of(Chosen),
                Rejected = TensorView.Of(Rejected),
                ReferenceChosen = TensorView.Of(ReferenceChosen),
                ReferenceRejected = TensorView.Of(ReferenceRejected),
            }, workspace);
            PreferenceLogProbs.FromHiddenBackward(device, answers.Problem, new() { Chosen = TensorView.Of(ofChosen), Rejected = TensorView.Of(ofRejected) }, new()
            {
                Hidden = TensorView.Of(Hidden, Tokens, Width),
                Vocabulary = TensorView.Of(Vocabulary, PreferenceLogProbsTests.Vocabulary, Width),
                Bias = answers.HasBias ? TensorView.Of(Bias) : default,
                Accumulate = accumulate,
            }, workspace);
        }

        public void AssertEqual(Written other)
        {
            Assert.Equal(Chosen, other.Chosen);
            Assert.Equal(Rejected, other.Rejected);
            Assert.Equal(ReferenceChosen, other.ReferenceChosen);
            Assert.Equal(ReferenceRejected, other.ReferenceRejected);
            Assert.Equal(Hidden, other.Hidden);
            Assert.Equal(Vocabulary, other.Vocabulary);
            Assert.Equal(Bias, other.Bias);
        }
    }

    public static TheoryData<string> Kinds => ["padded", "padded masked mean", "packed", "packed mean shaped", "packed masked", "padded bfloat16"];

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Answers_and_gradients_keep_the_contract(string kind)
    {
        var answers = new Answers(kind);
        var written = new Written();
        float[] ofChosen = Seeded.Normal(Pairs, 1), ofRejected = Seeded.Normal(Pairs, 2);
        using var workspace = new Workspace(Device);
        written.Run(Device, answers, ofChosen, ofRejected, workspace);
        double[] exact = AnswerOracle.Forward<double>(answers.Hidden, answers.Entries, answers.Targets, answers.Bounds, answers.Mean, answers.Shaping);
        float[] naive = AnswerOracle.Forward<float>(answers.Hidden, answers.Entries, answers.Targets, answers.Bounds, answers.Mean, answers.Shaping);
        Contract.Check([.. written.Chosen, .. written.Rejected], exact, naive, Contract.Forward, "policy");
        exact = AnswerOracle.Forward<double>(answers.ReferenceHidden, answers.ReferenceEntries, answers.Targets, answers.Bounds, answers.Mean, answers.Shaping);
        naive = AnswerOracle.Forward<float>(answers.ReferenceHidden, answers.ReferenceEntries, answers.Targets, answers.Bounds, answers.Mean, answers.Shaping);
        Contract.Check([.. written.ReferenceChosen, .. written.ReferenceRejected], exact, naive, Contract.Forward, "reference");

        double[] upstream = [.. ofChosen, .. ofRejected];
        HiddenGradient<double> gradient = AnswerOracle.Backward<double>(answers.Hidden, answers.Entries, answers.Targets, answers.Bounds, answers.Mean, upstream, answers.Shaping);
        HiddenGradient<float> rough = AnswerOracle.Backward<float>(answers.Hidden, answers.Entries, answers.Targets, answers.Bounds, answers.Mean, upstream, answers.Shaping);
        Contract.Check(written.Hidden, gradient.Hidden.Data, rough.Hidden.Data, Contract.Gradient, "gradient of the hidden states");
        Contract.Check(written.Vocabulary, gradient.Vocabulary.Data, rough.Vocabulary.Data, Contract.Gradient, "gradient of the vocabulary");
        if (answers.HasBias)
            Contract.Check(written.Bias, gradient.Bias, rough.Bias, Contract.Gradient, "gradient of the bias");
    }

    [Fact]
    public void Threads_and_workspace_change_no_bit()
    {
        var answers = new Answers("packed masked mean");
        float[] ofChosen = Seeded.Normal(Pairs, 1), ofRejected = Seeded.Normal(Pairs, 2);
        var expected = new Written();
        using var workspace = new Workspace(Device);
        expected.Run(Device, answers, ofChosen, ofRejected, workspace);
        foreach (int threads in (int[])[1, 2, 3, 7])
        {
            using ComputeDevice device = ComputeDevice.OpenCpu(threads);
            long least = PreferenceLogProbs.WorkspaceBytes(device, answers.Problem, backward: true, budget: 0), most = PreferenceLogProbs.WorkspaceBytes(device, answers.Problem, backward: true);
            for (int step = 0; step <= 3; step++)
            {
                using var limited = new Workspace(device, least + (most - least) * step / 3);
                var written = new Written();
                written.Run(device, answers, ofChosen, ofRejected, limited);
                expected.AssertEqual(written);
            }
            using var tooSmall = new Workspace(device, least - 1);
            Assert.StartsWith($"This needs {least} bytes of workspace", Assert.Throws<ArgumentException>(() => PreferenceLogProbs.FromHiddenBackward(device, answers.Problem, new() { Chosen = TensorView.Of(ofChosen) },
                new() { Hidden = TensorView.Of(expected.Hidden, Tokens, Width) }, tooSmall)).Message);
        }
    }

    [Fact]
    public void Gradients_of_a_preference_loss_match_finite_differences_of_the_oracle()
    {
        const int width = 3, vocabulary = 7, tokens = 8;
        Grid<double> hidden = Grid.Of(Seeded.Normal(tokens * width, 1), tokens, width), entries = Grid.Of(Seeded.Normal(vocabulary * width, 2), vocabulary, width), reference = Grid.Of(Seeded.Normal(tokens * width, 3), tokens, width);
        long[] targets = [1, 2, -100, 3, 4, 5, 6, 0], bounds = [0, 2, 4, 6, 8];
        float[] h = Array.ConvertAll(hidden.Data, x => (float)x), v = Array.ConvertAll(entries.Data, x => (float)x), r = Array.ConvertAll(reference.Data, x => (float)x);
        double Loss()
        {
            double[] policy = AnswerOracle.Forward<double>(hidden, entries, targets, bounds, mean: false), old = AnswerOracle.Forward<double>(reference, Grid.Of(v, vocabulary, width), targets, bounds, mean: false);
            return Enumerable.Range(0, 2).Sum(pair => Math.Log(1 + Math.Exp(-0.5 * (policy[pair] - old[pair] - policy[2 + pair] + old[2 + pair])))) / 2;
        }
        PreferenceProblem problem = new()
        {
            Policy = new() { Hidden = TensorView.Of(h, tokens, width), Vocabulary = TensorView.Of(v, vocabulary, width), Targets = TensorView.Of(targets) },
            Reference = new() { Hidden = TensorView.Of(r, tokens, width), Vocabulary = TensorView.Of(v, vocabulary, width), Targets = TensorView.Of(targets) },
        };
        using var workspace = new Workspace(Device);
        float[][] sums = [new float[2], new float[2], new float[2], new float[2], new float[2], new float[2]];
        float[] ofHidden = new float[h.Length], ofEntries = new float[v.Length];
        PreferenceLogProbs.FromHidden(Device, problem, new() { Chosen = TensorView.Of(sums[0]), Rejected = TensorView.Of(sums[1]), ReferenceChosen = TensorView.Of(sums[2]), ReferenceRejected = TensorView.Of(sums[3]) }, workspace);
        PreferenceLoss.Evaluate(Device, new() { Chosen = TensorView.Of(sums[0]), Rejected = TensorView.Of(sums[1]), ReferenceChosen = TensorView.Of(sums[2]), ReferenceRejected = TensorView.Of(sums[3]) }, new DpoSigmoid(0.5f),
            new() { ChosenGradient = TensorView.Of(sums[4]), RejectedGradient = TensorView.Of(sums[5]) }, default, workspace);
        PreferenceLogProbs.FromHiddenBackward(Device, problem, new() { Chosen = TensorView.Of(sums[4]), Rejected = TensorView.Of(sums[5]) },
            new() { Hidden = TensorView.Of(ofHidden, tokens, width), Vocabulary = TensorView.Of(ofEntries, vocabulary, width) }, workspace);
        foreach ((double[] variable, float[] ours) in ((double[], float[])[])[(hidden.Data, ofHidden), (entries.Data, ofEntries)])
        {
            double[] expected = FiniteDifferences.Gradient(variable, Loss);
            for (int i = 0; i < expected.Length; i++)
                Assert.Equal(expected[i], ours[i], 2e-6);
        }
    }

    [Fact]
    public void Gradients_are_added_to_what_is_there_if_asked_and_overwritten_if_not()
    {
        var answers = new Answers("packed");
        float[] ofChosen = Seeded.Normal(Pairs, 1), ofRejected = new float[Pairs];
        using var workspace = new Workspace(Device);
        Written once = new(), twice = new(), over = new();
        once.Run(Device, answers, ofChosen, ofRejected, workspace);
        twice.Run(Device, answers, ofChosen, ofRejected, workspace);
        twice.Run(Device, answers, ofChosen, ofRejected, workspace, accumulate: true);
        for (int i = 0; i < once.Vocabulary.Length; i++)
            Assert.Equal(2 * once.Vocabulary[i], twice.Vocabulary[i], 1e-5);
        for (int i = 0; i < once.Hidden.Length; i++)
            Assert.Equal(2 * once.Hidden[i], twice.Hidden[i]);
        // One alone is the other at zero.
        Array.Fill(over.Hidden, 7);
        PreferenceLogProbs.FromHiddenBackward(Device, answers.Problem, new() { Chosen = TensorView.Of(ofChosen) }, new() { Hidden = TensorView.Of(over.Hidden, Tokens, Width) }, workspace);
        Assert.Equal(once.Hidden, over.Hidden);
    }

    [Fact]
    public void A_target_that_does_not_exist_throws_before_anything_is_written()
    {
        var answers = new Answers("packed");
        float[] chosen = [7, 7, 7, 7], reference = [7, 7, 7, 7];
        PreferenceProblem problem = answers.Problem;
        long[] targets = [.. answers.Targets];
        targets[50] = Vocabulary;
        HiddenProblem of = problem.Reference;
        of.Targets = TensorView.Of(targets);
        problem.Reference = of;
        using var workspace = new Workspace(Device);
        try
        {
            PreferenceLogProbs.FromHidden(Device, problem, new() { Chosen = TensorView.Of(chosen), ReferenceChosen = TensorView.Of(reference) }, workspace);
            Assert.Fail("Nothing was thrown.");
        }
        catch (ArgumentOutOfRangeException thrown)
        {
            Assert.StartsWith($"problem.Reference.Targets[50] is {Vocabulary}; it must lie between 0 and {Vocabulary - 1}, or be -100 to ignore the token.", thrown.Message);
        }
        Assert.Equal([7f, 7f, 7f, 7f], chosen);
        Assert.Equal([7f, 7f, 7f, 7f], reference);
    }

    [Fact]
    public void A_reference_without_targets_has_the_policy_s()
    {
        var answers = new Answers("padded masked shaped");
        Written expected = new(), written = new();
        using var workspace = new Workspace(Device);
        expected.Run(Device, answers, new float[Pairs], new float[Pairs], workspace);
        PreferenceProblem problem = answers.Problem;
        // What its own ignored target would be plays no part.
        problem.Reference = problem.Reference with { Targets = default, IgnoreTarget = 0 };
        Assert.Equal(PreferenceLogProbs.WorkspaceBytes(Device, answers.Problem, backward: false), PreferenceLogProbs.WorkspaceBytes(Device, problem, backward: false));
        PreferenceLogProbs.FromHidden(Device, problem, new() { ReferenceChosen = TensorView.Of(written.ReferenceChosen), ReferenceRejected = TensorView.Of(written.ReferenceRejected) }, workspace);
        Assert.Equal(expected.ReferenceChosen, written.ReferenceChosen);
        Assert.Equal(expected.ReferenceRejected, written.ReferenceRejected);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_token_that_counts_in_one_model_only_throws_before_anything_is_written(bool inPolicy)
    {
        // The ignored targets differ, outside the answers and behind the mask too; that is no matter.
        var answers = new Answers("padded masked");
        float[] chosen = [7, 7, 7, 7];
        long[] targets = [.. answers.Targets.Select(target => target == -100 ? -1 : target)];
        PreferenceProblem problem = answers.Problem;
        problem.Reference = problem.Reference with { Targets = TensorView.Of(targets), IgnoreTarget = -1 };
        using var workspace = new Workspace(Device);
        PreferenceLogProbs.FromHidden(Device, problem, new() { ReferenceRejected = TensorView.Of(new float[Pairs]) }, workspace);

        long[] own = [.. answers.Targets];
        (inPolicy ? ref targets[50] : ref own[50]) = inPolicy ? -1 : -100;
        problem.Policy = problem.Policy with { Targets = TensorView.Of(own) };
        string message = inPolicy
            ? $"problem.Reference.Targets[50] is -1, which ignores a token that problem.Policy.Targets, {own[50]} there, counts; both must count the same ones. Without problem.Reference.Targets they do."
            : $"problem.Reference.Targets[50] is {targets[50]}, which counts a token that problem.Policy.Targets, -100 there, ignores; both must count the same ones. Without problem.Reference.Targets they do.";
        try
        {
            PreferenceLogProbs.FromHidden(Device, problem, new() { Chosen = TensorView.Of(chosen) }, workspace);
            Assert.Fail("Nothing was thrown.");
        }
        catch (ArgumentException thrown)
        {
            Assert.Equal("problem.Reference.Targets", thrown.ParamName);
            Assert.StartsWith(message, thrown.Message);
        }
        Assert.Equal([7f, 7f, 7f, 7f], chosen);
    }

    [Fact]
    public void Answers_without_tokens_are_told_by_their_bounds_alone()
    {
        // Many more answers than tokens: one token is the last but one pair's chosen answer.
        const int pairs = 2000, width = 4, vocabulary = 8;
        foreach (int tokens in (int[])[0, 1])
        {
            float[] hidden = Seeded.Normal(tokens * width, 1), entries = Seeded.Normal(vocabulary * width, 2), chosen = [.. Enumerable.Repeat(7f, pairs)], rejected = [.. chosen], logProb = new float[tokens];
            float[] gradient = new float[entries.Length], expected = new float[entries.Length];
            int[] targets = new int[tokens];
            PreferenceProblem problem = new() { Policy = Policy(), CumulativeLengths = TensorView.Of((int[])[.. Enumerable.Range(0, 2 * pairs + 1).Select(s => s < pairs - 1 ? 0 : tokens)]) };
            using Workspace forward = new(Device, PreferenceLogProbs.WorkspaceBytes(Device, problem, backward: false)), backward = new(Device, PreferenceLogProbs.WorkspaceBytes(Device, problem, backward: true)), any = new(Device);
            PreferenceLogProbs.FromHidden(Device, problem, new() { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) }, forward);
            LogProbs.FromHidden(Device, Policy(), new() { LogProb = TensorView.Of(logProb, tokens) }, any);
            Assert.Equal(Enumerable.Range(0, pairs).Select(pair => pair == pairs - 2 && tokens == 1 ? logProb[0] : 0), chosen);
            Assert.All(rejected, x => Assert.Equal(0, x));
            PreferenceLogProbs.FromHiddenBackward(Device, problem, new() { Chosen = TensorView.Of([.. Enumerable.Repeat(1f, pairs)]) }, new() { Vocabulary = TensorView.Of(gradient, vocabulary, width) }, backward);
            LogProbs.FromHiddenBackward(Device, Policy(), new() { LogProb = TensorView.Of([.. Enumerable.Repeat(1f, tokens)], tokens) }, new() { Vocabulary = TensorView.Of(expected, vocabulary, width) }, any);
            Assert.Equal(expected, gradient);

            // Without bounds the workspace's size has no place for them.
            string message = $"{tokens} tokens aren't {2 * pairs} sequences of one length, at least 1; set problem.CumulativeLengths.";
            Throws(message, () => PreferenceLogProbs.FromHidden(Device, new() { Policy = Policy() }, new() { Chosen = TensorView.Of(chosen) }, any));
            Throws(message, () => PreferenceLogProbs.FromHiddenBackward(Device, new() { Policy = Policy() }, new() { Chosen = TensorView.Of(chosen) }, new() { Vocabulary = TensorView.Of(gradient, vocabulary, width) }, any));

            HiddenProblem Policy() => new() { Hidden = TensorView.Of(hidden, tokens, width), Vocabulary = TensorView.Of(entries, vocabulary, width), Targets = TensorView.Of(targets, tokens) };
        }

        static void Throws(string message, Action call) => Assert.StartsWith(message, Assert.Throws<ArgumentException>("problem.CumulativeLengths", call).Message);
    }

    [Fact]
    public void Bad_input_throws_naming_it()
    {
        float[] hidden = new float[24], entries = new float[15], bias = new float[5], out2 = new float[2];
        int[] targets = new int[8];
        using var workspace = new Workspace(Device);
        PreferenceProblem Good() => new() { Policy = new() { Hidden = TensorView.Of(hidden, 8, 3), Vocabulary = TensorView.Of(entries, 5, 3), Targets = TensorView.Of(targets) } };
        Throws("outputs asks for nothing; set at least one of Chosen, Rejected, ReferenceChosen, ReferenceRejected.", problem => problem, default);
        Throws("problem.Policy.Hidden is required.", problem => { problem.Policy = default; return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("8 tokens aren't 6 sequences of one length, at least 1; set problem.CumulativeLengths.", problem => problem, new() { Chosen = TensorView.Of(new float[3]) });
        Throws("problem.CumulativeLengths has the shape [3]; it should be [5].", problem => { problem.CumulativeLengths = TensorView.Of(new int[3]); return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("problem.CumulativeLengths[2] is 9; it must lie between the one before, 4, and the number of tokens, 8.", problem => { problem.CumulativeLengths = TensorView.Of((int[])[0, 4, 9, 9, 9]); return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("problem.Mask has the shape [7]; it should be [8].", problem => { problem.Mask = TensorView.Of(new bool[7]); return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("outputs.Rejected has the shape [3]; it should be [2].", problem => problem, new() { Chosen = TensorView.Of(out2), Rejected = TensorView.Of(new float[3]) });
        Throws("outputs.Chosen and outputs.Rejected share memory.", problem => problem, new() { Chosen = TensorView.Of(out2), Rejected = TensorView.Of(out2) });
        Throws("outputs.Chosen and problem.Policy.Hidden share memory.", problem => problem, new() { Chosen = TensorView.Of(hidden, 24).Slice(0, 0, 2) });
        Throws("outputs asks for log-probs of the reference, but there are no problem.Reference.Hidden.", problem => problem, new() { ReferenceChosen = TensorView.Of(out2) });
        Throws("problem.Reference.Hidden has 4 tokens; the policy has 8.", problem =>
        {
            problem.Reference = new() { Hidden = TensorView.Of(new float[12], 4, 3), Vocabulary = TensorView.Of(entries, 5, 3), Targets = TensorView.Of(new int[4]) };
            return problem;
        }, new() { Chosen = TensorView.Of(out2) });
        Throws("problem.Policy.Temperature is -1; it must be a positive number.", problem => { problem.Policy = problem.Policy with { Temperature = -1 }; return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("problem.Reference.Hidden is required where problem.Reference has Vocabulary, Targets, Bias or MeanWeights.", problem => { problem.Reference = new() { Vocabulary = problem.Policy.Vocabulary }; return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("problem.Reference.Hidden is required where", problem => { problem.Reference = new() { Targets = problem.Policy.Targets }; return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("problem.Reference.Vocabulary is required.", problem => { problem.Reference = new() { Hidden = problem.Policy.Hidden }; return problem; }, new() { Chosen = TensorView.Of(out2) });
        Throws("outputs.Chosen and problem.Reference.Bias share memory.", problem =>
        {
            problem.Reference = new() { Hidden = problem.Policy.Hidden, Vocabulary = problem.Policy.Vocabulary, Bias = TensorView.Of(bias) };
            return problem;
        }, new() { Chosen = TensorView.Of(bias).Slice(0, 0, 2) });
        Throws("problem.Reduction is no reduction.", problem => { problem.Reduction = (SequenceReduction)7; return problem; }, new() { Chosen = TensorView.Of(out2) });
        Assert.StartsWith("problem.Reference.Hidden is required where", Assert.Throws<ArgumentNullException>("problem.Reference.Hidden",
            () => PreferenceLogProbs.WorkspaceBytes(Device, Good() with { Reference = new() { Vocabulary = TensorView.Of(entries, 5, 3) } }, backward: false)).Message);
        Assert.StartsWith("problem.CumulativeLengths has the shape [2, 2]; it should be [any].", Assert.Throws<ArgumentException>(
            () => PreferenceLogProbs.WorkspaceBytes(Device, Good() with { CumulativeLengths = TensorView.Of(new int[4], 2, 2) }, backward: false)).Message);
        Assert.Throws<ArgumentOutOfRangeException>("budget", () => PreferenceLogProbs.WorkspaceBytes(Device, Good(), backward: false, budget: -1));
        Assert.StartsWith("upstream holds nothing;", Assert.Throws<ArgumentException>(() => PreferenceLogProbs.FromHiddenBackward(Device, Good(), default, new() { Hidden = TensorView.Of(new float[24], 8, 3) }, workspace)).Message);
        Assert.StartsWith("gradients asks for nothing;", Assert.Throws<ArgumentException>(() => PreferenceLogProbs.FromHiddenBackward(Device, Good(), new() { Chosen = TensorView.Of(out2) }, default, workspace)).Message);
        Assert.StartsWith("gradients.Vocabulary and problem.Reference.Vocabulary share memory.", Assert.Throws<ArgumentException>(() =>
        {
            float[] reference = new float[15];
            PreferenceProblem problem = Good();
            problem.Reference = new() { Hidden = TensorView.Of(new float[24], 8, 3), Vocabulary = TensorView.Of(reference, 5, 3), Targets = TensorView.Of(targets) };
            PreferenceLogProbs.FromHiddenBackward(Device, problem, new() { Chosen = TensorView.Of(out2) }, new() { Vocabulary = TensorView.Of(reference, 5, 3) }, workspace);
        }).Message);
        Assert.StartsWith("gradients.Hidden and upstream.Chosen share memory.", Assert.Throws<ArgumentException>(() =>
        {
            float[] both = new float[24];
            PreferenceLogProbs.FromHiddenBackward(Device, Good(), new() { Chosen = TensorView.Of(both, 24).Slice(0, 0, 2) }, new() { Hidden = TensorView.Of(both, 8, 3) }, workspace);
        }).Message);

        void Throws(string message, Change change, in PreferenceOutputs outputs)
        {
            try
            {
                PreferenceLogProbs.FromHidden(Device, change(Good()), outputs, workspace);
            }
            catch (ArgumentException thrown)
            {
                Assert.StartsWith(message, thrown.Message);
                return;
            }
            Assert.Fail($"Nothing was thrown: {message}");
        }
    }

    private delegate PreferenceProblem Change(PreferenceProblem problem);

    [Fact]
    public void A_device_that_lacks_it_says_so_by_name()
    {
        var foreign = new ForeignDevice();
        using var workspace = new Workspace(foreign);
        TensorView At(int page, params ReadOnlySpan<long> shape) => TensorView.FromPointer(foreign, 4096 * page, ElementType.Float32, shape);
        PreferenceProblem Problem() => new() { Policy = new() { Hidden = At(1, 4, 3), Vocabulary = At(2, 5, 3), Targets = TensorView.FromPointer(foreign, 4096 * 3, ElementType.Int32, 4) } };
        Lacks(() => PreferenceLogProbs.FromHidden(foreign, Problem(), new() { Chosen = At(4, 2) }, workspace));
        Lacks(() => PreferenceLogProbs.FromHiddenBackward(foreign, Problem(), new() { Chosen = At(4, 2) }, new() { Hidden = At(5, 4, 3) }, workspace));
        Lacks(() => PreferenceLogProbs.WorkspaceBytes(foreign, Problem(), backward: true));

        static void Lacks(Action call) => Assert.Equal("The device a foreign device doesn't offer log-probs of answers from hidden states yet; use ComputeDevice.Cpu.", Assert.Throws<NotSupportedException>(call).Message);
    }
}
