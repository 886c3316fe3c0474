namespace TransformerKernels;

// What GPUs don't do yet. It throws: nothing runs elsewhere silently.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) => throw NotOffered("attention");

    /// <inheritdoc/>
    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients) => throw NotOffered("attention backward");

    /// <inheritdoc/>
    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp,
        Workspace workspace) => throw NotOffered("attention");

    /// <inheritdoc/>
    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved,
        in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace) => throw NotOffered("attention backward");

    /// <inheritdoc/>
    protected internal override void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward) =>
        throw NotOffered("rotary embedding");

    /// <inheritdoc/>
    protected internal override void RequireOffered(in LogitsProblem problem, in TokenOutputs outputs)
    {
        string? lacking =
            problem.Logits.Type != ElementType.Float32 ? $"logits of {problem.Logits.Type}" :
            problem.Bias.IsPresent ? "a bias of the vocabulary" :
            problem.Softcap != 0 ? "a softcap of logits" :
            problem.Temperature != 1 ? "a temperature" :
            problem.ValidVocabulary is { } valid && valid != problem.Logits.Length(1) ? "a padded vocabulary" :
            outputs.SumOfSquares.IsPresent ? "the sum of squared probabilities" :
            outputs.Argmax.IsPresent ? "the likeliest token" :
            outputs.TopLogProbs.IsPresent ? "the likeliest tokens" : null;
        if (lacking is not null)
            throw NotOffered($"{lacking} in log-probs");
    }

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs) => throw NotOffered("log-probs from logits");

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream,
        TensorView logitsGradient) => throw NotOffered("log-probs from logits backward");

    /// <inheritdoc/>
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, long budget) => throw NotOffered("log-probs from hidden states");

    /// <inheritdoc/>
    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace) => throw NotOffered("log-probs from hidden states");

    /// <inheritdoc/>
    protected internal override void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics,
        Workspace workspace) => throw NotOffered("policy losses");

    /// <inheritdoc/>
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns) =>
        throw NotOffered("advantage estimation");

    /// <inheritdoc/>
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean) => throw NotOffered("whitening");

    private NotSupportedException NotOffered(string operation) => new($"The device {Name} doesn't offer {operation} yet; use ComputeDevice.Cpu.");
}
