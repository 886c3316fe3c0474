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
    /// A saved log-sum-exp, being a float32, is off by up to |logSumExp|·2⁻²⁵ and every p with it: more than all other errors together. Unless what rounding took
    /// is saved too, the row is read twice, the second time from the cache, and its sums are formed again. Where each power of e
    /// counts only as it is, the first reading leaves the powers where the gradient goes.
    /// </remarks>
    private unsafe struct LogProbsBackwardWork : IWork
    {
        // A row that, with the next one, leaves half of a second cache of a megabyte.
        private const int PrefetchedFloats = 1 << 16;

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

        private readonly void Differentiate<TLanes>(nint row, bool goesOn) where TLanes : struct, ILanes<TLanes>
        {
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                Gradient.Clear(row, 0, Rows.Vocabulary + Rows.Tail);
                return;
            }
            int length = LogitSums<TLanes>.Block;
            float* block = stackalloc float[2 * length], slopes = block + length;
            Arriving arriving = Upstream[row];
            if (KeepsPowers(row, arriving))
            {
                DifferentiatePowers<TLanes>(row, (nint)target, arriving, slopes);
                return;
            }
            RowSums sums = Merged.IsPresent ? Merged[row].Row
                // Saved sums have no squares.
                : LogSumExp.HasRemainder && arriving.SumOfSquares == 0 ? LogSumExp.Sums(row, Entropy.OrZero(row)) : LogitSums<TLanes>.Of(Rows, row, arriving.Sought, block);
            nint column = Rows.Column(target);
            double logit = column < 0 ? double.NegativeInfinity : Rows.At<TLanes>(row, column);
            // A mean with weights is added afterwards.
            float ofMean = Rows.MeanWeights == null ? 0 : arriving.MeanLogit / Rows.Shard.Whole;
            var slope = new LogitSlope(sums, ofMean == 0 ? arriving : arriving with { MeanLogit = 0 }, Rows.Shard.Whole);

            nint start = 0;
            if (Rows.IsPlain && Rows.Type == ElementType.Float32)
            {
                start = Rows.Vocabulary - Rows.Vocabulary % TLanes.Count;
                bool fits = start <= PrefetchedFloats;
                slope.Differentiate<TLanes>((float*)Rows.Row(row), Gradient.Row(row), start, goesOn && fits ? (float*)Rows.Row(row + 1) : null);
                if (ofMean != 0)
                    Rows.AddMean(ofMean, 0, start, Gradient.Row(row));
            }
            for (; start < Rows.Vocabulary; start += length)
            {
                nint count = Math.Min(length, Rows.Vocabulary - start), padded = (count + TLanes.Count - 1) / TLanes.Count * TLanes.Count;
                Rows.Prepare<TLanes>(row, start, count, block);
                slope.Differentiate<TLanes>(block, slopes, padded);
                if (ofMean != 0)
                    Rows.AddMean(ofMean, start, count, slopes);
                if (Rows.Shape.Bends)
                    Rows.Shape.Unbend<TLanes>(block, slopes, padded);
                Gradient.Write<TLanes>(slopes, row, start, count);
            }
            Gradient.Clear(row, Rows.Vocabulary, Rows.Tail);
            if (column < 0)
                return;
            double atTarget = slope.AtTarget(logit) + (ofMean == 0 ? 0 : ofMean * Rows.MeanWeights[column]);
            *slopes = (float)(atTarget * Rows.Shape.Slope(logit));
            Gradient.Write<Real32>(slopes, row, column, 1);
        }

        // Whether each power of e counts only as it is.
        private readonly bool KeepsPowers(nint row, in Arriving arriving) =>
            !Merged.IsPresent && !LogSumExp.HasRemainder && float.IsFinite(LogSumExp[row]) && arriving is { Entropy: 0, SumOfSquares: 0, MeanLogit: 0 }
            && Rows.IsPlain && Rows.Type == ElementType.Float32;

        private readonly void DifferentiatePowers<TLanes>(nint row, nint target, in Arriving arriving, float* tail) where TLanes : struct, ILanes<TLanes>
        {
            float* logits = (float*)Rows.Row(row), gradient = Gradient.Row(row);
            float shift = LogSumExp[row], logit = logits[target];
            nint whole = Rows.Vocabulary - Rows.Vocabulary % TLanes.Count, rest = Rows.Vocabulary - whole;
            // Beside the target's power the others' sum would lose its digits, and where p is nearly 1 they are what p − 1 is made of.
            double sum = ExponentialRow.Form<TLanes>(logits, gradient, whole, shift, target);
            if (rest > 0)
            {
                Rows.Prepare<TLanes>(row, whole, rest, tail);
                sum += ExponentialRow.Form<TLanes>(tail, tail, TLanes.Count, shift, target - whole);
            }
            sum += Math.Exp((double)logit - shift);
            var slope = new LogitSlope(new RowSums(shift, sum, 0, 0, 0), arriving, Rows.Shard.Whole);
            ExponentialRow.Multiply<TLanes>(gradient, whole, slope.Coefficients.Constant);
            ExponentialRow.Multiply<TLanes>(tail, rest > 0 ? TLanes.Count : 0, slope.Coefficients.Constant);
            Gradient.Write<TLanes>(tail, row, whole, rest);
            Gradient.Clear(row, Rows.Vocabulary, Rows.Tail);
            gradient[target] = (float)slope.AtTarget(logit);
        }
    }
}
