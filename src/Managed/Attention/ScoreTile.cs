using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Final scores of a part of a tile, and their maxima, straight from the registers of the product.</summary>
/// <typeparam name="THiding">Whether pairs of the part may be hidden.</typeparam>
internal unsafe struct ScoreTile<THiding> : ITileEnd where THiding : struct, IChoice
{
    public float Scale;
    public LaneRows Bias;

    /// <summary>The keys: as the product does, the last one stands for those that are missing of four.</summary>
    public nint Rows;
    public float* Maximum;
    public RowsAhead* Ahead;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V>
    {
        V scale = V.From(Scale);
        float* b0 = Bias.Start + row * Bias.Step + lane, b1 = row + 1 < Rows ? b0 + Bias.Step : b0, b2 = row + 2 < Rows ? b1 + Bias.Step : b1, b3 = row + 3 < Rows ? b2 + Bias.Step : b2;
        s0 = Score(s0, scale, V.Load(b0));
        s1 = Score(s1, scale, V.Load(b1));
        s2 = Score(s2, scale, V.Load(b2));
        s3 = Score(s3, scale, V.Load(b3));
        s0.Store(c);
        s1.Store(c + cStep);
        s2.Store(c + 2 * cStep);
        s3.Store(c + 3 * cStep);
        V highest = V.MaxNative(V.MaxNative(s0, s1), V.MaxNative(s2, s3));
        V.MaxNative(V.Load(Maximum + lane), highest).Store(Maximum + lane);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V> => Ahead->Ask(vectors);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Score<V>(V product, V scale, V bias) where V : struct, ILanes<V>
    {
        V score = V.MultiplyAdd(product, scale, bias), hidden = V.From(float.NegativeInfinity);
        return THiding.Taken ? V.SelectEqual(bias, hidden, hidden, score) : score;
    }
}

/// <summary>Stores a product's sums times a number, and asks for what lies ahead.</summary>
internal unsafe struct ScaledTile : ITileEnd
{
    public float Scale;
    public RowsAhead* Ahead;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V> =>
        default(StoreTile).Column(s0 * Scale, s1 * Scale, s2 * Scale, s3 * Scale, row, lane, c, cStep);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V> => Ahead->Ask(vectors);
}

/// <summary>What a pass over a tile does to scores: the rule, what comes after it, or both.</summary>
internal interface IScoreStep;

internal readonly struct RuleAlone : IScoreStep;

internal readonly struct EndAlone : IScoreStep;

internal readonly struct RuleAndEnd : IScoreStep;

internal readonly struct RuleAndMaxima : IScoreStep;
