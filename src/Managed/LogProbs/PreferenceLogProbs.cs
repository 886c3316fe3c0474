namespace TransformerKernels;

/// <summary>How the log-probs of a sequence's tokens make one number.</summary>
public enum SequenceReduction
{
    /// <summary>Σ log-prob: DPO and most of its family.</summary>
    Sum,
    /// <summary>Σ log-prob / tokens that count: SimPO, ORPO, length-normalised DPO.</summary>
    Mean,
}

/// <summary>The answers of n preference pairs as hidden states: 2n sequences, first the n chosen ones, then the n rejected ones in the same order.</summary>
public ref struct PreferenceProblem
{
    /// <summary>Hidden states of all tokens [tokens, W], vocabulary and targets of the model that is trained. A token whose target is ignored belongs to no answer. Required.</summary>
    public HiddenProblem Policy { get; set; }

    /// <summary>
    /// The same tokens under the reference model, which may have another width and another vocabulary matrix. Optional: without any tensor there is none. Without targets it has the policy's, and
    /// the policy's ignored one; targets of its own must leave the same tokens to the answers.
    /// </summary>
    public HiddenProblem Reference { get; set; }

    /// <summary>[2n + 1], int32 or int64, never falling: sequence s is the tokens from entry s up to before entry s + 1. Without it all sequences have the same length, tokens / 2n, at least 1.</summary>
    public TensorView CumulativeLengths { get; set; }

    /// <summary>[tokens], Bool: the tokens of the answers, as against prompts and padding. All if absent.</summary>
    public TensorView Mask { get; set; }

    /// <summary>Sum or mean over the tokens of an answer that count; 0 if none does.</summary>
    public SequenceReduction Reduction { get; set; }

    // With the reference's targets, wherever they come from.
    internal readonly PreferenceProblem Complete() =>
        Reference.Hidden.IsPresent && !Reference.Targets.IsPresent ? this with { Reference = Reference with { Targets = Policy.Targets, IgnoreTarget = Policy.IgnoreTarget } } : this;
}

/// <summary>Where the log-probs of answers go; absent ones are not computed. All [n], float32, overwritten: the input of <see cref="PreferenceLoss"/>.</summary>
public ref struct PreferenceOutputs
{
    /// <summary>ln π(chosen).</summary>
    public TensorView Chosen { get; set; }

    /// <summary>ln π(rejected).</summary>
    public TensorView Rejected { get; set; }

    /// <summary>ln π_ref(chosen); only with a reference.</summary>
    public TensorView ReferenceChosen { get; set; }

    /// <summary>ln π_ref(rejected); only with a reference.</summary>
    public TensorView ReferenceRejected { get; set; }

    internal const int Count = 4;

    internal readonly TensorView this[int index] => index switch
    {
        0 => Chosen,
        1 => Rejected,
        2 => ReferenceChosen,
        _ => ReferenceRejected,
    };

    internal static string Name(int index) => index switch
    {
        0 => "outputs.Chosen",
        1 => "outputs.Rejected",
        2 => "outputs.ReferenceChosen",
        _ => "outputs.ReferenceRejected",
    };
}

/// <summary>The gradients that arrive at the policy's log-probs of answers; zero if absent, but one must be there. [n], float32: the <see cref="PairOutputs.ChosenGradient"/> and <see cref="PairOutputs.RejectedGradient"/> of a loss.</summary>
public ref struct PreferenceUpstream
{
    /// <summary>At ln π(chosen).</summary>
    public TensorView Chosen { get; set; }

    /// <summary>At ln π(rejected).</summary>
    public TensorView Rejected { get; set; }
}

/// <summary>Log-probs of whole answers straight from hidden states, and their gradients: what losses of the DPO family need of a model. Logits are never stored.</summary>
/// <remarks><see cref="LogProbs.FromHidden"/> and <see cref="SequenceLogProbs"/>, one after the other: tokens outside the answers are dropped before any product.</remarks>
public static class PreferenceLogProbs
{
    /// <summary>The log-probs of all answers, of policy and reference.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">The answers.</param>
    /// <param name="outputs">What to compute and where to put it.</param>
    /// <param name="workspace">Scratch memory of the device; <see cref="WorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">
    /// A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. A token of an answer is ignored in one model and not in the other. Or the
    /// workspace's limit is too low.
    /// </exception>
    /// <exception cref="ArgumentOutOfRangeException">A target of an answer lies outside the vocabulary; the cumulative lengths fall or leave the tokens.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromHidden(ComputeDevice device, in PreferenceProblem problem, in PreferenceOutputs outputs, Workspace workspace)
    {
        Require.Device(device);
        long pairs = -1;
        for (int i = PreferenceOutputs.Count - 1; i >= 0; i--)
            pairs = outputs[i].IsPresent && outputs[i].Rank > 0 ? outputs[i].Length(0) : pairs;
        Require.Any(pairs >= 0, nameof(outputs), "Chosen, Rejected, ReferenceChosen, ReferenceRejected");
        Check(device, problem, pairs, workspace);
        for (int i = 0; i < PreferenceOutputs.Count; i++)
        {
            string name = PreferenceOutputs.Name(i);
            Require.OptionalOutput(device, outputs[i], name, pairs);
            RequireDisjoint(outputs[i], name, problem);
            for (int j = i + 1; j < PreferenceOutputs.Count; j++)
                Require.Disjoint(outputs[i], name, outputs[j], PreferenceOutputs.Name(j));
        }
        if ((outputs.ReferenceChosen.IsPresent || outputs.ReferenceRejected.IsPresent) && !problem.Reference.Hidden.IsPresent)
            throw new ArgumentException("outputs asks for log-probs of the reference, but there are no problem.Reference.Hidden.", nameof(outputs));
        device.PreferenceLogProbs(problem.Complete(), outputs, workspace);
    }

    /// <summary>The gradients of the policy's hidden states, vocabulary and bias.</summary>
    /// <remarks>The upstream of an answer is spread over its tokens (divided by their number for the mean), then goes through <see cref="LogProbs.FromHiddenBackward"/>. Nothing of the forward pass is needed.</remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass; the reference plays no part.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="gradients">What to compute and where to put it; added to what is there with <see cref="HiddenGradients.Accumulate"/>.</param>
    /// <param name="workspace">Scratch memory of the device; <see cref="WorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or the workspace's limit is too low.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target of an answer lies outside the vocabulary; the cumulative lengths fall or leave the tokens.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromHiddenBackward(ComputeDevice device, in PreferenceProblem problem, in PreferenceUpstream upstream, in HiddenGradients gradients, Workspace workspace)
    {
        Require.Device(device);
        TensorView any = upstream.Chosen.IsPresent ? upstream.Chosen : upstream.Rejected;
        Require.Any(any.IsPresent && any.Rank > 0, nameof(upstream), "Chosen, Rejected", verb: "holds");
        long pairs = any.Length(0);
        Check(device, problem, pairs, workspace);
        Require.OptionalInput(device, upstream.Chosen, "upstream.Chosen", pairs);
        Require.OptionalInput(device, upstream.Rejected, "upstream.Rejected", pairs);
        LogProbs.CheckGradients(device, ProblemNames.Policy, problem.Policy, default, gradients);
        gradients.RequireDisjoint(upstream.Chosen, "upstream.Chosen");
        gradients.RequireDisjoint(upstream.Rejected, "upstream.Rejected");
        for (int i = 0; i < HiddenGradients.Count; i++)
            RequireDisjoint(gradients[i], HiddenGradients.Name(i), problem);
        device.PreferenceLogProbsBackward(problem.Complete(), upstream, gradients, workspace);
    }

    /// <summary>The bytes of workspace that a call takes: those of <see cref="LogProbs.FromHiddenWorkspaceBytes"/> and a few per token and answer.</summary>
    /// <param name="device">Where it will run.</param>
    /// <param name="problem">Only shapes and types count.</param>
    /// <param name="backward">Whether gradients are wanted.</param>
    /// <param name="budget">The workspace's limit. Without one 32 MB, or up to 64 MB with gradients of large vocabularies (with a higher one what 384 tokens take with their logits), and 24 bytes a token (with <see cref="PreferenceProblem.CumulativeLengths"/>: 12 a token and 12 an answer) are taken at most, unless the least that is needed is more.</param>
    /// <returns>At most the budget, or if that is too small the least that is needed.</returns>
    /// <exception cref="ArgumentException">As in the call: a tensor is absent, of the wrong type or shape, or on another device; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The budget is negative.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    public static long WorkspaceBytes(ComputeDevice device, in PreferenceProblem problem, bool backward, long budget = long.MaxValue)
    {
        LogProbs.CheckProblem(device, ProblemNames.Policy, problem.Policy);
        CheckReference(device, problem);
        if (problem.CumulativeLengths.IsPresent)
            Require.Input(device, problem.CumulativeLengths, "problem.CumulativeLengths", [ElementType.Int32, ElementType.Int64], -1);
        ArgumentOutOfRangeException.ThrowIfNegative(budget);
        return device.PreferenceLogProbsWorkspaceBytes(problem.Complete(), backward, budget);
    }

    private static void Check(ComputeDevice device, in PreferenceProblem problem, long pairs, Workspace workspace)
    {
        LogProbs.Check(device, ProblemNames.Policy, problem.Policy, workspace);
        long tokens = problem.Policy.Hidden.Length(0);
        CheckReference(device, problem);
        if (problem.CumulativeLengths.IsPresent)
            Require.Input(device, problem.CumulativeLengths, "problem.CumulativeLengths", [ElementType.Int32, ElementType.Int64], 2 * pairs + 1);
        else if (pairs == 0 ? tokens != 0 : tokens == 0 || tokens % (2 * pairs) != 0)
            throw new ArgumentException($"{tokens} tokens aren't {2 * pairs} sequences of one length, at least 1; set problem.CumulativeLengths.", "problem.CumulativeLengths");
        if (problem.Mask.IsPresent)
            Require.Input(device, problem.Mask, "problem.Mask", [ElementType.Bool], tokens);
        if (problem.Reduction is not (SequenceReduction.Sum or SequenceReduction.Mean))
            throw new ArgumentOutOfRangeException("problem.Reduction", problem.Reduction, "problem.Reduction is no reduction.");
    }

    private static void CheckReference(ComputeDevice device, in PreferenceProblem problem)
    {
        HiddenProblem reference = problem.Reference;
        if (reference.Hidden.IsPresent)
        {
            if (reference.Hidden.Rank > 0 && reference.Hidden.Length(0) != problem.Policy.Hidden.Length(0))
                throw new ArgumentException($"problem.Reference.Hidden has {reference.Hidden.Length(0)} tokens; the policy has {problem.Policy.Hidden.Length(0)}.", "problem.Reference.Hidden");
            LogProbs.CheckProblem(device, ProblemNames.Reference, problem.Complete().Reference);
        }
        else if (reference.Vocabulary.IsPresent || reference.Targets.IsPresent || reference.Bias.IsPresent || reference.MeanWeights.IsPresent)
            throw new ArgumentNullException("problem.Reference.Hidden", "problem.Reference.Hidden is required where problem.Reference has Vocabulary, Targets, Bias or MeanWeights.");
    }

    private static void RequireDisjoint(in TensorView written, string name, in PreferenceProblem problem)
    {
        LogProbs.RequireDisjoint(written, name, ProblemNames.Policy, problem.Policy);
        LogProbs.RequireDisjoint(written, name, ProblemNames.Reference, problem.Reference);
        Require.Disjoint(written, name, problem.CumulativeLengths, "problem.CumulativeLengths");
        Require.Disjoint(written, name, problem.Mask, "problem.Mask");
    }
}
