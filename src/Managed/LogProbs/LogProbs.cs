using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Logits and the tokens that came.</summary>
/// <remarks>n tokens, a vocabulary of V. What counts as the logit z of a stored x is c · tanh((x + bias) / c) / temperature, as Gemma 2 under TRL and verl has it.</remarks>
public ref struct LogitsProblem
{
    /// <summary>A target of −100 marks a token to ignore unless <see cref="IgnoreTarget"/> says otherwise.</summary>
    public LogitsProblem()
    {
    }

    /// <summary>[n, V], float32, float16 or bfloat16; any distance between rows, each row contiguous. Required.</summary>
    public TensorView Logits { get; set; }

    /// <summary>[n], int32 or int64: the index of each token, or <see cref="IgnoreTarget"/>. Required.</summary>
    public TensorView Targets { get; set; }

    /// <summary>The target that marks a token to ignore: its outputs are 0 and its gradient is 0, whatever its logits are.</summary>
    public long IgnoreTarget { get; set; } = -100;

    /// <summary>[V], float32, contiguous: added to every row. Optional.</summary>
    public TensorView Bias { get; set; }

    /// <summary>c of c · tanh(x / c), which bends logits into (−c, c) after the bias; 0 for none.</summary>
    public float Softcap { get; set; }

    /// <summary>What logits are divided by, last of all; 1 for none.</summary>
    public float Temperature { get; set; } = 1;

    /// <summary>How many columns count, the first ones: those after them pad the vocabulary, may hold anything, and get the gradient 0. All if absent.</summary>
    public long? ValidVocabulary { get; set; }
}

/// <summary>Where per-token results go; absent ones are not computed. [n] and float32 where nothing else is said.</summary>
public ref struct TokenOutputs
{
    /// <summary>ln p of the target: z_target − ln Σ e^z.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>ln Σ e^z.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>−Σ p ln p; logits of −∞ are left out.</summary>
    public TensorView Entropy { get; set; }

    /// <summary>Σ p².</summary>
    public TensorView SumOfSquares { get; set; }

    /// <summary>[n], int32 or int64: the token with the largest logit, the first of several; the first NaN if there is one.</summary>
    public TensorView Argmax { get; set; }

    /// <summary>[n, k], k at most V: ln p of the k likeliest tokens, the likeliest first. Not from hidden states.</summary>
    public TensorView TopLogProbs { get; set; }

    /// <summary>[n, k], int32 or int64: those tokens; of several with one logit, the first ones first. Not from hidden states.</summary>
    public TensorView TopTokens { get; set; }

    /// <summary>How many outputs there are.</summary>
    internal const int Count = 7;

    internal readonly TensorView this[int index] => index switch
    {
        0 => LogProb,
        1 => LogSumExp,
        2 => Entropy,
        3 => SumOfSquares,
        4 => Argmax,
        5 => TopLogProbs,
        _ => TopTokens,
    };

    internal static string Name(int index) => index switch
    {
        0 => "outputs.LogProb",
        1 => "outputs.LogSumExp",
        2 => "outputs.Entropy",
        3 => "outputs.SumOfSquares",
        4 => "outputs.Argmax",
        5 => "outputs.TopLogProbs",
        _ => "outputs.TopTokens",
    };

    /// <summary>Types, shapes, and that no two share memory.</summary>
    internal readonly void Check(ComputeDevice device, long tokens, long vocabulary)
    {
        Require.OptionalOutput(device, LogProb, Name(0), tokens);
        Require.OptionalOutput(device, LogSumExp, Name(1), tokens);
        Require.OptionalOutput(device, Entropy, Name(2), tokens);
        Require.OptionalOutput(device, SumOfSquares, Name(3), tokens);
        ReadOnlySpan<ElementType> indices = [ElementType.Int32, ElementType.Int64];
        if (Argmax.IsPresent)
            Require.Output(device, Argmax, Name(4), indices, tokens);
        Require.OptionalOutput(device, TopLogProbs, Name(5), tokens, -1);
        if (TopTokens.IsPresent)
        {
            if (!TopLogProbs.IsPresent)
                throw new ArgumentNullException(Name(5), "outputs.TopLogProbs is required where outputs.TopTokens is set.");
            Require.Output(device, TopTokens, Name(6), indices, tokens, TopLogProbs.Length(1));
        }
        if (TopLogProbs.IsPresent && (TopLogProbs.Length(1) < 1 || TopLogProbs.Length(1) > vocabulary))
            throw new ArgumentException($"outputs.TopLogProbs asks for {TopLogProbs.Length(1)} tokens; it must be between 1 and the vocabulary, {vocabulary}.", Name(5));
        bool any = false;
        for (int i = 0; i < Count; i++)
        {
            any |= this[i].IsPresent;
            for (int j = i + 1; j < Count; j++)
                Require.Disjoint(this[i], Name(i), this[j], Name(j));
        }
        if (!any)
            throw new ArgumentException("outputs asks for nothing; set at least one tensor.", "outputs");
    }
}

/// <summary>What the forward pass left for the backward pass. All [n], float32.</summary>
public ref struct TokenSaved
{
    /// <summary>As the forward pass wrote it. Required.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>As the forward pass wrote it. Required if <see cref="TokenUpstream.Entropy"/> is set.</summary>
    public TensorView Entropy { get; set; }
}

/// <summary>The gradients that arrive at the per-token results; zero if absent. All [n], float32.</summary>
public ref struct TokenUpstream
{
    /// <summary>At the log-prob.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>At the log-sum-exp.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>At the entropy.</summary>
    public TensorView Entropy { get; set; }
}

/// <summary>Token log-probabilities, log-sum-exp and entropy, and their gradients: the reduction under every alignment loss.</summary>
public static partial class LogProbs
{
    /// <summary>Reads every logit once and writes what is asked for.</summary>
    /// <remarks>
    /// Logits of −∞ have probability 0. If all of a row are −∞, its log-sum-exp is −∞ and the others are NaN; with a logit of ∞ the log-sum-exp is ∞ and the
    /// entropy NaN; a NaN in a row that counts makes all of its results NaN.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Logits and targets.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary; on a GPU such a row becomes NaN and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    public static void FromLogits(ComputeDevice device, in LogitsProblem problem, in TokenOutputs outputs)
    {
        Check(device, problem);
        long tokens = problem.Logits.Length(0);
        outputs.Check(device, tokens, problem.ValidVocabulary ?? problem.Logits.Length(1));
        for (int i = 0; i < TokenOutputs.Count; i++)
        {
            Require.Disjoint(outputs[i], TokenOutputs.Name(i), problem.Logits, "problem.Logits");
            Require.Disjoint(outputs[i], TokenOutputs.Name(i), problem.Targets, "problem.Targets");
            Require.Disjoint(outputs[i], TokenOutputs.Name(i), problem.Bias, "problem.Bias");
        }
        device.RequireOffered(problem, outputs);
        device.LogProbsFromLogits(problem, outputs);
    }

    /// <summary>The log-prob of every token, and the entropy if asked for, straight from arrays: what users of inference engines have.</summary>
    /// <remarks>As <see cref="FromLogits(ComputeDevice, in LogitsProblem, in TokenOutputs)"/>, on all processors of this machine.</remarks>
    /// <param name="logits">[n, V] row-major, n being the number of targets.</param>
    /// <param name="targets">[n]: the token of each row; −100 to ignore the row.</param>
    /// <param name="logProbs">[n], overwritten: ln p of the targets.</param>
    /// <param name="entropies">[n], overwritten: −Σ p ln p. Optional.</param>
    /// <exception cref="ArgumentException">The lengths don't fit, or what is written overlaps something.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    public static void FromLogits(ReadOnlySpan<float> logits, ReadOnlySpan<int> targets, Span<float> logProbs, Span<float> entropies = default)
    {
        int tokens = targets.Length;
        if (tokens == 0 ? !logits.IsEmpty : logits.IsEmpty || logits.Length % tokens != 0)
            throw new ArgumentException($"{logits.Length} logits aren't {tokens} rows of a vocabulary.", nameof(logits));
        if (logProbs.Length != tokens)
            throw new ArgumentException($"logProbs has the length {logProbs.Length}; there are {tokens} targets.", nameof(logProbs));
        if (!entropies.IsEmpty && entropies.Length != tokens)
            throw new ArgumentException($"entropies has the length {entropies.Length}; there are {tokens} targets.", nameof(entropies));
        if (tokens == 0)
            return;
        var problem = new LogitsProblem { Logits = TensorView.Of(logits, tokens, logits.Length / tokens), Targets = TensorView.Of(targets) };
        FromLogits(ComputeDevice.Cpu, problem, new TokenOutputs { LogProb = TensorView.Of(logProbs), Entropy = entropies.IsEmpty ? default : TensorView.Of(entropies) });
    }

    /// <summary>The gradient of the logits, from the gradients of log-prob, log-sum-exp and entropy together.</summary>
    /// <remarks>
    /// With p = e^(z − logSumExp) and H the entropy: dz = u_logProb (1[target] − p) + u_logSumExp p − u_entropy p (ln p + H), 1 − p formed in float32, and
    /// dx = dz (1 − tanh²((x + bias) / c)) / temperature, rounded last. The gradient of a bias is the sum of dx over the rows.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="saved">What the forward pass wrote.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="logitsGradient">[n, V], float32 or the logits' type, rows contiguous, overwritten. May be the logits themselves: then they are replaced in place.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    public static void FromLogitsBackward(ComputeDevice device, in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream,
        TensorView logitsGradient)
    {
        Check(device, problem);
        long tokens = problem.Logits.Length(0);
        Require.Input(device, saved.LogSumExp, "saved.LogSumExp", tokens);
        Require.OptionalInput(device, saved.Entropy, "saved.Entropy", tokens);
        Require.OptionalInput(device, upstream.LogProb, "upstream.LogProb", tokens);
        Require.OptionalInput(device, upstream.LogSumExp, "upstream.LogSumExp", tokens);
        Require.OptionalInput(device, upstream.Entropy, "upstream.Entropy", tokens);
        if (upstream.Entropy.IsPresent && !saved.Entropy.IsPresent)
            throw new ArgumentNullException(nameof(saved), "saved.Entropy is required where upstream.Entropy is set.");
        Require.Output(device, logitsGradient, nameof(logitsGradient), [ElementType.Float32, problem.Logits.Type], tokens, problem.Logits.Length(1));
        CheckRows(logitsGradient, nameof(logitsGradient));
        if (!logitsGradient.IsSameAs(problem.Logits))
            Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Logits, "problem.Logits");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Targets, "problem.Targets");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Bias, "problem.Bias");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.LogSumExp, "saved.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.Entropy, "saved.Entropy");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.LogProb, "upstream.LogProb");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.LogSumExp, "upstream.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.Entropy, "upstream.Entropy");
        device.RequireOffered(problem, default);
        device.LogProbsFromLogitsBackward(problem, saved, upstream, logitsGradient);
    }

    private static void Check(ComputeDevice device, in LogitsProblem problem)
    {
        Require.Device(device);
        Require.Input(device, problem.Logits, "problem.Logits", [ElementType.Float32, ElementType.Float16, ElementType.BFloat16], -1, -1);
        CheckRows(problem.Logits, "problem.Logits");
        long vocabulary = problem.Logits.Length(1);
        if (vocabulary == 0)
            throw new ArgumentException("problem.Logits has a vocabulary of 0; it must be at least 1.", "problem.Logits");
        Require.Input(device, problem.Targets, "problem.Targets", [ElementType.Int32, ElementType.Int64], problem.Logits.Length(0));
        CheckShaping(device, vocabulary, problem.Bias, problem.Softcap, problem.Temperature, problem.ValidVocabulary);
    }

    internal static void CheckShaping(ComputeDevice device, long vocabulary, in TensorView bias, float softcap, float temperature, long? validVocabulary)
    {
        Require.OptionalInput(device, bias, "problem.Bias", vocabulary);
        if (bias.IsPresent && vocabulary > 1 && bias.Stride(0) != 1)
            throw new ArgumentException($"problem.Bias has the stride {bias.Stride(0)}; it must be 1.", "problem.Bias");
        if (!(softcap >= 0 && softcap <= float.MaxValue))
            throw new ArgumentOutOfRangeException("problem.Softcap", softcap, $"problem.Softcap is {softcap}; it must be a positive number, or 0 for none.");
        if (!(temperature > 0 && temperature <= float.MaxValue))
            throw new ArgumentOutOfRangeException("problem.Temperature", temperature, $"problem.Temperature is {temperature}; it must be a positive number.");
        if (validVocabulary is { } valid && (valid < 1 || valid > vocabulary))
            throw new ArgumentOutOfRangeException("problem.ValidVocabulary", valid, $"problem.ValidVocabulary is {valid}; it must lie between 1 and the vocabulary, {vocabulary}.");
    }

    internal static void CheckRows(in TensorView rows, string name)
    {
        if (rows.Length(1) > 1 && rows.Stride(1) != 1)
            throw new ArgumentException($"{name} has stride {rows.Stride(1)} along the vocabulary; it must be 1.", name);
    }
}

internal sealed partial class CpuDevice
{
    protected internal override unsafe void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        fixed (byte* logits = problem.Logits, targets = problem.Targets, bias = problem.Bias, logProb = outputs.LogProb, logSumExp = outputs.LogSumExp,
            entropy = outputs.Entropy, squares = outputs.SumOfSquares, argmax = outputs.Argmax, topLogProbs = outputs.TopLogProbs, topTokens = outputs.TopTokens)
        {
            var work = new LogProbsWork
            {
                Rows = new(logits, targets, bias, problem),
                LogProb = new(logProb, outputs.LogProb),
                LogSumExp = new(logSumExp, outputs.LogSumExp),
                Entropy = new(entropy, outputs.Entropy),
                SumOfSquares = new(squares, outputs.SumOfSquares),
                Argmax = new(argmax, outputs.Argmax),
                Top = new(topLogProbs, topTokens, outputs),
                Sought = Sought.Sum | (outputs.Entropy.IsPresent ? Sought.Weighted : 0) | (outputs.SumOfSquares.IsPresent ? Sought.Squares : 0),
            };
            Run(work, Groups(CheckTargets(work.Rows)));
        }
    }

    // So many rows one after the other: what is asked for ahead, or fetched while one is computed, is the next row's.
    private const int RowsPerItem = 4;

    private static nint Groups(nint rows) => (rows + RowsPerItem - 1) / RowsPerItem;

    protected internal override unsafe void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        fixed (byte* logits = problem.Logits, targets = problem.Targets, bias = problem.Bias, ofLogProb = upstream.LogProb, ofLogSumExp = upstream.LogSumExp,
            ofEntropy = upstream.Entropy, gradient = logitsGradient)
        {
            var work = new LogProbsBackwardWork
            {
                Rows = new(logits, targets, bias, problem),
                OfLogProb = new(ofLogProb, upstream.LogProb),
                OfLogSumExp = new(ofLogSumExp, upstream.LogSumExp),
                OfEntropy = new(ofEntropy, upstream.Entropy),
                Gradient = new(gradient, logitsGradient),
            };
            Run(work, Groups(CheckTargets(work.Rows)));
        }
    }

    private static nint CheckTargets(in LogitRows rows)
    {
        for (nint row = 0; row < rows.Count; row++)
            CheckTarget(row, rows.Target(row), rows.Vocabulary, rows.IgnoreTarget);
        return rows.Count;
    }

    private static void CheckTarget(nint row, long target, nint vocabulary, long ignoreTarget)
    {
        if (target != ignoreTarget && (target < 0 || target >= vocabulary))
        {
            throw new ArgumentOutOfRangeException("problem.Targets", target,
                $"problem.Targets[{row}] is {target}; it must lie between 0 and {vocabulary - 1}, or be {ignoreTarget} to ignore the token.");
        }
    }

    private unsafe struct LogProbsWork : IWork
    {
        public LogitRows Rows;
        public HostVector LogProb, LogSumExp, Entropy, SumOfSquares;
        public TokenVector Argmax;
        public TopRows Top;
        public Sought Sought;

        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            float* block = stackalloc float[LogitSums<TLanes>.Block];
            for (nint row = item * RowsPerItem; row < Math.Min((item + 1) * RowsPerItem, Rows.Count); row++)
                Reduce<TLanes>(row, block);
        }

        private readonly void Reduce<TLanes>(nint row, float* block) where TLanes : struct, ILanes<TLanes>
        {
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                LogProb.Set(row, 0);
                LogSumExp.Set(row, 0);
                Entropy.Set(row, 0);
                SumOfSquares.Set(row, 0);
                Argmax.Set(row, 0);
                Top.Clear(row);
                return;
            }
            RowSums sums = LogitSums<TLanes>.Of(Rows, row, Sought, block);
            double logSum = sums.LogSum;
            LogProb.Set(row, (float)((double)Rows.At<TLanes>(row, (nint)target) - sums.Shift - logSum));
            LogSumExp.Set(row, (float)(sums.Shift + logSum));
            Entropy.Set(row, (float)(logSum + sums.MinusMean)); // Σ p (ln S − t), with p = e^t / S
            SumOfSquares.Set(row, (float)(sums.Squares / sums.Sum / sums.Sum));
            if (Argmax.IsPresent)
                Argmax.Set(row, FirstLargest<TLanes>(row, sums, block));
            if (Top.Count > 0)
                FindTop<TLanes>(row, sums, block);
        }

        private readonly long FirstLargest<TLanes>(nint row, in RowSums sums, float* block) where TLanes : struct, ILanes<TLanes>
        {
            // Where there is a NaN, it may be anywhere; an infinite logit too, for no sums were formed of its block.
            bool anywhere = !double.IsFinite(sums.Sum);
            nint start = anywhere ? 0 : sums.LargestBlock, end = anywhere ? Rows.Vocabulary : Math.Min(Rows.Vocabulary, start + LogitSums<TLanes>.Block);
            float largest = float.NegativeInfinity;
            nint found = start;
            for (; start < end; start += LogitSums<TLanes>.Block)
            {
                nint count = Math.Min(LogitSums<TLanes>.Block, end - start);
                Rows.Prepare<TLanes>(row, start, count, block);
                for (nint i = 0; i < count; i++)
                {
                    if (float.IsNaN(block[i]))
                        return start + i;
                    if (block[i] > largest)
                        (largest, found) = (block[i], start + i);
                }
            }
            return found;
        }

        private readonly void FindTop<TLanes>(nint row, in RowSums sums, float* block) where TLanes : struct, ILanes<TLanes>
        {
            TopRows.List top = Top.Begin(row);
            for (nint start = 0; start < Rows.Vocabulary; start += LogitSums<TLanes>.Block)
            {
                nint count = Math.Min(LogitSums<TLanes>.Block, Rows.Vocabulary - start);
                Rows.Prepare<TLanes>(row, start, count, block);
                for (nint i = 0; i < count; i += TLanes.Count)
                {
                    if (top.IsFull && !TLanes.AnyLess(TLanes.From(top.Threshold), TLanes.Load(block + i)))
                        continue;
                    for (nint j = i; j < Math.Min(i + TLanes.Count, count); j++)
                        top.Offer(start + j, block[j]);
                }
            }
            top.Finish(sums.Shift, sums.LogSum);
        }
    }

    /// <summary>The gradient of one row, in place or not.</summary>
    /// <remarks>
    /// The saved log-sum-exp, being a float32, is off by up to |logSumExp|·2⁻²⁵ and every p with it: more than all other errors together. So the row is read
    /// twice, the second time from the cache, and its sums are formed again.
    /// </remarks>
    private unsafe struct LogProbsBackwardWork : IWork
    {
        public LogitRows Rows;
        // A row that, with the next one, leaves half of a second cache of a megabyte.
        private const int PrefetchedFloats = 1 << 16;

        public HostVector OfLogProb, OfLogSumExp, OfEntropy;
        public GradientRows Gradient;

        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint end = Math.Min((item + 1) * RowsPerItem, Rows.Count);
            for (nint row = item * RowsPerItem; row < end; row++)
                Differentiate<TLanes>(row, row + 1 < end);
        }

        private readonly void Differentiate<TLanes>(nint row, bool goesOn) where TLanes : struct, ILanes<TLanes>
        {
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                Gradient.Clear(row, 0, Rows.Vocabulary + Rows.Tail);
                return;
            }
            int length = LogitSums<TLanes>.Block;
            float* block = stackalloc float[2 * length], slopes = block + length;
            float ofEntropy = OfEntropy.OrZero(row);
            RowSums sums = LogitSums<TLanes>.Of(Rows, row, ofEntropy == 0 ? Sought.Sum : Sought.Weighted, block);
            double logit = Rows.At<TLanes>(row, (nint)target);
            var slope = new LogitSlope(sums, OfLogProb.OrZero(row), OfLogSumExp.OrZero(row), ofEntropy);

            nint start = 0;
            if (Rows.IsPlain && Rows.Type == ElementType.Float32)
            {
                start = Rows.Vocabulary - Rows.Vocabulary % TLanes.Count;
                bool fits = start <= PrefetchedFloats;
                slope.Differentiate<TLanes>((float*)Rows.Row(row), Gradient.Row(row), start, goesOn && fits ? (float*)Rows.Row(row + 1) : null);
            }
            for (; start < Rows.Vocabulary; start += length)
            {
                nint count = Math.Min(length, Rows.Vocabulary - start), padded = (count + TLanes.Count - 1) / TLanes.Count * TLanes.Count;
                Rows.Prepare<TLanes>(row, start, count, block);
                slope.Differentiate<TLanes>(block, slopes, padded);
                if (Rows.Shape.Bends)
                    Rows.Shape.Unbend<TLanes>(block, slopes, padded);
                Gradient.Write<TLanes>(slopes, row, start, count);
            }
            Gradient.Clear(row, Rows.Vocabulary, Rows.Tail);
            *slopes = (float)(slope.AtTarget(logit) * Rows.Shape.Slope(logit));
            Gradient.Write<Real32>(slopes, row, (nint)target, 1);
        }
    }

    /// <summary>dz = u_logProb (1[target] − p) + u_logSumExp p − u_entropy p (ln p + H) over a row whose sums are known.</summary>
    /// <remarks>With t = z − shift and p = e^t / S it is e^t (u_logSumExp − u_logProb − u_entropy (t − mean)) / S wherever the target isn't, mean = Σ p t.</remarks>
    private readonly unsafe struct LogitSlope
    {
        private readonly double logSum, entropy, ofLogProb, ofLogSumExp, ofEntropy;
        private readonly float shift, constant, perLogit;
        private readonly bool isUniform;

        public LogitSlope(in RowSums sums, float ofLogProb, float ofLogSumExp, float ofEntropy)
        {
            (this.ofLogProb, this.ofLogSumExp, this.ofEntropy) = (ofLogProb, ofLogSumExp, ofEntropy);
            shift = sums.Shift;
            logSum = sums.LogSum;
            entropy = sums.Entropy;
            // No distribution, no gradient.
            bool any = sums.Sum > 0 && sums.Sum < double.PositiveInfinity;
            isUniform = ofEntropy == 0;
            constant = any ? (float)(((double)ofLogSumExp - ofLogProb - (isUniform ? 0 : ofEntropy * sums.MinusMean)) / sums.Sum) : float.NaN;
            perLogit = any ? (float)(ofEntropy / sums.Sum) : float.NaN;
        }

        /// <summary>a and b of e^t (a + b t).</summary>
        public (float Constant, float PerLogit) Line => (constant, -perLogit);

        /// <summary>The gradient at the target. There p − 1 is what counts: from the logarithm in double, it keeps its digits where p is nearly 1.</summary>
        public double AtTarget(double logit)
        {
            double logP = logit - shift - logSum, bounded = Math.Max(logP, Exponential.Lowest);
            // Without a distribution it is NaN.
            double ofP = isUniform ? ofLogSumExp + 0 * constant : ofLogSumExp - ofEntropy * (bounded + entropy);
            return -ofLogProb * Real64.Expm1(new(logP)).Value + Math.Exp(logP) * ofP;
        }

        /// <summary>The gradient of whole vectors of logits as if none were the target; in place if both are one.</summary>
        /// <param name="logits">Prepared logits.</param>
        /// <param name="gradient">Where it goes.</param>
        /// <param name="count">How many, whole vectors.</param>
        /// <param name="next">So many floats that will be needed soon, from here; null for none.</param>
        public void Differentiate<V>(float* logits, float* gradient, nint count, float* next = null) where V : struct, ILanes<V>
        {
            nint eights = HasManyRegisters ? count - count % (8 * V.Count) : 0;
            if (isUniform)
            {
                Differentiate8<V, Yes>(logits, gradient, eights, shift, constant, perLogit, next);
                Differentiate1<V, Yes>(logits + eights, gradient + eights, count - eights, shift, constant, perLogit);
            }
            else
            {
                Differentiate8<V, No>(logits, gradient, eights, shift, constant, perLogit, next);
                Differentiate1<V, No>(logits + eights, gradient + eights, count - eights, shift, constant, perLogit);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Differentiate8<V, TUniform>(float* logits, float* gradient, nint count, float shift, float constant, float perLogit, float* next)
            where V : struct, ILanes<V> where TUniform : struct, IChoice
        {
            nint w = V.Count;
            V lowest = V.From(Exponential.Lowest), shifts = V.From(shift), a = V.From(constant), b = V.From(-perLogit * Exponential.Ln2);
            float* end = logits + count;
            for (; logits < end; logits += 8 * w, gradient += 8 * w)
            {
                if (next != null)
                {
                    Prefetch.Four<V>(next);
                    Prefetch.Four<V>(next + 4 * w);
                    next += 8 * w;
                }
                V y0 = V.MaxNative(lowest, V.Load(logits) - shifts) * Exponential.Log2E, y1 = V.MaxNative(lowest, V.Load(logits + w) - shifts) * Exponential.Log2E;
                V y2 = V.MaxNative(lowest, V.Load(logits + 2 * w) - shifts) * Exponential.Log2E, y3 = V.MaxNative(lowest, V.Load(logits + 3 * w) - shifts) * Exponential.Log2E;
                V y4 = V.MaxNative(lowest, V.Load(logits + 4 * w) - shifts) * Exponential.Log2E, y5 = V.MaxNative(lowest, V.Load(logits + 5 * w) - shifts) * Exponential.Log2E;
                V y6 = V.MaxNative(lowest, V.Load(logits + 6 * w) - shifts) * Exponential.Log2E, y7 = V.MaxNative(lowest, V.Load(logits + 7 * w) - shifts) * Exponential.Log2E;
                Exponential.PowersOfTwo(y0, y1, y2, y3, y4, y5, y6, y7, out V e0, out V e1, out V e2, out V e3, out V e4, out V e5, out V e6, out V e7);
                (e0 * Factor<V, TUniform>(y0, a, b)).Store(gradient);
                (e1 * Factor<V, TUniform>(y1, a, b)).Store(gradient + w);
                (e2 * Factor<V, TUniform>(y2, a, b)).Store(gradient + 2 * w);
                (e3 * Factor<V, TUniform>(y3, a, b)).Store(gradient + 3 * w);
                (e4 * Factor<V, TUniform>(y4, a, b)).Store(gradient + 4 * w);
                (e5 * Factor<V, TUniform>(y5, a, b)).Store(gradient + 5 * w);
                (e6 * Factor<V, TUniform>(y6, a, b)).Store(gradient + 6 * w);
                (e7 * Factor<V, TUniform>(y7, a, b)).Store(gradient + 7 * w);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
        private static void Differentiate1<V, TUniform>(float* logits, float* gradient, nint count, float shift, float constant, float perLogit)
            where V : struct, ILanes<V> where TUniform : struct, IChoice
        {
            V lowest = V.From(Exponential.Lowest), a = V.From(constant), b = V.From(-perLogit);
            for (nint i = 0; i < count; i += V.Count)
            {
                V t = V.MaxNative(lowest, V.Load(logits + i) - shift);
                (Exponential.OfNonPositive(t) * Factor<V, TUniform>(t, a, b)).Store(gradient + i);
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static V Factor<V, TUniform>(V t, V a, V b) where V : struct, ILanes<V> where TUniform : struct, IChoice => TUniform.Taken ? a : V.MultiplyAdd(b, t, a);
    }
}
