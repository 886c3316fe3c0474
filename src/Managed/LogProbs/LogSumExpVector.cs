namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>Log-sum-exps of rows in pinned memory; with a second column, also what rounding them to float32 took.</summary>
    private readonly unsafe struct LogSumExpVector
    {
        private readonly float* data;
        private readonly nint row, column;

        public LogSumExpVector(byte* data, in TensorView view)
        {
            if (!view.IsPresent)
                return;
            this.data = (float*)data;
            row = (nint)view.Stride(0);
            HasRemainder = view.Rank == 2;
            column = HasRemainder ? (nint)view.Stride(1) : 0;
        }

        public readonly bool HasRemainder;

        /// <summary>Whether what is saved of a row is of use: to the first column a logit is at most half too near or too far, and both together say ln p to 2⁻²⁴, as float32 does.</summary>
        /// <remarks>Rounded, a log-sum-exp L is off by up to |L| 2⁻²⁴, with the second column by up to |L| 2⁻⁴⁸: of larger ones e to what is off would be anything, and an infinite one says nothing.</remarks>
        public bool IsNear(nint index) => Math.Abs(data[index * row]) <= LogSumExp.LargestNear;

        /// <summary>As it was rounded.</summary>
        public float this[nint index] => data[index * row];

        /// <summary>Writes shift + logSum unless the tensor is absent.</summary>
        public void Set(nint index, double shift, double logSum)
        {
            if (data == null)
                return;
            (data[index * row], float remainder) = LogSumExp.Of(shift, logSum);
            if (HasRemainder)
                data[index * row + column] = remainder;
        }

        /// <summary>The sums of a row whose log-sum-exp is near, relative to it as it was rounded, or nearly so: it lies between the largest logit and ln V above it.</summary>
        public RowSums Sums(nint index, float entropy, double scale)
        {
            float shift = data[index * row];
            double logSum = data[index * row + column], sum = Math.Exp(logSum);
            return RowSums.Anchored(scale, shift, sum, (logSum - entropy) * sum, double.NaN);
        }
    }
}
