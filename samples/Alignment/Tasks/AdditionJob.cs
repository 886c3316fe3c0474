using TransformerKernels;

namespace Alignment;

/// <summary>How long and with what the main job trains; the defaults end well within two minutes on two cores.</summary>
internal sealed record AdditionSettings
{
    public int Seed { get; init; } = 1;

    public int SupervisedSteps { get; init; } = 1800;

    /// <summary>Steps of preference optimisation, and of further imitation beside it.</summary>
    public int PreferenceSteps { get; init; } = 200;

    /// <summary>Demonstrations a step, and twice the pairs a step: both see as many sequences.</summary>
    public int BatchSize { get; init; } = 128;

    /// <summary>Questions on which answers are drawn and judged to make pairs.</summary>
    public int PairQuestions { get; init; } = 3072;

    /// <summary>Unseen questions whose greedy answers make the accuracy.</summary>
    public int TestQuestions { get; init; } = 1000;

    // The defaults' proportion.
    private const int SupervisedPerPreferenceStep = 9;

    /// <summary>A job of so many steps of imitation, the rest in proportion.</summary>
    public static AdditionSettings Of(int seed, int supervisedSteps, int batchSize) => new()
    {
        Seed = seed, SupervisedSteps = supervisedSteps, PreferenceSteps = Math.Max(1, supervisedSteps / SupervisedPerPreferenceStep), BatchSize = batchSize,
    };

    public LearningRate Supervised => new(Top: 3e-3, SupervisedSteps, WarmUp: 50, FinalShare: 0.05);

    public LearningRate Preference => new(Top: 3e-5, PreferenceSteps, WarmUp: 10, FinalShare: 0.1);

    /// <summary>
    /// How strongly the policy is tied to the reference. The usual 0.1 lets so small a model run away from what it knows: it learns from pairs in which the
    /// right carry wins to carry everywhere. With 1 it turns its choice and keeps the rest.
    /// </summary>
    public float Beta { get; init; } = 1f;
}

/// <summary>What came of the main job.</summary>
internal sealed record AdditionResult
{
    public required double AccuracyBefore { get; init; }
    public required double AccuracyAfter { get; init; }

    /// <summary>After as many further supervised steps instead.</summary>
    public required double AccuracyFurther { get; init; }
    public required PairReport PairsBefore { get; init; }
    public required PairReport PairsAfter { get; init; }
    public required int TrainingPairs { get; init; }

    /// <summary>Of imitation and preference optimisation.</summary>
    public required TrainingPace Pace { get; init; }
    public required TrainingCurves Curves { get; init; }

    /// <summary>A few questions with the answers before and after.</summary>
    public required IReadOnlyList<string> Samples { get; init; }

    /// <summary>No test question occurs here: all questions of demonstrations and pairs.</summary>
    public required IReadOnlySet<int> TrainedOn { get; init; }
    public required IReadOnlyList<int> TestedOn { get; init; }
}

/// <summary>The main job: a small model imitates noisy demonstrations of addition, then learns from preference pairs which of its answers are right.</summary>
internal sealed class AdditionJob(ModelMaths maths, AdditionSettings settings, Screen screen) : IDisposable
{
    private const int WatchQuestions = 200, HeldOutPairQuestions = 256, AnswersPerQuestion = 4, SampleCount = 6;

    // Sequences that are continued at a time.
    private const int GenerationBatch = 256;

    // Steps between two looks at the accuracy.
    private const int LookEvery = 100, LookEveryPreference = 20;

    private static readonly LlamaShape Shape = new()
    {
        Vocabulary = ColumnAddition.Vocabulary,
        Hidden = 64,
        Intermediate = 192,
        Layers = 3,
        Heads = 4,
        KeyHeads = 2,
        HeadSize = 16,
        // One more than a right answer needs: one that is a digit too long is scored too.
        Context = ColumnAddition.SequenceLength + 1,
        // Sequences are short: with the usual 10000 most pairs of features would hardly turn.
        RotaryBase = 30,
    };

    // Wide enough that three layers leave the first plateau soon, whatever the seed.
    private const float InitialDeviation = 0.1f;

    private readonly Llama model = new(maths, Shape);
    private readonly HashSet<int> reserved = [], trainedOn = [];
    private readonly TrainingCurves curves = new();

    public AdditionResult Run()
    {
        model.Initialize(Stream(1), InitialDeviation);
        Random draw = Stream(2);
        List<int> test = Reserve(settings.TestQuestions, draw), watch = Reserve(WatchQuestions, draw), heldOut = Reserve(HeldOutPairQuestions, draw);
        screen.Line($"A model of {model.Parameters.Count:N0} weights learns to add from a pupil who forgets to carry.");

        using var trainer = new Trainer(model);
        Random demonstrations = Stream(3);
        Imitate(trainer, demonstrations, watch);
        double before = Accuracy(test);
        List<int>[] answersBefore = Answers(test);
        using TensorBuffer imitator = maths.Device.Allocate(ElementType.Float32, model.Parameters.Values.ElementCount);
        maths.Copy(model.Parameters.Values, imitator);

        List<ScoredPair> pairs = MakePairs(trainer, Questions(settings.PairQuestions, Stream(4)), Stream(5), "Drawing and judging answers");
        List<ScoredPair> heldOutPairs = MakePairs(trainer, heldOut, Stream(6), "Drawing held-out pairs");
        var formula = new DpoSigmoid(settings.Beta);
        PairReport pairsBefore = trainer.Report(heldOutPairs, formula);
        Prefer(trainer, pairs, formula, watch);
        PairReport pairsAfter = trainer.Report(heldOutPairs, formula);
        double after = Accuracy(test);
        List<int>[] answersAfter = Answers(test);
        TrainingPace pace = trainer.Pace;

        maths.Copy(imitator, model.Parameters.Values);
        ImitateFurther(trainer, demonstrations, watch);
        double further = Accuracy(test);

        if (test.Any(trainedOn.Contains))
            throw new InvalidOperationException("A test question was trained on.");
        return new()
        {
            AccuracyBefore = before, AccuracyAfter = after, AccuracyFurther = further, PairsBefore = pairsBefore, PairsAfter = pairsAfter,
            TrainingPairs = pairs.Count, Pace = pace, Curves = curves, TrainedOn = trainedOn, TestedOn = test,
            Samples = [.. Enumerable.Range(0, test.Count).Where(i => !ColumnAddition.IsRight(test[i], answersBefore[i])).Take(SampleCount).Select(i => Sample(test[i], answersBefore[i], answersAfter[i]))],
        };
    }

    private void Imitate(Trainer trainer, Random random, List<int> watch) =>
        screen.Work("Imitating demonstrations", settings.SupervisedSteps, tick =>
            trainer.Imitate(settings.SupervisedSteps, settings.Supervised.At, () => Demonstrations(random), (step, loss) =>
            {
                curves.SupervisedLoss.Add(step, loss);
                if ((step + 1) % LookEvery == 0)
                    curves.ImitationAccuracy.Add(step, Accuracy(watch));
                tick();
            }));

    private void Prefer(Trainer trainer, List<ScoredPair> pairs, DpoSigmoid formula, List<int> watch)
    {
        Random random = Stream(7);
        int start = settings.SupervisedSteps, size = settings.BatchSize / 2;
        curves.PreferenceAccuracy.Add(start, Accuracy(watch));
        screen.Work("Optimising preferences", settings.PreferenceSteps, tick =>
            trainer.Prefer(settings.PreferenceSteps, settings.Preference.At, formula, () => Draw(pairs, size, random), (step, metrics) =>
            {
                curves.PreferenceLoss.Add(start + step, metrics[PreferenceMetrics.Loss]);
                curves.Margin.Add(start + step, metrics[PreferenceMetrics.RewardMargin]);
                if ((step + 1) % LookEveryPreference == 0)
                    curves.PreferenceAccuracy.Add(start + step, Accuracy(watch));
                tick();
            }));
    }

    private void ImitateFurther(Trainer trainer, Random random, List<int> watch)
    {
        int start = settings.SupervisedSteps;
        curves.FurtherAccuracy.Add(start, Accuracy(watch));
        screen.Work("Imitating further, to compare", settings.PreferenceSteps, tick =>
            trainer.Imitate(settings.PreferenceSteps, _ => settings.Supervised.Final, () => Demonstrations(random), (step, loss) =>
            {
                if ((step + 1) % LookEveryPreference == 0)
                    curves.FurtherAccuracy.Add(start + step, Accuracy(watch));
                tick();
            }));
    }

    /// <summary>The share of questions whose greedy answer is right as a whole.</summary>
    private double Accuracy(List<int> questions)
    {
        List<int>[] answers = Answers(questions);
        return Enumerable.Range(0, answers.Length).Count(i => ColumnAddition.IsRight(questions[i], answers[i])) / (double)answers.Length;
    }

    private List<int>[] Answers(List<int> questions, Random? random = null)
    {
        using var generation = new Generation(model);
        var answers = new List<List<int>>(questions.Count);
        foreach (int[] part in questions.Chunk(GenerationBatch))
            answers.AddRange(generation.Continue([.. part.Select(ColumnAddition.Prompt)], ColumnAddition.AnswerLength + 1, ColumnAddition.End, random));
        return [.. answers];
    }

    // The right answer is preferred to one that the model drew and the checker refused; where the model drew none, to a slip of one digit.
    private List<ScoredPair> MakePairs(Trainer trainer, List<int> questions, Random random, string title)
    {
        var drawn = new List<List<int>[]>();
        screen.Work(title, AnswersPerQuestion, tick =>
        {
            for (int i = 0; i < AnswersPerQuestion; i++)
            {
                drawn.Add(Answers(questions, random));
                tick();
            }
        });
        var pairs = new List<PreferencePair>();
        for (int i = 0; i < questions.Count; i++)
        {
            int question = questions[i];
            IReadOnlyList<int> wrong = drawn.Select(answers => answers[i]).FirstOrDefault(answer => !ColumnAddition.IsRight(question, answer))
                ?? (IReadOnlyList<int>)ColumnAddition.Slip(question, random);
            pairs.Add(new(ColumnAddition.Sequence(question, ColumnAddition.Answer(question)), ColumnAddition.Sequence(question, wrong)));
        }
        return trainer.Score(pairs);
    }

    private List<Example> Demonstrations(Random random) =>
        [.. Questions(settings.BatchSize, random).Select(question => ColumnAddition.Sequence(question, ColumnAddition.Demonstration(question, random)))];

    private static List<ScoredPair> Draw(List<ScoredPair> pairs, int count, Random random) =>
        [.. Enumerable.Range(0, count).Select(_ => pairs[random.Next(pairs.Count)])];

    // Questions to learn from: none that is reserved.
    private List<int> Questions(int count, Random random)
    {
        var questions = new List<int>(count);
        while (questions.Count < count)
        {
            int question = random.Next(ColumnAddition.Questions);
            if (reserved.Contains(question))
                continue;
            questions.Add(question);
            trainedOn.Add(question);
        }
        return questions;
    }

    private List<int> Reserve(int count, Random random)
    {
        var questions = new List<int>(count);
        while (questions.Count < count)
        {
            int question = random.Next(ColumnAddition.Questions);
            if (reserved.Add(question))
                questions.Add(question);
        }
        return questions;
    }

    private static string Sample(int question, List<int> before, List<int> after) =>
        $"{ColumnAddition.Text(ColumnAddition.Prompt(question))}  before {ColumnAddition.Text(before)}  after {ColumnAddition.Text(after)}  right {ColumnAddition.Text(ColumnAddition.Answer(question))}";

    // Independent random numbers for each purpose, so that the length of one phase doesn't change another's.
    private Random Stream(int purpose) => new(HashSeed(settings.Seed, purpose));

    private static int HashSeed(int seed, int purpose) => unchecked((int)((uint)seed * 2654435761u + (uint)purpose * 40503u));

    public void Dispose() => model.Dispose();
}
