using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// Estimation: what a run of tokens does to the advantage and the value that come from behind it is an affine map; maps are put together in any bracketing, so
// a group takes a row in blocks of 1,024 tokens from the end, a thread four neighbouring tokens, and the maps of the threads are scanned through shared
// memory, distance 1, 2, 4 ... The order is fixed by the row's length. Reads and writes go through shared memory, so that neighbouring threads have
// neighbouring tokens. Rows shorter than a block share a group.
//
// Whitening: sums and squares, then the values, with one small launch between them. A thread sums around the mean of the first values that it sees, a group moves
// that to its own mean, and the launch between moves the groups' to one centre: so float32 sums are enough. What is left beside the centre corrects both mean
// and variance.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns)
    {
        AdvantageArguments arguments = new(this, problem, advantages, returns);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Sequences > 0 && arguments.Tokens > 0)
            Queue.Launch(AdvantageKernels.Estimate, arguments.Groups, AdvantageKernels.GroupSize, arguments);
    }

    /// <inheritdoc/>
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean)
    {
        if (values.ElementCount < 2)
            throw new ArgumentException($"{(values.ElementCount == 0 ? "There is no value" : "There is one value")}; a variance needs at least two.", nameof(mask));
        WhitenArguments arguments = new(this, values, mask, keepMean);
        cancellation.ThrowIfCancellationRequested();
        int groups = arguments.Grid.Groups;
        lock (Queue.SumsGate)
        {
            Queue.Launch(WhitenKernels.Sum, groups, WhitenKernels.GroupSize, arguments);
            Queue.Launch(WhitenKernels.Scale, 1, WhitenKernels.GroupSize, arguments, Queue.Faults);
            Queue.Launch(WhitenKernels.Write, groups, WhitenKernels.GroupSize, arguments);
        }
    }
}

/// <summary>What the kernel of advantage estimation reads and writes.</summary>
internal readonly struct AdvantageArguments
{
    public readonly GpuTensor<float> Rewards, Values, Advantages, Returns;
    public readonly GpuTensor<byte> Mask;
    public readonly long Sequences, Tokens;
    public readonly float Discount, Decay;

    /// <summary>A power of two: so many threads take a row.</summary>
    public readonly int Width;

    public readonly int Groups;

    public AdvantageArguments(GpuDevice device, in AdvantageProblem problem, TensorView advantages, TensorView returns)
    {
        Rewards = new(device, problem.Rewards, "problem.Rewards");
        Values = new(device, problem.Values, "problem.Values");
        Mask = new(device, problem.Mask, "problem.Mask");
        Advantages = new(device, advantages, "advantages");
        Returns = new(device, returns, "returns");
        Sequences = problem.Rewards.Length(0);
        Tokens = problem.Rewards.Length(1);
        Discount = problem.Gamma;
        Decay = problem.Gamma * problem.Lambda;
        Width = 1;
        while (Width < AdvantageKernels.GroupSize && Width * AdvantageKernels.ThreadTokens < Tokens)
            Width *= 2;
        int rows = AdvantageKernels.GroupSize / Width;
        Groups = (int)Math.Min(AdvantageKernels.MaximumGroups, (Sequences + rows - 1) / rows);
    }
}

internal static class AdvantageKernels
{
    public const int GroupSize = 256;

    /// <summary>Neighbouring tokens of a thread.</summary>
    public const int ThreadTokens = 4;

    /// <summary>Beyond so many, a group takes several rows.</summary>
    public const int MaximumGroups = 1 << 20;

    // One float in 32 is left out, so that the threads of a warp, each at its own four tokens, meet in no bank of shared memory.
    private const int Banks = 32;
    private const int BlockFloats = GroupSize * ThreadTokens + GroupSize * ThreadTokens / Banks;

    /// <summary>Advantages and returns of whole rows.</summary>
    public static void Estimate(AdvantageArguments a)
    {
        ArrayView<float> rewards = SharedMemory.Allocate<float>(BlockFloats), values = SharedMemory.Allocate<float>(BlockFloats), kept = SharedMemory.Allocate<float>(BlockFloats);
        ArrayView<float> offsets = SharedMemory.Allocate<float>(GroupSize), slopes = SharedMemory.Allocate<float>(GroupSize), valueSlopes = SharedMemory.Allocate<float>(GroupSize);
        ArrayView<float> firstValues = SharedMemory.Allocate<float>(GroupSize);
        ArrayView<int> filled = SharedMemory.Allocate<int>(GroupSize);
        int thread = Group.IdxX, part = thread / a.Width, lane = thread % a.Width, rows = GroupSize / a.Width, blockTokens = a.Width * ThreadTokens;
        int slot = part * blockTokens;

        for (long firstRow = (long)Grid.IdxX * rows; firstRow < a.Sequences; firstRow += (long)Grid.DimX * rows)
        {
            long row = firstRow + part;
            float next = 0f, nextValue = 0f; // of the token behind the block
            for (long start = (a.Tokens - 1) / blockTokens * blockTokens; start >= 0; start -= blockTokens)
            {
                for (int i = lane; i < blockTokens; i += a.Width)
                {
                    long token = start + i;
                    bool counts = row < a.Sequences && token < a.Tokens;
                    if (counts && a.Mask.IsPresent)
                        counts = a.Mask[row, token] != 0;
                    int at = Padded(slot + i);
                    kept[at] = counts ? 1f : 0f;
                    if (counts)
                    {
                        rewards[at] = a.Rewards[row, token];
                        values[at] = a.Values[row, token];
                    }
                }
                Group.Barrier();

                AdvantageMap own = new(0f, 1f, 0f, 0f, 0);
                for (int i = ThreadTokens - 1; i >= 0; i--)
                {
                    int at = Padded(slot + lane * ThreadTokens + i);
                    if (kept[at] != 0f)
                        own = own.Before(rewards[at], values[at], a.Discount, a.Decay);
                }
                Store(own, thread, offsets, slopes, valueSlopes, firstValues, filled);
                for (int distance = 1; distance < a.Width; distance *= 2)
                {
                    Group.Barrier();
                    if (lane + distance < a.Width)
                        own = own.Before(Load(thread + distance, offsets, slopes, valueSlopes, firstValues, filled));
                    Group.Barrier();
                    Store(own, thread, offsets, slopes, valueSlopes, firstValues, filled);
                }
                Group.Barrier();

                // What comes to this thread's last token, and what will come to the block before this one.
                float advantage = next, value = nextValue;
                if (lane + 1 < a.Width)
                {
                    AdvantageMap behind = Load(thread + 1, offsets, slopes, valueSlopes, firstValues, filled);
                    advantage = behind.Advantage(next, nextValue);
                    value = behind.Value(nextValue);
                }
                AdvantageMap whole = Load(thread - lane, offsets, slopes, valueSlopes, firstValues, filled);
                next = whole.Advantage(next, nextValue);
                nextValue = whole.Value(nextValue);

                for (int i = ThreadTokens - 1; i >= 0; i--)
                {
                    int at = Padded(slot + lane * ThreadTokens + i);
                    if (kept[at] != 0f)
                    {
                        float error = rewards[at] + a.Discount * value - values[at];
                        advantage = error + a.Decay * advantage;
                        value = values[at];
                        rewards[at] = advantage;
                    }
                }
                Group.Barrier();

                for (int i = lane; i < blockTokens; i += a.Width)
                {
                    long token = start + i;
                    if (row < a.Sequences && token < a.Tokens)
                    {
                        int at = Padded(slot + i);
                        bool counts = kept[at] != 0f;
                        float result = counts ? rewards[at] : 0f;
                        a.Advantages[row, token] = result;
                        if (a.Returns.IsPresent)
                            a.Returns[row, token] = counts ? result + values[at] : 0f;
                    }
                }
                Group.Barrier();
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static int Padded(int i) => i + i / Banks;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(AdvantageMap map, int thread, ArrayView<float> offsets, ArrayView<float> slopes, ArrayView<float> valueSlopes, ArrayView<float> firstValues, ArrayView<int> filled)
    {
        offsets[thread] = map.Offset;
        slopes[thread] = map.Slope;
        valueSlopes[thread] = map.ValueSlope;
        firstValues[thread] = map.FirstValue;
        filled[thread] = map.Filled;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static AdvantageMap Load(int thread, ArrayView<float> offsets, ArrayView<float> slopes, ArrayView<float> valueSlopes, ArrayView<float> firstValues, ArrayView<int> filled) =>
        new(offsets[thread], slopes[thread], valueSlopes[thread], firstValues[thread], filled[thread]);

    /// <summary>What a run of tokens makes of the advantage A and the value V behind it: offset + slope · A + valueSlope · V, and its own first value.</summary>
    /// <remarks>A run of which no token counts hands both on: then the other numbers mean nothing. Selected, never multiplied: what is masked may be NaN.</remarks>
    private readonly struct AdvantageMap(float offset, float slope, float valueSlope, float firstValue, int filled)
    {
        public readonly float Offset = offset, Slope = slope, ValueSlope = valueSlope, FirstValue = firstValue;
        public readonly int Filled = filled;

        /// <summary>A token before the run.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public AdvantageMap Before(float reward, float value, float discount, float decay) => Filled == 0
            ? new(reward - value, decay, discount, value, 1)
            : new(reward + discount * FirstValue - value + decay * Offset, decay * Slope, decay * ValueSlope, value, 1);

        /// <summary>This run before another one.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public AdvantageMap Before(AdvantageMap other)
        {
            if (other.Filled == 0)
                return this;
            if (Filled == 0)
                return other;
            return new(Offset + Slope * other.Offset + ValueSlope * other.FirstValue, Slope * other.Slope, Slope * other.ValueSlope, FirstValue, 1);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float Advantage(float next, float nextValue) => Filled == 0 ? next : Offset + Slope * next + ValueSlope * nextValue;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float Value(float nextValue) => Filled == 0 ? nextValue : FirstValue;
    }
}

/// <summary>What the whitening kernels read and write.</summary>
internal readonly struct WhitenArguments
{
    public readonly GpuTensor<float> Values;
    public readonly TokenMask Mask;
    public readonly TokenGrid Grid;
    public readonly int KeepMean;

    /// <summary>Each group's number of values, their mean, sum and squares around it, [group, 4]; then centre, scale and shift.</summary>
    public readonly ArrayView<float> Floats;

    /// <summary>The same memory.</summary>
    public readonly ArrayView<int> Counts;

    public WhitenArguments(GpuDevice device, TensorView values, TensorView mask, bool keepMean)
    {
        Values = new(device, values, "values");
        Mask = new(device, mask, "mask");
        Grid = new(values.Length(0), values.Length(1));
        KeepMean = keepMean ? 1 : 0;
        Floats = device.Queue.Sums<float>();
        Counts = device.Queue.Sums<int>();
    }

    /// <summary>A white value is (x − centre) · scale + shift.</summary>
    public int Centre => WhitenKernels.GroupWords * Grid.Groups;

    public int Scale => Centre + 1;

    public int Shift => Centre + 2;
}

internal static class WhitenKernels
{
    public const int GroupSize = TokenGrid.GroupSize;

    /// <summary>What a group writes.</summary>
    public const int GroupWords = 4;

    // As TRL and verl.
    private const float VarianceFloor = 1e-8f;

    /// <summary>What each group keeps: the number of values, their mean, and the sums of what is beside it and of its squares.</summary>
    public static void Sum(WhitenArguments a)
    {
        ArrayView<long> counts = SharedMemory.Allocate<long>(GroupSize);
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);
        Spread own = new(0, 0f, 0f, 0f);
        TokenPlace at = a.Grid.First();
        for (long block = Grid.IdxX; a.Grid.HasBlock(block); block += Grid.DimX)
        {
            int kept = a.Mask.Kept(a.Grid, block, flags);
            float x0 = Value(a, ref at, kept, 0), x1 = Value(a, ref at, kept, 1), x2 = Value(a, ref at, kept, 2), x3 = Value(a, ref at, kept, 3);
            int number = (kept & 1) + (kept >> 1 & 1) + (kept >> 2 & 1) + (kept >> 3 & 1);
            float pivot = own.Count > 0 || number == 0 ? own.Pivot : (x0 + x1 + (x2 + x3)) / number;
            float d0 = Beside(pivot, x0, kept, 0), d1 = Beside(pivot, x1, kept, 1), d2 = Beside(pivot, x2, kept, 2), d3 = Beside(pivot, x3, kept, 3);
            own = new(own.Count + number, pivot, own.Sum + (d0 + d1 + (d2 + d3)), own.Squares + (d0 * d0 + d1 * d1 + (d2 * d2 + d3 * d3)));
        }
        long count = GroupSums.Sum(counts, GroupSize, own.Count);
        float mean = GroupSums.Sum(sums, GroupSize, own.Total) / count;
        own = own.Around(mean);
        float sum = GroupSums.Sum(sums, GroupSize, own.Sum), squares = GroupSums.Sum(sums, GroupSize, own.Squares);
        // Four threads, one write.
        if (Group.IdxX < GroupWords)
        {
            int word = Group.IdxX == 0 ? (int)count : BitConverter.SingleToInt32Bits(Group.IdxX == 1 ? mean : Group.IdxX == 2 ? sum : squares);
            a.Counts[Grid.IdxX * GroupWords + Group.IdxX] = word;
        }
    }

    /// <summary>Centre, scale and shift from what the groups summed; NaN where there is no variance.</summary>
    public static void Scale(WhitenArguments a, GpuFaults faults)
    {
        ArrayView<long> counts = SharedMemory.Allocate<long>(GroupSize);
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        long count = 0;
        float centre = 0f, sum = 0f, squares = 0f;
        for (int group = Group.IdxX; group < a.Grid.Groups; group += GroupSize)
        {
            Spread own = OfGroup(a, group);
            count += own.Count;
            centre += own.Total;
        }
        count = GroupSums.Sum(counts, GroupSize, count);
        centre = GroupSums.Sum(shared, GroupSize, centre) / count;
        for (int group = Group.IdxX; group < a.Grid.Groups; group += GroupSize)
        {
            Spread moved = OfGroup(a, group).Around(centre);
            sum += moved.Sum;
            squares += moved.Squares;
        }
        sum = GroupSums.Sum(shared, GroupSize, sum);
        squares = GroupSums.Sum(shared, GroupSize, squares);
        if (Group.IdxX != 0)
            return;
        float off = sum / count, variance = (squares - sum * off) / (count - 1);
        float scale = 1f / Real32.Sqrt(new(variance + VarianceFloor)).Value;
        if (count < 2)
        {
            scale = float.NaN;
            faults.Report(GpuFaultSource.WhitenMask, count, 2);
        }
        a.Floats[a.Centre] = centre;
        a.Floats[a.Scale] = scale;
        a.Floats[a.Shift] = a.KeepMean != 0 ? centre + (off - off * scale) : -off * scale;
    }

    /// <summary>The white values; 0 where the mask is false.</summary>
    public static void Write(WhitenArguments a)
    {
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        bool reads = Group.IdxX == 0;
        float centre = GroupSums.First(shared, reads ? a.Floats[a.Centre] : 0f), scale = GroupSums.First(shared, reads ? a.Floats[a.Scale] : 0f);
        float shift = GroupSums.First(shared, reads ? a.Floats[a.Shift] : 0f);
        TokenPlace at = a.Grid.First();
        for (long block = Grid.IdxX; a.Grid.HasBlock(block); block += Grid.DimX)
        {
            int kept = a.Mask.Kept(a.Grid, block, flags);
            for (int number = 0; number < TokenGrid.ThreadTokens; number++)
            {
                if (a.Grid.Has(at))
                    a.Values[at.Sequence, at.Token] = (kept >> number & 1) != 0 ? (a.Values[at.Sequence, at.Token] - centre) * scale + shift : 0f;
                at = a.Grid.Next(at, number);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Spread OfGroup(in WhitenArguments a, int group)
    {
        int at = group * GroupWords;
        return new(a.Counts[at], a.Floats[at + 1], a.Floats[at + 2], a.Floats[at + 3]);
    }

    // The value of a token that is kept, 0 of another; and on to the next one.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Value(in WhitenArguments a, ref TokenPlace at, int kept, int number)
    {
        float value = (kept >> number & 1) != 0 ? a.Values[at.Sequence, at.Token] : 0f;
        at = a.Grid.Next(at, number);
        return value;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Beside(float pivot, float value, int kept, int number) => (kept >> number & 1) != 0 ? value - pivot : 0f;

    /// <summary>How many values there are, and the sums of x − pivot and of its square.</summary>
    private readonly struct Spread(long count, float pivot, float sum, float squares)
    {
        public readonly long Count = count;
        public readonly float Pivot = pivot, Sum = sum, Squares = squares;

        /// <summary>Σ x.</summary>
        public float Total
        {
            [MethodImpl(MethodImplOptions.AggressiveInlining)]
            get => Count == 0 ? 0f : Count * Pivot + Sum; // of no values the pivot may be no number
        }

        /// <summary>The same around another number.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Spread Around(float centre)
        {
            float moved = Count == 0 ? 0f : Pivot - centre, all = Count * moved;
            return new(Count, centre, Sum + all, Squares + (2f * Sum + all) * moved);
        }
    }
}
