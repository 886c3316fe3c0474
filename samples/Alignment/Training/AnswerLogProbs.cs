using TransformerKernels;

namespace Alignment;

/// <summary>Log-probs of answers under a model, and the way back from their gradients to those of the weights.</summary>
/// <param name="model">The model.</param>
/// <param name="trainable">Whether <see cref="Backward"/> will be called.</param>
internal sealed class AnswerLogProbs(Llama model, bool trainable) : IDisposable
{
    private readonly Activations run = new(model.Device, model.Shape, keep: trainable);
    private readonly RowBuffer logProb = new(model.Device, 1), logSumExp = new(model.Device, 2), sums = new(model.Device, 1);
    private readonly TokenBatch batch = new(model.Device);

    public TokenBatch Batch => batch;

    /// <summary>[pick]: ln p of every answer token, sequence by sequence; write the gradients here before <see cref="Backward"/>.</summary>
    public RowBuffer PerToken => logProb;

    /// <summary>[sequence]: ln p of each whole answer, after <see cref="Add"/>.</summary>
    public RowBuffer Sums => sums;

    /// <summary>Runs the model over the examples.</summary>
    public void Forward(IReadOnlyList<Example> examples)
    {
        batch.Fill(examples);
        model.Forward(batch, run);
        model.Project(batch, run);
        logProb.Resize(batch.Picks.Length);
        logSumExp.Resize(batch.Picks.Length);
        LogProbs.FromLogits(model.Device, Problem(), new() { LogProb = logProb.Vector, LogSumExp = logSumExp.View });
    }

    /// <summary>Sums the log-probs of each answer's tokens.</summary>
    public void Add()
    {
        sums.Resize(batch.Batch);
        model.Maths.SumSegments(logProb.Vector, batch.StartView, sums.Vector);
    }

    /// <summary>Adds the weights' gradients, from the gradients that stand in <see cref="PerToken"/>.</summary>
    public void Backward()
    {
        LogProbs.FromLogitsBackward(model.Device, Problem(), new() { LogSumExp = logSumExp.View }, new() { LogProb = logProb.Vector }, run.Logits.View);
        model.Backward(batch, run);
    }

    private LogitsProblem Problem() => new() { Logits = run.Logits.View, Targets = batch.TargetView };

    /// <summary>ln p of many whole answers.</summary>
    public float[] Score(IReadOnlyList<Example> examples, int batchSize)
    {
        var scores = new float[examples.Count];
        for (int start = 0; start < scores.Length; start += batchSize)
        {
            List<Example> part = [.. examples.Skip(start).Take(batchSize)];
            Forward(part);
            Add();
            sums.ToArray().CopyTo(scores, start);
        }
        return scores;
    }

    public void Dispose()
    {
        run.Dispose();
        logProb.Dispose();
        logSumExp.Dispose();
        sums.Dispose();
        batch.Dispose();
    }
}
