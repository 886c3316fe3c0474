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

        /// <summary>As it was rounded.</summary>
        public float this[nint index] => data[index * row];

        /// <summary>Writes shift + logSum unless the tensor is absent.</summary>
        public void Set(nint index, double shift, double logSum)
        {
            if (data == null)
                return;
            float rounded = (float)(shift + logSum);
            data[index * row] = rounded;
            if (HasRemainder)
                data[index * row + column] = float.IsFinite(rounded) ? (float)(shift - rounded + logSum) : 0;
        }

        /// <summary>The sums of a row relative to its rounded log-sum-exp, or nearly so, which lies between the largest logit and ln V above it.</summary>
        public RowSums Sums(nint index, float entropy, double scale)
        {
            float shift = data[index * row];
            if (!float.IsFinite(shift))
                return new(0, 0, double.NaN, double.NaN, double.NaN, 0);
            double logSum = data[index * row + column], sum = Math.Exp(logSum);
            return RowSums.Anchored(scale, shift, sum, (logSum - entropy) * sum, double.NaN);
        }
    }
}
