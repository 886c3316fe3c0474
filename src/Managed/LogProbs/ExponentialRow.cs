using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>A part of a row, turned into e^(z − shift), with a softcap times u² − 1, and then into a multiple of it: each power of e is formed once.</summary>
    private static unsafe class ExponentialRow
    {
        /// <summary>Writes e^(z − shift) = 2^(power scale · (u − anchor)) of whole vectors, with a softcap times u² − 1, in place or elsewhere, and returns the sums of the powers themselves, lane by lane.</summary>
        /// <param name="u">At most a block.</param>
        /// <param name="shape">How z is scale · u.</param>
        /// <param name="anchor">What is taken off u.</param>
        /// <param name="slopes">Where they go: where u is, or memory apart.</param>
        /// <param name="count">How many, whole vectors.</param>
        /// <param name="next">As many stored logits as u that will be needed soon, from here.</param>
        /// <param name="ahead">As many slopes as will be written soon, from here; null for none.</param>
        public static V Form<V>(StoredLogits u, LogitShape shape, float anchor, float* slopes, nint count, StoredLogits next, float* ahead) where V : struct, ILanes<V> => u.Type switch
        {
            ElementType.Float32 when shape.IsCapped => FormBlock<V, Float32Storage, Yes>(u.Data, anchor, shape.PowerScale, slopes, count, next.Data, V.Count * next.Type.Size(), ahead),
            ElementType.Float32 => FormBlock<V, Float32Storage, No>(u.Data, anchor, shape.PowerScale, slopes, count, next.Data, V.Count * next.Type.Size(), ahead),
            ElementType.BFloat16 => FormBlock<V, BFloat16Storage, No>(u.Data, anchor, shape.PowerScale, slopes, count, next.Data, V.Count * next.Type.Size(), ahead),
            _ => FormBlock<V, Float16Storage, No>(u.Data, anchor, shape.PowerScale, slopes, count, next.Data, V.Count * next.Type.Size(), ahead),
        };

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static V FormBlock<V, TStorage, TCapped>(byte* u, float anchor, float powerScale, float* slopes, nint count, byte* next, nint nextStep, float* ahead)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TCapped : struct, IChoice
        {
            nint w = V.Count, step = w * TStorage.Size;
            V lowest = V.From(V.LowestPower), anchors = V.From(anchor), scale = V.From(powerScale), sum = V.Zero;
            float* end = slopes + count;
            if (HasManyRegisters)
            {
                for (; slopes <= end - 8 * w; u += 8 * step, slopes += 8 * w, next += 8 * nextStep)
                {
                    Prefetch.Bytes(next, 4 * nextStep);
                    Prefetch.Bytes(next + 4 * nextStep, 4 * nextStep);
                    if (ahead != null)
                    {
                        Prefetch.Four<V>(ahead);
                        Prefetch.Four<V>(ahead + 4 * w);
                        ahead += 8 * w;
                    }
                    V y0 = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchors) * scale), y1 = V.MaxNative(lowest, (TStorage.Load<V>(u + step) - anchors) * scale);
                    V y2 = V.MaxNative(lowest, (TStorage.Load<V>(u + 2 * step) - anchors) * scale), y3 = V.MaxNative(lowest, (TStorage.Load<V>(u + 3 * step) - anchors) * scale);
                    V y4 = V.MaxNative(lowest, (TStorage.Load<V>(u + 4 * step) - anchors) * scale), y5 = V.MaxNative(lowest, (TStorage.Load<V>(u + 5 * step) - anchors) * scale);
                    V y6 = V.MaxNative(lowest, (TStorage.Load<V>(u + 6 * step) - anchors) * scale), y7 = V.MaxNative(lowest, (TStorage.Load<V>(u + 7 * step) - anchors) * scale);
                    Exponential.PowersOfTwo(y0, y1, y2, y3, y4, y5, y6, y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7);
                    sum += ((e0 + e1) + (e2 + e3)) + ((e4 + e5) + (e6 + e7));
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e0, u).Store(slopes);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e1, u + step).Store(slopes + w);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e2, u + 2 * step).Store(slopes + 2 * w);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e3, u + 3 * step).Store(slopes + 3 * w);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e4, u + 4 * step).Store(slopes + 4 * w);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e5, u + 5 * step).Store(slopes + 5 * w);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e6, u + 6 * step).Store(slopes + 6 * w);
                    LogitSlope.OfLogit<V, TStorage, TCapped>(e7, u + 7 * step).Store(slopes + 7 * w);
                }
            }
            for (; slopes <= end - 4 * w; u += 4 * step, slopes += 4 * w, next += 4 * nextStep)
            {
                Prefetch.Bytes(next, 4 * nextStep);
                if (ahead != null)
                {
                    Prefetch.Four<V>(ahead);
                    ahead += 4 * w;
                }
                V y0 = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchors) * scale), y1 = V.MaxNative(lowest, (TStorage.Load<V>(u + step) - anchors) * scale);
                V y2 = V.MaxNative(lowest, (TStorage.Load<V>(u + 2 * step) - anchors) * scale), y3 = V.MaxNative(lowest, (TStorage.Load<V>(u + 3 * step) - anchors) * scale);
                Exponential.PowersOfTwo(y0, y1, y2, y3, out V e0, out V e1, out V e2, out V e3);
                sum += (e0 + e1) + (e2 + e3);
                LogitSlope.OfLogit<V, TStorage, TCapped>(e0, u).Store(slopes);
                LogitSlope.OfLogit<V, TStorage, TCapped>(e1, u + step).Store(slopes + w);
                LogitSlope.OfLogit<V, TStorage, TCapped>(e2, u + 2 * step).Store(slopes + 2 * w);
                LogitSlope.OfLogit<V, TStorage, TCapped>(e3, u + 3 * step).Store(slopes + 3 * w);
            }
            for (; slopes < end; u += step, slopes += w)
            {
                V e = Exponential.PowerOfTwo(V.MaxNative(lowest, (TStorage.Load<V>(u) - anchors) * scale));
                sum += e;
                LogitSlope.OfLogit<V, TStorage, TCapped>(e, u).Store(slopes);
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
