using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Functions that .NET lacks or computes inaccurately near 0 (<c>LogP1</c> and <c>ExpM1</c> round 1 + x first).</summary>
public static class Elementary
{
    /// <summary>ln(1 + x). Kahan: ln(u)·x / (u − 1) with u = 1 + x rounded.</summary>
    public static T Log1p<T>(T x) where T : IFloatingPointIeee754<T>
    {
        T u = T.One + x;
        return u == T.One ? x : T.IsPositiveInfinity(u) ? u : T.Log(u) * x / (u - T.One);
    }

    /// <summary>ln(1 + e^x).</summary>
    public static T Softplus<T>(T x) where T : IFloatingPointIeee754<T> => T.Max(x, T.Zero) + Log1p(T.Exp(-T.Abs(x)));

    /// <summary>1 / (1 + e^−x).</summary>
    public static T Sigmoid<T>(T x) where T : IFloatingPointIeee754<T> =>
        x < T.Zero ? T.Exp(x) / (T.One + T.Exp(x)) : T.One / (T.One + T.Exp(-x));

    /// <summary>ln σ(x).</summary>
    public static T LogSigmoid<T>(T x) where T : IFloatingPointIeee754<T> => -Softplus(-x);
}
