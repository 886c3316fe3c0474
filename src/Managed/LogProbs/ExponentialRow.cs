using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>A row whose log-sum-exp is known, turned into e^(z − shift) and then into a multiple of it: each power of e is formed once.</summary>
    private static unsafe class ExponentialRow
    {
        /// <summary>Writes e^(z − shift) of whole vectors of logits, in place or elsewhere, 0 at <paramref name="left"/>, and returns their sum.</summary>
        /// <param name="logits">The logits.</param>
        /// <param name="powers">Where the powers go: the logits themselves, or memory apart.</param>
        /// <param name="count">How many, whole vectors.</param>
        /// <param name="shift">The log-sum-exp, or nearly so.</param>
        /// <param name="left">The one that is left out; outside the row for none.</param>
        public static double Form<V>(float* logits, float* powers, nint count, float shift, nint left) where V : struct, ILanes<V>
        {
            nint length = LogitSums<V>.Block; // each block has a sum of its own, so that few numbers of very different size meet
            float* block = stackalloc float[(int)length];
            double sum = 0;
            for (nint start = 0; start < count; start += length)
            {
                nint size = Math.Min(length, count - start);
                float* from = logits + start;
                if (left >= start && left < start + size)
                {
                    new Span<float>(from, (int)size).CopyTo(new Span<float>(block, (int)size));
                    block[left - start] = float.NegativeInfinity;
                    from = block;
                }
                sum += LogitSums<V>.Total(FormBlock<V>(from, powers + start, size, shift));
            }
            return sum;
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static V FormBlock<V>(float* logits, float* powers, nint count, float shift) where V : struct, ILanes<V>
        {
            nint w = V.Count;
            V lowest = V.From(Exponential.Lowest), shifts = V.From(shift), sum = V.Zero;
            float* end = logits + count;
            if (HasManyRegisters)
            {
                for (; logits <= end - 8 * w; logits += 8 * w, powers += 8 * w)
                {
                    Prefetch.Bytes((byte*)logits + LogitSums<V>.PrefetchBytes, 4 * w * sizeof(float));
                    Prefetch.Bytes((byte*)(logits + 4 * w) + LogitSums<V>.PrefetchBytes, 4 * w * sizeof(float));
                    V y0 = V.MaxNative(lowest, V.Load(logits) - shifts) * Exponential.Log2E, y1 = V.MaxNative(lowest, V.Load(logits + w) - shifts) * Exponential.Log2E;
                    V y2 = V.MaxNative(lowest, V.Load(logits + 2 * w) - shifts) * Exponential.Log2E, y3 = V.MaxNative(lowest, V.Load(logits + 3 * w) - shifts) * Exponential.Log2E;
                    V y4 = V.MaxNative(lowest, V.Load(logits + 4 * w) - shifts) * Exponential.Log2E, y5 = V.MaxNative(lowest, V.Load(logits + 5 * w) - shifts) * Exponential.Log2E;
                    V y6 = V.MaxNative(lowest, V.Load(logits + 6 * w) - shifts) * Exponential.Log2E, y7 = V.MaxNative(lowest, V.Load(logits + 7 * w) - shifts) * Exponential.Log2E;
                    Exponential.PowersOfTwo(y0, y1, y2, y3, y4, y5, y6, y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7);
                    e0.Store(powers);
                    e1.Store(powers + w);
                    e2.Store(powers + 2 * w);
                    e3.Store(powers + 3 * w);
                    e4.Store(powers + 4 * w);
                    e5.Store(powers + 5 * w);
                    e6.Store(powers + 6 * w);
                    e7.Store(powers + 7 * w);
                    sum += ((e0 + e1) + (e2 + e3)) + ((e4 + e5) + (e6 + e7));
                }
            }
            for (; logits <= end - 4 * w; logits += 4 * w, powers += 4 * w)
            {
                Prefetch.Bytes((byte*)logits + LogitSums<V>.PrefetchBytes, 4 * w * sizeof(float));
                V t0 = V.MaxNative(lowest, V.Load(logits) - shifts), t1 = V.MaxNative(lowest, V.Load(logits + w) - shifts);
                V t2 = V.MaxNative(lowest, V.Load(logits + 2 * w) - shifts), t3 = V.MaxNative(lowest, V.Load(logits + 3 * w) - shifts);
                Exponential.OfNonPositive(t0, t1, t2, t3, out V e0, out V e1, out V e2, out V e3);
                e0.Store(powers);
                e1.Store(powers + w);
                e2.Store(powers + 2 * w);
                e3.Store(powers + 3 * w);
                sum += (e0 + e1) + (e2 + e3);
            }
            for (; logits < end; logits += w, powers += w)
            {
                V e = Exponential.OfNonPositive(V.MaxNative(lowest, V.Load(logits) - shifts));
                e.Store(powers);
                sum += e;
            }
            return sum;
        }

        /// <summary>Multiplies whole vectors by a factor.</summary>
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        public static void Multiply<V>(float* row, nint count, float factor) where V : struct, ILanes<V>
        {
            nint w = V.Count;
            V factors = V.From(factor);
            float* end = row + count;
            for (; row <= end - 4 * w; row += 4 * w)
            {
                (V.Load(row) * factors).Store(row);
                (V.Load(row + w) * factors).Store(row + w);
                (V.Load(row + 2 * w) * factors).Store(row + 2 * w);
                (V.Load(row + 3 * w) * factors).Store(row + 3 * w);
            }
            for (; row < end; row += w)
                (V.Load(row) * factors).Store(row);
        }
    }
}
