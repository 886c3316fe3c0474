using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// Dao et al. 2022: scores and weights are computed again, from the log-sum-exp that the forward pass left. With D = Σ dO·O − dL of a row,
//
//     dz = P (dO Vᵀ − D)     dS = dz · ∂rule     dV = Pᵀ dO     dK = scale · dSᵀ Q     dQ = scale · dS K
//
// 1. If the log-sum-exp was kept without what rounding took from it: the forward kernel once more, without values.
// 2. Rows: D of each query.
// 3. Keys (AttentionKeys.cs): a group takes 64 keys of a key head and up to 128 columns of dK and dV, and walks over the heads that share them and over their queries, 64 at
//    a time: every sum over queries and heads stays in registers, in one order. Rows of its tile are keys, columns are queries.
// 4. Queries (AttentionQueries.cs): a group takes a piece of the queries of a head (and up to 128 columns of dQ), block after block, and walks over the keys. dQ stays in
//    registers. Of the biases it sums one kind at a time: the diagonals of dz, added up per distance; rows or columns of what a captured tensor receives.
//    The first launch has dQ and the diagonals of the biases, one more per captured tensor has its gradient: a second derivative of the rule would
//    need a second tile in shared memory.
// 5. AttentionBiasSums.cs: the sums of pieces, sequences and heads that share an entry are added in that order: a thread, or a group, per entry.
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

internal static partial class AttentionBackwardKernels
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
}
