using TransformerKernels;

namespace Alignment;

/// <summary>Direct preference optimisation on a batch of pairs; the reference's log-probs are known beforehand.</summary>
internal sealed class DirectPreferenceLoss(Llama model, AnswerLogProbs logProbs, DpoSigmoid formula)
{
    private readonly List<Example> examples = [];
    private readonly float[] metrics = new float[PreferenceMetrics.Count];
    private float[] sums = [], gradients = [];

    /// <summary>The batch's averages after <see cref="Step"/>; see <see cref="PreferenceMetrics"/>.</summary>
    public ReadOnlySpan<float> Metrics => metrics;

    /// <summary>Evaluates the loss and adds the weights' gradients.</summary>
    public float Step(IReadOnlyList<ScoredPair> pairs)
    {
        int count = pairs.Count;
        examples.Clear();
        examples.AddRange(pairs.Select(pair => pair.Pair.Chosen));
        examples.AddRange(pairs.Select(pair => pair.Pair.Rejected));
        logProbs.Forward(examples);

        // The four inputs in one array, and the two gradients in another: chosen, rejected, reference chosen, reference rejected.
        if (sums.Length != 4 * count)
            (sums, gradients) = (new float[4 * count], new float[2 * count]);
        for (int i = 0; i < count; i++)
        {
            sums[i] = logProbs.Sum(i);
            sums[count + i] = logProbs.Sum(count + i);
            sums[2 * count + i] = pairs[i].ReferenceChosen;
            sums[3 * count + i] = pairs[i].ReferenceRejected;
        }
        var batch = new PairBatch
        {
            Chosen = TensorView.Of(sums.AsSpan(0, count)),
            Rejected = TensorView.Of(sums.AsSpan(count, count)),
            ReferenceChosen = TensorView.Of(sums.AsSpan(2 * count, count)),
            ReferenceRejected = TensorView.Of(sums.AsSpan(3 * count, count)),
        };
        var outputs = new PairOutputs { Chosen = TensorView.Of(gradients.AsSpan(0, count)), Rejected = TensorView.Of(gradients.AsSpan(count, count)) };
        PreferenceLoss.Evaluate(model.Device, batch, formula, outputs, TensorView.Of(metrics), model.Workspace);

        // A sum passes its gradient to every token in it.
        for (int sequence = 0; sequence < 2 * count; sequence++)
            logProbs.PerToken[logProbs.Batch.PicksOf(sequence)].Fill(gradients[sequence]);
        logProbs.Backward();
        return metrics[PreferenceMetrics.Loss];
    }
}

/// <summary>A pair with its log-probs under the reference.</summary>
internal sealed record ScoredPair(PreferencePair Pair, float ReferenceChosen, float ReferenceRejected);
