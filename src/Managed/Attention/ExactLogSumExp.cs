namespace TransformerKernels;

/// <summary>Log-sum-exps L with what rounding took from them, of those that were saved rounded.</summary>
/// <remarks>
/// All weights e^(s − L) of a query are off by as much as its L is. A forward pass over values of size 0 tells by how much, and takes a fifth of the backward pass; a block of queries
/// whose rounding the contract doesn't notice does without. The naive loops add up the weights of a query, and what queries give to a key, one after the other: what they lose grows with
/// how many there are. So larger L, with twice the rounding, may do without where both are many.
/// </remarks>
internal unsafe struct ExactLogSumExp<TRule, TCap> : IWork where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    // Half a unit in the last place of a smaller L is at most 2⁻²², two to four units of a weight: what the naive loops' exponentials and sums lose too. Of random problems' gradients about as many
    // as with the remainder then use over 0.7 of what the contract allows: 16 of 5,645, with it 10.
    private const float Small = 8;

    // Of so few keys (a tile) or queries the naive loops may be exact, or nearly so: then there is no room for it.
    private const int FewKeys = AttentionTiles.Keys, FewQueries = 32;

    // In the next binade half a unit is twice as large, and eight times the keys and queries make up for it: of the gradients of random problems, spread and peaked, 3 of 7,275 use over 0.7, with the
    // remainder 3. Of 256 keys, which is what a square root would have, 10 of 12,648, with it 7; of any numbers 46 of 12,664, with it 17, and some break the contract.
    private const float Large = 16;
    private const int ManyKeys = 8 * FewKeys, ManyQueries = 8 * FewQueries;

    public Strided Rounded;

    /// <summary>Writes the log-sum-exps with their remainders.</summary>
    public AttentionForwardWork<TRule, TCap> Forward;

    public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        Forward.Turns.Locate<V>(Forward.Shape, item, out nint batch, out nint head, out nint i0);
        float* from = Rounded.Matrix(batch, head), to = Forward.LogSumExp.Matrix(batch, head);
        nint end = Math.Min(i0 + AttentionTiles.Block<V>(), (nint)Forward.Shape.Queries);
        if (Matters(from, batch, head, i0, end))
        {
            Forward.Run<V>(item, scratch);
            return;
        }
        for (nint row = i0; row < end; row++)
        {
            to[row * Forward.LogSumExp.Row] = from[row * Rounded.Row];
            to[row * Forward.LogSumExp.Row + Forward.LogSumExp.Column] = 0;
        }
    }

    // Whether rounding matters to queries i0 .. end−1 of a head. NaN does.
    private readonly bool Matters(float* logSumExp, nint batch, nint head, nint i0, nint end)
    {
        nint queries = FewQueries;
        for (nint row = i0; row < end; row++)
        {
            float l = logSumExp[row * Rounded.Row];
            if (Math.Abs(l) < Small || l == float.NegativeInfinity)
                continue;
            if (!(Math.Abs(l) < Large) || SeenKeys(batch, head, row) < ManyKeys)
                return true;
            queries = ManyQueries;
        }
        nint seeing = 0;
        for (nint row = 0; row < (nint)Forward.Shape.Queries && seeing < queries; row++)
            seeing += logSumExp[row * Rounded.Row] != float.NegativeInfinity ? 1 : 0;
        return seeing < queries || Forward.Shape.Keys <= FewKeys;
    }

    // The keys that a query sees by its position and by the mask.
    private readonly nint SeenKeys(nint batch, nint head, nint query)
    {
        nint length = (nint)Forward.Scoring.KeyLength(batch), end = Forward.Shape.Causal ? Math.Clamp(query + 1 + Forward.Scoring.QueryOffset(batch), 0, length) : length;
        return Forward.Scoring.Mask.IsPresent ? Forward.Scoring.Mask.Count(batch, head, query, end) : end;
    }
}
