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
    protected internal override void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics,
        Workspace workspace) => throw NotOffered("policy losses");

    /// <inheritdoc/>
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns) =>
        throw NotOffered("advantage estimation");

    /// <inheritdoc/>
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean) => throw NotOffered("whitening");

    private NotSupportedException NotOffered(string operation) => new($"The device {Name} doesn't offer {operation} yet; use ComputeDevice.Cpu.");
}
