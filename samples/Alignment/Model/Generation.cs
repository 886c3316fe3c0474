namespace Alignment;

/// <summary>Continues prompts token by token.</summary>
internal sealed class Generation(Llama model) : IDisposable
{
    private readonly Activations run = new(model.Device, model.Shape, keep: false);
    private readonly TokenBatch tokens = new(model.Device);

    /// <summary>Continues a batch of prompts, by the likeliest token at each step or by drawing from the distribution.</summary>
    /// <param name="prompts">All of one length.</param>
    /// <param name="limit">The most tokens to add to each.</param>
    /// <param name="end">The token that ends an answer, not part of it; −1 if none does.</param>
    /// <param name="random">Draws the tokens; the likeliest ones are taken if absent.</param>
    /// <param name="cached">Whether keys and values of earlier positions are kept; without, every step runs the whole sequence.</param>
    /// <returns>The tokens added to each prompt.</returns>
    public List<int>[] Continue(IReadOnlyList<int[]> prompts, int limit, int end = -1, Random? random = null, bool cached = true)
    {
        int batch = prompts.Count, length = prompts[0].Length;
        if (prompts.Any(prompt => prompt.Length != length))
            throw new ArgumentException("The prompts of a batch have one length.", nameof(prompts));
        var answers = prompts.Select(_ => new List<int>()).ToArray();
        var ended = new bool[batch];
        int[] sequences = [.. prompts.SelectMany(prompt => prompt)], next = new int[batch], lastRows = new int[batch];
        var draws = new double[random is null ? 0 : batch];
        using KeyValueCache? cache = cached ? new(model.Maths, model.Shape, batch, Math.Min(length + limit, model.Shape.Context)) : null;
        for (int step = 0; step < limit && length + step < model.Shape.Context + 1; step++)
        {
            int[] read = step == 0 || !cached ? sequences : next;
            for (int row = 0; row < batch; row++)
                lastRows[row] = (row + 1) * (read.Length / batch) - 1;
            tokens.Fill(read, batch, lastRows);
            model.Forward(tokens, run, cache);
            model.Project(tokens, run);
            for (int row = 0; row < draws.Length; row++)
                draws[row] = random!.NextDouble();
            model.Maths.Choose(run.Logits.View, draws, next);
            for (int row = 0; row < batch; row++)
            {
                ended[row] |= next[row] == end;
                if (!ended[row])
                    answers[row].Add(next[row]);
            }
            if (Array.TrueForAll(ended, value => value))
                break;
            if (!cached)
                sequences = Lengthen(sequences, next);
        }
        return answers;
    }

    private static int[] Lengthen(int[] sequences, int[] next)
    {
        int old = sequences.Length / next.Length;
        var longer = new int[sequences.Length + next.Length];
        for (int row = 0; row < next.Length; row++)
        {
            sequences.AsSpan(row * old, old).CopyTo(longer.AsSpan(row * (old + 1)));
            longer[row * (old + 1) + old] = next[row];
        }
        return longer;
    }

    public void Dispose()
    {
        run.Dispose();
        tokens.Dispose();
    }
}
