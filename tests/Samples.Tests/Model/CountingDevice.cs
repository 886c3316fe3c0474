using TransformerKernels;

namespace Alignment.Tests;

/// <summary>The CPU, counting the operations that reach it by their names.</summary>
public sealed class CountingDevice : ComputeDevice
{
    private readonly ComputeDevice inner = Cpu;

    public Dictionary<string, int> Calls { get; } = [];

    public override string Name => inner.Name;

    protected internal override object MemorySpace => inner.MemorySpace;

    public override ComputeDevice With(CancellationToken cancellation) => this;

    public override void Synchronize() => inner.Synchronize();

    public override TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape) => inner.Allocate(type, shape);

    protected override void Dispose(bool disposing)
    {
    }

    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) => inner.AttentionForwardWorkspaceBytes(problem);

    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients) =>
        inner.AttentionBackwardWorkspaceBytes(problem, gradients);

    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp, Workspace workspace)
    {
        Count(nameof(AttentionForward));
        inner.AttentionForward(problem, rule, output, logSumExp, workspace);
    }

    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved, in AttentionUpstream upstream,
        in AttentionGradients gradients, Workspace workspace)
    {
        Count(nameof(AttentionBackward));
        inner.AttentionBackward(problem, rule, saved, upstream, gradients, workspace);
    }

    protected internal override void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward)
    {
        Count(backward ? "RotateBack" : nameof(Rotate));
        inner.Rotate(query, key, table, options, backward);
    }

    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        Count(nameof(LogProbsFromLogits));
        inner.LogProbsFromLogits(problem, outputs);
    }

    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        Count(nameof(LogProbsFromLogitsBackward));
        inner.LogProbsFromLogitsBackward(problem, saved, upstream, logitsGradient);
    }

    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) =>
        inner.LogProbsFromHiddenWorkspaceBytes(problem, backward, topTokens, budget);

    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace)
    {
        Count(nameof(LogProbsFromHidden));
        inner.LogProbsFromHidden(problem, upstream, outputs, gradients, backward, workspace);
    }

    protected internal override long LossWorkspaceBytes(long rows, long columns) => inner.LossWorkspaceBytes(rows, columns);

    protected internal override void PairLoss<TLoss>(in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics, Workspace workspace)
    {
        Count(nameof(PairLoss));
        inner.PairLoss(batch, loss, outputs, metrics, workspace);
    }

    protected internal override void TokenLoss<TLoss>(in TransformerKernels.TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics, Workspace workspace)
    {
        Count(nameof(TokenLoss));
        inner.TokenLoss(batch, loss, outputs, metrics, workspace);
    }

    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns)
    {
        Count(nameof(EstimateAdvantages));
        inner.EstimateAdvantages(problem, advantages, returns);
    }

    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean)
    {
        Count(nameof(Whiten));
        inner.Whiten(values, mask, keepMean);
    }

    private void Count(string name) => Calls[name] = Calls.GetValueOrDefault(name) + 1;
}
