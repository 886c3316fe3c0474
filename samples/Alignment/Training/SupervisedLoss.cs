using TransformerKernels;

namespace Alignment;

/// <summary>Imitation: the mean of −ln p over the answer tokens of a batch.</summary>
internal sealed class SupervisedLoss(Llama model, AnswerLogProbs logProbs) : IDisposable
{
    private readonly TensorBuffer mean = model.Device.Allocate(ElementType.Float32, 1);

    /// <summary>The loss of the last <see cref="Step"/>. Waits for it.</summary>
    public float Value => -mean.ToArray<float>()[0];

    /// <summary>Evaluates the loss and adds the weights' gradients.</summary>
    public void Step(IReadOnlyList<Example> examples)
    {
        logProbs.Forward(examples);
        TensorView perToken = logProbs.PerToken.Vector;
        model.Maths.Mean(perToken, mean);
        model.Maths.Fill(perToken, -1f / perToken.Length(0));
        logProbs.Backward();
    }

    public void Dispose()
    {
        model.Device.Synchronize();
        mean.Dispose();
    }
}
