using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>A preference loss of n pairs: everything that a trainer asks for.</summary>
/// <param name="Losses">[n], not reduced.</param>
/// <param name="Loss">The reduced loss.</param>
/// <param name="Chosen">Gradient of the reduced loss with respect to ln π(chosen); the next three likewise.</param>
public sealed record PreferenceResult<T>(T[] Losses, T Loss, T[] Chosen, T[] Rejected, T[] ReferenceChosen, T[] ReferenceRejected,
    T[] ChosenReward, T[] RejectedReward, PreferenceSummary<T> Metrics);

/// <summary>Averages over the pairs. Accuracy counts pairs whose chosen reward is the larger one; ties are wrong.</summary>
public sealed record PreferenceSummary<T>(T ChosenReward, T RejectedReward, T RewardMargin, T RewardAccuracy, T ChosenLogProb, T RejectedLogProb);

/// <summary>DPO: −(1 − ε) ln σ(βm) − ε ln σ(−βm), m = (chosen − reference chosen) − (rejected − reference rejected).</summary>
public static class PreferenceOracle
{
    /// <param name="referenceChosen">Zeros if null; so is the other one.</param>
    /// <param name="sum">Whether the reduced loss is the sum; the mean otherwise.</param>
    public static PreferenceResult<T> DpoSigmoid<T>(double[] chosen, double[] rejected, double[]? referenceChosen, double[]? referenceRejected,
        double beta, double labelSmoothing = 0, bool sum = false) where T : IFloatingPointIeee754<T>
    {
        int pairs = chosen.Length;
        T b = T.CreateTruncating(beta), smoothing = T.CreateTruncating(labelSmoothing), count = T.CreateTruncating(pairs);
        T weight = sum ? T.One : T.One / count;
        T[] losses = new T[pairs], gradient = new T[pairs], opposite = new T[pairs], chosenReward = new T[pairs], rejectedReward = new T[pairs];
        T loss = T.Zero, chosenSum = T.Zero, rejectedSum = T.Zero, marginSum = T.Zero, right = T.Zero, chosenLogProb = T.Zero, rejectedLogProb = T.Zero;
        for (int n = 0; n < pairs; n++)
        {
            T c = T.CreateTruncating(chosen[n]), r = T.CreateTruncating(rejected[n]);
            T chosenRatio = c - T.CreateTruncating(referenceChosen?[n] ?? 0), rejectedRatio = r - T.CreateTruncating(referenceRejected?[n] ?? 0);
            T scaled = b * (chosenRatio - rejectedRatio);
            losses[n] = -(T.One - smoothing) * Elementary.LogSigmoid(scaled) - smoothing * Elementary.LogSigmoid(-scaled);
            // d/dx ln σ(x) = σ(−x)
            gradient[n] = weight * b * (smoothing * Elementary.Sigmoid(scaled) - (T.One - smoothing) * Elementary.Sigmoid(-scaled));
            opposite[n] = -gradient[n];
            chosenReward[n] = b * chosenRatio;
            rejectedReward[n] = b * rejectedRatio;
            loss += losses[n];
            chosenSum += chosenReward[n];
            rejectedSum += rejectedReward[n];
            marginSum += chosenReward[n] - rejectedReward[n];
            right += chosenReward[n] > rejectedReward[n] ? T.One : T.Zero;
            chosenLogProb += c;
            rejectedLogProb += r;
        }
        T Mean(T total) => pairs == 0 ? T.Zero : total / count;
        return new(losses, sum ? loss : Mean(loss), gradient, opposite, opposite, gradient, chosenReward, rejectedReward,
            new(Mean(chosenSum), Mean(rejectedSum), Mean(marginSum), Mean(right), Mean(chosenLogProb), Mean(rejectedLogProb)));
    }
}
