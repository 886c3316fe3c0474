namespace TransformerKernels;

// What GPUs don't do yet. It throws: nothing runs elsewhere silently.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward) =>
        throw NotOffered("rotary embedding");

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs) => throw NotOffered("log-probs from logits");

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream,
        TensorView logitsGradient) => throw NotOffered("log-probs from logits backward");

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
