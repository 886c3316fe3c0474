namespace TransformerKernels;

/// <summary>The tensors that change scores, as pointers while a call runs.</summary>
internal readonly unsafe struct AttentionScoring
{
    private readonly float* slopes, distanceBias;
    private readonly nint slopeBatchStep, slopeHeadStep, distanceHeadStep, distanceStep, distanceLength;

    private readonly byte* lengths;
    private readonly nint lengthStep, keys;
    private readonly bool hasLongLengths;

    public readonly PairTensors Tensors;

    public AttentionScoring(in AttentionProblem problem, byte* slopes, byte* distanceBias, byte* keyLengths, byte* denseBias, byte* rowBias, byte* columnBias,
        byte* captured0, byte* captured1, byte* captured2, byte* captured3)
    {
        if (problem.Slopes.IsPresent)
        {
            int headAxis = problem.Slopes.Rank - 1;
            this.slopes = (float*)slopes;
            slopeHeadStep = (nint)problem.Slopes.Stride(headAxis);
            slopeBatchStep = headAxis == 1 ? (nint)problem.Slopes.Stride(0) : 0;
        }
        if (problem.DistanceBias.IsPresent)
        {
            this.distanceBias = (float*)distanceBias;
            distanceHeadStep = problem.DistanceBias.Length(0) == 1 ? 0 : (nint)problem.DistanceBias.Stride(0);
            distanceStep = (nint)problem.DistanceBias.Stride(1);
            distanceLength = (nint)problem.DistanceBias.Length(1);
        }
        keys = (nint)problem.Key.Length(2);
        if (problem.KeyLengths.IsPresent)
        {
            lengths = keyLengths;
            lengthStep = (nint)problem.KeyLengths.Stride(0);
            hasLongLengths = problem.KeyLengths.Type == ElementType.Int64;
        }
        Tensors[0] = new Captured(captured0, problem.Captured0);
        Tensors[1] = new Captured(captured1, problem.Captured1);
        Tensors[2] = new Captured(captured2, problem.Captured2);
        Tensors[3] = new Captured(captured3, problem.Captured3);
        Tensors[PairTensors.DenseBias] = new Captured(denseBias, problem.DenseBias, CapturedStructure.Dense);
        Tensors[PairTensors.RowBias] = new Captured(rowBias, problem.RowBias, CapturedStructure.PerQuery);
        Tensors[PairTensors.ColumnBias] = new Captured(columnBias, problem.ColumnBias, CapturedStructure.PerKey);
    }

    public bool HasAdded => Tensors[PairTensors.DenseBias].IsPresent || Tensors[PairTensors.RowBias].IsPresent || Tensors[PairTensors.ColumnBias].IsPresent;

    public bool HasLine => slopes != null || distanceBias != null;

    /// <summary>How many keys a sequence has.</summary>
    public long KeyLength(nint batch) => lengths == null ? keys : hasLongLengths ? ((long*)lengths)[batch * lengthStep] : ((int*)lengths)[batch * lengthStep];

    /// <summary>Writes the biases by distance into a line: line[t] for t from .. from+count−1 is their sum at distance −(t + offset).</summary>
    public void ReadLine<V>(nint batch, nint head, float* line, nint from, nint count, nint offset, nint centre) where V : struct, ILanes<V>
    {
        if (distanceBias != null)
            ScoreLine.Read<V>(distanceBias + head * distanceHeadStep, distanceStep, distanceLength, centre - (from + offset), -1, line + from, count);
        else
            new Span<float>(line + from, (int)count).Clear();
        if (slopes != null)
            ScoreLine.AddSlope<V>(slopes[batch * slopeBatchStep + head * slopeHeadStep], offset, line, from, count);
    }
}
