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

    // What a thread's stack has room for, and the second-level cache. What an operation takes at most, the logarithm of a sigmoid and the smaller of two numbers.
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

    /// <summary>Whether one evaluation gives its slopes by the score and by a captured tensor, of so many whose gradients are wanted.</summary>
    public bool HasBothSlopes(int wanted) => wanted == 1 && (IsShort || IsLong);

    private RuleLength(int steps, int most)
    {
        IsBrief = steps <= Brief;
        IsShort = steps <= most;
    }

    private RuleLength(in SpreadSet<int> strips)
    {
        StripRows = AttentionTiles.Keys;
        while (StripRows > LeastRows && FloatsOf(strips, StripRows) > MostFloats)
            StripRows /= 2;
        StripFloats = (int)FloatsOf(strips, StripRows);
        IsLong = StripFloats <= MostFloats;
    }

    public static RuleLength Of<TRule>(TRule rule) where TRule : unmanaged, IScoreRule => Of(rule, Short, withDerivatives: false);

    /// <summary>With derivatives.</summary>
    public static RuleLength OfDerivative<TRule>(TRule rule) where TRule : unmanaged, IScoreRule => Of(rule, ShortDerivative, withDerivatives: true);

    private static RuleLength Of<TRule>(TRule rule, int most, bool withDerivatives) where TRule : unmanaged, IScoreRule
    {
        int steps = FormulaLength.Of(rule, out int operations);
        return steps <= Middle || operations > MostOperations ? new(steps, most) : new(StripsOf(rule, operations, withDerivatives));
    }

    private static nint FloatsOf(in SpreadSet<int> strips, nint rows) => StripMemory.FloatsOf<Lanes512>(strips, rows);

    // A formula is straight-line code: one evaluation of a row in the narrowest strips, captured values being of all pairs, takes the strips that every other takes at most. Derivatives are taken by
    // the score and, in a second direction, by all captured values.
    private static unsafe SpreadSet<int> StripsOf<TRule>(TRule rule, int operations, bool withDerivatives) where TRule : unmanaged, IScoreRule
    {
        nint lanes = AttentionTiles.Block<Real32>();
        SpreadSet<int> most = default;
        most[(int)Spread.ByPair] = (1 + operations) * MostOfOperation;
        float* memory = stackalloc float[(int)StripMemory.FloatsOf<Real32>(most, 1)], number = stackalloc float[(int)lanes];
        new Span<float>(number, (int)lanes).Clear();
        StripMemory evaluation;
        StripMemory.Begin<Real32>(&evaluation, memory, 1, lanes);
        Strip<Real32> value = Strip<Real32>.At(number, Spread.ByPair), one = Strip<Real32>.One, none = Strip<Real32>.Zero;
        Strip<Real32> query = Strip<Real32>.Positions(Spread.ByQuery, 0), key = Strip<Real32>.Positions(Spread.ByKey, 0);
        if (withDerivatives)
        {
            Dual<Strip<Real32>> captured = new(value, Strip<Real32>.Both(none, one)), head = new(one, none);
            rule.Score(new(value, Strip<Real32>.Both(one, none)), new ScorePlace<Dual<Strip<Real32>>>
            {
                QueryPosition = new(query, none), KeyPosition = new(key, none), Head = head, Batch = head, Captured0 = captured, Captured1 = captured, Captured2 = captured, Captured3 = captured,
            });
        }
        else
        {
            rule.Score(value, new ScorePlace<Strip<Real32>>
            {
                QueryPosition = query, KeyPosition = key, Head = one, Batch = one, Captured0 = value, Captured1 = value, Captured2 = value, Captured3 = value,
            });
        }
        return evaluation.Taken;
    }
}

/// <summary>What a rule sees on some rows of a tile, as strips.</summary>
internal readonly unsafe ref struct PlaceStrips<V> where V : struct, ILanes<V>
{
    public readonly Strip<V> QueryPosition, KeyPosition, Head, Batch, Captured0, Captured1, Captured2, Captured3;

    /// <summary>Of as many rows and lanes as the evaluation has that was begun.</summary>
    /// <param name="tensors">The captured values.</param>
    /// <param name="tile">The tile.</param>
    /// <param name="row">The first key, counted from the tile's.</param>
    /// <param name="lane">The first query, counted from the block's.</param>
    public PlaceStrips(in PairTensors tensors, in RuleTile tile, nint row, nint lane)
    {
        QueryPosition = Strip<V>.Positions(Spread.ByQuery, tile.FirstQuery + lane);
        KeyPosition = Strip<V>.Positions(Spread.ByKey, tile.FirstKey + row);
        Head = Strip<V>.From(tile.Head);
        Batch = Strip<V>.From(tile.Batch);
        Captured0 = Values(tensors[0], tile, tile.Captured0, row, lane);
        Captured1 = Values(tensors[1], tile, tile.Captured1, row, lane);
        Captured2 = Values(tensors[2], tile, tile.Captured2, row, lane);
        Captured3 = Values(tensors[3], tile, tile.Captured3, row, lane);
    }

    private static Strip<V> Values(in Captured tensor, in RuleTile tile, LaneRows lanes, nint row, nint lane)
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
