namespace TransformerKernels;

/// <summary>Log-sum-exps L with what rounding took from them, of those that were saved rounded.</summary>
/// <remarks>
/// All weights e^(s − L) of a query are off by as much as its L is. A forward pass over values of size 0 tells by how much, and takes a fifth of the backward pass; a block of queries
/// whose rounding the contract doesn't notice does without.
/// </remarks>
internal unsafe struct ExactLogSumExp<TRule, TCap> : IWork where TRule : unmanaged, IScoreRule where TCap : unmanaged, ICap
{
    // Half a unit in the last place of a smaller L is at most 2⁻²², two to four units of a weight: what the naive loops' exponentials and sums lose too. Of random problems about as many as with
    // the remainder then use over 0.7 of what the contract allows; with the next binade, whose half unit is twice as large, it is three times as many.
    private const float FirstThatMatters = 8;

    // Of so few keys (a tile) or queries the naive loops may be exact, or nearly so: then there is no room for it.
    private const int FewKeys = AttentionTiles.Keys, FewQueries = 32;

    public Strided Rounded;

    /// <summary>Writes the log-sum-exps with their remainders.</summary>
    public AttentionForwardWork<TRule, TCap> Forward;

    public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        Forward.Turns.Locate<V>(Forward.Shape, item, out nint batch, out nint head, out nint i0);
        float* from = Rounded.Matrix(batch, head), to = Forward.LogSumExp.Matrix(batch, head);
        nint end = Math.Min(i0 + AttentionTiles.Block<V>(), (nint)Forward.Shape.Queries);
        if (Matters(from, i0, end))
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
    private readonly bool Matters(float* logSumExp, nint i0, nint end)
    {
        for (nint row = i0; row < end; row++)
        {
            float l = logSumExp[row * Rounded.Row];
            if (!(Math.Abs(l) < FirstThatMatters || l == float.NegativeInfinity))
                return true;
        }
        nint seeing = 0;
        for (nint row = 0; row < (nint)Forward.Shape.Queries && seeing < FewQueries; row++)
            seeing += logSumExp[row * Rounded.Row] != float.NegativeInfinity ? 1 : 0;
        return seeing < FewQueries || Forward.Shape.Keys <= FewKeys;
    }
}
