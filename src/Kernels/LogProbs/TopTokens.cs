using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A logit and its token make one whole number, a rank: the likelier, the larger, and no two are the same. So whoever comes first to a counter or a place changes nothing.
//
// A group takes a row. It forms the row's sums; then it counts ranks by their first 11 bits, and finds the bits at which the k likeliest end. Mostly no more than 2,048 ranks have those bits
// or larger ones: these are collected in shared memory, sorted there, and the first k of them are it. So a row is read three times, and twice if it has no more than 2,048 logits. Where more have
// them, as with many equal logits, or where k is larger, ranks with those bits are counted by the next 11, a reading each; at most six times, until k are left. More than 2,048 are collected and sorted
// in the tensors that they go to, which takes about log₂² k / 2 readings and writings of those.
public sealed partial class GpuDevice
{
    private void TopTokens<TLogits>(in LogitsProblem problem, in TokenOutputs outputs) where TLogits : struct, IGpuLogits<TLogits>
    {
        TopTokensArguments<TLogits> arguments = new(this, problem, outputs);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count > 0)
            Queue.Launch(TopTokensKernels<TLogits>.Find, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, arguments, Queue.Faults);
    }
}

/// <summary>What the kernel of the likeliest tokens reads and writes.</summary>
internal readonly struct TopTokensArguments<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly GpuLogitRows<TLogits> Rows;
    public readonly GpuTensor<float> LogProbs;
    public readonly GpuIntegers Tokens;

    /// <summary>k.</summary>
    public readonly int Count;

    public TopTokensArguments(GpuDevice device, in LogitsProblem problem, in TokenOutputs outputs)
    {
        Rows = new(device, problem);
        LogProbs = new(device, outputs.TopLogProbs, "outputs.TopLogProbs");
        Tokens = new(device, outputs.TopTokens, "outputs.TopTokens");
        Count = (int)outputs.TopLogProbs.Length(1);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long Token(long row, int place)
    {
        long token = 0; // without tokens nobody sees how equal logits are ordered
        if (Tokens.IsPresent)
            token = Tokens[row, place];
        return token;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(long row, int place, float logProb, long token)
    {
        LogProbs[row, place] = logProb;
        Tokens.Set(row, place, token);
    }
}

/// <summary>Ranks: 32 bits of the logit, whose order as whole numbers is that of the logits, above 31 of the token, counted down.</summary>
internal static class TokenRank
{
    public const int Bits = 63;

    private const int TokenBits = 31, Infinity = 0x7f800000;

    /// <remarks>−0 is 0. A NaN counts as ∞: the log-probs of its row are NaN in any case.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Of(float logit, long token)
    {
        int bits = BitConverter.SingleToInt32Bits(logit), key = bits >= 0 ? bits : bits ^ int.MaxValue;
        key = logit == 0f ? 0 : float.IsNaN(logit) ? Infinity : key;
        return (long)(uint)(key ^ int.MinValue) << TokenBits | (int.MaxValue - token);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Logit(long rank)
    {
        int key = (int)(rank >> TokenBits) ^ int.MinValue;
        return BitConverter.Int32BitsToSingle(key >= 0 ? key : key ^ int.MaxValue);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Token(long rank) => int.MaxValue - (rank & int.MaxValue);
}

/// <summary>Ranks in some memory, to be sorted.</summary>
internal interface IRankList
{
    /// <summary>Exchanges two unless the first is the larger one.</summary>
    void Order(int first, int second);
}

/// <typeparam name="TLogits">How logits are read.</typeparam>
internal static class TopTokensKernels<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    public const int GroupSize = LogProbsSize.GroupSize;

    // What is counted at once, in as many bins.
    private const int DigitBits = 11, Bins = 1 << DigitBits, ThreadBins = Bins / GroupSize;

    // Ranks that are sorted in shared memory: with bins and sums 30 of the 32 KB that any device has.
    private const int Capacity = 2048;

    /// <summary>The likeliest tokens of each row, and ln p of them.</summary>
    public static void Find(TopTokensArguments<TLogits> a, GpuFaults faults)
    {
        ArrayView<float> sums = SharedMemory.Allocate<float>(LogProbsKernels<TLogits>.SharedSums);
        ArrayView<int> bins = SharedMemory.Allocate<int>(Bins), parts = SharedMemory.Allocate<int>(GroupSize), choice = SharedMemory.Allocate<int>(3);
        ArrayView<long> ranks = SharedMemory.Allocate<long>(Capacity);
        for (long row = Grid.IdxX; row < a.Rows.Count; row += Grid.DimX)
        {
            long target = a.Rows.Targets[row];
            if (target == a.Rows.IgnoreTarget || a.Rows.IsOutside(target))
            {
                bool ignored = target == a.Rows.IgnoreTarget;
                for (int place = Group.IdxX; place < a.Count; place += GroupSize)
                    a.Store(row, place, ignored ? 0f : float.NaN, ignored ? 0 : LogProbsKernels<TLogits>.NoToken);
                if (Group.IdxX == 0 && !ignored)
                    faults.Report(GpuFaultSource.Targets, target, a.Rows.Vocabulary);
                continue;
            }
            LogProbsKernels<TLogits>.GpuLogitSums of = LogProbsKernels<TLogits>.Sums(a.Rows, row, sums, sums, default, keeps: false, finds: false, totals: false);
            bool fits = a.Count <= Capacity;
            int most = fits ? Capacity : a.Count;
            long least = Least(a, row, most, bins, parts, choice);
            if (Group.IdxX == 0)
                choice[0] = 0;
            Group.Barrier();
            long at = a.Rows.Logits.At(row);
            for (long j0 = Group.IdxX; j0 < a.Rows.Vocabulary; j0 += LogProbsSize.BlockLogits)
            {
                FourNumbers z = a.Rows.Logits.ReadFour(at, j0, GroupSize, a.Rows.Vocabulary);
                Collect(a, row, z.First, j0, least, most, ranks, choice);
                Collect(a, row, z.Second, j0 + GroupSize, least, most, ranks, choice);
                Collect(a, row, z.Third, j0 + 2 * GroupSize, least, most, ranks, choice);
                Collect(a, row, z.Fourth, j0 + 3 * GroupSize, least, most, ranks, choice);
            }
            MemoryFence.GroupLevel();
            Group.Barrier();
            int found = choice[0];
            if (fits)
                Sort(new SharedRanks(ranks), found);
            else
                Sort(new StoredRanks(a, row), found);
            for (int place = Group.IdxX; place < a.Count; place += GroupSize)
            {
                float logit = fits ? TokenRank.Logit(ranks[place]) : a.LogProbs[row, place];
                long token = fits ? TokenRank.Token(ranks[place]) : a.Token(row, place);
                a.Store(row, place, LogProbsKernels<TLogits>.Scaled(a.Rows, logit - of.Shift) - of.LogSum, token);
            }
            Group.Barrier(); // the next row's ranks replace these
        }
    }

    /// <summary>A rank that at least k of a row reach, and no more than can be taken.</summary>
    /// <param name="a">The arguments.</param>
    /// <param name="row">The row.</param>
    /// <param name="most">How many can be taken, at least k.</param>
    /// <param name="bins">A number for each digit.</param>
    /// <param name="parts">A number for each thread.</param>
    /// <param name="choice">Three numbers.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static long Least(in TopTokensArguments<TLogits> a, long row, int most, ArrayView<int> bins, ArrayView<int> parts, ArrayView<int> choice)
    {
        // Of all ranks whose bits from this one on are the prefix, so many of the largest are missing yet, and so many others are taken.
        int from = TokenRank.Bits, missing = a.Count, taken = 0;
        long prefix = 0, at = a.Rows.Logits.At(row), candidates = a.Rows.Vocabulary;
        while (taken + candidates > most && from > 0)
        {
            int shift = from > DigitBits ? from - DigitBits : 0;
            for (int i = ThreadBins - 1; i >= 0; i--)
                bins[i * GroupSize + Group.IdxX] = 0;
            Group.Barrier();
            for (long j0 = Group.IdxX; j0 < a.Rows.Vocabulary; j0 += LogProbsSize.BlockLogits)
            {
                FourNumbers z = a.Rows.Logits.ReadFour(at, j0, GroupSize, a.Rows.Vocabulary);
                Count(a, z.First, j0, prefix, from, shift, bins);
                Count(a, z.Second, j0 + GroupSize, prefix, from, shift, bins);
                Count(a, z.Third, j0 + 2 * GroupSize, prefix, from, shift, bins);
                Count(a, z.Fourth, j0 + 3 * GroupSize, prefix, from, shift, bins);
            }
            Group.Barrier();
            Choose(missing, bins, parts, choice);
            int digit = choice[0], larger = choice[1];
            candidates = choice[2];
            Group.Barrier();
            int width = from - shift;
            prefix = prefix << width | (uint)(digit & ((1 << width) - 1));
            missing -= larger;
            taken += larger;
            from = shift;
        }
        return prefix << from;
    }

    /// <summary>Which bin holds the last of so many of the largest, how many are in larger ones, and how many in it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Choose(int missing, ArrayView<int> bins, ArrayView<int> parts, ArrayView<int> choice)
    {
        int thread = Group.IdxX, own = 0;
        for (int i = ThreadBins - 1; i >= 0; i--)
            own += bins[thread * ThreadBins + i];
        // From its own bins on, how many.
        parts[thread] = own;
        for (int distance = 1; distance < GroupSize; distance *= 2)
        {
            Group.Barrier();
            int more = 0;
            if (thread + distance < GroupSize)
                more = parts[thread + distance];
            Group.Barrier();
            parts[thread] += more;
        }
        int larger = parts[thread] - own;
        if (larger < missing && parts[thread] >= missing)
        {
            int bin = thread * ThreadBins + ThreadBins - 1;
            while (larger + bins[bin] < missing)
            {
                larger += bins[bin];
                bin--;
            }
            choice[0] = bin;
            choice[1] = larger;
            choice[2] = bins[bin];
        }
        Group.Barrier();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Count(in TopTokensArguments<TLogits> a, float logit, long token, long prefix, int from, int shift, ArrayView<int> bins)
    {
        long rank = TokenRank.Of(logit, token);
        if (token < a.Rows.Vocabulary && rank >> from == prefix)
            Atomic.Add(ref bins[(int)(rank >> shift) & (Bins - 1)], 1);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Collect(in TopTokensArguments<TLogits> a, long row, float logit, long token, long least, int most, ArrayView<long> ranks, ArrayView<int> found)
    {
        long rank = TokenRank.Of(logit, token);
        if (token >= a.Rows.Vocabulary || rank < least)
            return;
        int place = Atomic.Add(ref found[0], 1);
        if (place >= most)
            return; // it can't be: so many there are
        if (a.Count <= Capacity)
            ranks[place] = rank;
        else
            a.Store(row, place, logit, token);
    }

    /// <summary>Sorts, the largest first: Batcher's bitonic network in the form in which every comparison leaves the larger one in front, so that it takes any number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sort<TList>(TList list, int count) where TList : struct, IRankList
    {
        for (int half = 1; half < count; half *= 2)
        {
            Exchange(list, count, half, 2 * half - 1);
            for (int distance = half / 2; distance > 0; distance /= 2)
                Exchange(list, count, distance, distance);
        }
    }

    // Pairs in which a bit of the place is 0 and 1, the latter's place being the former's with all bits of the mask changed.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Exchange<TList>(TList list, int count, int bit, int mask) where TList : struct, IRankList
    {
        for (int pair = Group.IdxX; pair < count; pair += GroupSize)
        {
            int first = (pair & -bit) << 1 | (pair & (bit - 1)), second = first ^ mask;
            if (second < count)
                list.Order(first, second);
        }
        MemoryFence.GroupLevel();
        Group.Barrier();
    }

    private readonly struct SharedRanks(ArrayView<long> ranks) : IRankList
    {
        private readonly ArrayView<long> ranks = ranks;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Order(int first, int second)
        {
            long one = ranks[first], other = ranks[second];
            if (one < other)
            {
                ranks[first] = other;
                ranks[second] = one;
            }
        }
    }

    /// <summary>Logits and tokens where log-probs and tokens go.</summary>
    private readonly struct StoredRanks(TopTokensArguments<TLogits> a, long row) : IRankList
    {
        private readonly TopTokensArguments<TLogits> a = a;
        private readonly long row = row;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Order(int first, int second)
        {
            float logit = a.LogProbs[row, first], otherLogit = a.LogProbs[row, second];
            long token = a.Token(row, first), otherToken = a.Token(row, second);
            if (TokenRank.Of(logit, token) < TokenRank.Of(otherLogit, otherToken))
            {
                a.Store(row, first, otherLogit, otherToken);
                a.Store(row, second, logit, token);
            }
        }
    }
}
