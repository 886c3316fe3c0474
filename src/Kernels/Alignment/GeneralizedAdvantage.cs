using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// Estimation: what a run of tokens does to the advantage and the value that come from behind it is an affine map; maps are put together in any bracketing, so
// a group takes a row in blocks of 1,024 tokens from the end, a thread four neighbouring tokens, and the maps of the threads are scanned through shared
// memory, distance 1, 2, 4 ... The order is fixed by the row's length. Reads and writes go through shared memory, so that neighbouring threads have
// neighbouring tokens. Rows shorter than a block share a group.
//
// Whitening: mean, then squares, then the values, with one small launch after each of the first two. The sums of squares are taken around the mean as a
// float32, and the sum of what is left beside it corrects both: float32 sums are enough then.
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
            Queue.Launch(WhitenKernels.Centre, 1, WhitenKernels.GroupSize, arguments);
            Queue.Launch(WhitenKernels.SumSquares, groups, WhitenKernels.GroupSize, arguments);
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
    public readonly GpuTensor<byte> Mask;
    public readonly TokenGrid Grid;
    public readonly int KeepMean;

    /// <summary>How many values each group kept, and behind them, in the last place, how many there are in all.</summary>
    public readonly ArrayView<long> Counts;

    /// <summary>The same memory: behind the counts two sums of each group; then centre, scale and shift.</summary>
    public readonly ArrayView<float> Floats;

    public WhitenArguments(GpuDevice device, TensorView values, TensorView mask, bool keepMean)
    {
        Values = new(device, values, "values");
        Mask = new(device, mask, "mask");
        Grid = new(values.Length(0), values.Length(1));
        KeepMean = keepMean ? 1 : 0;
        Counts = device.Queue.Sums<long>();
        Floats = device.Queue.Sums<float>();
    }

    public int Sums => 2 * (Grid.Groups + 1);

    public int Squares => Sums + Grid.Groups;

    /// <summary>The mean as a float32.</summary>
    public int Centre => Squares + Grid.Groups;

    /// <summary>A white value is (x − centre) · scale + shift.</summary>
    public int Scale => Centre + 1;

    public int Shift => Centre + 2;
}

internal static class WhitenKernels
{
    public const int GroupSize = TokenGrid.GroupSize;

    // As TRL and verl.
    private const float VarianceFloor = 1e-8f;

    /// <summary>Number and sum of what each group keeps.</summary>
    public static void Sum(WhitenArguments a)
    {
        ArrayView<long> counts = SharedMemory.Allocate<long>(GroupSize);
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        long count = 0;
        float sum = 0f;
        for (TokenPlace at = a.Grid.First(); a.Grid.Has(at); at = a.Grid.Next(at))
        {
            if (Keeps(a, at))
            {
                count++;
                sum += a.Values[at.Sequence, at.Token];
            }
        }
        count = GroupSums.Sum(counts, GroupSize, count);
        sum = GroupSums.Sum(sums, GroupSize, sum);
        if (Group.IdxX == 0)
        {
            a.Counts[Grid.IdxX] = count;
            a.Floats[a.Sums + Grid.IdxX] = sum;
        }
    }

    /// <summary>Number and mean of all.</summary>
    public static void Centre(WhitenArguments a)
    {
        ArrayView<long> counts = SharedMemory.Allocate<long>(GroupSize);
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        long count = 0;
        for (int group = Group.IdxX; group < a.Grid.Groups; group += GroupSize)
            count += a.Counts[group];
        count = GroupSums.Sum(counts, GroupSize, count);
        float sum = SumOfGroups(a, sums, a.Sums);
        if (Group.IdxX == 0)
        {
            a.Counts[a.Grid.Groups] = count;
            a.Floats[a.Centre] = sum / count;
        }
    }

    /// <summary>Sums of what each group keeps, less the mean, and of its squares.</summary>
    public static void SumSquares(WhitenArguments a)
    {
        ArrayView<float> sums = SharedMemory.Allocate<float>(GroupSize);
        float centre = a.Floats[a.Centre], sum = 0f, squares = 0f;
        for (TokenPlace at = a.Grid.First(); a.Grid.Has(at); at = a.Grid.Next(at))
        {
            if (Keeps(a, at))
            {
                float centred = a.Values[at.Sequence, at.Token] - centre;
                sum += centred;
                squares += centred * centred;
            }
        }
        sum = GroupSums.Sum(sums, GroupSize, sum);
        squares = GroupSums.Sum(sums, GroupSize, squares);
        if (Group.IdxX == 0)
        {
            a.Floats[a.Sums + Grid.IdxX] = sum;
            a.Floats[a.Squares + Grid.IdxX] = squares;
        }
    }

    /// <summary>Scale and shift; NaN where there is no variance.</summary>
    public static void Scale(WhitenArguments a, GpuFaults faults)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        float sum = SumOfGroups(a, shared, a.Sums), squares = SumOfGroups(a, shared, a.Squares);
        if (Group.IdxX != 0)
            return;
        long count = a.Counts[a.Grid.Groups];
        float centre = a.Floats[a.Centre], off = sum / count, variance = (squares - sum * off) / (count - 1);
        float scale = 1f / Real32.Sqrt(new(variance + VarianceFloor)).Value;
        if (count < 2)
        {
            scale = float.NaN;
            faults.Report(GpuFaultSource.WhitenMask, count, 2);
        }
        a.Floats[a.Scale] = scale;
        a.Floats[a.Shift] = a.KeepMean != 0 ? centre + (off - off * scale) : -off * scale;
    }

    /// <summary>The white values; 0 where the mask is false.</summary>
    public static void Write(WhitenArguments a)
    {
        float centre = a.Floats[a.Centre], scale = a.Floats[a.Scale], shift = a.Floats[a.Shift];
        for (TokenPlace at = a.Grid.First(); a.Grid.Has(at); at = a.Grid.Next(at))
            a.Values[at.Sequence, at.Token] = Keeps(a, at) ? (a.Values[at.Sequence, at.Token] - centre) * scale + shift : 0f;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Keeps(in WhitenArguments a, TokenPlace at) => !a.Mask.IsPresent || a.Mask[at.Sequence, at.Token] != 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float SumOfGroups(in WhitenArguments a, ArrayView<float> shared, int first)
    {
        float sum = 0f;
        for (int group = Group.IdxX; group < a.Grid.Groups; group += GroupSize)
            sum += a.Floats[first + group];
        return GroupSums.Sum(shared, GroupSize, sum);
    }
}
