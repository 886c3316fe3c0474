using System.Numerics.Tensors;
using TransformerKernels;

namespace Alignment;

/// <summary>Log-probs of answers under a model, and the way back from their gradients to those of the weights.</summary>
/// <param name="model">The model.</param>
/// <param name="trainable">Whether <see cref="Backward"/> will be called.</param>
internal sealed class AnswerLogProbs(Llama model, bool trainable) : IDisposable
{
    private readonly Activations run = new(model.Device, model.Shape, keep: trainable);
    private readonly RowBuffer logProb = new(model.Device, 1), logSumExp = new(model.Device, 1);
    private readonly TokenBatch batch = new();

    public TokenBatch Batch => batch;

    /// <summary>ln p of every answer token, sequence by sequence; write the gradients here before <see cref="Backward"/>.</summary>
    public Span<float> PerToken => logProb.Span;

    /// <summary>Runs the model over the examples.</summary>
    public void Forward(IReadOnlyList<Example> examples)
    {
        batch.Fill(examples);
        model.Forward(batch.Tokens, batch.Batch, run);
        model.Project(run, batch.Picks);
        logProb.Resize(batch.Picks.Length);
        logSumExp.Resize(batch.Picks.Length);
        LogProbs.FromLogits(model.Device, Problem(), new() { LogProb = logProb.Vector, LogSumExp = logSumExp.Vector });
    }

    /// <summary>ln p of one whole answer: the sum over its tokens, in double.</summary>
    public float Sum(int sequence)
    {
        double sum = 0;
        foreach (float value in PerToken[batch.PicksOf(sequence)])
            sum += value;
        return (float)sum;
    }

    /// <summary>Adds the weights' gradients, from the gradients that stand in <see cref="PerToken"/>.</summary>
    public void Backward()
    {
        LogProbs.FromLogitsBackward(model.Device, Problem(), new() { LogSumExp = logSumExp.Vector }, new() { LogProb = logProb.Vector }, run.Logits.View);
        model.Backward(batch.Tokens, batch.Picks, run);
    }

    private LogitsProblem Problem() => new() { Logits = run.Logits.View, Targets = TensorView.Of(batch.Targets) };

    /// <summary>ln p of many whole answers.</summary>
    public float[] Score(IReadOnlyList<Example> examples, int batchSize)
    {
        var sums = new float[examples.Count];
        for (int start = 0; start < sums.Length; start += batchSize)
        {
            List<Example> part = [.. examples.Skip(start).Take(batchSize)];
            Forward(part);
            for (int i = 0; i < part.Count; i++)
                sums[start + i] = Sum(i);
        }
        return sums;
    }

    public void Dispose()
    {
        run.Dispose();
        logProb.Dispose();
        logSumExp.Dispose();
    }
}
