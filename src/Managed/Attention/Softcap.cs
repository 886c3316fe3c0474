using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>What bounds scores after the rule, if anything does.</summary>
internal interface ICap
{
    /// <summary>Whether it does anything.</summary>
    static abstract bool Caps { get; }

    /// <summary>The bounded score. Of −∞, which hides the pair, it may be anything.</summary>
    T Score<T>(T score) where T : struct, IReal<T>;

    /// <summary>The bounded score, where −∞ stays −∞, and its derivative by what the rule says.</summary>
    T Score<T>(T score, out T slope) where T : struct, IReal<T>;
}

/// <summary>No bound.</summary>
internal readonly struct Uncapped : ICap
{
    public static bool Caps => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score) where T : struct, IReal<T> => score;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, out T slope) where T : struct, IReal<T>
    {
        slope = T.One;
        return score;
    }
}

/// <summary>Softcapping: c·tanh(score / c), whose slope is tanh's.</summary>
/// <param name="cap">c.</param>
/// <param name="scale">What the score is multiplied by first.</param>
internal readonly struct Softcapped(float cap, float scale) : ICap
{
    private readonly float factor = scale / cap;

    public static bool Caps => true;

    /// <summary>The cap of what a rule says, or of q·k where there is no rule.</summary>
    public static Softcapped After<TRule>(float cap, in AttentionShape shape) where TRule : unmanaged, IScoreRule => new(cap, typeof(TRule) == typeof(PlainScore) ? shape.Scale : 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score) where T : struct, IReal<T> => cap * T.Tanh(score * factor);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, out T slope) where T : struct, IReal<T>
    {
        T none = T.From(float.NegativeInfinity);
        return T.SelectEqual(score, none, none, cap * T.Tanh(score * factor, out slope));
    }
}

/// <summary>Softcapping of what a rule says, as one rule: for derivatives by several captured tensors, which take the rule more than once.</summary>
internal readonly struct SoftcappedScore<TRule>(float cap, TRule inner) : IScoreRule where TRule : unmanaged, IScoreRule
{
    private readonly Softcapped softcap = new(cap, 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T ruled = inner.Score(score, at), none = T.From(float.NegativeInfinity);
        return T.SelectEqual(ruled, none, none, softcap.Score(ruled));
    }
}
