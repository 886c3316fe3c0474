namespace TransformerKernels;

/// <summary>The sizes of an attention problem and what follows from them; shared by all devices.</summary>
internal readonly record struct AttentionShape
{
    public long Batch { get; private init; }
    public long Heads { get; private init; }
    public long KeyHeads { get; private init; }
    public long Queries { get; private init; }
    public long Keys { get; private init; }
    public long HeadSize { get; private init; }
    public long ValueSize { get; init; }

    /// <summary>The position of query 0 among the keys.</summary>
    public long QueryOffset { get; private init; }

    /// <summary>The index of distance 0 in the distance bias.</summary>
    public long DistanceCentre { get; private init; }

    /// <summary>The entries a head of the table by two coordinates; 0 without one.</summary>
    public long GridCells { get; private init; }

    public float Scale { get; private init; }

    public bool Causal { get; private init; }

    /// <summary>The distance of the first key from the last query.</summary>
    public long LeastDistance => LeastDistanceFrom(QueryOffset);

    /// <summary>The distance of the last key from the first query.</summary>
    public long GreatestDistance => GreatestDistanceFrom(QueryOffset);

    /// <summary>The same for queries that begin at another offset.</summary>
    public long LeastDistanceFrom(long offset) => -(Queries - 1 + offset);

    /// <summary>The same for queries that begin at another offset.</summary>
    public long GreatestDistanceFrom(long offset) => Keys - 1 - offset;

    public static AttentionShape Of(in AttentionProblem problem)
    {
        long queries = problem.Query.Length(2), keys = problem.Key.Length(2), headSize = problem.Query.Length(3);
        long offset = problem.QueryOffset ?? keys - queries;
        return new()
        {
            Batch = problem.Query.Length(0),
            Heads = problem.Query.Length(1),
            KeyHeads = problem.Key.Length(1),
            Queries = queries,
            Keys = keys,
            HeadSize = headSize,
            ValueSize = problem.Value.Length(3),
            QueryOffset = offset,
            DistanceCentre = problem.DistanceCentre ?? keys - 1,
            GridCells = problem.GridBias.IsPresent ? problem.GridBias.Table.Length(0) : 0,
            Scale = problem.Scale ?? (float)(1 / Math.Sqrt(headSize)),
            Causal = problem.Causal,
        };
    }
}
