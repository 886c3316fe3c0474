namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>What a part of the vocabulary says of a token, with t = z − max: max, Σ e^t, Σ e^t t, Σ e^2t, Σ z by some count, the target's z or −∞, and the entry of the maximum.</summary>
    private readonly record struct VocabularySums(double Max, double Sum, double Weighted, double Squares, double Logits, double TargetLogit, long Argmax)
    {
        // Up to here sums that are moved by what rounding takes stay within float32.
        private const double LargestMoved = 1 << 28;

        /// <summary>As sums over a row: shifted by the maximum unless that is infinite.</summary>
        public RowSums Row => new((float)Shift, Shift, Sum, Weighted, Squares, 0);

        /// <summary>The same for a row of which z = scale · u, if the maximum <see cref="IsNear"/>.</summary>
        public RowSums RowOf(double scale) => RowSums.Anchored(scale, Shift, Sum, Weighted, Squares);

        /// <summary>The same for a slice, relative to its largest logit, whatever the maximum.</summary>
        public RowSums RowOf(in RowSums slice)
        {
            // A slice of −∞ has no largest logit, nor any power of e.
            double moved = Math.Min(Max - (slice.Sum > 0 ? Counted(slice.Shift) : double.NegativeInfinity), -Exponential.Lowest), factor = Math.Exp(moved);
            return slice with { Sum = Sum * factor, Weighted = (Weighted + Sum * moved) * factor, Squares = Squares * factor * factor };
        }

        /// <summary>Whether powers of e change little if a row is taken relative to the nearest float32.</summary>
        public bool IsNear => Math.Abs(Shift) <= LogSumExp.LargestNear;

        /// <summary>What a largest logit counts as among partials: itself, or the float32 next to it where its sums can't be moved there.</summary>
        public static double Counted(double max) => Math.Abs(max) <= LargestMoved || !double.IsFinite(max) ? max : Rounded(max);

        /// <summary>The next finite float32, unless it is infinite itself.</summary>
        public static float Rounded(double logit) => double.IsFinite(logit) ? (float)Math.Clamp(logit, -float.MaxValue, float.MaxValue) : (float)logit;

        private double Shift => double.IsInfinity(Max) ? 0 : Max;

        /// <summary>What says of a token that it is ignored; no other's maximum and sum are both 0.</summary>
        public bool IsOfIgnored => Max == 0 && Sum == 0;
    }

    /// <summary>Parts of the vocabulary made whole, in their order and in double. All are looked at for their maximum first, then all are added.</summary>
    private struct VocabularyMerge()
    {
        private double max = double.NegativeInfinity, target = double.NegativeInfinity, sum, weighted, squares, logits;
        private long argmax = -1;

        // A NaN is larger than everything.
        public void Look(double max, long argmax)
        {
            if (this.argmax >= 0 && !(max > this.max) && !(double.IsNaN(max) && !double.IsNaN(this.max)))
                return;
            (this.max, this.argmax) = (max, argmax);
        }

        public void Add(in VocabularySums part)
        {
            double shift = double.IsInfinity(max) ? 0 : max, moved = Math.Max(part.Max - shift, Exponential.Lowest), factor = Math.Exp(moved);
            sum += part.Sum * factor;
            weighted += (part.Weighted + part.Sum * moved) * factor;
            squares += part.Squares * factor * factor;
            logits += part.Logits;
            target = Math.Max(target, part.TargetLogit);
        }

        public readonly VocabularySums Whole => new(max, sum, weighted, squares, logits, target, argmax);
    }

    /// <summary>Rows of <see cref="ShardPartials"/> in pinned memory.</summary>
    private readonly unsafe struct PartialRows
    {
        private readonly float* data;
        private readonly nint row, column;

        public PartialRows(byte* data, in TensorView view)
        {
            if (!view.IsPresent)
                return;
            this.data = (float*)data;
            row = (nint)view.Stride(view.Rank - 2);
            column = (nint)view.Stride(view.Rank - 1);
            IsPresent = true;
        }

        public readonly bool IsPresent;

        private PartialRows(float* data, nint row, nint column)
        {
            this.data = data;
            this.row = row;
            this.column = column;
            IsPresent = true;
        }

        /// <summary>The rows that begin so many elements later.</summary>
        public PartialRows From(nint elements) => new(data + elements, row, column);

        private ref float At(nint token, int field) => ref data[token * row + field * column];

        public VocabularySums this[nint token]
        {
            get => new(At(token, ShardPartials.Max), (double)At(token, ShardPartials.Sum) + At(token, ShardPartials.SumRest), At(token, ShardPartials.WeightedSum), At(token, ShardPartials.SumOfSquares),
                At(token, ShardPartials.MeanLogit), At(token, ShardPartials.TargetLogit), (long)At(token, ShardPartials.Argmax));
            set
            {
                // The maximum is rounded first, and the sums are moved to it.
                float max = VocabularySums.Rounded(value.Max);
                double moved = double.IsFinite(value.Max) ? VocabularySums.Counted(value.Max) - max : 0, factor = Math.Exp(moved), whole = value.Sum * factor;
                float sum = (float)whole;
                At(token, ShardPartials.Max) = max;
                At(token, ShardPartials.Sum) = sum;
                At(token, ShardPartials.SumRest) = float.IsFinite(sum) ? (float)(whole - sum) : 0;
                At(token, ShardPartials.WeightedSum) = (float)((value.Weighted + value.Sum * moved) * factor);
                At(token, ShardPartials.SumOfSquares) = (float)(value.Squares * factor * factor);
                At(token, ShardPartials.MeanLogit) = (float)value.Logits;
                At(token, ShardPartials.TargetLogit) = VocabularySums.Rounded(value.TargetLogit);
                At(token, ShardPartials.Argmax) = value.Argmax;
            }
        }
    }

    /// <summary>A <see cref="TokenOutputs"/> in pinned memory, but for the likeliest tokens.</summary>
    private readonly unsafe struct TokenResults(byte* logProb, byte* logSumExp, byte* entropy, byte* squares, byte* argmax, byte* mean, in TokenOutputs outputs)
    {
        private readonly LogSumExpVector logSumExp = new(logSumExp, outputs.LogSumExp);
        private readonly HostVector logProb = new(logProb, outputs.LogProb), entropy = new(entropy, outputs.Entropy), squares = new(squares, outputs.SumOfSquares), mean = new(mean, outputs.MeanLogit);
        private readonly TokenVector argmax = new(argmax, outputs.Argmax);

        public bool HasArgmax => argmax.IsPresent;

        public bool HasMeanLogit => mean.IsPresent;

        /// <summary>Writes a token's results.</summary>
        public void Set(nint token, in VocabularySums whole)
        {
            RowSums sums = whole.Row;
            double logSum = sums.LogSum;
            logProb.Set(token, (float)(whole.TargetLogit - sums.Shift - logSum));
            logSumExp.Set(token, sums.Shift, logSum);
            entropy.Set(token, (float)sums.Entropy);
            squares.Set(token, (float)sums.SumOfSquares);
            argmax.Set(token, whole.Argmax);
            mean.Set(token, (float)whole.Logits);
        }

        /// <summary>Zeros for a token that is ignored.</summary>
        public void Clear(nint token)
        {
            logProb.Set(token, 0);
            logSumExp.Set(token, 0, 0);
            entropy.Set(token, 0);
            squares.Set(token, 0);
            argmax.Set(token, 0);
            mean.Set(token, 0);
        }
    }
}
