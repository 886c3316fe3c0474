using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>How per-token losses make one number; only tokens that the mask keeps count.</summary>
public enum TokenReduction
{
    /// <summary>Σ loss / number of tokens.</summary>
    TokenMean,
    /// <summary>Σ loss.</summary>
    TokenSum,
    /// <summary>The sum of every sequence, averaged over the sequences that have tokens.</summary>
    SequenceMeanTokenSum,
    /// <summary>The mean of every sequence, averaged over the sequences that have tokens.</summary>
    SequenceMeanTokenMean,
}

/// <summary>Generated tokens with their log-probs and advantages. All [sequence, token], float32, any strides.</summary>
public ref struct TokenBatch
{
    /// <summary>ln π(token). Required.</summary>
    public TensorView LogProb { get; set; }
    /// <summary>ln π_old(token). Required.</summary>
    public TensorView OldLogProb { get; set; }
    /// <summary>The advantage of each token; a stride of 0 along tokens shares one per sequence. Required.</summary>
    public TensorView Advantage { get; set; }
    /// <summary>Which tokens count, bool; all if absent. What lies in the others is never used, be it NaN.</summary>
    public TensorView Mask { get; set; }
    /// <summary>Which reduced loss is meant.</summary>
    public TokenReduction Reduction { get; set; }
    /// <summary>What the sum is divided by instead of the number of tokens or sequences of this batch: the number in the whole step, if the batch is a part of it.</summary>
    public float? Divisor { get; set; }
}

/// <summary>Where per-token results go; absent ones are not computed. All [sequence, token], float32, overwritten; 0 where the mask is false.</summary>
public ref struct TokenLossOutputs
{
    /// <summary>The loss of each token, not reduced.</summary>
    public TensorView Loss { get; set; }
    /// <summary>∂ reduced loss / ∂ log-prob.</summary>
    public TensorView LogProbGradient { get; set; }
}

/// <summary>What the entries of a policy loss's metrics mean; means are over the tokens that the mask keeps.</summary>
public static class PolicyMetrics
{
    /// <summary>The reduced loss.</summary>
    public const int Loss = 0;
    /// <summary>Share of tokens with <see cref="TokenTerms{T}.Clipped"/>.</summary>
    public const int ClipFraction = 1;
    /// <summary>Share of tokens with <see cref="TokenTerms{T}.DualClipped"/>.</summary>
    public const int DualClipFraction = 2;
    /// <summary>Mean of old log-prob − log-prob: the k1 estimate of KL(π_old ‖ π).</summary>
    public const int OldKl = 3;
    /// <summary>The number of tokens.</summary>
    public const int Tokens = 4;
    /// <summary>The number of entries.</summary>
    public const int Count = 5;
}

/// <summary>Policy-gradient losses over token log-probs: value, gradient and metrics in one call.</summary>
public static class PolicyLoss
{
    /// <summary>Evaluates a loss on every token.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="batch">Log-probs, advantages and mask.</param>
    /// <param name="loss">The formula, for instance <see cref="PpoClip"/>.</param>
    /// <param name="outputs">What to compute per token.</param>
    /// <param name="metrics">[<see cref="PolicyMetrics.Count"/>], float32, overwritten; may be absent (default). No tokens: zeros.</param>
    /// <param name="workspace">Scratch memory of the device; <see cref="WorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps an output, nothing is asked for, or the loss is default(PpoClip); the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The batch's reduction is none, or its divisor no positive number.</exception>
    /// <exception cref="ObjectDisposedException">A tensor is disposed.</exception>
    /// <exception cref="NotSupportedException">The device can't compile the loss; the message says why.</exception>
    public static void Evaluate<TLoss>(ComputeDevice device, in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics,
        Workspace workspace) where TLoss : unmanaged, ITokenLoss
    {
        Require.Device(device);
        Require.Workspace(device, workspace);
        Require.Input(device, batch.LogProb, "batch.LogProb", -1, -1);
        long sequences = batch.LogProb.Length(0), tokens = batch.LogProb.Length(1);
        Require.Input(device, batch.OldLogProb, "batch.OldLogProb", sequences, tokens);
        Require.Input(device, batch.Advantage, "batch.Advantage", sequences, tokens);
        if (batch.Mask.IsPresent)
            Require.Input(device, batch.Mask, "batch.Mask", [ElementType.Bool], sequences, tokens);
        if (!Enum.IsDefined(batch.Reduction))
            throw new ArgumentOutOfRangeException("batch.Reduction", batch.Reduction, "Not a reduction.");
        if (batch.Divisor is { } divisor && !(divisor > 0 && float.IsFinite(divisor)))
            throw new ArgumentOutOfRangeException("batch.Divisor", divisor, "batch.Divisor must be a positive number.");
        if (typeof(TLoss) == typeof(PpoClip))
            Unsafe.As<TLoss, PpoClip>(ref loss).Check();
        Require.OptionalOutput(device, outputs.Loss, "outputs.Loss", sequences, tokens);
        Require.OptionalOutput(device, outputs.LogProbGradient, "outputs.LogProbGradient", sequences, tokens);
        Require.OptionalOutput(device, metrics, nameof(metrics), PolicyMetrics.Count);
        CheckApart(batch, outputs.Loss, "outputs.Loss");
        CheckApart(batch, outputs.LogProbGradient, "outputs.LogProbGradient");
        CheckApart(batch, metrics, nameof(metrics));
        Require.Disjoint(outputs.Loss, "outputs.Loss", outputs.LogProbGradient, "outputs.LogProbGradient");
        Require.Disjoint(outputs.Loss, "outputs.Loss", metrics, nameof(metrics));
        Require.Disjoint(outputs.LogProbGradient, "outputs.LogProbGradient", metrics, nameof(metrics));
        Require.Any(outputs.Loss.IsPresent || outputs.LogProbGradient.IsPresent || metrics.IsPresent, nameof(outputs), "Loss, LogProbGradient, metrics");
        device.TokenLoss(batch, loss, outputs, metrics, workspace);
    }

    /// <summary>The bytes of workspace that <see cref="Evaluate"/> needs.</summary>
    public static long WorkspaceBytes(ComputeDevice device, long sequences, long tokens)
    {
        Require.Device(device);
        ArgumentOutOfRangeException.ThrowIfNegative(sequences);
        ArgumentOutOfRangeException.ThrowIfNegative(tokens);
        return device.LossWorkspaceBytes(sequences, tokens);
    }

    private static void CheckApart(in TokenBatch batch, in TensorView written, string name)
    {
        Require.Disjoint(written, name, batch.LogProb, "batch.LogProb");
        Require.Disjoint(written, name, batch.OldLogProb, "batch.OldLogProb");
        Require.Disjoint(written, name, batch.Advantage, "batch.Advantage");
        Require.Disjoint(written, name, batch.Mask, "batch.Mask");
    }
}

internal sealed partial class CpuDevice
{
    protected internal override unsafe void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics, Workspace workspace)
    {
        nint sequences = (nint)batch.LogProb.Length(0), tokens = (nint)batch.LogProb.Length(1), blocks = LossBlocks(sequences * tokens);
        using Workspace.Lease lease = workspace.Rent(LossWorkspaceBytes(sequences, tokens));
        fixed (byte* logProb = batch.LogProb, oldLogProb = batch.OldLogProb, advantage = batch.Advantage, mask = batch.Mask, losses = outputs.Loss,
            ofLogProb = outputs.LogProbGradient, means = metrics, memory = lease.View)
        {
            var work = new TokenLossWork<TLoss>
            {
                Loss = loss,
                LogProb = new(logProb, batch.LogProb),
                OldLogProb = new(oldLogProb, batch.OldLogProb),
                Advantage = new(advantage, batch.Advantage),
                Losses = new(losses, outputs.Loss),
                OfLogProb = new(ofLogProb, outputs.LogProbGradient),
                Weights = new(mask, batch, (long*)((double*)memory + blocks * LossSums)),
                Elements = sequences * tokens,
                Sums = metrics.IsPresent ? (double*)memory : null,
            };
            Run(work.Weights, work.Weights.Items);
            work.Weights.Share(batch, out long kept);
            Run(work, blocks);
            if (!metrics.IsPresent)
                return;
            var results = new HostVector(means, metrics);
            for (int metric = 0; metric < PolicyMetrics.Tokens; metric++)
            {
                double sum = 0;
                for (nint block = 0; block < blocks; block++)
                    sum += work.Sums[block * LossSums + metric];
                results[metric] = (float)(metric == PolicyMetrics.Loss || kept == 0 ? sum : sum / kept);
            }
            results[PolicyMetrics.Tokens] = kept;
        }
    }

    /// <summary>What each token's loss is multiplied by in the reduced loss; 0 where the mask is false. As work, it counts the tokens of every sequence.</summary>
    private unsafe struct TokenWeights : IWork
    {
        private readonly MaskStream mask;
        private readonly nint sequences, tokens;
        private readonly long* lengths;
        private readonly bool perSequence;
        private float weight;

        public TokenWeights(byte* mask, in TokenBatch batch, long* lengths)
        {
            this.mask = new(mask, batch.Mask, (nint)batch.LogProb.Length(1));
            this.lengths = lengths;
            sequences = (nint)batch.LogProb.Length(0);
            tokens = (nint)batch.LogProb.Length(1);
            perSequence = batch.Reduction == TokenReduction.SequenceMeanTokenMean;
        }

        /// <summary>How many items the counting has; short sequences share one.</summary>
        public readonly nint Items => (sequences + PerItem - 1) / PerItem;

        private readonly nint PerItem => Math.Max(1, LossBlock / Math.Max(1, tokens));

        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            for (nint sequence = item * PerItem; sequence < Math.Min((item + 1) * PerItem, sequences); sequence++)
                lengths[sequence] = mask.Length(sequence);
        }

        /// <summary>After the counting: what the reduction divides by.</summary>
        public void Share(in TokenBatch batch, out long kept)
        {
            kept = 0;
            long filled = 0;
            for (nint sequence = 0; sequence < sequences; sequence++)
            {
                kept += lengths[sequence];
                filled += lengths[sequence] > 0 ? 1 : 0;
            }
            weight = 1f / (batch.Divisor ?? batch.Reduction switch
            {
                TokenReduction.TokenMean => kept,
                TokenReduction.TokenSum => 1,
                _ => filled,
            });
        }

        /// <summary>The weights of tokens, counted row by row.</summary>
        public readonly void CopyTo(float* weights, nint start, nint count)
        {
            for (nint done = 0; done < count;)
            {
                (nint sequence, nint token) = Math.DivRem(start + done, tokens);
                nint length = Math.Min(count - done, tokens - token);
                mask.CopyTo(weights + done, sequence, token, length, perSequence ? weight / lengths[sequence] : weight);
                done += length;
            }
        }
    }

    private unsafe struct TokenLossWork<TLoss> : IWork where TLoss : unmanaged, ITokenLoss
    {
        private const int Streams = 6;

        public TLoss Loss;
        public LossStream LogProb, OldLogProb, Advantage, Losses, OfLogProb;
        public TokenWeights Weights;
        public nint Elements;
        public double* Sums;

        [SkipLocalsInit]
        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint end = Math.Min((item + 1) * LossBlock, Elements);
            double* sums = stackalloc double[LossSums];
            new Span<double>(sums, LossSums).Clear();
            float* memory = stackalloc float[LossTile<TLanes>.Floats(Streams)];
            for (nint start = item * LossBlock; start < end; start += LossTile<TLanes>.Length)
            {
                nint count = Math.Min(LossTile<TLanes>.Length, end - start), whole = count - count % TLanes.Count;
                if (whole > 0)
                    Evaluate(new LossTile<TLanes>(memory, start, whole), sums);
                if (whole < count)
                    Evaluate(new LossTile<TLanes>(memory, start + whole, count - whole), sums);
            }
            if (Sums is not null)
                new Span<double>(sums, LossSums).CopyTo(new Span<double>(Sums + item * LossSums, LossSums));
        }

        private readonly void Evaluate<TLanes>(LossTile<TLanes> tile, double* sums) where TLanes : struct, ILanes<TLanes>
        {
            float* logProb = tile.Read(LogProb), oldLogProb = tile.Read(OldLogProb), advantage = tile.Read(Advantage), weights = tile.Place();
            Weights.CopyTo(weights, tile.Start, tile.Count);
            new Span<float>(weights + tile.Count, (int)(tile.Padded - tile.Count)).Clear();
            float* losses = tile.Place(Losses), derivatives = tile.Place(OfLogProb);
            if (OfLogProb.IsPresent)
                Differentiate(tile, logProb, oldLogProb, advantage, weights, losses, derivatives, sums);
            else
                Value(tile, logProb, oldLogProb, advantage, weights, losses, sums);
            tile.Write(losses, Losses);
            tile.Write(derivatives, OfLogProb);
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private readonly void Value<TLanes>(LossTile<TLanes> tile, float* logProb, float* oldLogProb, float* advantage, float* weights, float* losses, double* sums)
            where TLanes : struct, ILanes<TLanes>
        {
            TLoss loss = Loss;
            TLanes total = TLanes.Zero, clipped = TLanes.Zero, dualClipped = TLanes.Zero, oldKl = TLanes.Zero;
            for (nint i = 0; i < tile.Padded; i += TLanes.Count)
            {
                TLanes now = TLanes.Load(logProb + i), old = TLanes.Load(oldLogProb + i), weight = TLanes.Load(weights + i);
                TokenTerms<TLanes> terms = loss.Loss(new TokenInputs<TLanes> { LogProb = now, OldLogProb = old, Advantage = TLanes.Load(advantage + i) });
                TLanes value = Kept(weight, terms.Loss);
                value.Store(losses + i);
                total += weight * value;
                clipped += Kept(weight, terms.Clipped);
                dualClipped += Kept(weight, terms.DualClipped);
                oldKl += Kept(weight, old - now);
            }
            Add(tile, sums, total, clipped, dualClipped, oldKl);
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private readonly void Differentiate<TLanes>(LossTile<TLanes> tile, float* logProb, float* oldLogProb, float* advantage, float* weights, float* losses,
            float* derivatives, double* sums) where TLanes : struct, ILanes<TLanes>
        {
            TLoss loss = Loss;
            TLanes total = TLanes.Zero, clipped = TLanes.Zero, dualClipped = TLanes.Zero, oldKl = TLanes.Zero;
            for (nint i = 0; i < tile.Padded; i += TLanes.Count)
            {
                TLanes now = TLanes.Load(logProb + i), old = TLanes.Load(oldLogProb + i), weight = TLanes.Load(weights + i);
                TokenTerms<Dual<TLanes>> terms = loss.Loss(new TokenInputs<Dual<TLanes>>
                {
                    LogProb = new(now, TLanes.One),
                    OldLogProb = new(old, TLanes.Zero),
                    Advantage = new(TLanes.Load(advantage + i), TLanes.Zero),
                });
                TLanes value = Kept(weight, terms.Loss.Value);
                value.Store(losses + i);
                Kept(weight, weight * terms.Loss.Derivative).Store(derivatives + i);
                total += weight * value;
                clipped += Kept(weight, terms.Clipped.Value);
                dualClipped += Kept(weight, terms.DualClipped.Value);
                oldKl += Kept(weight, old - now);
            }
            Add(tile, sums, total, clipped, dualClipped, oldKl);
        }

        // Selected, not multiplied: what lies in a masked token may be NaN.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static TLanes Kept<TLanes>(TLanes weight, TLanes value) where TLanes : struct, ILanes<TLanes> =>
            TLanes.SelectEqual(weight, TLanes.Zero, TLanes.Zero, value);

        // Not inlined: what lives across the calls here would live on the stack, in the callers' loops too.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void Add<TLanes>(LossTile<TLanes> tile, double* sums, TLanes total, TLanes clipped, TLanes dualClipped, TLanes oldKl)
            where TLanes : struct, ILanes<TLanes>
        {
            sums[PolicyMetrics.Loss] += tile.Total(total);
            sums[PolicyMetrics.ClipFraction] += tile.Total(clipped);
            sums[PolicyMetrics.DualClipFraction] += tile.Total(dualClipped);
            sums[PolicyMetrics.OldKl] += tile.Total(oldKl);
        }
    }
}
