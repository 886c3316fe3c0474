using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// With a mask, what the reduction divides by is known on the GPU alone: a first launch counts the tokens that are kept (of each sequence, where the reduction
// needs that), a second one adds up the groups' counts. Then value, gradient and the sums of the metrics in one launch, and a last group adds up the groups'
// sums. How many groups there are depends on the number of tokens alone, and every sum has a fixed order: the bits are the same every time.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics, Workspace workspace)
    {
        long sequences = batch.LogProb.Length(0), tokens = batch.LogProb.Length(1);
        using Workspace.Lease lease = workspace.Rent(LossWorkspaceBytes(sequences, tokens));
        TokenLossArguments arguments = new(this, batch, outputs, metrics, lease);
        cancellation.ThrowIfCancellationRequested();
        int groups = arguments.Grid.Groups;
        if (groups > 0 && batch.Mask.IsPresent)
        {
            if (batch.Reduction is TokenReduction.TokenMean or TokenReduction.TokenSum)
                Queue.Launch(TokenLossKernels.CountTokens, groups, TokenLossKernels.GroupSize, arguments);
            else
                Queue.Launch(TokenLossKernels.CountSequences, groups, TokenLossKernels.GroupSize, arguments);
            Queue.Launch(TokenLossKernels.Share, 1, TokenLossKernels.GroupSize, arguments);
        }
        if (groups > 0)
            Queue.Launch(TokenLossKernels.Evaluate, groups, TokenLossKernels.GroupSize, loss, arguments);
        if (metrics.IsPresent)
            Queue.Launch(TokenLossKernels.SumMetrics, 1, TokenLossKernels.GroupSize, arguments);
    }
}

/// <summary>What the token-loss kernels read and write.</summary>
internal readonly struct TokenLossArguments
{
    public readonly GpuTensor<float> LogProb, OldLogProb, Advantage, Loss, Gradient, Metrics;
    public readonly TokenMask Mask;

    /// <summary>The workspace: first, as whole numbers, how many tokens and how many sequences with tokens each group counted, [2, group].</summary>
    public readonly ArrayView<long> Counts;

    /// <summary>The same workspace: behind the counts the sums of the metrics, [metric, group], the weight, the number of tokens, and each sequence's.</summary>
    public readonly ArrayView<float> Floats;

    public readonly TokenGrid Grid;

    /// <summary>A power of two: so many threads count a sequence's tokens.</summary>
    public readonly int Width;

    public readonly int PerSequence, CountsSequences;

    /// <summary>What the losses are divided by; 0: by what <see cref="CountsSequences"/> says.</summary>
    public readonly float Divisor;

    public TokenLossArguments(GpuDevice device, in TokenBatch batch, in TokenLossOutputs outputs, TensorView metrics, Workspace.Lease lease)
    {
        LogProb = new(device, batch.LogProb, "batch.LogProb");
        OldLogProb = new(device, batch.OldLogProb, "batch.OldLogProb");
        Advantage = new(device, batch.Advantage, "batch.Advantage");
        Mask = new(device, batch.Mask, "batch.Mask");
        Loss = new(device, outputs.Loss, "outputs.Loss");
        Gradient = new(device, outputs.LogProbGradient, "outputs.LogProbGradient");
        Metrics = new(device, metrics, "metrics");
        Counts = device.Queue.Scratch<long>(lease);
        Floats = device.Queue.Scratch<float>(lease);
        Grid = new(batch.LogProb.Length(0), batch.LogProb.Length(1));
        Width = 1;
        while (Width < TokenLossKernels.GroupSize && Width * TokenGrid.ThreadTokens < Grid.Tokens)
            Width *= 2;
        PerSequence = batch.Reduction == TokenReduction.SequenceMeanTokenMean ? 1 : 0;
        CountsSequences = batch.Reduction is TokenReduction.SequenceMeanTokenSum or TokenReduction.SequenceMeanTokenMean ? 1 : 0;
        Divisor = batch.Divisor ?? (batch.Reduction == TokenReduction.TokenSum ? 1f : 0f);
    }

    /// <summary>Where a group's sum of a metric lies in <see cref="Floats"/>.</summary>
    public long Partial(int metric, int group) => (TokenLossKernels.CountWords + (long)metric) * Grid.Groups + group;

    /// <summary>Where the weight lies in <see cref="Floats"/>; the number of tokens behind it.</summary>
    public long Weight => Partial(TokenLossKernels.SummedMetrics, 0);

    /// <summary>Where the sequences' numbers of tokens begin in <see cref="Floats"/>.</summary>
    public long Lengths => Weight + 2;

    /// <summary>What the losses are multiplied by.</summary>
    public float WeightOf(long tokens, long sequences) => 1f / (Divisor > 0f ? Divisor : CountsSequences != 0 ? sequences : tokens);
}

internal static class TokenLossKernels
{
    public const int GroupSize = TokenGrid.GroupSize;

    /// <summary>All metrics but the last one, the number of tokens.</summary>
    public const int SummedMetrics = PolicyMetrics.Tokens;

    /// <summary>The words that two counts of a group take.</summary>
    public const int CountWords = 2 * sizeof(long) / sizeof(float);

    public static long WorkspaceBytes(long sequences, long tokens) =>
        checked(((CountWords + SummedMetrics) * (long)TokenGrid.GroupsOf(checked(sequences * tokens)) + 2 + sequences) * sizeof(float));

    /// <summary>How many tokens are kept in all.</summary>
    public static void CountTokens(TokenLossArguments a)
    {
        ArrayView<long> shared = SharedMemory.Allocate<long>(GroupSize);
        long kept = 0;
        for (long block = Grid.IdxX; a.Grid.HasBlock(block); block += Grid.DimX)
            kept += a.Mask.Count(a.Grid, block);
        StoreCounts(a, GroupSums.Sum(shared, GroupSize, kept), 0);
    }

    /// <summary>How many tokens of each sequence are kept, and how many sequences have any. A part of the group takes a sequence.</summary>
    public static void CountSequences(TokenLossArguments a)
    {
        ArrayView<long> shared = SharedMemory.Allocate<long>(GroupSize);
        int parts = GroupSize / a.Width, part = Group.IdxX / a.Width, lane = Group.IdxX % a.Width;
        long kept = 0, filled = 0;
        for (long block = Grid.IdxX; block * parts < a.Grid.Sequences; block += Grid.DimX)
        {
            long sequence = block * parts + part;
            shared[Group.IdxX] = sequence < a.Grid.Sequences ? a.Mask.Count(a.Grid, sequence, lane, a.Width) : 0;
            GroupSums.SumParts(shared, a.Width);
            if (lane == 0 && sequence < a.Grid.Sequences)
            {
                long length = shared[Group.IdxX];
                a.Floats[a.Lengths + sequence] = length;
                kept += length;
                filled += length > 0 ? 1 : 0;
            }
            Group.Barrier();
        }
        kept = GroupSums.Sum(shared, GroupSize, kept);
        StoreCounts(a, kept, GroupSums.Sum(shared, GroupSize, filled));
    }

    /// <summary>The weight of the losses and the number of tokens, from what the groups counted.</summary>
    public static void Share(TokenLossArguments a)
    {
        ArrayView<long> shared = SharedMemory.Allocate<long>(GroupSize);
        long kept = 0, filled = 0;
        for (int group = Group.IdxX; group < a.Grid.Groups; group += GroupSize)
        {
            kept += a.Counts[group];
            filled += a.Counts[a.Grid.Groups + group];
        }
        kept = GroupSums.Sum(shared, GroupSize, kept);
        filled = GroupSums.Sum(shared, GroupSize, filled);
        if (Group.IdxX == 0)
        {
            a.Floats[a.Weight] = a.WeightOf(kept, filled);
            a.Floats[a.Weight + 1] = kept;
        }
    }

    /// <summary>Everything about each token, and the sums of the metrics over each group.</summary>
    public static void Evaluate<TLoss>(TLoss loss, TokenLossArguments a) where TLoss : unmanaged, ITokenLoss
    {
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        float total = 0f, clipped = 0f, dualClipped = 0f, oldKl = 0f;
        bool masked = a.Mask.IsPresent;
        float weight = GroupSums.First(sums, masked && Group.IdxX == 0 ? a.Floats[a.Weight] : a.WeightOf(a.Grid.Count, a.Grid.Sequences)), own = weight;
        long weighed = -1; // the sequence that own is of
        TokenPlace at = a.Grid.First();
        for (long block = Grid.IdxX; a.Grid.HasBlock(block); block += Grid.DimX)
        {
            int kept = a.Mask.Kept(a.Grid, block, flags);
            for (int number = 0; number < TokenGrid.ThreadTokens; number++)
            {
                float value = 0f, derivative = 0f;
                // Not multiplied by 0: what lies in a masked token may be NaN.
                if ((kept >> number & 1) != 0)
                {
                    if (a.PerSequence != 0 && at.Sequence != weighed)
                    {
                        weighed = at.Sequence;
                        own = weight / (masked ? a.Floats[a.Lengths + weighed] : a.Grid.Tokens);
                    }
                    float now = a.LogProb[at.Sequence, at.Token], old = a.OldLogProb[at.Sequence, at.Token];
                    TokenTerms<Dual<Real32>> terms = loss.Loss(new TokenInputs<Dual<Real32>>
                    {
                        LogProb = new(new(now), Real32.One),
                        OldLogProb = new(new(old), Real32.Zero),
                        Advantage = new(new(a.Advantage[at.Sequence, at.Token]), Real32.Zero),
                    });
                    value = terms.Loss.Value.Value;
                    derivative = own * terms.Loss.Derivative.Value;
                    total += own * value;
                    clipped += terms.Clipped.Value.Value;
                    dualClipped += terms.DualClipped.Value.Value;
                    oldKl += old - now;
                }
                if (a.Grid.Has(at))
                {
                    if (a.Loss.IsPresent)
                        a.Loss[at.Sequence, at.Token] = value;
                    if (a.Gradient.IsPresent)
                        a.Gradient[at.Sequence, at.Token] = derivative;
                }
                at = a.Grid.Next(at, number);
            }
        }

        if (!a.Metrics.IsPresent)
            return;
        SumOfGroup(a, sums, PolicyMetrics.Loss, total);
        SumOfGroup(a, sums, PolicyMetrics.ClipFraction, clipped);
        SumOfGroup(a, sums, PolicyMetrics.DualClipFraction, dualClipped);
        SumOfGroup(a, sums, PolicyMetrics.OldKl, oldKl);
    }

    /// <summary>The metrics from the sums of the groups.</summary>
    public static void SumMetrics(TokenLossArguments a)
    {
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        float tokens = a.Grid.Groups > 0 && a.Mask.IsPresent ? a.Floats[a.Weight + 1] : a.Grid.Count;
        for (int metric = SummedMetrics - 1; metric >= 0; metric--) // down, as the loops of the mask
        {
            float sum = 0f;
            for (int group = Group.IdxX; group < a.Grid.Groups; group += GroupSize)
                sum += a.Floats[a.Partial(metric, group)];
            sum = GroupSums.Sum(sums, GroupSize, sum);
            if (Group.IdxX == 0)
                a.Metrics[metric] = metric == PolicyMetrics.Loss || tokens == 0f ? sum : sum / tokens;
        }
        if (Group.IdxX == 0)
            a.Metrics[PolicyMetrics.Tokens] = tokens;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreCounts(in TokenLossArguments a, long kept, long filled)
    {
        if (Group.IdxX == 0)
        {
            a.Counts[Grid.IdxX] = kept;
            a.Counts[a.Grid.Groups + Grid.IdxX] = filled;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SumOfGroup(in TokenLossArguments a, ArrayView<float> sums, int metric, float value)
    {
        float sum = GroupSums.Sum(sums, GroupSize, value);
        if (Group.IdxX == 0)
            a.Floats[a.Partial(metric, Grid.IdxX)] = sum;
    }
}
