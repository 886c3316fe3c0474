using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A group takes a row, its threads neighbouring logits: each thread keeps the largest logit that it saw and sums relative to it, and the group brings them
// to one maximum and adds them, halves to halves. So the forward pass reads each logit once.
//
// The backward pass needs what the sums gave. If what rounding took from the log-sum-exp was saved beside it, each logit is read once and replaced, by any group: a
// row is cut into slices. A float32 log-sum-exp alone is off by up to |logSumExp| · 2^-24, and every probability with it; at logits around 10,000 that is a
// thousand times what the contract allows. Then a group forms the sums again: it reads the row, keeps all of it in shared memory, and writes the gradient. So each
// logit is read once here too, and a row that is longer than what shared memory keeps is refused: read twice, 32,000 logits would cost 1.4 times their bytes.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        LogProbsArguments arguments = new(this, problem, outputs);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count > 0)
            Queue.Launch(LogProbsKernels.FromLogits, LogProbsKernels.Groups(arguments.Rows.Count), LogProbsKernels.GroupSize, arguments, Queue.Faults);
    }

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        long vocabulary = problem.Logits.Length(1);
        if (saved.LogSumExp.Rank == 1 && vocabulary > LogProbsKernels.KeptLogits)
        {
            long tokens = problem.Logits.Length(0);
            throw new NotSupportedException($"saved.LogSumExp is [{tokens}]; for rows of more than {LogProbsKernels.KeptLogits} logits, here {vocabulary}, the device {Name} needs it as "
                + $"[{tokens}, 2]: allocate it so, and the forward pass fills both columns. Nothing was written.");
        }
        LogProbsBackwardArguments arguments = new(this, problem, saved, upstream, logitsGradient);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count > 0 && saved.LogSumExp.Rank == 2)
            Queue.Launch(LogProbsKernels.FromLogitsBackwardOfSaved, LogProbsKernels.Groups(arguments.Rows.Count * arguments.Slices), LogProbsKernels.GroupSize, arguments, Queue.Faults);
        else if (arguments.Rows.Count > 0)
            Queue.Launch(LogProbsKernels.FromLogitsBackward, LogProbsKernels.Groups(arguments.Rows.Count), LogProbsKernels.GroupSize, arguments, Queue.Faults);
    }
}

/// <summary>The logits of a kernel's argument, and which token came at each row.</summary>
internal readonly struct GpuLogitRows
{
    public readonly GpuTensor<float> Logits;
    public readonly GpuTensor<int> Targets;
    public readonly GpuTensor<long> LongTargets;
    public readonly long Count, Vocabulary, IgnoreTarget;

    public GpuLogitRows(GpuDevice device, in LogitsProblem problem)
    {
        bool areLong = problem.Targets.Type == ElementType.Int64;
        Logits = new(device, problem.Logits, "problem.Logits");
        Targets = new(device, areLong ? default : problem.Targets, "problem.Targets");
        LongTargets = new(device, areLong ? problem.Targets : default, "problem.Targets");
        Count = problem.Logits.Length(0);
        Vocabulary = problem.Logits.Length(1);
        IgnoreTarget = problem.IgnoreTarget;
    }

    public long Target(long row) => LongTargets.IsPresent ? LongTargets[row] : Targets[row];

    public bool IsOutside(long target) => target < 0 || target >= Vocabulary;
}

/// <summary>What the forward kernel reads and writes.</summary>
internal readonly struct LogProbsArguments(GpuDevice device, in LogitsProblem problem, in TokenOutputs outputs)
{
    public readonly GpuLogitRows Rows = new(device, problem);
    public readonly GpuTensor<float> LogProb = new(device, outputs.LogProb, "outputs.LogProb");
    public readonly GpuTensor<float> LogSumExp = new(device, outputs.LogSumExp, "outputs.LogSumExp");
    public readonly int HasRemainder = outputs.LogSumExp.Rank == 2 ? 1 : 0;
    public readonly GpuTensor<float> Entropy = new(device, outputs.Entropy, "outputs.Entropy");
}

/// <summary>What the backward kernel reads and writes.</summary>
internal readonly struct LogProbsBackwardArguments(GpuDevice device, in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
{
    public readonly GpuLogitRows Rows = new(device, problem);
    public readonly GpuTensor<float> LogSumExp = new(device, saved.LogSumExp, "saved.LogSumExp");
    public readonly GpuTensor<float> Entropy = new(device, saved.Entropy, "saved.Entropy");
    public readonly GpuTensor<float> OfLogProb = new(device, upstream.LogProb, "upstream.LogProb");
    public readonly GpuTensor<float> OfLogSumExp = new(device, upstream.LogSumExp, "upstream.LogSumExp");
    public readonly GpuTensor<float> OfEntropy = new(device, upstream.Entropy, "upstream.Entropy");
    public readonly GpuTensor<float> Gradient = new(device, logitsGradient, "logitsGradient");

    /// <summary>Into how many parts a row is cut where its sums are saved.</summary>
    public readonly long Slices = (problem.Logits.Length(1) + LogProbsKernels.SliceLogits - 1) / LogProbsKernels.SliceLogits;
}

internal static class LogProbsKernels
{
    public const int GroupSize = 256;

    // A thread takes so many logits at a time, a group's width apart: their loads are under way together, and they share one look at the maximum.
    private const int Logits = 4;
    private const int BlockLogits = Logits * GroupSize;

    /// <summary>Logits of a row whose sums aren't saved, which stay in shared memory until their gradient is written: with the sums 47 of the 48 KB that a kernel may declare.</summary>
    public const int KeptLogits = 11 * BlockLogits;

    /// <summary>Logits of a row whose sums are saved that a group takes: enough to make little of what is read for the row.</summary>
    public const int SliceLogits = 4 * BlockLogits;

    // Beyond so many, a group takes several rows or slices.
    private const long MaximumGroups = 1 << 20;

    // e to this power and below is 0 in float32. The bound leaves −∞ out of the entropy: e^t is 0 there, and 0 · t must be.
    private const float LowestExponent = -104f;

    public static int Groups(long rows) => (int)Math.Min(rows, MaximumGroups);

    /// <summary>Log-prob, log-sum-exp and entropy of a row.</summary>
    public static void FromLogits(LogProbsArguments a, GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(SharedSums);
        for (long row = Grid.IdxX; row < a.Rows.Count; row += Grid.DimX)
        {
            long target = a.Rows.Target(row);
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                if (Group.IdxX == 0)
                {
                    bool ignored = target == a.Rows.IgnoreTarget;
                    float result = ignored ? 0f : float.NaN;
                    Store(a, row, result, result, 0f, result);
                    if (!ignored)
                        faults.Report(GpuFaultSource.Targets, target, a.Rows.Vocabulary);
                }
                continue;
            }
            GpuLogitSums sums = Sums(a.Rows, row, shared, shared, keeps: false);
            if (Group.IdxX == 0)
            {
                float logit = a.Rows.Logits.Memory[a.Rows.Logits.At(row, 0) + target];
                float logSumExp = sums.Shift + sums.LogSum, part = logSumExp - sums.Shift, lost = sums.Shift - (logSumExp - part) + (sums.LogSum - part);
                Store(a, row, logit - sums.Shift - sums.LogSum, logSumExp, lost - lost == 0f ? lost : 0f, sums.Entropy);
            }
        }
    }

    /// <summary>The gradient of a row's logits: dz = p (u_logSumExp − u_logProb − u_entropy (ln p + H)) wherever the target isn't.</summary>
    public static void FromLogitsBackward(LogProbsBackwardArguments a, GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(SharedSums), kept = SharedMemory.Allocate<float>(KeptLogits);
        ArrayView<float> gradient = a.Gradient.Memory;
        for (long row = Grid.IdxX; row < a.Rows.Count; row += Grid.DimX)
        {
            long target = a.Rows.Target(row), to = a.Gradient.At(row, 0);
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                bool ignored = target == a.Rows.IgnoreTarget;
                for (long j = Group.IdxX; j < a.Rows.Vocabulary; j += GroupSize)
                    gradient[to + j] = ignored ? 0f : float.NaN;
                if (Group.IdxX == 0 && !ignored)
                    faults.Report(GpuFaultSource.Targets, target, a.Rows.Vocabulary);
                continue;
            }
            GpuLogitSums sums = Sums(a.Rows, row, shared, kept, keeps: true);
            Upstream upstream = new(OrZero(a.OfLogProb, row), OrZero(a.OfLogSumExp, row), OrZero(a.OfEntropy, row));
            // A thread takes the logits that it kept itself.
            for (int j = Group.IdxX; j < a.Rows.Vocabulary; j += GroupSize)
                gradient[to + j] = upstream.Of(kept[j] - sums.Shift - sums.LogSum, sums.Entropy, j == target);
            Group.Barrier(); // for PoCL 6, whose code corrupts memory without; nothing here needs it
        }
    }

    /// <summary>The same where the sums are saved and what rounding took from the log-sum-exp.</summary>
    public static void FromLogitsBackwardOfSaved(LogProbsBackwardArguments a, GpuFaults faults)
    {
        ArrayView<long> sharedTarget = SharedMemory.Allocate<long>(1);
        ArrayView<float> terms = SharedMemory.Allocate<float>(RowTerms);
        ArrayView<float> logits = a.Rows.Logits.Memory, gradient = a.Gradient.Memory;
        for (long item = Grid.IdxX; item < a.Rows.Count * a.Slices; item += Grid.DimX)
        {
            long row = item / a.Slices, start = (item - row * a.Slices) * SliceLogits, end = start + SliceLogits;
            end = end < a.Rows.Vocabulary ? end : a.Rows.Vocabulary;
            long from = a.Rows.Logits.At(row, 0), to = a.Gradient.At(row, 0);
            if (Group.IdxX == 0)
            {
                float rounded = a.LogSumExp[row, 0];
                sharedTarget[0] = a.Rows.Target(row);
                terms[0] = rounded;
                terms[1] = a.LogSumExp[row, 1] + (rounded - rounded); // without a distribution there is no gradient
                terms[2] = OrZero(a.Entropy, row);
                terms[3] = OrZero(a.OfLogProb, row);
                terms[4] = OrZero(a.OfLogSumExp, row);
                terms[5] = OrZero(a.OfEntropy, row);
            }
            Group.Barrier();
            long target = sharedTarget[0];
            float logSumExp = terms[0], remainder = terms[1], entropy = terms[2];
            Upstream upstream = new(terms[3], terms[4], terms[5]);
            Group.Barrier(); // the next slice replaces the terms
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                bool ignored = target == a.Rows.IgnoreTarget;
                for (long j = start + Group.IdxX; j < end; j += GroupSize)
                    gradient[to + j] = ignored ? 0f : float.NaN;
                if (Group.IdxX == 0 && start == 0 && !ignored)
                    faults.Report(GpuFaultSource.Targets, target, a.Rows.Vocabulary);
                continue;
            }
            for (long j0 = start + Group.IdxX; j0 < end; j0 += BlockLogits)
            {
                long j1 = j0 + GroupSize, j2 = j1 + GroupSize, j3 = j2 + GroupSize;
                float z0 = logits[from + j0], z1 = 0f, z2 = 0f, z3 = 0f;
                if (j1 < end)
                    z1 = logits[from + j1];
                if (j2 < end)
                    z2 = logits[from + j2];
                if (j3 < end)
                    z3 = logits[from + j3];
                gradient[to + j0] = upstream.Of(z0 - logSumExp - remainder, entropy, j0 == target);
                if (j1 < end)
                    gradient[to + j1] = upstream.Of(z1 - logSumExp - remainder, entropy, j1 == target);
                if (j2 < end)
                    gradient[to + j2] = upstream.Of(z2 - logSumExp - remainder, entropy, j2 == target);
                if (j3 < end)
                    gradient[to + j3] = upstream.Of(z3 - logSumExp - remainder, entropy, j3 == target);
            }
        }
    }

    // What the backward pass knows of a row whose sums are saved: log-sum-exp, what rounding took, entropy, three gradients.
    private const int RowTerms = 6;

    // Three arrays of a float a thread.
    private const int SharedSums = 3 * GroupSize;

    /// <summary>The sums of a row, in every thread; its logits are kept if that is asked for.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static GpuLogitSums Sums(in GpuLogitRows rows, long row, ArrayView<float> shared, ArrayView<float> kept, bool keeps)
    {
        ThreadSums own = new(float.NegativeInfinity, 0f, 0f, 0f, 0f);
        ArrayView<float> memory = rows.Logits.Memory;
        long at = rows.Logits.At(row, 0);
        for (long j0 = Group.IdxX; j0 < rows.Vocabulary; j0 += BlockLogits)
        {
            long j1 = j0 + GroupSize, j2 = j1 + GroupSize, j3 = j2 + GroupSize;
            float z0 = memory[at + j0], z1 = float.NegativeInfinity, z2 = float.NegativeInfinity, z3 = float.NegativeInfinity;
            if (j1 < rows.Vocabulary)
                z1 = memory[at + j1];
            if (j2 < rows.Vocabulary)
                z2 = memory[at + j2];
            if (j3 < rows.Vocabulary)
                z3 = memory[at + j3];
            if (keeps)
            {
                kept[(int)j0] = z0;
                kept[(int)j1] = z1;
                kept[(int)j2] = z2;
                kept[(int)j3] = z3;
            }
            float low = z0 > z1 ? z0 : z1, high = z2 > z3 ? z2 : z3, largest = low > high ? low : high;
            if (largest > own.Max)
                own = own.Moved(largest);
            own = own.Plus(z0).Plus(z1).Plus(z2).Plus(z3);
        }

        int thread = Group.IdxX;
        shared[thread] = own.Max;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half && shared[thread + half] > shared[thread])
                shared[thread] = shared[thread + half];
        }
        Group.Barrier();
        float max = shared[0];
        Group.Barrier();
        if (max > own.Max)
            own = own.Moved(max);
        shared[thread] = own.Ones;
        shared[thread + GroupSize] = own.Rest;
        shared[thread + 2 * GroupSize] = own.Weighted;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
            {
                shared[thread] += shared[thread + half];
                shared[thread + GroupSize] += shared[thread + GroupSize + half];
                shared[thread + 2 * GroupSize] += shared[thread + 2 * GroupSize + half];
            }
        }
        Group.Barrier();
        GpuLogitSums sums = new(max == float.PositiveInfinity || max == float.NegativeInfinity ? 0f : max, shared[0], shared[GroupSize], shared[2 * GroupSize]);
        Group.Barrier();
        return sums;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float OrZero(in GpuTensor<float> vector, long row) => vector.IsPresent ? vector[row] : 0f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(in LogProbsArguments a, long row, float logProb, float logSumExp, float remainder, float entropy)
    {
        if (a.LogProb.IsPresent)
            a.LogProb[row] = logProb;
        if (a.LogSumExp.IsPresent)
            a.LogSumExp[row] = logSumExp;
        if (a.HasRemainder != 0)
            a.LogSumExp[row, 1] = remainder;
        if (a.Entropy.IsPresent)
            a.Entropy[row] = entropy;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Bounded(float t) => t < LowestExponent ? LowestExponent : t; // NaN stays, the constant being on the right

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Exp(float t) => Real32.Exp(new(t)).Value;

    /// <summary>What one thread saw: Σ e^t and Σ e^t t, t = z − shift, where the shift is the largest logit so far, or 0 where that is infinite.</summary>
    /// <remarks>The ones of the largest logit are counted apart: a peaked row's small terms would drown in them.</remarks>
    private readonly struct ThreadSums(float max, float shift, float ones, float rest, float weighted)
    {
        private readonly float max = max, shift = shift, ones = ones, rest = rest, weighted = weighted;

        public float Max => max;

        public float Ones => ones;

        public float Rest => rest;

        public float Weighted => weighted;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ThreadSums Plus(float logit)
        {
            float t = Bounded(logit - shift), power = Exp(t);
            return new(max, shift, ones + (t == 0f ? 1f : 0f), rest + (t == 0f ? 0f : power), weighted + power * t);
        }

        /// <summary>The same relative to a larger maximum.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ThreadSums Moved(float largest)
        {
            // ∞ − ∞ would be NaN where the log-sum-exp is ∞.
            float to = largest == float.PositiveInfinity ? 0f : largest;
            if (max == float.NegativeInfinity)
                return new(largest, to, ones, rest, weighted);
            float moved = Bounded(shift - to), factor = Exp(moved), sum = rest + ones;
            return new(largest, to, 0f, sum * factor, (weighted + sum * moved) * factor);
        }
    }

    /// <summary>A row's shift, logarithm of its Σ e^(z − shift), and entropy.</summary>
    private readonly struct GpuLogitSums
    {
        public readonly float Shift, LogSum, Entropy;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public GpuLogitSums(float shift, float ones, float rest, float weighted)
        {
            Shift = shift;
            LogSum = Real32.Log1p(new(ones - 1f + rest)).Value;
            Entropy = LogSum - weighted / (ones + rest); // Σ p (ln S − t), with p = e^t / S
        }
    }

    /// <summary>The three gradients that arrive at a row.</summary>
    private readonly struct Upstream(float logProb, float logSumExp, float entropy)
    {
        private readonly float logProb = logProb, logSumExp = logSumExp, entropy = entropy;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float OfLogit(float logP, float rowEntropy)
        {
            float bounded = Bounded(logP);
            return Exp(bounded) * (logSumExp - logProb - entropy * (bounded + rowEntropy));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float Of(float logP, float rowEntropy, bool isTarget) => isTarget ? OfTarget(logP, rowEntropy) : OfLogit(logP, rowEntropy);

        /// <summary>At the target, p − 1 is what counts: it keeps its digits where p is nearly 1.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float OfTarget(float logP, float rowEntropy)
        {
            float bounded = Bounded(logP);
            return -logProb * Real32.Expm1(new(logP)).Value + Exp(bounded) * (logSumExp - entropy * (bounded + rowEntropy));
        }
    }
}
