using System.Runtime.CompilerServices;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>score / (1 + strength·|distance|) where the query is at least as far as the key, else −∞ beyond a limit, plus a captured value: what a rule can do.</summary>
public readonly struct Temperature(float strength, float limit) : IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T reach = T.Abs(at.Distance);
        T warmed = score / (1f + strength * reach) + at.Captured0;
        return T.SelectLess(reach, T.From(limit), warmed, T.From(float.NegativeInfinity));
    }
}

/// <summary>captured · inner(score): wraps a rule, whose own captured tensors follow.</summary>
public readonly struct Gained<TInner>(TInner inner) : IScoreRule where TInner : unmanaged, IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => inner.Score(score * T.Exp(at.Captured0), at.Shift(1));
}

/// <summary>inner(score + 0), the 0 being a long way round: more steps than two vectors in lockstep are worth.</summary>
public readonly struct LongWay<TInner>(TInner inner) : IScoreRule where TInner : unmanaged, IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => inner.Score(score + 0f * T.Log1p(T.Abs(at.Distance)), at);
}

/// <summary>inner(score + 0), the 0 by more operations than strips are worth.</summary>
public readonly struct Many<TInner>(TInner inner) : IScoreRule where TInner : unmanaged, IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => inner.Score(Add(Add(Add(Add(Add(Add(Add(Add(score, at), at), at), at), at), at), at), at), at);

    private static T Add<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score + 0f * T.Log1p(T.Exp(T.Tanh(T.Tanh(T.Tanh(T.Tanh(T.Abs(at.Distance)))))));
}

/// <summary>score·c0 + (c1·c2 − tanh(c3))·distance/8: four captured tensors at once.</summary>
public readonly struct FourCaptures : IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score * at.Captured0 + (at.Captured1 * at.Captured2 - T.Tanh(at.Captured3)) * (0.125f * at.Distance);
}

/// <summary>The formula of <see cref="Temperature"/>.</summary>
public sealed class TemperatureFormula(double strength, double limit) : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> =>
        T.Abs(at.Distance) < T.CreateTruncating(limit) ? score * Factor(at) + at.Captured0 : T.NegativeInfinity;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => new(Factor(at), T.One);

    private T Factor<T>(in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => T.One / (T.One + T.CreateTruncating(strength) * T.Abs(at.Distance));
}

/// <summary>The formula of <see cref="Gained{TInner}"/> around <see cref="Temperature"/>.</summary>
public sealed class GainedTemperatureFormula(double strength, double limit) : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> =>
        T.Abs(at.Distance) < T.CreateTruncating(limit) ? score * T.Exp(at.Captured0) * Factor(at) + at.Captured1 : T.NegativeInfinity;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> =>
        new(T.Exp(at.Captured0) * Factor(at), score * T.Exp(at.Captured0) * Factor(at), T.One);

    private T Factor<T>(in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => T.One / (T.One + T.CreateTruncating(strength) * T.Abs(at.Distance));
}

/// <summary>The formula of <see cref="FourCaptures"/>.</summary>
public sealed class FourCapturesFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> =>
        score * at.Captured0 + (at.Captured1 * at.Captured2 - T.Tanh(at.Captured3)) * Reach(at);

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T>
    {
        T tanh = T.Tanh(at.Captured3);
        return new(at.Captured0, score, at.Captured2 * Reach(at), at.Captured1 * Reach(at), (tanh * tanh - T.One) * Reach(at));
    }

    private static T Reach<T>(in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => T.CreateTruncating(0.125) * at.Distance;
}

/// <summary>The formula of <see cref="Gained{TInner}"/> around nothing.</summary>
public sealed class GainedFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => score * T.Exp(at.Captured0);

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => new(T.Exp(at.Captured0), score * T.Exp(at.Captured0));
}
