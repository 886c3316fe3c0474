using TransformerKernels;

namespace Alignment;

/// <summary>Direct preference optimisation on a batch of pairs; the reference's log-probs are known beforehand.</summary>
internal sealed class DirectPreferenceLoss(Llama model, AnswerLogProbs logProbs, DpoSigmoid formula) : IDisposable
{
    private readonly List<Example> examples = [];
    private readonly TensorBuffer metrics = model.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
    private TensorBuffer? references, gradients;
    private float[] scores = [];

    /// <summary>The averages of the last <see cref="Step"/>'s batch; see <see cref="PreferenceMetrics"/>. Waits for them.</summary>
    public float[] Metrics => metrics.ToArray<float>();

    /// <summary>Evaluates the loss and adds the weights' gradients.</summary>
    public void Step(IReadOnlyList<ScoredPair> pairs)
    {
        int count = pairs.Count;
        examples.Clear();
        examples.AddRange(pairs.Select(pair => pair.Pair.Chosen));
        examples.AddRange(pairs.Select(pair => pair.Pair.Rejected));
        if (references?.ElementCount != 2 * count)
        {
            Free();
            references = model.Device.Allocate(ElementType.Float32, 2, count);
            gradients = model.Device.Allocate(ElementType.Float32, 2, count);
            scores = new float[2 * count];
        }
        for (int i = 0; i < count; i++)
            (scores[i], scores[count + i]) = (pairs[i].ReferenceChosen, pairs[i].ReferenceRejected);
        references.CopyFrom<float>(scores);
        logProbs.Forward(examples);
        logProbs.Add();

        TensorView sums = logProbs.Sums.Vector, reference = references.View, gradient = gradients!.View;
        var batch = new PairBatch
        {
            Chosen = sums.Slice(0, 0, count),
            Rejected = sums.Slice(0, count, count),
            ReferenceChosen = reference.Select(0, 0),
            ReferenceRejected = reference.Select(0, 1),
        };
        PreferenceLoss.Evaluate(model.Device, batch, formula, new() { ChosenGradient = gradient.Select(0, 0), RejectedGradient = gradient.Select(0, 1) }, metrics, model.Workspace);

        // A sum passes its gradient to every token in it.
        model.Maths.Gather(gradient.Reshape(2 * count, 1), logProbs.Batch.SequenceView, logProbs.PerToken.View);
        logProbs.Backward();
    }

    private void Free()
    {
        model.Device.Synchronize();
        references?.Dispose();
        gradients?.Dispose();
    }

    public void Dispose()
    {
        Free();
        metrics.Dispose();
    }
}

/// <summary>A pair with its log-probs under the reference.</summary>
internal sealed record ScoredPair(PreferencePair Pair, float ReferenceChosen, float ReferenceRejected);
