namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) => throw new NotImplementedException();
    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients) => throw new NotImplementedException();
    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp, Workspace workspace) => throw new NotImplementedException();
    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved, in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace) => throw new NotImplementedException();
    protected internal override void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics, Workspace workspace) => throw new NotImplementedException();
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns) => throw new NotImplementedException();
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean) => throw new NotImplementedException();
}
