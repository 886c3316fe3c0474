using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A group takes a row, its threads neighbouring logits: each thread keeps the largest logit that it saw and sums relative to it, and the group brings them
// to one maximum and adds them, halves to halves. So the forward pass reads each logit once.
//
// The backward pass needs what the sums gave. If what rounding took from the log-sum-exp was saved beside it, each logit is read once and replaced, by any group: a
// row is cut into slices. Rows of shaped logits whose log-sum-exp is too large for that, or that have a gradient of Σ p², are left to a second kernel, which reads a row twice.
// A float32 log-sum-exp alone is off by up to |logSumExp| · 2^-24, and every probability with it; at logits around 10,000 that is a thousand times what the contract allows. Then a group forms
// the sums again: it reads the row, keeps all of it in shared memory, and writes the gradient. So each logit is read once here too. A row that is longer than what shared memory keeps is the second
// kernel's: read twice, it costs 1.5 times its bytes.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        if (IsShaped(problem) || outputs.SumOfSquares.IsPresent || outputs.Argmax.IsPresent || outputs.MeanLogit.IsPresent)
            LogProbsFromLogits<ShapedLogits>(problem, outputs);
        else
            LogProbsFromLogits<PlainLogits>(problem, outputs);
    }

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        bool isKept = (problem.ValidVocabulary ?? problem.Logits.Length(1)) <= LogProbsSize.KeptLogits;
        if (IsShaped(problem) || upstream.SumOfSquares.IsPresent || upstream.MeanLogit.IsPresent || (saved.LogSumExp.Rank == 1 && !isKept))
            LogProbsFromLogitsBackward<ShapedLogits>(problem, saved, upstream, logitsGradient);
        else
            LogProbsFromLogitsBackward<PlainLogits>(problem, saved, upstream, logitsGradient);
    }

    private static bool IsShaped(in LogitsProblem problem) =>
        problem.Logits.Type != ElementType.Float32 || problem.Bias.IsPresent || problem.Softcap is not null || problem.Temperature != 1
        || (problem.ValidVocabulary is { } valid && valid != problem.Logits.Length(1));

    private void LogProbsFromLogits<TLogits>(in LogitsProblem problem, in TokenOutputs outputs) where TLogits : struct, IGpuLogits<TLogits>
    {
        TokenOutputs others = outputs;
        others.TopLogProbs = others.TopTokens = default;
        if (outputs.TopLogProbs.IsPresent)
            TopTokens<TLogits>(problem, outputs);
        LogProbsArguments<TLogits> arguments = new(this, problem, outputs);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count > 0 && others.IsAnyPresent)
            Queue.Launch(LogProbsKernels<TLogits>.FromLogits, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, arguments, Queue.Faults);
    }

    private void LogProbsFromLogitsBackward<TLogits>(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient) where TLogits : struct, IGpuLogits<TLogits>
    {
        LogProbsBackwardArguments<TLogits> arguments = new(this, problem, saved, upstream, logitsGradient);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count == 0)
            return;
        bool isSaved = arguments.HasRemainder != 0, isKept = arguments.Rows.Vocabulary <= LogProbsSize.KeptLogits;
        if (isSaved)
            Queue.Launch(LogProbsKernels<TLogits>.FromLogitsBackwardOfSaved, LogProbsSize.Groups(arguments.Rows.Count * arguments.Slices), LogProbsSize.GroupSize, arguments, Queue.Faults);
        else if (isKept)
            Queue.Launch(LogProbsKernels<TLogits>.FromLogitsBackward, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, arguments, Queue.Faults);
        if ((isSaved || !isKept) && arguments is LogProbsBackwardArguments<ShapedLogits> shaped)
            Queue.Launch(FarLogitKernels.FromLogitsBackward, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, shaped, Queue.Faults);
    }
}

/// <summary>The logits of a kernel's argument, and which token came at each row.</summary>
internal readonly struct GpuLogitRows<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly TLogits Logits;
    public readonly GpuTensor<int> Targets;
    public readonly GpuTensor<long> LongTargets;
    public readonly long Count, IgnoreTarget;

    /// <summary>The weights of the mean logit; absent for 1.</summary>
    public readonly GpuTensor<float> MeanWeights;

    /// <summary>How many columns count, the first ones, and how many there are.</summary>
    public readonly long Vocabulary, Columns;

    public GpuLogitRows(GpuDevice device, in LogitsProblem problem)
    {
        bool areLong = problem.Targets.Type == ElementType.Int64;
        Logits = TLogits.Of(device, problem);
        Targets = new(device, areLong ? default : problem.Targets, "problem.Targets");
        LongTargets = new(device, areLong ? problem.Targets : default, "problem.Targets");
        MeanWeights = new(device, problem.MeanWeights, "problem.MeanWeights");
        Count = problem.Logits.Length(0);
        Columns = problem.Logits.Length(1);
        Vocabulary = problem.ValidVocabulary ?? Columns;
        IgnoreTarget = problem.IgnoreTarget;
    }

    public long Target(long row) => LongTargets.IsPresent ? LongTargets[row] : Targets[row];

    public bool IsOutside(long target) => target < 0 || target >= Vocabulary;

    public float MeanWeight(long column) => MeanWeights.IsPresent ? MeanWeights[column] : 1f;
}

/// <summary>What the forward kernel reads and writes.</summary>
internal readonly struct LogProbsArguments<TLogits>(GpuDevice device, in LogitsProblem problem, in TokenOutputs outputs) where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly GpuLogitRows<TLogits> Rows = new(device, problem);
    public readonly GpuTensor<float> LogProb = new(device, outputs.LogProb, "outputs.LogProb");
    public readonly GpuTensor<float> LogSumExp = new(device, outputs.LogSumExp, "outputs.LogSumExp");
    public readonly int HasRemainder = outputs.LogSumExp.Rank == 2 ? 1 : 0;
    public readonly GpuTensor<float> Entropy = new(device, outputs.Entropy, "outputs.Entropy");

    // What is asked for besides only kernels of shaped logits compute.
    public readonly GpuTensor<float> SumOfSquares = new(device, outputs.SumOfSquares, "outputs.SumOfSquares");
    public readonly GpuTensor<float> MeanLogit = new(device, outputs.MeanLogit, "outputs.MeanLogit");
    public readonly GpuTensor<int> Argmax = new(device, outputs.Argmax.IsPresent && outputs.Argmax.Type == ElementType.Int32 ? outputs.Argmax : default, "outputs.Argmax");
    public readonly GpuTensor<long> LongArgmax = new(device, outputs.Argmax.IsPresent && outputs.Argmax.Type == ElementType.Int64 ? outputs.Argmax : default, "outputs.Argmax");
}

/// <summary>What the backward kernel reads and writes.</summary>
internal readonly struct LogProbsBackwardArguments<TLogits>(GpuDevice device, in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly GpuLogitRows<TLogits> Rows = new(device, problem);
    public readonly GpuTensor<float> LogSumExp = new(device, saved.LogSumExp, "saved.LogSumExp");
    public readonly int HasRemainder = saved.LogSumExp.Rank == 2 ? 1 : 0;
    public readonly GpuTensor<float> Entropy = new(device, saved.Entropy, "saved.Entropy");
    public readonly GpuTensor<float> OfLogProb = new(device, upstream.LogProb, "upstream.LogProb");
    public readonly GpuTensor<float> OfLogSumExp = new(device, upstream.LogSumExp, "upstream.LogSumExp");
    public readonly GpuTensor<float> OfEntropy = new(device, upstream.Entropy, "upstream.Entropy");
    public readonly GpuTensor<float> OfSquares = new(device, upstream.SumOfSquares, "upstream.SumOfSquares");
    public readonly GpuTensor<float> OfMean = new(device, upstream.MeanLogit, "upstream.MeanLogit");
    public readonly GpuStoredRows Gradient = new(device, logitsGradient, "logitsGradient");

    /// <summary>Into how many parts a row is cut where its sums are saved.</summary>
    public readonly long Slices = (problem.Logits.Length(1) + LogProbsSize.SliceLogits - 1) / LogProbsSize.SliceLogits;
}

/// <summary>How the kernels' work is cut.</summary>
internal static class LogProbsSize
{
    public const int GroupSize = 256;

    // A thread takes so many logits at a time, a group's width apart: their loads are under way together, and they share one look at the maximum.
    private const int Logits = 4;

    public const int BlockLogits = Logits * GroupSize;

    /// <summary>Logits of a row whose sums aren't saved, which stay in shared memory until their gradient is written: with the sums 47 of the 48 KB that a kernel may declare, or all of them.</summary>
    public const int KeptLogits = 11 * BlockLogits;

    /// <summary>Logits of a row whose sums are saved that a group takes: enough to make little of what is read for the row.</summary>
    public const int SliceLogits = 4 * BlockLogits;

    // Beyond so many, a group takes several rows or slices.
    private const long MaximumGroups = 1 << 20;

    public static int Groups(long rows) => (int)Math.Min(rows, MaximumGroups);
}

/// <summary>What is left of a backward pass with saved sums, and all of one without them whose rows are longer than what is kept.</summary>
internal static class FarLogitKernels
{
    public const int GroupSize = LogProbsSize.GroupSize;

    /// <summary>The gradient of the rows whose saved sums are of no use. A kernel apart: in the other, where few rows come to it, so many registers would let half as many threads run.</summary>
    public static void FromLogitsBackward(LogProbsBackwardArguments<ShapedLogits> a, GpuFaults faults) => LogProbsKernels<ShapedLogits>.FromFarLogitsBackward(a, faults);
}

/// <typeparam name="TLogits">How logits are read.</typeparam>
internal static class LogProbsKernels<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    public const int GroupSize = LogProbsSize.GroupSize;

    // e to this power and below is 0 in float32. The bound leaves −∞ out of the entropy: e^t is 0 there, and 0 · t must be.
    private const float LowestExponent = -104f;

    // Up to here float32 has every integer, and a log-sum-exp L with what rounding took says ln p to 2⁻²⁴. What it says of p is off by e^(|L| 2⁻⁴⁸), which of larger ones could be anything:
    // where z is scaled u, such a row's sums are formed again.
    private const float LargestNear = 1 << 24;

    /// <summary>Log-prob, log-sum-exp and entropy of a row, and of shaped logits Σ p², the mean and the largest.</summary>
    public static void FromLogits(LogProbsArguments<TLogits> a, GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(SharedSums);
        ArrayView<long> places = default;
        if (TLogits.IsShaped)
            places = SharedMemory.Allocate<long>(GroupSize);
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
                if (!(sums.Total >= 0f) && (a.Argmax.IsPresent || a.LongArgmax.IsPresent))
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
            long target = a.Rows.Target(row), to = At(a, row);
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
                sharedTarget[0] = a.Rows.Target(row);
                if (TLogits.IsShaped)
                {
                    terms[6] = unit * OrZero(a.OfMean, row) / a.Rows.Vocabulary;
                    terms[7] = IsKnown(a, row) ? 1f : 0f;
                    // The u of which z is the log-sum-exp, or nearly so: what is off is taken from z afterwards.
                    float anchor = Bounded(rounded / a.Rows.Logits.Scale, float.MaxValue);
                    ScaledLogit scaled = new(a.Rows.Logits.Scale, a.Rows.Logits.ScaleLost, anchor);
                    remainder += rounded - scaled.Rounded - scaled.Lost;
                    rounded = anchor;
                }
                terms[0] = rounded;
                terms[1] = remainder + (rounded - rounded); // without a distribution there is no gradient
                terms[2] = a.OfEntropy.IsPresent ? OrZero(a.Entropy, row) : 0f;
                terms[3] = unit * OrZero(a.OfLogProb, row);
                terms[4] = unit * OrZero(a.OfLogSumExp, row);
                terms[5] = unit * OrZero(a.OfEntropy, row);
            }
            Group.Barrier();
            long target = sharedTarget[0];
            float shift = terms[0], further = terms[1], entropy = terms[2];
            Upstream upstream = new(terms[3], terms[4], terms[5]);
            OtherSlopes others = default;
            bool isKnown = true;
            if (TLogits.IsShaped)
            {
                others = new(0f, 0f, 0f, terms[6]);
                isKnown = terms[7] != 0f;
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
                FourLogits z = a.Rows.Logits.ReadFour(from, j0, GroupSize, counted);
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
            long target = a.Rows.Target(row), from = a.Rows.Logits.At(row), to = At(a, row);
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

    // Whether what is saved of a row is all that its gradient needs: there are no squares.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsKnown(in LogProbsBackwardArguments<TLogits> a, long row)
    {
        float near = 0f;
        if (a.HasRemainder != 0)
            near = MathF.Abs(a.LogSumExp[row, 0]) <= LargestNear ? 1f : 0f;
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
    private static int RowTerms => TLogits.IsShaped ? 8 : 6;

    // Arrays of a float a thread: of shaped logits with those kept all of the 48 KB.
    internal static int SharedSums => (TLogits.IsShaped ? 4 : 3) * GroupSize;

    // z of a difference of two u.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static float Scaled(in GpuLogitRows<TLogits> rows, float difference) => TLogits.IsShaped ? rows.Logits.Scale * difference : difference;

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

    /// <summary>The sums of a row, in every thread; its logits are kept if that is asked for.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static GpuLogitSums Sums(in GpuLogitRows<TLogits> rows, long row, ArrayView<float> shared, ArrayView<float> kept, ArrayView<long> places, bool keeps, bool finds, bool totals)
    {
        ThreadSums own = new(float.NegativeInfinity, 0f, 0f, 0f, 0f, 0f);
        // Where all are −∞ the first one is the largest.
        long place = Group.IdxX;
        float logits = 0f;
        long at = rows.Logits.At(row);
        for (long j0 = Group.IdxX; j0 < rows.Vocabulary; j0 += LogProbsSize.BlockLogits)
        {
            FourLogits z = rows.Logits.ReadFour(at, j0, GroupSize, rows.Vocabulary);
            if (keeps)
            {
                kept[(int)j0] = z.First;
                kept[(int)j0 + GroupSize] = z.Second;
                kept[(int)j0 + 2 * GroupSize] = z.Third;
                kept[(int)j0 + 3 * GroupSize] = z.Fourth;
            }
            float largest = z.Largest;
            if (largest > own.Max)
            {
                own = own.Moved(rows, largest);
                if (finds)
                    place = j0 + (z.First == largest ? 0 : z.Second == largest ? GroupSize : z.Third == largest ? 2 * GroupSize : 3 * GroupSize);
            }
            if (totals)
                logits += Weighted(rows, z.First, j0) + Weighted(rows, z.Second, j0 + GroupSize) + Weighted(rows, z.Third, j0 + 2 * GroupSize) + Weighted(rows, z.Fourth, j0 + 3 * GroupSize);
            own = own.Plus(rows, z.First).Plus(rows, z.Second).Plus(rows, z.Third).Plus(rows, z.Fourth);
        }

        int thread = Group.IdxX;
        shared[thread] = own.Max;
        if (finds)
            places[thread] = place;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (finds && thread < half && (shared[thread + half] > shared[thread] || (shared[thread + half] == shared[thread] && places[thread + half] < places[thread])))
                places[thread] = places[thread + half];
            if (thread < half && shared[thread + half] > shared[thread])
                shared[thread] = shared[thread + half];
        }
        Group.Barrier();
        float max = shared[0];
        if (finds)
            place = places[0];
        Group.Barrier();
        if (max > own.Max)
            own = own.Moved(rows, max);
        shared[thread] = own.Ones;
        shared[thread + GroupSize] = own.Rest;
        shared[thread + 2 * GroupSize] = own.Weighted;
        if (TLogits.IsShaped)
            shared[thread + 3 * GroupSize] = own.Squares;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
            {
                shared[thread] += shared[thread + half];
                shared[thread + GroupSize] += shared[thread + GroupSize + half];
                shared[thread + 2 * GroupSize] += shared[thread + 2 * GroupSize + half];
                if (TLogits.IsShaped)
                    shared[thread + 3 * GroupSize] += shared[thread + 3 * GroupSize + half];
            }
        }
        Group.Barrier();
        GpuLogitSums sums = new(max == float.PositiveInfinity || max == float.NegativeInfinity ? 0f : max, shared[0], shared[GroupSize], shared[2 * GroupSize],
            TLogits.IsShaped ? shared[3 * GroupSize] : 0f, place, logits);
        Group.Barrier();
        return sums;
    }

    // What a column adds to the sum of which the mean logit is made, in u: an infinite logit of weight 0 is left out.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Weighted(in GpuLogitRows<TLogits> rows, float u, long column)
    {
        float weight = column < rows.Vocabulary ? rows.MeanWeight(column) : 0f;
        return weight == 0f ? 0f : weight * u;
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
        if (a.Argmax.IsPresent)
            a.Argmax[row] = (int)largest;
        if (a.LongArgmax.IsPresent)
            a.LongArgmax[row] = largest;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Bounded(float t) => t < LowestExponent ? LowestExponent : t; // NaN stays, the constant being on the right

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Bounded(float x, float bound) => x > bound ? bound : x < -bound ? -bound : x;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Exp(float t) => Real32.Exp(new(t)).Value;

    /// <summary>What one thread saw: Σ e^t, Σ e^t t and, of shaped logits, Σ e^2t, t = scale · (u − shift), where the shift is the largest u so far, or 0 where that is infinite.</summary>
    /// <remarks>The ones of the largest logit are counted apart: a peaked row's small terms would drown in them.</remarks>
    private readonly struct ThreadSums(float max, float shift, float ones, float rest, float weighted, float squares)
    {
        private readonly float max = max, shift = shift, ones = ones, rest = rest, weighted = weighted, squares = squares;

        public float Max => max;

        public float Ones => ones;

        public float Rest => rest;

        public float Weighted => weighted;

        /// <summary>Without those of the ones.</summary>
        public float Squares => squares;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ThreadSums Plus(in GpuLogitRows<TLogits> rows, float u)
        {
            float t = Bounded(Scaled(rows, u - shift)), power = Exp(t);
            return new(max, shift, ones + (t == 0f ? 1f : 0f), rest + (t == 0f ? 0f : power), weighted + power * t, TLogits.IsShaped && t != 0f ? squares + power * power : squares);
        }

        /// <summary>The same relative to a larger maximum.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ThreadSums Moved(in GpuLogitRows<TLogits> rows, float largest)
        {
            // ∞ − ∞ would be NaN where the log-sum-exp is ∞.
            float to = largest == float.PositiveInfinity ? 0f : largest;
            if (max == float.NegativeInfinity)
                return new(largest, to, ones, rest, weighted, squares);
            float moved = Bounded(Scaled(rows, shift - to)), factor = Exp(moved), sum = rest + ones;
            return new(largest, to, 0f, sum * factor, (weighted + sum * moved) * factor, TLogits.IsShaped ? (squares + ones) * factor * factor : squares);
        }
    }

    /// <summary>A row's shift, S = Σ e^t with t = scale · (u − shift), its logarithm, and entropy; of shaped logits also Q = Σ p² and what is asked for besides.</summary>
    internal readonly struct GpuLogitSums
    {
        public readonly float Shift, Total, LogSum, Entropy, SumOfSquares;

        /// <summary>p − Q of the largest logit, 1 / S − Q, formed of the small terms: beside a peak p and Q are both 1.</summary>
        public readonly float Peak;

        /// <summary>The first of the largest; a NaN may be passed over.</summary>
        public readonly long Largest;

        /// <summary>Σ w u of this thread's logits alone.</summary>
        public readonly float OwnLogits;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public GpuLogitSums(float shift, float ones, float rest, float weighted, float squares, long largest, float ownLogits)
        {
            Total = ones + rest;
            SumOfSquares = (ones + squares) / Total / Total;
            Peak = (rest - squares) / Total / Total;
            Largest = largest;
            OwnLogits = ownLogits;
            Shift = shift;
            LogSum = Real32.Log1p(new(ones - 1f + rest)).Value;
            Entropy = LogSum - weighted / Total; // Σ p (ln S − t), with p = e^t / S
        }
    }

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
