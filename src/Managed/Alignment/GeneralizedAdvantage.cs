using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Rewards and values of generated tokens. All [sequence, token], float32, any strides.</summary>
public ref struct AdvantageProblem
{
    private float? gamma, lambda;

    /// <summary>The reward given at each token. Required.</summary>
    public TensorView Rewards { get; set; }
    /// <summary>The value estimate at each token. Required.</summary>
    public TensorView Values { get; set; }
    /// <summary>Which tokens count, bool; all if absent. The others are stepped over: value and accumulator of the next token that counts are carried.</summary>
    public TensorView Mask { get; set; }
    /// <summary>The discount γ of the next token's value, from 0 to 1; 1 unless set.</summary>
    public float Gamma
    {
        readonly get => gamma ?? 1;
        set => gamma = value;
    }
    /// <summary>The decay λ of later errors, from 0 to 1; 1 unless set.</summary>
    public float Lambda
    {
        readonly get => lambda ?? 1;
        set => lambda = value;
    }
}

/// <summary>Generalized advantage estimation (GAE).</summary>
/// <remarks>
/// From the last token back: δₜ = rₜ + γ Vₜ₊₁ − Vₜ, Aₜ = δₜ + γ λ Aₜ₊₁, with V and A zero after the end; the return is Aₜ + Vₜ.
/// Schulman et al. 2016, eq. 16. Masked tokens are skipped as in verl (OpenRLHF lets each cost γλ); their outputs are 0.
/// </remarks>
public static class GeneralizedAdvantage
{
    /// <summary>Computes advantages and returns; not whitened.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Rewards, values, mask, γ and λ.</param>
    /// <param name="advantages">[sequence, token], overwritten; 0 where the mask is false.</param>
    /// <param name="returns">[sequence, token], overwritten; 0 where the mask is false. May be absent (default).</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    public static void Estimate(ComputeDevice device, in AdvantageProblem problem, TensorView advantages, TensorView returns = default)
    {
        Require.Device(device);
        Require.Input(device, problem.Rewards, "problem.Rewards", -1, -1);
        long sequences = problem.Rewards.Length(0), tokens = problem.Rewards.Length(1);
        Require.Input(device, problem.Values, "problem.Values", sequences, tokens);
        if (problem.Mask.IsPresent)
            Require.Input(device, problem.Mask, "problem.Mask", [ElementType.Bool], sequences, tokens);
        CheckFactor(problem.Gamma, "problem.Gamma");
        CheckFactor(problem.Lambda, "problem.Lambda");
        Require.Output(device, advantages, nameof(advantages), sequences, tokens);
        Require.OptionalOutput(device, returns, nameof(returns), sequences, tokens);
        Require.Disjoint(advantages, nameof(advantages), returns, nameof(returns));
        CheckApart(problem, advantages, nameof(advantages));
        CheckApart(problem, returns, nameof(returns));
        device.EstimateAdvantages(problem, advantages, returns);
    }

    /// <summary>Shifts and scales the kept values to mean 0 and variance 1, in place: (x − mean) / √(variance + 1e-8), unbiased variance.</summary>
    /// <remarks>The convention of TRL and verl. The others become 0.</remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="values">[sequence, token], float32, replaced.</param>
    /// <param name="mask">[sequence, token], bool; all if absent (default). It must keep at least two values: the variance of one is not defined.</param>
    /// <param name="keepMean">Whether the mean is added back afterwards.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape or on another device, or the mask keeps fewer than two values.</exception>
    public static void Whiten(ComputeDevice device, TensorView values, TensorView mask = default, bool keepMean = false)
    {
        Require.Device(device);
        Require.Output(device, values, nameof(values), -1, -1);
        if (mask.IsPresent)
            Require.Input(device, mask, nameof(mask), [ElementType.Bool], values.Length(0), values.Length(1));
        Require.Disjoint(values, nameof(values), mask, nameof(mask));
        device.Whiten(values, mask, keepMean);
    }

    private static void CheckFactor(float factor, string name)
    {
        if (!(factor >= 0 && factor <= 1))
            throw new ArgumentOutOfRangeException(name, factor, $"{name} must lie between 0 and 1.");
    }

    private static void CheckApart(in AdvantageProblem problem, in TensorView written, string name)
    {
        Require.Disjoint(written, name, problem.Rewards, "problem.Rewards");
        Require.Disjoint(written, name, problem.Values, "problem.Values");
        Require.Disjoint(written, name, problem.Mask, "problem.Mask");
    }
}

internal sealed partial class CpuDevice
{
    protected internal override unsafe void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns)
    {
        fixed (byte* rewards = problem.Rewards, values = problem.Values, mask = problem.Mask, toAdvantages = advantages, toReturns = returns)
        {
            var work = new AdvantageWork
            {
                Rewards = new(rewards, problem.Rewards),
                Values = new(values, problem.Values),
                Mask = new(mask, problem.Mask, (nint)problem.Rewards.Length(1)),
                Advantages = new(toAdvantages, advantages),
                Returns = new(toReturns, returns),
                Sequences = (nint)problem.Rewards.Length(0),
                Tokens = (nint)problem.Rewards.Length(1),
                Discount = problem.Gamma,
                Decay = problem.Gamma * problem.Lambda,
            };
            Run(work, work.Items);
        }
    }

    protected internal override unsafe void Whiten(TensorView values, TensorView mask, bool keepMean)
    {
        // The pieces are cut by shape alone; their sums are added in order.
        const int most = 256;
        double* sums = stackalloc double[most];
        fixed (byte* data = values, kept = mask)
        {
            nint sequences = (nint)values.Length(0), tokens = (nint)values.Length(1), elements = (nint)values.ElementCount;
            var work = new WhitenWork
            {
                Values = new(data, values),
                Mask = new(kept, mask, tokens),
                Elements = elements,
                Piece = Math.Max(LossBlock, (elements + most - 1) / most),
                Sums = sums,
            };
            long count = 0;
            for (nint sequence = 0; sequence < sequences; sequence++)
                count += work.Mask.Length(sequence);
            if (count < 2)
                throw new ArgumentException($"{(mask.IsPresent ? "The mask keeps" : "There is")} {(count == 0 ? "no value" : "one value")}; a variance needs at least two.", nameof(mask));

            // Centre is the mean as a float32; what the rounding took is put back in double.
            double mean = SumOf(work, WhitenStep.Sum) / count;
            work.Centre = (float)mean;
            double off = mean - work.Centre, variance = (SumOf(work, WhitenStep.Squares) - count * off * off) / (count - 1);
            double scale = 1 / Math.Sqrt(variance + VarianceFloor);
            work.Scale = (float)scale;
            work.Shift = (float)((keepMean ? mean : 0) - off * scale);
            work.Step = WhitenStep.Write;
            Run(work, work.Pieces);
        }
    }

    // As TRL and verl.
    private const double VarianceFloor = 1e-8;

    private unsafe double SumOf(WhitenWork work, WhitenStep step)
    {
        work.Step = step;
        Run(work, work.Pieces);
        double sum = 0;
        for (nint piece = 0; piece < work.Pieces; piece++)
            sum += work.Sums[piece];
        return sum;
    }

    /// <summary>Sequences in the lanes: each follows the formula token by token, whatever stands beside it.</summary>
    private unsafe struct AdvantageWork : IWork
    {
        // The most lanes there are, so that the items are the same for every width.
        private const int Group = 16;

        // An item has at least about so many tokens, else taking it costs more than its work.
        private const int ItemTokens = 4096;

        // No processor foresees a square's walk through so many rows at once; without this, GAE takes twice the time.
        private const int SquaresAhead = 8;

        public SequenceStream Rewards, Values, Advantages, Returns;
        public MaskStream Mask;
        public nint Sequences, Tokens;
        public float Discount, Decay;

        public readonly nint Items => (Sequences + PerItem - 1) / PerItem;

        private readonly nint PerItem => Group * Math.Max(1, ItemTokens / (Group * Math.Max(1, Tokens)));

        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint end = Math.Min((item + 1) * PerItem, Sequences);
            for (nint first = item * PerItem; first < end; first += TLanes.Count)
                Estimate<TLanes>(first, Math.Min(TLanes.Count, end - first));
        }

        [SkipLocalsInit]
        private readonly void Estimate<TLanes>(nint first, nint sequences) where TLanes : struct, ILanes<TLanes>
        {
            int square = TLanes.Count * TLanes.Count;
            float* rewards = stackalloc float[7 * square], values = rewards + square, kept = values + square, advantages = kept + square,
                returns = advantages + square, rows = returns + square, other = rows + square;
            new Span<float>(kept, square).Fill(1f);
            TLanes nextValue = TLanes.Zero, next = TLanes.Zero;
            for (nint end = Tokens; end > 0; end -= TLanes.Count)
            {
                nint start = Math.Max(0, end - TLanes.Count), tokens = end - start;
                Prefetch(first, sequences, start - SquaresAhead * TLanes.Count);
                Rewards.Read<TLanes>(first, sequences, start, tokens, rewards, other);
                Values.Read<TLanes>(first, sequences, start, tokens, values, other);
                if (!Mask.KeepsAll)
                {
                    new Span<float>(rows, square).Clear();
                    for (nint lane = 0; lane < sequences; lane++)
                        Mask.CopyTo(rows + lane * TLanes.Count, first + lane, start, tokens, 1f);
                    SequenceStream.Transpose<TLanes>(rows, TLanes.Count, kept, other);
                }
                for (nint token = tokens - 1; token >= 0; token--)
                {
                    nint at = token * TLanes.Count;
                    TLanes value = TLanes.Load(values + at), keep = TLanes.Load(kept + at);
                    TLanes error = TLanes.Load(rewards + at) + Discount * nextValue - value, advantage = error + Decay * next;
                    TLanes.SelectEqual(keep, TLanes.Zero, TLanes.Zero, advantage).Store(advantages + at);
                    TLanes.SelectEqual(keep, TLanes.Zero, TLanes.Zero, advantage + value).Store(returns + at);
                    next = TLanes.SelectEqual(keep, TLanes.Zero, next, advantage);
                    nextValue = TLanes.SelectEqual(keep, TLanes.Zero, nextValue, value);
                }
                Advantages.Write<TLanes>(first, sequences, start, tokens, advantages, rows, other);
                Returns.Write<TLanes>(first, sequences, start, tokens, returns, rows, other);
            }
        }

        private readonly void Prefetch(nint first, nint sequences, nint token)
        {
            if (!Sse.IsSupported || token < 0)
                return;
            Rewards.Prefetch(first, sequences, token);
            Values.Prefetch(first, sequences, token);
            Advantages.Prefetch(first, sequences, token);
            Returns.Prefetch(first, sequences, token);
        }
    }

    /// <summary>A tensor [sequence, token] in pinned host memory, taken in squares of as many sequences and tokens as there are lanes.</summary>
    private readonly unsafe struct SequenceStream
    {
        private readonly float* data;
        private readonly nint rowStride, stride;

        public SequenceStream(byte* data, in TensorView view)
        {
            if (!view.IsPresent)
                return;
            this.data = (float*)data;
            rowStride = (nint)view.Stride(0);
            stride = (nint)view.Stride(1);
        }

        /// <summary>Calls the cache lines of a square that comes later.</summary>
        public void Prefetch(nint sequence, nint sequences, nint token)
        {
            float* first = data + sequence * rowStride + token * stride;
            for (nint lane = 0; lane < sequences && data is not null; lane++)
                Sse.Prefetch0(first + lane * rowStride);
        }

        /// <summary>Reads a square: the sequences of one token side by side, zeros where there are none.</summary>
        public void Read<TLanes>(nint sequence, nint sequences, nint token, nint tokens, float* square, float* other) where TLanes : struct, ILanes<TLanes>
        {
            float* source = data + sequence * rowStride + token * stride;
            if (stride == 1 && sequences == TLanes.Count && tokens == TLanes.Count)
            {
                Transpose<TLanes>(source, rowStride, square, other);
                return;
            }
            if (rowStride == 1 && sequences == TLanes.Count)
            {
                for (nint i = 0; i < tokens; i++)
                    TLanes.Load(source + i * stride).Store(square + i * TLanes.Count);
                return;
            }
            new Span<float>(square, TLanes.Count * TLanes.Count).Clear();
            for (nint lane = 0; lane < sequences; lane++)
            {
                for (nint i = 0; i < tokens; i++)
                    square[i * TLanes.Count + lane] = source[lane * rowStride + i * stride];
            }
        }

        /// <summary>Writes what <see cref="Read"/> would read.</summary>
        public void Write<TLanes>(nint sequence, nint sequences, nint token, nint tokens, float* square, float* rows, float* other) where TLanes : struct, ILanes<TLanes>
        {
            if (data is null)
                return;
            float* destination = data + sequence * rowStride + token * stride;
            if (stride == 1 && sequences == TLanes.Count && tokens == TLanes.Count)
            {
                Transpose<TLanes>(square, TLanes.Count, rows, other);
                for (nint lane = 0; lane < sequences; lane++)
                    TLanes.Load(rows + lane * TLanes.Count).Store(destination + lane * rowStride);
                return;
            }
            if (rowStride == 1 && sequences == TLanes.Count)
            {
                for (nint i = 0; i < tokens; i++)
                    TLanes.Load(square + i * TLanes.Count).Store(destination + i * stride);
                return;
            }
            for (nint lane = 0; lane < sequences; lane++)
            {
                for (nint i = 0; i < tokens; i++)
                    destination[lane * rowStride + i * stride] = square[i * TLanes.Count + lane];
            }
        }

        /// <summary>Transposes a square of floats, which may begin its rows anywhere; the result is row-major.</summary>
        public static void Transpose<TLanes>(float* source, nint rowStride, float* result, float* other) where TLanes : struct, ILanes<TLanes>
        {
            // Interleaving the lower with the upper half of the rows moves the highest bit of the row's number to the lowest of the column's; log₂ rounds move all.
            int rounds = BitOperations.Log2((uint)TLanes.Count), half = TLanes.Count / 2;
            if (rounds == 0)
                *result = *source;
            for (int round = 0; round < rounds; round++)
            {
                float* to = (rounds - round) % 2 == 1 ? result : other;
                for (nint row = 0; row < half; row++)
                {
                    TLanes.Zip(TLanes.Load(source + row * rowStride), TLanes.Load(source + (row + half) * rowStride), out TLanes a, out TLanes b);
                    a.Store(to + 2 * row * TLanes.Count);
                    b.Store(to + (2 * row + 1) * TLanes.Count);
                }
                source = to;
                rowStride = TLanes.Count;
            }
        }
    }

    private enum WhitenStep
    {
        Sum,
        Squares,
        Write,
    }

    private unsafe struct WhitenWork : IWork
    {
        public LossStream Values;
        public MaskStream Mask;
        public nint Elements, Piece;
        public WhitenStep Step;
        public float Centre, Scale, Shift;
        public double* Sums;

        public readonly nint Pieces => (Elements + Piece - 1) / Piece;

        [SkipLocalsInit]
        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint end = Math.Min((item + 1) * Piece, Elements);
            float* memory = stackalloc float[LossTile<TLanes>.Floats(2)];
            double sum = 0;
            for (nint start = item * Piece; start < end; start += LossTile<TLanes>.Length)
            {
                nint count = Math.Min(LossTile<TLanes>.Length, end - start), whole = count - count % TLanes.Count;
                if (whole > 0)
                    sum += Tile(new LossTile<TLanes>(memory, start, whole));
                if (whole < count)
                    sum += Tile(new LossTile<TLanes>(memory, start + whole, count - whole));
            }
            Sums[item] = sum;
        }

        private readonly double Tile<TLanes>(LossTile<TLanes> tile) where TLanes : struct, ILanes<TLanes>
        {
            float* values = tile.Read(Values), kept = tile.Place();
            Mask.CopyTo(kept, tile.Start, tile.Count, 1f);
            new Span<float>(kept + tile.Count, (int)(tile.Padded - tile.Count)).Clear();
            switch (Step)
            {
                case WhitenStep.Sum:
                    return tile.Total(Sum<TLanes>(values, kept, tile.Padded));
                case WhitenStep.Squares:
                    return tile.Total(Squares<TLanes>(values, kept, tile.Padded, Centre));
                default:
                    Write<TLanes>(values, kept, tile.Padded, Centre, Scale, Shift);
                    tile.Write(values, Values);
                    return 0;
            }
        }

        private static TLanes Sum<TLanes>(float* values, float* kept, nint count) where TLanes : struct, ILanes<TLanes>
        {
            TLanes sum = TLanes.Zero;
            for (nint i = 0; i < count; i += TLanes.Count)
                sum += TLanes.SelectEqual(TLanes.Load(kept + i), TLanes.Zero, TLanes.Zero, TLanes.Load(values + i));
            return sum;
        }

        private static TLanes Squares<TLanes>(float* values, float* kept, nint count, float centre) where TLanes : struct, ILanes<TLanes>
        {
            TLanes sum = TLanes.Zero;
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes centred = TLanes.Load(values + i) - centre;
                sum += TLanes.SelectEqual(TLanes.Load(kept + i), TLanes.Zero, TLanes.Zero, centred * centred);
            }
            return sum;
        }

        private static void Write<TLanes>(float* values, float* kept, nint count, float centre, float scale, float shift) where TLanes : struct, ILanes<TLanes>
        {
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes white = (TLanes.Load(values + i) - centre) * scale + shift;
                TLanes.SelectEqual(TLanes.Load(kept + i), TLanes.Zero, TLanes.Zero, white).Store(values + i);
            }
        }
    }
}
