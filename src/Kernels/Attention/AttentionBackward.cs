using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// Dao et al. 2022: scores and weights are computed again, from the log-sum-exp that the forward pass left. With D = Σ dO·O − dL of a row,
//
//     dz = P (dO Vᵀ − D)     dS = dz · ∂rule     dV = Pᵀ dO     dK = scale · dSᵀ Q     dQ = scale · dS K
//
// 1. If the log-sum-exp was kept without what rounding took from it: the forward kernel once more, without values.
// 2. Rows: D of each query.
// 3. Keys, in AttentionKeys.cs: a group takes a tile's keys of a key head and up to two sides of columns of dK and dV, and walks over the heads that share them and
//    over their queries, a side at a time: every sum over queries and heads stays in registers, in one order. Rows of its tile are keys, columns are queries.
// 4. Queries, in AttentionQueries.cs: a group takes a piece of the queries of a head (and up to two sides of columns of dQ), block after block, and walks over the
//    keys. dQ stays in registers. Of the biases it sums one kind at a time: the diagonals of dz, added up per distance; rows or columns of what a captured tensor
//    receives. The first launch has dQ and the diagonals of the biases, one more per captured tensor has its gradient: a second derivative of the rule would
//    need a second tile in shared memory.
// 5. The sums of pieces, sequences and heads that share an entry, in AttentionBiasSums.cs, are added in that order: a thread, or a group, per entry.
//
// Two passes over the tiles compute scores twice, 7 products instead of 5; but one pass would add dQ or dK over groups: floats added in any order, or
// as many partial gradients as there are blocks of keys. The bits depend on shapes and on which gradients are wanted, on nothing else.
//
// Traffic: of side t, a tile of the keys reads t · (3d + 3dv) floats (K, Q, V, dO; then dO and Q once more), a tile of the queries t · (3d + 2dv) (dO, V, Q, K;
// then K once more), with d and dv up to 2t. What is added per distance costs 16 · t bytes a tile.
//
// Shared memory 38 KB, in the small tile 7 KB. Workspace, in floats: 3 per query (log-sum-exp, what rounding took, D) and the sums of one kind of bias, per head and sequence
//   by distance     pieces · (Sk + queries of a piece), at most 32 pieces
//   by key          pieces · Sk, at most 32 pieces
//   by query        Sq
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients)
    {
        AttentionShape shape = AttentionShape.Of(problem);
        int side = TileSideOf(shape);
        long sums = Math.Max(Math.Max(CapturedSums(shape, problem.Captured0, gradients.Captured0, side), CapturedSums(shape, problem.Captured1, gradients.Captured1, side)),
            Math.Max(CapturedSums(shape, problem.Captured2, gradients.Captured2, side), CapturedSums(shape, problem.Captured3, gradients.Captured3, side)));
        if (WantsDiagonals(gradients))
            sums = Math.Max(sums, new BiasSums(shape, BiasSumKind.Diagonals, side).Floats(shape));
        return checked((RowFloats(shape) + sums) * sizeof(float));

        static long CapturedSums(in AttentionShape shape, in CapturedTensor captured, in TensorView gradient, int side) =>
            gradient.IsPresent ? new BiasSums(shape, BiasSums.KindOf(captured.Structure), side).Floats(shape) : 0;
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
        if (TileSideOf(shape) == Side16.Length)
            LaunchBackward<TRule, Side16>(shape, problem, rule, saved, upstream, gradients, lease);
        else
            LaunchBackward<TRule, Side64>(shape, problem, rule, saved, upstream, gradients, lease);
    }

    private void LaunchBackward<TRule, TSide>(in AttentionShape shape, in AttentionProblem problem, TRule rule, in AttentionSaved saved, in AttentionUpstream upstream,
        in AttentionGradients gradients, in Workspace.Lease lease) where TRule : unmanaged, IScoreRule where TSide : struct, ITileSide
    {
        int side = TSide.Length;
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
            LaunchForward<TRule, TSide>(rule, withoutValues, new ForwardArguments(this, problem, withoutValues, default, logSumExp));
        }
        LaunchBackward(AttentionBackwardKernels<TSide>.Rows, shape.Batch * shape.Heads * TileSide.Blocks(shape.Queries, side), GpuTile<TSide>.GroupSize, 0,
            new RowArguments(this, shape, saved.Output, logSumExp, upstream, memory));

        if (gradients.Key.IsPresent || gradients.Value.IsPresent)
        {
            KeyArguments arguments = new(this, score, shape, problem, upstream, gradients, memory, rows, side);
            long blocks = shape.Batch * shape.KeyHeads * TileSide.Blocks(shape.Keys, side);
            LaunchBackward(AttentionBackwardKernels<TSide>.Keys, blocks * arguments.Slices, GpuTile<TSide>.GroupSize, rule, arguments);
        }
        bool diagonals = WantsDiagonals(gradients);
        if (gradients.Query.IsPresent || diagonals)
        {
            BiasSums sums = new(shape, diagonals ? BiasSumKind.Diagonals : BiasSumKind.None, side);
            LaunchQueries<TRule, TSide>(rule, shape, new QueryArguments(this, score, sums, problem, upstream, gradients, memory, rows, side));
            if (gradients.DistanceBias.IsPresent)
                LaunchSums(new BiasSumArguments(this, shape, sums, memory, RowTerms * rows, BiasEntry.Distance, gradients.DistanceBias, shape.DistanceCentre, gradients.Accumulate, "gradients.DistanceBias"));
            if (gradients.Slopes.IsPresent)
                LaunchSums(new BiasSumArguments(this, shape, sums, memory, RowTerms * rows, BiasEntry.Slope, gradients.Slopes, 0, gradients.Accumulate, "gradients.Slopes"));
        }
        LaunchCaptured<TRule, TSide>(rule, shape, score, problem, upstream, gradients, memory, 0, problem.Captured0, gradients.Captured0, "gradients.Captured0");
        LaunchCaptured<TRule, TSide>(rule, shape, score, problem, upstream, gradients, memory, 1, problem.Captured1, gradients.Captured1, "gradients.Captured1");
        LaunchCaptured<TRule, TSide>(rule, shape, score, problem, upstream, gradients, memory, 2, problem.Captured2, gradients.Captured2, "gradients.Captured2");
        LaunchCaptured<TRule, TSide>(rule, shape, score, problem, upstream, gradients, memory, 3, problem.Captured3, gradients.Captured3, "gradients.Captured3");
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

    private void LaunchQueries<TRule, TSide>(TRule rule, in AttentionShape shape, in QueryArguments arguments) where TRule : unmanaged, IScoreRule where TSide : struct, ITileSide =>
        LaunchBackward(AttentionBackwardKernels<TSide>.Queries, shape.Batch * shape.Heads * arguments.Sums.Pieces * arguments.Slices, GpuTile<TSide>.GroupSize, rule, arguments);

    private void LaunchCaptured<TRule, TSide>(TRule rule, in AttentionShape shape, in ScoreArguments score, in AttentionProblem problem, in AttentionUpstream upstream,
        in AttentionGradients gradients, ArrayView<float> memory, int capture, in CapturedTensor captured, in TensorView gradient, string name)
        where TRule : unmanaged, IScoreRule where TSide : struct, ITileSide
    {
        if (!gradient.IsPresent)
            return;
        BiasSums sums = new(shape, BiasSums.KindOf(captured.Structure), TSide.Length);
        long rows = RowFloats(shape) / RowTerms;
        LaunchQueries<TRule, TSide>(rule, shape, new QueryArguments(this, score, sums, problem, upstream, gradients, memory, rows, TSide.Length, capture, captured, gradient, name));
        if (captured.Structure != CapturedStructure.Dense)
            LaunchSums(new BiasSumArguments(this, shape, sums, memory, RowTerms * rows, BiasSumArguments.EntryOf(captured.Structure), gradient, captured.Centre, gradients.Accumulate, name));
    }

    private void LaunchSums(in BiasSumArguments arguments)
    {
        // Where an entry sums up many places a group does it, else a thread.
        if (arguments.HasLongSums)
            LaunchBackward(BiasSumKernels.SumLong, arguments.Entries, BiasSumKernels.GroupSize, 0, arguments);
        else
            LaunchBackward(BiasSumKernels.SumShort, TileSide.Blocks(arguments.Entries, BiasSumKernels.GroupSize), BiasSumKernels.GroupSize, 0, arguments);
    }

    private void LaunchBackward<T1, T2>(Action<T1, T2> kernel, long groups, int groupSize, T1 first, T2 second) where T1 : struct where T2 : struct
    {
        cancellation.ThrowIfCancellationRequested();
        if (groups > 0)
            Queue.Launch(kernel, checked((int)groups), groupSize, first, second);
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

internal static partial class AttentionBackwardKernels<TSide> where TSide : struct, ITileSide
{
    public static int GroupSize => GpuTile<TSide>.GroupSize;

    /// <summary>Log-sum-exp, what rounding took from it, and D of a tile's queries.</summary>
    public static void Rows(int none, RowArguments a)
    {
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuTile<TSide>.StagingFloats);
        int thread = Group.IdxX;
        int blocks = (a.Queries + GpuTile<TSide>.Side - 1) / GpuTile<TSide>.Side, item = Grid.IdxX, i0 = item % blocks * GpuTile<TSide>.Side;
        int head = item / blocks % a.Heads, batch = item / blocks / a.Heads;
        int rows = a.Queries - i0 < GpuTile<TSide>.Side ? a.Queries - i0 : GpuTile<TSide>.Side;
        GpuMatrix output = a.Output.Of(batch, head), upstream = a.UpstreamOutput.Of(batch, head);
        // In the order in which the product dO Vᵀ is summed, so that the two cancel to the last bit where a query sees one key.
        float sum = 0f;
        int first = 0;
        do
        {
            Group.Barrier();
            GpuTile<TSide>.StageTransposed(staging, 0, upstream, i0, rows, first, a.ValueSize);
            GpuTile<TSide>.StageTransposed(staging, GpuTile<TSide>.Slice * GpuTile<TSide>.SliceStep, output, i0, rows, first, a.ValueSize);
            Group.Barrier();
            int terms = a.ValueSize - first < GpuTile<TSide>.Slice ? a.ValueSize - first : GpuTile<TSide>.Slice;
            for (int k = 0; k < terms && thread < GpuTile<TSide>.Side; k++)
                sum += staging[k * GpuTile<TSide>.SliceStep + thread] * staging[(GpuTile<TSide>.Slice + k) * GpuTile<TSide>.SliceStep + thread];
            first += GpuTile<TSide>.Slice;
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
        if (t >= GpuTile<TSide>.Side)
            return;
        // Rows beyond the last are computed with the others, and left out where it counts.
        bool there = t < rows;
        terms[t] = there ? memory[at + t] : 0f;
        terms[GpuTile<TSide>.Side + t] = there ? memory[all + at + t] : 0f;
        terms[2 * GpuTile<TSide>.Side + t] = there ? memory[2 * all + at + t] : 0f;
    }

    // e^(z − L): what rounding takes from the differences is put back as a factor 1 + it. The second column of L may be larger than the first difference: the logarithm of how many keys are alike,
    // where L is so large that its first column is no more than their score.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Weight(float z, float logSumExp, float remainder)
    {
        float difference = z - logSumExp, second = difference - z, power = difference - remainder;
        float lost = z - (difference - second) - (logSumExp + second) + (difference - power - remainder);
        float p = Real32.Exp(new(power)).Value;
        return z == float.NegativeInfinity ? GpuTile<TSide>.Hidden : p + p * lost;
    }

    // From dP in registers and P in the tile: dz = P (dP − D), which is what biases receive. D belongs to the tile's row or column, whichever the query is.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void FinalGradients(ref RegisterTile t, ArrayView<float> tile, ArrayView<float> terms, bool rowsAreQueries)
    {
        int x = Group.IdxX % GpuTile<TSide>.Threads, y = Group.IdxX / GpuTile<TSide>.Threads, step = GpuTile<TSide>.RowsApart * GpuTile<TSide>.RowStep;
        long at = y * GpuTile<TSide>.RowStep + x, d = 2 * GpuTile<TSide>.Side + (rowsAreQueries ? y : x);
        int row = rowsAreQueries ? GpuTile<TSide>.RowsApart : 0, column = rowsAreQueries ? 0 : GpuTile<TSide>.Threads;
        FinalGradients(ref t.R0, tile, at, terms, d, column);
        FinalGradients(ref t.R1, tile, at + step, terms, d + row, column);
        FinalGradients(ref t.R2, tile, at + 2 * step, terms, d + 2 * row, column);
        FinalGradients(ref t.R3, tile, at + 3 * step, terms, d + 3 * row, column);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void FinalGradients(ref RegisterRow row, ArrayView<float> tile, long at, ArrayView<float> terms, long d, int column)
    {
        const int n = GpuTile<TSide>.Threads;
        row.C0 = FinalGradient(row.C0, tile[at], terms[d]);
        if (!GpuTile<TSide>.IsWide)
            return;
        row.C1 = FinalGradient(row.C1, tile[at + n], terms[d + column]);
        row.C2 = FinalGradient(row.C2, tile[at + 2 * n], terms[d + 2 * column]);
        row.C3 = FinalGradient(row.C3, tile[at + 3 * n], terms[d + 3 * column]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float FinalGradient(float weightGradient, float p, float d) => p == GpuTile<TSide>.Hidden ? GpuTile<TSide>.Hidden : p * (weightGradient - d);

    // dS = dz · the rule's slope. Where dz is 0 the slope may be infinite.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void MultiplySlopes(ref RegisterTile t, ArrayView<float> slopes)
    {
        const int n = GpuTile<TSide>.Threads;
        long at = Group.IdxX / n * GpuTile<TSide>.SliceStep + Group.IdxX % n, step = GpuTile<TSide>.RowsApart * GpuTile<TSide>.SliceStep;
        MultiplySlopes(ref t.R0, slopes, at);
        MultiplySlopes(ref t.R1, slopes, at + step);
        MultiplySlopes(ref t.R2, slopes, at + 2 * step);
        MultiplySlopes(ref t.R3, slopes, at + 3 * step);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void MultiplySlopes(ref RegisterRow row, ArrayView<float> slopes, long at)
    {
        const int n = GpuTile<TSide>.Threads;
        row.C0 = MultiplySlope(row.C0, slopes[at]);
        if (!GpuTile<TSide>.IsWide)
            return;
        row.C1 = MultiplySlope(row.C1, slopes[at + n]);
        row.C2 = MultiplySlope(row.C2, slopes[at + 2 * n]);
        row.C3 = MultiplySlope(row.C3, slopes[at + 3 * n]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float MultiplySlope(float dz, float slope) => dz == GpuTile<TSide>.Hidden || dz == 0f ? dz : dz * slope;
}
