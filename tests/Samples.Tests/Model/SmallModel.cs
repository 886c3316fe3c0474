namespace Alignment.Tests;

/// <summary>Small models and examples for tests.</summary>
internal static class SmallModel
{
    public const int Layers = 2;

    public static readonly LlamaShape Shape = new()
    {
        Vocabulary = 23, Hidden = 20, Intermediate = 28, Layers = Layers, Heads = 4, KeyHeads = 2, HeadSize = 6, Context = 16,
    };

    public static Llama Create(ModelMaths maths, int seed = 1)
    {
        var model = new Llama(maths, Shape);
        model.Initialize(new Random(seed), deviation: 0.2f);
        return model;
    }

    public static List<Example> Examples(int count, int seed = 2)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => One(random))];
    }

    public static List<ScoredPair> Pairs(int count, int seed = 3)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => new ScoredPair(new(One(random), One(random)), -10 * random.NextSingle(), -10 * random.NextSingle()))];
    }

    /// <summary>The weights after a step of imitation and one of preference optimisation.</summary>
    public static float[] TwoSteps(Llama model)
    {
        using var logProbs = new AnswerLogProbs(model, trainable: true);
        using var imitation = new SupervisedLoss(model, logProbs);
        using var preference = new DirectPreferenceLoss(model, logProbs, new(0.1f));
        using var optimiser = new AdamW(model.Maths, model.Parameters) { LargestNorm = 1 };
        model.Parameters.Gradients.Clear();
        imitation.Step(Examples(40));
        optimiser.Step(0.01);
        model.Parameters.Gradients.Clear();
        preference.Step(Pairs(20));
        optimiser.Step(0.01);
        return model.Parameters.Values.ToArray<float>();
    }

    private static Example One(Random random)
    {
        int prompt = random.Next(1, 6), length = prompt + random.Next(1, 9);
        return new([.. Enumerable.Range(0, length).Select(_ => random.Next(Shape.Vocabulary))], prompt);
    }
}
