using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>A part of a row, turned into e^(z − shift) and then into a multiple of it: each power of e is formed once.</summary>
    private static unsafe class ExponentialRow
    {
        /// <summary>Writes e^(z − shift) = 2^(power scale · (u − anchor)) of whole vectors, in place or elsewhere, and returns their sum.</summary>
        /// <param name="u">At most a block.</param>
        /// <param name="powers">Where the powers go: where u is, or memory apart.</param>
        /// <param name="count">How many, whole vectors.</param>
        /// <param name="anchor">What is taken off u.</param>
        /// <param name="powerScale">What then makes an exponent of 2 of it.</param>
        public static double Form<V>(StoredLogits u, float* powers, nint count, float anchor, float powerScale) where V : struct, ILanes<V> => LogitSums<V>.Total(u.Type switch
        {
            ElementType.Float32 => FormBlock<V, Float32Storage>(u.Data, powers, count, anchor, powerScale),
            ElementType.BFloat16 => FormBlock<V, BFloat16Storage>(u.Data, powers, count, anchor, powerScale),
            _ => FormBlock<V, Float16Storage>(u.Data, powers, count, anchor, powerScale),
        });

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static V FormBlock<V, TStorage>(byte* u, float* powers, nint count, float anchor, float powerScale) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            nint w = V.Count, step = w * TStorage.Size;
            V lowest = V.From(V.LowestPower), anchors = V.From(anchor), scale = V.From(powerScale), sum = V.Zero;
            float* end = powers + count;
            if (HasManyRegisters)
            {
                for (; powers <= end - 8 * w; u += 8 * step, powers += 8 * w)
                {
                    Prefetch.Bytes(u + LogitSums<V>.PrefetchBytes, 4 * step);
                    Prefetch.Bytes(u + 4 * step + LogitSums<V>.PrefetchBytes, 4 * step);
                    V y0 = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchors) * scale), y1 = V.MaxNative(lowest, (TStorage.Load<V>(u + step) - anchors) * scale);
                    V y2 = V.MaxNative(lowest, (TStorage.Load<V>(u + 2 * step) - anchors) * scale), y3 = V.MaxNative(lowest, (TStorage.Load<V>(u + 3 * step) - anchors) * scale);
                    V y4 = V.MaxNative(lowest, (TStorage.Load<V>(u + 4 * step) - anchors) * scale), y5 = V.MaxNative(lowest, (TStorage.Load<V>(u + 5 * step) - anchors) * scale);
                    V y6 = V.MaxNative(lowest, (TStorage.Load<V>(u + 6 * step) - anchors) * scale), y7 = V.MaxNative(lowest, (TStorage.Load<V>(u + 7 * step) - anchors) * scale);
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
            for (; powers <= end - 4 * w; u += 4 * step, powers += 4 * w)
            {
                Prefetch.Bytes(u + LogitSums<V>.PrefetchBytes, 4 * step);
                V y0 = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchors) * scale), y1 = V.MaxNative(lowest, (TStorage.Load<V>(u + step) - anchors) * scale);
                V y2 = V.MaxNative(lowest, (TStorage.Load<V>(u + 2 * step) - anchors) * scale), y3 = V.MaxNative(lowest, (TStorage.Load<V>(u + 3 * step) - anchors) * scale);
                Exponential.PowersOfTwo(y0, y1, y2, y3, out V e0, out V e1, out V e2, out V e3);
                e0.Store(powers);
                e1.Store(powers + w);
                e2.Store(powers + 2 * w);
                e3.Store(powers + 3 * w);
                sum += (e0 + e1) + (e2 + e3);
            }
            for (; powers < end; u += step, powers += w)
            {
                V e = Exponential.PowerOfTwo(V.MaxNative(lowest, (TStorage.Load<V>(u) - anchors) * scale));
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
