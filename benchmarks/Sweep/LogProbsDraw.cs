namespace TransformerKernels.Benchmarks;

/// <summary>Draws log-probs problems from everything that is offered. What a deck holds comes up in every run that is as long as the deck.</summary>
internal sealed class LogProbsDraw(Random random)
{
    // Vocabularies of models, and any; 0 stands for any.
    private const int SmallestVocabulary = 5000, LargestVocabulary = 100_000;

    // Hidden states of models, and any.
    private const int NarrowestWidth = 100, WidestWidth = 2048;

    private const int LargestPadding = 128;

    private readonly Deck<int> vocabularies = new(random, [32_000, 50_257, 0, 0]);
    private readonly Deck<int> widths = new(random, [0, 768, 1024, -1, 0]);
    private readonly Deck<ElementType> storages = new(random, [ElementType.Float32, ElementType.Float32, ElementType.Float16, ElementType.BFloat16]);
    private readonly Deck<bool> biases = new(random, [true, false, false]), softcaps = new(random, [true, false, false]), temperatures = new(random, [true, false]), paddings = new(random, [true, false, false]);
    private readonly Deck<bool> entropies = new(random, [true, false]), more = new(random, [true, false]), tops = new(random, [true, false, false]), remainders = new(random, [true, false]);

    /// <summary>The next problem, as its forward pass.</summary>
    public LogProbsSetup Next()
    {
        int vocabulary = vocabularies.Next(), width = widths.Next();
        var setup = new LogProbsSetup
        {
            Tokens = 64, Vocabulary = vocabulary > 0 ? vocabulary : random.Next(SmallestVocabulary, LargestVocabulary + 1), Width = width >= 0 ? width : random.Next(NarrowestWidth, WidestWidth + 1),
            Storage = storages.Next(), HasBias = biases.Next(), IsCapped = softcaps.Next(), HasTemperature = temperatures.Next(), Padding = paddings.Next() ? random.Next(1, LargestPadding + 1) : 0,
            HasEntropy = entropies.Next(), HasMore = more.Next(), KeepsRemainder = width == 0 && remainders.Next(), HasTop = width == 0 && tops.Next(),
        };
        while (!Sweep.IsLargeEnough(setup.Cost))
            setup = setup with { Tokens = setup.Tokens + random.Next(1, 64) };
        return setup;
    }
}
