using TransformerKernels;

namespace Alignment;

/// <summary>
/// Sequences padded on the right to the longest one, and the places whose next token belongs to an answer: on the host, and in one copy on the device.
/// </summary>
internal sealed class TokenBatch(ComputeDevice device) : IDisposable
{
    // Any token will do: causality hides it from the tokens before it, and nothing is scored at padding.
    private const int Padding = 0;

    private readonly IndexLists lists = new(device);
    private Range tokens, picks, targets, starts, sequences, order, distinct, groups;
    private int[] places = [];

    public int Batch { get; private set; }

    public int Positions { get; private set; }

    /// <summary>[sequence, position], on the host.</summary>
    public ReadOnlySpan<int> Tokens => lists[tokens];

    /// <summary>The rows of <see cref="Tokens"/> after which an answer's token comes, sequence by sequence, on the host.</summary>
    public ReadOnlySpan<int> Picks => lists[picks];

    /// <summary>The picks of one sequence.</summary>
    public Range PicksOf(int sequence) => lists[starts][sequence]..lists[starts][sequence + 1];

    /// <summary>[row]: <see cref="Tokens"/> on the device.</summary>
    public TensorView TokenView => lists.View(tokens);

    /// <summary>[pick]: <see cref="Picks"/> on the device.</summary>
    public TensorView PickView => lists.View(picks);

    /// <summary>[pick]: the tokens that come there.</summary>
    public TensorView TargetView => lists.View(targets);

    /// <summary>[sequences + 1]: where the picks of each sequence begin, and their number.</summary>
    public TensorView StartView => lists.View(starts);

    /// <summary>[pick]: which sequence it belongs to.</summary>
    public TensorView SequenceView => lists.View(sequences);

    /// <summary>[row]: the rows of <see cref="TokenView"/>, those of one token together, in ascending order. With examples only.</summary>
    public TensorView OrderView => lists.View(order);

    /// <summary>[tokens]: the tokens that occur, each once, in the order of <see cref="OrderView"/>. With examples only.</summary>
    public TensorView DistinctView => lists.View(distinct);

    /// <summary>[tokens + 1]: where the rows of each token begin in <see cref="OrderView"/>, and their number. With examples only.</summary>
    public TensorView GroupView => lists.View(groups);

    /// <summary>Takes examples, of which the answers count.</summary>
    public void Fill(IReadOnlyList<Example> examples)
    {
        Batch = examples.Count;
        Positions = 0;
        int pickCount = 0;
        foreach (Example example in examples)
        {
            if (example.PromptLength < 1)
                throw new ArgumentException("A prompt needs at least one token: the first answer token is predicted from it.", nameof(examples));
            Positions = Math.Max(Positions, example.Tokens.Length);
            pickCount += example.AnswerLength;
        }
        int rows = Batch * Positions;
        lists.Clear();
        tokens = lists.Add(rows);
        picks = lists.Add(pickCount);
        targets = lists.Add(pickCount);
        sequences = lists.Add(pickCount);
        starts = lists.Add(Batch + 1);
        order = lists.Add(rows);

        lists[tokens].Fill(Padding);
        int pick = 0;
        for (int sequence = 0; sequence < Batch; sequence++)
        {
            Example example = examples[sequence];
            example.Tokens.CopyTo(lists[tokens][(sequence * Positions)..]);
            lists[starts][sequence] = pick;
            for (int at = example.PromptLength; at < example.Tokens.Length; at++, pick++)
            {
                lists[picks][pick] = sequence * Positions + at - 1;
                lists[targets][pick] = example.Tokens[at];
                lists[sequences][pick] = sequence;
            }
        }
        lists[starts][Batch] = pick;
        Group();
        lists.Send();
    }

    /// <summary>Takes sequences to continue.</summary>
    /// <param name="sequenceTokens">[batch, positions].</param>
    /// <param name="batch">How many sequences.</param>
    /// <param name="pickedRows">The rows whose logits are wanted.</param>
    public void Fill(ReadOnlySpan<int> sequenceTokens, int batch, ReadOnlySpan<int> pickedRows = default)
    {
        (Batch, Positions) = (batch, sequenceTokens.Length / batch);
        lists.Clear();
        tokens = lists.Add(sequenceTokens.Length);
        picks = lists.Add(pickedRows.Length);
        sequenceTokens.CopyTo(lists[tokens]);
        pickedRows.CopyTo(lists[picks]);
        lists.Send();
    }

    // Sorts the rows by their tokens, by counting.
    private void Group()
    {
        ReadOnlySpan<int> row = lists[tokens];
        int least = int.MaxValue, greatest = int.MinValue;
        foreach (int token in row)
            (least, greatest) = (Math.Min(least, token), Math.Max(greatest, token));
        int range = row.Length == 0 ? 0 : checked(greatest - least + 1);
        if (places.Length < range)
            places = new int[range];
        Span<int> counts = places.AsSpan(0, range);
        counts.Clear();
        foreach (int token in row)
            counts[token - least]++;
        int kinds = range - counts.Count(0), kind = 0, start = 0;
        distinct = lists.Add(kinds);
        groups = lists.Add(kinds + 1);
        for (int token = 0; token < range; token++)
        {
            if (counts[token] == 0)
                continue;
            lists[distinct][kind] = token + least;
            lists[groups][kind++] = start;
            (counts[token], start) = (start, start + counts[token]);
        }
        lists[groups][kinds] = start;
        row = lists[tokens];
        for (int i = 0; i < row.Length; i++)
            lists[order][counts[row[i] - least]++] = i;
    }

    public void Dispose() => lists.Dispose();
}
