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
    public TensorView LogProb { get; set; }
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
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps an output; the message names it.</exception>
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
        Require.OptionalOutput(device, outputs.Loss, "outputs.Loss", sequences, tokens);
        Require.OptionalOutput(device, outputs.LogProb, "outputs.LogProb", sequences, tokens);
        Require.OptionalOutput(device, metrics, nameof(metrics), PolicyMetrics.Count);
        CheckApart(batch, outputs.Loss, "outputs.Loss");
        CheckApart(batch, outputs.LogProb, "outputs.LogProb");
        CheckApart(batch, metrics, nameof(metrics));
        Require.Disjoint(outputs.Loss, "outputs.Loss", outputs.LogProb, "outputs.LogProb");
        Require.Disjoint(outputs.Loss, "outputs.Loss", metrics, nameof(metrics));
        Require.Disjoint(outputs.LogProb, "outputs.LogProb", metrics, nameof(metrics));
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
