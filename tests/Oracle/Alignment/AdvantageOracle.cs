using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Generalized advantage estimation, and whitening.</summary>
public static class AdvantageOracle
{
    /// <summary>From the last token back: δ = r + γ V' − V, A = δ + γλ A', V' and A' of the next token that counts (0 after the last); return = A + V.</summary>
    /// <remarks>Masked tokens are stepped over; their results are 0.</remarks>
    public static (Grid<T> Advantages, Grid<T> Returns) Estimate<T>(Grid<double> rewards, Grid<double> values, bool[]? mask, double gamma, double lambda)
        where T : IFloatingPointIeee754<T>
    {
        (int sequences, int tokens) = (rewards.Shape[0], rewards.Shape[1]);
        (Grid<T> r, Grid<T> v) = (rewards.To<T>(), values.To<T>());
        (T discount, T decay) = (T.CreateTruncating(gamma), T.CreateTruncating(lambda));
        Grid<T> advantages = Grid.Zeros<T>(sequences, tokens), returns = Grid.Zeros<T>(sequences, tokens);
        for (int s = 0; s < sequences; s++)
        {
            T nextValue = T.Zero, next = T.Zero;
            for (int t = tokens - 1; t >= 0; t--)
            {
                if (mask is not null && !mask[s * tokens + t])
                    continue;
                T error = r[s, t] + discount * nextValue - v[s, t];
                next = error + discount * decay * next;
                nextValue = v[s, t];
                advantages[s, t] = next;
                returns[s, t] = next + v[s, t];
            }
        }
        return (advantages, returns);
    }

    /// <summary>(x − mean) / √(variance + 1e-8) of the numbers that count, variance with n − 1; the others become 0.</summary>
    public static Grid<T> Whiten<T>(Grid<double> values, bool[]? mask, bool keepMean = false) where T : IFloatingPointIeee754<T>
    {
        Grid<T> x = values.To<T>();
        T count = T.Zero, sum = T.Zero;
        for (int i = 0; i < x.Data.Length; i++)
        {
            if (mask is not null && !mask[i])
                continue;
            count += T.One;
            sum += x.Data[i];
        }
        if (count < T.One + T.One)
            throw new ArgumentException("The variance of fewer than two values is not defined.", nameof(mask));
        T mean = sum / count, squares = T.Zero;
        for (int i = 0; i < x.Data.Length; i++)
        {
            if (mask is null || mask[i])
                squares += (x.Data[i] - mean) * (x.Data[i] - mean);
        }
        T deviation = T.Sqrt(squares / (count - T.One) + T.CreateTruncating(1e-8));
        Grid<T> white = Grid.Zeros<T>(x.Shape);
        for (int i = 0; i < x.Data.Length; i++)
        {
            if (mask is null || mask[i])
                white.Data[i] = (x.Data[i] - mean) / deviation + (keepMean ? mean : T.Zero);
        }
        return white;
    }
}
