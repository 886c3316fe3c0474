using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A row's sums, which the kernels of log-probs and of the likeliest tokens begin with.
internal static partial class LogProbsKernels<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    // e to this power and below is 0 in float32. The bound leaves −∞ out of the entropy: e^t is 0 there, and 0 · t must be.
    private const float LowestExponent = -104f;

    // Arrays of a float a thread: of shaped logits with those kept all of the 48 KB.
    internal static int SharedSums => (TLogits.IsShaped ? 4 : 3) * GroupSize;

    // z of a difference of two u.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static float Scaled(in GpuLogitRows<TLogits> rows, float difference) => TLogits.IsShaped ? rows.Logits.Scale * difference : difference;

    /// <summary>The sums of a row, in every thread; its logits are kept if that is asked for.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static GpuLogitSums Sums(in GpuLogitRows<TLogits> rows, long row, ArrayView<float> shared, ArrayView<float> kept, ArrayView<long> places, bool keeps, bool finds, bool totals)
    {
        ThreadSums own = new(float.NegativeInfinity, 0f, 0f, 0f, 0f, 0f);
        // Where all are −∞ the first one is the largest.
        long place = Group.IdxX;
        float logits = 0f;
        long at = rows.Logits.At(row);
        for (long j0 = Group.IdxX; j0 < rows.Vocabulary; j0 += LogProbsSize.BlockLogits)
        {
            FourNumbers z = rows.Logits.ReadFour(at, j0, GroupSize, rows.Vocabulary);
            if (keeps)
            {
                kept[(int)j0] = z.First;
                kept[(int)j0 + GroupSize] = z.Second;
                kept[(int)j0 + 2 * GroupSize] = z.Third;
                kept[(int)j0 + 3 * GroupSize] = z.Fourth;
            }
            float largest = z.Largest;
            if (largest > own.Max)
            {
                own = own.Moved(rows, largest);
                if (finds)
                    place = j0 + (z.First == largest ? 0 : z.Second == largest ? GroupSize : z.Third == largest ? 2 * GroupSize : 3 * GroupSize);
            }
            if (totals)
                logits += Weighted(rows, z.First, j0) + Weighted(rows, z.Second, j0 + GroupSize) + Weighted(rows, z.Third, j0 + 2 * GroupSize) + Weighted(rows, z.Fourth, j0 + 3 * GroupSize);
            own = own.Plus(rows, z.First).Plus(rows, z.Second).Plus(rows, z.Third).Plus(rows, z.Fourth);
        }

        int thread = Group.IdxX;
        shared[thread] = own.Max;
        if (finds)
            places[thread] = place;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (finds && thread < half && (shared[thread + half] > shared[thread] || (shared[thread + half] == shared[thread] && places[thread + half] < places[thread])))
                places[thread] = places[thread + half];
            if (thread < half && shared[thread + half] > shared[thread])
                shared[thread] = shared[thread + half];
        }
        Group.Barrier();
        float max = shared[0];
        if (finds)
            place = places[0];
        Group.Barrier();
        if (max > own.Max)
            own = own.Moved(rows, max);
        shared[thread] = own.Ones;
        shared[thread + GroupSize] = own.Rest;
        shared[thread + 2 * GroupSize] = own.Weighted;
        if (TLogits.IsShaped)
            shared[thread + 3 * GroupSize] = own.Squares;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
            {
                shared[thread] += shared[thread + half];
                shared[thread + GroupSize] += shared[thread + GroupSize + half];
                shared[thread + 2 * GroupSize] += shared[thread + 2 * GroupSize + half];
                if (TLogits.IsShaped)
                    shared[thread + 3 * GroupSize] += shared[thread + 3 * GroupSize + half];
            }
        }
        Group.Barrier();
        GpuLogitSums sums = new(max == float.PositiveInfinity || max == float.NegativeInfinity ? 0f : max, shared[0], shared[GroupSize], shared[2 * GroupSize],
            TLogits.IsShaped ? shared[3 * GroupSize] : 0f, place, logits);
        Group.Barrier();
        return sums;
    }

    // What a column adds to the sum of which the mean logit is made, in u: an infinite logit of weight 0 is left out.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Weighted(in GpuLogitRows<TLogits> rows, float u, long column)
    {
        float weight = column < rows.Vocabulary ? rows.MeanWeight(column) : 0f;
        return weight == 0f ? 0f : weight * u;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Bounded(float t) => t < LowestExponent ? LowestExponent : t; // NaN stays, the constant being on the right

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Exp(float t) => Real32.Exp(new(t)).Value;

    /// <summary>What one thread saw: Σ e^t, Σ e^t t and, of shaped logits, Σ e^2t, t = scale · (u − shift), where the shift is the largest u so far, or 0 where that is infinite.</summary>
    /// <remarks>The ones of the largest logit are counted apart: a peaked row's small terms would drown in them.</remarks>
    private readonly struct ThreadSums(float max, float shift, float ones, float rest, float weighted, float squares)
    {
        private readonly float max = max, shift = shift, ones = ones, rest = rest, weighted = weighted, squares = squares;

        public float Max => max;

        public float Ones => ones;

        public float Rest => rest;

        public float Weighted => weighted;

        /// <summary>Without those of the ones.</summary>
        public float Squares => squares;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ThreadSums Plus(in GpuLogitRows<TLogits> rows, float u)
        {
            float t = Bounded(Scaled(rows, u - shift)), power = Exp(t);
            return new(max, shift, ones + (t == 0f ? 1f : 0f), rest + (t == 0f ? 0f : power), weighted + power * t, TLogits.IsShaped && t != 0f ? squares + power * power : squares);
        }

        /// <summary>The same relative to a larger maximum.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public ThreadSums Moved(in GpuLogitRows<TLogits> rows, float largest)
        {
            // ∞ − ∞ would be NaN where the log-sum-exp is ∞.
            float to = largest == float.PositiveInfinity ? 0f : largest;
            if (max == float.NegativeInfinity)
                return new(largest, to, ones, rest, weighted, squares);
            float moved = Bounded(Scaled(rows, shift - to)), factor = Exp(moved), sum = rest + ones;
            return new(largest, to, 0f, sum * factor, (weighted + sum * moved) * factor, TLogits.IsShaped ? (squares + ones) * factor * factor : squares);
        }
    }

    /// <summary>A row's shift, S = Σ e^t with t = scale · (u − shift), its logarithm, and entropy; of shaped logits also Q = Σ p² and what is asked for besides.</summary>
    internal readonly struct GpuLogitSums
    {
        public readonly float Shift, Total, LogSum, Entropy, SumOfSquares;

        /// <summary>p − Q of the largest logit, 1 / S − Q, formed of the small terms: beside a peak p and Q are both 1.</summary>
        public readonly float Peak;

        /// <summary>The first of the largest; a NaN may be passed over.</summary>
        public readonly long Largest;

        /// <summary>Σ w u of this thread's logits alone.</summary>
        public readonly float OwnLogits;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public GpuLogitSums(float shift, float ones, float rest, float weighted, float squares, long largest, float ownLogits)
        {
            Total = ones + rest;
            SumOfSquares = (ones + squares) / Total / Total;
            Peak = (rest - squares) / Total / Total;
            Largest = largest;
            OwnLogits = ownLogits;
            Shift = shift;
            LogSum = Real32.Log1p(new(ones - 1f + rest)).Value;
            Entropy = LogSum - weighted / Total; // Σ p (ln S − t), with p = e^t / S
        }
    }
}
