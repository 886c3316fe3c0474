using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>What bounds scores after the rule, if anything does.</summary>
internal interface ICap
{
    /// <summary>Whether it does anything.</summary>
    static abstract bool Caps { get; }

    /// <summary>The bounded score. −∞ stays −∞, for it hides the pair.</summary>
    V Score<V>(V score) where V : struct, ILanes<V>;

    /// <summary>The bounded score, and its derivative by what the rule says.</summary>
    V Score<V>(V score, out V slope) where V : struct, ILanes<V>;
}

/// <summary>No bound.</summary>
internal readonly struct Uncapped : ICap
{
    public static bool Caps => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public V Score<V>(V score) where V : struct, ILanes<V> => score;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public V Score<V>(V score, out V slope) where V : struct, ILanes<V>
    {
        slope = V.One;
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
    public V Score<V>(V score) where V : struct, ILanes<V>
    {
        V none = V.From(float.NegativeInfinity);
        return V.SelectEqual(score, none, none, cap * V.Tanh(score * factor));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public V Score<V>(V score, out V slope) where V : struct, ILanes<V>
    {
        V none = V.From(float.NegativeInfinity);
        return V.SelectEqual(score, none, none, cap * V.Tanh(score * factor, out slope));
    }
}

/// <summary>Softcapping of what a rule says, as one rule: for derivatives by several captured tensors, which take the rule more than once.</summary>
internal readonly struct SoftcappedScore<TRule>(float cap, TRule inner) : IScoreRule where TRule : unmanaged, IScoreRule
{
    // A multiplication a pair instead of a division, and of its derivative another.
    private readonly float perCap = 1 / cap;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T ruled = inner.Score(score, at), none = T.From(float.NegativeInfinity);
        return T.SelectEqual(ruled, none, none, cap * T.Tanh(perCap * ruled));
    }
}
