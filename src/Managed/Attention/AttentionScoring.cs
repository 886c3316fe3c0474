namespace TransformerKernels;

/// <summary>The addresses of the tensors that change scores, pinned while a call runs; null where there is none.</summary>
internal unsafe struct ScoringAddresses
{
    public byte* Slopes, DistanceBias, BucketedBias, GridBias, DenseBias, RowBias, ColumnBias, Sinks, Mask, QueryOffsets, KeyLengths, Captured0, Captured1, Captured2, Captured3;
}

/// <summary>The tensors that change scores, as pointers while a call runs.</summary>
internal readonly unsafe struct AttentionScoring
{
    private readonly float* slopes, distanceBias, table;
    private readonly nint slopeBatchStep, slopeHeadStep, distanceHeadStep, distanceStep, distanceLength, bucketStep, bucketHeadStep;

    // The buckets of a direction, and the least |distance| of each.
    private readonly int buckets;
    private readonly int* starts;
    private readonly bool isBidirectional;

    private readonly float* sinks;
    private readonly nint sinkStep;

    private readonly byte* offsets, lengths;
    private readonly nint offsetStep, lengthStep, offset, keys;
    private readonly bool hasLongOffsets, hasLongLengths;

    public readonly GridTable Grid;

    public readonly BooleanMask Mask;

    public readonly PairTensors Tensors;

    /// <param name="problem">What there is.</param>
    /// <param name="at">Where it lies.</param>
    /// <param name="memory">Of <see cref="Bytes"/> bytes, used as long as this is.</param>
    public AttentionScoring(in AttentionProblem problem, in ScoringAddresses at, byte* memory)
    {
        if (problem.Slopes.IsPresent)
        {
            int headAxis = problem.Slopes.Rank - 1;
            slopes = (float*)at.Slopes;
            slopeHeadStep = (nint)problem.Slopes.Stride(headAxis);
            slopeBatchStep = headAxis == 1 ? (nint)problem.Slopes.Stride(0) : 0;
        }
        if (problem.DistanceBias.IsPresent)
        {
            distanceBias = (float*)at.DistanceBias;
            distanceHeadStep = problem.DistanceBias.Length(0) == 1 ? 0 : (nint)problem.DistanceBias.Stride(0);
            distanceStep = (nint)problem.DistanceBias.Stride(1);
            distanceLength = (nint)problem.DistanceBias.Length(1);
        }
        if (problem.BucketedBias.IsPresent)
        {
            TensorView view = problem.BucketedBias.Table;
            table = (float*)at.BucketedBias;
            (bucketStep, bucketHeadStep) = ((nint)view.Stride(0), (nint)view.Stride(1));
            isBidirectional = problem.BucketedBias.IsBidirectional;
            buckets = (int)view.Length(0) / (isBidirectional ? 2 : 1);
            starts = (int*)memory;
            BucketedBias.FillStarts(starts, buckets, problem.BucketedBias.MaximumDistance);
        }
        if (problem.Sinks.IsPresent)
        {
            sinks = (float*)at.Sinks;
            sinkStep = (nint)problem.Sinks.Stride(0);
        }
        Grid = new GridTable(at.GridBias, problem.GridBias);
        Mask = new BooleanMask(at.Mask, problem.Mask, AttentionShape.Of(problem), memory + BucketBytes(problem));
        keys = (nint)problem.Key.Length(2);
        offset = (nint)AttentionShape.Of(problem).QueryOffset;
        if (problem.QueryOffsets.IsPresent)
        {
            offsets = at.QueryOffsets;
            offsetStep = (nint)problem.QueryOffsets.Stride(0);
            hasLongOffsets = problem.QueryOffsets.Type == ElementType.Int64;
        }
        if (problem.KeyLengths.IsPresent)
        {
            lengths = at.KeyLengths;
            lengthStep = (nint)problem.KeyLengths.Stride(0);
            hasLongLengths = problem.KeyLengths.Type == ElementType.Int64;
        }
        Tensors[0] = new Captured(at.Captured0, problem.Captured0);
        Tensors[1] = new Captured(at.Captured1, problem.Captured1);
        Tensors[2] = new Captured(at.Captured2, problem.Captured2);
        Tensors[3] = new Captured(at.Captured3, problem.Captured3);
        Tensors[PairTensors.DenseBias] = new Captured(at.DenseBias, problem.DenseBias, CapturedStructure.Dense);
        Tensors[PairTensors.RowBias] = new Captured(at.RowBias, problem.RowBias, CapturedStructure.PerQuery);
        Tensors[PairTensors.ColumnBias] = new Captured(at.ColumnBias, problem.ColumnBias, CapturedStructure.PerKey);
    }

    /// <summary>The memory that a problem's scoring takes of its own.</summary>
    public static long Bytes(in AttentionProblem problem) => BucketBytes(problem) + BooleanMask.SharedBytes(problem.Mask, AttentionShape.Of(problem));

    private static long BucketBytes(in AttentionProblem problem) => problem.BucketedBias.IsPresent ? AttentionTiles.RoundUp(problem.BucketedBias.Table.Length(0) * sizeof(int), sizeof(double)) : 0;

    public bool HasLine => slopes != null || distanceBias != null || table != null;

    public bool HasSinks => sinks != null;

    /// <summary>The logit of a head that has no key; −∞ if there is none.</summary>
    public float Sink(nint head) => sinks == null ? float.NegativeInfinity : sinks[head * sinkStep];

    /// <summary>Where a sequence's first query stands among its keys.</summary>
    public nint QueryOffset(nint batch) => offsets == null ? offset : hasLongOffsets ? (nint)((long*)offsets)[batch * offsetStep] : ((int*)offsets)[batch * offsetStep];

    /// <summary>How many keys a sequence has.</summary>
    public long KeyLength(nint batch) => lengths == null ? keys : hasLongLengths ? ((long*)lengths)[batch * lengthStep] : ((int*)lengths)[batch * lengthStep];

    /// <summary>Writes the biases by distance into a line: line[t] for t from .. from+count−1 is their sum at distance −(t + offset).</summary>
    public void ReadLine<V>(nint batch, nint head, float* line, nint from, nint count, nint offset, nint centre) where V : struct, ILanes<V>
    {
        if (distanceBias != null)
            ScoreLine.Read<V>(distanceBias + head * distanceHeadStep, distanceStep, distanceLength, centre - (from + offset), -1, line + from, count);
        else
            new Span<float>(line + from, (int)count).Clear();
        if (table != null)
            AddBuckets(head, line, from, count, offset);
        if (slopes != null)
            ScoreLine.AddSlope<V>(slopes[batch * slopeBatchStep + head * slopeHeadStep], offset, line, from, count);
    }

    // Adds to line[t] what the table has for distance −(t + offset).
    private void AddBuckets(nint head, float* line, nint from, nint count, nint offset)
    {
        for (int bucket = 0; bucket < Buckets; bucket++)
        {
            (long first, long last) = DistancesOf(bucket, -(from + count - 1 + offset), -(from + offset));
            float value = table[bucket * bucketStep + head * bucketHeadStep];
            for (nint t = -(nint)last - offset; t <= -(nint)first - offset; t++)
                line[t] += value;
        }
    }

    /// <summary>The rows of the bucketed table.</summary>
    public int Buckets => isBidirectional ? 2 * buckets : buckets;

    /// <summary>Which of the distances least .. greatest fall into a bucket: First .. Last, none if First &gt; Last.</summary>
    public (long First, long Last) DistancesOf(int bucket, long least, long greatest)
    {
        bool ahead = bucket >= buckets, isLast = bucket % buckets == buckets - 1;
        long start = starts[bucket % buckets], end = isLast ? Math.Max(-least, greatest) : starts[bucket % buckets + 1] - 1;
        if (ahead)
            return (Math.Max(Math.Max(start, 1), least), Math.Min(end, greatest)); // distance 0 belongs to the keys behind
        return (Math.Max(-end, least), Math.Min(bucket == 0 && !isBidirectional ? greatest : -start, greatest));
    }
}
