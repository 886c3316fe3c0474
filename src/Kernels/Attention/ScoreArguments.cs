using ILGPU;

namespace TransformerKernels;

// OpenCL guarantees 1024 bytes for all arguments of a kernel: strides and offsets only, what is present in one word of bits.

/// <summary>A tensor [batch, head, row, column] of any strides as attention's kernels take it: 56 bytes.</summary>
internal readonly struct GpuMatrices
{
    private readonly ArrayView<float> memory;
    private readonly long start, batchStep, headStep, rowStep, columnStep;

    public GpuMatrices(GpuDevice device, in TensorView view, string name)
    {
        GpuTensor<float> tensor = new(device, view, name);
        memory = tensor.Memory;
        start = tensor.At(0, 0, 0);
        batchStep = tensor.At(1, 0, 0) - start;
        headStep = tensor.At(0, 1, 0) - start;
        rowStep = tensor.Stride2;
        columnStep = tensor.Stride3;
    }

    /// <summary>The rows of one head of one sequence.</summary>
    public GpuMatrix Of(long batch, long head) => new(memory, start + batch * batchStep + head * headStep, rowStep, columnStep);
}

/// <summary>The rows of one head of one sequence.</summary>
internal readonly struct GpuMatrix(ArrayView<float> memory, long start, long rowStep, long columnStep)
{
    private readonly ArrayView<float> memory = memory;
    private readonly long start = start, rowStep = rowStep, columnStep = columnStep;

    public float this[long row, long column]
    {
        get => memory[start + row * rowStep + column * columnStep];
        set => memory[start + row * rowStep + column * columnStep] = value;
    }
}

/// <summary>A captured tensor as attention's kernels take it: 72 bytes.</summary>
internal readonly struct GpuCaptured
{
    /// <summary>A structure of no captured tensor.</summary>
    public const int Absent = -1;

    private readonly ArrayView<float> memory;
    private readonly long start, batchStep, headStep, queryStep, keyStep, centre;
    private readonly int length;

    /// <summary><see cref="CapturedStructure"/>, or <see cref="Absent"/>.</summary>
    public readonly int Structure;

    public GpuCaptured(GpuDevice device, in CapturedTensor captured, string name) : this(device, captured.Values, captured, name)
    {
    }

    /// <summary>A tensor (its gradient, say) of the same shape as a captured one.</summary>
    public GpuCaptured(GpuDevice device, in TensorView view, in CapturedTensor captured, string name)
    {
        GpuTensor<float> tensor = new(device, view, name);
        memory = tensor.Memory;
        Structure = Absent;
        if (!view.IsPresent)
            return;
        Structure = (int)captured.Structure;
        centre = captured.Centre;
        start = tensor.At(0, 0, 0);
        long step0 = tensor.At(1, 0, 0) - start, step1 = tensor.At(0, 1, 0) - start;
        switch (captured.Structure)
        {
            case CapturedStructure.PerHead:
                headStep = step0;
                break;
            case CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance:
                headStep = step0;
                keyStep = step1;
                length = checked((int)view.Length(1));
                break;
            default:
                batchStep = step0;
                headStep = step1;
                queryStep = captured.Structure == CapturedStructure.PerKey ? 0 : tensor.Stride2;
                keyStep = captured.Structure == CapturedStructure.PerKey ? tensor.Stride2 : captured.Structure == CapturedStructure.Dense ? tensor.Stride3 : 0;
                break;
        }
    }

    public bool IsDense => Structure == (int)CapturedStructure.Dense;

    /// <summary>Whether two pairs can share a value of a dense tensor.</summary>
    public bool IsSharedDense(in AttentionShape shape) => IsDense &&
        ((batchStep == 0 && shape.Batch > 1) || (headStep == 0 && shape.Heads > 1) || (queryStep == 0 && shape.Queries > 1) || (keyStep == 0 && shape.Keys > 1));

    /// <summary>Where the value of a pair lies.</summary>
    public long At(long batch, long head, long query, long key, long distance)
    {
        long at = start + batch * batchStep + head * headStep;
        if (Structure != (int)CapturedStructure.PerHeadAndDistance && Structure != (int)CapturedStructure.PerHeadAndAbsoluteDistance)
            return at + query * queryStep + key * keyStep;
        long index = Structure == (int)CapturedStructure.PerHeadAndDistance ? distance + centre : distance < 0 ? -distance : distance;
        index = index < 0 ? 0 : index >= length ? length - 1 : index;
        return at + index * keyStep;
    }

    public float this[long at]
    {
        get => memory[at];
        set => memory[at] = value;
    }
}

/// <summary>What scores are made of: shapes, queries and keys, biases, captured tensors.</summary>
internal readonly struct ScoreArguments
{
    private const int HasSlopes = 1, HasDistance = 2;

    public readonly GpuMatrices Query, Key;
    public readonly GpuCaptured Captured0, Captured1, Captured2, Captured3;
    private readonly ArrayView<float> slopes, distances;
    private readonly long slopesStart, slopesBatchStep, slopesHeadStep, distancesStart, distancesHeadStep, distancesStep, distancesLength, distancesCentre;
    public readonly long QueryOffset;
    public readonly int Queries, Keys, Heads, HeadsPerKeyHead, HeadSize, ValueSize, Causal;
    public readonly float Scale;
    private readonly int present;

    public ScoreArguments(GpuDevice device, in AttentionProblem problem, in AttentionShape shape)
    {
        Query = new(device, problem.Query, "problem.Query");
        Key = new(device, problem.Key, "problem.Key");
        Captured0 = new(device, problem.Captured0, "problem.Captured0");
        Captured1 = new(device, problem.Captured1, "problem.Captured1");
        Captured2 = new(device, problem.Captured2, "problem.Captured2");
        Captured3 = new(device, problem.Captured3, "problem.Captured3");
        GpuTensor<float> slopeTensor = new(device, problem.Slopes, "problem.Slopes"), distanceTensor = new(device, problem.DistanceBias, "problem.DistanceBias");
        slopes = slopeTensor.Memory;
        distances = distanceTensor.Memory;
        if (problem.Slopes.IsPresent)
        {
            present |= HasSlopes;
            slopesStart = slopeTensor.At(0, 0);
            long step0 = slopeTensor.At(1, 0) - slopesStart;
            (slopesBatchStep, slopesHeadStep) = problem.Slopes.Rank == 2 ? (step0, slopeTensor.At(0, 1) - slopesStart) : (0, step0);
        }
        if (problem.DistanceBias.IsPresent)
        {
            present |= HasDistance;
            distancesStart = distanceTensor.At(0, 0);
            distancesHeadStep = distanceTensor.At(1, 0) - distancesStart;
            distancesStep = distanceTensor.At(0, 1) - distancesStart;
            distancesLength = problem.DistanceBias.Length(1);
            distancesCentre = shape.DistanceCentre;
        }
        Queries = checked((int)shape.Queries);
        Keys = checked((int)shape.Keys);
        QueryOffset = shape.QueryOffset;
        Heads = checked((int)shape.Heads);
        HeadsPerKeyHead = shape.KeyHeads == 0 ? 1 : (int)(shape.Heads / shape.KeyHeads);
        HeadSize = checked((int)shape.HeadSize);
        ValueSize = checked((int)shape.ValueSize);
        Causal = shape.Causal ? 1 : 0;
        Scale = shape.Scale;
    }

    /// <summary>The sum of the biases at a distance; 0 beyond the vector, where no pair is.</summary>
    public float Bias(long batch, long head, long distance)
    {
        float bias = 0f;
        if ((present & HasSlopes) != 0)
            bias = -slopes[slopesStart + batch * slopesBatchStep + head * slopesHeadStep] * (distance < 0 ? -distance : distance);
        long index = distance + distancesCentre;
        if ((present & HasDistance) != 0 && index >= 0 && index < distancesLength)
            bias += distances[distancesStart + head * distancesHeadStep + index * distancesStep];
        return bias;
    }

    /// <summary>Behind the last key that some query of a block sees.</summary>
    public int EndOfKeys(int firstQuery, int queries)
    {
        if (Causal == 0)
            return Keys;
        long end = firstQuery + queries + QueryOffset;
        return end < 0 ? 0 : end > Keys ? Keys : (int)end;
    }

    /// <summary>The first query that sees a key, rounded down to a block: behind all queries if none does.</summary>
    public int BeginOfQueries(int firstKey, int side)
    {
        long begin = firstKey - QueryOffset;
        return Causal == 0 || begin <= 0 ? 0 : begin >= Queries ? Queries : (int)begin / side * side;
    }

    /// <summary>The largest key − query, counted in a tile, that isn't hidden by causality.</summary>
    public int LastDiagonal(int firstQuery, int firstKey, int side)
    {
        long last = firstQuery + QueryOffset - firstKey;
        return Causal == 0 || last > side ? side : last < -side ? -side : (int)last;
    }
}
