using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>A formula that changes scores, with its derivatives written by hand.</summary>
public interface IScoreFormula
{
    /// <summary>The new score; −∞ hides the pair.</summary>
    T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>;

    /// <summary>The derivatives of the new score with respect to the old one and to the captured values.</summary>
    ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>;
}

/// <summary>Which pair of query and key it is, and the captured values there (0 where there is none).</summary>
public readonly record struct PairPlace<T>(T QueryPosition, T KeyPosition, T Head, T Batch, T Captured0, T Captured1, T Captured2, T Captured3)
    where T : IFloatingPointIeee754<T>
{
    /// <summary>Key position − query position.</summary>
    public T Distance => KeyPosition - QueryPosition;
}

/// <summary>The derivatives of a score formula.</summary>
public readonly record struct ScoreDerivatives<T>(T Score, T Captured0 = default!, T Captured1 = default!, T Captured2 = default!, T Captured3 = default!)
    where T : IFloatingPointIeee754<T>
{
    /// <summary>The derivative with respect to one of the captured values.</summary>
    public T Captured(int index) => index switch { 0 => Captured0, 1 => Captured1, 2 => Captured2, _ => Captured3 };
}

/// <summary>Scores halved between neighbours and doubled at distance two.</summary>
public sealed class CheckerboardFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => Factor(at) * score;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => new(Factor(at));

    private static T Factor<T>(in PairPlace<T> at) where T : IFloatingPointIeee754<T>
    {
        T two = T.One + T.One, distance = T.Abs(at.Distance);
        return distance == T.One ? T.One / two : distance == two ? two : T.One;
    }
}

/// <summary>s².</summary>
public sealed class SquaredFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score * score;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => new(score + score);
}

/// <summary>s, or slope·s below 0.</summary>
public sealed class LeakyFormula(double slope) : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score < T.Zero ? T.CreateTruncating(slope) * score : score;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> =>
        new(score < T.Zero ? T.CreateTruncating(slope) : T.One);
}

/// <summary>s times the first captured value: a learned temperature.</summary>
public sealed class CapturedFactorFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score * at.Captured0;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => new(at.Captured0, score);
}

/// <summary>s·gain·ln(p + 2), gain the first captured value, p the query's position: scores that grow with the length.</summary>
public sealed class LogLengthFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score * at.Captured0 * Length(at);

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> =>
        new(at.Captured0 * Length(at), score * Length(at));

    private static T Length<T>(in PairPlace<T> at) where T : IFloatingPointIeee754<T> => T.Log(at.QueryPosition + T.One + T.One);
}

/// <summary>s + the first captured value times the second: a bias with a gate.</summary>
public sealed class GatedBiasFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score + at.Captured0 * at.Captured1;

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => new(T.One, at.Captured1, at.Captured0);
}

/// <summary>s − m·|a − b|: captured are a, b and m.</summary>
public sealed class SlopedPositionsFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score - at.Captured2 * T.Abs(at.Captured0 - at.Captured1);

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>
    {
        T sign = T.CreateTruncating(T.Sign(at.Captured0 - at.Captured1));
        return new(T.One, -at.Captured2 * sign, at.Captured2 * sign, -T.Abs(at.Captured0 - at.Captured1));
    }
}

/// <summary>s + a − b where the key isn't ahead, s + d − c where it is: captured are a, b, c and d.</summary>
public sealed class TwoSidedGatesFormula : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> =>
        score + (at.Distance > T.Zero ? at.Captured3 - at.Captured2 : at.Captured0 - at.Captured1);

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> =>
        at.Distance > T.Zero ? new(T.One, T.Zero, T.Zero, -T.One, T.One) : new(T.One, T.One, -T.One);
}
