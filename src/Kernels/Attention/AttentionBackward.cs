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

    public readonly long Pieces, BlocksPerPiece, Length;
    public readonly int Kind;

    public BiasSums(in AttentionShape shape, BiasSumKind kind)
    {
        long blocks = GpuScoreTile.Blocks(shape.Queries);
        Kind = (int)kind;
        BlocksPerPiece = kind is BiasSumKind.Diagonals or BiasSumKind.Columns ? Math.Max(1, (blocks + MostPieces - 1) / MostPieces) : 1;
        Pieces = (blocks + BlocksPerPiece - 1) / BlocksPerPiece;
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

    public readonly long Queries, Rows;
    public readonly int Heads, ValueSize, HasUpstreamLogSumExp;

    public RowArguments(GpuDevice device, in AttentionShape shape, in TensorView output, in TensorView logSumExp, in AttentionUpstream upstream, ArrayView<float> terms)
    {
        Output = new(device, output, "saved.Output");
        UpstreamOutput = new(device, upstream.Output, "upstream.Output");
        LogSumExp = new(device, logSumExp, "saved.LogSumExp");
        UpstreamLogSumExp = new(device, upstream.LogSumExp, "upstream.LogSumExp");
        HasUpstreamLogSumExp = upstream.LogSumExp.IsPresent ? 1 : 0;
        Terms = terms;
        Queries = shape.Queries;
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
        long blocks = (a.Queries + GpuScoreTile.Side - 1) / GpuScoreTile.Side, item = Grid.IdxX, i0 = item % blocks * GpuScoreTile.Side;
        long head = item / blocks % a.Heads, batch = item / blocks / a.Heads;
        int rows = (int)(a.Queries - i0 < GpuScoreTile.Side ? a.Queries - i0 : GpuScoreTile.Side);
        GpuMatrix output = a.Output.Of(batch, head), upstream = a.UpstreamOutput.Of(batch, head);
        // In the order in which the product dO Vᵀ is summed, so that the two cancel to the last bit where a query sees one key.
        float sum = 0f;
        for (int first = 0; first < a.ValueSize; first += GpuScoreTile.Slice)
        {
            Group.Barrier();
            GpuScoreTile.StageTransposed(staging, 0, upstream, i0, rows, first, a.ValueSize);
            GpuScoreTile.StageTransposed(staging, GpuScoreTile.Slice * GpuScoreTile.SliceStep, output, i0, rows, first, a.ValueSize);
            Group.Barrier();
            int terms = a.ValueSize - first < GpuScoreTile.Slice ? a.ValueSize - first : GpuScoreTile.Slice;
            for (int k = 0; k < terms && thread < GpuScoreTile.Side; k++)
                sum += staging[k * GpuScoreTile.SliceStep + thread] * staging[(GpuScoreTile.Slice + k) * GpuScoreTile.SliceStep + thread];
        }
        if (thread >= rows)
            return;
        long at = (batch * a.Heads + head) * a.Queries + i0 + thread;
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
        long item = Grid.IdxX, blocks = (a.Score.Keys + GpuScoreTile.Side - 1) / GpuScoreTile.Side;
        int column = (int)(item % a.Slices) * GpuScoreTile.OutputColumns, headSize = a.Score.HeadSize, valueSize = a.Score.ValueSize;
        item /= a.Slices;
        long j0 = item % blocks * GpuScoreTile.Side;
        item /= blocks;
        long keyHead = item % a.KeyHeads, batch = item / a.KeyHeads;
        int rows = (int)(a.Score.Keys - j0 < GpuScoreTile.Side ? a.Score.Keys - j0 : GpuScoreTile.Side);
        GpuMatrix key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);
        // The first query that sees the block's first key.
        long begin = a.Score.Causal != 0 && j0 > a.Score.QueryOffset ? (j0 - a.Score.QueryOffset) / GpuScoreTile.Side * GpuScoreTile.Side : 0;

        RegisterTile keyLow = default, keyHigh = default, valueLow = default, valueHigh = default;
        for (long head = keyHead * a.Score.HeadsPerKeyHead; head < (keyHead + 1) * a.Score.HeadsPerKeyHead; head++)
        {
            GpuMatrix query = a.Score.Query.Of(batch, head), upstream = a.UpstreamOutput.Of(batch, head);
            for (long i0 = begin; i0 < a.Score.Queries; i0 += GpuScoreTile.Side)
            {
                int columns = (int)(a.Score.Queries - i0 < GpuScoreTile.Side ? a.Score.Queries - i0 : GpuScoreTile.Side);
                RegisterTile weightGradients = default, scores = default;
                GpuScoreTile.FillLines(a.Score, lines, batch, head, i0, j0);
                FillTerms(a.Terms, a.Rows, terms, (batch * a.Score.Heads + head) * a.Score.Queries + i0, columns);
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

                ScoreGradients(ref weightGradients, tile, staging, terms, false);
                bool rowsHide = GpuScoreTile.RowsHide(flags);
                if (a.WantsValue != 0 && column < valueSize)
                    GpuScoreTile.AddTileTimesRows(ref valueLow, ref valueHigh, tile, staging, upstream, i0, columns, column, valueSize, rowsHide);
                if (a.WantsKey != 0 && column < headSize)
                {
                    Group.Barrier();
                    GpuScoreTile.Store(weightGradients, tile);
                    GpuScoreTile.AddTileTimesRows(ref keyLow, ref keyHigh, tile, staging, query, i0, columns, column, headSize, rowsHide);
                }
            }
        }
        if (a.WantsValue != 0)
        {
            GpuMatrix gradient = a.ValueGradient.Of(batch, keyHead);
            WriteRows(valueLow, gradient, j0, rows, column, valueSize, 1f, a.Accumulate);
            WriteRows(valueHigh, gradient, j0, rows, column + GpuScoreTile.Side, valueSize, 1f, a.Accumulate);
        }
        if (a.WantsKey != 0)
        {
            GpuMatrix gradient = a.KeyGradient.Of(batch, keyHead);
            WriteRows(keyLow, gradient, j0, rows, column, headSize, a.Score.Scale, a.Accumulate);
            WriteRows(keyHigh, gradient, j0, rows, column + GpuScoreTile.Side, headSize, a.Score.Scale, a.Accumulate);
        }
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
        long item = Grid.IdxX;
        int column = (int)(item % a.Slices) * GpuScoreTile.OutputColumns, headSize = a.Score.HeadSize, valueSize = a.Score.ValueSize;
        item /= a.Slices;
        long piece = item % a.Sums.Pieces;
        item /= a.Sums.Pieces;
        long head = item % a.Score.Heads, batch = item / a.Score.Heads, keyHead = head / a.Score.HeadsPerKeyHead;
        GpuMatrix query = a.Score.Query.Of(batch, head), key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);
        GpuMatrix upstream = a.UpstreamOutput.Of(batch, head);
        int kind = column == 0 ? a.Sums.Kind : (int)BiasSumKind.None;
        bool summed = kind == (int)BiasSumKind.Diagonals || kind == (int)BiasSumKind.Columns;
        long parts = kind == (int)BiasSumKind.Rows ? 1 : a.Sums.Pieces;
        long sums = 3 * a.Rows + ((batch * a.Score.Heads + head) * parts + (summed ? piece : 0)) * a.Sums.Length;

        // A place of the sums belongs to one thread, which adds to it tile after tile: the tiles begin at multiples of 64.
        int owners = kind == (int)BiasSumKind.Diagonals ? GpuScoreTile.Line : GpuScoreTile.Side;
        for (long at = thread; summed && thread < owners && at < a.Sums.Length; at += owners)
            a.Memory[sums + at] = 0f;

        long firstRow = piece * a.Sums.BlocksPerPiece * GpuScoreTile.Side, endRow = firstRow + a.Sums.BlocksPerPiece * GpuScoreTile.Side;
        for (long i0 = firstRow; i0 < endRow && i0 < a.Score.Queries; i0 += GpuScoreTile.Side)
        {
            int rows = (int)(a.Score.Queries - i0 < GpuScoreTile.Side ? a.Score.Queries - i0 : GpuScoreTile.Side);
            long end = a.Score.EndOfKeys(i0, rows);
            Group.Barrier();
            FillTerms(a.Memory, a.Rows, terms, (batch * a.Score.Heads + head) * a.Score.Queries + i0, rows);
            RegisterTile low = default, high = default;
            float rowSum = 0f;
            for (long j0 = 0; j0 < end; j0 += GpuScoreTile.Side)
            {
                int columns = (int)(end - j0 < GpuScoreTile.Side ? end - j0 : GpuScoreTile.Side);
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

                if (kind != (int)BiasSumKind.None)
                {
                    RegisterTile received = weightGradients;
                    if (a.Capture < 0)
                        FinalGradients(ref received, tile, terms);
                    else
                        ScoreGradients(ref received, tile, staging, terms, true);
                    if (a.WantsQuery != 0)
                        ScoreGradients(ref weightGradients, tile, staging, terms, true);
                    // Each thread has read its own places of the tile and of nobody else's.
                    GpuScoreTile.Store(received, tile);
                    Group.Barrier();
                    if (kind == (int)BiasSumKind.Diagonals)
                        AddDiagonals(a.Memory, sums, tile, j0 - i0 + endRow - GpuScoreTile.Side, rows, columns);
                    else if (kind == (int)BiasSumKind.Columns)
                        AddColumn(a.Memory, sums + j0, tile, rows, columns);
                    else if (kind == (int)BiasSumKind.Rows)
                        AddRow(ref rowSum, tile, rows, columns);
                    else
                        WritePairs(a, tile, batch, head, i0, j0, rows, columns);
                    Group.Barrier();
                }
                else if (a.WantsQuery != 0)
                    ScoreGradients(ref weightGradients, tile, staging, terms, true);
                if (a.WantsQuery != 0)
                {
                    GpuScoreTile.Store(weightGradients, tile);
                    GpuScoreTile.AddTileTimesRows(ref low, ref high, tile, staging, key, j0, columns, column, headSize, GpuScoreTile.RowsHide(flags));
                }
            }
            if (a.WantsQuery != 0)
            {
                GpuMatrix gradient = a.QueryGradient.Of(batch, head);
                WriteRows(low, gradient, i0, rows, column, headSize, a.Score.Scale, a.Accumulate);
                WriteRows(high, gradient, i0, rows, column + GpuScoreTile.Side, headSize, a.Score.Scale, a.Accumulate);
            }
            if (kind == (int)BiasSumKind.Rows && thread < rows)
                a.Memory[sums + i0 + thread] = rowSum;
            if (kind == (int)BiasSumKind.Pairs && a.Accumulate == 0)
                ClearPairs(a, batch, head, i0, rows, end);
        }
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
        if (t >= rows)
            return;
        terms[t] = memory[at + t];
        terms[GpuScoreTile.Side + t] = memory[all + at + t];
        terms[2 * GpuScoreTile.Side + t] = memory[2 * all + at + t];
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

    // From dP in registers and P in the tile: dS = P (dP − D) · slope. D belongs to the tile's row or column, whichever the query is.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void ScoreGradients(ref RegisterTile t, ArrayView<float> tile, ArrayView<float> slopes, ArrayView<float> terms, bool rowsAreQueries)
    {
        int x = Group.IdxX % GpuScoreTile.Threads, y = Group.IdxX / GpuScoreTile.Threads;
        const int n = GpuScoreTile.Threads, d = 2 * GpuScoreTile.Side;
        t.S00 = ScoreGradient(t.S00, tile, slopes, y, x, terms[d + (rowsAreQueries ? y : x)]);
        t.S01 = ScoreGradient(t.S01, tile, slopes, y, x + n, terms[d + (rowsAreQueries ? y : x + n)]);
        t.S02 = ScoreGradient(t.S02, tile, slopes, y, x + 2 * n, terms[d + (rowsAreQueries ? y : x + 2 * n)]);
        t.S03 = ScoreGradient(t.S03, tile, slopes, y, x + 3 * n, terms[d + (rowsAreQueries ? y : x + 3 * n)]);
        t.S10 = ScoreGradient(t.S10, tile, slopes, y + n, x, terms[d + (rowsAreQueries ? y + n : x)]);
        t.S11 = ScoreGradient(t.S11, tile, slopes, y + n, x + n, terms[d + (rowsAreQueries ? y + n : x + n)]);
        t.S12 = ScoreGradient(t.S12, tile, slopes, y + n, x + 2 * n, terms[d + (rowsAreQueries ? y + n : x + 2 * n)]);
        t.S13 = ScoreGradient(t.S13, tile, slopes, y + n, x + 3 * n, terms[d + (rowsAreQueries ? y + n : x + 3 * n)]);
        t.S20 = ScoreGradient(t.S20, tile, slopes, y + 2 * n, x, terms[d + (rowsAreQueries ? y + 2 * n : x)]);
        t.S21 = ScoreGradient(t.S21, tile, slopes, y + 2 * n, x + n, terms[d + (rowsAreQueries ? y + 2 * n : x + n)]);
        t.S22 = ScoreGradient(t.S22, tile, slopes, y + 2 * n, x + 2 * n, terms[d + (rowsAreQueries ? y + 2 * n : x + 2 * n)]);
        t.S23 = ScoreGradient(t.S23, tile, slopes, y + 2 * n, x + 3 * n, terms[d + (rowsAreQueries ? y + 2 * n : x + 3 * n)]);
        t.S30 = ScoreGradient(t.S30, tile, slopes, y + 3 * n, x, terms[d + (rowsAreQueries ? y + 3 * n : x)]);
        t.S31 = ScoreGradient(t.S31, tile, slopes, y + 3 * n, x + n, terms[d + (rowsAreQueries ? y + 3 * n : x + n)]);
        t.S32 = ScoreGradient(t.S32, tile, slopes, y + 3 * n, x + 2 * n, terms[d + (rowsAreQueries ? y + 3 * n : x + 2 * n)]);
        t.S33 = ScoreGradient(t.S33, tile, slopes, y + 3 * n, x + 3 * n, terms[d + (rowsAreQueries ? y + 3 * n : x + 3 * n)]);
    }

    // dz = P (dP − D), which is what biases receive. Rows are queries.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void FinalGradients(ref RegisterTile t, ArrayView<float> tile, ArrayView<float> terms)
    {
        const int n = GpuScoreTile.Threads, step = n * GpuScoreTile.RowStep;
        int x = Group.IdxX % n, y = Group.IdxX / n, at = y * GpuScoreTile.RowStep + x;
        float d0 = terms[2 * GpuScoreTile.Side + y], d1 = terms[2 * GpuScoreTile.Side + y + n], d2 = terms[2 * GpuScoreTile.Side + y + 2 * n], d3 = terms[2 * GpuScoreTile.Side + y + 3 * n];
        t.S00 = FinalGradient(t.S00, tile[at], d0);
        t.S01 = FinalGradient(t.S01, tile[at + n], d0);
        t.S02 = FinalGradient(t.S02, tile[at + 2 * n], d0);
        t.S03 = FinalGradient(t.S03, tile[at + 3 * n], d0);
        t.S10 = FinalGradient(t.S10, tile[at + step], d1);
        t.S11 = FinalGradient(t.S11, tile[at + step + n], d1);
        t.S12 = FinalGradient(t.S12, tile[at + step + 2 * n], d1);
        t.S13 = FinalGradient(t.S13, tile[at + step + 3 * n], d1);
        t.S20 = FinalGradient(t.S20, tile[at + 2 * step], d2);
        t.S21 = FinalGradient(t.S21, tile[at + 2 * step + n], d2);
        t.S22 = FinalGradient(t.S22, tile[at + 2 * step + 2 * n], d2);
        t.S23 = FinalGradient(t.S23, tile[at + 2 * step + 3 * n], d2);
        t.S30 = FinalGradient(t.S30, tile[at + 3 * step], d3);
        t.S31 = FinalGradient(t.S31, tile[at + 3 * step + n], d3);
        t.S32 = FinalGradient(t.S32, tile[at + 3 * step + 2 * n], d3);
        t.S33 = FinalGradient(t.S33, tile[at + 3 * step + 3 * n], d3);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float FinalGradient(float weightGradient, float p, float d) => p == GpuScoreTile.Hidden ? GpuScoreTile.Hidden : p * (weightGradient - d);

    // Where dz is 0 the slope may be infinite.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float ScoreGradient(float weightGradient, ArrayView<float> tile, ArrayView<float> slopes, int row, int column, float d)
    {
        float dz = FinalGradient(weightGradient, tile[row * GpuScoreTile.RowStep + column], d), slope = slopes[row * GpuScoreTile.SliceStep + column];
        return dz == GpuScoreTile.Hidden || dz == 0f ? dz : dz * slope;
    }

    // Diagonal t of the tile belongs to place w + t of the sums, and that to thread (w + t) % 128.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddDiagonals(ArrayView<float> memory, long sums, ArrayView<float> tile, long w, int rows, int columns)
    {
        int t = (int)((Group.IdxX - w) & (GpuScoreTile.Line - 1));
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
    private static void WritePairs(in QueryArguments a, ArrayView<float> tile, long batch, long head, long i0, long j0, int rows, int columns)
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
    private static void ClearPairs(in QueryArguments a, long batch, long head, long i0, int rows, long end)
    {
        GpuCaptured pairs = a.Pairs;
        for (int row = Group.IdxX / GpuScoreTile.Side; row < rows; row += GroupSize / GpuScoreTile.Side)
        {
            for (long column = end + Group.IdxX % GpuScoreTile.Side; column < a.Score.Keys; column += GpuScoreTile.Side)
                pairs[pairs.At(batch, head, i0 + row, column, 0)] = 0f;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void WriteRows(in RegisterTile t, in GpuMatrix gradient, long first, int rows, int column, int size, float scale, int accumulate)
    {
        int y = Group.IdxX / GpuScoreTile.Threads, x = column + Group.IdxX % GpuScoreTile.Threads;
        WriteRow(gradient, first, y, rows, x, size, scale, accumulate, t.S00, t.S01, t.S02, t.S03);
        WriteRow(gradient, first, y + GpuScoreTile.Threads, rows, x, size, scale, accumulate, t.S10, t.S11, t.S12, t.S13);
        WriteRow(gradient, first, y + 2 * GpuScoreTile.Threads, rows, x, size, scale, accumulate, t.S20, t.S21, t.S22, t.S23);
        WriteRow(gradient, first, y + 3 * GpuScoreTile.Threads, rows, x, size, scale, accumulate, t.S30, t.S31, t.S32, t.S33);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void WriteRow(in GpuMatrix gradient, long first, int row, int rows, int x, int size, float scale, int accumulate, float s0, float s1, float s2, float s3)
    {
        if (row >= rows)
            return;
        Write(gradient, first + row, x, size, scale * s0, accumulate);
        Write(gradient, first + row, x + GpuScoreTile.Threads, size, scale * s1, accumulate);
        Write(gradient, first + row, x + 2 * GpuScoreTile.Threads, size, scale * s2, accumulate);
        Write(gradient, first + row, x + 3 * GpuScoreTile.Threads, size, scale * s3, accumulate);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Write(GpuMatrix gradient, long row, int column, int size, float value, int accumulate)
    {
        if (column < size)
            gradient[row, column] = accumulate != 0 ? gradient[row, column] + value : value;
    }
}
