using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A thread takes the pairs of its own number, that plus all threads, and so on. Metrics: each thread sums its pairs, a group its threads by halving,
// and one last group sums the groups; how many groups there are depends on the number of pairs alone, so the bits are the same every time.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override long LossWorkspaceBytes(long rows, long columns) =>
        Math.Max(PairLossKernels.Groups(checked(rows * columns)) * (long)PreferenceMetrics.Count * sizeof(float), TokenLossKernels.WorkspaceBytes(rows, columns));

    /// <inheritdoc/>
    protected internal override void PairLoss<TLoss>(in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics, Workspace workspace)
    {
        long pairs = batch.Chosen.Length(0);
        int groups = PairLossKernels.Groups(pairs);
        using Workspace.Lease lease = workspace.Rent(LossWorkspaceBytes(1, pairs));
        PairArguments arguments = new(this, batch, outputs, metrics, Queue.Scratch<float>(lease), loss.RewardScale, groups);
        cancellation.ThrowIfCancellationRequested();
        if (groups > 0)
            Queue.Launch(PairLossKernels.Evaluate, groups, PairLossKernels.GroupSize, loss, arguments);
        if (metrics.IsPresent)
            Queue.Launch(PairLossKernels.SumMetrics, 1, PairLossKernels.GroupSize, arguments, groups);
    }
}

/// <summary>What the pair-loss kernels read and write.</summary>
internal readonly struct PairArguments
{
    public readonly GpuTensor<float> Chosen, Rejected, ReferenceChosen, ReferenceRejected;
    public readonly GpuTensor<float> Loss, ChosenGradient, RejectedGradient, ReferenceChosenGradient, ReferenceRejectedGradient, ChosenReward, RejectedReward, Metrics;

    /// <summary>[metric, group].</summary>
    public readonly ArrayView<float> Partial;

    public readonly long Pairs;
    public readonly float RewardScale, GradientScale, LossDivisor, MeanDivisor;

    public PairArguments(GpuDevice device, in PairBatch batch, in PairOutputs outputs, TensorView metrics, ArrayView<float> partial, float rewardScale, int groups)
    {
        Chosen = new(device, batch.Chosen, "batch.Chosen");
        Rejected = new(device, batch.Rejected, "batch.Rejected");
        ReferenceChosen = new(device, batch.ReferenceChosen, "batch.ReferenceChosen");
        ReferenceRejected = new(device, batch.ReferenceRejected, "batch.ReferenceRejected");
        Loss = new(device, outputs.Loss, "outputs.Loss");
        ChosenGradient = new(device, outputs.ChosenGradient, "outputs.ChosenGradient");
        RejectedGradient = new(device, outputs.RejectedGradient, "outputs.RejectedGradient");
        ReferenceChosenGradient = new(device, outputs.ReferenceChosenGradient, "outputs.ReferenceChosenGradient");
        ReferenceRejectedGradient = new(device, outputs.ReferenceRejectedGradient, "outputs.ReferenceRejectedGradient");
        ChosenReward = new(device, outputs.ChosenReward, "outputs.ChosenReward");
        RejectedReward = new(device, outputs.RejectedReward, "outputs.RejectedReward");
        Metrics = new(device, metrics, "metrics");
        Partial = partial;
        Pairs = batch.Chosen.Length(0);
        RewardScale = rewardScale;
        MeanDivisor = Math.Max(Pairs, 1);
        LossDivisor = batch.Reduction == LossReduction.Mean ? MeanDivisor : 1f;
        GradientScale = 1f / LossDivisor;
    }
}

internal static class PairLossKernels
{
    public const int GroupSize = 256;

    // Enough threads for any GPU of today; more pairs give each thread more of them, not the last group more sums.
    private const int MaximumGroups = 1024;

    public static int Groups(long pairs) => (int)Math.Min(MaximumGroups, (pairs + GroupSize - 1) / GroupSize);

    /// <summary>Everything about each pair, and the sums of the metrics over each group.</summary>
    public static void Evaluate<TLoss>(TLoss loss, PairArguments a) where TLoss : unmanaged, IPairLoss
    {
        float lossSum = 0f, chosenReward = 0f, rejectedReward = 0f, margin = 0f, correct = 0f, chosenLogProb = 0f, rejectedLogProb = 0f;
        long step = (long)Grid.DimX * GroupSize;
        for (long i = (long)Grid.IdxX * GroupSize + Group.IdxX; i < a.Pairs; i += step)
        {
            Real32 chosen = new(a.Chosen[i]), rejected = new(a.Rejected[i]);
            Real32 referenceChosen = new(a.ReferenceChosen.IsPresent ? a.ReferenceChosen[i] : 0f);
            Real32 referenceRejected = new(a.ReferenceRejected.IsPresent ? a.ReferenceRejected[i] : 0f);

            // The values that the four have in common are computed once: the compilers see through the structs.
            Dual<Real32> byChosen = loss.Loss(Inputs(chosen, rejected, referenceChosen, referenceRejected, 1f, 0f, 0f, 0f));
            Dual<Real32> byRejected = loss.Loss(Inputs(chosen, rejected, referenceChosen, referenceRejected, 0f, 1f, 0f, 0f));
            Dual<Real32> byReferenceChosen = loss.Loss(Inputs(chosen, rejected, referenceChosen, referenceRejected, 0f, 0f, 1f, 0f));
            Dual<Real32> byReferenceRejected = loss.Loss(Inputs(chosen, rejected, referenceChosen, referenceRejected, 0f, 0f, 0f, 1f));

            float value = byChosen.Value.Value;
            float rewardOfChosen = a.RewardScale * (chosen.Value - referenceChosen.Value);
            float rewardOfRejected = a.RewardScale * (rejected.Value - referenceRejected.Value);
            Store(a.Loss, i, value);
            Store(a.ChosenGradient, i, a.GradientScale * byChosen.Derivative.Value);
            Store(a.RejectedGradient, i, a.GradientScale * byRejected.Derivative.Value);
            Store(a.ReferenceChosenGradient, i, a.GradientScale * byReferenceChosen.Derivative.Value);
            Store(a.ReferenceRejectedGradient, i, a.GradientScale * byReferenceRejected.Derivative.Value);
            Store(a.ChosenReward, i, rewardOfChosen);
            Store(a.RejectedReward, i, rewardOfRejected);

            lossSum += value;
            chosenReward += rewardOfChosen;
            rejectedReward += rewardOfRejected;
            margin += rewardOfChosen - rewardOfRejected;
            correct += rewardOfChosen > rewardOfRejected ? 1f : 0f;
            chosenLogProb += chosen.Value;
            rejectedLogProb += rejected.Value;
        }

        if (!a.Metrics.IsPresent)
            return;
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        SumOfGroup(a, sums, PreferenceMetrics.Loss, lossSum);
        SumOfGroup(a, sums, PreferenceMetrics.ChosenReward, chosenReward);
        SumOfGroup(a, sums, PreferenceMetrics.RejectedReward, rejectedReward);
        SumOfGroup(a, sums, PreferenceMetrics.RewardMargin, margin);
        SumOfGroup(a, sums, PreferenceMetrics.RewardAccuracy, correct);
        SumOfGroup(a, sums, PreferenceMetrics.ChosenLogProb, chosenLogProb);
        SumOfGroup(a, sums, PreferenceMetrics.RejectedLogProb, rejectedLogProb);
    }

    /// <summary>The metrics from the sums of the groups.</summary>
    public static void SumMetrics(PairArguments a, int groups)
    {
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        for (int metric = 0; metric < PreferenceMetrics.Count; metric++)
        {
            float sum = 0f;
            for (int group = Group.IdxX; group < groups; group += GroupSize)
                sum += a.Partial[(long)metric * groups + group];
            sum = GroupSums.Sum(sums, GroupSize, sum);
            if (Group.IdxX == 0)
                Store(a.Metrics, metric, sum / (metric == PreferenceMetrics.Loss ? a.LossDivisor : a.MeanDivisor));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static PairInputs<Dual<Real32>> Inputs(Real32 chosen, Real32 rejected, Real32 referenceChosen, Real32 referenceRejected,
        float seedChosen, float seedRejected, float seedReferenceChosen, float seedReferenceRejected) => new()
        {
            Chosen = new(chosen, new(seedChosen)),
            Rejected = new(rejected, new(seedRejected)),
            ReferenceChosen = new(referenceChosen, new(seedReferenceChosen)),
            ReferenceRejected = new(referenceRejected, new(seedReferenceRejected)),
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(GpuTensor<float> vector, long i, float value)
    {
        if (vector.IsPresent)
            vector[i] = value;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SumOfGroup(in PairArguments a, ArrayView<float> sums, int metric, float value)
    {
        float sum = GroupSums.Sum(sums, GroupSize, value);
        if (Group.IdxX == 0)
            a.Partial[(long)metric * Grid.DimX + Grid.IdxX] = sum;
    }
}
