namespace TransformerKernels;

/// <summary>Which tokens form a sequence, and which of them count.</summary>
/// <remarks>Per-token tensors are [tokens], packed, with <see cref="CumulativeLengths"/>; or [sequences, length], padded, without.</remarks>
public ref struct SequenceLayout
{
    private long? ignoreTarget;

    /// <summary>[sequences + 1], int32 or int64, never falling: sequence s is the tokens from entry s up to before entry s + 1. Tokens before the first and after the last belong to none.</summary>
    public TensorView CumulativeLengths { get; set; }

    /// <summary>Shaped as the tokens, Bool: whether a token counts. All if absent.</summary>
    public TensorView Mask { get; set; }

    /// <summary>Shaped as the tokens, int32 or int64: those equal to <see cref="IgnoreTarget"/> don't count. Optional.</summary>
    public TensorView Targets { get; set; }

    /// <summary>See <see cref="Targets"/>; −100 unless set.</summary>
    public long IgnoreTarget
    {
        readonly get => ignoreTarget ?? LogProbs.UsualIgnoreTarget;
        set => ignoreTarget = value;
    }

    /// <summary>Types and shapes. Returns how many sequences there are.</summary>
    internal readonly long Check(ComputeDevice device, in TensorView tokens, string name)
    {
        ReadOnlySpan<ElementType> integers = [ElementType.Int32, ElementType.Int64];
        if (tokens.Rank == 1 && !CumulativeLengths.IsPresent)
            throw new ArgumentNullException("layout.CumulativeLengths", $"layout.CumulativeLengths is required where {name} is of rank 1.");
        if (tokens.Rank == 2 && CumulativeLengths.IsPresent)
            throw new ArgumentException($"layout.CumulativeLengths is set, but {name} has the shape {tokens.ShapeText}: a row is a sequence there.", "layout.CumulativeLengths");
        if (CumulativeLengths.IsPresent)
        {
            Require.Input(device, CumulativeLengths, "layout.CumulativeLengths", integers, -1);
            if (CumulativeLengths.Length(0) == 0)
                throw new ArgumentException("layout.CumulativeLengths is empty; for s sequences it has s + 1 entries.", "layout.CumulativeLengths");
        }
        ReadOnlySpan<long> shape = tokens.Rank == 1 ? [tokens.Length(0)] : [tokens.Length(0), tokens.Length(1)];
        if (Mask.IsPresent)
            Require.Input(device, Mask, "layout.Mask", [ElementType.Bool], shape);
        if (Targets.IsPresent)
            Require.Input(device, Targets, "layout.Targets", integers, shape);
        return CumulativeLengths.IsPresent ? CumulativeLengths.Length(0) - 1 : tokens.Length(0);
    }

    internal readonly void RequireDisjoint(in TensorView written, string name)
    {
        Require.Disjoint(written, name, CumulativeLengths, "layout.CumulativeLengths");
        Require.Disjoint(written, name, Mask, "layout.Mask");
        Require.Disjoint(written, name, Targets, "layout.Targets");
    }
}

/// <summary>Where results per sequence go; absent ones are not computed. All [sequences].</summary>
public ref struct SequenceOutputs
{
    /// <summary>Σ over the tokens that count, float32; 0 if none does.</summary>
    public TensorView Sum { get; set; }

    /// <summary>Σ / count, float32; 0 if no token counts.</summary>
    public TensorView Mean { get; set; }

    /// <summary>How many tokens count, int32 or int64.</summary>
    public TensorView Count { get; set; }
}

/// <summary>The gradients that arrive at results per sequence; zero if absent, but one must be there. All [sequences], float32.</summary>
public ref struct SequenceUpstream
{
    /// <summary>At the sum.</summary>
    public TensorView Sum { get; set; }

    /// <summary>At the mean.</summary>
    public TensorView Mean { get; set; }
}

/// <summary>Sums and means of token log-probs (or of anything else per token) by sequence.</summary>
/// <remarks>
/// Summed in double in the order of the tokens, rounded once; on GPUs in float32 with what rounding took beside it, in an order that the sequence's length fixes, and the mean is the rounded sum divided.
/// What a token holds that doesn't count, NaN included, reaches nothing.
/// </remarks>
public static class SequenceLogProbs
{
    /// <summary>Sums and means of each sequence.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="values">[tokens] or [sequences, length], float32.</param>
    /// <param name="layout">Which tokens form a sequence, and which count.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The cumulative lengths fall, or leave the tokens; on a GPU the sum and the mean of such a sequence become NaN, its count 0, and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void Reduce(ComputeDevice device, TensorView values, in SequenceLayout layout, in SequenceOutputs outputs)
    {
        Require.Device(device);
        RequireTokens(values, nameof(values));
        Require.Input(device, values, nameof(values), values.Rank == 1 ? [-1] : [-1, -1]);
        long sequences = layout.Check(device, values, nameof(values));
        Require.OptionalOutput(device, outputs.Sum, "outputs.Sum", sequences);
        Require.OptionalOutput(device, outputs.Mean, "outputs.Mean", sequences);
        if (outputs.Count.IsPresent)
            Require.Output(device, outputs.Count, "outputs.Count", [ElementType.Int32, ElementType.Int64], sequences);
        Require.Any(outputs.Sum.IsPresent || outputs.Mean.IsPresent || outputs.Count.IsPresent, nameof(outputs), "Sum, Mean, Count");
        Require.Disjoint(outputs.Sum, "outputs.Sum", outputs.Mean, "outputs.Mean");
        Require.Disjoint(outputs.Sum, "outputs.Sum", outputs.Count, "outputs.Count");
        Require.Disjoint(outputs.Mean, "outputs.Mean", outputs.Count, "outputs.Count");
        RequireDisjoint(outputs.Sum, "outputs.Sum", values, layout);
        RequireDisjoint(outputs.Mean, "outputs.Mean", values, layout);
        RequireDisjoint(outputs.Count, "outputs.Count", values, layout);
        device.ReduceSequences(values, layout, outputs);
    }

    /// <summary>The gradient of the tokens: u_sum + u_mean / count at each that counts, 0 at the others.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="layout">As in the forward pass.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="gradient">[tokens] or [sequences, length], float32, overwritten.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The cumulative lengths fall, or leave the tokens; on a GPU the whole gradient becomes NaN then, and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void Backward(ComputeDevice device, in SequenceLayout layout, in SequenceUpstream upstream, TensorView gradient)
    {
        Require.Device(device);
        RequireTokens(gradient, nameof(gradient));
        Require.Output(device, gradient, nameof(gradient), gradient.Rank == 1 ? [-1] : [-1, -1]);
        long sequences = layout.Check(device, gradient, nameof(gradient));
        Require.OptionalInput(device, upstream.Sum, "upstream.Sum", sequences);
        Require.OptionalInput(device, upstream.Mean, "upstream.Mean", sequences);
        Require.Any(upstream.Sum.IsPresent || upstream.Mean.IsPresent, nameof(upstream), "Sum, Mean", verb: "holds");
        layout.RequireDisjoint(gradient, nameof(gradient));
        Require.Disjoint(gradient, nameof(gradient), upstream.Sum, "upstream.Sum");
        Require.Disjoint(gradient, nameof(gradient), upstream.Mean, "upstream.Mean");
        device.SpreadSequences(layout, upstream, gradient);
    }

    private static void RequireTokens(in TensorView tokens, string name)
    {
        if (tokens.IsPresent && tokens.Rank != 1 && tokens.Rank != 2)
            throw new ArgumentException($"{name} has the shape {tokens.ShapeText}; it should be [tokens] or [sequences, length].", name);
    }

    private static void RequireDisjoint(in TensorView written, string name, in TensorView values, in SequenceLayout layout)
    {
        layout.RequireDisjoint(written, name);
        Require.Disjoint(written, name, values, "values");
    }
}

internal sealed partial class CpuDevice
{
    protected internal override unsafe void ReduceSequences(TensorView values, in SequenceLayout layout, in SequenceOutputs outputs)
    {
        fixed (byte* tokens = values, bounds = layout.CumulativeLengths, mask = layout.Mask, targets = layout.Targets, sum = outputs.Sum, mean = outputs.Mean, count = outputs.Count)
        {
            var work = new SequenceWork
            {
                Tokens = new(values, bounds, mask, targets, layout),
                Values = new(tokens, values),
                ValueRow = SequenceTokens.RowStep(values),
                Sum = new(sum, outputs.Sum),
                Mean = new(mean, outputs.Mean),
                Count = new(count, outputs.Count),
            };
            work.Tokens.Check();
            Run(work, work.Tokens.Sequences);
        }
    }

    protected internal override unsafe void SpreadSequences(in SequenceLayout layout, in SequenceUpstream upstream, TensorView gradient)
    {
        fixed (byte* tokens = gradient, bounds = layout.CumulativeLengths, mask = layout.Mask, targets = layout.Targets, ofSum = upstream.Sum, ofMean = upstream.Mean)
        {
            var work = new SequenceWork
            {
                Tokens = new(gradient, bounds, mask, targets, layout),
                Values = new(tokens, gradient),
                ValueRow = SequenceTokens.RowStep(gradient),
                Sum = new(ofSum, upstream.Sum),
                Mean = new(ofMean, upstream.Mean),
                Spreads = true,
            };
            work.Tokens.Check();
            cancellation.ThrowIfCancellationRequested();
            work.ClearOutside();
            Run(work, work.Tokens.Sequences);
        }
    }

    /// <summary>A <see cref="SequenceLayout"/> in pinned memory.</summary>
    private readonly unsafe struct SequenceTokens
    {
        private readonly TokenVector bounds, targets;
        private readonly byte* mask;
        private readonly nint tokens, maskRow, maskStep, targetRow;
        private readonly long ignoreTarget;

        public readonly nint Sequences;

        public SequenceTokens(in TensorView tokens, byte* bounds, byte* mask, byte* targets, in SequenceLayout layout)
        {
            this.bounds = new(bounds, layout.CumulativeLengths);
            this.tokens = (nint)tokens.Length(tokens.Rank - 1);
            Sequences = layout.CumulativeLengths.IsPresent ? (nint)layout.CumulativeLengths.Length(0) - 1 : (nint)tokens.Length(0);
            this.targets = new(targets, layout.Targets);
            targetRow = RowStep(layout.Targets);
            ignoreTarget = layout.IgnoreTarget;
            this.mask = mask;
            maskRow = RowStep(layout.Mask);
            maskStep = layout.Mask.IsPresent ? (nint)layout.Mask.Stride(layout.Mask.Rank - 1) : 0;
        }

        public static nint RowStep(in TensorView tokens) => tokens.IsPresent && tokens.Rank == 2 ? (nint)tokens.Stride(0) : 0;

        /// <summary>The cumulative lengths rise within the tokens.</summary>
        public void Check()
        {
            for (nint i = 0; i <= Sequences && bounds.IsPresent; i++)
                CheckBound(i, i == 0 ? 0 : bounds[i - 1], bounds[i], tokens, "layout.CumulativeLengths");
        }

        public static void CheckBound(nint index, long before, long bound, nint tokens, string name)
        {
            if (bound < before || bound > tokens)
            {
                throw new ArgumentOutOfRangeException(name, bound,
                    $"{name}[{index}] is {bound}; it must lie between {(index == 0 ? "0" : $"the one before, {before},")} and the number of tokens, {tokens}.");
            }
        }

        /// <summary>The tokens of a sequence: where its row begins, and the first and the end in it.</summary>
        public (nint Row, nint Start, nint End) this[nint sequence] => bounds.IsPresent ? (0, (nint)bounds[sequence], (nint)bounds[sequence + 1]) : (sequence, 0, tokens);

        public bool Counts(nint row, nint token) =>
            (mask == null || mask[row * maskRow + token * maskStep] != 0) && (!targets.IsPresent || targets.From(row * targetRow)[token] != ignoreTarget);

        /// <summary>Where the first packed sequence begins and the last one ends, and how many tokens there are; all of them where sequences are rows.</summary>
        public (nint Start, nint End, nint Tokens) Extent => bounds.IsPresent ? ((nint)bounds[0], (nint)bounds[Sequences], tokens) : (0, tokens, tokens);
    }

    /// <summary>An item is a sequence.</summary>
    private unsafe struct SequenceWork : IWork
    {
        public SequenceTokens Tokens;
        public HostVector Values, Sum, Mean;
        public nint ValueRow;
        public TokenVector Count;
        public bool Spreads;

        /// <summary>Zeros for the tokens that belong to no sequence.</summary>
        public readonly void ClearOutside()
        {
            (nint start, nint end, nint tokens) = Tokens.Extent;
            for (nint i = 0; i < start; i++)
                Values[i] = 0;
            for (nint i = end; i < tokens; i++)
                Values[i] = 0;
        }

        public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
        {
            (nint row, nint start, nint end) = Tokens[item];
            HostVector values = Values.From(row * ValueRow);
            double sum = 0;
            long count = 0;
            for (nint i = start; i < end; i++)
            {
                if (!Tokens.Counts(row, i))
                    continue;
                count++;
                sum += Spreads ? 0 : values[i];
            }
            if (Spreads)
            {
                double share = Sum.OrZero(item) + (count == 0 ? 0 : (double)Mean.OrZero(item) / count);
                for (nint i = start; i < end; i++)
                    values[i] = Tokens.Counts(row, i) ? (float)share : 0;
                return;
            }
            Sum.Set(item, (float)sum);
            Mean.Set(item, count == 0 ? 0 : (float)(sum / count));
            Count.Set(item, count);
        }
    }
}
