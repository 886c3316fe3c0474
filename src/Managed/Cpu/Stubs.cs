namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns) => throw new NotImplementedException();
    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean) => throw new NotImplementedException();
}
