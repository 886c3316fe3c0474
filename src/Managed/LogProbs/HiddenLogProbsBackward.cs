using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    private unsafe partial struct HiddenWork
    {
        private readonly void Differentiate<V>(nint group, float* scratch) where V : struct, ILanes<V>
        {
            nint stride = Plan.Stride, width = Plan.Width;
            float* block = scratch, bent = block + HiddenPlan.BlockRows * stride, converted = bent + HiddenPlan.BlockRows * stride;
            float* corner = converted + (Plan.Converts ? HiddenPlan.BlockRows * width : 0);
            (nint first, nint end) = Plan.Group(group);
            for (nint start = first; start < end; start += HiddenPlan.BlockRows)
            {
                nint rows = Math.Min(HiddenPlan.BlockRows, end - start);
                float* entries = Entries<V>(start, rows, converted, out nint entryStride);
                float* logits = Plan.Keeps ? Memory + Plan.Logits + start * stride : block;
                for (nint lane = 0; lane < Count; lane += Plan.Panel)
                {
                    nint vectors = Math.Min(Plan.Panel, HiddenPlan.RoundUp(Count - lane, V.Count)) / V.Count;
                    if (!Plan.Keeps)
                        Logits<V>(start, rows, entries, entryStride, lane, vectors, logits + lane, stride);
                    for (nint v = 0; v < vectors; v++)
                    {
                        nint at = lane + v * V.Count;
                        if (Shape.Bends)
                        {
                            for (nint r = 0; r < rows; r++)
                                V.Load(logits + r * stride + at).Store(bent + r * stride + at);
                        }
                        Differentiate<V>(logits + at, stride, rows, Shift + at, Plan.Stride, MeanWeights == null ? null : MeanWeights + start);
                        if (Shape.Bends)
                        {
                            for (nint r = 0; r < rows; r++)
                                Shape.Unbend<V>(bent + r * stride + at, logits + r * stride + at, V.Count);
                        }
                    }
                    for (nint i = lane; i < Math.Min(lane + Plan.Panel, Count); i++)
                    {
                        if ((nuint)((nint)Targets[i] - start) < (nuint)rows)
                            logits[((nint)Targets[i] - start) * stride + i] = AtTarget[i];
                    }
                    if (OfHidden.IsPresent)
                    {
                        float* part = HiddenPart(group) + lane * width, slopes = logits + lane;
                        if (start == first)
                            VocabularyProduct.Set<V>(entries, 1, entryStride, width, slopes, stride, vectors, rows, part, Plan.Panel);
                        else
                            VocabularyProduct.Add<V>(entries, 1, entryStride, width, slopes, stride, vectors, rows, part, Plan.Panel);
                    }
                }
                if (OfBias != null)
                    AddBias(logits, start, rows);
                if (OfVocabulary.IsPresent)
                    AddVocabulary<V>(logits, start, rows, corner);
            }
        }

        // dz = e^t (a + b t + c (e^t − 1)) + d w, in place; the coefficients follow the shift, a row each.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Differentiate<V>(float* logits, nint stride, nint rows, float* shift, nint fieldStride, float* weights) where V : struct, ILanes<V>
        {
            V lowest = V.From(Exponential.Lowest), shifts = V.Load(shift), a = V.Load(shift + fieldStride), b = V.Load(shift + 2 * fieldStride);
            V c = V.Load(shift + 3 * fieldStride), mean = V.Load(shift + 4 * fieldStride), d = weights == null ? mean : V.Zero, one = V.One;
            nint r = 0;
            for (; r + 4 <= rows; r += 4)
            {
                float* z = logits + r * stride;
                V t0 = V.MaxNative(lowest, V.Load(z) - shifts), t1 = V.MaxNative(lowest, V.Load(z + stride) - shifts);
                V t2 = V.MaxNative(lowest, V.Load(z + 2 * stride) - shifts), t3 = V.MaxNative(lowest, V.Load(z + 3 * stride) - shifts);
                Exponential.OfNonPositive(t0, t1, t2, t3, out V e0, out V e1, out V e2, out V e3);
                V.MultiplyAdd(e0, V.MultiplyAdd(c, e0 - one, V.MultiplyAdd(b, t0, a)), d).Store(z);
                V.MultiplyAdd(e1, V.MultiplyAdd(c, e1 - one, V.MultiplyAdd(b, t1, a)), d).Store(z + stride);
                V.MultiplyAdd(e2, V.MultiplyAdd(c, e2 - one, V.MultiplyAdd(b, t2, a)), d).Store(z + 2 * stride);
                V.MultiplyAdd(e3, V.MultiplyAdd(c, e3 - one, V.MultiplyAdd(b, t3, a)), d).Store(z + 3 * stride);
            }
            for (; r < rows; r++)
            {
                V t = V.MaxNative(lowest, V.Load(logits + r * stride) - shifts), e = Exponential.OfNonPositive(t);
                V.MultiplyAdd(e, V.MultiplyAdd(c, e - one, V.MultiplyAdd(b, t, a)), d).Store(logits + r * stride);
            }
            for (r = 0; r < rows && weights != null; r++)
                V.MultiplyAdd(mean, V.From(weights[r]), V.Load(logits + r * stride)).Store(logits + r * stride);
        }

        private readonly void AddBias(float* slopes, nint start, nint rows)
        {
            for (nint r = 0; r < rows; r++)
            {
                float sum = First && !Accumulate ? 0 : OfBias[start + r];
                for (nint i = 0; i < Count; i++)
                    sum += slopes[r * Plan.Stride + i];
                OfBias[start + r] = sum;
            }
        }

        // Tile rows one after the other, so that the gradient is gone through in the order of its memory.
        private readonly void AddVocabulary<V>(float* slopes, nint start, nint rows, float* corner) where V : struct, ILanes<V>
        {
            nint width = Plan.Width, panel = Plan.Panel, stride = Plan.Stride, step = OfVocabulary.Stride;
            bool overwrites = First && !Accumulate;
            for (nint r = 0; r < rows; r += TileRows)
            {
                nint count = Math.Min(TileRows, rows - r);
                float* target = OfVocabulary.Floats(start + r), a = slopes + r * stride;
                for (nint w = 0; w < width; w += panel)
                {
                    float* b = PackedRows + w * stride;
                    nint vectors = Math.Min(panel, width - w) / V.Count, rest = Math.Min(panel, width - w) - vectors * V.Count;
                    if (vectors > 0)
                    {
                        for (nint ahead = 0; !overwrites && ahead < count; ahead++)
                            Prefetch.Four<V>(target + ahead * step + w + panel);
                        if (overwrites)
                            VocabularyProduct.Set<V>(a, stride, 1, count, b, panel, vectors, Count, target + w, step);
                        else
                            VocabularyProduct.Add<V>(a, stride, 1, count, b, panel, vectors, Count, target + w, step);
                    }
                    if (rest == 0)
                        continue;
                    nint column = vectors * V.Count;
                    for (nint i = 0; i < count; i++)
                    {
                        for (nint j = 0; j < V.Count; j++)
                            corner[i * V.Count + j] = overwrites || j >= rest ? 0 : target[i * step + w + column + j];
                    }
                    VocabularyProduct.Add<V>(a, stride, 1, count, b + column, panel, 1, Count, corner, V.Count);
                    for (nint i = 0; i < count; i++)
                    {
                        for (nint j = 0; j < rest; j++)
                            target[i * step + w + column + j] = corner[i * V.Count + j];
                    }
                }
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private readonly void Unpack<V>(nint item) where V : struct, ILanes<V>
        {
            nint width = Plan.Width, panel = Plan.Panel, lane = item * V.Count, count = Math.Min(V.Count, Count - lane);
            nint at = lane / panel * panel * width + lane % panel;
            float* each = stackalloc float[V.Count];
            for (nint w = 0; w < width; w++)
            {
                V sum = V.Load(HiddenPart(0) + at + w * panel);
                for (nint group = 1; group < Plan.Groups; group++)
                    sum += V.Load(HiddenPart(group) + at + w * panel);
                sum.Store(each);
                for (nint i = 0; i < count; i++)
                {
                    float* row = OfHidden.Floats((nint)Tokens[lane + i]);
                    row[w] = Accumulate ? row[w] + each[i] : each[i];
                }
            }
        }
    }
}
