using System.Numerics;
using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Where the likeliest tokens of each row go: [n, k] log-probs and, optionally, tokens.</summary>
internal readonly unsafe struct TopRows
{
    private readonly HostVector logProbs;
    private readonly TokenVector tokens;
    private readonly nint logProbStride, tokenStride;

    public TopRows(byte* logProbs, byte* tokens, in TokenOutputs outputs)
    {
        if (!outputs.TopLogProbs.IsPresent)
            return;
        Count = (nint)outputs.TopLogProbs.Length(1);
        this.logProbs = new(logProbs, outputs.TopLogProbs);
        logProbStride = (nint)outputs.TopLogProbs.Stride(0);
        if (!outputs.TopTokens.IsPresent)
            return;
        this.tokens = new(tokens, outputs.TopTokens);
        tokenStride = (nint)outputs.TopTokens.Stride(0);
    }

    /// <summary>k; 0 if nobody asks.</summary>
    public readonly nint Count;

    public void Clear(nint row)
    {
        for (nint i = 0; i < Count; i++)
        {
            logProbs.From(row * logProbStride)[i] = 0;
            tokens.From(row * tokenStride).Set(i, 0);
        }
    }

    /// <summary>Makes log-probs of the logits that a list has left in a row.</summary>
    public void Finish(nint row, double shift, double logSum)
    {
        if (Count > 0)
            Begin(row).Finish(scale: 1, shift, logSum);
    }

    public List Begin(nint row) => new(logProbs.From(row * logProbStride), tokens.From(row * tokenStride), Count);

    /// <summary>The largest logits of a row so far, in place of the log-probs that they become; of equal ones the first comes first.</summary>
    public struct List(HostVector logits, TokenVector tokens, nint capacity)
    {
        private nint count;

        /// <summary>What a logit must exceed to be among them.</summary>
        public readonly float Threshold => logits[capacity - 1];

        public readonly bool IsFull => count == capacity;

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        public void Offer(nint token, float logit)
        {
            if (IsFull && !(logit > Threshold))
                return;
            nint at = IsFull ? capacity - 1 : count++;
            for (; at > 0 && logits[at - 1] < logit; at--)
            {
                logits[at] = logits[at - 1];
                if (tokens.IsPresent)
                    tokens.Set(at, tokens[at - 1]);
            }
            logits[at] = logit;
            tokens.Set(at, token);
        }

        /// <summary>Offers a block of a row.</summary>
        /// <param name="block">Where it lies.</param>
        /// <param name="count">How long it is; whole vectors can be read.</param>
        /// <param name="first">The token of its first logit.</param>
        /// <param name="largest">Its largest.</param>
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        public void Look<V, TStorage>(byte* block, nint count, nint first, float largest) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            if (IsFull && largest <= Threshold)
                return;
            nint i = 0;
            float threshold = IsFull ? Threshold : ThresholdOf<V, TStorage>(block, count);
            if (float.IsNaN(threshold))
            {
                for (; i < count && (!IsFull || i % V.Count != 0); i++)
                    Offer(first + i, TStorage.Load<Real32>(block + i * TStorage.Size).Value);
                if (i == count)
                    return;
                threshold = Threshold;
            }
            V thresholds = V.From(threshold);
            nint w = V.Count, four = 4 * w;
            for (; i <= count - four; i += four)
            {
                byte* at = block + i * TStorage.Size;
                V a = V.MaxNative(TStorage.Load<V>(at), TStorage.Load<V>(at + w * TStorage.Size));
                V b = V.MaxNative(TStorage.Load<V>(at + 2 * w * TStorage.Size), TStorage.Load<V>(at + 3 * w * TStorage.Size));
                if (V.AnyLess(thresholds, V.MaxNative(a, b)))
                    thresholds = V.From(threshold = Offer<V, TStorage>(at, four, first + i, threshold));
            }
            Offer<V, TStorage>(block + i * TStorage.Size, count - i, first + i, threshold);
        }

        // What a logit of a block must exceed to be among them while the list is empty; NaN if nothing is known. Each lane's largest is a logit of its own: what is less than the kth of these has k others before it.
        private readonly float ThresholdOf<V, TStorage>(byte* block, nint length) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            if (count > 0 || capacity > V.Count || length < 2 * V.Count)
                return float.NaN;
            V largest = TStorage.Load<V>(block);
            for (nint i = V.Count; i <= length - V.Count; i += V.Count)
                largest = V.MaxNative(largest, TStorage.Load<V>(block + i * TStorage.Size));
            float* lanes = stackalloc float[V.Count];
            largest.Store(lanes);
            var sorted = new Span<float>(lanes, V.Count);
            sorted.Sort();
            // A NaN comes first; where −∞ is one of them, the list must take it.
            return sorted[0] > float.NegativeInfinity ? float.BitDecrement(sorted[V.Count - (int)capacity]) : float.NaN;
        }

        // Offers what exceeds the threshold, vector by vector. Returns the threshold then.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private float Offer<V, TStorage>(byte* block, nint count, nint first, float threshold) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            for (nint i = 0; i < count; i += V.Count)
            {
                int larger = V.BitsLess(V.From(threshold), TStorage.Load<V>(block + i * TStorage.Size));
                for (; larger != 0; larger &= larger - 1)
                {
                    nint j = i + BitOperations.TrailingZeroCount(larger);
                    float logit = TStorage.Load<Real32>(block + j * TStorage.Size).Value;
                    if (j >= count || !(logit > threshold))
                        continue;
                    Offer(first + j, logit);
                    if (IsFull)
                        threshold = Threshold;
                }
            }
            return threshold;
        }

        public readonly void Finish(double scale, double shift, double logSum)
        {
            for (nint i = 0; i < capacity; i++)
                logits[i] = (float)(scale * logits[i] - shift - logSum);
        }
    }
}
