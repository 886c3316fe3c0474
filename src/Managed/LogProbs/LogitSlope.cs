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
        private readonly double logSum, entropy, squares;
        private readonly float shift, constant, perLogit, perExponential, everywhere;
        private readonly bool isUniform;

        public LogitSlope(in RowSums sums, in Arriving arriving, long entries)
        {
            of = arriving;
            shift = sums.Shift;
            logSum = sums.LogSum;
            entropy = sums.Entropy;
            squares = sums.SumOfSquares;
            // No distribution, no gradient.
            bool any = sums.Sum > 0 && sums.Sum < double.PositiveInfinity;
            isUniform = of.Entropy == 0;
            double ofPeak = of.SumOfSquares == 0 ? 0 : 2 * of.SumOfSquares * (1 / sums.Sum - squares);
            constant = any ? (float)(((double)of.LogSumExp - of.LogProb - (isUniform ? 0 : of.Entropy * sums.MinusMean) + ofPeak) / sums.Sum) : float.NaN;
            perLogit = any ? (float)(of.Entropy / sums.Sum) : float.NaN;
            perExponential = any ? (float)(2 * of.SumOfSquares / sums.Sum / sums.Sum) : float.NaN;
            everywhere = of.MeanLogit / entries;
        }

        /// <summary>a, b, c and d.</summary>
        public (float Constant, float PerLogit, float PerExponential, float Everywhere) Coefficients => (constant, -perLogit, perExponential, everywhere);

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
        /// <param name="logits">Prepared logits.</param>
        /// <param name="gradient">Where it goes.</param>
        /// <param name="count">How many, whole vectors.</param>
        /// <param name="next">So many floats that will be needed soon, from here; null for none.</param>
        public void Differentiate<V>(float* logits, float* gradient, nint count, float* next = null) where V : struct, ILanes<V>
        {
            if (of.SumOfSquares != 0 || of.MeanLogit != 0)
            {
                DifferentiateAll<V>(logits, gradient, count);
                return;
            }
            nint eights = HasManyRegisters ? count - count % (8 * V.Count) : 0;
            if (isUniform)
            {
                Differentiate8<V, Yes>(logits, gradient, eights, shift, constant, perLogit, next);
                DifferentiateRest<V, Yes>(logits + eights, gradient + eights, count - eights, shift, constant, perLogit, eights == 0 ? next : null);
            }
            else
            {
                Differentiate8<V, No>(logits, gradient, eights, shift, constant, perLogit, next);
                DifferentiateRest<V, No>(logits + eights, gradient + eights, count - eights, shift, constant, perLogit, eights == 0 ? next : null);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Differentiate8<V, TUniform>(float* logits, float* gradient, nint count, float shift, float constant, float perLogit, float* next)
            where V : struct, ILanes<V> where TUniform : struct, IChoice
        {
            nint w = V.Count;
            V lowest = V.From(Exponential.Lowest), shifts = V.From(shift), a = V.From(constant), b = V.From(-perLogit * Exponential.Ln2);
            float* end = logits + count;
            for (; logits < end; logits += 8 * w, gradient += 8 * w)
            {
                if (next != null)
                {
                    Prefetch.Four<V>(next);
                    Prefetch.Four<V>(next + 4 * w);
                    next += 8 * w;
                }
                V y0 = V.MaxNative(lowest, V.Load(logits) - shifts) * Exponential.Log2E, y1 = V.MaxNative(lowest, V.Load(logits + w) - shifts) * Exponential.Log2E;
                V y2 = V.MaxNative(lowest, V.Load(logits + 2 * w) - shifts) * Exponential.Log2E, y3 = V.MaxNative(lowest, V.Load(logits + 3 * w) - shifts) * Exponential.Log2E;
                V y4 = V.MaxNative(lowest, V.Load(logits + 4 * w) - shifts) * Exponential.Log2E, y5 = V.MaxNative(lowest, V.Load(logits + 5 * w) - shifts) * Exponential.Log2E;
                V y6 = V.MaxNative(lowest, V.Load(logits + 6 * w) - shifts) * Exponential.Log2E, y7 = V.MaxNative(lowest, V.Load(logits + 7 * w) - shifts) * Exponential.Log2E;
                Exponential.PowersOfTwo(y0, y1, y2, y3, y4, y5, y6, y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7);
                (e0 * Factor<V, TUniform>(y0, a, b)).Store(gradient);
                (e1 * Factor<V, TUniform>(y1, a, b)).Store(gradient + w);
                (e2 * Factor<V, TUniform>(y2, a, b)).Store(gradient + 2 * w);
                (e3 * Factor<V, TUniform>(y3, a, b)).Store(gradient + 3 * w);
                (e4 * Factor<V, TUniform>(y4, a, b)).Store(gradient + 4 * w);
                (e5 * Factor<V, TUniform>(y5, a, b)).Store(gradient + 5 * w);
                (e6 * Factor<V, TUniform>(y6, a, b)).Store(gradient + 6 * w);
                (e7 * Factor<V, TUniform>(y7, a, b)).Store(gradient + 7 * w);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void DifferentiateRest<V, TUniform>(float* logits, float* gradient, nint count, float shift, float constant, float perLogit, float* next)
            where V : struct, ILanes<V> where TUniform : struct, IChoice
        {
            nint w = V.Count, i = 0;
            V lowest = V.From(Exponential.Lowest), a = V.From(constant), b = V.From(-perLogit);
            for (; i + 4 * w <= count; i += 4 * w)
            {
                if (next != null)
                    Prefetch.Four<V>(next + i);
                V t0 = V.MaxNative(lowest, V.Load(logits + i) - shift), t1 = V.MaxNative(lowest, V.Load(logits + i + w) - shift);
                V t2 = V.MaxNative(lowest, V.Load(logits + i + 2 * w) - shift), t3 = V.MaxNative(lowest, V.Load(logits + i + 3 * w) - shift);
                Exponential.OfNonPositive(t0, t1, t2, t3, out V e0, out V e1, out V e2, out V e3);
                (e0 * Factor<V, TUniform>(t0, a, b)).Store(gradient + i);
                (e1 * Factor<V, TUniform>(t1, a, b)).Store(gradient + i + w);
                (e2 * Factor<V, TUniform>(t2, a, b)).Store(gradient + i + 2 * w);
                (e3 * Factor<V, TUniform>(t3, a, b)).Store(gradient + i + 3 * w);
            }
            for (; i < count; i += w)
            {
                V t = V.MaxNative(lowest, V.Load(logits + i) - shift);
                (Exponential.OfNonPositive(t) * Factor<V, TUniform>(t, a, b)).Store(gradient + i);
            }
        }

        // With all four coefficients.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private void DifferentiateAll<V>(float* logits, float* gradient, nint count) where V : struct, ILanes<V>
        {
            V lowest = V.From(Exponential.Lowest), a = V.From(constant), b = V.From(-perLogit), c = V.From(perExponential), d = V.From(everywhere);
            for (nint i = 0; i < count; i += V.Count)
            {
                V t = V.MaxNative(lowest, V.Load(logits + i) - shift), e = Exponential.OfNonPositive(t);
                V.MultiplyAdd(e, V.MultiplyAdd(c, e - 1f, V.MultiplyAdd(b, t, a)), d).Store(gradient + i);
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static V Factor<V, TUniform>(V t, V a, V b) where V : struct, ILanes<V> where TUniform : struct, IChoice => TUniform.Taken ? a : V.MultiplyAdd(b, t, a);
    }
}
