namespace TransformerKernels;

/// <summary>How per-pair losses make one number.</summary>
public enum LossReduction
{
    /// <summary>Σ loss / n.</summary>
    Mean,
    /// <summary>Σ loss.</summary>
    Sum,
}

/// <summary>Sums of token log-probs of n preference pairs. All [n], float32, any stride.</summary>
public ref struct PairBatch
{
    /// <summary>ln π(chosen). Required.</summary>
    public TensorView Chosen { get; set; }
    /// <summary>ln π(rejected). Required.</summary>
    public TensorView Rejected { get; set; }
    /// <summary>ln π_ref(chosen); 0 if absent.</summary>
    public TensorView ReferenceChosen { get; set; }
    /// <summary>ln π_ref(rejected); 0 if absent.</summary>
    public TensorView ReferenceRejected { get; set; }
    /// <summary>Which reduced loss the gradients belong to.</summary>
    public LossReduction Reduction { get; set; }
}

/// <summary>Where per-pair results go; absent ones are not computed. All [n], float32, overwritten.</summary>
public ref struct PairOutputs
{
    /// <summary>The loss of each pair, not reduced.</summary>
    public TensorView Loss { get; set; }
    /// <summary>∂ reduced loss / ∂ chosen.</summary>
    public TensorView Chosen { get; set; }
    /// <summary>∂ reduced loss / ∂ rejected.</summary>
    public TensorView Rejected { get; set; }
    /// <summary>∂ reduced loss / ∂ reference chosen.</summary>
    public TensorView ReferenceChosen { get; set; }
    /// <summary>∂ reduced loss / ∂ reference rejected.</summary>
    public TensorView ReferenceRejected { get; set; }
    /// <summary>Reward scale · (chosen − reference chosen).</summary>
    public TensorView ChosenReward { get; set; }
    /// <summary>Reward scale · (rejected − reference rejected).</summary>
    public TensorView RejectedReward { get; set; }
}

/// <summary>What the entries of a preference loss's metrics mean: averages over the pairs.</summary>
public static class PreferenceMetrics
{
    /// <summary>The reduced loss (a sum if that is the reduction).</summary>
    public const int Loss = 0;
    /// <summary>Mean reward of the chosen answers.</summary>
    public const int ChosenReward = 1;
    /// <summary>Mean reward of the rejected answers.</summary>
    public const int RejectedReward = 2;
    /// <summary>Mean difference of the two rewards.</summary>
    public const int RewardMargin = 3;
    /// <summary>Share of pairs whose chosen answer has the larger reward; a tie counts as wrong.</summary>
    public const int RewardAccuracy = 4;
    /// <summary>Mean ln π(chosen).</summary>
    public const int ChosenLogProb = 5;
    /// <summary>Mean ln π(rejected).</summary>
    public const int RejectedLogProb = 6;
    /// <summary>The number of entries.</summary>
    public const int Count = 7;
}

/// <summary>Preference losses over the log-probs of answer pairs: value, gradients and metrics in one pass.</summary>
public static class PreferenceLoss
{
    /// <summary>Evaluates a loss on every pair.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="batch">The log-probs.</param>
    /// <param name="loss">The formula, for instance <see cref="DpoSigmoid"/>.</param>
    /// <param name="outputs">What to compute per pair.</param>
    /// <param name="metrics">[<see cref="PreferenceMetrics.Count"/>], float32, overwritten; may be absent (default). No pairs: zeros.</param>
    /// <param name="workspace">Scratch memory of the device; <see cref="WorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps an output; the message names it.</exception>
    public static void Evaluate<TLoss>(ComputeDevice device, in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics,
        Workspace workspace) where TLoss : unmanaged, IPairLoss
    {
        Require.Device(device);
        Require.Workspace(device, workspace);
        Require.Input(device, batch.Chosen, "batch.Chosen", -1);
        long pairs = batch.Chosen.Length(0);
        Require.Input(device, batch.Rejected, "batch.Rejected", pairs);
        Require.OptionalInput(device, batch.ReferenceChosen, "batch.ReferenceChosen", pairs);
        Require.OptionalInput(device, batch.ReferenceRejected, "batch.ReferenceRejected", pairs);
        for (int i = 0; i < OutputCount; i++)
        {
            TensorView output = Output(outputs, metrics, i, out string name);
            Require.OptionalOutput(device, output, name, i == OutputCount - 1 ? PreferenceMetrics.Count : pairs);
            Require.Disjoint(output, name, batch.Chosen, "batch.Chosen");
            Require.Disjoint(output, name, batch.Rejected, "batch.Rejected");
            Require.Disjoint(output, name, batch.ReferenceChosen, "batch.ReferenceChosen");
            Require.Disjoint(output, name, batch.ReferenceRejected, "batch.ReferenceRejected");
            for (int j = 0; j < i; j++)
            {
                TensorView other = Output(outputs, metrics, j, out string otherName);
                Require.Disjoint(output, name, other, otherName);
            }
        }
        device.PairLoss(batch, loss, outputs, metrics, workspace);
    }

    /// <summary>The bytes of workspace that <see cref="Evaluate"/> needs for so many pairs.</summary>
    public static long WorkspaceBytes(ComputeDevice device, long pairs)
    {
        Require.Device(device);
        ArgumentOutOfRangeException.ThrowIfNegative(pairs);
        return device.LossWorkspaceBytes(1, pairs);
    }

    private const int OutputCount = 8;

    private static TensorView Output(in PairOutputs outputs, in TensorView metrics, int index, out string name)
    {
        switch (index)
        {
            case 0: name = "outputs.Loss"; return outputs.Loss;
            case 1: name = "outputs.Chosen"; return outputs.Chosen;
            case 2: name = "outputs.Rejected"; return outputs.Rejected;
            case 3: name = "outputs.ReferenceChosen"; return outputs.ReferenceChosen;
            case 4: name = "outputs.ReferenceRejected"; return outputs.ReferenceRejected;
            case 5: name = "outputs.ChosenReward"; return outputs.ChosenReward;
            case 6: name = "outputs.RejectedReward"; return outputs.RejectedReward;
            default: name = "metrics"; return metrics;
        }
    }
}
