using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// Dao et al. 2022: scores and weights are computed again, from the log-sum-exp that the forward pass left. With D = Σ dO·O − dL of a row,
//
//     dz = P (dO Vᵀ − D)     dS = dz · ∂rule     dV = Pᵀ dO     dK = scale · dSᵀ Q     dQ = scale · dS K
//
// 1. If the log-sum-exp was kept without what rounding took from it: the forward kernel once more, without values.
// 2. Rows: D of each query.
// 3. Keys: a group takes 64 keys of a key head and up to 128 columns of dK and dV, and walks over the heads that share them and over their queries, 64 at
//    a time: every sum over queries and heads stays in registers, in one order. Rows of its tile are keys, columns are queries.
// 4. Queries: a group takes a piece of the queries of a head (and up to 128 columns of dQ), block after block, and walks over the keys. dQ stays in
//    registers. Of the biases it sums one kind at a time: the diagonals of dz, added up per distance; rows or columns of what a captured tensor receives.
//    The first launch has dQ and the diagonals of the biases, one more per captured tensor has its gradient: a second derivative of the rule would
//    need a second tile in shared memory.
// 5. The sums of pieces, sequences and heads that share an entry are added in that order: a thread, or a group, per entry.
//
// Two passes over the tiles compute scores twice, 7 products instead of 5; but one pass would add dQ or dK over groups: floats added in any order, or
// as many partial gradients as there are blocks of keys. The bits depend on shapes and on which gradients are wanted, on nothing else.
//
// Traffic: a tile of the keys reads 64 · (3d + 3dv) floats (K, Q, V, dO; then dO and Q once more), a tile of the queries 64 · (3d + 2dv) (dO, V, Q, K; then K
// once more), with d and dv up to 128. What is added per distance costs 1 KB a tile.
//
// Shared memory 38 KB. Workspace, in floats: 3 per query (log-sum-exp, what rounding took, D) and the sums of one kind of bias, per head and sequence
//   by distance     pieces · (Sk + queries of a piece), at most 32 pieces
//   by key          pieces · Sk, at most 32 pieces
//   by query        Sq
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients)
    {
        AttentionShape shape = AttentionShape.Of(problem);
        long sums = Math.Max(Math.Max(CapturedSums(shape, problem.Captured0, gradients.Captured0), CapturedSums(shape, problem.Captured1, gradients.Captured1)),
            Math.Max(CapturedSums(shape, problem.Captured2, gradients.Captured2), CapturedSums(shape, problem.Captured3, gradients.Captured3)));
        if (WantsDiagonals(gradients))
            sums = Math.Max(sums, new BiasSums(shape, BiasSumKind.Diagonals).Floats(shape));
        return checked((RowFloats(shape) + sums) * sizeof(float));

        static long CapturedSums(in AttentionShape shape, in CapturedTensor captured, in TensorView gradient) =>
            gradient.IsPresent ? new BiasSums(shape, BiasSums.KindOf(captured.Structure)).Floats(shape) : 0;
    }

    /// <inheritdoc/>
    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved,
        in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace)
    {
        AttentionShape shape = AttentionShape.Of(problem);
        RefuseSharedDense(shape, problem.Captured0, gradients.Captured0, 0);
        RefuseSharedDense(shape, problem.Captured1, gradients.Captured1, 1);
        RefuseSharedDense(shape, problem.Captured2, gradients.Captured2, 2);
        RefuseSharedDense(shape, problem.Captured3, gradients.Captured3, 3);
        using Workspace.Lease lease = workspace.Rent(AttentionBackwardWorkspaceBytes(problem, gradients));
        ArrayView<float> memory = Queue.Scratch<float>(lease);
        ScoreArguments score = new(this, problem, shape);

        TensorView logSumExp = saved.LogSumExp;
        long rows = RowFloats(shape) / RowTerms;
        if (saved.LogSumExp.Rank != 4 && rows > 0)
        {
            // The log-sum-exp lies in the first column of the rows' terms, what rounding took in the second: a column is one run of memory.
            logSumExp = TensorView.OfBuffer(lease.Buffer!, 0, ElementType.Float32, [shape.Batch, shape.Heads, shape.Queries, 2],
                [shape.Heads * shape.Queries, shape.Queries, 1, rows]);
            AttentionShape withoutValues = shape with { ValueSize = 0 };
            LaunchForward(rule, withoutValues, new ForwardArguments(this, problem, withoutValues, default, logSumExp));
        }
        long blocks = shape.Batch * shape.Heads * GpuScoreTile.Blocks(shape.Queries);
        LaunchBackward(AttentionBackwardKernels.Rows, blocks, 0, new RowArguments(this, shape, saved.Output, logSumExp, upstream, memory));

        if (gradients.Key.IsPresent || gradients.Value.IsPresent)
        {
            KeyArguments arguments = new(this, score, shape, problem, upstream, gradients, memory, rows);
            LaunchBackward(AttentionBackwardKernels.Keys, shape.Batch * shape.KeyHeads * GpuScoreTile.Blocks(shape.Keys) * arguments.Slices, rule, arguments);
        }
        bool diagonals = WantsDiagonals(gradients);
        if (gradients.Query.IsPresent || diagonals)
        {
            BiasSums sums = new(shape, diagonals ? BiasSumKind.Diagonals : BiasSumKind.None);
            LaunchQueries(rule, shape, new QueryArguments(this, score, sums, problem, upstream, gradients, memory, rows));
            if (gradients.DistanceBias.IsPresent)
                LaunchSums(new BiasSumArguments(this, shape, sums, memory, 3 * rows, BiasEntry.Distance, gradients.DistanceBias, shape.DistanceCentre, gradients.Accumulate, "gradients.DistanceBias"));
            if (gradients.Slopes.IsPresent)
                LaunchSums(new BiasSumArguments(this, shape, sums, memory, 3 * rows, BiasEntry.Slope, gradients.Slopes, 0, gradients.Accumulate, "gradients.Slopes"));
        }
        LaunchCaptured(rule, shape, score, problem, upstream, gradients, memory, 0, problem.Captured0, gradients.Captured0, "gradients.Captured0");
        LaunchCaptured(rule, shape, score, problem, upstream, gradients, memory, 1, problem.Captured1, gradients.Captured1, "gradients.Captured1");
        LaunchCaptured(rule, shape, score, problem, upstream, gradients, memory, 2, problem.Captured2, gradients.Captured2, "gradients.Captured2");
        LaunchCaptured(rule, shape, score, problem, upstream, gradients, memory, 3, problem.Captured3, gradients.Captured3, "gradients.Captured3");
    }

    // Log-sum-exp, what rounding took from it, and D.
    private const int RowTerms = 3;

    private static long RowFloats(in AttentionShape shape) => RowTerms * shape.Batch * shape.Heads * shape.Queries;

    private static bool WantsDiagonals(in AttentionGradients gradients) => gradients.DistanceBias.IsPresent || gradients.Slopes.IsPresent;

    private void RefuseSharedDense(in AttentionShape shape, in CapturedTensor captured, in TensorView gradient, int index)
    {
        if (gradient.IsPresent && new GpuCaptured(this, gradient, captured, $"gradients.Captured{index}").IsSharedDense(shape))
            throw new NotSupportedException($"{Name} doesn't offer the gradient of a dense captured tensor that is shared along an axis (gradients.Captured{index}).");
    }

    private void LaunchQueries<TRule>(TRule rule, in AttentionShape shape, in QueryArguments arguments) where TRule : unmanaged, IScoreRule =>
        LaunchBackward(AttentionBackwardKernels.Queries, shape.Batch * shape.Heads * arguments.Sums.Pieces * arguments.Slices, rule, arguments);

    private void LaunchCaptured<TRule>(TRule rule, in AttentionShape shape, in ScoreArguments score, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> memory, int capture, in CapturedTensor captured, in TensorView gradient, string name)
        where TRule : unmanaged, IScoreRule
    {
        if (!gradient.IsPresent)
            return;
        BiasSums sums = new(shape, BiasSums.KindOf(captured.Structure));
        long rows = RowFloats(shape) / RowTerms;
        LaunchQueries(rule, shape, new QueryArguments(this, score, sums, problem, upstream, gradients, memory, rows, capture, captured, gradient, name));
        if (captured.Structure != CapturedStructure.Dense)
            LaunchSums(new BiasSumArguments(this, shape, sums, memory, RowTerms * rows, BiasSumArguments.EntryOf(captured.Structure), gradient, captured.Centre, gradients.Accumulate, name));
    }

    private void LaunchSums(in BiasSumArguments arguments)
    {
        // Where an entry sums up many places a group does it, else a thread.
        if (arguments.HasLongSums)
            LaunchBackward(AttentionBackwardKernels.SumLong, arguments.Entries, 0, arguments);
        else
            LaunchBackward(AttentionBackwardKernels.SumShort, (arguments.Entries + GpuScoreTile.GroupSize - 1) / GpuScoreTile.GroupSize, 0, arguments);
    }

    private void LaunchBackward<T1, T2>(Action<T1, T2> kernel, long groups, T1 first, T2 second) where T1 : struct where T2 : struct
    {
        cancellation.ThrowIfCancellationRequested();
        if (groups > 0)
            Queue.Launch(kernel, checked((int)groups), AttentionBackwardKernels.GroupSize, first, second);
    }
}

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
    public readonly int Pieces, BlocksPerPiece, Kind;

    public BiasSums(in AttentionShape shape, BiasSumKind kind)
    {
        long blocks = GpuScoreTile.Blocks(shape.Queries);
        Kind = (int)kind;
        BlocksPerPiece = kind is BiasSumKind.Diagonals or BiasSumKind.Columns ? (int)Math.Max(1, (blocks + MostPieces - 1) / MostPieces) : 1;
        Pieces = checked((int)((blocks + BlocksPerPiece - 1) / BlocksPerPiece));
        long keys = GpuScoreTile.Blocks(shape.Keys) * GpuScoreTile.Side;
        Length = kind switch
        {
            BiasSumKind.Diagonals => keys + BlocksPerPiece * GpuScoreTile.Side,
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

/// <summary>What the kernel of the rows' terms reads and writes.</summary>
internal readonly struct RowArguments
{
    public readonly GpuMatrices Output, UpstreamOutput, LogSumExp, UpstreamLogSumExp;

    /// <summary>[term, sequence, head, query].</summary>
    public readonly ArrayView<float> Terms;

    public readonly long Rows;
    public readonly int Queries, Heads, ValueSize, HasUpstreamLogSumExp;

    public RowArguments(GpuDevice device, in AttentionShape shape, in TensorView output, in TensorView logSumExp, in AttentionUpstream upstream, ArrayView<float> terms)
    {
        Output = new(device, output, "saved.Output");
        UpstreamOutput = new(device, upstream.Output, "upstream.Output");
        LogSumExp = new(device, logSumExp, "saved.LogSumExp");
        UpstreamLogSumExp = new(device, upstream.LogSumExp, "upstream.LogSumExp");
        HasUpstreamLogSumExp = upstream.LogSumExp.IsPresent ? 1 : 0;
        Terms = terms;
        Queries = checked((int)shape.Queries);
        Rows = shape.Batch * shape.Heads * shape.Queries;
        Heads = checked((int)shape.Heads);
        ValueSize = checked((int)shape.ValueSize);
    }
}

/// <summary>What the kernel of the keys' gradients reads and writes.</summary>
internal readonly struct KeyArguments
{
    public readonly ScoreArguments Score;
    public readonly GpuMatrices Value, UpstreamOutput, KeyGradient, ValueGradient;
    public readonly ArrayView<float> Terms;
    public readonly long Rows;
    public readonly int KeyHeads, Slices, WantsKey, WantsValue, Accumulate;

    public KeyArguments(GpuDevice device, in ScoreArguments score, in AttentionShape shape, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> terms, long rows)
    {
        Score = score;
        Value = new(device, problem.Value, "problem.Value");
        UpstreamOutput = new(device, upstream.Output, "upstream.Output");
        KeyGradient = new(device, gradients.Key, "gradients.Key");
        ValueGradient = new(device, gradients.Value, "gradients.Value");
        Terms = terms;
        Rows = rows;
        KeyHeads = checked((int)shape.KeyHeads);
        WantsKey = gradients.Key.IsPresent ? 1 : 0;
        WantsValue = gradients.Value.IsPresent ? 1 : 0;
        Slices = (int)Math.Max(WantsKey * GpuScoreTile.Slices(score.HeadSize), WantsValue * GpuScoreTile.Slices(score.ValueSize));
        Accumulate = gradients.Accumulate ? 1 : 0;
    }
}

/// <summary>What the kernel of the queries' gradients, and of what biases receive, reads and writes.</summary>
internal readonly struct QueryArguments
{
    public readonly ScoreArguments Score;
    public readonly GpuMatrices Value, UpstreamOutput, QueryGradient;

    /// <summary>The gradient of a dense captured tensor.</summary>
    public readonly GpuCaptured Pairs;

    /// <summary>The rows' terms, and behind them the sums.</summary>
    public readonly ArrayView<float> Memory;

    public readonly BiasSums Sums;
    public readonly long Rows;

    /// <summary>Capture: the captured tensor whose gradient is wanted; −1 for queries and biases.</summary>
    public readonly int Capture, Slices, WantsQuery, Accumulate;

    public QueryArguments(GpuDevice device, in ScoreArguments score, in BiasSums sums, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> memory, long rows)
        : this(device, score, sums, problem, upstream, gradients, memory, rows, -1, default, default, "")
    {
    }

    public QueryArguments(GpuDevice device, in ScoreArguments score, in BiasSums sums, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> memory, long rows, int capture, in CapturedTensor captured, in TensorView gradient, string name)
    {
        Score = score;
        Value = new(device, problem.Value, "problem.Value");
        UpstreamOutput = new(device, upstream.Output, "upstream.Output");
        Pairs = new(device, captured.Structure == CapturedStructure.Dense ? gradient : default, captured, name);
        Memory = memory;
        Sums = sums;
        Rows = rows;
        Capture = capture;
        WantsQuery = capture < 0 && gradients.Query.IsPresent ? 1 : 0;
        QueryGradient = new(device, WantsQuery != 0 ? gradients.Query : default, "gradients.Query");
        Slices = WantsQuery != 0 ? (int)GpuScoreTile.Slices(score.HeadSize) : 1;
        Accumulate = gradients.Accumulate ? 1 : 0;
    }
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
            shiftStep = sums.BlocksPerPiece * GpuScoreTile.Side;
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

internal static class AttentionBackwardKernels
{
    public const int GroupSize = GpuScoreTile.GroupSize;

    /// <summary>Log-sum-exp, what rounding took from it, and D of 64 queries.</summary>
    public static void Rows(int none, RowArguments a)
    {
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuScoreTile.StagingFloats);
        int thread = Group.IdxX;
        int blocks = (a.Queries + GpuScoreTile.Side - 1) / GpuScoreTile.Side, item = Grid.IdxX, i0 = item % blocks * GpuScoreTile.Side;
        int head = item / blocks % a.Heads, batch = item / blocks / a.Heads;
        int rows = a.Queries - i0 < GpuScoreTile.Side ? a.Queries - i0 : GpuScoreTile.Side;
        GpuMatrix output = a.Output.Of(batch, head), upstream = a.UpstreamOutput.Of(batch, head);
        // In the order in which the product dO Vᵀ is summed, so that the two cancel to the last bit where a query sees one key.
        float sum = 0f;
        int first = 0;
        do
        {
            Group.Barrier();
            GpuScoreTile.StageTransposed(staging, 0, upstream, i0, rows, first, a.ValueSize);
            GpuScoreTile.StageTransposed(staging, GpuScoreTile.Slice * GpuScoreTile.SliceStep, output, i0, rows, first, a.ValueSize);
            Group.Barrier();
            int terms = a.ValueSize - first < GpuScoreTile.Slice ? a.ValueSize - first : GpuScoreTile.Slice;
            for (int k = 0; k < terms && thread < GpuScoreTile.Side; k++)
                sum += staging[k * GpuScoreTile.SliceStep + thread] * staging[(GpuScoreTile.Slice + k) * GpuScoreTile.SliceStep + thread];
            first += GpuScoreTile.Slice;
        }
        while (first < a.ValueSize);
        if (thread >= rows)
            return;
        long at = ((long)batch * a.Heads + head) * a.Queries + i0 + thread;
        GpuMatrix logSumExp = a.LogSumExp.Of(batch, head);
        a.Terms[at] = logSumExp[i0 + thread, 0];
        a.Terms[a.Rows + at] = logSumExp[i0 + thread, 1];
        if (a.HasUpstreamLogSumExp != 0)
            sum -= a.UpstreamLogSumExp.Of(batch, head)[i0 + thread, 0];
        a.Terms[2 * a.Rows + at] = sum;
    }

    /// <summary>dK and dV of 64 keys, over all queries of all heads that share them.</summary>
    public static void Keys<TRule>(TRule rule, KeyArguments a) where TRule : unmanaged, IScoreRule
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(GpuScoreTile.TileFloats);
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuScoreTile.StagingFloats);
        ArrayView<float> lines = SharedMemory.Allocate<float>(GpuScoreTile.LinesFloats);
        ArrayView<float> terms = SharedMemory.Allocate<float>(3 * GpuScoreTile.Side);
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);

        int thread = Group.IdxX, row = thread / GpuScoreTile.ThreadsPerRow, part = thread % GpuScoreTile.ThreadsPerRow;
        int item = Grid.IdxX, blocks = (a.Score.Keys + GpuScoreTile.Side - 1) / GpuScoreTile.Side;
        int column = item % a.Slices * GpuScoreTile.OutputColumns, headSize = a.Score.HeadSize, valueSize = a.Score.ValueSize;
        item /= a.Slices;
        int j0 = item % blocks * GpuScoreTile.Side;
        item /= blocks;
        int keyHead = item % a.KeyHeads, batch = item / a.KeyHeads;
        int rows = a.Score.Keys - j0 < GpuScoreTile.Side ? a.Score.Keys - j0 : GpuScoreTile.Side, begin = a.Score.BeginOfQueries(j0);
        GpuMatrix key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);

        int wantedKey = a.WantsKey != 0 ? headSize : 0, wantedValue = a.WantsValue != 0 ? valueSize : 0;
        RegisterTile keyLow = default, keyHigh = default, valueLow = default, valueHigh = default;
        int head = keyHead * a.Score.HeadsPerKeyHead;
        do
        {
            GpuMatrix query = a.Score.Query.Of(batch, head), upstream = a.UpstreamOutput.Of(batch, head);
            int i0 = begin;
            do
            {
                int columns = a.Score.Queries - i0 < GpuScoreTile.Side ? a.Score.Queries - i0 : GpuScoreTile.Side;
                RegisterTile weightGradients = default, scores = default;
                GpuScoreTile.FillLines(a.Score, lines, batch, head, i0, j0);
                FillTerms(a.Terms, a.Rows, terms, ((long)batch * a.Score.Heads + head) * a.Score.Queries + i0, columns);
                GpuScoreTile.AddProducts(ref weightGradients, staging, value, j0, rows, upstream, i0, columns, valueSize);
                GpuScoreTile.AddProducts(ref scores, staging, key, j0, rows, query, i0, columns, headSize);
                GpuScoreTile.Store(scores, tile);
                Group.Barrier();

                int hides = 0;
                for (int c = part; c < columns && row < rows; c += GpuScoreTile.ThreadsPerRow)
                {
                    int at = row * GpuScoreTile.RowStep + c;
                    float z = GpuScoreTile.Differentiate(rule, a.Score, lines, batch, head, i0, j0, c, row, tile[at], -1, out float slope);
                    tile[at] = Weight(z, terms[c], terms[GpuScoreTile.Side + c]);
                    staging[row * GpuScoreTile.SliceStep + c] = slope;
                    hides |= z == float.NegativeInfinity ? 1 : 0;
                }
                flags[thread] = hides;
                Group.Barrier();

                FinalGradients(ref weightGradients, tile, terms, false);
                MultiplySlopes(ref weightGradients, staging);
                bool rowsHide = GpuScoreTile.RowsHide(flags);
                GpuScoreTile.AddTileTimesRows(ref valueLow, ref valueHigh, tile, staging, upstream, i0, columns, column, wantedValue, rowsHide);
                Group.Barrier();
                GpuScoreTile.Store(weightGradients, tile);
                GpuScoreTile.AddTileTimesRows(ref keyLow, ref keyHigh, tile, staging, query, i0, columns, column, wantedKey, rowsHide);
                i0 += GpuScoreTile.Side;
            }
            while (i0 < a.Score.Queries);
            head++;
        }
        while (head < (keyHead + 1) * a.Score.HeadsPerKeyHead);
        GpuMatrix keyGradient = a.KeyGradient.Of(batch, keyHead), valueGradient = a.ValueGradient.Of(batch, keyHead);
        GpuScoreTile.Write(valueLow, tile, valueGradient, j0, rows, column, wantedValue, 1f, a.Accumulate);
        GpuScoreTile.Write(valueHigh, tile, valueGradient, j0, rows, column + GpuScoreTile.Side, wantedValue, 1f, a.Accumulate);
        GpuScoreTile.Write(keyLow, tile, keyGradient, j0, rows, column, wantedKey, a.Score.Scale, a.Accumulate);
        GpuScoreTile.Write(keyHigh, tile, keyGradient, j0, rows, column + GpuScoreTile.Side, wantedKey, a.Score.Scale, a.Accumulate);
    }

    /// <summary>dQ of a piece of queries, and the sums of what one bias receives from them.</summary>
    public static void Queries<TRule>(TRule rule, QueryArguments a) where TRule : unmanaged, IScoreRule
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(GpuScoreTile.TileFloats);
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuScoreTile.StagingFloats);
        ArrayView<float> lines = SharedMemory.Allocate<float>(GpuScoreTile.LinesFloats);
        ArrayView<float> terms = SharedMemory.Allocate<float>(3 * GpuScoreTile.Side);
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);

        int thread = Group.IdxX, row = thread / GpuScoreTile.ThreadsPerRow, part = thread % GpuScoreTile.ThreadsPerRow;
        int item = Grid.IdxX, column = item % a.Slices * GpuScoreTile.OutputColumns, headSize = a.Score.HeadSize, valueSize = a.Score.ValueSize;
        item /= a.Slices;
        int piece = item % a.Sums.Pieces;
        item /= a.Sums.Pieces;
        int head = item % a.Score.Heads, batch = item / a.Score.Heads, keyHead = head / a.Score.HeadsPerKeyHead;
        GpuMatrix query = a.Score.Query.Of(batch, head), key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);
        GpuMatrix upstream = a.UpstreamOutput.Of(batch, head), gradient = a.QueryGradient.Of(batch, head);
        int kind = column == 0 ? a.Sums.Kind : (int)BiasSumKind.None;
        bool summed = kind == (int)BiasSumKind.Diagonals || kind == (int)BiasSumKind.Columns;
        int parts = kind == (int)BiasSumKind.Rows ? 1 : a.Sums.Pieces;
        long sums = 3 * a.Rows + (((long)batch * a.Score.Heads + head) * parts + (summed ? piece : 0)) * a.Sums.Length;

        // A place of the sums belongs to one thread, which adds to it tile after tile: the tiles begin at multiples of 64.
        int owners = kind == (int)BiasSumKind.Diagonals ? GpuScoreTile.Line : GpuScoreTile.Side;
        for (long at = thread; summed && thread < owners && at < a.Sums.Length; at += owners)
            a.Memory[sums + at] = 0f;

        int firstRow = piece * a.Sums.BlocksPerPiece * GpuScoreTile.Side, endRow = firstRow + a.Sums.BlocksPerPiece * GpuScoreTile.Side;
        int wanted = a.WantsQuery != 0 ? headSize : 0, i0 = firstRow;
        do
        {
            int rows = a.Score.Queries - i0 < GpuScoreTile.Side ? a.Score.Queries - i0 : GpuScoreTile.Side, end = a.Score.EndOfKeys(i0, rows);
            Group.Barrier();
            FillTerms(a.Memory, a.Rows, terms, ((long)batch * a.Score.Heads + head) * a.Score.Queries + i0, rows);
            RegisterTile low = default, high = default;
            float rowSum = 0f;
            int j0 = 0;
            do
            {
                int columns = end - j0 < GpuScoreTile.Side ? end - j0 : GpuScoreTile.Side;
                RegisterTile weightGradients = default, scores = default;
                GpuScoreTile.FillLines(a.Score, lines, batch, head, i0, j0);
                GpuScoreTile.AddProducts(ref weightGradients, staging, upstream, i0, rows, value, j0, columns, valueSize);
                GpuScoreTile.AddProducts(ref scores, staging, query, i0, rows, key, j0, columns, headSize);
                GpuScoreTile.Store(scores, tile);
                Group.Barrier();

                int hides = 0;
                for (int c = part; c < columns && row < rows; c += GpuScoreTile.ThreadsPerRow)
                {
                    int at = row * GpuScoreTile.RowStep + c;
                    float z = GpuScoreTile.Differentiate(rule, a.Score, lines, batch, head, i0, j0, row, c, tile[at], a.Capture, out float slope);
                    tile[at] = Weight(z, terms[row], terms[GpuScoreTile.Side + row]);
                    staging[row * GpuScoreTile.SliceStep + c] = slope;
                    hides |= z == float.NegativeInfinity ? 1 : 0;
                }
                flags[thread] = hides;
                Group.Barrier();

                FinalGradients(ref weightGradients, tile, terms, true);
                if (a.Capture >= 0)
                    MultiplySlopes(ref weightGradients, staging);
                // Each thread has read its own places of the tile and of nobody else's.
                GpuScoreTile.Store(weightGradients, tile);
                Group.Barrier();
                if (kind == (int)BiasSumKind.Diagonals)
                    AddDiagonals(a.Memory, sums, tile, j0 - i0 + endRow - GpuScoreTile.Side, rows, columns);
                else if (kind == (int)BiasSumKind.Columns)
                    AddColumn(a.Memory, sums + j0, tile, rows, columns);
                else if (kind == (int)BiasSumKind.Rows)
                    AddRow(ref rowSum, tile, rows, columns);
                else if (kind == (int)BiasSumKind.Pairs)
                    WritePairs(a, tile, batch, head, i0, j0, rows, columns);
                Group.Barrier();
                MultiplySlopes(ref weightGradients, staging);
                GpuScoreTile.Store(weightGradients, tile);
                GpuScoreTile.AddTileTimesRows(ref low, ref high, tile, staging, key, j0, columns, column, wanted, GpuScoreTile.RowsHide(flags));
                j0 += GpuScoreTile.Side;
            }
            while (j0 < end);
            GpuScoreTile.Write(low, tile, gradient, i0, rows, column, wanted, a.Score.Scale, a.Accumulate);
            GpuScoreTile.Write(high, tile, gradient, i0, rows, column + GpuScoreTile.Side, wanted, a.Score.Scale, a.Accumulate);
            if (kind == (int)BiasSumKind.Rows && thread < rows)
                a.Memory[sums + i0 + thread] = rowSum;
            if (kind == (int)BiasSumKind.Pairs && a.Accumulate == 0)
                ClearPairs(a, batch, head, i0, rows, end);
            i0 += GpuScoreTile.Side;
        }
        while (i0 < endRow && i0 < a.Score.Queries);
    }

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

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void FillTerms(ArrayView<float> memory, long all, ArrayView<float> terms, long at, int rows)
    {
        int t = Group.IdxX;
        if (t >= GpuScoreTile.Side)
            return;
        // Rows beyond the last are computed with the others, and left out where it counts.
        bool there = t < rows;
        terms[t] = there ? memory[at + t] : 0f;
        terms[GpuScoreTile.Side + t] = there ? memory[all + at + t] : 0f;
        terms[2 * GpuScoreTile.Side + t] = there ? memory[2 * all + at + t] : 0f;
    }

    // e^(z − L): what rounding takes from the difference, and from L, is put back as a factor 1 + it.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Weight(float z, float logSumExp, float remainder)
    {
        float difference = z - logSumExp, second = difference - z;
        float lost = z - (difference - second) - (logSumExp + second);
        float p = Real32.Exp(new(difference)).Value;
        return z == float.NegativeInfinity ? GpuScoreTile.Hidden : p + p * (lost - remainder);
    }

    // From dP in registers and P in the tile: dz = P (dP − D), which is what biases receive. D belongs to the tile's row or column, whichever the query is.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void FinalGradients(ref RegisterTile t, ArrayView<float> tile, ArrayView<float> terms, bool rowsAreQueries)
    {
        const int n = GpuScoreTile.Threads, step = n * GpuScoreTile.RowStep;
        int x = Group.IdxX % n, y = Group.IdxX / n;
        long at = y * GpuScoreTile.RowStep + x, d = 2 * GpuScoreTile.Side + (rowsAreQueries ? y : x), row = rowsAreQueries ? n : 0, column = n - row;
        t.S00 = FinalGradient(t.S00, tile[at], terms[d]);
        t.S01 = FinalGradient(t.S01, tile[at + n], terms[d + column]);
        t.S02 = FinalGradient(t.S02, tile[at + 2 * n], terms[d + 2 * column]);
        t.S03 = FinalGradient(t.S03, tile[at + 3 * n], terms[d + 3 * column]);
        t.S10 = FinalGradient(t.S10, tile[at + step], terms[d + row]);
        t.S11 = FinalGradient(t.S11, tile[at + step + n], terms[d + row + column]);
        t.S12 = FinalGradient(t.S12, tile[at + step + 2 * n], terms[d + row + 2 * column]);
        t.S13 = FinalGradient(t.S13, tile[at + step + 3 * n], terms[d + row + 3 * column]);
        t.S20 = FinalGradient(t.S20, tile[at + 2 * step], terms[d + 2 * row]);
        t.S21 = FinalGradient(t.S21, tile[at + 2 * step + n], terms[d + 2 * row + column]);
        t.S22 = FinalGradient(t.S22, tile[at + 2 * step + 2 * n], terms[d + 2 * row + 2 * column]);
        t.S23 = FinalGradient(t.S23, tile[at + 2 * step + 3 * n], terms[d + 2 * row + 3 * column]);
        t.S30 = FinalGradient(t.S30, tile[at + 3 * step], terms[d + 3 * row]);
        t.S31 = FinalGradient(t.S31, tile[at + 3 * step + n], terms[d + 3 * row + column]);
        t.S32 = FinalGradient(t.S32, tile[at + 3 * step + 2 * n], terms[d + 3 * row + 2 * column]);
        t.S33 = FinalGradient(t.S33, tile[at + 3 * step + 3 * n], terms[d + 3 * row + 3 * column]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float FinalGradient(float weightGradient, float p, float d) => p == GpuScoreTile.Hidden ? GpuScoreTile.Hidden : p * (weightGradient - d);

    // dS = dz · the rule's slope. Where dz is 0 the slope may be infinite.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void MultiplySlopes(ref RegisterTile t, ArrayView<float> slopes)
    {
        const int n = GpuScoreTile.Threads, step = n * GpuScoreTile.SliceStep;
        long at = Group.IdxX / n * GpuScoreTile.SliceStep + Group.IdxX % n;
        t.S00 = MultiplySlope(t.S00, slopes[at]);
        t.S01 = MultiplySlope(t.S01, slopes[at + n]);
        t.S02 = MultiplySlope(t.S02, slopes[at + 2 * n]);
        t.S03 = MultiplySlope(t.S03, slopes[at + 3 * n]);
        t.S10 = MultiplySlope(t.S10, slopes[at + step]);
        t.S11 = MultiplySlope(t.S11, slopes[at + step + n]);
        t.S12 = MultiplySlope(t.S12, slopes[at + step + 2 * n]);
        t.S13 = MultiplySlope(t.S13, slopes[at + step + 3 * n]);
        t.S20 = MultiplySlope(t.S20, slopes[at + 2 * step]);
        t.S21 = MultiplySlope(t.S21, slopes[at + 2 * step + n]);
        t.S22 = MultiplySlope(t.S22, slopes[at + 2 * step + 2 * n]);
        t.S23 = MultiplySlope(t.S23, slopes[at + 2 * step + 3 * n]);
        t.S30 = MultiplySlope(t.S30, slopes[at + 3 * step]);
        t.S31 = MultiplySlope(t.S31, slopes[at + 3 * step + n]);
        t.S32 = MultiplySlope(t.S32, slopes[at + 3 * step + 2 * n]);
        t.S33 = MultiplySlope(t.S33, slopes[at + 3 * step + 3 * n]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float MultiplySlope(float dz, float slope) => dz == GpuScoreTile.Hidden || dz == 0f ? dz : dz * slope;

    // Diagonal t of the tile belongs to place w + t of the sums, and that to thread (w + t) % 128.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddDiagonals(ArrayView<float> memory, long sums, ArrayView<float> tile, int w, int rows, int columns)
    {
        int t = (Group.IdxX - w) & (GpuScoreTile.Line - 1);
        if (Group.IdxX >= GpuScoreTile.Line || t == GpuScoreTile.Line - 1)
            return;
        int first = GpuScoreTile.Side - 1 - t, last = columns - 1 + first;
        float sum = 0f;
        for (int row = first < 0 ? 0 : first; row < rows && row <= last; row++)
        {
            float dz = tile[row * GpuScoreTile.RowStep + row - first];
            sum += dz == GpuScoreTile.Hidden ? 0f : dz;
        }
        memory[sums + w + t] += sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddColumn(ArrayView<float> memory, long sums, ArrayView<float> tile, int rows, int columns)
    {
        int column = Group.IdxX;
        if (column >= columns)
            return;
        float sum = 0f;
        for (int row = 0; row < rows; row++)
        {
            float dz = tile[row * GpuScoreTile.RowStep + column];
            sum += dz == GpuScoreTile.Hidden ? 0f : dz;
        }
        memory[sums + column] += sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddRow(ref float rowSum, ArrayView<float> tile, int rows, int columns)
    {
        int row = Group.IdxX;
        if (row >= rows)
            return;
        float sum = 0f;
        for (int column = 0; column < columns; column++)
        {
            float dz = tile[row * GpuScoreTile.RowStep + column];
            sum += dz == GpuScoreTile.Hidden ? 0f : dz;
        }
        rowSum += sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void WritePairs(in QueryArguments a, ArrayView<float> tile, int batch, int head, int i0, int j0, int rows, int columns)
    {
        int column = Group.IdxX % GpuScoreTile.Side;
        for (int row = Group.IdxX / GpuScoreTile.Side; row < rows && column < columns; row += GroupSize / GpuScoreTile.Side)
        {
            float dz = tile[row * GpuScoreTile.RowStep + column];
            dz = dz == GpuScoreTile.Hidden ? 0f : dz;
            long at = a.Pairs.At(batch, head, i0 + row, j0 + column, 0);
            GpuCaptured pairs = a.Pairs;
            pairs[at] = a.Accumulate != 0 ? pairs[at] + dz : dz;
        }
    }

    // The pairs of the tiles that causality hides.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void ClearPairs(in QueryArguments a, int batch, int head, int i0, int rows, int end)
    {
        GpuCaptured pairs = a.Pairs;
        for (int row = Group.IdxX / GpuScoreTile.Side; row < rows; row += GroupSize / GpuScoreTile.Side)
        {
            for (int column = end + Group.IdxX % GpuScoreTile.Side; column < a.Score.Keys; column += GpuScoreTile.Side)
                pairs[pairs.At(batch, head, i0 + row, column, 0)] = 0f;
        }
    }
}
