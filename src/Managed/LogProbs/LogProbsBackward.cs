using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient) =>
        FromLogitsBackward(problem, null, saved, default, upstream, logitsGradient);

    protected internal override void LogProbsShardBackward(in LogitsProblem problem, VocabularyShard shard, TensorView merged, in TokenUpstream upstream, TensorView logitsGradient) =>
        FromLogitsBackward(problem, shard, default, merged, upstream, logitsGradient);

    private unsafe void FromLogitsBackward(in LogitsProblem problem, VocabularyShard? shard, in TokenSaved saved, TensorView merged, in TokenUpstream upstream, TensorView logitsGradient)
    {
        fixed (byte* logits = problem.Logits, targets = problem.Targets, bias = problem.Bias, meanWeights = problem.MeanWeights, logSumExp = saved.LogSumExp, entropy = saved.Entropy, ofLogProb = upstream.LogProb, ofLogSumExp = upstream.LogSumExp,
            ofEntropy = upstream.Entropy, ofSquares = upstream.SumOfSquares, ofMean = upstream.MeanLogit, gradient = logitsGradient, whole = merged)
        {
            var work = new LogProbsBackwardWork
            {
                Rows = new(logits, targets, bias, meanWeights, problem, shard),
                LogSumExp = new(logSumExp, saved.LogSumExp),
                Entropy = new(entropy, saved.Entropy),
                Merged = new(whole, merged),
                Upstream = new(ofLogProb, ofLogSumExp, ofEntropy, ofSquares, ofMean, upstream),
                Gradient = new(gradient, logitsGradient),
            };
            Run(work, Groups(CheckTargets(work.Rows)));
        }
    }

    /// <summary>The gradient of one row, in place or not.</summary>
    /// <remarks>
    /// A saved log-sum-exp, being a float32, is off by up to |logSumExp|·2⁻²⁴ and every p with it: more than all other errors together. Unless what rounding took
    /// is saved too, the row is read twice, the second time from the cache, and its sums are formed again. Where each power of e
    /// counts only as it is, the first reading leaves the powers where the gradient goes, or of a gradient of 16 bits as many as there is room for. A log-sum-exp beyond 2²⁴ isn't looked at:
    /// relative to the row's own largest logit every power is at most 1.
    /// </remarks>
    private unsafe struct LogProbsBackwardWork : IWork
    {
        // A row that, with the next one, leaves half of a second cache of a megabyte.
        private const int PrefetchedBytes = 1 << 18;

        // How many powers of e are kept where the gradient has no room for them: 64 KiB of stack.
        private const int KeptPowers = 1 << 14;

        public LogitRows Rows;
        public LogSumExpVector LogSumExp;
        public HostVector Entropy;
        public ArrivingGradients Upstream;

        /// <summary>The sums of the whole vocabulary, if the row is a slice of it.</summary>
        public PartialRows Merged;
        public GradientRows Gradient;

        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint rows = RowsPerItem(Rows.Count), end = Math.Min((item + 1) * rows, Rows.Count);
            for (nint row = item * rows; row < end; row++)
                Differentiate<TLanes>(row, row + 1 < end);
        }

        [SkipLocalsInit]
        private readonly void Differentiate<TLanes>(nint row, bool goesOn) where TLanes : struct, ILanes<TLanes>
        {
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                Gradient.Clear(row, 0, Rows.Vocabulary + Rows.Tail);
                return;
            }
            int length = LogitSums<TLanes>.Block;
            float* space = stackalloc float[StripMemory.Aligned(3 * length)], block = StripMemory.Align(space), slopes = block + length;
            Arriving arriving = Upstream[row];
            nint column = Rows.Column(target);
            double logit = column < 0 ? double.NegativeInfinity : Rows.Shape.Scale * Rows.At<TLanes>(row, column);
            if (KeepsPowers(row, arriving))
                DifferentiatePowers<TLanes>(row, column, logit, arriving, block, slopes);
            else
                Differentiate<TLanes>(row, column, logit, arriving, goesOn, block, slopes);
            Gradient.Clear(row, Rows.Vocabulary, Rows.Tail);
        }

        private readonly void Differentiate<TLanes>(nint row, nint column, double logit, in Arriving arriving, bool goesOn, float* block, float* slopes) where TLanes : struct, ILanes<TLanes>
        {
            // A mean with weights is added afterwards.
            float ofMean = Rows.MeanWeights == null ? 0 : arriving.MeanLogit / Rows.Shard.Whole;
            // What costs most to compute twice is kept where the gradient goes, but for what isn't a whole block: that stays in the block.
            float* kept = Rows.Shape.IsCapped && Gradient.IsFloat32 && ofMean == 0 ? Gradient.Row(row) : null;
            VocabularySums merged = Merged.IsPresent ? Merged[row] : default;
            // Saved sums have no squares.
            bool known = Merged.IsPresent ? merged.IsNear : LogSumExp.HasRemainder && LogSumExp.IsNear(row) && arriving.SumOfSquares == 0;
            RowSums sums = !known ? LogitSums<TLanes>.Of(Rows, row, arriving.Sought, block, null, kept)
                : Merged.IsPresent ? merged.RowOf(Rows.Shape.Scale) : LogSumExp.Sums(row, Entropy.OrZero(row), Rows.Shape.Scale);
            if (Merged.IsPresent && !known)
                sums = merged.RowOf(sums);
            var slope = new LogitSlope(sums, ofMean == 0 ? arriving : arriving with { MeanLogit = 0 }, Rows.Shard.Whole);

            // What can be read where it lies and written where it belongs is one piece.
            nint whole = Rows.Vocabulary - Rows.Vocabulary % TLanes.Count;
            nint length = Rows.IsPlain && Gradient.IsFloat32 && ofMean == 0 && whole > 0 ? whole : LogitSums<TLanes>.Block;
            // What is only read and written the processor asks for by itself.
            bool streams = Rows.IsPlain && Rows.Type == ElementType.Float32, asksAhead = goesOn && Rows.Vocabulary * Rows.Type.Size() <= PrefetchedBytes;
            for (nint start = 0; start < Rows.Vocabulary; start += length)
            {
                nint count = Math.Min(length, Rows.Vocabulary - start), padded = Padded<TLanes>(count);
                StoredLogits u = !known && kept != null ? new((byte*)(count == length ? kept + start : block), ElementType.Float32) : Rows.Read<TLanes>(row, start, count, block);
                bool apart = !Gradient.IsFloat32 || count != padded || ofMean != 0;
                slope.Differentiate<TLanes>(u, Rows.Shape, apart ? slopes : Gradient.Row(row) + start, padded, asksAhead ? Rows.Row(row + 1) + start * Rows.Type.Size() : null,
                    apart || streams ? null : Ahead<TLanes>(row, start));
                if (ofMean != 0)
                    Rows.AddMean(ofMean, start, count, block, slopes);
                if (apart)
                    Gradient.Write<TLanes>(slopes, row, start, count);
            }
            if (column < 0)
                return;
            double atTarget = slope.AtTarget(logit) + (ofMean == 0 ? 0 : ofMean * Rows.MeanWeights[column]);
            *slopes = (float)(atTarget * Rows.Shape.Slope(logit));
            Gradient.Write<Real32>(slopes, row, column, 1);
        }

        // Whether each power of e counts only as it is.
        private readonly bool KeepsPowers(nint row, in Arriving arriving) =>
            !Merged.IsPresent && !LogSumExp.HasRemainder && LogSumExp.IsNear(row) && arriving is { Entropy: 0, SumOfSquares: 0, MeanLogit: 0 };

        [SkipLocalsInit]
        private readonly void DifferentiatePowers<TLanes>(nint row, nint target, double logit, in Arriving arriving, float* block, float* slopes) where TLanes : struct, ILanes<TLanes>
        {
            float* space = stackalloc float[Gradient.IsFloat32 ? 0 : StripMemory.Aligned(KeptPowers)], kept = Gradient.IsFloat32 ? Gradient.Row(row) : StripMemory.Align(space);
            // Short blocks if they are prepared: meanwhile memory comes that was asked for when the one before was written.
            nint length = LogitSums<TLanes>.Block / (Rows.IsPlain ? 1 : 2), room = Gradient.IsFloat32 ? Rows.Vocabulary : KeptPowers, whole = Math.Min(room, Rows.Vocabulary) / length * length;
            float* last = slopes + LogitSums<TLanes>.Block;
            RowSums near = RowSums.Anchored(Rows.Shape.Scale, LogSumExp[row], 0, 0, 0);
            // Each block has sums of its own, so that few numbers of very different size meet.
            TLanes sums = TLanes.Zero;
            for (nint start = 0; start < Rows.Vocabulary; start += length)
                sums += FormPowers<TLanes>(row, start, Math.Min(length, Rows.Vocabulary - start), target, near.Anchor, block, start < whole ? kept + start : last);

            var slope = new LogitSlope(near with { Sum = Math.Exp(logit - near.Shift) + LogitSums<TLanes>.Total(sums) }, arriving, Rows.Shard.Whole);
            ExponentialRow.Multiply<TLanes>(kept, whole, slope.PerPower(Rows.Shape));
            if (!Gradient.IsFloat32)
                Gradient.Write<TLanes>(kept, row, 0, whole);
            for (nint start = whole; start < Rows.Vocabulary; start += length)
            {
                nint count = Math.Min(length, Rows.Vocabulary - start);
                if (start + length < Rows.Vocabulary)
                    slope.Differentiate<TLanes>(Rows.Read<TLanes>(row, start, count, block), Rows.Shape, slopes, count);
                else
                    ExponentialRow.Multiply<TLanes>(last, Padded<TLanes>(count), slope.PerPower(Rows.Shape));
                Gradient.Write<TLanes>(start + length < Rows.Vocabulary ? slopes : last, row, start, count);
            }
            if (target < 0)
                return;
            *slopes = (float)(slope.AtTarget(logit) * Rows.Shape.Slope(logit));
            Gradient.Write<Real32>(slopes, row, target, 1);
        }

        // Of all but the target: beside its power the others' sum would lose its digits, and where p is nearly 1 they are what p − 1 is made of.
        private readonly TLanes FormPowers<TLanes>(nint row, nint start, nint count, nint target, float anchor, float* block, float* powers) where TLanes : struct, ILanes<TLanes>
        {
            StoredLogits u = Rows.Read<TLanes>(row, start, count, block), next = new(Rows.Row(row) + start * Rows.Type.Size() + LogitSums<TLanes>.PrefetchBytes, Rows.Type);
            if (target >= start && target < start + count)
            {
                Rows.Prepare<TLanes>(row, start, count, block);
                block[target - start] = float.NegativeInfinity;
                u = new((byte*)block, ElementType.Float32);
            }
            return ExponentialRow.Form<TLanes>(u, Rows.Shape, anchor, powers, Padded<TLanes>(count), next, Gradient.IsFloat32 ? Ahead<TLanes>(row, start) : null);
        }

        // What will be written soon of a gradient in float32.
        private readonly float* Ahead<TLanes>(nint row, nint start) where TLanes : struct, ILanes<TLanes> => Gradient.Row(row) + start + LogitSums<TLanes>.PrefetchBytes / sizeof(float);

        private static nint Padded<TLanes>(nint count) where TLanes : struct, ILanes<TLanes> => (count + TLanes.Count - 1) / TLanes.Count * TLanes.Count;
    }
}
