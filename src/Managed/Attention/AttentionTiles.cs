using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

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

    /// <summary>The steps of a rule that the JIT still inlines whole with two vectors in lockstep and their derivatives; see <see cref="FormulaLength"/>.</summary>
    public const int ShortRule = 40;

    public static long RoundUp(long count, long multiple) => (count + multiple - 1) / multiple * multiple;

    /// <summary>Copies rows of a matrix into lanes: target[column·Block + row]. Lanes beyond the rows become 0.</summary>
    public static void PackColumns<V>(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float* target) where V : struct, ILanes<V>
    {
        nint block = Block<V>();
        if (rows < block)
            NativeMemory.Clear(target, (nuint)(columns * block * sizeof(float)));
        MatrixCopy.Run(source, rowStep, columnStep, target, 1, block, rows, columns);
    }

    /// <summary>Copies rows of a matrix to rows of whole vectors: target[row·step + column]. Columns up to step become 0.</summary>
    public static void PackRows(float* source, nint rowStep, nint columnStep, nint rows, nint columns, float* target, nint step)
    {
        if (columns < step)
            NativeMemory.Clear(target, (nuint)(rows * step * sizeof(float)));
        MatrixCopy.Run(source, rowStep, columnStep, target, step, 1, rows, columns);
    }

    /// <summary>Whether a matrix holds neither NaN nor ∞.</summary>
    public static bool IsFinite<V>(float* source, nint rowStep, nint columnStep, nint rows, nint columns) where V : struct, ILanes<V>
    {
        // x·0 is 0, or NaN where x isn't finite.
        V sums = V.Zero;
        float sum = 0;
        for (nint row = 0; row < rows; row++)
        {
            float* from = source + row * rowStep;
            nint column = 0;
            for (; columnStep == 1 && column + V.Count <= columns; column += V.Count)
                sums += V.Load(from + column) * 0f;
            for (; column < columns; column++)
                sum += from[column * columnStep] * 0f;
        }
        return sum + sums.Sum() == 0;
    }
}

/// <summary>The pointers to a captured tensor, or to a bias like one, while a call runs.</summary>
internal readonly unsafe struct Captured
{
    private readonly float* data;
    private readonly nint batchStep, headStep, queryStep, keyStep, length;

    public readonly CapturedStructure Structure;

    /// <summary>The index of distance 0.</summary>
    public readonly nint Centre;

    public Captured(byte* values, in CapturedTensor tensor) : this(values, tensor.Values, tensor.Structure, tensor.Centre)
    {
    }

    /// <summary>A tensor, or its gradient. A dense one that is shared by all queries or keys counts as one per key or query.</summary>
    public Captured(byte* values, in TensorView view, CapturedStructure structure, long centre = 0)
    {
        if (!view.IsPresent)
            return;
        data = (float*)values;
        Structure = structure;
        Centre = (nint)centre;
        switch (structure)
        {
            case CapturedStructure.PerHead:
                headStep = Step(view, 0);
                Heads = (nint)view.Length(0);
                break;
            case CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance:
                headStep = Step(view, 0);
                keyStep = (nint)view.Stride(1);
                Heads = (nint)view.Length(0);
                length = (nint)view.Length(1);
                break;
            default:
                batchStep = Step(view, 0);
                headStep = Step(view, 1);
                (Batches, Heads) = ((nint)view.Length(0), (nint)view.Length(1));
                bool perQuery = structure != CapturedStructure.PerKey && view.Length(2) != 1;
                bool perKey = structure != CapturedStructure.PerQuery && view.Length(view.Rank - 1) != 1;
                Structure = perQuery && perKey ? CapturedStructure.Dense : perKey ? CapturedStructure.PerKey : CapturedStructure.PerQuery;
                queryStep = perQuery ? (nint)view.Stride(2) : 0;
                keyStep = perKey ? (nint)view.Stride(view.Rank - 1) : 0;
                Places = perKey ? (nint)view.Length(view.Rank - 1) : perQuery ? (nint)view.Length(2) : 1;
                break;
        }
    }

    /// <summary>How many sequences, heads, and queries or keys have values of their own.</summary>
    public nint Batches { get; }

    public nint Heads { get; }

    public nint Places { get; }

    /// <summary>The entries of a structure by distance.</summary>
    public nint Entries => length;

    /// <summary>The distance between the values of neighbouring queries.</summary>
    public nint QueryStep => queryStep;

    /// <summary>The distance between the values of neighbouring keys.</summary>
    public nint KeyStep => keyStep;

    public bool IsPresent => data != null;

    public bool IsByDistance => Structure is CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance;

    /// <summary>Whether several sequences share the value of a pair.</summary>
    public bool IsSharedByBatch(in AttentionShape shape) => IsPresent && Structure == CapturedStructure.Dense && Batches == 1 && shape.Batch > 1;

    /// <summary>Whether several heads share the value of a pair.</summary>
    public bool IsSharedByHeads(in AttentionShape shape) => IsPresent && Structure == CapturedStructure.Dense && Heads == 1 && shape.Heads > 1;

    /// <summary>Where the value of a pair lies.</summary>
    public float* At(nint batch, nint head, nint query, nint key, nint distance)
    {
        float* start = data + batch * batchStep + head * headStep;
        if (!IsByDistance)
            return start + query * queryStep + key * keyStep;
        nint index = Structure == CapturedStructure.PerHeadAndDistance ? distance + Centre : Math.Abs(distance);
        return start + Math.Clamp(index, 0, length - 1) * keyStep;
    }

    /// <summary>Reads a structure by distance into a line: line[t] for t from .. from+count−1 is what belongs to distance −(t + offset).</summary>
    public void ReadLine<V>(nint head, float* line, nint from, nint count, nint offset) where V : struct, ILanes<V>
    {
        float* start = data + head * headStep;
        if (Structure == CapturedStructure.PerHeadAndDistance)
        {
            ScoreLine.Read<V>(start, keyStep, length, Centre - (from + offset), -1, line + from, count);
            return;
        }
        // |distance| falls to 0 at t = −offset and rises from there.
        nint falling = Math.Clamp(-offset - from, 0, count);
        ScoreLine.Read<V>(start, keyStep, length, -(from + offset), -1, line + from, falling);
        ScoreLine.Read<V>(start, keyStep, length, from + falling + offset, 1, line + from + falling, count - falling);
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

/// <summary>The tensors of a call with a value a query, a key or a pair: the captured ones, then those that are added to the scores.</summary>
[InlineArray(Count)]
internal struct PairTensors
{
    public const int DenseBias = CapturedSet.Count, RowBias = DenseBias + 1, ColumnBias = RowBias + 1, Count = ColumnBias + 1;

    private Captured first;
}

/// <summary>Rows of lanes, one a key: what stands at key j and the lanes of the block is read at Start + j·Step.</summary>
internal unsafe struct LaneRows
{
    public float* Start;
    public nint Step;
}

/// <summary><see cref="LaneRows"/> of every tensor.</summary>
[InlineArray(PairTensors.Count)]
internal struct LaneRowsSet
{
    private LaneRows first;
}

/// <summary>Lines of values by distance: the value of query i and key j stands at line[i − j + const], so that for the next key the lanes begin one float earlier.</summary>
internal static unsafe class ScoreLine
{
    /// <summary>line[n] = table[(index + n·direction)·step]; an index beyond an end takes the end.</summary>
    public static void Read<V>(float* table, nint step, nint length, nint index, nint direction, float* line, nint count) where V : struct, ILanes<V>
    {
        nint last = length - 1;
        // How many entries lie before the table is reached, and how many until it is left again.
        nint before = Math.Clamp(direction > 0 ? -index : index - last, 0, count);
        nint inside = Math.Clamp((direction > 0 ? last - index : index) + 1, before, count);
        for (nint n = 0; n < before; n++)
            line[n] = table[(direction > 0 ? 0 : last) * step];
        float* from = table + (index + before * direction) * step;
        nint stride = direction * step;
        for (nint n = before; n < inside; n++, from += stride)
            line[n] = *from;
        for (nint n = inside; n < count; n++)
            line[n] = table[(direction > 0 ? last : 0) * step];
    }

    /// <summary>line[t] −= slope·|t + offset| for t from .. from+count−1.</summary>
    public static void AddSlope<V>(float slope, nint offset, float* line, nint from, nint count) where V : struct, ILanes<V>
    {
        nint t = from;
        for (; t + V.Count <= from + count; t += V.Count)
            (V.Load(line + t) - slope * V.Abs(V.Iota(t + offset))).Store(line + t);
        for (; t < from + count; t++)
            line[t] -= slope * Math.Abs(t + offset);
    }

    /// <summary>Whether a line holds −∞.</summary>
    public static bool Hides<V>(float* line, nint count) where V : struct, ILanes<V>
    {
        V none = V.From(float.NegativeInfinity), least = V.Zero;
        nint n = 0;
        for (; n + V.Count <= count; n += V.Count)
            least = V.SelectEqual(V.Load(line + n), none, none, least);
        bool hides = V.AnyEqual(least, none);
        for (; n < count; n++)
            hides |= line[n] == float.NegativeInfinity;
        return hides;
    }
}

/// <summary>What changes the scores of one query head: the bias by distance, and the captured values of the rule, as rows of lanes.</summary>
/// <remarks>
/// Everything that depends on the distance alone lies in a <see cref="ScoreLine"/>; slopes and a distance vector add up into one. A tile in which pairs are
/// hidden by position has its biases written out, −∞ for what is hidden; all other tiles pay nothing for masks.
/// </remarks>
internal unsafe struct HeadScores
{
    private nint batch, head, queries, keys, offset;
    private float* zeros, tile, queryBiases;
    private bool hasAdded;

    /// <summary>The bias by distance; Start is null if there is none. Index with i − j.</summary>
    public float* Line;

    /// <summary>Whether the line holds −∞, which hides pairs.</summary>
    public bool LineHides;

    public LaneRowsSet Captures;

    /// <summary>The floats of scratch memory: a line a distance structure, a tile a captured tensor and one for the biases, a block of zeros and one of biases a query.</summary>
    public static long ScratchFloats(in AttentionShape shape) =>
        (1 + CapturedSet.Count) * (shape.Queries + shape.Keys + AttentionTiles.WidestBlock) + (1 + CapturedSet.Count) * AttentionTiles.WidestTile + 2 * AttentionTiles.WidestBlock;

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
        queryBiases = Take(ref scratch, block);
        tile = Take(ref scratch, AttentionTiles.Keys * block);
        hasAdded = scoring.HasAdded;

        // Query i and key j stand at line[i − j]: from the last key's first query to the first key's last query, and a block of spare lanes.
        nint first = query - (key + keys - 1), length = queries + keys - 1 + block;
        Line = null;
        LineHides = false;
        if (scoring.HasLine)
        {
            Line = Take(ref scratch, length) - first;
            scoring.ReadLine<V>(batch, head, Line, first, length, offset, (nint)shape.DistanceCentre);
            LineHides = ScoreLine.Hides<V>(Line + first, queries + keys - 1);
        }
        for (int c = 0; c < CapturedSet.Count; c++)
        {
            ref readonly Captured captured = ref scoring.Tensors[c];
            ref LaneRows rows = ref Captures[c];
            rows = new() { Start = zeros };
            if (!captured.IsPresent)
                continue;
            if (captured.IsByDistance)
            {
                rows.Start = Take(ref scratch, length) - first;
                rows.Step = -1;
                captured.ReadLine<V>(head, rows.Start, first, length, offset);
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
        if (hasAdded)
            new Span<float>(queryBiases, (int)AttentionTiles.Block<V>()).Clear();
        for (int c = 0; c < PairTensors.Count; c++)
        {
            ref readonly Captured tensor = ref scoring.Tensors[c];
            if (!tensor.IsPresent || tensor.Structure != CapturedStructure.PerQuery)
                continue;
            for (nint lane = 0; lane < AttentionTiles.Block<V>(); lane++)
            {
                float value = *tensor.At(batch, head, Math.Min(i0 + lane, queries - 1), 0, 0);
                if (c < CapturedSet.Count)
                    Captures[c].Start[lane] = value;
                else
                    queryBiases[lane] += value;
            }
        }
    }

    /// <summary>Fetches the captured values of a tile.</summary>
    public readonly RuleTile BeginTile<V>(in AttentionScoring scoring, nint batch, nint head, nint i0, nint j0, nint rows) where V : struct, ILanes<V> => new()
    {
        Batch = batch,
        Head = head,
        FirstQuery = i0 + offset,
        FirstKey = j0,
        Captured0 = BeginTile<V>(scoring, 0, i0, j0, rows),
        Captured1 = BeginTile<V>(scoring, 1, i0, j0, rows),
        Captured2 = BeginTile<V>(scoring, 2, i0, j0, rows),
        Captured3 = BeginTile<V>(scoring, 3, i0, j0, rows),
    };

    // Fetches the values of one captured tensor, and says where its rows of lanes begin.
    private readonly LaneRows BeginTile<V>(in AttentionScoring scoring, int capture, nint i0, nint j0, nint rows) where V : struct, ILanes<V>
    {
        ref readonly Captured captured = ref scoring.Tensors[capture];
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

    /// <summary>The biases of a tile, −∞ where a pair is hidden.</summary>
    /// <param name="scoring">The tensors.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="queryCount">The queries; lanes beyond them are hidden.</param>
    /// <param name="j0">The first key.</param>
    /// <param name="keyCount">The keys.</param>
    /// <param name="causal">Whether a query sees no keys behind its position.</param>
    /// <param name="hides">Whether there may be −∞.</param>
    public readonly LaneRows Bias<V>(in AttentionScoring scoring, nint i0, nint queryCount, nint j0, nint keyCount, bool causal, out bool hides) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        LaneRows rows = Line == null ? new() { Start = zeros } : new() { Start = Line + i0 - j0, Step = -1 };
        // The first key that some query of the block doesn't see lies right after the first query's position.
        bool crossesDiagonal = causal && j0 + keyCount - 1 > i0 + offset;
        hides = crossesDiagonal || queryCount < block || LineHides;
        if (hasAdded)
        {
            hides |= Add<V>(scoring, rows, i0, j0, keyCount);
            rows = new() { Start = tile, Step = block };
        }
        if (!crossesDiagonal && queryCount == block)
            return rows;
        V none = V.From(float.NegativeInfinity), end = V.From(queryCount);
        for (nint row = 0; row < keyCount; row++)
        {
            V firstLane = V.From(crossesDiagonal ? j0 + row - i0 - offset : 0);
            for (nint lane = 0; lane < block; lane += V.Count)
            {
                V lanes = V.Iota(lane), bias = V.SelectLess(lanes, firstLane, none, V.Load(rows.Start + row * rows.Step + lane));
                V.SelectLess(lanes, end, bias, none).Store(tile + row * block + lane);
            }
        }
        return new() { Start = tile, Step = block };
    }

    // Writes the sum of all biases of a tile out; returns whether some are −∞.
    private readonly bool Add<V>(in AttentionScoring scoring, LaneRows line, nint i0, nint j0, nint keyCount) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), count = Math.Min(block, queries - i0);
        ref readonly Captured dense = ref scoring.Tensors[PairTensors.DenseBias];
        bool perPair = dense.IsPresent && dense.Structure == CapturedStructure.Dense;
        if (perPair)
        {
            if (count < block)
                new Span<float>(tile, (int)(keyCount * block)).Clear();
            MatrixCopy.Run(dense.At(batch, head, i0, j0, 0), dense.QueryStep, dense.KeyStep, tile, 1, block, count, keyCount);
        }
        V none = V.From(float.NegativeInfinity), least = V.Zero;
        for (nint row = 0; row < keyCount; row++)
        {
            float keyBias = 0;
            for (int c = PairTensors.DenseBias; c < PairTensors.Count; c++)
            {
                ref readonly Captured tensor = ref scoring.Tensors[c];
                if (tensor.IsPresent && tensor.Structure == CapturedStructure.PerKey)
                    keyBias += *tensor.At(batch, head, 0, j0 + row, 0);
            }
            V ofKey = V.From(keyBias);
            for (nint lane = 0; lane < block; lane += V.Count)
            {
                V bias = V.Load(line.Start + row * line.Step + lane) + V.Load(queryBiases + lane) + ofKey;
                if (perPair)
                    bias += V.Load(tile + row * block + lane);
                least = V.SelectEqual(bias, none, none, least);
                bias.Store(tile + row * block + lane);
            }
        }
        return V.AnyEqual(least, none);
    }

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

/// <summary>What a rule sees on a tile, beside the scores.</summary>
internal struct RuleTile
{
    public nint Batch, Head, FirstQuery, FirstKey;
    public LaneRows Captured0, Captured1, Captured2, Captured3;
}
