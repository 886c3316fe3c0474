namespace TransformerKernels.Tests;

/// <summary>Scores halved between neighbours and doubled at distance two.</summary>
public readonly struct Checkerboard : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T distance = T.Abs(at.Distance);
        return T.SelectEqual(distance, T.One, 0.5f * score, T.SelectEqual(distance, T.From(2), 2f * score, score));
    }
}

/// <summary>s².</summary>
public readonly struct SquaredScore : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score * score;
}

/// <summary>s, an eighth of it below 0.</summary>
public readonly struct LeakyScore : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => T.SelectLess(score, T.Zero, 0.125f * score, score);
}

/// <summary>s times a learned temperature, Captured0.</summary>
public readonly struct LearnedTemperature : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score * at.Captured0;
}

/// <summary>s·gain·ln(p + 2), the learned gain being Captured0.</summary>
public readonly struct LogLength : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score * at.Captured0 * T.Log(at.QueryPosition + 2f);
}

/// <summary>s + gate·b: a bias by distance, Captured1, times a number of the query's, Captured0.</summary>
public readonly struct GatedBias : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score + at.Captured0 * at.Captured1;
}

/// <summary>Hides keys of another group: Captured0 is the query's, Captured1 the key's.</summary>
public readonly struct OwnGroup : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => T.SelectEqual(at.Captured0, at.Captured1, score, T.From(float.NegativeInfinity));
}

/// <summary>Hides keys ahead, but those of the query's own group.</summary>
public readonly struct EarlierOrOwnGroup : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> =>
        T.SelectEqual(at.Captured0, at.Captured1, score, T.SelectLess(T.Zero, at.Distance, T.From(float.NegativeInfinity), score));
}

/// <summary>s − m·|position − position|: Captured0 and Captured1 are the positions of query and key, Captured2 the slope m.</summary>
public readonly struct SlopedPositions : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score - at.Captured2 * T.Abs(at.Captured0 - at.Captured1);
}

/// <summary>s + c − c' for keys behind, s + d' − d for keys ahead: c and d are the query's, Captured0 and Captured2; c' and d' the key's, Captured1 and Captured3.</summary>
public readonly struct TwoSidedGates : IScoreRule
{
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> =>
        score + T.SelectLess(T.Zero, at.Distance, at.Captured3 - at.Captured2, at.Captured0 - at.Captured1);
}
