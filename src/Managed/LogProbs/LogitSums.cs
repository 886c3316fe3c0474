using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>The sums over one row, t = z − shift: Σ e^t, Σ e^t t, Σ e^2t.</summary>
    /// <remarks>A shift of ±∞ would make ∞ − ∞ of what is one: it is 0 then, and the sums are 0 (all logits −∞) or ∞.</remarks>
    private readonly record struct RowSums(float Shift, double Sum, double Weighted, double Squares, nint LargestBlock)
    {
        public double LogSum => Math.Log(Sum);

        /// <summary>−Σ p t, with p = e^t / Σ e^t; the entropy is this plus <see cref="LogSum"/>.</summary>
        public double MinusMean => -Weighted / Sum;

        public double Entropy => LogSum + MinusMean;

        public double SumOfSquares => Squares / Sum / Sum;
    }

    private static bool HasManyRegisters => Avx512F.IsSupported || AdvSimd.IsSupported;

    /// <summary>Which sums are formed.</summary>
    [Flags]
    private enum Sought
    {
        Sum = 0,
        Weighted = 1,
        Squares = 2,
    }

    /// <summary>Forms <see cref="RowSums"/> in one pass over memory; the shift is the largest logit so far.</summary>
    /// <remarks>
    /// The row is taken in blocks that stay in the first cache. While a block's exponentials are formed, the next block's maximum is: so what waits for
    /// memory and what computes goes on side by side. Each block has sums of its own, so that few numbers of very different size meet, and the ones of the
    /// largest logit are counted apart: a peaked row's small terms would drown in them.
    /// </remarks>
    private unsafe struct LogitSums<V> where V : struct, ILanes<V>
    {
        // In vectors: 8 KiB of 512 bits, a quarter of a small first cache.
        private const int BlockVectors = 128;

        // How far ahead of the maximum memory is asked for. With two threads 32,000 logits took 2.8 ms from 8 or 16 KiB on, 3.0 ms from 32 on and 3.1 ms from 4 on.
        public const int PrefetchBytes = 16384;

        private float max, shift;
        private Sought sought;
        private bool infinite, sawNaN;
        private nint largestBlock;
        private V ones, sum, weighted, squares;

        /// <summary>The floats of scratch that a row which isn't plain needs.</summary>
        public static int Block => BlockVectors * V.Count;

        public static RowSums Of(in LogitRows rows, nint row, Sought sought, float* scratch)
        {
            var sums = new LogitSums<V> { max = float.NegativeInfinity, sought = sought };
            if (rows.IsPlain)
            {
                switch (rows.Type)
                {
                    case ElementType.Float32:
                        sums.AddStored<Float32Storage>(rows, row, scratch);
                        return sums.Total();
                    case ElementType.BFloat16:
                        sums.AddStored<BFloat16Storage>(rows, row, scratch);
                        return sums.Total();
                }
            }
            sums.AddPrepared(rows, row, 0, scratch);
            return sums.Total();
        }

        // Straight from memory; what isn't a whole vector, prepared.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private void AddStored<TStorage>(in LogitRows rows, nint row, float* scratch) where TStorage : struct, IStorage
        {
            byte* logits = rows.Row(row);
            nint whole = Whole(rows.Vocabulary), block = Block, size = TStorage.Size;
            float next = Largest<TStorage>(logits, Math.Min(block, whole));
            for (nint start = 0; start < whole; start += block)
            {
                nint length = Math.Min(block, whole - start);
                byte* at = logits + start * size;
                next = Add<TStorage>(at, length, start, next, at + length * size, Math.Min(block, whole - start - length));
            }
            AddPrepared(rows, row, whole, scratch);
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private void AddPrepared(in LogitRows rows, nint row, nint start, float* scratch)
        {
            for (nint block = Block; start < rows.Vocabulary; start += block)
            {
                nint length = Math.Min(block, rows.Vocabulary - start);
                float largest = rows.Prepare<V>(row, start, length, scratch);
                Add<Float32Storage>((byte*)scratch, Whole(length + V.Count - 1), start, largest, (byte*)scratch, 0);
            }
        }

        private static nint Whole(nint count) => count - count % V.Count;

        // Returns the largest logit of the block ahead.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private float Add<TStorage>(byte* block, nint count, nint start, float largest, byte* ahead, nint aheadCount) where TStorage : struct, IStorage
        {
            if (infinite || largest == float.PositiveInfinity)
            {
                infinite = true;
                for (nint i = 0; i < count; i++)
                    sawNaN |= float.IsNaN(TStorage.Load<Real32>(block + i * TStorage.Size).Value);
                return Largest<TStorage>(ahead, aheadCount);
            }
            if (largest <= max) // the largest once more: beside two ones nothing drowns; and −∞ is no logit whose e^t is one
                return Choose<TStorage, No>(block, count, ahead, aheadCount);
            if (largest > max)
            {
                if (max > float.NegativeInfinity)
                {
                    V moved = V.From(Math.Max(shift - largest, Exponential.Lowest)), factor = Exponential.OfNonPositive(moved);
                    sum += ones;
                    squares = (squares + ones) * factor * factor;
                    weighted = (weighted + sum * moved) * factor;
                    sum *= factor;
                    ones = V.Zero;
                }
                max = shift = largest;
                largestBlock = start;
            }
            return Choose<TStorage, Yes>(block, count, ahead, aheadCount);
        }

        private float Choose<TStorage, TOnes>(byte* block, nint count, byte* ahead, nint aheadCount) where TStorage : struct, IStorage where TOnes : struct, IChoice => sought switch
        {
            Sought.Sum => AddExponentials<TStorage, TOnes, No, No>(block, count, ahead, aheadCount),
            Sought.Sum | Sought.Weighted => AddExponentials<TStorage, TOnes, Yes, No>(block, count, ahead, aheadCount),
            Sought.Sum | Sought.Squares => AddExponentials<TStorage, TOnes, No, Yes>(block, count, ahead, aheadCount),
            _ => AddExponentials<TStorage, TOnes, Yes, Yes>(block, count, ahead, aheadCount),
        };

        private float AddExponentials<TStorage, TOnes, TWeighted, TSquares>(byte* block, nint count, byte* ahead, nint aheadCount)
            where TStorage : struct, IStorage where TOnes : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint eights = HasManyRegisters ? count - count % (8 * V.Count) : 0;
            if (eights == 0)
                return AddExponentials4<TStorage, TOnes, TWeighted, TSquares>(ref this, block, count, ahead, aheadCount);
            if (TOnes.Taken)
                CountOnes<TStorage>(ref this, block, eights);
            float largest = AddExponentials8<TStorage, TOnes, TWeighted, TSquares>(ref this, block, eights, ahead, aheadCount);
            if (eights < count)
                AddExponentials4<TStorage, TOnes, TWeighted, TSquares>(ref this, block + eights * TStorage.Size, count - eights, ahead, 0);
            return largest;
        }

        private readonly RowSums Total()
        {
            if (infinite)
                return new(0, sawNaN || double.IsNaN(Total(sum)) ? double.NaN : double.PositiveInfinity, double.NaN, double.NaN, largestBlock);
            double one = Total(ones);
            return new(shift, one + Total(sum), Total(weighted), one + Total(squares), largestBlock);
        }

        // Summed in double: beside a 1 the small lanes of a peaked row still count.
        public static double Total(V lanes)
        {
            float* each = stackalloc float[V.Count];
            lanes.Store(each);
            double total = 0;
            for (int i = 0; i < V.Count; i++)
                total += each[i];
            return total;
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static float Largest<TStorage>(byte* logits, nint count) where TStorage : struct, IStorage
        {
            nint w = V.Count * TStorage.Size;
            V a = V.From(float.NegativeInfinity), b = a;
            byte* end = logits + count * TStorage.Size;
            for (; logits <= end - 2 * w; logits += 2 * w)
            {
                Prefetch.Bytes(logits + PrefetchBytes, 2 * w);
                AddLargest<TStorage>(logits, ref a, ref b);
            }
            if (logits < end)
                a = V.MaxNative(a, TStorage.Load<V>(logits));
            return V.MaxNative(a, b).Largest();
        }

        // A leaf, so that nothing is spilled around calls. The bound leaves −∞ out of the entropy: e^t is 0 there, and 0 · t must be.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static float AddExponentials4<TStorage, TOnes, TWeighted, TSquares>(ref LogitSums<V> to, byte* block, nint count, byte* ahead, nint aheadCount)
            where TStorage : struct, IStorage where TOnes : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint w = V.Count * TStorage.Size;
            V shift = V.From(to.shift), lowest = V.From(Exponential.Lowest);
            V ones = V.Zero, sum0 = V.Zero, sum1 = V.Zero, weighted0 = V.Zero, weighted1 = V.Zero, squares0 = V.Zero, squares1 = V.Zero;
            V largest0 = V.From(float.NegativeInfinity), largest1 = largest0;
            byte* end = block + count * TStorage.Size, aheadEnd = ahead + aheadCount * TStorage.Size;
            for (; ahead <= aheadEnd - 4 * w; ahead += 4 * w, block += 4 * w)
            {
                Prefetch.Bytes(ahead + PrefetchBytes, 4 * w);
                AddLargest<TStorage>(ahead, ref largest0, ref largest1);
                AddLargest<TStorage>(ahead + 2 * w, ref largest0, ref largest1);
                Add4<TStorage, TOnes, TWeighted, TSquares>(block, shift, lowest, ref ones, ref sum0, ref sum1, ref weighted0, ref weighted1, ref squares0, ref squares1);
            }
            for (; ahead < aheadEnd; ahead += w)
                largest0 = V.MaxNative(largest0, TStorage.Load<V>(ahead));
            for (; block <= end - 4 * w; block += 4 * w)
                Add4<TStorage, TOnes, TWeighted, TSquares>(block, shift, lowest, ref ones, ref sum0, ref sum1, ref weighted0, ref weighted1, ref squares0, ref squares1);
            for (; block < end; block += w)
            {
                V t = V.MaxNative(lowest, TStorage.Load<V>(block) - shift), e = Exponential.OfNonPositive(t);
                if (TWeighted.Taken)
                    weighted0 = V.MultiplyAdd(e, t, weighted0);
                if (TOnes.Taken)
                {
                    ones += V.SelectEqual(t, V.Zero, V.One, V.Zero);
                    e = V.SelectEqual(t, V.Zero, V.Zero, e);
                }
                sum0 += e;
                if (TSquares.Taken)
                    squares0 = V.MultiplyAdd(e, e, squares0);
            }
            to.sum += sum0 + sum1;
            if (TWeighted.Taken)
                to.weighted += weighted0 + weighted1;
            if (TOnes.Taken)
                to.ones += ones;
            if (TSquares.Taken)
                to.squares += squares0 + squares1;
            return V.MaxNative(largest0, largest1).Largest();
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void CountOnes<TStorage>(ref LogitSums<V> to, byte* block, nint count) where TStorage : struct, IStorage
        {
            nint w = V.Count * TStorage.Size;
            V one = V.From(to.max), a = V.Zero, b = V.Zero;
            for (byte* end = block + count * TStorage.Size; block < end; block += 4 * w)
            {
                TStorage.Load(block, out V x0, out V x1);
                TStorage.Load(block + 2 * w, out V x2, out V x3);
                a += V.SelectEqual(x0, one, V.One, V.Zero) + V.SelectEqual(x1, one, V.One, V.Zero);
                b += V.SelectEqual(x2, one, V.One, V.Zero) + V.SelectEqual(x3, one, V.One, V.Zero);
            }
            to.ones += a + b;
        }

        // The same, eight vectors at a time; what counts as one is counted already, and here it is nothing.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static float AddExponentials8<TStorage, TOnes, TWeighted, TSquares>(ref LogitSums<V> to, byte* block, nint count, byte* ahead, nint aheadCount)
            where TStorage : struct, IStorage where TOnes : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint w = V.Count * TStorage.Size;
            V shift = V.From(to.shift), lowest = V.From(Exponential.Lowest);
            V sum = V.Zero, weighted0 = V.Zero, weighted1 = V.Zero, squares0 = V.Zero, squares1 = V.Zero;
            V largest0 = V.From(float.NegativeInfinity), largest1 = largest0;
            byte* end = block + count * TStorage.Size, aheadEnd = ahead + aheadCount * TStorage.Size;
            for (; block < end; block += 8 * w)
            {
                if (ahead <= aheadEnd - 8 * w)
                {
                    Prefetch.Bytes(ahead + PrefetchBytes, 4 * w);
                    Prefetch.Bytes(ahead + PrefetchBytes + 4 * w, 4 * w);
                    AddLargest<TStorage>(ahead, ref largest0, ref largest1);
                    AddLargest<TStorage>(ahead + 2 * w, ref largest0, ref largest1);
                    AddLargest<TStorage>(ahead + 4 * w, ref largest0, ref largest1);
                    AddLargest<TStorage>(ahead + 6 * w, ref largest0, ref largest1);
                    ahead += 8 * w;
                }
                Shifted<TStorage>(block, shift, lowest, out V y0, out V y1);
                Shifted<TStorage>(block + 2 * w, shift, lowest, out V y2, out V y3);
                Shifted<TStorage>(block + 4 * w, shift, lowest, out V y4, out V y5);
                Shifted<TStorage>(block + 6 * w, shift, lowest, out V y6, out V y7);
                if (TOnes.Taken)
                {
                    y0 = V.SelectEqual(y0, V.Zero, lowest, y0); y1 = V.SelectEqual(y1, V.Zero, lowest, y1);
                    y2 = V.SelectEqual(y2, V.Zero, lowest, y2); y3 = V.SelectEqual(y3, V.Zero, lowest, y3);
                    y4 = V.SelectEqual(y4, V.Zero, lowest, y4); y5 = V.SelectEqual(y5, V.Zero, lowest, y5);
                    y6 = V.SelectEqual(y6, V.Zero, lowest, y6); y7 = V.SelectEqual(y7, V.Zero, lowest, y7);
                }
                V log2E = V.From(Exponential.Log2E);
                y0 *= log2E; y1 *= log2E; y2 *= log2E; y3 *= log2E; y4 *= log2E; y5 *= log2E; y6 *= log2E; y7 *= log2E;
                Exponential.PowersOfTwo(y0, y1, y2, y3, y4, y5, y6, y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7);
                if (TWeighted.Taken)
                {
                    weighted0 = V.MultiplyAdd(e0, y0, weighted0);
                    weighted1 = V.MultiplyAdd(e1, y1, weighted1);
                    weighted0 = V.MultiplyAdd(e2, y2, weighted0);
                    weighted1 = V.MultiplyAdd(e3, y3, weighted1);
                    weighted0 = V.MultiplyAdd(e4, y4, weighted0);
                    weighted1 = V.MultiplyAdd(e5, y5, weighted1);
                    weighted0 = V.MultiplyAdd(e6, y6, weighted0);
                    weighted1 = V.MultiplyAdd(e7, y7, weighted1);
                }
                if (TSquares.Taken)
                {
                    squares0 = V.MultiplyAdd(e0, e0, V.MultiplyAdd(e1, e1, V.MultiplyAdd(e2, e2, V.MultiplyAdd(e3, e3, squares0))));
                    squares1 = V.MultiplyAdd(e4, e4, V.MultiplyAdd(e5, e5, V.MultiplyAdd(e6, e6, V.MultiplyAdd(e7, e7, squares1))));
                }
                sum += ((e0 + e1) + (e2 + e3)) + ((e4 + e5) + (e6 + e7));
            }
            for (; ahead < aheadEnd; ahead += w)
                largest0 = V.MaxNative(largest0, TStorage.Load<V>(ahead));
            to.sum += sum;
            if (TWeighted.Taken)
                to.weighted = V.MultiplyAdd(weighted0 + weighted1, V.From(Exponential.Ln2), to.weighted);
            if (TSquares.Taken)
                to.squares += squares0 + squares1;
            return V.MaxNative(largest0, largest1).Largest();
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void AddLargest<TStorage>(byte* two, ref V a, ref V b) where TStorage : struct, IStorage
        {
            TStorage.Load(two, out V x, out V y);
            a = V.MaxNative(a, x);
            b = V.MaxNative(b, y);
        }

        // Two vectors of z − shift, bounded.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Shifted<TStorage>(byte* two, V shift, V lowest, out V a, out V b) where TStorage : struct, IStorage
        {
            TStorage.Load(two, out V x, out V y);
            a = V.MaxNative(lowest, x - shift);
            b = V.MaxNative(lowest, y - shift);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Add4<TStorage, TOnes, TWeighted, TSquares>(byte* block, V shift, V lowest, ref V ones, ref V sum0, ref V sum1, ref V weighted0, ref V weighted1,
            ref V squares0, ref V squares1) where TStorage : struct, IStorage where TOnes : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint w = V.Count * TStorage.Size;
            Shifted<TStorage>(block, shift, lowest, out V t0, out V t1);
            Shifted<TStorage>(block + 2 * w, shift, lowest, out V t2, out V t3);
            Exponential.OfNonPositive(t0, t1, t2, t3, out V e0, out V e1, out V e2, out V e3);
            if (TWeighted.Taken)
            {
                weighted0 = V.MultiplyAdd(e0, t0, weighted0);
                weighted1 = V.MultiplyAdd(e1, t1, weighted1);
                weighted0 = V.MultiplyAdd(e2, t2, weighted0);
                weighted1 = V.MultiplyAdd(e3, t3, weighted1);
            }
            if (TOnes.Taken)
            {
                V zero = V.Zero, one = V.One;
                ones += (V.SelectEqual(t0, zero, one, zero) + V.SelectEqual(t1, zero, one, zero)) + (V.SelectEqual(t2, zero, one, zero) + V.SelectEqual(t3, zero, one, zero));
                e0 = V.SelectEqual(t0, zero, zero, e0);
                e1 = V.SelectEqual(t1, zero, zero, e1);
                e2 = V.SelectEqual(t2, zero, zero, e2);
                e3 = V.SelectEqual(t3, zero, zero, e3);
            }
            sum0 += e0;
            sum1 += e1;
            sum0 += e2;
            sum1 += e3;
            if (TSquares.Taken)
            {
                squares0 = V.MultiplyAdd(e0, e0, squares0);
                squares1 = V.MultiplyAdd(e1, e1, squares1);
                squares0 = V.MultiplyAdd(e2, e2, squares0);
                squares1 = V.MultiplyAdd(e3, e3, squares1);
            }
        }
    }
}
