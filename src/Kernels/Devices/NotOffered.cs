namespace TransformerKernels;

// What GPUs don't do yet. It throws: nothing runs elsewhere silently.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns) =>
        throw NotOffered("advantage estimation");

    /// <inheritdoc/>
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean) => throw NotOffered("whitening");

    private NotSupportedException NotOffered(string operation) => new($"The device {Name} doesn't offer {operation} yet; use ComputeDevice.Cpu.");
}
