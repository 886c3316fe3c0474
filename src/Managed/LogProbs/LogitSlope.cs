using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>dz = u_logProb (1[target] − p) + u_logSumExp p − u_entropy p (ln p + H) + 2 u_squares p (p − Q) + u_mean / V over a row whose sums are known.</summary>
    /// <remarks>
    /// With t = z − shift and p = e^t / S it is e^t (a + b t + c (e^t − 1)) + d wherever the target isn't: a = (u_logSumExp − u_logProb + u_entropy Σ p t + 2 u_squares (1 / S − Q)) / S,
    /// b = −u_entropy / S, c = 2 u_squares / S², d = u_mean / V. Where e^t is 1, p − Q is so formed in double.
    /// </remarks>
    private readonly unsafe struct LogitSlope
    {
        private readonly Arriving of;
        private readonly double shift, logSum, entropy, squares, constant, perLogit, perExponential, everywhere;
        private readonly float anchor;
        private readonly bool isUniform;

        public LogitSlope(in RowSums sums, in Arriving arriving, long entries)
        {
            of = arriving;
            anchor = sums.Anchor;
            shift = sums.Shift;
            logSum = sums.LogSum;
            entropy = sums.Entropy;
            squares = sums.SumOfSquares;
            // No distribution, no gradient.
            bool any = sums.Sum > 0 && sums.Sum < double.PositiveInfinity;
            isUniform = of.Entropy == 0;
            double ofPeak = of.SumOfSquares == 0 ? 0 : 2 * of.SumOfSquares * (1 / sums.Sum - squares);
            constant = any ? ((double)of.LogSumExp - of.LogProb - (isUniform ? 0 : of.Entropy * sums.MinusMean) + ofPeak) / sums.Sum : double.NaN;
            perLogit = any ? -of.Entropy / sums.Sum : double.NaN;
            perExponential = any ? 2 * of.SumOfSquares / sums.Sum / sums.Sum : double.NaN;
            everywhere = of.MeanLogit / entries;
        }

        /// <summary>a, b, c and d.</summary>
        public (float Constant, float PerLogit, float PerExponential, float Everywhere) Coefficients => ((float)constant, (float)perLogit, (float)perExponential, (float)everywhere);

        /// <summary>The gradient at the target. There p − 1 is what counts: from the logarithm in double, it keeps its digits where p is nearly 1.</summary>
        public double AtTarget(double logit)
        {
            double logP = logit - shift - logSum, bounded = Math.Max(logP, Exponential.Lowest);
            // Without a distribution it is NaN.
            double p = Math.Exp(logP), ofP = isUniform ? of.LogSumExp + 0 * constant : of.LogSumExp - of.Entropy * (bounded + entropy);
            if (of.SumOfSquares != 0)
                ofP += 2 * of.SumOfSquares * (p - squares);
            return -of.LogProb * Real64.Expm1(new(logP)).Value + p * ofP + everywhere;
        }

        /// <summary>The gradient of whole vectors of logits as if none were the target; in place if both are one.</summary>
        /// <param name="u">Of which z = scale · u.</param>
        /// <param name="shape">How.</param>
        /// <param name="gradient">Where it goes.</param>
        /// <param name="count">How many, whole vectors.</param>
        /// <param name="next">As many numbers as u that will be needed soon, from here; null for none.</param>
        /// <param name="ahead">As many as will be written soon, from here: otherwise a store waits for its line. Null for none.</param>
        public void Differentiate<V>(StoredLogits u, LogitShape shape, float* gradient, nint count, byte* next = null, float* ahead = null) where V : struct, ILanes<V>
        {
            switch (u.Type)
            {
                case ElementType.Float32: Differentiate<V, Float32Storage>(u.Data, shape, gradient, count, next, ahead); break;
                case ElementType.BFloat16: Differentiate<V, BFloat16Storage>(u.Data, shape, gradient, count, next, ahead); break;
                default: Differentiate<V, Float16Storage>(u.Data, shape, gradient, count, next, ahead); break;
            }
        }

        private void Differentiate<V, TStorage>(byte* u, LogitShape shape, float* gradient, nint count, byte* next, float* ahead) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            double unit = Unit(shape);
            var slopes = new Slopes(anchor, shape.PowerScale, (float)(unit * constant), (float)(unit * perLogit * Math.Log(2)), (float)(unit * perExponential), (float)(unit * everywhere));
            switch (of.SumOfSquares != 0 || of.MeanLogit != 0, isUniform, shape.IsCapped)
            {
                case (true, _, false): DifferentiateAll<V, TStorage, No>(u, slopes, gradient, count); break;
                case (true, _, true): DifferentiateAll<V, TStorage, Yes>(u, slopes, gradient, count); break;
                case (false, true, false): Differentiate<V, TStorage, Yes, No>(u, slopes, gradient, count, next, ahead); break;
                case (false, true, true): Differentiate<V, TStorage, Yes, Yes>(u, slopes, gradient, count, next, ahead); break;
                case (false, false, false): Differentiate<V, TStorage, No, No>(u, slopes, gradient, count, next, ahead); break;
                case (false, false, true): Differentiate<V, TStorage, No, Yes>(u, slopes, gradient, count, next, ahead); break;
            }
        }

        /// <summary>What each power of e is multiplied by, if all count alike.</summary>
        public float PerPower(LogitShape shape) => (float)(Unit(shape) * constant);

        // With a softcap ∂z/∂x is −(u² − 1) of the steepest.
        private static double Unit(LogitShape shape) => shape.IsCapped ? -shape.Steepest : shape.Steepest;

        // What is taken off u, what then makes an exponent of 2 of it, and a, b, c, d for that exponent, times ∂z/∂x.
        private readonly record struct Slopes(float Anchor, float Scale, float Constant, float PerPower, float PerExponential, float Everywhere);

        private static void Differentiate<V, TStorage, TUniform, TCapped>(byte* u, in Slopes slopes, float* gradient, nint count, byte* next, float* ahead)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TUniform : struct, IChoice where TCapped : struct, IChoice
        {
            nint eights = HasManyRegisters ? count - count % (8 * V.Count) : 0, read = eights * TStorage.Size;
            if (eights > 0)
                Differentiate8<V, TStorage, TUniform, TCapped>(u, slopes, gradient, eights, next, ahead);
            if (eights < count)
                DifferentiateRest<V, TStorage, TUniform, TCapped>(u + read, slopes, gradient + eights, count - eights, next == null ? null : next + read, ahead == null ? null : ahead + eights);
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Differentiate8<V, TStorage, TUniform, TCapped>(byte* u, in Slopes slopes, float* gradient, nint count, byte* next, float* ahead)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TUniform : struct, IChoice where TCapped : struct, IChoice
        {
            nint w = V.Count, step = w * TStorage.Size;
            V lowest = V.From(V.LowestPower), anchor = V.From(slopes.Anchor), scale = V.From(slopes.Scale), a = V.From(slopes.Constant), b = V.From(slopes.PerPower);
            float* end = gradient + count;
            for (; gradient < end; u += 8 * step, gradient += 8 * w)
            {
                if (next != null)
                {
                    Prefetch.Bytes(next, 4 * step);
                    Prefetch.Bytes(next + 4 * step, 4 * step);
                    next += 8 * step;
                }
                if (ahead != null)
                {
                    Prefetch.Four<V>(ahead);
                    Prefetch.Four<V>(ahead + 4 * w);
                    ahead += 8 * w;
                }
                V y0 = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchor) * scale), y1 = V.MaxNative(lowest, (TStorage.Load<V>(u + step) - anchor) * scale);
                V y2 = V.MaxNative(lowest, (TStorage.Load<V>(u + 2 * step) - anchor) * scale), y3 = V.MaxNative(lowest, (TStorage.Load<V>(u + 3 * step) - anchor) * scale);
                V y4 = V.MaxNative(lowest, (TStorage.Load<V>(u + 4 * step) - anchor) * scale), y5 = V.MaxNative(lowest, (TStorage.Load<V>(u + 5 * step) - anchor) * scale);
                V y6 = V.MaxNative(lowest, (TStorage.Load<V>(u + 6 * step) - anchor) * scale), y7 = V.MaxNative(lowest, (TStorage.Load<V>(u + 7 * step) - anchor) * scale);
                Exponential.PowersOfTwo(y0, y1, y2, y3, y4, y5, y6, y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7);
                Slope<V, TStorage, TUniform, TCapped>(e0, y0, a, b, u).Store(gradient);
                Slope<V, TStorage, TUniform, TCapped>(e1, y1, a, b, u + step).Store(gradient + w);
                Slope<V, TStorage, TUniform, TCapped>(e2, y2, a, b, u + 2 * step).Store(gradient + 2 * w);
                Slope<V, TStorage, TUniform, TCapped>(e3, y3, a, b, u + 3 * step).Store(gradient + 3 * w);
                Slope<V, TStorage, TUniform, TCapped>(e4, y4, a, b, u + 4 * step).Store(gradient + 4 * w);
                Slope<V, TStorage, TUniform, TCapped>(e5, y5, a, b, u + 5 * step).Store(gradient + 5 * w);
                Slope<V, TStorage, TUniform, TCapped>(e6, y6, a, b, u + 6 * step).Store(gradient + 6 * w);
                Slope<V, TStorage, TUniform, TCapped>(e7, y7, a, b, u + 7 * step).Store(gradient + 7 * w);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void DifferentiateRest<V, TStorage, TUniform, TCapped>(byte* u, in Slopes slopes, float* gradient, nint count, byte* next, float* ahead)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TUniform : struct, IChoice where TCapped : struct, IChoice
        {
            nint w = V.Count, step = w * TStorage.Size;
            V lowest = V.From(V.LowestPower), anchor = V.From(slopes.Anchor), scale = V.From(slopes.Scale), a = V.From(slopes.Constant), b = V.From(slopes.PerPower);
            float* end = gradient + count;
            for (; gradient <= end - 4 * w; u += 4 * step, gradient += 4 * w)
            {
                if (next != null)
                {
                    Prefetch.Bytes(next, 4 * step);
                    next += 4 * step;
                }
                if (ahead != null)
                {
                    Prefetch.Four<V>(ahead);
                    ahead += 4 * w;
                }
                V y0 = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchor) * scale), y1 = V.MaxNative(lowest, (TStorage.Load<V>(u + step) - anchor) * scale);
                V y2 = V.MaxNative(lowest, (TStorage.Load<V>(u + 2 * step) - anchor) * scale), y3 = V.MaxNative(lowest, (TStorage.Load<V>(u + 3 * step) - anchor) * scale);
                Exponential.PowersOfTwo(y0, y1, y2, y3, out V e0, out V e1, out V e2, out V e3);
                Slope<V, TStorage, TUniform, TCapped>(e0, y0, a, b, u).Store(gradient);
                Slope<V, TStorage, TUniform, TCapped>(e1, y1, a, b, u + step).Store(gradient + w);
                Slope<V, TStorage, TUniform, TCapped>(e2, y2, a, b, u + 2 * step).Store(gradient + 2 * w);
                Slope<V, TStorage, TUniform, TCapped>(e3, y3, a, b, u + 3 * step).Store(gradient + 3 * w);
            }
            for (; gradient < end; u += step, gradient += w)
            {
                V y = V.MaxNative(lowest, (TStorage.Load<V>(u) - anchor) * scale);
                Slope<V, TStorage, TUniform, TCapped>(Exponential.PowerOfTwo(y), y, a, b, u).Store(gradient);
            }
        }

        // e (a + b y), of the logit.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static V Slope<V, TStorage, TUniform, TCapped>(V e, V y, V a, V b, byte* u)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TUniform : struct, IChoice where TCapped : struct, IChoice =>
            OfLogit<V, TStorage, TCapped>(e, u) * (TUniform.Taken ? a : V.MultiplyAdd(b, y, a));

        /// <summary>What becomes of a slope of z before it is one of the logit but for <see cref="Unit"/>: with a softcap it is multiplied by u² − 1.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static V OfLogit<V, TStorage, TCapped>(V slope, byte* u) where V : struct, ILanes<V> where TStorage : struct, IStorage where TCapped : struct, IChoice
        {
            if (!TCapped.Taken)
                return slope;
            V tanh = TStorage.Load<V>(u);
            return slope * V.MultiplyAdd(tanh, tanh, -V.One);
        }

        // With all four coefficients.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void DifferentiateAll<V, TStorage, TCapped>(byte* u, in Slopes slopes, float* gradient, nint count) where V : struct, ILanes<V> where TStorage : struct, IStorage where TCapped : struct, IChoice
        {
            V lowest = V.From(V.LowestPower), anchor = V.From(slopes.Anchor), scale = V.From(slopes.Scale);
            V a = V.From(slopes.Constant), b = V.From(slopes.PerPower), c = V.From(slopes.PerExponential), d = V.From(slopes.Everywhere);
            for (float* end = gradient + count; gradient < end; gradient += V.Count, u += V.Count * TStorage.Size)
            {
                V x = TStorage.Load<V>(u), y = V.MaxNative(lowest, (x - anchor) * scale), e = Exponential.PowerOfTwo(y);
                V slope = V.MultiplyAdd(e, V.MultiplyAdd(c, e - 1f, V.MultiplyAdd(b, y, a)), d);
                (TCapped.Taken ? slope * V.MultiplyAdd(x, x, -V.One) : slope).Store(gradient);
            }
        }
    }
}
