using System.Numerics;
using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>How a rule is evaluated, by its length; see <see cref="FormulaLength"/>.</summary>
/// <remarks>
/// Two vectors in lockstep as long as the JIT inlines all of it, then vector by vector; a long formula operation by operation over <see cref="Strip{V}"/>, unless it is so long that these don't fit.
/// The bounds are measured: with two elementary functions and derivatives strips take a third longer than vectors one by one, with five they take two thirds as long; somewhat further the JIT would
/// call every step, several times as slow.
/// </remarks>
internal readonly struct RuleLength
{
    /// <summary>The most steps in one pass with what comes after the rule, in lockstep, without derivatives and with them, and vector by vector.</summary>
    public const int Brief = 13, Short = 60, ShortDerivative = 40, Middle = 100;

    // What a thread's stack has room for, and the second-level cache. More than an operation takes, at most 10: the logarithm of a sigmoid and the smaller of two numbers.
    private const int MostFloats = 256 * 1024 / sizeof(float), MostOfOperation = 16, MostOperations = 64, LeastRows = 4;

    /// <summary>Whether it is without elementary functions, or as good as: one chain with what comes after it costs less than a pass of its own.</summary>
    public bool IsBrief { get; }

    /// <summary>Whether the JIT inlines it whole for two vectors in lockstep.</summary>
    public bool IsShort { get; }

    /// <summary>Whether it is evaluated over strips.</summary>
    public bool IsLong { get; }

    /// <summary>The most rows of a tile whose strips have room.</summary>
    public nint StripRows { get; }

    /// <summary>The floats that the strips of so many rows take in the widest vectors.</summary>
    public int StripFloats { get; }

    /// <summary>Whether one evaluation gives its slopes by the score and by the captured tensor whose gradient is wanted, if that is one.</summary>
    public bool HasBothSlopes { get; }

    private RuleLength(int steps, int most, int wanted)
    {
        IsBrief = steps <= Brief;
        IsShort = steps <= most;
        HasBothSlopes = IsShort && int.IsPow2(wanted);
    }

    private RuleLength(in SpreadSet<int> strips, int wanted)
    {
        StripRows = AttentionTiles.Keys;
        while (StripRows > LeastRows && FloatsOf(strips, StripRows) > MostFloats)
            StripRows /= 2;
        StripFloats = (int)FloatsOf(strips, StripRows);
        IsLong = StripFloats <= MostFloats;
        HasBothSlopes = IsLong && int.IsPow2(wanted);
    }

    public static RuleLength Of<TRule>(TRule rule) where TRule : unmanaged, IScoreRule => Of(rule, Short, 0, [default]);

    /// <summary>With derivatives.</summary>
    /// <param name="rule">The rule.</param>
    /// <param name="wanted">The captured tensors whose gradients are wanted, a bit each.</param>
    public static RuleLength OfDerivative<TRule>(TRule rule, int wanted) where TRule : unmanaged, IScoreRule
    {
        if (int.IsPow2(wanted))
            return Of(rule, ShortDerivative, wanted, [RuleDirections.ByScoreAnd(BitOperations.TrailingZeroCount(wanted))]);
        Span<RuleDirections> evaluations = stackalloc RuleDirections[1 + CapturedSet.Count];
        int count = 0;
        evaluations[count++] = RuleDirections.ByScore;
        for (int capture = 0; capture < CapturedSet.Count; capture++)
        {
            if ((wanted & 1 << capture) != 0)
                evaluations[count++] = RuleDirections.ByCaptured(capture);
        }
        return Of(rule, ShortDerivative, wanted, evaluations[..count]);
    }

    private static RuleLength Of<TRule>(TRule rule, int most, int wanted, ReadOnlySpan<RuleDirections> evaluations) where TRule : unmanaged, IScoreRule
    {
        int steps = FormulaLength.Of(rule, out int operations);
        return steps <= Middle || operations > MostOperations ? new(steps, most, wanted) : new(StripsOf(rule, operations, evaluations), wanted);
    }

    private static nint FloatsOf(in SpreadSet<int> strips, nint rows) => StripMemory.FloatsOf<Lanes512>(strips, rows);

    // A formula is straight-line code: one evaluation of a row in the narrowest strips takes the strips that every other takes at most, in the same directions, at the most general place.
    [SkipLocalsInit]
    private static unsafe SpreadSet<int> StripsOf<TRule>(TRule rule, int operations, ReadOnlySpan<RuleDirections> evaluations) where TRule : unmanaged, IScoreRule
    {
        nint lanes = AttentionTiles.Block<Real32>();
        SpreadSet<int> room = default, most = default;
        room[(int)Spread.ByPair] = (1 + operations) * MostOfOperation;
        nint floats = StripMemory.FloatsOf<Real32>(room, 1);
        float* memory = stackalloc float[(int)floats], numbers = stackalloc float[(int)lanes];
        new Span<float>(numbers, (int)lanes).Clear();
        StripMemory evaluation;
        foreach (RuleDirections directions in evaluations)
        {
            StripMemory.Begin<Real32>(&evaluation, memory, floats, 1, lanes);
            Strip<Real32> score = Strip<Real32>.At(numbers, Spread.ByPair);
            var place = new PlaceStrips<Real32>(numbers);
            if (directions.HasSome)
                directions.Score(rule, score, place);
            else
                rule.Score(score, place.Values);
            for (int spread = 0; spread <= (int)Spread.ByPair; spread++)
                most[spread] = Math.Max(most[spread], evaluation.Taken[spread]);
        }
        return most;
    }
}

/// <summary>What a long rule is differentiated by in one evaluation: nothing, one thing, or the score and a captured tensor.</summary>
internal readonly struct RuleDirections
{
    // What changes in each of the two directions, a bit each: the score, then the captured tensors. The same where both are one.
    private readonly int first, second;

    private RuleDirections(int first, int second)
    {
        this.first = first;
        this.second = second;
    }

    public static RuleDirections ByScore => new(1, 1);

    public static RuleDirections ByCaptured(int capture) => new(2 << capture, 2 << capture);

    public static RuleDirections ByScoreAnd(int capture) => new(1, 2 << capture);

    public bool HasSome => first != 0;

    /// <summary>The rule on strips, with its slopes.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public Dual<Strip<V>> Score<TRule, V>(TRule rule, Strip<V> score, in PlaceStrips<V> place) where TRule : unmanaged, IScoreRule where V : struct, ILanes<V>
    {
        Strip<V> none = Strip<V>.Zero, one = Strip<V>.One;
        return rule.Score(new(score, By(0, one)), new ScorePlace<Dual<Strip<V>>>
        {
            QueryPosition = new(place.QueryPosition, none),
            KeyPosition = new(place.KeyPosition, none),
            Head = new(place.Head, none),
            Batch = new(place.Batch, none),
            Captured0 = new(place.Captured0, By(1, one)),
            Captured1 = new(place.Captured1, By(2, one)),
            Captured2 = new(place.Captured2, By(3, one)),
            Captured3 = new(place.Captured3, By(4, one)),
        });
    }

    private Strip<V> By<V>(int bit, Strip<V> one) where V : struct, ILanes<V> => Strip<V>.Both((first >> bit & 1) != 0 ? one : Strip<V>.Zero, (second >> bit & 1) != 0 ? one : Strip<V>.Zero);
}

/// <summary>What a rule sees on some rows of a tile, as strips.</summary>
internal readonly unsafe ref struct PlaceStrips<V> where V : struct, ILanes<V>
{
    // A number that no operation leaves out.
    private const float Some = 2;

    public readonly Strip<V> QueryPosition, KeyPosition, Head, Batch, Captured0, Captured1, Captured2, Captured3;

    /// <summary>Of as many rows and lanes as the evaluation has that was begun.</summary>
    /// <param name="tensors">The captured values.</param>
    /// <param name="tile">The tile.</param>
    /// <param name="row">The first key, counted from the tile's.</param>
    /// <param name="lane">The first query, counted from the block's.</param>
    public PlaceStrips(in PairTensors tensors, in RuleTile tile, nint row, nint lane) : this(tile.FirstQuery + lane, tile.FirstKey + row, tile.Head, tile.Batch)
    {
        Captured0 = Of(tensors[0], tile, tile.Captured0, row, lane);
        Captured1 = Of(tensors[1], tile, tile.Captured1, row, lane);
        Captured2 = Of(tensors[2], tile, tile.Captured2, row, lane);
        Captured3 = Of(tensors[3], tile, tile.Captured3, row, lane);
    }

    /// <summary>The most general place: what is computed of it takes at least as many strips as of any other, each at least as large.</summary>
    /// <param name="numbers">A value a pair, of every captured tensor.</param>
    public PlaceStrips(float* numbers) : this(0, 0, Some, Some)
    {
        Captured0 = Strip<V>.At(numbers, Spread.ByPair);
        Captured1 = Strip<V>.At(numbers, Spread.ByPair);
        Captured2 = Strip<V>.At(numbers, Spread.ByPair);
        Captured3 = Strip<V>.At(numbers, Spread.ByPair);
    }

    private PlaceStrips(float firstQuery, float firstKey, float head, float batch)
    {
        QueryPosition = Strip<V>.Positions(Spread.ByQuery, firstQuery);
        KeyPosition = Strip<V>.Positions(Spread.ByKey, firstKey);
        Head = Strip<V>.From(head);
        Batch = Strip<V>.From(batch);
    }

    /// <summary>What a rule sees that isn't differentiated.</summary>
    public ScorePlace<Strip<V>> Values => new()
    {
        QueryPosition = QueryPosition,
        KeyPosition = KeyPosition,
        Head = Head,
        Batch = Batch,
        Captured0 = Captured0,
        Captured1 = Captured1,
        Captured2 = Captured2,
        Captured3 = Captured3,
    };

    private static Strip<V> Of(in Captured tensor, in RuleTile tile, LaneRows lanes, nint row, nint lane)
    {
        float* from = lanes.At(row) + lane;
        return !tensor.IsPresent ? Strip<V>.From(0) : tensor.Structure switch
        {
            CapturedStructure.PerHead => Strip<V>.From(*from),
            CapturedStructure.PerQuery => Strip<V>.At(from, Spread.ByQuery),
            CapturedStructure.PerKey => Strip<V>.Keys(tensor.At(tile.Batch, tile.Head, 0, tile.FirstKey + row, 0), tensor.KeyStep),
            CapturedStructure.Dense => Strip<V>.Rows(from, lanes.Step),
            _ => Strip<V>.Line(from),
        };
    }
}
