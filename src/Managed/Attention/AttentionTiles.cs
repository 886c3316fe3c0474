using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>How the CPU cuts attention up: blocks of queries side by side in the lanes, tiles of keys below each other.</summary>
/// <remarks>
/// <code>
///                lanes: queries i0 .. i0+Block−1
///              +---------------------------------+
///   keys       |  score of key j0   and query i  |   one row a key: row maximum, sum and rescaling are lane-wise,
///   j0 ..      |  score of key j0+1 and query i  |   a bias by distance is an unaligned load that steps by −1 per row,
///   j0+Keys−1  |  ...                            |   K and V are broadcast from their own memory without packing
///              +---------------------------------+
/// </code>
/// The letters of the paper in the kernels: S scores, P weights, O output; d head size, dv value size.
/// </remarks>
internal static unsafe class AttentionTiles
{
    /// <summary>Vectors of queries in a block: with four rows of keys they fill a register tile.</summary>
    public const int Vectors = 4;

    /// <summary>Keys in a tile: S then takes 16 KB in the widest vectors, a third of the first-level cache.</summary>
    public const int Keys = 64;

    /// <summary>The queries in a block.</summary>
    public static int Block<V>() where V : struct, ILanes<V> => Vectors * V.Count;

    /// <summary>The queries in a block of the widest vectors, for the sizes of scratch memory.</summary>
    public const int WidestBlock = Vectors * 16;

    /// <summary>The floats of one tile.</summary>
    public const int WidestTile = Keys * WidestBlock;

    public static long RoundUp(long count, long multiple) => (count + multiple - 1) / multiple * multiple;

    /// <summary>Copies rows i0 .. i0+rows−1 of a matrix into lanes: target[column·Block + row]. Lanes beyond the rows become 0.</summary>
    public static void PackColumns<V>(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float* target) where V : struct, ILanes<V>
    {
        nint block = Block<V>();
        for (nint column = 0; column < columns; column++)
        {
            float* from = source + column * columnStep, to = target + column * block;
            for (nint row = 0; row < rows; row++)
                to[row] = from[row * rowStep];
            for (nint row = rows; row < block; row++)
                to[row] = 0;
        }
    }

    /// <summary>Copies rows of a matrix to rows of whole vectors: target[row·step + column]. Columns up to step become 0.</summary>
    public static void PackRows(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float* target, nint step)
    {
        for (nint row = 0; row < rows; row++)
        {
            float* from = source + row * rowStep, to = target + row * step;
            for (nint column = 0; column < columns; column++)
                to[column] = from[column * columnStep];
            for (nint column = columns; column < step; column++)
                to[column] = 0;
        }
    }

    /// <summary>Whether a matrix holds neither NaN nor ∞.</summary>
    public static bool IsFinite(float* source, nint rowStep, nint columnStep, nint rows, nint columns)
    {
        float sum = 0; // x·0 is 0, or NaN where x isn't finite
        for (nint row = 0; row < rows; row++)
        {
            for (nint column = 0; column < columns; column++)
                sum += source[row * rowStep + column * columnStep] * 0f;
        }
        return sum == 0;
    }
}

/// <summary>The pointers to a captured tensor while a call runs.</summary>
internal readonly unsafe struct Captured
{
    private readonly float* data;
    private readonly nint batchStep, headStep, queryStep, keyStep, length;

    public readonly CapturedStructure Structure;

    /// <summary>The index of distance 0.</summary>
    public readonly nint Centre;

    public Captured(byte* values, in CapturedTensor tensor) : this(values, tensor.Values, tensor)
    {
    }

    /// <summary>A tensor (its gradient, say) of the same shape as a captured one.</summary>
    public Captured(byte* values, in TensorView view, in CapturedTensor tensor)
    {
        if (!view.IsPresent)
            return;
        data = (float*)values;
        Structure = tensor.Structure;
        Centre = (nint)tensor.Centre;
        switch (Structure)
        {
            case CapturedStructure.PerHead:
                headStep = Step(view, 0);
                break;
            case CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance:
                headStep = Step(view, 0);
                keyStep = (nint)view.Stride(1);
                length = (nint)view.Length(1);
                break;
            default:
                batchStep = Step(view, 0);
                headStep = Step(view, 1);
                queryStep = Structure == CapturedStructure.PerKey ? 0 : Step(view, 2);
                keyStep = Structure == CapturedStructure.PerKey ? Step(view, 2) : Structure == CapturedStructure.Dense ? Step(view, 3) : 0;
                break;
        }
    }

    public bool IsPresent => data != null;

    public bool IsByDistance => Structure is CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance;

    /// <summary>Whether two pairs of different queries or keys, sequences or heads can share a value where the structure has one each.</summary>
    public bool IsShared(in AttentionShape shape) => Structure == CapturedStructure.Dense &&
        ((batchStep == 0 && shape.Batch > 1) || (headStep == 0 && shape.Heads > 1) || (queryStep == 0 && shape.Queries > 1) || (keyStep == 0 && shape.Keys > 1));

    /// <summary>Where the value of a pair lies.</summary>
    public float* At(nint batch, nint head, nint query, nint key, nint distance)
    {
        float* start = data + batch * batchStep + head * headStep;
        if (!IsByDistance)
            return start + query * queryStep + key * keyStep;
        nint index = Structure == CapturedStructure.PerHeadAndDistance ? distance + Centre : Math.Abs(distance);
        return start + Math.Clamp(index, 0, length - 1) * keyStep;
    }

    /// <summary>Where an entry of a structure by distance lies.</summary>
    public float* Entry(nint head, nint index) => data + head * headStep + index * keyStep;

    private static nint Step(in TensorView view, int axis) => view.Length(axis) == 1 ? 0 : (nint)view.Stride(axis);
}

/// <summary>The four captured tensors of a call.</summary>
[InlineArray(Count)]
internal struct CapturedSet
{
    public const int Count = 4;

    private Captured first;
}

/// <summary>Rows of lanes, one a key: what stands at key j and the lanes of the block is read at Start + j·Step.</summary>
internal unsafe struct LaneRows
{
    public float* Start;
    public nint Step;
}

/// <summary>Four times <see cref="LaneRows"/>.</summary>
[InlineArray(CapturedSet.Count)]
internal struct LaneRowsSet
{
    private LaneRows first;
}

/// <summary>What changes the scores of one query head: the bias by distance, and the captured values of the rule, as rows of lanes.</summary>
/// <remarks>
/// Everything that depends on the distance alone lies in a line: the value of query i and key j at line[i − j + const], so that for the next key the
/// lanes begin one float earlier. Slopes and a distance vector add up into one line.
/// </remarks>
internal unsafe struct HeadScores
{
    private nint batch, head, queries, keys, offset;
    private float* zeros;

    /// <summary>The bias by distance; Start is null if there is none. Index with i − j.</summary>
    public float* Line;

    /// <summary>Whether the line holds −∞, which hides pairs.</summary>
    public bool LineHides;

    public LaneRowsSet Captures;

    /// <summary>The floats of scratch memory: a line a distance structure, a block or a tile a captured tensor, a block of zeros.</summary>
    public static long ScratchFloats(in AttentionShape shape) =>
        (1 + CapturedSet.Count) * (shape.Queries + shape.Keys + AttentionTiles.WidestBlock) + CapturedSet.Count * AttentionTiles.WidestTile + AttentionTiles.WidestBlock;

    /// <summary>Lays out the lines of a head for queries from <paramref name="query"/> on and keys from <paramref name="key"/> on.</summary>
    public void Begin<V>(in AttentionScoring scoring, in AttentionShape shape, nint batch, nint head, nint query, nint queries, nint key, nint keys, ref float* scratch)
        where V : struct, ILanes<V>
    {
        this.batch = batch;
        this.head = head;
        this.queries = query + queries;
        this.keys = key + keys;
        offset = (nint)shape.QueryOffset;
        nint block = AttentionTiles.Block<V>();
        zeros = Take(ref scratch, block);
        new Span<float>(zeros, (int)block).Clear();

        // Query i and key j stand at line[i − j]: from the last key's first query to the first key's last query, and a block of spare lanes.
        nint first = query - (key + keys - 1), length = queries + keys - 1 + block;
        Line = null;
        LineHides = false;
        if (scoring.HasLine)
        {
            Line = Take(ref scratch, length) - first;
            for (nint t = first; t < first + length; t++)
            {
                Line[t] = scoring.Bias(batch, head, -(t + offset), (nint)shape.DistanceCentre);
                LineHides |= Line[t] == float.NegativeInfinity;
            }
        }
        for (int c = 0; c < CapturedSet.Count; c++)
        {
            ref readonly Captured captured = ref scoring.Captures[c];
            ref LaneRows rows = ref Captures[c];
            rows = new() { Start = zeros };
            if (!captured.IsPresent)
                continue;
            if (captured.IsByDistance)
            {
                rows.Start = Take(ref scratch, length) - first;
                rows.Step = -1;
                for (nint t = first; t < first + length; t++)
                    rows.Start[t] = *captured.At(batch, head, 0, 0, -(t + offset));
            }
            else if (captured.Structure is CapturedStructure.PerHead or CapturedStructure.PerQuery)
            {
                rows.Start = Take(ref scratch, block);
                new Span<float>(rows.Start, (int)block).Fill(*captured.At(batch, head, 0, 0, 0));
            }
            else
            {
                rows.Start = Take(ref scratch, AttentionTiles.Keys * block);
                rows.Step = block;
            }
        }
    }

    /// <summary>Fetches the captured values of a block of queries.</summary>
    public readonly void BeginBlock<V>(in AttentionScoring scoring, nint i0) where V : struct, ILanes<V>
    {
        for (int c = 0; c < CapturedSet.Count; c++)
        {
            ref readonly Captured captured = ref scoring.Captures[c];
            if (!captured.IsPresent || captured.Structure != CapturedStructure.PerQuery)
                continue;
            for (nint lane = 0; lane < AttentionTiles.Block<V>(); lane++)
                Captures[c].Start[lane] = *captured.At(batch, head, Math.Min(i0 + lane, queries - 1), 0, 0);
        }
    }

    /// <summary>Fetches the captured values of a tile, and says where its rows of lanes begin.</summary>
    public readonly LaneRows BeginTile<V>(in AttentionScoring scoring, int capture, nint i0, nint j0, nint rows) where V : struct, ILanes<V>
    {
        ref readonly Captured captured = ref scoring.Captures[capture];
        LaneRows lanes = Captures[capture];
        if (!captured.IsPresent || captured.Structure is CapturedStructure.PerHead or CapturedStructure.PerQuery)
            return lanes;
        if (captured.IsByDistance)
            return new() { Start = lanes.Start + i0 - j0, Step = -1 };
        nint block = AttentionTiles.Block<V>();
        for (nint lane = 0; lane < block; lane++)
        {
            nint i = Math.Min(i0 + lane, queries - 1);
            for (nint row = 0; row < rows; row++)
                lanes.Start[row * block + lane] = *captured.At(batch, head, i, j0 + row, 0);
        }
        return lanes;
    }

    /// <summary>The first float of lanes of the line for key j0: row r of the tile begins r floats earlier.</summary>
    public readonly LaneRows LineTile(nint i0, nint j0) => Line == null ? new() { Start = zeros } : new() { Start = Line + i0 - j0, Step = -1 };

    private static float* Take(ref float* scratch, nint floats)
    {
        float* taken = scratch;
        scratch += floats;
        return taken;
    }
}

/// <summary>The tensors that change scores, as pointers while a call runs.</summary>
internal readonly unsafe struct AttentionScoring
{
    private readonly float* slopes, distanceBias;
    private readonly nint slopeBatchStep, slopeHeadStep, distanceHeadStep, distanceStep, distanceLength;

    public readonly CapturedSet Captures;

    public AttentionScoring(in AttentionProblem problem, byte* slopes, byte* distanceBias, byte* captured0, byte* captured1, byte* captured2, byte* captured3)
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
        Captures[0] = new Captured(captured0, problem.Captured0);
        Captures[1] = new Captured(captured1, problem.Captured1);
        Captures[2] = new Captured(captured2, problem.Captured2);
        Captures[3] = new Captured(captured3, problem.Captured3);
    }

    public bool HasLine => slopes != null || distanceBias != null;

    /// <summary>The sum of the biases at a distance; 0 for the distances of spare lanes, which lie beyond the vector.</summary>
    public float Bias(nint batch, nint head, nint distance, nint centre)
    {
        float bias = 0;
        if (slopes != null)
            bias = -slopes[batch * slopeBatchStep + head * slopeHeadStep] * Math.Abs(distance);
        nint index = distance + centre;
        if (distanceBias != null && index >= 0 && index < distanceLength)
            bias += distanceBias[head * distanceHeadStep + index * distanceStep];
        return bias;
    }
}
