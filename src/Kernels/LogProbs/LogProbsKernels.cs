using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>What is left of a backward pass with saved sums, and all of one without them whose rows are longer than what is kept.</summary>
internal static class FarLogitKernels
{
    public const int GroupSize = LogProbsSize.GroupSize;

    /// <summary>The gradient of the rows whose saved sums are of no use. A kernel apart: in the other, where few rows come to it, so many registers would let half as many threads run.</summary>
    public static void FromLogitsBackward(LogProbsBackwardArguments<ShapedLogits> a, GpuFaults faults) => LogProbsKernels<ShapedLogits>.FromFarLogitsBackward(a, faults);
}

/// <typeparam name="TLogits">How logits are read.</typeparam>
internal static partial class LogProbsKernels<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    public const int GroupSize = LogProbsSize.GroupSize;

    /// <summary>Log-prob, log-sum-exp and entropy of a row, and of shaped logits Σ p², the mean and the largest.</summary>
    public static void FromLogits(LogProbsArguments<TLogits> a, GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(SharedSums);
        ArrayView<long> places = default;
        if (TLogits.IsShaped)
            places = SharedMemory.Allocate<long>(GroupSize);
        for (long row = Grid.IdxX; row < a.Rows.Count; row += Grid.DimX)
        {
            long target = a.Rows.Targets[row];
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                if (Group.IdxX == 0)
                {
                    bool ignored = target == a.Rows.IgnoreTarget;
                    float result = ignored ? 0f : float.NaN;
                    Store(a, row, result, result, 0f, result);
                    if (TLogits.IsShaped)
                        StoreOthers(a, row, result, result, ignored ? 0 : NoToken);
                    if (!ignored)
                        faults.Report(GpuFaultSource.Targets, target, a.Rows.Vocabulary);
                }
                continue;
            }
            GpuLogitSums sums = Sums(a.Rows, row, shared, shared, places, keeps: false, finds: TLogits.IsShaped, totals: TLogits.IsShaped && a.MeanLogit.IsPresent);
            if (TLogits.IsShaped)
            {
                float mean = 0f;
                if (a.MeanLogit.IsPresent)
                    mean = a.Rows.Logits.Scale * (GroupSums.Sum(shared, GroupSize, sums.OwnLogits) / a.Rows.Vocabulary);
                long largest = sums.Largest;
                if (a.Argmax.IsPresent && !(sums.Total >= 0f))
                    largest = FirstNaN(a.Rows, row, places);
                if (Group.IdxX == 0)
                    StoreOthers(a, row, sums.SumOfSquares, mean, largest);
            }
            if (Group.IdxX == 0)
            {
                float logit = a.Rows.Logits.Read(a.Rows.Logits.At(row), target), shift = sums.Shift, further = sums.LogSum;
                if (TLogits.IsShaped)
                {
                    ScaledLogit scaled = new(a.Rows.Logits.Scale, a.Rows.Logits.ScaleLost, shift);
                    shift = scaled.Rounded;
                    further += scaled.Lost;
                }
                float logSumExp = shift + further, part = logSumExp - shift, lost = shift - (logSumExp - part) + (further - part);
                Store(a, row, Scaled(a.Rows, logit - sums.Shift) - sums.LogSum, logSumExp, lost - lost == 0f ? lost : 0f, sums.Entropy);
            }
        }
    }

    /// <summary>
    /// The gradient of a row's logits: dz = p (u_logSumExp − u_logProb − u_entropy (ln p + H)) wherever the target isn't, of shaped logits also 2 u_squares p (p − Q) + u_mean w / V,
    /// and dx = dz ∂z/∂x.
    /// </summary>
    public static void FromLogitsBackward(LogProbsBackwardArguments<TLogits> a, GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(SharedSums), kept = SharedMemory.Allocate<float>(LogProbsSize.KeptLogits);
        for (long row = Grid.IdxX; row < a.Rows.Count; row += Grid.DimX)
        {
            long target = a.Rows.Targets[row], to = At(a, row);
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                Leave(a, to, 0, a.Rows.Columns, target, faults);
                continue;
            }
            GpuLogitSums sums = Sums(a.Rows, row, shared, kept, default, keeps: true, finds: false, totals: false);
            Upstream upstream = UpstreamOf(a, row);
            OtherSlopes others = default;
            if (TLogits.IsShaped)
                others = OthersOf(a, row, sums);
            // A thread takes the logits that it kept itself.
            for (int j = Group.IdxX; j < a.Rows.Vocabulary; j += GroupSize)
                Write(a, to + j, Gradient(a.Rows, upstream, others, kept[j], sums.Shift, sums.LogSum, sums.Entropy, j, target));
            if (TLogits.IsShaped)
                Clear(a, to, a.Rows.Vocabulary, a.Rows.Columns);
            Group.Barrier(); // for PoCL 6, whose code corrupts memory without; nothing here needs it
        }
    }

    /// <summary>The same where the sums are saved and what rounding took from the log-sum-exp.</summary>
    public static void FromLogitsBackwardOfSaved(LogProbsBackwardArguments<TLogits> a, GpuFaults faults)
    {
        ArrayView<long> sharedTarget = SharedMemory.Allocate<long>(1);
        ArrayView<float> terms = SharedMemory.Allocate<float>(RowTerms);
        for (long item = Grid.IdxX; item < a.Rows.Count * a.Slices; item += Grid.DimX)
        {
            long row = item / a.Slices, start = (item - row * a.Slices) * LogProbsSize.SliceLogits, end = start + LogProbsSize.SliceLogits;
            end = end < a.Rows.Columns ? end : a.Rows.Columns;
            long from = a.Rows.Logits.At(row), to = At(a, row);
            if (Group.IdxX == 0)
            {
                float rounded = a.LogSumExp[row, 0], remainder = a.LogSumExp[row, 1], unit = a.Rows.Logits.Steepest;
                sharedTarget[0] = a.Rows.Targets[row];
                if (TLogits.IsShaped)
                {
                    terms[MeanTerm] = unit * OrZero(a.OfMean, row) / a.Rows.Vocabulary;
                    terms[KnownTerm] = IsKnown(a, row) ? 1f : 0f;
                    // The u of which z is the log-sum-exp, or nearly so: what is off is taken from z afterwards.
                    float anchor = Bounded(rounded / a.Rows.Logits.Scale, float.MaxValue);
                    ScaledLogit scaled = new(a.Rows.Logits.Scale, a.Rows.Logits.ScaleLost, anchor);
                    remainder += rounded - scaled.Rounded - scaled.Lost;
                    rounded = anchor;
                }
                terms[ShiftTerm] = rounded;
                terms[FurtherTerm] = remainder + (rounded - rounded); // without a distribution there is no gradient
                terms[EntropyTerm] = a.OfEntropy.IsPresent ? OrZero(a.Entropy, row) : 0f;
                terms[LogProbTerm] = unit * OrZero(a.OfLogProb, row);
                terms[LogSumExpTerm] = unit * OrZero(a.OfLogSumExp, row);
                terms[OfEntropyTerm] = unit * OrZero(a.OfEntropy, row);
            }
            Group.Barrier();
            long target = sharedTarget[0];
            float shift = terms[ShiftTerm], further = terms[FurtherTerm], entropy = terms[EntropyTerm];
            Upstream upstream = new(terms[LogProbTerm], terms[LogSumExpTerm], terms[OfEntropyTerm]);
            OtherSlopes others = default;
            bool isKnown = true;
            if (TLogits.IsShaped)
            {
                others = new(0f, 0f, 0f, terms[MeanTerm]);
                isKnown = terms[KnownTerm] != 0f;
            }
            Group.Barrier(); // the next slice replaces the terms
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                Leave(a, to, start, end, target, faults);
                continue;
            }
            if (TLogits.IsShaped && !isKnown)
                continue; // of which nothing is written here: its gradient may take the place of its logits, all of which are read first
            long counted = end < a.Rows.Vocabulary ? end : a.Rows.Vocabulary;
            for (long j0 = start + Group.IdxX; j0 < counted; j0 += LogProbsSize.BlockLogits)
            {
                long j1 = j0 + GroupSize, j2 = j1 + GroupSize, j3 = j2 + GroupSize;
                FourNumbers z = a.Rows.Logits.ReadFour(from, j0, GroupSize, counted);
                Write(a, to + j0, Gradient(a.Rows, upstream, others, z.First, shift, further, entropy, j0, target));
                if (j1 < counted)
                    Write(a, to + j1, Gradient(a.Rows, upstream, others, z.Second, shift, further, entropy, j1, target));
                if (j2 < counted)
                    Write(a, to + j2, Gradient(a.Rows, upstream, others, z.Third, shift, further, entropy, j2, target));
                if (j3 < counted)
                    Write(a, to + j3, Gradient(a.Rows, upstream, others, z.Fourth, shift, further, entropy, j3, target));
            }
            if (TLogits.IsShaped)
            {
                Clear(a, to, start > a.Rows.Vocabulary ? start : a.Rows.Vocabulary, end);
                Group.Barrier(); // as above
            }
        }
    }

    /// <summary>The gradient of the rows whose saved sums are of no use: each row is read twice, by one group.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void FromFarLogitsBackward(in LogProbsBackwardArguments<TLogits> a, in GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(SharedSums);
        for (long row = Grid.IdxX; row < a.Rows.Count; row += Grid.DimX)
        {
            long target = a.Rows.Targets[row], from = a.Rows.Logits.At(row), to = At(a, row);
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                if (a.HasRemainder == 0)
                    Leave(a, to, 0, a.Rows.Columns, target, faults);
                continue;
            }
            if (IsKnown(a, row))
                continue;
            GpuLogitSums sums = Sums(a.Rows, row, shared, shared, default, keeps: false, finds: false, totals: false);
            Upstream upstream = UpstreamOf(a, row);
            OtherSlopes others = OthersOf(a, row, sums);
            for (long j = Group.IdxX; j < a.Rows.Vocabulary; j += GroupSize)
                Write(a, to + j, Gradient(a.Rows, upstream, others, a.Rows.Logits.Read(from, j), sums.Shift, sums.LogSum, sums.Entropy, j, target));
            Clear(a, to, a.Rows.Vocabulary, a.Rows.Columns);
            Group.Barrier(); // as above
        }
    }

    // Whether what is saved of a row is all that its gradient needs: there are no squares, and the log-sum-exp L is near. With what rounding took L says ln p to 2⁻²⁴; what it says of p is off by
    // e^(|L| 2⁻⁴⁸), which of larger ones could be anything where z is scaled u.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsKnown(in LogProbsBackwardArguments<TLogits> a, long row)
    {
        float near = 0f;
        if (a.HasRemainder != 0)
            near = MathF.Abs(a.LogSumExp[row, 0]) <= LogSumExp.LargestNear ? 1f : 0f;
        return (OrZero(a.OfSquares, row) == 0f ? near : 0f) != 0f;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Upstream UpstreamOf(in LogProbsBackwardArguments<TLogits> a, long row)
    {
        float unit = a.Rows.Logits.Steepest;
        return new(unit * OrZero(a.OfLogProb, row), unit * OrZero(a.OfLogSumExp, row), unit * OrZero(a.OfEntropy, row));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OtherSlopes OthersOf(in LogProbsBackwardArguments<TLogits> a, long row, in GpuLogitSums sums)
    {
        float unit = a.Rows.Logits.Steepest;
        return new(unit * (2f * OrZero(a.OfSquares, row)), sums.Peak, 1f / sums.Total, unit * OrZero(a.OfMean, row) / a.Rows.Vocabulary);
    }

    // In place of a token, where the target lies outside the vocabulary.
    internal const int NoToken = -1;

    // What the backward pass knows of a row whose sums are saved: what is taken from u and then from z, entropy, three gradients; of shaped logits a fourth, and whether all of this is known.
    private const int ShiftTerm = 0, FurtherTerm = 1, EntropyTerm = 2, LogProbTerm = 3, LogSumExpTerm = 4, OfEntropyTerm = 5, MeanTerm = 6, KnownTerm = 7;

    private static int RowTerms => TLogits.IsShaped ? KnownTerm + 1 : OfEntropyTerm + 1;

    // The gradient at u: ln p is scale · (u − shift) − further.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Gradient(in GpuLogitRows<TLogits> rows, in Upstream upstream, in OtherSlopes others, float u, float shift, float further, float entropy, long column, long target)
    {
        float t = Scaled(rows, u - shift), slope = upstream.Of(t - further, entropy, column == target);
        if (!TLogits.IsShaped)
            return slope;
        if (others.Squares != 0f)
            slope += others.OfSquares(Exp(Bounded(t)));
        if (others.Everywhere != 0f)
            slope += others.Everywhere * rows.MeanWeight(column);
        return slope * rows.Logits.Slope(u);
    }

    // Where the gradient of a row goes, which is float32 where logits are plain.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static long At(in LogProbsBackwardArguments<TLogits> a, long row) => TLogits.IsShaped ? a.Gradient.At(row) : a.Gradient.AtFloat(row);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Write(in LogProbsBackwardArguments<TLogits> a, long at, float slope)
    {
        if (TLogits.IsShaped)
            a.Gradient.Write(at, slope);
        else
            a.Gradient.WriteFloat(at, slope);
    }

    // What becomes of a part of a row whose target is ignored, or lies outside the vocabulary.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Leave(in LogProbsBackwardArguments<TLogits> a, long to, long start, long end, long target, in GpuFaults faults)
    {
        bool ignored = target == a.Rows.IgnoreTarget;
        for (long j = start + Group.IdxX; j < end; j += GroupSize)
            Write(a, to + j, ignored ? 0f : float.NaN);
        if (Group.IdxX == 0 && start == 0 && !ignored)
            faults.Report(GpuFaultSource.Targets, target, a.Rows.Vocabulary);
    }

    // Columns that don't count.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Clear(in LogProbsBackwardArguments<TLogits> a, long to, long start, long end)
    {
        for (long j = start + Group.IdxX; j < end; j += GroupSize)
            Write(a, to + j, 0f);
    }

    /// <summary>The first NaN of a row that has one, in every thread.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static long FirstNaN(in GpuLogitRows<TLogits> rows, long row, ArrayView<long> places)
    {
        int thread = Group.IdxX;
        long at = rows.Logits.At(row), first = rows.Vocabulary;
        for (long j = thread; j < first; j += GroupSize)
        {
            if (float.IsNaN(rows.Logits.Read(at, j)))
                first = j;
        }
        places[thread] = first;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half && places[thread + half] < places[thread])
                places[thread] = places[thread + half];
        }
        Group.Barrier();
        first = places[0];
        Group.Barrier();
        return first;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float OrZero(in GpuTensor<float> vector, long row) => vector.IsPresent ? vector[row] : 0f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(in LogProbsArguments<TLogits> a, long row, float logProb, float logSumExp, float remainder, float entropy)
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
    private static void StoreOthers(in LogProbsArguments<TLogits> a, long row, float squares, float mean, long largest)
    {
        if (a.SumOfSquares.IsPresent)
            a.SumOfSquares[row] = squares;
        if (a.MeanLogit.IsPresent)
            a.MeanLogit[row] = mean;
        a.Argmax.Set(row, largest);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Bounded(float x, float bound) => x > bound ? bound : x < -bound ? -bound : x;

    /// <summary>2 u_squares and u_mean / V of a row, times ∂z/∂x of a small x, and what p − Q is made of: 1 / S − Q and 1 / S.</summary>
    private readonly struct OtherSlopes(float squares, float peak, float perTotal, float everywhere)
    {
        private readonly float peak = peak, perTotal = perTotal;

        public readonly float Squares = squares, Everywhere = everywhere;

        /// <summary>2 u_squares p (p − Q), with p = power / S.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float OfSquares(float power) => Squares * (power * perTotal) * ((power - 1f) * perTotal + peak);
    }

    /// <summary>The three gradients that arrive at a row, times ∂z/∂x of a small x.</summary>
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
