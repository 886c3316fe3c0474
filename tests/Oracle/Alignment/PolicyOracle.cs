using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>How token losses make one number.</summary>
public enum Reduction
{
    /// <summary>Σ loss / number of tokens.</summary>
    TokenMean,
    /// <summary>Σ loss.</summary>
    TokenSum,
    /// <summary>The sums of the sequences, averaged over those that have tokens.</summary>
    SequenceMeanTokenSum,
    /// <summary>The means of the sequences, averaged over those that have tokens.</summary>
    SequenceMeanTokenMean,
}

/// <summary>A policy loss of [sequence, token]: losses (0 where masked), the reduced loss, its gradient with respect to the log-probs, metrics.</summary>
/// <param name="ClipFraction">Share of tokens whose clipped loss was the larger one.</param>
/// <param name="DualClipFraction">Share of tokens where the second clip took effect.</param>
/// <param name="OldKl">Mean of old − new log-prob.</param>
/// <param name="Tokens">How many tokens count.</param>
/// <param name="LossMagnitude">The reduced loss of the losses' absolute values: what <see cref="Loss"/> is a sum of, before anything cancels.</param>
public sealed record PolicyResult<T>(Grid<T> Losses, T Loss, Grid<T> LogProb, T ClipFraction, T DualClipFraction, T OldKl, int Tokens, T LossMagnitude) where T : INumberBase<T>;

/// <summary>PPO's clipped loss: max(−A r, −A clip(r, 1 − lower, 1 + upper)), r = e^clamp(new − old, ±bound); with A below 0 at most −A·dualClip.</summary>
public static class PolicyOracle
{
    /// <param name="mask">Which tokens count; all if null. What lies in the others is never looked at.</param>
    /// <param name="dualClip">∞ switches it off.</param>
    /// <param name="logRatioBound">∞ switches it off.</param>
    /// <param name="divisor">Replaces the number of tokens or sequences that the reduction divides by.</param>
    public static PolicyResult<T> PpoClip<T>(Grid<double> logProb, Grid<double> oldLogProb, Grid<double> advantage, bool[]? mask,
        double lower = 0.2, double upper = 0.2, double dualClip = double.PositiveInfinity, double logRatioBound = double.PositiveInfinity,
        Reduction reduction = Reduction.TokenMean, double? divisor = null) where T : IFloatingPointIeee754<T>
    {
        (int sequences, int tokens) = (logProb.Shape[0], logProb.Shape[1]);
        bool Counts(int s, int t) => mask is null || mask[s * tokens + t];
        (Grid<T> current, Grid<T> old, Grid<T> a) = (logProb.To<T>(), oldLogProb.To<T>(), advantage.To<T>());
        T low = T.One - T.CreateTruncating(lower), high = T.One + T.CreateTruncating(upper);
        T dual = T.CreateTruncating(dualClip), bound = T.CreateTruncating(logRatioBound);
        Grid<T> losses = Grid.Zeros<T>(sequences, tokens), gradient = Grid.Zeros<T>(sequences, tokens);
        T clipped = T.Zero, dualClipped = T.Zero, kl = T.Zero;
        var lengths = new int[sequences];
        for (int s = 0; s < sequences; s++)
        {
            for (int t = 0; t < tokens; t++)
            {
                if (!Counts(s, t))
                    continue;
                lengths[s]++;
                T advantageHere = a[s, t], logRatio = current[s, t] - old[s, t];
                T ratio = T.Exp(Clamp(logRatio, -bound, bound));
                T plain = -advantageHere * ratio, other = -advantageHere * Clamp(ratio, low, high);
                T loss = T.Max(plain, other);
                // Where the ratio is within its bounds both forms are the same, and so is their derivative −A r.
                T derivative = other > plain ? T.Zero : plain;
                if (T.Abs(logRatio) > bound)
                    derivative = T.Zero;
                clipped += other > plain ? T.One : T.Zero;
                if (advantageHere < T.Zero && -advantageHere * dual < loss)
                {
                    loss = -advantageHere * dual;
                    derivative = T.Zero;
                    dualClipped += T.One;
                }
                losses[s, t] = loss;
                gradient[s, t] = derivative;
                kl += old[s, t] - current[s, t];
            }
        }
        int count = lengths.Sum(), filled = lengths.Count(length => length > 0);
        T total = T.Zero, magnitude = T.Zero;
        for (int s = 0; s < sequences; s++)
        {
            T weight = Weight<T>(reduction, divisor, count, filled, lengths[s]);
            for (int t = 0; t < tokens; t++)
            {
                if (!Counts(s, t))
                    continue;
                total += weight * losses[s, t];
                magnitude += weight * T.Abs(losses[s, t]);
                gradient[s, t] *= weight;
            }
        }
        T Mean(T sum) => count == 0 ? T.Zero : sum / T.CreateTruncating(count);
        return new(losses, total, gradient, Mean(clipped), Mean(dualClipped), Mean(kl), count, magnitude);
    }

    /// <summary>What a token's loss is multiplied by in the reduced loss.</summary>
    private static T Weight<T>(Reduction reduction, double? divisor, int tokens, int filledSequences, int length) where T : IFloatingPointIeee754<T>
    {
        T Over(double count) => T.One / T.CreateTruncating(divisor ?? count);
        return reduction switch
        {
            Reduction.TokenMean => Over(tokens),
            Reduction.TokenSum => Over(1),
            Reduction.SequenceMeanTokenSum => Over(filledSequences),
            _ => Over(filledSequences) / T.CreateTruncating(length),
        };
    }

    private static T Clamp<T>(T x, T low, T high) where T : IFloatingPointIeee754<T> => x < low ? low : x > high ? high : x;
}
