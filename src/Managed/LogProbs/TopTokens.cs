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

        /// <summary>The likeliest token; −1 before there is one.</summary>
        public long Likeliest { get; private set; } = -1;

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
            if (at == 0)
                Likeliest = token;
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
            nint four = 4 * V.Count;
            nint* pieces = stackalloc nint[(int)(count / four)];
            nint found = Find<V, TStorage>(block, ref i, count, threshold, pieces);
            for (nint piece = 0; piece < found; piece++)
            {
                nint start = pieces[piece];
                threshold = Offer<V, TStorage>(block + start * TStorage.Size, four, first + start, threshold);
            }
            Offer<V, TStorage>(block + i * TStorage.Size, count - i, first + i, threshold);
        }

        // Where pieces of four vectors have something to offer: without a branch, for most of those would be guessed wrong.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static nint Find<V, TStorage>(byte* block, ref nint start, nint count, float threshold, nint* pieces) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            V thresholds = V.From(threshold);
            nint w = V.Count, size = TStorage.Size, found = 0, i = start;
            for (; i <= count - 4 * w; i += 4 * w)
            {
                byte* at = block + i * size;
                TStorage.Load(at, out V a, out V b);
                TStorage.Load(at + 2 * w * size, out V c, out V d);
                pieces[found] = i;
                found += V.AnyLess(thresholds, V.MaxNative(V.MaxNative(a, b), V.MaxNative(c, d))) ? 1 : 0;
            }
            start = i;
            return found;
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
            float kth = float.PositiveInfinity;
            for (int lane = 0; lane < V.Count; lane++)
            {
                // Where −∞ is one of them, the list must take it; and a NaN may be anywhere.
                if (!(lanes[lane] > float.NegativeInfinity))
                    return float.NaN;
                if (BitOperations.PopCount((uint)V.BitsLess(V.From(lanes[lane]), largest)) < capacity)
                    kth = Math.Min(kth, lanes[lane]);
            }
            return float.BitDecrement(kth);
        }

        // Offers what exceeds the threshold in up to four vectors. Returns the threshold then.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private float Offer<V, TStorage>(byte* piece, nint count, nint first, float threshold) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            ulong larger = 0;
            for (nint i = 0; i < count; i += V.Count)
                larger |= (ulong)(uint)V.BitsLess(V.From(threshold), TStorage.Load<V>(piece + i * TStorage.Size)) << (int)i;
            for (; larger != 0; larger &= larger - 1)
            {
                nint j = BitOperations.TrailingZeroCount(larger);
                float logit = TStorage.Load<Real32>(piece + j * TStorage.Size).Value;
                if (j >= count || !(logit > threshold))
                    continue;
                Offer(first + j, logit);
                if (IsFull)
                    threshold = Threshold;
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
