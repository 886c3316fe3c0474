using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    private unsafe partial struct HiddenWork
    {
        // Lane by lane into the panel of its tokens, and as a row into the panels of its columns; zeros where there is no token.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private readonly void Pack<V>(nint item, float* scratch) where V : struct, ILanes<V>
        {
            nint width = Plan.Width, panel = Plan.Panel, lane = item * V.Count;
            float* columns = PackedHidden + lane / panel * panel * width + lane % panel;
            for (nint i = 0; i < V.Count; i++)
            {
                if (lane + i >= Count)
                {
                    for (nint w = 0; w < width; w++)
                        columns[w * panel + i] = 0;
                    continue;
                }
                float* row = Hidden.Read<V>((nint)Tokens[lane + i], width, scratch);
                for (nint w = 0; w < width; w++)
                    columns[w * panel + i] = row[w];
                if (!Plan.Backward)
                    continue;
                for (nint w = 0; w < width; w += panel)
                {
                    float* part = PackedRows + w * Plan.Stride + (lane + i) * panel;
                    for (nint j = 0; j < panel; j++)
                        part[j] = w + j < width ? row[w + j] : 0;
                }
            }
        }

        // The logits of a block of entries and of some vectors of a panel, in rows of the chunk's tokens.
        private readonly void Logits<V>(nint start, nint rows, float* entries, nint entryStride, nint lane, nint vectors, float* logits, nint stride) where V : struct, ILanes<V>
        {
            VocabularyProduct.Set<V>(entries, entryStride, 1, rows, PackedHidden + lane / Plan.Panel * Plan.Panel * Plan.Width + lane % Plan.Panel, Plan.Panel, vectors, Plan.Width, logits, stride);
            if (Bias != null || Shape.Bends)
                Bend<V>(start, rows, vectors, logits, stride);
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private readonly void Bend<V>(nint start, nint rows, nint vectors, float* logits, nint stride) where V : struct, ILanes<V>
        {
            for (nint r = 0; r < rows; r++)
            {
                V bias = Bias == null ? V.Zero : V.From(Bias[start + r]);
                for (nint lane = 0; lane < vectors * V.Count; lane += V.Count)
                    Shape.Bend(V.Load(logits + r * stride + lane) + bias).Store(logits + r * stride + lane);
            }
        }

        // A block's entries as float32.
        private readonly float* Entries<V>(nint start, nint rows, float* converted, out nint stride) where V : struct, ILanes<V>
        {
            if (!Plan.Converts)
            {
                stride = Vocabulary.Stride;
                return Vocabulary.Floats(start);
            }
            stride = Plan.Width;
            for (nint r = 0; r < rows; r++)
                Vocabulary.Read<V>(start + r, Plan.Width, converted + r * stride);
            return converted;
        }

        private readonly void Sum<V>(nint piece, float* scratch) where V : struct, ILanes<V>
        {
            float* max = Partial(piece, 0), sum = Partial(piece, 1), weighted = Partial(piece, 2), squares = Partial(piece, 3), total = Partial(piece, 4), argmax = Partial(piece, 5);
            new Span<float>(max, (int)Plan.Stride).Fill(float.NegativeInfinity);
            NativeMemory.Clear(sum, (nuint)((HiddenPlan.PartialFields - 1) * Plan.Stride * sizeof(float)));
            float* converted = scratch + Plan.BlockFloats;
            nint stride = Plan.Keeps ? Plan.Stride : Plan.Panel;
            (nint start, nint end) = Plan.Piece(piece);
            for (; start < end; start += HiddenPlan.BlockRows)
            {
                nint rows = Math.Min(HiddenPlan.BlockRows, end - start);
                float* entries = Entries<V>(start, rows, converted, out nint entryStride);
                for (nint lane = 0; lane < Count; lane += Plan.Panel)
                {
                    nint count = Math.Min(Plan.Panel, Count - lane), vectors = HiddenPlan.RoundUp(count, V.Count) / V.Count;
                    float* logits = Plan.Keeps ? Memory + Plan.Logits + start * stride + lane : scratch;
                    Logits<V>(start, rows, entries, entryStride, lane, vectors, logits, stride);
                    for (nint i = 0; i < count; i++)
                    {
                        nint row = (nint)Targets[lane + i] - start;
                        if ((nuint)row < (nuint)rows)
                            TargetLogit[lane + i] = logits[row * stride + i];
                    }
                    if (Partials.IsPresent || Results.HasArgmax)
                        FindLargest(logits, stride, rows, start, max + lane, (int*)argmax + lane, count);
                    for (nint at = 0; at < vectors * V.Count && (Partials.IsPresent || Results.HasMeanLogit); at += V.Count)
                        AddLogits<V>(logits + at, stride, rows, MeanWeights == null ? null : MeanWeights + start, total + lane + at);
                    for (nint v = 0; v < vectors; v++)
                    {
                        nint at = v * V.Count;
                        AddExponentials<V>(logits + at, stride, rows, max + lane + at, sum + lane + at, weighted + lane + at, squares + lane + at);
                    }
                }
            }
        }

        // The entry of a new maximum, the first of several; max is still that of the blocks before. Where all is −∞ the entry stays 0.
        private static void FindLargest(float* logits, nint stride, nint rows, nint start, float* max, int* argmax, nint count)
        {
            for (nint i = 0; i < count; i++)
            {
                float largest = max[i];
                for (nint r = 0; r < rows; r++)
                {
                    if (logits[r * stride + i] > largest)
                    {
                        largest = logits[r * stride + i];
                        argmax[i] = (int)(start + r);
                    }
                }
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void AddLogits<V>(float* logits, nint stride, nint rows, float* weights, float* total) where V : struct, ILanes<V>
        {
            V sum = V.Zero;
            for (nint r = 0; r < rows; r++)
            {
                V z = V.Load(logits + r * stride);
                sum = weights == null ? sum + z : weights[r] == 0 ? sum : V.MultiplyAdd(z, V.From(weights[r]), sum);
            }
            (V.Load(total) + sum).Store(total);
        }

        // Online: what was summed moves to the new maximum. The bound leaves −∞ out of the entropy, and keeps ∞ − ∞ from being formed.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void AddExponentials<V>(float* logits, nint stride, nint rows, float* max, float* sum, float* weighted, float* squares) where V : struct, ILanes<V>
        {
            V lowest = V.From(Exponential.Lowest), minusInfinity = V.From(float.NegativeInfinity);
            V old = V.Load(max), a = old, b = old;
            nint r = 0;
            for (; r + 2 <= rows; r += 2)
            {
                a = V.MaxNative(a, V.Load(logits + r * stride));
                b = V.MaxNative(b, V.Load(logits + (r + 1) * stride));
            }
            if (r < rows)
                a = V.MaxNative(a, V.Load(logits + r * stride));
            a = V.MaxNative(a, b);
            a.Store(max);
            V shift = V.SelectEqual(a, minusInfinity, V.Zero, a);
            V s0 = V.Zero, s1 = V.Zero, w0 = V.Zero, w1 = V.Zero, q0 = V.Zero, q1 = V.Zero;
            for (r = 0; r + 4 <= rows; r += 4)
            {
                float* z = logits + r * stride;
                V t0 = V.MaxNative(lowest, V.Load(z) - shift), t1 = V.MaxNative(lowest, V.Load(z + stride) - shift);
                V t2 = V.MaxNative(lowest, V.Load(z + 2 * stride) - shift), t3 = V.MaxNative(lowest, V.Load(z + 3 * stride) - shift);
                Exponential.OfNonPositive(t0, t1, t2, t3, out V e0, out V e1, out V e2, out V e3);
                s0 += e0; w0 = V.MultiplyAdd(e0, t0, w0); q0 = V.MultiplyAdd(e0, e0, q0);
                s1 += e1; w1 = V.MultiplyAdd(e1, t1, w1); q1 = V.MultiplyAdd(e1, e1, q1);
                s0 += e2; w0 = V.MultiplyAdd(e2, t2, w0); q0 = V.MultiplyAdd(e2, e2, q0);
                s1 += e3; w1 = V.MultiplyAdd(e3, t3, w1); q1 = V.MultiplyAdd(e3, e3, q1);
            }
            for (; r < rows; r++)
            {
                V t = V.MaxNative(lowest, V.Load(logits + r * stride) - shift), e = Exponential.OfNonPositive(t);
                s0 += e; w0 = V.MultiplyAdd(e, t, w0); q0 = V.MultiplyAdd(e, e, q0);
            }
            V moved = V.MaxNative(lowest, old - shift), factor = Exponential.OfNonPositive(moved), before = V.Load(sum);
            (V.MultiplyAdd(before, factor, s0 + s1)).Store(sum);
            (V.MultiplyAdd(V.MultiplyAdd(before, moved, V.Load(weighted)), factor, w0 + w1)).Store(weighted);
            (V.MultiplyAdd(V.Load(squares), factor * factor, q0 + q1)).Store(squares);
        }

        // The likeliest tokens of a vector of tokens, for as many as there are; their logits stay in the place of log-probs until the sums are known.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private readonly void FindTop<V>(nint item, float* scratch) where V : struct, ILanes<V>
        {
            nint lane = item * V.Count, count = Math.Min(V.Count, Count - lane);
            if (count <= 0)
                return;
            TopRows.List* lists = stackalloc TopRows.List[(int)count];
            for (nint i = 0; i < count; i++)
                lists[i] = Top.Begin((nint)Tokens[lane + i]);
            float* thresholds = stackalloc float[V.Count];
            new Span<float>(thresholds, V.Count).Fill(float.PositiveInfinity);
            float* converted = scratch + Plan.BlockFloats;
            for (nint start = 0; start < Plan.Vocabulary; start += HiddenPlan.BlockRows)
            {
                nint rows = Math.Min(HiddenPlan.BlockRows, Plan.Vocabulary - start), stride = Plan.Keeps ? Plan.Stride : V.Count;
                float* logits = Plan.Keeps ? Memory + Plan.Logits + start * stride + lane : scratch;
                if (!Plan.Keeps)
                    Logits<V>(start, rows, Entries<V>(start, rows, converted, out nint entryStride), entryStride, lane, 1, logits, stride);
                for (nint r = 0; r < rows; r++)
                {
                    float* z = logits + r * stride;
                    bool full = start + r >= Top.Count;
                    if (full && !V.AnyLess(V.Load(thresholds), V.Load(z)))
                        continue;
                    for (nint i = 0; i < count; i++)
                    {
                        lists[i].Offer(start + r, z[i]);
                        if (lists[i].IsFull)
                            thresholds[i] = lists[i].Threshold;
                    }
                }
            }
        }

        private readonly VocabularySums MergePieces(nint i)
        {
            var merge = new VocabularyMerge();
            for (nint piece = 0; piece < Plan.Pieces; piece++)
                merge.Look(Partial(piece, 0)[i], ((int*)Partial(piece, 5))[i]);
            for (nint piece = 0; piece < Plan.Pieces; piece++)
                merge.Add(new(Partial(piece, 0)[i], Partial(piece, 1)[i], Partial(piece, 2)[i], Partial(piece, 3)[i], Partial(piece, 4)[i], float.NegativeInfinity, 0));
            VocabularySums whole = merge.Whole;
            return whole with { Logits = whole.Logits / Shard.Whole, TargetLogit = TargetLogit[i], Argmax = Shard.First + whole.Argmax };
        }

        private readonly void Merge<V>(nint item) where V : struct, ILanes<V>
        {
            for (nint i = item * V.Count; i < (item + 1) * V.Count; i++)
            {
                if (i >= Count)
                {
                    Shift[i] = Constant[i] = PerLogit[i] = PerExponential[i] = Everywhere[i] = AtTarget[i] = 0;
                    continue;
                }
                nint token = (nint)Tokens[i];
                VocabularySums whole = Merged.IsPresent ? Merged[token] : MergePieces(i);
                Results.Set(token, whole);
                Top.Finish(token, whole.Row.Shift, whole.Row.LogSum);
                if (Partials.IsPresent)
                    Partials[token] = whole;
                if (!Plan.Backward)
                    continue;
                Arriving arriving = Upstream[token];
                // A mean with weights is added afterwards.
                float ofMean = MeanWeights == null ? 0 : arriving.MeanLogit / Shard.Whole;
                var slope = new LogitSlope(whole.Row, MeanWeights == null ? arriving : arriving with { MeanLogit = 0 }, Shard.Whole);
                Shift[i] = whole.Row.Anchor;
                (Constant[i], PerLogit[i], PerExponential[i], Everywhere[i]) = slope.Coefficients;
                double atTarget = slope.AtTarget(whole.TargetLogit);
                if (MeanWeights != null)
                {
                    Everywhere[i] = ofMean;
                    atTarget += Targets[i] < 0 ? 0 : ofMean * MeanWeights[Targets[i]];
                }
                AtTarget[i] = (float)(atTarget * Shape.Slope(whole.TargetLogit));
            }
        }
    }
}
