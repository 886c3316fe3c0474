using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>What attention is computed of: b batch, h query heads, hk key heads, Sq queries, Sk keys, d head size, dv value size.</summary>
public sealed record AttentionInputs
{
    /// <summary>[b, h, Sq, d].</summary>
    public required Grid<double> Query { get; init; }

    /// <summary>[b, hk, Sk, d]; query head i uses key head i / (h / hk).</summary>
    public required Grid<double> Key { get; init; }

    /// <summary>[b, hk, Sk, dv].</summary>
    public required Grid<double> Value { get; init; }

    /// <summary>1/√d if null.</summary>
    public double? Scale { get; init; }

    /// <summary>Whether a query sees only keys at distance ≤ 0.</summary>
    public bool Causal { get; init; }

    /// <summary>The position of query 0 among the keys; Sk − Sq if null.</summary>
    public int? QueryOffset { get; init; }

    /// <summary>The same for each sequence, in its place.</summary>
    public int[]? QueryOffsets { get; init; }

    /// <summary>ALiBi slopes, [h] or [b, h]: −m·|distance|.</summary>
    public Grid<double>? Slopes { get; init; }

    /// <summary>[h or 1, n], read at distance + centre.</summary>
    public Grid<double>? DistanceBias { get; init; }

    /// <summary>Sk − 1 if null.</summary>
    public int? DistanceCentre { get; init; }

    /// <summary>[buckets, h]: T5's table.</summary>
    public Grid<double>? BucketTable { get; init; }

    /// <summary>The distance from which on T5's last bucket is used.</summary>
    public int MaximumDistance { get; init; } = 128;

    /// <summary>Whether keys ahead have buckets of their own.</summary>
    public bool IsBidirectional { get; init; }

    /// <summary>[(2H − 1)(2W − 1), h], read at the differences of rows and columns in a window of H x W positions: query minus key.</summary>
    public Grid<double>? CellTable { get; init; }

    /// <summary>H.</summary>
    public int WindowHeight { get; init; }

    /// <summary>W.</summary>
    public int WindowWidth { get; init; }

    /// <summary>[b, h, Sq, Sk], any axis may have length 1.</summary>
    public Grid<double>? DenseBias { get; init; }

    /// <summary>[b, h, Sq], any axis may have length 1.</summary>
    public Grid<double>? RowBias { get; init; }

    /// <summary>[b, h, Sk], any axis may have length 1.</summary>
    public Grid<double>? ColumnBias { get; init; }

    /// <summary>[h]: a logit in the denominator without a key.</summary>
    public Grid<double>? Sinks { get; init; }

    /// <summary>[b, h, Sq, Sk], any axis may have length 1: 0 hides the pair.</summary>
    public Grid<double>? Mask { get; init; }

    /// <summary>The keys of each sequence; all if null.</summary>
    public int[]? KeyLengths { get; init; }

    /// <summary>c: scores become c·tanh(score / c) after the formula, before the biases.</summary>
    public double? Softcap { get; init; }

    /// <summary>Applied to the scaled scores, before softcap and biases.</summary>
    public IScoreFormula? Formula { get; init; }

    /// <summary>What the formula reads: at most four.</summary>
    public IReadOnlyList<CapturedValues> Captured { get; init; } = [];
}

/// <summary>How captured values are looked up.</summary>
public enum CapturedBy
{
    /// <summary>[h].</summary>
    Head,
    /// <summary>[h, n] at distance + centre, the ends beyond the ends.</summary>
    HeadAndDistance,
    /// <summary>[h, n] at |distance|, the end beyond the end.</summary>
    HeadAndAbsoluteDistance,
    /// <summary>[b, h, Sq].</summary>
    Query,
    /// <summary>[b, h, Sk].</summary>
    Key,
    /// <summary>[b, h, Sq, Sk].</summary>
    Pair,
}

/// <summary>A tensor that a score formula reads. An axis of length 1 is shared.</summary>
public sealed record CapturedValues(Grid<double> Values, CapturedBy By, int Centre = 0)
{
    /// <summary>Where the value of a pair stands, in the tensor or in its gradient.</summary>
    public ref T At<T>(Grid<T> values, int batch, int head, int query, int key, int distance) where T : INumberBase<T>
    {
        switch (By)
        {
            case CapturedBy.Head: return ref values[head];
            case CapturedBy.HeadAndDistance: return ref values[head, Math.Clamp(distance + Centre, 0, values.Shape[1] - 1)];
            case CapturedBy.HeadAndAbsoluteDistance: return ref values[head, Math.Min(Math.Abs(distance), values.Shape[1] - 1)];
            case CapturedBy.Query: return ref values[batch, head, query];
            case CapturedBy.Key: return ref values[batch, head, key];
            default: return ref values[batch, head, query, key];
        }
    }
}

/// <summary>Output [b, h, Sq, dv] and log-sum-exp [b, h, Sq].</summary>
public sealed record AttentionResult<T>(Grid<T> Output, Grid<T> LogSumExp) where T : INumberBase<T>;

/// <summary>Gradients, each of the shape of its tensor; null where there is no tensor.</summary>
/// <param name="SlopesMagnitude">Σ |terms| of every slope's gradient, which is a sum over all pairs of a head that may cancel.</param>
/// <param name="CapturedMagnitude">The same of the captured tensors' gradients.</param>
public sealed record AttentionGradient<T>(Grid<T> Query, Grid<T> Key, Grid<T> Value, Grid<T>? Slopes, Grid<T>? DistanceBias, IReadOnlyList<Grid<T>> Captured,
    Grid<T>? SlopesMagnitude, IReadOnlyList<Grid<T>> CapturedMagnitude)
    where T : INumberBase<T>
{
    public Grid<T>? BucketTable { get; init; }
    public Grid<T>? CellTable { get; init; }
    public Grid<T>? DenseBias { get; init; }
    public Grid<T>? RowBias { get; init; }
    public Grid<T>? ColumnBias { get; init; }
    public Grid<T>? Sinks { get; init; }

    /// <summary>Σ |terms| of the gradients of both tables, dense, row and column bias, and sinks: their sums may cancel.</summary>
    public Grid<T>? BucketTableMagnitude { get; init; }
    public Grid<T>? CellTableMagnitude { get; init; }
    public Grid<T>? DenseBiasMagnitude { get; init; }
    public Grid<T>? RowBiasMagnitude { get; init; }
    public Grid<T>? ColumnBiasMagnitude { get; init; }
    public Grid<T>? SinksMagnitude { get; init; }
}
