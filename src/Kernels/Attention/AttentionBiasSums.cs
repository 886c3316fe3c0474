using ILGPU;

namespace TransformerKernels;

/// <summary>What the tiles of the queries sum up for a bias.</summary>
internal enum BiasSumKind
{
    None,
    Diagonals,
    Rows,
    Columns,
    /// <summary>Nothing: every pair has its own place.</summary>
    Pairs,
}

/// <summary>How the queries of a head are cut into pieces, and where what a piece sums up lies: [sequence, head, piece, length].</summary>
internal readonly struct BiasSums
{
    // Enough groups for a large device with a few heads, few enough that their sums take less memory than the queries.
    private const long MostPieces = 32;

    public readonly long Length;
    public readonly int Pieces, QueriesPerPiece, Kind;

    public BiasSums(in AttentionShape shape, BiasSumKind kind, int side)
    {
        long blocks = TileSide.Blocks(shape.Queries, side), blocksPerPiece = 1;
        if (kind is BiasSumKind.Diagonals or BiasSumKind.Columns)
            blocksPerPiece = Math.Max(1, (blocks + MostPieces - 1) / MostPieces);
        Kind = (int)kind;
        QueriesPerPiece = checked((int)(blocksPerPiece * side));
        Pieces = checked((int)((blocks + blocksPerPiece - 1) / blocksPerPiece));
        long keys = TileSide.Blocks(shape.Keys, side) * side;
        Length = kind switch
        {
            BiasSumKind.Diagonals => keys + QueriesPerPiece,
            BiasSumKind.Columns => keys,
            BiasSumKind.Rows => shape.Queries,
            _ => 0,
        };
    }

    public static BiasSumKind KindOf(CapturedStructure structure) => structure switch
    {
        CapturedStructure.PerHead or CapturedStructure.PerQuery => BiasSumKind.Rows,
        CapturedStructure.PerKey => BiasSumKind.Columns,
        CapturedStructure.Dense => BiasSumKind.Pairs,
        _ => BiasSumKind.Diagonals,
    };

    /// <summary>How many sums of this length a head has: rows are whole in one piece.</summary>
    public long Parts => Kind == (int)BiasSumKind.Rows ? 1 : Pieces;

    public long Floats(in AttentionShape shape) => shape.Batch * shape.Heads * Parts * Length;
}

/// <summary>Which sums an entry of a bias's gradient collects.</summary>
internal enum BiasEntry
{
    /// <summary>The diagonal at index − centre.</summary>
    Distance,
    /// <summary>All diagonals, times −|distance|.</summary>
    Slope,
    /// <summary>The diagonal at index − centre; the ends collect what lies beyond them.</summary>
    ClampedDistance,
    /// <summary>The diagonals at ±index; the end collects what lies beyond it.</summary>
    ClampedAbsoluteDistance,
    /// <summary>The place, or all of them.</summary>
    Place,
}

/// <summary>What the kernels that sum up biases' gradients read and write: entries [sequence, head, index].</summary>
internal readonly struct BiasSumArguments
{
    public readonly ArrayView<float> Memory;
    private readonly ArrayView<float> gradient;
    private readonly long start, batchStep, headStep, indexStep;
    private readonly long batches, heads, entryBatches, entryHeads, entryIndices;
    private readonly long sums, parts, length, shift, shiftStep;
    private readonly long least, greatest, centre;
    private readonly int entry, accumulate;

    public BiasSumArguments(GpuDevice device, in AttentionShape shape, in BiasSums sums, ArrayView<float> memory, long start, BiasEntry entry, in TensorView view, long centre,
        bool accumulate, string name)
    {
        GpuTensor<float> tensor = new(device, view, name);
        Memory = memory;
        gradient = tensor.Memory;
        this.start = tensor.At(0, 0, 0);
        long step0 = tensor.At(1, 0, 0) - this.start, step1 = tensor.At(0, 1, 0) - this.start;
        bool perSequence = entry == BiasEntry.Place ? view.Rank == 3 : entry == BiasEntry.Slope && view.Rank == 2;
        int headAxis = perSequence ? 1 : 0;
        (batchStep, headStep) = perSequence ? (step0, step1) : (0, step0);
        bool hasIndices = view.Rank > headAxis + 1;
        indexStep = !hasIndices ? 0 : perSequence ? tensor.Stride2 : step1;
        batches = shape.Batch;
        heads = shape.Heads;
        entryBatches = perSequence ? view.Length(0) : 1;
        entryHeads = view.Length(headAxis);
        entryIndices = hasIndices ? view.Length(headAxis + 1) : 1;
        this.sums = start;
        parts = sums.Parts;
        length = sums.Length;
        if (sums.Kind == (int)BiasSumKind.Diagonals)
        {
            // A piece's diagonal w has key − query = w − (queries up to the piece's end) + 1.
            shiftStep = sums.QueriesPerPiece;
            shift = shape.QueryOffset + shiftStep - 1;
            least = shape.LeastDistance;
            greatest = shape.GreatestDistance;
        }
        else
            greatest = (sums.Kind == (int)BiasSumKind.Rows ? shape.Queries : shape.Keys) - 1;
        this.centre = centre;
        this.entry = (int)entry;
        this.accumulate = accumulate ? 1 : 0;
    }

    public static BiasEntry EntryOf(CapturedStructure structure) => structure switch
    {
        CapturedStructure.PerHeadAndDistance => BiasEntry.ClampedDistance,
        CapturedStructure.PerHeadAndAbsoluteDistance => BiasEntry.ClampedAbsoluteDistance,
        _ => BiasEntry.Place,
    };

    public long Entries => entryBatches * entryHeads * entryIndices;

    /// <summary>Whether an entry may collect many places.</summary>
    public bool HasLongSums => entry != (int)BiasEntry.Distance && (entry != (int)BiasEntry.Place || entryIndices != greatest + 1);

    /// <summary>An entry's sum, or with several threads a thread's share of it: every so manieth place.</summary>
    public float Sum(long number, int thread, int threads)
    {
        long index = number % entryIndices, head = number / entryIndices % entryHeads, batch = number / entryIndices / entryHeads;
        long from = least, to = greatest, mirroredFrom = 0, mirroredTo = -1;
        if (entry == (int)BiasEntry.Distance || entry == (int)BiasEntry.ClampedDistance)
        {
            long distance = index - centre;
            bool clamped = entry == (int)BiasEntry.ClampedDistance;
            if (!clamped || index != 0)
                from = distance;
            if (!clamped || index != entryIndices - 1)
                to = distance;
        }
        else if (entry == (int)BiasEntry.ClampedAbsoluteDistance)
        {
            from = index;
            mirroredTo = index == 0 ? -1 : -index;
            mirroredFrom = least;
            if (index != entryIndices - 1)
            {
                to = index;
                mirroredFrom = -index;
            }
            if (index == 0 && entryIndices > 1)
                mirroredFrom = 0; // 0 has no mirror
        }
        else if (entry == (int)BiasEntry.Place && entryIndices == greatest + 1)
        {
            from = index;
            to = index;
        }
        float sum = 0f, error = 0f;
        long firstBatch = entryBatches == batches ? batch : 0, lastBatch = entryBatches == batches ? batch : batches - 1;
        long firstHead = entryHeads == heads ? head : 0, lastHead = entryHeads == heads ? head : heads - 1;
        for (long b = firstBatch; b <= lastBatch; b++)
        {
            for (long h = firstHead; h <= lastHead; h++)
            {
                AddRange(ref sum, ref error, b * heads + h, mirroredFrom, mirroredTo, thread, threads);
                AddRange(ref sum, ref error, b * heads + h, from, to, thread, threads);
            }
        }
        return sum + error;
    }

    /// <summary>Writes an entry, or adds to it.</summary>
    public void Store(long number, float sum)
    {
        long at = start + number / entryIndices / entryHeads * batchStep + number / entryIndices % entryHeads * headStep + number % entryIndices * indexStep;
        gradient[at] = accumulate != 0 ? gradient[at] + sum : sum;
    }

    // What one addition loses is kept beside the sum: the terms cancel.
    private void AddRange(ref float sum, ref float error, long row, long from, long to, int thread, int threads)
    {
        from = from < least ? least : from;
        to = to > greatest ? greatest : to;
        for (long x = from + thread; x <= to; x += threads)
        {
            for (long part = 0; part < parts; part++)
            {
                long at = x + shift + part * shiftStep;
                if (at < 0 || at >= length)
                    continue;
                float term = Memory[sums + (row * parts + part) * length + at];
                if (entry == (int)BiasEntry.Slope)
                    term *= x < 0 ? x : -x;
                float next = sum + term, second = next - sum;
                error += sum - (next - second) + (term - second);
                sum = next;
            }
        }
    }
}

internal static class BiasSumKernels
{
    public const int GroupSize = 256;

    /// <summary>A thread per entry of a bias's gradient.</summary>
    public static void SumShort(int none, BiasSumArguments a)
    {
        long entry = (long)Grid.IdxX * GroupSize + Group.IdxX;
        if (entry < a.Entries)
            a.Store(entry, a.Sum(entry, 0, 1));
    }

    /// <summary>A group per entry of a bias's gradient.</summary>
    public static void SumLong(int none, BiasSumArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        float sum = GroupSums.Sum(shared, GroupSize, a.Sum(Grid.IdxX, Group.IdxX, GroupSize));
        if (Group.IdxX == 0)
            a.Store(Grid.IdxX, sum);
    }
}
