using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>The rows of a <see cref="LogitsProblem"/> in pinned memory, and what becomes of a logit before it counts.</summary>
    private readonly unsafe struct LogitRows
    {
        private readonly byte* logits, targets;
        private readonly nint rowStride, targetStride;
        private readonly bool targetsAreLong;
        private readonly float* bias;
        private readonly LogitShape shape;

        /// <summary>How many rows, and how many columns of each count.</summary>
        public readonly nint Count, Vocabulary;

        /// <summary>Columns after the vocabulary that exist but don't count.</summary>
        public readonly nint Tail;

        public readonly long IgnoreTarget;

        public readonly ElementType Type;

        /// <summary>Whether the logits count as they stand in memory.</summary>
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
            Count = (nint)problem.Logits.Length(0);
            Vocabulary = (nint)(problem.ValidVocabulary ?? problem.Logits.Length(1));
            Tail = (nint)problem.Logits.Length(1) - Vocabulary;
            IgnoreTarget = problem.IgnoreTarget;
            IsPlain = bias == null && !shape.Bends;
            Shard = shard ?? new(0, Vocabulary);
        }

        public LogitShape Shape => shape;

        public byte* Row(nint row) => logits + row * rowStride;

        public long Target(nint row) => targetsAreLong ? ((long*)targets)[row * targetStride] : ((int*)targets)[row * targetStride];

        /// <summary>The column of a target; −1 if it lies in another slice of the vocabulary.</summary>
        public nint Column(long target) => target >= Shard.First && target < Shard.First + Vocabulary ? (nint)(target - Shard.First) : -1;

        /// <summary>Computes the logits of a part of a row, −∞ behind them up to a whole vector. Returns the largest; NaN may be passed over.</summary>
        public float Prepare<V>(nint row, nint start, nint count, float* prepared) where V : struct, ILanes<V> => (Type, IsPlain) switch
        {
            (ElementType.Float32, true) => Prepare<V, Float32Storage, Yes>(row, start, count, prepared),
            (ElementType.Float32, false) => Prepare<V, Float32Storage, No>(row, start, count, prepared),
            (ElementType.BFloat16, true) => Prepare<V, BFloat16Storage, Yes>(row, start, count, prepared),
            (ElementType.BFloat16, false) => Prepare<V, BFloat16Storage, No>(row, start, count, prepared),
            (_, true) => Prepare<V, Float16Storage, Yes>(row, start, count, prepared),
            (_, false) => Prepare<V, Float16Storage, No>(row, start, count, prepared),
        };

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private float Prepare<V, TStorage, TPlain>(nint row, nint start, nint count, float* prepared)
            where V : struct, ILanes<V> where TStorage : struct, IStorage where TPlain : struct, IChoice
        {
            byte* source = Row(row) + start * TStorage.Size;
            float* offset = bias + start;
            V largest = V.From(float.NegativeInfinity);
            nint i = 0;
            for (; i <= count - V.Count; i += V.Count)
            {
                V z = TStorage.Load<V>(source + i * TStorage.Size);
                if (!TPlain.Taken)
                    z = shape.Bend(bias == null ? z : z + V.Load(offset + i));
                largest = V.MaxNative(largest, z);
                z.Store(prepared + i);
            }
            if (i < count)
            {
                nint end = i + V.Count;
                float last = float.NegativeInfinity;
                for (; i < count; i++)
                {
                    Real32 z = TStorage.Load<Real32>(source + i * TStorage.Size);
                    if (!TPlain.Taken)
                        z = shape.Bend(bias == null ? z : z + offset[i]);
                    prepared[i] = z.Value;
                    last = z.Value > last ? z.Value : last;
                }
                for (; i < end; i++)
                    prepared[i] = float.NegativeInfinity;
                largest = V.MaxNative(largest, V.From(last));
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
            return total;
        }

        // An infinite logit of weight 0 is left out.
        private static V Weighted<V>(V z, V weight) where V : struct, ILanes<V> => V.SelectEqual(weight, V.Zero, V.Zero, z * weight);

        /// <summary>Adds a gradient of Σ w z to that of a part of a row.</summary>
        public void AddMean(float slope, nint start, nint count, float* gradient)
        {
            for (nint i = 0; i < count; i++)
                gradient[i] += slope * MeanWeights[start + i];
        }

        /// <summary>A single logit, computed as all of them are.</summary>
        public float At<V>(nint row, nint column) where V : struct, ILanes<V>
        {
            float* prepared = stackalloc float[V.Count];
            nint start = column - column % V.Count;
            Prepare<V>(row, start, Math.Min(V.Count, Vocabulary - start), prepared);
            return prepared[column - start];
        }
    }

    /// <summary>The softcap c (0 for none) and the temperature T of logits: z = c tanh(x / c) / T.</summary>
    private readonly unsafe struct LogitShape(float softcap, float temperature)
    {
        /// <summary>Whether it does anything.</summary>
        public bool Bends => softcap != 0 || temperature != 1;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public V Bend<V>(V x) where V : struct, ILanes<V>
        {
            if (softcap != 0)
                x = V.Tanh(x / softcap) * softcap;
            return temperature == 1 ? x : x / temperature;
        }

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

        /// <summary>The factor of <see cref="Unbend"/> for one z.</summary>
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
            nint i = 0;
            for (; i <= count - V.Count; i += V.Count)
                Write(V.Load(numbers + i), target + i);
            for (; i < count; i++)
                Write(new Real32(numbers[i]), target + i);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private void Write<V>(V numbers, ushort* target) where V : struct, ILanes<V>
        {
            if (type == ElementType.BFloat16)
                numbers.StoreBFloat16(target);
            else
                numbers.StoreFloat16(target);
        }
    }
}
