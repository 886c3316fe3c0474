using System.Diagnostics;
using TransformerKernels;

namespace Alignment;

/// <summary>Takes steps of supervised learning and of preference optimisation, and counts tokens and time.</summary>
internal sealed class Trainer(Llama model) : IDisposable
{
    private const double Beta2 = 0.99, LargestNorm = 1, SupervisedDecay = 0.01;

    // Sequences scored at a time.
    private const int ScoreBatch = 256;

    private readonly AnswerLogProbs logProbs = new(model, trainable: true);
    private long steps, tokens;
    private TimeSpan time;
    private DeviceTraffic traffic;

    /// <summary>Over all steps so far.</summary>
    public TrainingPace Pace => new(steps, tokens, time, traffic);

    /// <summary>Imitates demonstrations.</summary>
    /// <param name="steps">How many.</param>
    /// <param name="rate">The learning rate of each.</param>
    /// <param name="nextBatch">The demonstrations of each.</param>
    /// <param name="done">Told step and loss after each.</param>
    public void Imitate(int steps, Func<int, double> rate, Func<List<Example>> nextBatch, Action<int, float> done)
    {
        using var loss = new SupervisedLoss(model, logProbs);
        using var optimiser = new AdamW(model.Maths, model.Parameters) { Beta2 = Beta2, LargestNorm = LargestNorm, WeightDecay = SupervisedDecay };
        for (int step = 0; step < steps; step++)
        {
            List<Example> batch = nextBatch();
            long start = Stopwatch.GetTimestamp();
            DeviceTraffic before = model.Maths.Traffic;
            model.Parameters.Gradients.Clear();
            loss.Step(batch);
            optimiser.Step(rate(step));
            float value = loss.Value;
            Count(start, before, batch);
            done(step, value);
        }
    }

    /// <summary>Direct preference optimisation.</summary>
    /// <param name="steps">How many.</param>
    /// <param name="rate">The learning rate of each.</param>
    /// <param name="formula">The loss.</param>
    /// <param name="nextBatch">The pairs of each.</param>
    /// <param name="done">Told step and <see cref="PreferenceMetrics"/> after each.</param>
    public void Prefer(int steps, Func<int, double> rate, DpoSigmoid formula, Func<List<ScoredPair>> nextBatch, Action<int, float[]> done)
    {
        using var loss = new DirectPreferenceLoss(model, logProbs, formula);
        using var optimiser = new AdamW(model.Maths, model.Parameters) { Beta2 = Beta2, LargestNorm = LargestNorm, WeightDecay = 0 };
        for (int step = 0; step < steps; step++)
        {
            List<ScoredPair> batch = nextBatch();
            long start = Stopwatch.GetTimestamp();
            DeviceTraffic before = model.Maths.Traffic;
            model.Parameters.Gradients.Clear();
            loss.Step(batch);
            optimiser.Step(rate(step));
            float[] metrics = loss.Metrics;
            Count(start, before, batch.SelectMany(pair => (IEnumerable<Example>)[pair.Pair.Chosen, pair.Pair.Rejected]));
            done(step, metrics);
        }
    }

    /// <summary>The pairs with their log-probs under the model as it is: it becomes the reference.</summary>
    public List<ScoredPair> Score(IReadOnlyList<PreferencePair> pairs)
    {
        float[] chosen = logProbs.Score([.. pairs.Select(pair => pair.Chosen)], ScoreBatch);
        float[] rejected = logProbs.Score([.. pairs.Select(pair => pair.Rejected)], ScoreBatch);
        return [.. pairs.Select((pair, i) => new ScoredPair(pair, chosen[i], rejected[i]))];
    }

    /// <summary><see cref="PreferenceMetrics"/> of the model as it is on pairs, and the share of pairs whose chosen answer it finds likelier.</summary>
    public PairReport Report(IReadOnlyList<ScoredPair> pairs, DpoSigmoid formula)
    {
        List<ScoredPair> now = Score([.. pairs.Select(pair => pair.Pair)]);
        float[] chosen = [.. now.Select(pair => pair.ReferenceChosen)], rejected = [.. now.Select(pair => pair.ReferenceRejected)];
        using TensorBuffer scores = model.Device.Upload<float>(
            [.. chosen, .. rejected, .. pairs.Select(pair => pair.ReferenceChosen), .. pairs.Select(pair => pair.ReferenceRejected)], 4, pairs.Count);
        using TensorBuffer results = model.Device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        var batch = new PairBatch
        {
            Chosen = scores.View.Select(0, 0),
            Rejected = scores.View.Select(0, 1),
            ReferenceChosen = scores.View.Select(0, 2),
            ReferenceRejected = scores.View.Select(0, 3),
        };
        PreferenceLoss.Evaluate(model.Device, batch, formula, default, results, model.Workspace);
        float[] metrics = results.ToArray<float>();
        double likelier = now.Count(pair => pair.ReferenceChosen > pair.ReferenceRejected) / (double)now.Count;
        return new(metrics[PreferenceMetrics.RewardMargin], metrics[PreferenceMetrics.RewardAccuracy], likelier,
            metrics[PreferenceMetrics.ChosenLogProb], metrics[PreferenceMetrics.RejectedLogProb]);
    }

    private void Count(long start, DeviceTraffic before, IEnumerable<Example> batch)
    {
        steps++;
        time += Stopwatch.GetElapsedTime(start);
        traffic += model.Maths.Traffic - before;
        foreach (Example example in batch)
            tokens += example.Tokens.Length;
    }

    public void Dispose() => logProbs.Dispose();
}

/// <summary>How fast steps were taken.</summary>
/// <param name="Steps">How many.</param>
/// <param name="Tokens">Of all their sequences, padding not counted.</param>
/// <param name="Time">What they took.</param>
/// <param name="Traffic">What they asked of a GPU.</param>
internal sealed record TrainingPace(long Steps, long Tokens, TimeSpan Time, DeviceTraffic Traffic)
{
    public double TokensPerSecond => Time > TimeSpan.Zero ? Tokens / Time.TotalSeconds : 0;

    public double LaunchesPerStep => PerStep(Traffic.Launches);

    public double BytesToDevicePerStep => PerStep(Traffic.BytesToDevice);

    public double BytesToHostPerStep => PerStep(Traffic.BytesToHost);

    private double PerStep(long count) => count / (double)Math.Max(1, Steps);
}

/// <summary>How a model judges preference pairs.</summary>
/// <param name="RewardMargin">Mean difference of the rewards, which are 0 under the reference itself.</param>
/// <param name="RewardAccuracy">Share of pairs whose chosen answer has the larger reward.</param>
/// <param name="ChosenLikelier">Share of pairs with log p(chosen) above log p(rejected).</param>
/// <param name="ChosenLogProb">Mean log p(chosen).</param>
/// <param name="RejectedLogProb">Mean log p(rejected).</param>
internal sealed record PairReport(double RewardMargin, double RewardAccuracy, double ChosenLikelier, double ChosenLogProb, double RejectedLogProb);
