namespace TransformerKernels;

// What GPUs don't do yet. It throws: nothing runs elsewhere silently.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void RequireOffered(in LogitsProblem problem, in TokenOutputs outputs)
    {
        // A token takes 31 bits of what is sorted, and the places of pairs to be exchanged are of 32 bits.
        const long mostTokens = int.MaxValue, mostLikeliest = 1 << 30;
        if (outputs.TopLogProbs.IsPresent && (problem.Logits.Length(1) > mostTokens || outputs.TopLogProbs.Length(1) > mostLikeliest))
            throw NotOffered($"the {outputs.TopLogProbs.Length(1)} likeliest of {problem.Logits.Length(1)} tokens (outputs.TopLogProbs)");
    }

    /// <inheritdoc/>
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) => throw NotOffered("log-probs from hidden states");

    /// <inheritdoc/>
    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace) => throw NotOffered("log-probs from hidden states");

    private NotSupportedException NotOffered(string operation) => new($"The device {Name} doesn't offer {operation} yet; use ComputeDevice.Cpu.");
}
