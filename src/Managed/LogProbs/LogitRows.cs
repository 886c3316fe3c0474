using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>The rows of a <see cref="LogitsProblem"/> in pinned memory, and what becomes of a logit before it counts.</summary>
    /// <remarks>Rows are read as u, of which z = scale · u is what counts (<see cref="LogitShape"/>): the scale goes into the constants that come after it.</remarks>
    private readonly unsafe struct LogitRows
    {
        private readonly byte* logits, targets;
        private readonly nint rowStride, targetStride;
        private readonly bool targetsAreLong;
        private readonly float* bias;
        private readonly LogitShape shape, shapeOfScaled;

        // The bits of the largest float16 that the softcap takes without bounds; null where no logit is taken so.
        private readonly ushort? nearest;

        /// <summary>How many rows, and how many columns of each count.</summary>
        public readonly nint Count, Vocabulary;

        /// <summary>Columns after the vocabulary that exist but don't count.</summary>
        public readonly nint Tail;

        public readonly long IgnoreTarget;

        public readonly ElementType Type;

        /// <summary>Whether u stands in memory as it is.</summary>
        public readonly bool IsPlain;

        /// <summary>The weights of the mean logit; null for 1.</summary>
        public readonly float* MeanWeights;

        /// <summary>Where the columns lie in the vocabulary that targets are of.</summary>
        public readonly VocabularyShard Shard;

        public LogitRows(byte* logits, byte* targets, byte* bias, byte* meanWeights, in LogitsProblem problem, VocabularyShard? shard)
        {
            MeanWeights = (float*)meanWeights;
            this.logits = logits;
            this.targets = targets;
            this.bias = (float*)bias;
            Type = problem.Logits.Type;
            rowStride = (nint)problem.Logits.Stride(0) * Type.Size();
            targetStride = (nint)problem.Targets.Stride(0);
            targetsAreLong = problem.Targets.Type == ElementType.Int64;
            shape = new(problem.Softcap ?? 0, problem.Temperature);
            shapeOfScaled = shape.OfScaledFloat16;
            nearest = Type == ElementType.Float16 && bias == null ? shape.NearestFloat16 : null;
            Count = (nint)problem.Logits.Length(0);
            Vocabulary = (nint)(problem.ValidVocabulary ?? problem.Logits.Length(1));
            Tail = (nint)problem.Logits.Length(1) - Vocabulary;
            IgnoreTarget = problem.IgnoreTarget;
            IsPlain = bias == null && !shape.IsCapped;
            Shard = shard ?? new(0, Vocabulary);
        }

        public LogitShape Shape => shape;

        /// <summary>Whether <see cref="Prepare{V}(nint, nint, nint, float*)"/> asks for the memory that comes next: what the sums, much faster, ask for in bursts is forgotten.</summary>
        public bool AsksAhead => shape.HasTable;

        public byte* Row(nint row) => logits + row * rowStride;

        public long Target(nint row) => targetsAreLong ? ((long*)targets)[row * targetStride] : ((int*)targets)[row * targetStride];

        /// <summary>The column of a target; −1 if it lies in another slice of the vocabulary.</summary>
        public nint Column(long target) => target >= Shard.First && target < Shard.First + Vocabulary ? (nint)(target - Shard.First) : -1;

        /// <summary>A part of a row as whole vectors of u: where it lies, or prepared.</summary>
        public StoredLogits Read<V>(nint row, nint start, nint count, float* prepared) where V : struct, ILanes<V>
        {
            if (IsPlain && count % V.Count == 0)
                return new(Row(row) + start * Type.Size(), Type);
            Prepare<V>(row, start, count, prepared);
            return new((byte*)prepared, ElementType.Float32);
        }

        /// <summary>Computes u of a part of a row, −∞ behind it up to a whole vector. Returns the largest; NaN may be passed over.</summary>
        public float Prepare<V>(nint row, nint start, nint count, float* prepared) where V : struct, ILanes<V>
        {
            nint w = V.Count, whole = count - count % w, size = Type.Size();
            byte* source = Row(row) + start * size;
            float* offset = bias == null ? null : bias + start;
            float largest = Prepare<V>(source, offset, whole, prepared);
            if (whole == count)
                return largest;
            // What isn't a whole vector is copied into one.
            nint rest = count - whole;
            byte* stored = stackalloc byte[(int)(w * sizeof(float))];
            float* offsets = stackalloc float[(int)w];
            new Span<byte>(stored, (int)(w * sizeof(float))).Clear();
            new Span<float>(offsets, (int)w).Clear();
            new Span<byte>(source + whole * size, (int)(rest * size)).CopyTo(new Span<byte>(stored, (int)(rest * size)));
            if (offset != null)
                new Span<float>(offset + whole, (int)rest).CopyTo(new Span<float>(offsets, (int)rest));
            Prepare<V>(stored, offset == null ? null : offsets, w, prepared + whole);
            new Span<float>(prepared + count, (int)(w - rest)).Fill(float.NegativeInfinity);
            return V.MaxNative(V.From(largest), V.Load(prepared + whole)).Largest();
        }

        private float Prepare<V>(byte* source, float* offset, nint count, float* prepared) where V : struct, ILanes<V> => Type switch
        {
            ElementType.Float32 => Prepare<V, Float32Storage>(source, offset, count, prepared),
            ElementType.BFloat16 => Prepare<V, BFloat16Storage>(source, offset, count, prepared),
            ElementType.Float16 when typeof(V) == typeof(Lanes512) && bias == null && shape.HasTable && shapeOfScaled.HasTable => PrepareFromTable(source, count, prepared),
            _ when IsNear(source, count) => Prepare<V, ScaledFloat16Storage, No, Yes, Yes>(source, offset, shapeOfScaled, count, prepared),
            _ => Prepare<V, Float16Storage>(source, offset, count, prepared),
        };

        // As if none were infinite or NaN, or so large that it needs bounds, until one is: then with bounds.
        private float PrepareFromTable(byte* source, nint count, float* prepared)
        {
            float largest = TanhTable.Look<ScaledFloat16Storage, No, No>(source, null, shapeOfScaled.PowersPerLogit, shapeOfScaled.NearestScaledFloat16, count, prepared, LogitSums<Lanes512>.PrefetchBytes);
            return float.IsNaN(largest) ? Prepare<Lanes512, Float16Storage>(source, null, count, prepared) : largest;
        }

        // Whether the softcap of float16 numbers needs no bounds and meets no NaN: to look at them as integers takes a tenth of the time.
        private bool IsNear(byte* source, nint count) => nearest is ushort limit && !Storage16.AnyBeyond(limit, (ushort*)source, count);

        private float Prepare<V, TStorage>(byte* source, float* offset, nint count, float* prepared) where V : struct, ILanes<V> where TStorage : struct, IStorage => (offset != null, shape.IsCapped) switch
        {
            (false, false) => Prepare<V, TStorage, No, No, No>(source, offset, shape, count, prepared),
            (false, true) => Prepare<V, TStorage, No, Yes, No>(source, offset, shape, count, prepared),
            (true, false) => Prepare<V, TStorage, Yes, No, No>(source, offset, shape, count, prepared),
            (true, true) => Prepare<V, TStorage, Yes, Yes, No>(source, offset, shape, count, prepared),
        };

        private static float Prepare<V, TStorage, TBias, TCapped, TNear>(byte* source, float* offset, LogitShape shape, nint count, float* prepared)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TBias : struct, IChoice where TCapped : struct, IChoice where TNear : struct, IChoice
        {
            if (TCapped.Taken && !TNear.Taken && typeof(V) == typeof(Lanes512) && shape.HasTable)
                return TanhTable.Look<TStorage, TBias, Yes>(source, offset, shape.PowersPerLogit, shape.LargestLogit, count, prepared, LogitSums<V>.PrefetchBytes);
            return PrepareByFours<V, TStorage, TBias, TCapped, TNear>(source, offset, shape, count, prepared);
        }

        // A leaf: nothing is spilled around calls.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static float PrepareByFours<V, TStorage, TBias, TCapped, TNear>(byte* source, float* offset, LogitShape shape, nint count, float* prepared)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TBias : struct, IChoice where TCapped : struct, IChoice where TNear : struct, IChoice
        {
            nint w = V.Count, step = w * TStorage.Size;
            V largest = V.From(float.NegativeInfinity);
            float* end = prepared + count;
            for (; TCapped.Taken && prepared <= end - 4 * w; prepared += 4 * w, source += 4 * step)
            {
                V u0 = TStorage.Load<V>(source), u1 = TStorage.Load<V>(source + step), u2 = TStorage.Load<V>(source + 2 * step), u3 = TStorage.Load<V>(source + 3 * step);
                if (TBias.Taken)
                {
                    u0 += V.Load(offset); u1 += V.Load(offset + w); u2 += V.Load(offset + 2 * w); u3 += V.Load(offset + 3 * w);
                    offset += 4 * w;
                }
                shape.Cap<V, TNear>(ref u0, ref u1, ref u2, ref u3);
                largest = V.MaxNative(V.MaxNative(largest, V.MaxNative(u0, u1)), V.MaxNative(u2, u3));
                u0.Store(prepared);
                u1.Store(prepared + w);
                u2.Store(prepared + 2 * w);
                u3.Store(prepared + 3 * w);
            }
            for (; prepared < end; prepared += w, source += step)
            {
                V u = TStorage.Load<V>(source);
                if (TBias.Taken)
                {
                    u += V.Load(offset);
                    offset += w;
                }
                if (TCapped.Taken)
                    u = shape.Cap<V, TNear>(u);
                largest = V.MaxNative(largest, u);
                u.Store(prepared);
            }
            return largest.Largest();
        }

        /// <summary>Σ w z over a row: vectors of a block in float32, everything else in double.</summary>
        public double Total<V>(nint row, float* block) where V : struct, ILanes<V>
        {
            double total = 0;
            for (nint start = 0; start < Vocabulary; start += LogitSums<V>.Block)
            {
                nint count = Math.Min(LogitSums<V>.Block, Vocabulary - start), whole = count - count % V.Count;
                Prepare<V>(row, start, count, block);
                float* weights = MeanWeights + start;
                V sum = V.Zero;
                for (nint i = 0; i < whole; i += V.Count)
                    sum += MeanWeights == null ? V.Load(block + i) : Weighted(V.Load(block + i), V.Load(weights + i));
                total += LogitSums<V>.Total(sum);
                for (nint i = whole; i < count; i++)
                    total += MeanWeights == null ? block[i] : Weighted(new Real32(block[i]), new Real32(weights[i])).Value;
            }
            return shape.Scale * total;
        }

        // An infinite logit of weight 0 is left out.
        private static V Weighted<V>(V z, V weight) where V : struct, ILanes<V> => V.SelectEqual(weight, V.Zero, V.Zero, z * weight);

        /// <summary>Adds a gradient of Σ w z to that of a part of a row.</summary>
        /// <param name="slope">Of z.</param>
        /// <param name="start">Where the part begins.</param>
        /// <param name="count">How long it is.</param>
        /// <param name="prepared">Its u; only where there is a softcap.</param>
        /// <param name="gradient">What is added to.</param>
        public void AddMean(float slope, nint start, nint count, float* prepared, float* gradient)
        {
            float ofLogit = (float)(slope * shape.Steepest);
            for (nint i = 0; i < count; i++)
                gradient[i] += ofLogit * MeanWeights[start + i] * (shape.IsCapped ? 1 - prepared[i] * prepared[i] : 1);
        }

        /// <summary>u of a single logit, computed as all of them are.</summary>
        public float At<V>(nint row, nint column) where V : struct, ILanes<V>
        {
            float* prepared = stackalloc float[V.Count];
            nint start = column - column % V.Count;
            Prepare<V>(row, start, Math.Min(V.Count, Vocabulary - start), prepared);
            return prepared[column - start];
        }
    }

    /// <summary>Numbers of a storage type, side by side.</summary>
    private readonly unsafe record struct StoredLogits(nint Address, ElementType Type)
    {
        public StoredLogits(byte* data, ElementType type) : this((nint)data, type)
        {
        }

        public byte* Data => (byte*)Address;
    }

    /// <summary>The softcap c (0 for none) and the temperature T of logits: z = c tanh(x / c) / T is scale · u, with u = tanh(x / c) and the scale c / T; without a softcap u = x and the scale is 1 / T.</summary>
    private readonly unsafe struct LogitShape(float softcap, float temperature)
    {
        /// <summary>Of x, the y of e^(2x / c) = 2^y.</summary>
        public float PowersPerLogit { get; private init; } = softcap == 0 ? 0 : (float)(2 / Math.Log(2) / softcap);

        // What rounding that took of every y, as a part of it.
        private readonly float lost = softcap == 0 ? 0 : (float)(2 / Math.Log(2) / softcap / (float)(2 / Math.Log(2) / softcap) - 1);

        private readonly float scale = (float)((softcap == 0 ? 1.0 : softcap) / temperature);

        public bool IsCapped => softcap != 0;

        /// <summary>The same for <see cref="ScaledFloat16Storage"/>.</summary>
        public LogitShape OfScaledFloat16 => this with { PowersPerLogit = PowersPerLogit / ScaledFloat16Storage.Unit };

        /// <summary>The bits of the largest float16 that the softcap takes without bounds; null for none.</summary>
        public ushort? NearestFloat16 =>
            !IsCapped || PowersPerLogit > float.MaxValue * ScaledFloat16Storage.Unit ? null : BitConverter.HalfToUInt16Bits((Half)Math.Min(LargestNormalPower / PowersPerLogit, (double)Half.MaxValue));

        /// <summary>Of the shape that <see cref="OfScaledFloat16"/> gives: up to here no x is infinite or NaN, or lies where <see cref="TanhTable"/> has ended.</summary>
        public float NearestScaledFloat16 => Math.Min(TanhTable.Last / PowersPerLogit, (float)Half.MaxValue * ScaledFloat16Storage.Unit);

        /// <summary>From here on u is 1.</summary>
        public float LargestLogit => LargestPower / PowersPerLogit;

        /// <summary>Whether <see cref="TanhTable"/> gives u: vectors are of 512 bits, and the constants are normal numbers.</summary>
        public bool HasTable => Vector512.IsHardwareAccelerated && float.IsNormal(PowersPerLogit) && float.IsNormal(LargestLogit);

        /// <summary>Whether it does anything.</summary>
        public bool Bends => softcap != 0 || temperature != 1;

        public double Scale => (softcap == 0 ? 1.0 : softcap) / temperature;

        /// <summary>The scale for powers of two in place of those of e.</summary>
        public float PowerScale => (float)Math.Min(Scale / Math.Log(2), float.MaxValue);

        /// <summary>Whether the largest and the smallest z that there are lie at most so many powers of two apart.</summary>
        public bool Spans(float powers) => IsCapped && 2.001 * PowerScale <= powers;

        /// <summary>∂z/∂x of a small x: 1 / T.</summary>
        public double Steepest => 1.0 / temperature;

        // tanh of half of g · ln 2: g (A0 + A1 g² + A2 g⁴) for |g| up to ½, a minimax fit to 6·10⁻⁸.
        private const float A0 = 0.3465736f, A1 = -0.01387518f, A2 = 6.555828e-4f;

        // From this power of two on tanh is rounded to 1, with and without fused multiply-adds: beyond, nothing is left of a gradient.
        private const float LargestPower = 26;

        // A rounding of float16 below the largest power of two whose reciprocal is a normal number.
        private const double LargestNormalPower = 125;

        /// <summary>u = tanh(x / c), to 4·10⁻⁷ of it with all roundings, however small it is: with e^(2x / c) = 2^(n + g), n an integer, from tanh of the halves of n ln 2 and g ln 2, (a + b) / (1 + ab).</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public V Cap<V, TNear>(V x) where V : struct, ILanes<V> where TNear : struct, IChoice => Joined(OfRest(Split<V, TNear>(x, out V power)), power);

        /// <summary>The same of four, side by side.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Cap<V, TNear>(ref V x0, ref V x1, ref V x2, ref V x3) where V : struct, ILanes<V> where TNear : struct, IChoice
        {
            x0 = Split<V, TNear>(x0, out V n0); x1 = Split<V, TNear>(x1, out V n1); x2 = Split<V, TNear>(x2, out V n2); x3 = Split<V, TNear>(x3, out V n3);
            x0 = OfRest(x0); x1 = OfRest(x1); x2 = OfRest(x2); x3 = OfRest(x3);
            x0 = Joined(x0, n0); x1 = Joined(x1, n1); x2 = Joined(x2, n2); x3 = Joined(x3, n3);
        }

        // g and 2^n.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private V Split<V, TNear>(V x, out V power) where V : struct, ILanes<V> where TNear : struct, IChoice
        {
            V y = x * PowersPerLogit;
            if (!TNear.Taken)
                y = V.MaxKeepingNaN(-LargestPower, V.MinKeepingNaN(LargestPower, y));
            V n = y + LanesConstants.PowerBias;
            power = V.BiasedPower(n);
            V rest = y - (n - LanesConstants.PowerBias);
            // Where sums of products are rounded twice, at least this isn't.
            return Fma.IsSupported || AdvSimd.IsSupported ? rest : rest + y * lost;
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static V OfRest<V>(V g) where V : struct, ILanes<V>
        {
            V square = g * g;
            return V.MultiplyAdd(V.MultiplyAdd(V.From(A2), square, V.From(A1)), square, V.From(A0)) * g;
        }

        // tanh of half of n · ln 2 is (2^n − 1) / (2^n + 1).
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static V Joined<V>(V tanh, V power) where V : struct, ILanes<V>
        {
            V less = power - V.One, more = power + V.One;
            return V.MultiplyAdd(more, tanh, less) / V.MultiplyAdd(less, tanh, more);
        }

        /// <summary>z.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public V Bend<V>(V x) where V : struct, ILanes<V> => (IsCapped ? Cap<V, No>(x) : x) * scale;

        /// <summary>Turns gradients of z into gradients of x: (1 − tanh²) / T.</summary>
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        public void Unbend<V>(float* z, float* gradient, nint count) where V : struct, ILanes<V>
        {
            for (nint i = 0; i < count; i += V.Count)
            {
                V dz = V.Load(gradient + i);
                if (softcap != 0)
                {
                    V tanh = V.Load(z + i) * temperature / softcap;
                    dz *= 1f - tanh * tanh;
                }
                (temperature != 1 ? dz / temperature : dz).Store(gradient + i);
            }
        }

        /// <summary>∂z/∂x at one z.</summary>
        public double Slope(double z)
        {
            double tanh = softcap == 0 ? 0 : z * temperature / softcap;
            return (1 - tanh * tanh) / temperature;
        }
    }

    /// <summary>Rows of gradients in pinned memory, of any of the storage types.</summary>
    private readonly unsafe struct GradientRows
    {
        private readonly byte* data;
        private readonly nint stride;
        private readonly ElementType type;

        public GradientRows(byte* data, in TensorView view)
        {
            this.data = data;
            type = view.Type;
            stride = (nint)view.Stride(0) * type.Size();
        }

        public bool IsFloat32 => type == ElementType.Float32;

        public float* Row(nint row) => (float*)(data + row * stride);

        public void Clear(nint row, nint start, nint count) => new Span<byte>(data + row * stride + start * type.Size(), checked((int)(count * type.Size()))).Clear();

        /// <summary>Rounds numbers into a part of a row.</summary>
        public void Write<V>(float* numbers, nint row, nint start, nint count) where V : struct, ILanes<V>
        {
            if (type == ElementType.Float32)
            {
                new ReadOnlySpan<float>(numbers, (int)count).CopyTo(new Span<float>(Row(row) + start, (int)count));
                return;
            }
            ushort* target = (ushort*)(data + row * stride) + start;
            nint whole = count - count % V.Count;
            if (type == ElementType.BFloat16)
                WriteBFloat16<V>(numbers, target, whole);
            else
                WriteFloat16<V>(numbers, target, whole);
            if (whole == count)
                return;
            nint rest = count - whole;
            float* last = stackalloc float[V.Count];
            ushort* rounded = stackalloc ushort[V.Count];
            new Span<float>(last, V.Count).Clear();
            new Span<float>(numbers + whole, (int)rest).CopyTo(new Span<float>(last, (int)rest));
            if (type == ElementType.BFloat16)
                V.Load(last).StoreBFloat16(rounded);
            else
                V.Load(last).StoreFloat16(rounded);
            new Span<ushort>(rounded, (int)rest).CopyTo(new Span<ushort>(target + whole, (int)rest));
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void WriteBFloat16<V>(float* numbers, ushort* target, nint count) where V : struct, ILanes<V>
        {
            for (nint i = 0; i < count; i += V.Count)
                V.Load(numbers + i).StoreBFloat16(target + i);
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void WriteFloat16<V>(float* numbers, ushort* target, nint count) where V : struct, ILanes<V>
        {
            for (nint i = 0; i < count; i += V.Count)
                V.Load(numbers + i).StoreFloat16(target + i);
        }
    }
}
