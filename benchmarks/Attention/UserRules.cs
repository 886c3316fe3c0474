using System.Numerics;
using System.Runtime.CompilerServices;
using TorchSharp;
using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>A score rule as a user writes it, three times: for the library, for the oracle, and for the peer.</summary>
/// <param name="Ours">The struct.</param>
/// <param name="Formula">The same in float64 with derivatives by hand; null for no rule.</param>
/// <param name="Torch">The same over tensors, of the distance of every pair. Null where no case competes with it.</param>
internal sealed record UserRule<TRule>(TRule Ours, IScoreFormula? Formula, Func<Tensor, TorchRule>? Torch) where TRule : unmanaged, IScoreRule;

/// <summary>A rule over tensors, from the scores, which it may overwrite, and the captured values of every pair.</summary>
internal delegate Tensor TorchRule(Tensor scores, Tensor? captured);

/// <summary>The rules of the cases.</summary>
internal enum AttentionRule
{
    None,
    /// <summary>a·tanh(b·s + c·distance), halved for keys behind the query.</summary>
    Bent,
    /// <summary>The same with a captured value: a·tanh(b·s + c·distance + captured).</summary>
    LearnedBent,
    /// <summary>s / (1 + c·|distance|): scores that cool with the distance.</summary>
    Cooling,
    /// <summary>s·sigmoid(captured) + softplus(tanh(s)) − ln(1 + c·|distance|)·e^(−c·|distance|): more of a formula than anyone needs.</summary>
    Long,
}

/// <summary>The rules of <see cref="AttentionRule"/>.</summary>
internal static class UserRules
{
    // Scores of noise are mostly below 1, distances go to 2,000: the hyperbolic tangent bends for both.
    private const float A = 4, B = 0.5f, C = 0.001f;

    private const float Behind = 0.5f;

    /// <summary>How large captured values are.</summary>
    public const float CapturedScale = 0.5f;

    public static UserRule<PlainScore> None { get; } = new(default, null, null);

    public static UserRule<BentScore> Bent { get; } = new(default, new BentFormula(captures: false), Bend);

    public static UserRule<LearnedBentScore> LearnedBent { get; } = new(default, new BentFormula(captures: true), Bend);

    public static UserRule<CoolingScore> Cooling { get; } = new(default, new CoolingFormula(), null);

    public static UserRule<LongScore> Long { get; } = new(default, new LongFormula(), null);

    public readonly struct BentScore : IScoreRule
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
        {
            T bent = A * T.Tanh(B * score + C * at.Distance);
            return T.SelectLess(at.Distance, T.Zero, Behind * bent, bent);
        }
    }

    public readonly struct LearnedBentScore : IScoreRule
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
        {
            T bent = A * T.Tanh(B * score + C * at.Distance + at.Captured0);
            return T.SelectLess(at.Distance, T.Zero, Behind * bent, bent);
        }
    }

    public readonly struct CoolingScore : IScoreRule
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score / (1f + C * T.Abs(at.Distance));
    }

    public readonly struct LongScore : IScoreRule
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
        {
            T reach = C * T.Abs(at.Distance);
            return score * T.Sigmoid(at.Captured0) + T.Softplus(T.Tanh(score)) - T.Log1p(reach) * T.Exp(-reach);
        }
    }

    private static TorchRule Bend(Tensor distances)
    {
        Tensor drift = C * distances, factor = where(distances < 0, A * Behind, A);
        return (scores, captured) =>
        {
            Tensor inner = scores.mul_(B).add_(drift), tanh = (captured is null ? inner : inner.add_(captured)).tanh_();
            return tanh.requires_grad ? tanh * factor : tanh.mul_(factor);
        };
    }

    private sealed class BentFormula(bool captures) : IScoreFormula
    {
        public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => Factor(at) * T.Tanh(Inner(score, at));

        public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>
        {
            T tanh = T.Tanh(Inner(score, at)), slope = Factor(at) * (T.One - tanh * tanh);
            return new(slope * T.CreateTruncating(B), slope);
        }

        private T Inner<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>
        {
            T inner = T.CreateTruncating(B) * score + T.CreateTruncating(C) * at.Distance;
            return captures ? inner + at.Captured0 : inner;
        }

        private static T Factor<T>(in PairPlace<T> at) where T : IFloatingPointIeee754<T> =>
            T.CreateTruncating(at.Distance < T.Zero ? A * Behind : A);
    }

    private sealed class CoolingFormula : IScoreFormula
    {
        public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => score / Heat(at);

        public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T> => new(T.One / Heat(at));

        private static T Heat<T>(in PairPlace<T> at) where T : IFloatingPointIeee754<T> => T.One + T.CreateTruncating(C) * T.Abs(at.Distance);
    }

    private sealed class LongFormula : IScoreFormula
    {
        public T Score<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>
        {
            T reach = T.CreateTruncating(C) * T.Abs(at.Distance);
            return score * Sigmoid(at.Captured0) + T.LogP1(T.Exp(T.Tanh(score))) - T.LogP1(reach) * T.Exp(-reach);
        }

        public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : IFloatingPointIeee754<T>
        {
            T tanh = T.Tanh(score), share = Sigmoid(at.Captured0);
            return new(share + Sigmoid(tanh) * (T.One - tanh * tanh), score * share * (T.One - share));
        }

        private static T Sigmoid<T>(T x) where T : IFloatingPointIeee754<T> => T.One / (T.One + T.Exp(-x));
    }
}
