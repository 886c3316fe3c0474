using System.Numerics.Tensors;

namespace Alignment;

/// <summary>Imitation: the mean of −ln p over the answer tokens of a batch.</summary>
internal sealed class SupervisedLoss(AnswerLogProbs logProbs)
{
    /// <summary>Evaluates the loss and adds the weights' gradients.</summary>
    public float Step(IReadOnlyList<Example> examples)
    {
        logProbs.Forward(examples);
        Span<float> perToken = logProbs.PerToken;
        float loss = -TensorPrimitives.Sum(perToken) / perToken.Length;
        perToken.Fill(-1f / perToken.Length);
        logProbs.Backward();
        return loss;
    }
}
