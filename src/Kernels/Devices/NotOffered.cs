namespace TransformerKernels;

// What GPUs don't do yet. It throws: nothing runs elsewhere silently.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void RequireOffered(in LogitsProblem problem, in TokenOutputs outputs)
    {
        if (outputs.TopLogProbs.IsPresent && problem.Logits.Length(1) > int.MaxValue)
            throw NotOffered($"the likeliest of {problem.Logits.Length(1)} tokens (outputs.TopLogProbs)");
    }

    /// <inheritdoc/>
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) => throw NotOffered("log-probs from hidden states");

    /// <inheritdoc/>
    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace) => throw NotOffered("log-probs from hidden states");

    private NotSupportedException NotOffered(string operation) => new($"The device {Name} doesn't offer {operation} yet; use ComputeDevice.Cpu.");
}
