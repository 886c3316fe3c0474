using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>Rows of numbers of any storage in pinned memory.</summary>
    private readonly unsafe struct StoredRows
    {
        private readonly byte* data;
        private readonly nint stride;
        private readonly ElementType type;

        public StoredRows(byte* data, in TensorView view)
        {
            if (!view.IsPresent)
                return;
            this.data = data;
            type = view.Type;
            stride = (nint)view.Stride(0) * type.Size();
            IsPresent = true;
        }

        public readonly bool IsPresent;

        public nint Stride => stride / type.Size();

        public float* Floats(nint row) => (float*)(data + row * stride);

        /// <summary>A row as float32: where it is, or converted into memory of the caller's.</summary>
        public float* Read<V>(nint row, nint count, float* converted) where V : struct, ILanes<V>
        {
            switch (type)
            {
                case ElementType.Float32:
                    return Floats(row);
                case ElementType.BFloat16:
                    Convert<V, BFloat16Storage>(data + row * stride, count, converted);
                    return converted;
                default:
                    Convert<V, Float16Storage>(data + row * stride, count, converted);
                    return converted;
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Convert<V, TStorage>(byte* source, nint count, float* converted) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            nint i = 0;
            for (; i <= count - V.Count; i += V.Count)
                TStorage.Load<V>(source + i * TStorage.Size).Store(converted + i);
            for (; i < count; i++)
                converted[i] = TStorage.Load<Real32>(source + i * TStorage.Size).Value;
        }
    }
}
