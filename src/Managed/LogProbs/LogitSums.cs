using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    /// <summary>The sums over one row, t = z − shift, the shift being scale · anchor: Σ e^t, Σ e^t t, Σ e^2t.</summary>
    /// <remarks>A shift of ±∞ would make ∞ − ∞ of what is one: it is 0 then, and the sums are 0 (all logits −∞) or ∞.</remarks>
    private readonly record struct RowSums(float Anchor, double Shift, double Sum, double Weighted, double Squares, nint LargestBlock)
    {
        public double LogSum => Math.Log(Sum);

        /// <summary>−Σ p t, with p = e^t / Σ e^t; the entropy is this plus <see cref="LogSum"/>.</summary>
        public double MinusMean => -Weighted / Sum;

        public double Entropy => LogSum + MinusMean;

        public double SumOfSquares => Squares / Sum / Sum;

        /// <summary>Sums of any shift, moved to the nearest that has a float32 for an anchor.</summary>
        public static RowSums Anchored(double scale, double shift, double sum, double weighted, double squares)
        {
            float anchor = (float)Math.Clamp(shift / scale, -float.MaxValue, float.MaxValue);
            double moved = shift - scale * anchor, factor = Math.Exp(moved);
            return new(anchor, scale * anchor, sum * factor, (weighted + sum * moved) * factor, squares * factor * factor, 0);
        }
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

    /// <summary>Forms <see cref="RowSums"/> in one pass over memory; the anchor is the largest logit so far.</summary>
    /// <remarks>
    /// The row is taken in blocks that stay in the first cache. Each block has sums of its own, so that few numbers of very different size meet, and the ones of the
    /// largest logit are counted apart: a peaked row's small terms would drown in them.
    /// With many registers a block is added as if nothing in it were larger than what came before, and once more if something is: of n blocks about ln n. With few, where computing
    /// and not memory takes the time, the next block's maximum is formed while a block's exponentials are; each line was then read twice from the first cache, and of the memory's rate a sixth was lost.
    /// </remarks>
    private unsafe struct LogitSums<V> where V : struct, ILanes<V>
    {
        // In vectors: 8 KiB of 512 bits, a quarter of a small first cache.
        private const int BlockVectors = 128;

        // How far ahead of the maximum memory is asked for. With two threads 32,000 logits took 2.8 ms from 8 or 16 KiB on, 3.0 ms from 32 on and 3.1 ms from 4 on.
        public const int PrefetchBytes = 16384;

        private float max, anchor, powerScale;
        private double scale;
        private Sought sought;
        private bool infinite, sawNaN;

        // Whether no power of what is added next lies below the lowest.
        private bool nearby;

        private nint largestBlock;
        private V ones, sum, weighted, squares;

        // What will be needed soon, and how much of it per vector.
        private byte* next;
        private nint nextStep;

        /// <summary>The floats of scratch that a row which isn't plain needs.</summary>
        public static int Block => BlockVectors * V.Count;

        /// <summary>The sums of a row.</summary>
        /// <param name="rows">The rows.</param>
        /// <param name="row">Which one.</param>
        /// <param name="sought">Which sums.</param>
        /// <param name="scratch"><see cref="Block"/> floats.</param>
        /// <param name="top">Takes the likeliest tokens; null if nobody asks.</param>
        /// <param name="kept">Where u is left, but for the last block if that isn't whole; null for nowhere.</param>
        public static RowSums Of(in LogitRows rows, nint row, Sought sought, float* scratch, TopRows.List* top = null, float* kept = null)
        {
            var sums = new LogitSums<V> { max = float.NegativeInfinity, sought = sought, powerScale = rows.Shape.PowerScale, scale = rows.Shape.Scale };
            if (rows.IsPlain)
            {
                switch (rows.Type)
                {
                    case ElementType.Float32:
                        sums.AddStored<Float32Storage>(rows, row, scratch, top);
                        return sums.Total();
                    case ElementType.BFloat16:
                        sums.AddStored<BFloat16Storage>(rows, row, scratch, top);
                        return sums.Total();
                }
            }
            sums.AddPrepared(rows, row, 0, scratch, top, kept);
            return sums.Total();
        }

        // Straight from memory; what isn't a whole vector, prepared.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private void AddStored<TStorage>(in LogitRows rows, nint row, float* scratch, TopRows.List* top) where TStorage : struct, IStorage
        {
            byte* logits = rows.Row(row);
            nint whole = Whole(rows.Vocabulary), block = Block, size = TStorage.Size;
            float largest = HasManyRegisters ? float.NaN : Largest<TStorage>(logits, Math.Min(block, whole));
            nextStep = V.Count * size;
            for (nint start = 0; start < whole; start += block)
            {
                nint length = Math.Min(block, whole - start);
                byte* at = logits + start * size;
                next = at + PrefetchBytes;
                if (HasManyRegisters)
                {
                    // The first block has nothing before it.
                    bool guesses = max > float.NegativeInfinity && !infinite && length % (8 * V.Count) == 0;
                    largest = guesses ? Choose<TStorage, No, Yes>(at, length, at, 0) : Largest<TStorage>(at, length);
                    if (!guesses || !(largest <= max))
                        Add<TStorage>(at, length, start, largest, at, 0);
                }
                if (top != null)
                    top->Look<V, TStorage>(at, length, start, largest);
                if (!HasManyRegisters)
                {
                    next += length * size;
                    largest = Add<TStorage>(at, length, start, largest, at + length * size, Math.Min(block, whole - start - length));
                }
            }
            AddPrepared(rows, row, whole, scratch, top, null);
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private void AddPrepared(in LogitRows rows, nint row, nint start, float* scratch, TopRows.List* top, float* kept)
        {
            nextStep = rows.AsksAhead ? 0 : V.Count * rows.Type.Size();
            for (nint block = Block; start < rows.Vocabulary; start += block)
            {
                nint length = Math.Min(block, rows.Vocabulary - start);
                nearby = length == block && rows.Shape.Spans(-V.LowestPower);
                float* prepared = kept != null && length == block ? kept + start : scratch;
                next = rows.Row(row) + start * rows.Type.Size() + PrefetchBytes;
                float largest = rows.Prepare<V>(row, start, length, prepared);
                Add<Float32Storage>((byte*)prepared, Whole(length + V.Count - 1), start, largest, (byte*)prepared, 0);
                if (top != null)
                    top->Look<V, Float32Storage>((byte*)prepared, length, start, largest);
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
                return Choose<TStorage, No, No>(block, count, ahead, aheadCount);
            if (largest > max)
            {
                if (max > float.NegativeInfinity)
                {
                    V moved = V.From((float)Math.Max(scale * ((double)anchor - largest), Exponential.Lowest)), factor = Exponential.OfNonPositive(moved);
                    sum += ones;
                    squares = (squares + ones) * factor * factor;
                    weighted = (weighted + sum * moved) * factor;
                    sum *= factor;
                    ones = V.Zero;
                }
                max = anchor = largest;
                largestBlock = start;
            }
            return Choose<TStorage, Yes, No>(block, count, ahead, aheadCount);
        }

        // What is guessed is that nothing in the block is larger than the anchor. Returns the largest of the block then, otherwise that of the block ahead. After a wrong guess nothing is added.
        private float Choose<TStorage, TOnes, TGuess>(byte* block, nint count, byte* ahead, nint aheadCount) where TStorage : struct, IStorage where TOnes : struct, IChoice where TGuess : struct, IChoice => sought switch
        {
            Sought.Sum => AddExponentials<TStorage, TOnes, TGuess, No, No>(block, count, ahead, aheadCount),
            Sought.Sum | Sought.Weighted => AddExponentials<TStorage, TOnes, TGuess, Yes, No>(block, count, ahead, aheadCount),
            Sought.Sum | Sought.Squares => AddExponentials<TStorage, TOnes, TGuess, No, Yes>(block, count, ahead, aheadCount),
            _ => AddExponentials<TStorage, TOnes, TGuess, Yes, Yes>(block, count, ahead, aheadCount),
        };

        private float AddExponentials<TStorage, TOnes, TGuess, TWeighted, TSquares>(byte* block, nint count, byte* ahead, nint aheadCount)
            where TStorage : struct, IStorage where TOnes : struct, IChoice where TGuess : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint eights = HasManyRegisters ? count - count % (8 * V.Count) : 0;
            if (eights == 0)
                return AddExponentials4<TStorage, TOnes, TWeighted, TSquares>(ref this, block, count, ahead, aheadCount);
            if (TOnes.Taken)
                CountOnes<TStorage>(ref this, block, eights);
            float largest = nearby
                ? AddExponentials8<TStorage, TOnes, TGuess, Yes, TWeighted, TSquares>(ref this, block, eights)
                : AddExponentials8<TStorage, TOnes, TGuess, No, TWeighted, TSquares>(ref this, block, eights);
            if (eights < count)
                AddExponentials4<TStorage, TOnes, TWeighted, TSquares>(ref this, block + eights * TStorage.Size, count - eights, ahead, 0);
            return largest;
        }

        private readonly RowSums Total()
        {
            if (infinite)
                return new(0, 0, sawNaN || double.IsNaN(Total(sum)) ? double.NaN : double.PositiveInfinity, double.NaN, double.NaN, largestBlock);
            double one = Total(ones);
            return new(anchor, scale * anchor, one + Total(sum), Total(weighted), one + Total(squares), largestBlock);
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

        // A leaf, so that nothing is spilled around calls. The bound leaves −∞ out of the entropy: the power is 0 there, and 0 · t must be.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static float AddExponentials4<TStorage, TOnes, TWeighted, TSquares>(ref LogitSums<V> to, byte* block, nint count, byte* ahead, nint aheadCount)
            where TStorage : struct, IStorage where TOnes : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint w = V.Count * TStorage.Size;
            V anchor = V.From(to.anchor), scale = V.From(to.powerScale), lowest = V.From(V.LowestPower);
            V ones = V.Zero, sum0 = V.Zero, sum1 = V.Zero, weighted0 = V.Zero, weighted1 = V.Zero, squares0 = V.Zero, squares1 = V.Zero;
            V largest0 = V.From(float.NegativeInfinity), largest1 = largest0;
            byte* end = block + count * TStorage.Size, aheadEnd = ahead + aheadCount * TStorage.Size;
            byte* next = to.next;
            nint nextStep = 4 * to.nextStep;
            for (; ahead <= aheadEnd - 4 * w; ahead += 4 * w, block += 4 * w, next += nextStep)
            {
                Prefetch.Bytes(next, nextStep);
                AddLargest<TStorage>(ahead, ref largest0, ref largest1);
                AddLargest<TStorage>(ahead + 2 * w, ref largest0, ref largest1);
                Add4<TStorage, TOnes, TWeighted, TSquares>(block, anchor, scale, lowest, ref ones, ref sum0, ref sum1, ref weighted0, ref weighted1, ref squares0, ref squares1);
            }
            for (; ahead < aheadEnd; ahead += w)
                largest0 = V.MaxNative(largest0, TStorage.Load<V>(ahead));
            for (; block <= end - 4 * w; block += 4 * w, next += nextStep)
            {
                Prefetch.Bytes(next, nextStep);
                Add4<TStorage, TOnes, TWeighted, TSquares>(block, anchor, scale, lowest, ref ones, ref sum0, ref sum1, ref weighted0, ref weighted1, ref squares0, ref squares1);
            }
            for (; block < end; block += w)
            {
                V x = TStorage.Load<V>(block), y = V.MaxNative(lowest, (x - anchor) * scale), e = Exponential.PowerOfTwo(y);
                if (TWeighted.Taken)
                    weighted0 = V.MultiplyAdd(e, y, weighted0);
                if (TOnes.Taken)
                {
                    ones += V.SelectEqual(x, anchor, V.One, V.Zero);
                    e = V.SelectEqual(x, anchor, V.Zero, e);
                }
                sum0 += e;
                if (TSquares.Taken)
                    squares0 = V.MultiplyAdd(e, e, squares0);
            }
            to.sum += sum0 + sum1;
            if (TWeighted.Taken)
                to.weighted = V.MultiplyAdd(weighted0 + weighted1, V.From(Exponential.Ln2), to.weighted);
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
        private static float AddExponentials8<TStorage, TOnes, TGuess, TNearby, TWeighted, TSquares>(ref LogitSums<V> to, byte* block, nint count)
            where TStorage : struct, IStorage where TOnes : struct, IChoice where TGuess : struct, IChoice where TNearby : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint w = V.Count * TStorage.Size;
            V anchor = V.From(to.anchor), scale = V.From(to.powerScale), lowest = V.From(V.LowestPower);
            V sum = V.Zero, weighted0 = V.Zero, weighted1 = V.Zero, squares0 = V.Zero, squares1 = V.Zero;
            V largest0 = V.From(float.NegativeInfinity), largest1 = largest0;
            byte* end = block + count * TStorage.Size, next = to.next;
            nint nextStep = 4 * to.nextStep;
            for (; block < end; block += 8 * w, next += 2 * nextStep)
            {
                Prefetch.Bytes(next, nextStep);
                Prefetch.Bytes(next + nextStep, nextStep);
                if (TGuess.Taken)
                {
                    AddLargest<TStorage>(block, ref largest0, ref largest1);
                    AddLargest<TStorage>(block + 2 * w, ref largest0, ref largest1);
                    AddLargest<TStorage>(block + 4 * w, ref largest0, ref largest1);
                    AddLargest<TStorage>(block + 6 * w, ref largest0, ref largest1);
                    if (V.AnyLess(anchor, V.MaxNative(largest0, largest1)))
                        return GuessedWrong<TStorage>(ref to, block, end, next, V.MaxNative(largest0, largest1));
                }
                Powers<TStorage, TOnes, TNearby>(block, anchor, scale, lowest, out V y0, out V y1);
                Powers<TStorage, TOnes, TNearby>(block + 2 * w, anchor, scale, lowest, out V y2, out V y3);
                Powers<TStorage, TOnes, TNearby>(block + 4 * w, anchor, scale, lowest, out V y4, out V y5);
                Powers<TStorage, TOnes, TNearby>(block + 6 * w, anchor, scale, lowest, out V y6, out V y7);
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
            to.next = next;
            float largest = V.MaxNative(largest0, largest1).Largest();
            if (TGuess.Taken && !(largest <= to.max))
                return largest;
            to.sum += sum;
            if (TWeighted.Taken)
                to.weighted = V.MultiplyAdd(weighted0 + weighted1, V.From(Exponential.Ln2), to.weighted);
            if (TSquares.Taken)
                to.squares += squares0 + squares1;
            return largest;
        }

        // What is left of the block is looked through only.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static float GuessedWrong<TStorage>(ref LogitSums<V> to, byte* block, byte* end, byte* next, V largest) where TStorage : struct, IStorage
        {
            to.next = next;
            return Math.Max(largest.Largest(), Largest<TStorage>(block, (nint)(end - block) / TStorage.Size));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void AddLargest<TStorage>(byte* two, ref V a, ref V b) where TStorage : struct, IStorage
        {
            TStorage.Load(two, out V x, out V y);
            a = V.MaxNative(a, x);
            b = V.MaxNative(b, y);
        }

        // Two vectors of powers of two, bounded; without the ones if they are counted apart.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Powers<TStorage, TOnes, TNearby>(byte* two, V anchor, V scale, V lowest, out V a, out V b) where TStorage : struct, IStorage where TOnes : struct, IChoice where TNearby : struct, IChoice
        {
            TStorage.Load(two, out V x, out V y);
            a = (x - anchor) * scale;
            b = (y - anchor) * scale;
            if (!TNearby.Taken)
            {
                a = V.MaxNative(lowest, a);
                b = V.MaxNative(lowest, b);
            }
            if (TOnes.Taken)
            {
                a = V.SelectEqual(x, anchor, lowest, a);
                b = V.SelectEqual(y, anchor, lowest, b);
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Add4<TStorage, TOnes, TWeighted, TSquares>(byte* block, V anchor, V scale, V lowest, ref V ones, ref V sum0, ref V sum1, ref V weighted0, ref V weighted1,
            ref V squares0, ref V squares1) where TStorage : struct, IStorage where TOnes : struct, IChoice where TWeighted : struct, IChoice where TSquares : struct, IChoice
        {
            nint w = V.Count * TStorage.Size;
            TStorage.Load(block, out V x0, out V x1);
            TStorage.Load(block + 2 * w, out V x2, out V x3);
            V y0 = V.MaxNative(lowest, (x0 - anchor) * scale), y1 = V.MaxNative(lowest, (x1 - anchor) * scale);
            V y2 = V.MaxNative(lowest, (x2 - anchor) * scale), y3 = V.MaxNative(lowest, (x3 - anchor) * scale);
            Exponential.PowersOfTwo(y0, y1, y2, y3, out V e0, out V e1, out V e2, out V e3);
            if (TWeighted.Taken)
            {
                weighted0 = V.MultiplyAdd(e0, y0, weighted0);
                weighted1 = V.MultiplyAdd(e1, y1, weighted1);
                weighted0 = V.MultiplyAdd(e2, y2, weighted0);
                weighted1 = V.MultiplyAdd(e3, y3, weighted1);
            }
            if (TOnes.Taken)
            {
                V zero = V.Zero, one = V.One;
                TStorage.Load(block, out x0, out x1);
                TStorage.Load(block + 2 * w, out x2, out x3);
                ones += (V.SelectEqual(x0, anchor, one, zero) + V.SelectEqual(x1, anchor, one, zero)) + (V.SelectEqual(x2, anchor, one, zero) + V.SelectEqual(x3, anchor, one, zero));
                e0 = V.SelectEqual(x0, anchor, zero, e0);
                e1 = V.SelectEqual(x1, anchor, zero, e1);
                e2 = V.SelectEqual(x2, anchor, zero, e2);
                e3 = V.SelectEqual(x3, anchor, zero, e3);
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
