using TransformerKernels;

namespace Alignment;

/// <summary>How long and with what a real checkpoint is aligned.</summary>
internal sealed record CheckpointSettings
{
    public int Seed { get; init; } = 1;

    /// <summary>How often every training pair is seen.</summary>
    public int Passes { get; init; } = 4;

    public int PairsPerStep { get; init; } = 16;

    public double LearningRate { get; init; } = 1e-4;

    public float Beta { get; init; } = 0.1f;
}

/// <summary>What came of a checkpoint's alignment, on the held-out tenth of the pairs.</summary>
internal sealed record CheckpointResult(PairReport Before, PairReport After, int TrainingPairs, int HeldOutPairs, int Skipped, TrainingPace Pace);

/// <summary>Scores preference pairs with a real checkpoint, aligns it on nine tenths of them, and scores the last tenth again.</summary>
internal static class CheckpointJob
{
    private const int HeldOutShare = 10;
    private const double WarmUpShare = 0.1, FinalShare = 0.1;

    public static CheckpointResult Run(ModelMaths maths, string modelPath, string dataPath, CheckpointSettings settings, Screen screen)
    {
        List<PreferenceText> texts = PreferenceFile.Read(dataPath);
        using var file = new GgufFile(modelPath);
        var tokenizer = new SentencePieceTokenizer(file);
        using Llama model = LlamaCheckpoint.Load(file, maths);
        screen.Line($"{Path.GetFileName(modelPath)}: {model.Parameters.Count:N0} weights, {model.Shape.Layers} layers, context {model.Shape.Context}, vocabulary {model.Shape.Vocabulary}.");

        List<PreferencePair> pairs = [.. texts.Select(text => Pair(tokenizer, text)).Where(pair => Fits(pair, model.Shape.Context))];
        int skipped = texts.Count - pairs.Count;
        screen.Line($"{Path.GetFileName(dataPath)}: {texts.Count} pairs, {skipped} skipped because they are longer than the model's context of {model.Shape.Context} tokens.");
        if (pairs.Count < HeldOutShare)
            throw new InvalidDataException($"{dataPath}: {pairs.Count} pairs fit the model's context; at least {HeldOutShare} are needed to hold out a tenth.");

        var random = new Random(settings.Seed);
        PreferencePair[] shuffled = [.. pairs];
        random.Shuffle(shuffled);
        int heldOutCount = shuffled.Length / HeldOutShare;

        using var trainer = new Trainer(model);
        List<ScoredPair> heldOut = trainer.Score(shuffled[..heldOutCount]), training = trainer.Score(shuffled[heldOutCount..]);
        var formula = new DpoSigmoid(settings.Beta);
        PairReport before = trainer.Report(heldOut, formula);

        int stepsPerPass = (training.Count + settings.PairsPerStep - 1) / settings.PairsPerStep, steps = stepsPerPass * settings.Passes;
        var rate = new LearningRate(settings.LearningRate, steps, Math.Max(1, (int)(WarmUpShare * steps)), FinalShare);
        ScoredPair[] order = [.. training];
        int step = 0;
        screen.Work("Optimising preferences", steps, tick =>
            trainer.Prefer(steps, rate.At, formula, () =>
            {
                int part = step++ % stepsPerPass;
                if (part == 0)
                    random.Shuffle(order);
                return [.. order.Skip(part * settings.PairsPerStep).Take(settings.PairsPerStep)];
            }, (_, _) => tick()));
        return new(before, trainer.Report(heldOut, formula), training.Count, heldOut.Count, skipped, trainer.Pace);
    }

    private static PreferencePair Pair(SentencePieceTokenizer tokenizer, PreferenceText text)
    {
        int[] prompt = [tokenizer.Begin, .. tokenizer.Encode(text.Prompt)];
        return new(Answer(text.Chosen), Answer(text.Rejected));

        Example Answer(string answer) => new([.. prompt, .. tokenizer.Encode(answer), tokenizer.End], prompt.Length);
    }

    private static bool Fits(PreferencePair pair, int context) => Math.Max(pair.Chosen.Tokens.Length, pair.Rejected.Tokens.Length) <= context;
}
