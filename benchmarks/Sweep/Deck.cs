namespace TransformerKernels.Benchmarks;

/// <summary>Cards that are drawn one by one, and shuffled again when all have been drawn: chance that leaves nothing out.</summary>
internal sealed class Deck<T>(Random random, IEnumerable<T> cards)
{
    private readonly T[] cards = [.. cards];
    private int drawn;

    public T Next()
    {
        if (drawn % cards.Length == 0)
            random.Shuffle(cards);
        return cards[drawn++ % cards.Length];
    }
}
