namespace TransformerKernels.Tests;

/// <summary>A device whose memory no other one can address, and that offers nothing.</summary>
public sealed class ForeignDevice : ComputeDevice
{
    private readonly object memory = new();

    public override string Name => "a foreign device";

    protected internal override object MemorySpace => memory;

    /// <summary>A view of its memory that nobody may follow.</summary>
    public TensorView View(params ReadOnlySpan<long> shape) => View(ElementType.Float32, shape);

    public TensorView View(ElementType type, params ReadOnlySpan<long> shape) => TensorView.FromPointer(this, 4096, type, shape);

    public override ComputeDevice With(CancellationToken cancellation) => this;

    public override void Synchronize()
    {
    }

    public override TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
    }

    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) => throw new NotSupportedException();
    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients) => throw new NotSupportedException();
    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp, Workspace workspace) => throw new NotSupportedException();
    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved, in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace) => throw new NotSupportedException();
    protected internal override void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward) => throw new NotSupportedException();
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs) => throw new NotSupportedException();
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient) => throw new NotSupportedException();
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) => throw new NotSupportedException();
    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients, bool backward, Workspace workspace) => throw new NotSupportedException();
    protected internal override long LossWorkspaceBytes(long rows, long columns) => throw new NotSupportedException();
    protected internal override void PairLoss<TLoss>(in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics, Workspace workspace) => throw new NotSupportedException();
    protected internal override void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics, Workspace workspace) => throw new NotSupportedException();
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns) => throw new NotSupportedException();
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean) => throw new NotSupportedException();
}
