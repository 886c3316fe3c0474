using TransformerKernels;

namespace Alignment.Tests;

/// <summary>Small models and examples for tests.</summary>
internal static class SmallModel
{
    public const int Layers = 2;

    public static readonly LlamaShape Shape = new()
    {
        Vocabulary = 23, Hidden = 20, Intermediate = 28, Layers = Layers, Heads = 4, KeyHeads = 2, HeadSize = 6, Context = 16,
    };

    public static Llama Create(ComputeDevice device, Team team, int seed = 1)
    {
        var model = new Llama(device, team, Shape);
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

    private static Example One(Random random)
    {
        int prompt = random.Next(1, 6), length = prompt + random.Next(1, 9);
        return new([.. Enumerable.Range(0, length).Select(_ => random.Next(Shape.Vocabulary))], prompt);
    }
}
