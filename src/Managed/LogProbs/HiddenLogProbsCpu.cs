using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>How the work of a fused call is cut, and where things lie in its workspace.</summary>
/// <remarks>
/// Tokens lie in the lanes. A chunk of tokens is packed transposed, in panels as wide as a register tile; the vocabulary streams past it, broadcast from its own memory. A row of
/// logits of the chunk, one entry of the vocabulary, is <see cref="Stride"/> floats. What is summed over the vocabulary is summed in pieces whose bounds the vocabulary's
/// size alone fixes; what is summed over tokens is added token by token onto what is there. So the chunk, which the budget decides, doesn't change a bit.
/// </remarks>
internal readonly struct HiddenPlan
{
    // Entries of the vocabulary whose softmax sums are formed in one: few enough for many threads, many enough that merging is nothing.
    private const int PieceRows = 512;

    /// <summary>Entries of the vocabulary between two looks at their logits: with a tile's tokens they stay in the first cache.</summary>
    public const int BlockRows = 64;

    // The gradient of the hidden states is summed in so many parts of the vocabulary.
    private const int MostGroups = 16;

    // What is taken at most if the workspace allows more.
    private const long DefaultBudget = 32_000_000;

    /// <summary>Max, Σ e^t, Σ e^t t, Σ e^2t, argmax of a piece, for each token.</summary>
    public const int PartialFields = 5;

    /// <summary>Shift, constant, slope, gradient at the target and the target's logit, for each token.</summary>
    public const int TokenFields = 5;

    public readonly nint Tokens, Width, Vocabulary, Lanes, Panel, Chunk, Stride;
    public readonly bool Backward, Keeps, Converts;
    public readonly long Bytes, ScratchBytes;

    // In floats, from the start.
    public readonly nint PackedHidden, PackedRows, Partials, PerToken, HiddenParts, Logits, Indices, Scratch;

    public HiddenPlan(in HiddenProblem problem, bool backward, long budget, nint lanes, int threads)
    {
        Tokens = (nint)problem.Hidden.Length(0);
        Width = (nint)problem.Hidden.Length(1);
        Vocabulary = (nint)(problem.ValidVocabulary ?? problem.Vocabulary.Length(0));
        Lanes = lanes;
        Panel = VocabularyProduct.MostVectors * lanes;
        Backward = backward;
        Converts = problem.Vocabulary.Type != ElementType.Float32;
        budget = Math.Min(budget, DefaultBudget);

        // The largest chunk that the budget allows; backward with its logits if it allows that at all, else without.
        nint most = RoundUp(Math.Max(Tokens, 1), lanes);
        (Keeps, Chunk) = (backward, most);
        for (; Chunk > lanes && Size(threads) > budget; Chunk -= lanes)
        {
        }
        if (Keeps && Size(threads) > budget)
        {
            (Keeps, Chunk) = (false, most);
            for (; Chunk > lanes && Size(threads) > budget; Chunk -= lanes)
            {
            }
        }
        Stride = RoundUp(Chunk, Panel);

        nint at = 0;
        Indices = Take(ref at, 2 * Tokens + 2 * Stride);
        PackedHidden = Take(ref at, Stride * Width);
        PackedRows = Take(ref at, backward ? Stride * RoundUp(Width, Panel) : 0);
        Partials = Take(ref at, Pieces * PartialFields * Stride);
        PerToken = Take(ref at, TokenFields * Stride);
        HiddenParts = Take(ref at, backward ? Groups * Width * Stride : 0);
        Logits = Take(ref at, Keeps ? Vocabulary * Stride : 0);
        Scratch = at;
        ScratchBytes = ScratchFloats * sizeof(float);
        Bytes = at * (long)sizeof(float) + ScratchBytes * threads;
    }

    /// <summary>How many pieces the vocabulary has, and how many groups of them.</summary>
    public nint Pieces => (Vocabulary + PieceRows - 1) / PieceRows;

    public nint Groups => Math.Min(Pieces, MostGroups);

    /// <summary>The entries of a piece.</summary>
    public (nint Start, nint End) Piece(nint piece) => (piece * PieceRows, Math.Min((piece + 1) * PieceRows, Vocabulary));

    /// <summary>The entries of a group of pieces.</summary>
    public (nint Start, nint End) Group(nint group) => (group * Pieces / Groups * PieceRows, Math.Min((group + 1) * Pieces / Groups * PieceRows, Vocabulary));

    // A block's logits, the logits before they were differentiated, the block's entries converted, and a tile's worth at the end of rows.
    private nint ScratchFloats => RoundUp(BlockFloats + (Converts ? BlockRows * Width : 0) + BlockRows * Panel + Width, Aligned);

    /// <summary>The floats of a block's logits in scratch memory: those of all tokens, before and after they are differentiated, or of one panel of them.</summary>
    public nint BlockFloats => Backward ? 2 * BlockRows * RoundUp(Chunk, Panel) : BlockRows * Panel;

    // Floats of a cache line.
    private const int Aligned = 16;

    private long Size(int threads)
    {
        long stride = RoundUp(Chunk, Panel);
        long perToken = Width + Pieces * PartialFields + TokenFields + 2 + (Backward ? RoundUp(Width, Panel) + Groups * Width : 0) + (Keeps ? Vocabulary : 0);
        const int Gaps = 8 * Aligned;
        return sizeof(float) * (stride * perToken + 2 * Tokens + Gaps + (long)ScratchFloats * threads);
    }

    private static nint Take(ref nint at, nint floats)
    {
        nint place = at;
        at += RoundUp(floats, Aligned);
        return place;
    }

    public static nint RoundUp(nint x, nint multiple) => (x + multiple - 1) / multiple * multiple;
}

internal sealed partial class CpuDevice
{
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, long budget) => new HiddenPlan(problem, backward, budget, Lanes, ThreadCount).Bytes;

    protected internal override unsafe void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace)
    {
        var plan = new HiddenPlan(problem, backward, workspace.Limit, Lanes, ThreadCount);
        fixed (byte* hidden = problem.Hidden, vocabulary = problem.Vocabulary, targets = problem.Targets, bias = problem.Bias,
            ofLogProb = upstream.LogProb, ofLogSumExp = upstream.LogSumExp, ofEntropy = upstream.Entropy,
            logProb = outputs.LogProb, logSumExp = outputs.LogSumExp, entropy = outputs.Entropy, squares = outputs.SumOfSquares, argmax = outputs.Argmax,
            ofHidden = gradients.Hidden, ofVocabulary = gradients.Vocabulary, ofBias = gradients.Bias)
        {
            var tokens = new TokenVector(targets, problem.Targets);
            for (nint token = 0; token < plan.Tokens; token++)
                CheckTarget(token, tokens[token], plan.Vocabulary, problem.IgnoreTarget);
            cancellation.ThrowIfCancellationRequested();

            using Workspace.Lease lease = workspace.Rent(plan.Bytes);
            fixed (byte* memory = lease.View)
            {
                float* floats = (float*)memory;
                var work = new HiddenWork
                {
                    Plan = plan,
                    Hidden = new(hidden, problem.Hidden),
                    Vocabulary = new(vocabulary, problem.Vocabulary),
                    Bias = (float*)bias,
                    Shape = new(problem.Softcap, problem.Temperature),
                    OfLogProb = new(ofLogProb, upstream.LogProb),
                    OfLogSumExp = new(ofLogSumExp, upstream.LogSumExp),
                    OfEntropy = new(ofEntropy, upstream.Entropy),
                    LogProb = new(logProb, outputs.LogProb),
                    LogSumExp = new(logSumExp, outputs.LogSumExp),
                    Entropy = new(entropy, outputs.Entropy),
                    SumOfSquares = new(squares, outputs.SumOfSquares),
                    Argmax = new(argmax, outputs.Argmax),
                    OfHidden = new(ofHidden, gradients.Hidden),
                    OfVocabulary = new(ofVocabulary, gradients.Vocabulary),
                    OfBias = (float*)ofBias,
                    Accumulate = gradients.Accumulate,
                    Memory = floats,
                };
                long* indices = (long*)(floats + plan.Indices);
                work.Targets = indices + plan.Tokens;
                nint valid = 0;
                for (nint token = 0; token < plan.Tokens; token++)
                {
                    if (tokens[token] == problem.IgnoreTarget)
                        work.Ignore(token);
                    else
                        indices[valid++] = token;
                }
                work.ClearTail((nint)problem.Vocabulary.Length(0), all: valid == 0);

                byte* scratch = (byte*)(floats + plan.Scratch);
                nint stride = (nint)plan.ScratchBytes;
                for (nint start = 0; start < valid; start += plan.Chunk)
                {
                    work.Tokens = indices + start;
                    work.Count = Math.Min(plan.Chunk, valid - start);
                    work.First = start == 0;
                    for (nint i = 0; i < plan.Stride; i++)
                        work.Targets[i] = i < work.Count ? tokens[(nint)work.Tokens[i]] : -1;
                    work.Phase = HiddenPhase.Pack;
                    Run(work, plan.Stride / plan.Lanes, scratch, stride);
                    work.Phase = HiddenPhase.Sum;
                    Run(work, plan.Pieces, scratch, stride);
                    work.Phase = HiddenPhase.Merge;
                    Run(work, plan.Stride / plan.Lanes, scratch, stride);
                    if (!backward)
                        continue;
                    work.Phase = HiddenPhase.Differentiate;
                    Run(work, plan.Groups, scratch, stride);
                    if (work.OfHidden.IsPresent)
                    {
                        work.Phase = HiddenPhase.Unpack;
                        Run(work, plan.Stride / plan.Lanes, scratch, stride);
                    }
                }
            }
        }
    }

    private enum HiddenPhase
    {
        /// <summary>Transposes the chunk's hidden states; an item is a vector of tokens.</summary>
        Pack,
        /// <summary>Logits and their sums; an item is a piece of the vocabulary.</summary>
        Sum,
        /// <summary>Results, and what differentiation needs; an item is a vector of tokens.</summary>
        Merge,
        /// <summary>Gradients of the vocabulary and the bias, and parts of those of the hidden states; an item is a group of pieces.</summary>
        Differentiate,
        /// <summary>Gradients of the hidden states from their parts; an item is a vector of tokens.</summary>
        Unpack,
    }

    /// <summary>Rows of numbers of any storage in pinned memory.</summary>
    private readonly unsafe struct StoredRows
    {
        private readonly byte* data;
        private readonly nint stride;
        private readonly ElementType type;

        public StoredRows(byte* data, in TensorView view)
        {
            if (!view.IsPresent)
                return;
            this.data = data;
            type = view.Type;
            stride = (nint)view.Stride(0) * type.Size();
            IsPresent = true;
        }

        public readonly bool IsPresent;

        public nint Stride => stride / type.Size();

        public float* Floats(nint row) => (float*)(data + row * stride);

        /// <summary>A row as float32: where it is, or converted into memory of the caller's.</summary>
        public float* Read<V>(nint row, nint count, float* converted) where V : struct, ILanes<V>
        {
            switch (type)
            {
                case ElementType.Float32:
                    return Floats(row);
                case ElementType.BFloat16:
                    Convert<V, BFloat16Storage>(data + row * stride, count, converted);
                    return converted;
                default:
                    Convert<V, Float16Storage>(data + row * stride, count, converted);
                    return converted;
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Convert<V, TStorage>(byte* source, nint count, float* converted) where V : struct, ILanes<V> where TStorage : struct, IStorage
        {
            nint i = 0;
            for (; i <= count - V.Count; i += V.Count)
                TStorage.Load<V>(source + i * TStorage.Size).Store(converted + i);
            for (; i < count; i++)
                converted[i] = TStorage.Load<Real32>(source + i * TStorage.Size).Value;
        }
    }

    private unsafe struct HiddenWork : IWork
    {
        // The rows of the register tile of VocabularyProduct; gradients of so many rows go on side by side through memory.
        private const int TileRows = 8;

        public HiddenPlan Plan;
        public HiddenPhase Phase;
        public StoredRows Hidden, Vocabulary, OfHidden, OfVocabulary;
        public float* Bias, OfBias, Memory;
        public LogitShape Shape;
        public HostVector OfLogProb, OfLogSumExp, OfEntropy, LogProb, LogSumExp, Entropy, SumOfSquares;
        public TokenVector Argmax;
        public bool Accumulate, First;

        /// <summary>The chunk's tokens and their targets, and how many.</summary>
        public long* Tokens, Targets;
        public nint Count;

        private readonly float* PackedHidden => Memory + Plan.PackedHidden;
        private readonly float* PackedRows => Memory + Plan.PackedRows;
        private readonly float* Partial(nint piece, int field) => Memory + Plan.Partials + (piece * HiddenPlan.PartialFields + field) * Plan.Stride;
        private readonly float* Shift => Memory + Plan.PerToken;
        private readonly float* Constant => Shift + Plan.Stride;
        private readonly float* PerLogit => Constant + Plan.Stride;
        private readonly float* AtTarget => PerLogit + Plan.Stride;
        private readonly float* TargetLogit => AtTarget + Plan.Stride;
        private readonly float* HiddenPart(nint group) => Memory + Plan.HiddenParts + group * Plan.Width * Plan.Stride;

        /// <summary>Zeros for a token that doesn't count.</summary>
        public readonly void Ignore(nint token)
        {
            LogProb.Set(token, 0);
            LogSumExp.Set(token, 0);
            Entropy.Set(token, 0);
            SumOfSquares.Set(token, 0);
            Argmax.Set(token, 0);
            if (OfHidden.IsPresent && !Accumulate)
                NativeMemory.Clear(OfHidden.Floats(token), (nuint)(Plan.Width * sizeof(float)));
        }

        /// <summary>Zeros for entries that don't count, or for all.</summary>
        public readonly void ClearTail(nint entries, bool all)
        {
            if (Accumulate)
                return;
            for (nint entry = all ? 0 : Plan.Vocabulary; entry < entries; entry++)
            {
                if (OfVocabulary.IsPresent)
                    NativeMemory.Clear(OfVocabulary.Floats(entry), (nuint)(Plan.Width * sizeof(float)));
                if (OfBias != null)
                    OfBias[entry] = 0;
            }
        }

        public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
        {
            switch (Phase)
            {
                case HiddenPhase.Pack: Pack<V>(item, (float*)scratch); break;
                case HiddenPhase.Sum: Sum<V>(item, (float*)scratch); break;
                case HiddenPhase.Merge: Merge<V>(item); break;
                case HiddenPhase.Differentiate: Differentiate<V>(item, (float*)scratch); break;
                default: Unpack<V>(item); break;
            }
        }

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

        // The logits of a block of entries, in rows of the chunk's tokens.
        private readonly void Logits<V>(nint start, nint rows, float* entries, nint entryStride, nint panelStart, nint vectors, float* logits, nint stride) where V : struct, ILanes<V>
        {
            VocabularyProduct.Set<V>(entries, entryStride, 1, rows, PackedHidden + panelStart * Plan.Width, Plan.Panel, vectors, Plan.Width, logits, stride);
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
            float* max = Partial(piece, 0), sum = Partial(piece, 1), weighted = Partial(piece, 2), squares = Partial(piece, 3), argmax = Partial(piece, 4);
            new Span<float>(max, (int)Plan.Stride).Fill(float.NegativeInfinity);
            NativeMemory.Clear(sum, (nuint)(4 * Plan.Stride * sizeof(float)));
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
                    if (Argmax.IsPresent)
                        FindLargest(logits, stride, rows, start, max + lane, (int*)argmax + lane, count);
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

        private readonly void Merge<V>(nint item) where V : struct, ILanes<V>
        {
            for (nint i = item * V.Count; i < (item + 1) * V.Count; i++)
            {
                if (i >= Count)
                {
                    Shift[i] = Constant[i] = PerLogit[i] = AtTarget[i] = 0;
                    continue;
                }
                nint token = (nint)Tokens[i];
                float max = float.NegativeInfinity;
                nint largest = 0;
                for (nint piece = 0; piece < Plan.Pieces; piece++)
                {
                    if (Partial(piece, 0)[i] > max)
                        (max, largest) = (Partial(piece, 0)[i], piece);
                }
                float shift = float.IsInfinity(max) ? 0 : max;
                double sum = 0, weighted = 0, squares = 0;
                for (nint piece = 0; piece < Plan.Pieces; piece++)
                {
                    double moved = Math.Max(Partial(piece, 0)[i] - (double)shift, Exponential.Lowest), factor = Math.Exp(moved), part = Partial(piece, 1)[i];
                    sum += part * factor;
                    weighted += (Partial(piece, 2)[i] + part * moved) * factor;
                    squares += Partial(piece, 3)[i] * factor * factor;
                }
                var sums = new RowSums(shift, sum, weighted, squares, 0);
                LogProb.Set(token, (float)((double)TargetLogit[i] - shift - sums.LogSum));
                LogSumExp.Set(token, (float)(shift + sums.LogSum));
                Entropy.Set(token, (float)sums.Entropy);
                SumOfSquares.Set(token, (float)(squares / sum / sum));
                Argmax.Set(token, ((int*)Partial(largest, 4))[i]);
                if (!Plan.Backward)
                    continue;
                var slope = new LogitSlope(sums, OfLogProb.OrZero(token), OfLogSumExp.OrZero(token), OfEntropy.OrZero(token));
                Shift[i] = shift;
                (Constant[i], PerLogit[i]) = slope.Line;
                AtTarget[i] = (float)(slope.AtTarget(TargetLogit[i]) * Shape.Slope(TargetLogit[i]));
            }
        }

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
                        Differentiate<V>(logits + at, stride, rows, Shift + at, Constant + at, PerLogit + at);
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

        // dz = e^t (constant − slope · t), in place.
        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Differentiate<V>(float* logits, nint stride, nint rows, float* shift, float* constant, float* perLogit) where V : struct, ILanes<V>
        {
            V lowest = V.From(Exponential.Lowest), shifts = V.Load(shift), a = V.Load(constant), b = V.Load(perLogit);
            nint r = 0;
            for (; r + 4 <= rows; r += 4)
            {
                float* z = logits + r * stride;
                V t0 = V.MaxNative(lowest, V.Load(z) - shifts), t1 = V.MaxNative(lowest, V.Load(z + stride) - shifts);
                V t2 = V.MaxNative(lowest, V.Load(z + 2 * stride) - shifts), t3 = V.MaxNative(lowest, V.Load(z + 3 * stride) - shifts);
                Exponential.OfNonPositive(t0, t1, t2, t3, out V e0, out V e1, out V e2, out V e3);
                (e0 * V.MultiplyAdd(b, t0, a)).Store(z);
                (e1 * V.MultiplyAdd(b, t1, a)).Store(z + stride);
                (e2 * V.MultiplyAdd(b, t2, a)).Store(z + 2 * stride);
                (e3 * V.MultiplyAdd(b, t3, a)).Store(z + 3 * stride);
            }
            for (; r < rows; r++)
            {
                V t = V.MaxNative(lowest, V.Load(logits + r * stride) - shifts);
                (Exponential.OfNonPositive(t) * V.MultiplyAdd(b, t, a)).Store(logits + r * stride);
            }
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
