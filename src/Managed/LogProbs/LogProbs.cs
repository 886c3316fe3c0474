using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>Logits and the tokens that came.</summary>
/// <remarks>n tokens, a vocabulary of V.</remarks>
public ref struct LogitsProblem
{
    /// <summary>A target of −100 marks a token to ignore unless <see cref="IgnoreTarget"/> says otherwise.</summary>
    public LogitsProblem()
    {
    }

    /// <summary>[n, V], float32; any distance between rows, each row contiguous. Required.</summary>
    public TensorView Logits { get; set; }

    /// <summary>[n], int32 or int64: the index of each token, or <see cref="IgnoreTarget"/>. Required.</summary>
    public TensorView Targets { get; set; }

    /// <summary>The target that marks a token to ignore: its outputs are 0 and its gradient is 0, whatever its logits are.</summary>
    public long IgnoreTarget { get; set; } = -100;
}

/// <summary>Where per-token results go; absent ones are not computed. All [n], float32.</summary>
public ref struct TokenOutputs
{
    /// <summary>ln p of the target: z_target − ln Σ e^z.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>ln Σ e^z.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>−Σ p ln p; logits of −∞ are left out.</summary>
    public TensorView Entropy { get; set; }
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
public static class LogProbs
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
        Require.OptionalOutput(device, outputs.LogProb, "outputs.LogProb", tokens);
        Require.OptionalOutput(device, outputs.LogSumExp, "outputs.LogSumExp", tokens);
        Require.OptionalOutput(device, outputs.Entropy, "outputs.Entropy", tokens);
        if (!outputs.LogProb.IsPresent && !outputs.LogSumExp.IsPresent && !outputs.Entropy.IsPresent)
            throw new ArgumentException("outputs asks for nothing; set at least one tensor.", nameof(outputs));
        CheckApart(problem, outputs.LogProb, "outputs.LogProb");
        CheckApart(problem, outputs.LogSumExp, "outputs.LogSumExp");
        CheckApart(problem, outputs.Entropy, "outputs.Entropy");
        Require.Disjoint(outputs.LogProb, "outputs.LogProb", outputs.LogSumExp, "outputs.LogSumExp");
        Require.Disjoint(outputs.LogProb, "outputs.LogProb", outputs.Entropy, "outputs.Entropy");
        Require.Disjoint(outputs.LogSumExp, "outputs.LogSumExp", outputs.Entropy, "outputs.Entropy");
        device.LogProbsFromLogits(problem, outputs);
    }

    /// <summary>The gradient of the logits, from the gradients of log-prob, log-sum-exp and entropy together.</summary>
    /// <remarks>
    /// With p = e^(z − logSumExp) and H the entropy: dz = u_logProb (1[target] − p) + u_logSumExp p − u_entropy p (ln p + H), 1 − p formed in float32.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="saved">What the forward pass wrote.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="logitsGradient">[n, V], rows contiguous, overwritten. May be the logits themselves: then they are replaced in place.</param>
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
        Require.Output(device, logitsGradient, nameof(logitsGradient), tokens, problem.Logits.Length(1));
        CheckRows(logitsGradient, nameof(logitsGradient));
        if (!logitsGradient.IsSameAs(problem.Logits))
            Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Logits, "problem.Logits");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Targets, "problem.Targets");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.LogSumExp, "saved.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.Entropy, "saved.Entropy");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.LogProb, "upstream.LogProb");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.LogSumExp, "upstream.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.Entropy, "upstream.Entropy");
        device.LogProbsFromLogitsBackward(problem, saved, upstream, logitsGradient);
    }

    private static void Check(ComputeDevice device, in LogitsProblem problem)
    {
        Require.Device(device);
        Require.Input(device, problem.Logits, "problem.Logits", -1, -1);
        CheckRows(problem.Logits, "problem.Logits");
        if (problem.Logits.Length(1) == 0)
            throw new ArgumentException("problem.Logits has a vocabulary of 0; it must be at least 1.", "problem.Logits");
        Require.Input(device, problem.Targets, "problem.Targets", [ElementType.Int32, ElementType.Int64], problem.Logits.Length(0));
    }

    private static void CheckRows(in TensorView logits, string name)
    {
        if (logits.Length(1) > 1 && logits.Stride(1) != 1)
            throw new ArgumentException($"{name} has stride {logits.Stride(1)} along the vocabulary; it must be 1.", name);
    }

    private static void CheckApart(in LogitsProblem problem, in TensorView written, string name)
    {
        Require.Disjoint(written, name, problem.Logits, "problem.Logits");
        Require.Disjoint(written, name, problem.Targets, "problem.Targets");
    }
}

internal sealed partial class CpuDevice
{
    protected internal override unsafe void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        fixed (byte* logits = problem.Logits, targets = problem.Targets, logProb = outputs.LogProb, logSumExp = outputs.LogSumExp, entropy = outputs.Entropy)
        {
            var work = new LogProbsWork
            {
                Rows = new(logits, targets, problem),
                LogProb = new(logProb, outputs.LogProb),
                LogSumExp = new(logSumExp, outputs.LogSumExp),
                Entropy = new(entropy, outputs.Entropy),
            };
            Run(work, CheckTargets(work.Rows));
        }
    }

    protected internal override unsafe void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        fixed (byte* logits = problem.Logits, targets = problem.Targets, ofLogProb = upstream.LogProb, ofLogSumExp = upstream.LogSumExp,
            ofEntropy = upstream.Entropy, gradient = logitsGradient)
        {
            var work = new LogProbsBackwardWork
            {
                Rows = new(logits, targets, problem),
                OfLogProb = new(ofLogProb, upstream.LogProb),
                OfLogSumExp = new(ofLogSumExp, upstream.LogSumExp),
                OfEntropy = new(ofEntropy, upstream.Entropy),
                Gradient = (float*)gradient,
                GradientStride = (nint)logitsGradient.Stride(0),
            };
            Run(work, CheckTargets(work.Rows));
        }
    }

    private static nint CheckTargets(in LogitRows rows)
    {
        for (nint row = 0; row < rows.Count; row++)
        {
            long target = rows.Target(row);
            if (target != rows.IgnoreTarget && (target < 0 || target >= rows.Vocabulary))
            {
                throw new ArgumentOutOfRangeException("problem.Targets", target,
                    $"problem.Targets[{row}] is {target}; it must lie between 0 and {rows.Vocabulary - 1}, or be {rows.IgnoreTarget} to ignore the token.");
            }
        }
        return rows.Count;
    }

    /// <summary>The rows of a <see cref="LogitsProblem"/> in pinned memory.</summary>
    private readonly unsafe struct LogitRows
    {
        private readonly float* logits;
        private readonly byte* targets;
        private readonly nint rowStride, targetStride;
        private readonly bool targetsAreLong;

        public readonly nint Count, Vocabulary;
        public readonly long IgnoreTarget;

        public LogitRows(byte* logits, byte* targets, in LogitsProblem problem)
        {
            this.logits = (float*)logits;
            this.targets = targets;
            rowStride = (nint)problem.Logits.Stride(0);
            targetStride = (nint)problem.Targets.Stride(0);
            targetsAreLong = problem.Targets.Type == ElementType.Int64;
            Count = (nint)problem.Logits.Length(0);
            Vocabulary = (nint)problem.Logits.Length(1);
            IgnoreTarget = problem.IgnoreTarget;
        }

        public float* Row(nint row) => logits + row * rowStride;

        public long Target(nint row) => targetsAreLong ? ((long*)targets)[row * targetStride] : ((int*)targets)[row * targetStride];
    }

    private unsafe struct LogProbsWork : IWork
    {
        public LogitRows Rows;
        public HostVector LogProb, LogSumExp, Entropy;

        public readonly void Run<TLanes>(nint row, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                LogProb.Set(row, 0);
                LogSumExp.Set(row, 0);
                Entropy.Set(row, 0);
                return;
            }
            float* logits = Rows.Row(row);
            (float shift, double sum, double weighted) = LogitSums<TLanes>.Of(logits, Rows.Vocabulary);
            double logSum = Math.Log(sum);
            LogProb.Set(row, (float)((double)logits[target] - shift - logSum));
            LogSumExp.Set(row, (float)(shift + logSum));
            Entropy.Set(row, (float)(logSum - weighted / sum)); // Σ p (ln S − t), with p = e^t / S
        }
    }

    /// <summary>Σ e^t and Σ e^t t over one row, t = z − shift, where the shift is the largest logit so far, in one pass over memory.</summary>
    /// <remarks>
    /// The row is taken in blocks that stay in the first cache: first a block's maximum, then its exponentials. Each block has sums of its own, so that few
    /// numbers of very different size meet, and the ones of the largest logit are counted apart: a peaked row's small terms would drown in them.
    /// A shift of ±∞ would make ∞ − ∞ of what is one: it is 0 then, the sums are 0 (all logits −∞) or ∞ or NaN, and so log-sum-exp is −∞ or ∞, the others NaN.
    /// </remarks>
    private unsafe struct LogitSums<TLanes> where TLanes : struct, ILanes<TLanes>
    {
        // In vectors: 8 KiB of 512 bits, a quarter of a small first cache.
        private const int BlockVectors = 128;

        private float max, shift;
        private TLanes ones, sum, weighted;

        public static (float Shift, double Sum, double Weighted) Of(float* logits, nint count)
        {
            var sums = new LogitSums<TLanes> { max = float.NegativeInfinity };
            nint whole = count - count % TLanes.Count;
            for (nint start = 0; start < whole; start += BlockVectors * TLanes.Count)
                sums.Add(logits + start, Math.Min(BlockVectors * TLanes.Count, whole - start));
            if (whole < count)
            {
                float* tail = stackalloc float[TLanes.Count];
                CopyTail<TLanes>(logits + whole, count - whole, tail);
                sums.Add(tail, TLanes.Count);
            }
            return (sums.shift, Total(sums.ones) + Total(sums.sum), Total(sums.weighted));
        }

        private void Add(float* logits, nint count)
        {
            float largest = Largest(logits, count);
            if (largest < max)
            {
                AddExponentials(logits, count, shift, ref sum, ref weighted);
                return;
            }
            if (largest > max)
            {
                float old = shift;
                shift = float.IsInfinity(largest) ? 0f : largest;
                if (max > float.NegativeInfinity)
                {
                    TLanes moved = TLanes.From(Math.Max(old - shift, LowestExponent)), factor = TLanes.Exp(moved);
                    sum += ones;
                    weighted = (weighted + sum * moved) * factor;
                    sum *= factor;
                    ones = TLanes.Zero;
                }
                max = largest;
            }
            AddExponentialsAndOnes(logits, count, shift, ref ones, ref sum, ref weighted);
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static float Largest(float* logits, nint count)
        {
            TLanes a = TLanes.From(float.NegativeInfinity), b = a;
            nint i = 0;
            for (; i <= count - 2 * TLanes.Count; i += 2 * TLanes.Count)
            {
                a = TLanes.MaxNative(a, TLanes.Load(logits + i));
                b = TLanes.MaxNative(b, TLanes.Load(logits + i + TLanes.Count));
            }
            if (i < count)
                a = TLanes.MaxNative(a, TLanes.Load(logits + i));
            return TLanes.MaxNative(a, b).Largest();
        }

        // These two are leaves, so that nothing is spilled around calls. The bound leaves −∞ out of the entropy: e^t is 0 there, and 0 · t must be.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void AddExponentials(float* logits, nint count, float shift, ref TLanes sum, ref TLanes weighted)
        {
            TLanes ofBlock = TLanes.Zero, weightedOfBlock = TLanes.Zero;
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes t = TLanes.MaxKeepingNaN(LowestExponent, TLanes.Load(logits + i) - shift), power = TLanes.Exp(t);
                ofBlock += power;
                weightedOfBlock = TLanes.MultiplyAdd(power, t, weightedOfBlock);
            }
            sum += ofBlock;
            weighted += weightedOfBlock;
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void AddExponentialsAndOnes(float* logits, nint count, float shift, ref TLanes ones, ref TLanes sum, ref TLanes weighted)
        {
            TLanes onesOfBlock = TLanes.Zero, ofBlock = TLanes.Zero, weightedOfBlock = TLanes.Zero;
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes t = TLanes.MaxKeepingNaN(LowestExponent, TLanes.Load(logits + i) - shift), power = TLanes.Exp(t);
                onesOfBlock += TLanes.SelectEqual(t, TLanes.Zero, TLanes.One, TLanes.Zero);
                ofBlock += TLanes.SelectEqual(t, TLanes.Zero, TLanes.Zero, power);
                weightedOfBlock = TLanes.MultiplyAdd(power, t, weightedOfBlock);
            }
            ones += onesOfBlock;
            sum += ofBlock;
            weighted += weightedOfBlock;
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
        public HostVector OfLogProb, OfLogSumExp, OfEntropy;
        public float* Gradient;
        public nint GradientStride;

        public readonly void Run<TLanes>(nint row, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            float* gradient = Gradient + row * GradientStride;
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                NativeMemory.Clear(gradient, (nuint)Rows.Vocabulary * sizeof(float));
                return;
            }
            float* logits = Rows.Row(row);
            (float shift, double sum, double weighted) = LogitSums<TLanes>.Of(logits, Rows.Vocabulary);
            double logSum = Math.Log(sum), entropy = logSum - weighted / sum;
            float ofLogProb = OfLogProb.OrZero(row), ofLogSumExp = OfLogSumExp.OrZero(row), ofEntropy = OfEntropy.OrZero(row);

            // At the target, p − 1 is what counts: from the logarithm in double, it keeps its digits where p is nearly 1.
            double logP = (double)logits[target] - shift - logSum, bounded = Math.Max(logP, LowestExponent);
            double ofTarget = -ofLogProb * Real64.Expm1(new(logP)).Value + Math.Exp(logP) * (ofLogSumExp - ofEntropy * (bounded + entropy));

            nint whole = Rows.Vocabulary - Rows.Vocabulary % TLanes.Count;
            Differentiate<TLanes>(logits, gradient, whole, shift, (float)logSum, ofLogSumExp - ofLogProb, ofEntropy, (float)entropy);
            if (whole < Rows.Vocabulary)
            {
                float* tail = stackalloc float[TLanes.Count];
                CopyTail<TLanes>(logits + whole, Rows.Vocabulary - whole, tail);
                Differentiate<TLanes>(tail, tail, TLanes.Count, shift, (float)logSum, ofLogSumExp - ofLogProb, ofEntropy, (float)entropy);
                for (nint i = whole; i < Rows.Vocabulary; i++)
                    gradient[i] = tail[i - whole];
            }
            gradient[target] = (float)ofTarget;
        }

        // dz = p (u_logSumExp − u_logProb − u_entropy (ln p + H)) wherever the target isn't.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void Differentiate<TLanes>(float* logits, float* gradient, nint count, float shift, float logSum, float ofP, float ofEntropy, float entropy)
            where TLanes : struct, ILanes<TLanes>
        {
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes logP = TLanes.MaxKeepingNaN(LowestExponent, TLanes.Load(logits + i) - shift - logSum);
                (TLanes.Exp(logP) * (ofP - ofEntropy * (logP + entropy))).Store(gradient + i);
            }
        }
    }

    // e to this power and below is 0 in float32.
    private const float LowestExponent = -104f;

    private static unsafe void CopyTail<TLanes>(float* source, nint count, float* tail) where TLanes : struct, ILanes<TLanes>
    {
        for (nint i = 0; i < TLanes.Count; i++)
            tail[i] = i < count ? source[i] : float.NegativeInfinity;
    }

    // Summed in double: beside a 1 the small lanes of a peaked row still count.
    private static unsafe double Total<TLanes>(TLanes lanes) where TLanes : struct, ILanes<TLanes>
    {
        float* each = stackalloc float[TLanes.Count];
        lanes.Store(each);
        double total = 0;
        for (int i = 0; i < TLanes.Count; i++)
            total += each[i];
        return total;
    }
}
