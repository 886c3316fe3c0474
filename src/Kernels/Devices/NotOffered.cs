namespace TransformerKernels;

// What GPUs don't do yet. It throws: nothing runs elsewhere silently.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void RequireOffered(in LogitsProblem problem, in TokenOutputs outputs)
    {
        string? lacking =
            problem.Logits.Type != ElementType.Float32 ? $"logits of {problem.Logits.Type}" :
            outputs.TopLogProbs.IsPresent ? "the likeliest tokens" : null;
        if (lacking is not null)
            throw NotOffered($"{lacking} in log-probs");
    }

    /// <inheritdoc/>
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) => throw NotOffered("log-probs from hidden states");

    /// <inheritdoc/>
    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace) => throw NotOffered("log-probs from hidden states");

    private NotSupportedException NotOffered(string operation) => new($"The device {Name} doesn't offer {operation} yet; use ComputeDevice.Cpu.");
}
