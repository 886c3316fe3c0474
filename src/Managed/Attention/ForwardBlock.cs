namespace TransformerKernels;

/// <summary>A block of queries of the forward pass.</summary>
internal unsafe struct ForwardBlock
{
    public nint Batch, Head, FirstQuery, Queries;

    /// <summary>The keys that some query of the block may see end here.</summary>
    public nint End;

    /// <summary>The first key and value of the head, and where the block's output belongs.</summary>
    public float* Key, Value, Output;

    /// <summary>Whether the keys lie in memory: two threads find them there, the head's other blocks in a cache.</summary>
    public bool VisitsFirst;

    /// <summary>The queries that are worked on next.</summary>
    public float* NextQuery;
    public nint NextQueries;

    /// <summary>Qᵀ and Oᵀ, queries in the lanes; the maxima of the scores so far, and the sums of the weights that are measured from them.</summary>
    public float* Q, O, Maximum, Sum;
    public HeadScores Scores;

    /// <summary>Whether pairs of the tiles so far may be hidden.</summary>
    public bool HidesPairs;
}

/// <summary>The memory of one tile of the forward pass: S, then P; the maxima; and the factors by which the sums so far shrink to them.</summary>
internal unsafe struct ForwardTile
{
    public float* S, Maximum, Factor;
}
