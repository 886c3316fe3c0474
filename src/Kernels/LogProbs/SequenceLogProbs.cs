using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A group takes a sequence, its threads neighbouring tokens. Not every device has float64, so a thread keeps beside its sum what rounding took from it, and the group
// adds both, halves to halves: as exact as a sum in double, in an order that the sequence's length alone fixes.
//
// Cumulative lengths lie in device memory. A sum reads its own two and is NaN where they are wrong. Wrong ones may give a token to several sequences or to none, so
// before gradients are written one small launch looks at all of them.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void ReduceSequences(TensorView values, in SequenceLayout layout, in SequenceOutputs outputs)
    {
        SequenceSumArguments arguments = new(this, values, layout, outputs);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Sequences.Count > 0)
            Queue.Launch(SequenceKernels.Reduce, LogProbsSize.Groups(arguments.Sequences.Count), SequenceKernels.GroupSize, arguments, Queue.Faults);
    }

    /// <inheritdoc/>
    protected internal override void SpreadSequences(in SequenceLayout layout, in SequenceUpstream upstream, TensorView gradient)
    {
        SequenceSpreadArguments arguments = new(this, layout, upstream, gradient);
        cancellation.ThrowIfCancellationRequested();
        lock (Queue.SumsGate)
        {
            if (arguments.Sequences.ArePacked)
                Queue.Launch(SequenceKernels.Check, 1, SequenceKernels.GroupSize, arguments, Queue.Faults);
            if (gradient.ElementCount > 0)
                Queue.Launch(SequenceKernels.Spread, LogProbsSize.Groups(Math.Max(arguments.Sequences.Count, gradient.ElementCount / SequenceKernels.GroupTokens)), SequenceKernels.GroupSize, arguments);
        }
    }
}

/// <summary>A <see cref="SequenceLayout"/> as kernels read it. Packed tokens are one row.</summary>
internal readonly struct GpuSequences
{
    public readonly long Count, Tokens;

    private readonly GpuIntegers bounds, targets;
    private readonly GpuTensor<byte> mask;
    private readonly long ignoreTarget;

    public GpuSequences(GpuDevice device, in TensorView tokens, in SequenceLayout layout)
    {
        bounds = new(device, layout.CumulativeLengths, "layout.CumulativeLengths");
        targets = new(device, Rows(layout.Targets), "layout.Targets");
        mask = new(device, Rows(layout.Mask), "layout.Mask");
        ignoreTarget = layout.IgnoreTarget;
        Count = layout.CumulativeLengths.IsPresent ? layout.CumulativeLengths.Length(0) - 1 : tokens.Length(0);
        Tokens = tokens.Length(tokens.Rank - 1);
    }

    public bool ArePacked => bounds.IsPresent;

    /// <summary>Whether tokens may not count.</summary>
    public bool AreChosen => mask.IsPresent || targets.IsPresent;

    /// <summary>A cumulative length.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long Bound(long index) => bounds[index];

    /// <summary>The row that a sequence is in.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long Row(long sequence) => ArePacked ? 0 : sequence;

    /// <summary>Where a sequence begins and ends in its row. Two threads read it for their group.</summary>
    /// <param name="sequence">The same in all threads of the group.</param>
    /// <param name="shared">Two numbers.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenRange Range(long sequence, ArrayView<long> shared)
    {
        int thread = Group.IdxX;
        if (thread < 2)
            shared[thread] = ArePacked ? Bound(sequence + thread) : thread * Tokens;
        Group.Barrier();
        TokenRange range = new(shared[0], shared[1]);
        Group.Barrier();
        return range;
    }

    /// <summary>Whether a token, which must be there, counts.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Counts(long row, long token)
    {
        bool counts = true;
        if (mask.IsPresent)
            counts = mask[row, token] != 0;
        if (targets.IsPresent)
            counts = counts && targets[row, token] != ignoreTarget;
        return counts;
    }

    /// <summary>[tokens] as [1, tokens].</summary>
    public static TensorView Rows(TensorView tokens) => tokens.IsPresent && tokens.Rank == 1 && tokens.Owner is { } owner
        ? TensorView.OfBuffer(owner, tokens.Address, tokens.Type, [1, tokens.Length(0)], [0, tokens.Stride(0)])
        : tokens;
}

/// <summary>Tokens from one up to before another.</summary>
internal readonly struct TokenRange(long start, long end)
{
    public readonly long Start = start, End = end;
}

/// <summary>What the kernel of sums reads and writes.</summary>
internal readonly struct SequenceSumArguments
{
    public readonly GpuSequences Sequences;
    public readonly GpuTensor<float> Values, Sum, Mean;
    public readonly GpuIntegers Count;

    public SequenceSumArguments(GpuDevice device, in TensorView values, in SequenceLayout layout, in SequenceOutputs outputs)
    {
        Sequences = new(device, values, layout);
        Values = new(device, GpuSequences.Rows(values), "values");
        Sum = new(device, outputs.Sum, "outputs.Sum");
        Mean = new(device, outputs.Mean, "outputs.Mean");
        Count = new(device, outputs.Count, "outputs.Count");
    }
}

/// <summary>What the kernels of the gradient read and write.</summary>
internal readonly struct SequenceSpreadArguments(GpuDevice device, in SequenceLayout layout, in SequenceUpstream upstream, TensorView gradient)
{
    public readonly GpuSequences Sequences = new(device, gradient, layout);
    public readonly GpuTensor<float> OfSum = new(device, upstream.Sum, "upstream.Sum");
    public readonly GpuTensor<float> OfMean = new(device, upstream.Mean, "upstream.Mean");
    public readonly GpuTensor<float> Gradient = new(device, GpuSequences.Rows(gradient), "gradient");

    /// <summary>How many cumulative lengths are wrong.</summary>
    public readonly ArrayView<long> Wrong = device.Queue.Sums<long>();
}

internal static class SequenceKernels
{
    public const int GroupSize = 256;

    /// <summary>With fewer sequences there is still a group for so many tokens, for those that are in none.</summary>
    public const int GroupTokens = 4 * GroupSize;

    /// <summary>Sum, mean and count of each sequence.</summary>
    public static void Reduce(SequenceSumArguments a, GpuFaults faults)
    {
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize), lost = SharedMemory.Allocate<float>(GroupSize);
        ArrayView<long> shared = SharedMemory.Allocate<long>(GroupSize);
        for (long sequence = Grid.IdxX; sequence < a.Sequences.Count; sequence += Grid.DimX)
        {
            long row = a.Sequences.Row(sequence);
            TokenRange range = a.Sequences.Range(sequence, shared);
            bool begins = range.Start >= 0 && range.Start <= a.Sequences.Tokens;
            if (!begins || range.End < range.Start || range.End > a.Sequences.Tokens)
            {
                if (Group.IdxX == 0)
                {
                    Store(a, sequence, float.NaN, float.NaN, 0);
                    faults.Report(GpuFaultSource.CumulativeLengths, begins ? sequence + 1 : sequence, a.Sequences.Tokens);
                }
                continue;
            }
            CompensatedSum own = new(0f, 0f);
            long count = 0;
            for (long token = range.Start + Group.IdxX; token < range.End; token += GroupSize)
            {
                if (a.Sequences.Counts(row, token))
                {
                    own = own.Plus(a.Values[row, token]);
                    count++;
                }
            }
            count = GroupSums.Sum(shared, GroupSize, count);
            float sum = Sum(sums, lost, own);
            if (Group.IdxX == 0)
                Store(a, sequence, sum, count == 0 ? 0f : sum / count, count);
        }
    }

    /// <summary>Counts the cumulative lengths that fall or leave the tokens.</summary>
    public static void Check(SequenceSpreadArguments a, GpuFaults faults)
    {
        ArrayView<long> shared = SharedMemory.Allocate<long>(GroupSize);
        long wrong = 0;
        for (long i = Group.IdxX; i <= a.Sequences.Count; i += GroupSize)
        {
            long bound = a.Sequences.Bound(i), before = 0;
            if (i > 0)
                before = a.Sequences.Bound(i - 1);
            if (bound < before || bound > a.Sequences.Tokens)
            {
                wrong++;
                if (before >= 0 && before <= a.Sequences.Tokens) // else that one is to blame
                    faults.Report(GpuFaultSource.CumulativeLengths, i, a.Sequences.Tokens);
            }
        }
        wrong = GroupSums.Sum(shared, GroupSize, wrong);
        if (Group.IdxX == 0)
            a.Wrong[0] = wrong;
    }

    /// <summary>The gradient of every token; NaN if a cumulative length is wrong.</summary>
    public static void Spread(SequenceSpreadArguments a)
    {
        ArrayView<long> shared = SharedMemory.Allocate<long>(GroupSize);
        ArrayView<float> shares = SharedMemory.Allocate<float>(1);
        if (a.Sequences.ArePacked)
        {
            if (Group.IdxX == 0)
            {
                shared[0] = a.Wrong[0];
                shared[1] = a.Sequences.Bound(0);
                shared[2] = a.Sequences.Bound(a.Sequences.Count);
            }
            Group.Barrier();
            bool areWrong = shared[0] != 0;
            long first = areWrong ? 0 : shared[1], last = areWrong ? 0 : shared[2];
            Group.Barrier();
            float outside = areWrong ? float.NaN : 0f;
            long thread = (long)Grid.IdxX * GroupSize + Group.IdxX, threads = (long)Grid.DimX * GroupSize;
            for (long token = thread; token < first; token += threads)
                a.Gradient[0, token] = outside;
            for (long token = last + thread; token < a.Sequences.Tokens; token += threads)
                a.Gradient[0, token] = outside;
            if (areWrong)
                return;
        }
        for (long sequence = Grid.IdxX; sequence < a.Sequences.Count; sequence += Grid.DimX)
        {
            long row = a.Sequences.Row(sequence);
            TokenRange range = a.Sequences.Range(sequence, shared);
            long count = range.End - range.Start;
            if (a.OfMean.IsPresent && a.Sequences.AreChosen)
            {
                long own = 0;
                for (long token = range.Start + Group.IdxX; token < range.End; token += GroupSize)
                    own += a.Sequences.Counts(row, token) ? 1 : 0;
                count = GroupSums.Sum(shared, GroupSize, own);
            }
            float share = 0f;
            if (Group.IdxX == 0)
            {
                if (a.OfSum.IsPresent)
                    share = a.OfSum[sequence];
                if (a.OfMean.IsPresent)
                    share += a.OfMean[sequence] / count; // without a token that counts nobody takes it
            }
            share = GroupSums.First(shares, share);
            for (long token = range.Start + Group.IdxX; token < range.End; token += GroupSize)
                a.Gradient[row, token] = a.Sequences.Counts(row, token) ? share : 0f;
            Group.Barrier(); // for PoCL 6, as in the gradient of log-probs; nothing here needs it
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Sum(ArrayView<float> sums, ArrayView<float> lost, CompensatedSum own)
    {
        int thread = Group.IdxX;
        sums[thread] = own.Sum;
        lost[thread] = own.Lost;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
            {
                CompensatedSum both = new CompensatedSum(sums[thread], lost[thread] + lost[thread + half]).Plus(sums[thread + half]);
                sums[thread] = both.Sum;
                lost[thread] = both.Lost;
            }
        }
        Group.Barrier();
        float sum = new CompensatedSum(sums[0], lost[0]).Rounded;
        Group.Barrier();
        return sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(in SequenceSumArguments a, long sequence, float sum, float mean, long count)
    {
        if (a.Sum.IsPresent)
            a.Sum[sequence] = sum;
        if (a.Mean.IsPresent)
            a.Mean[sequence] = mean;
        a.Count.Set(sequence, count);
    }

    /// <summary>A sum in float32 and what rounding took from it (Neumaier 1974, with Knuth's branchless error of an addition).</summary>
    private readonly struct CompensatedSum(float sum, float lost)
    {
        public readonly float Sum = sum, Lost = lost;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public CompensatedSum Plus(float value)
        {
            float next = Sum + value, added = next - Sum;
            return new(next, Lost + (Sum - (next - added) + (value - added)));
        }

        /// <summary>Of an infinite sum nothing was lost.</summary>
        public float Rounded
        {
            [MethodImpl(MethodImplOptions.AggressiveInlining)]
            get => Sum + (Lost - Lost == 0f ? Lost : 0f);
        }
    }
}
