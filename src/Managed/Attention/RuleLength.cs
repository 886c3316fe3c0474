namespace TransformerKernels;

/// <summary>How a rule is evaluated, by its length; see <see cref="FormulaLength"/>.</summary>
/// <remarks>
/// Two vectors in lockstep as long as the JIT inlines all of it, then vector by vector; a long formula operation by operation over <see cref="Strip{V}"/>, unless it is so long that these don't fit.
/// The bounds are measured: with five elementary functions both take about as long, strips a tenth less with derivatives; somewhat further the JIT calls every step, several times as slow.
/// </remarks>
internal readonly struct RuleLength
{
    /// <summary>The most steps in lockstep and vector by vector, without derivatives and with them.</summary>
    public const int Short = 60, Middle = 150, ShortDerivative = 40, MiddleDerivative = 100;

    // Strips of a kilobyte in the widest vectors: what a thread's stack has room for. What an operation takes at most, the logarithm of a sigmoid and the smaller of two numbers.
    private const int MostStrips = 160, MostOfOperation = 16, MostOperations = 64;

    /// <summary>Whether the JIT inlines it whole for two vectors in lockstep.</summary>
    public bool IsShort { get; }

    /// <summary>The strips that it takes; 0 if it isn't evaluated so.</summary>
    public int Strips { get; }

    private RuleLength(bool isShort, int strips)
    {
        IsShort = isShort;
        Strips = strips > MostStrips ? 0 : strips;
    }

    public static RuleLength Of<TRule>(TRule rule) where TRule : unmanaged, IScoreRule => Of(rule, Short, Middle);

    /// <summary>With derivatives.</summary>
    public static RuleLength OfDerivative<TRule>(TRule rule) where TRule : unmanaged, IScoreRule => Of(rule, ShortDerivative, MiddleDerivative);

    private static RuleLength Of<TRule>(TRule rule, int most, int mostByVectors) where TRule : unmanaged, IScoreRule
    {
        int steps = FormulaLength.Of(rule, out int operations);
        return new(steps <= most, steps <= mostByVectors || operations > MostOperations ? 0 : StripsOf(rule, operations));
    }

    // A formula is straight-line code: one evaluation in the narrowest strips, with two directions, takes what every other takes at most.
    private static unsafe int StripsOf<TRule>(TRule rule, int operations) where TRule : unmanaged, IScoreRule
    {
        int length = Strip<Real32>.Length;
        float* numbers = stackalloc float[(2 + operations * MostOfOperation) * length], memory = numbers + 2 * length;
        new Span<float>(numbers, 2 * length).Clear();
        Strip<Real32> value = Strip<Real32>.At(numbers), slope = Strip<Real32>.At(numbers, 2);
        Dual<Strip<Real32>> constant = new(value, Strip<Real32>.Zero), varying = new(value, slope);
        StripMemory.Begin(memory);
        rule.Score(varying, new ScorePlace<Dual<Strip<Real32>>>
        {
            QueryPosition = constant, KeyPosition = constant, Head = constant, Batch = constant, Captured0 = varying, Captured1 = varying, Captured2 = varying, Captured3 = varying,
        });
        return (StripMemory.TakenSince(memory) + length - 1) / length;
    }
}

/// <summary>What a rule sees on some rows of a tile, as strips.</summary>
internal unsafe struct PlaceStrips<V> where V : struct, ILanes<V>
{
    /// <summary>The strips of memory that it takes.</summary>
    public const int Strips = 2 + CapturedSet.Count;

    public Strip<V> QueryPosition, KeyPosition, Head, Batch, Captured0, Captured1, Captured2, Captured3;

    private float* memory;

    /// <summary>What all rows of the tile share.</summary>
    public void Begin(in RuleTile tile, float* memory)
    {
        nint block = AttentionTiles.Block<V>();
        this.memory = memory;
        for (nint at = 0; at < Strip<V>.Length; at += V.Count)
            V.Iota(tile.FirstQuery + at % block).Store(memory + at);
        QueryPosition = Strip<V>.At(memory);
        Head = Strip<V>.From(tile.Head);
        Batch = Strip<V>.From(tile.Batch);
    }

    /// <summary>Those from <paramref name="row"/> on.</summary>
    public void Take(in RuleTile tile, nint row)
    {
        nint block = AttentionTiles.Block<V>();
        float* keys = memory + Strip<V>.Length;
        for (nint at = 0; at < Strip<V>.Length; at += V.Count)
            V.From(tile.FirstKey + row + at / block).Store(keys + at);
        KeyPosition = Strip<V>.At(keys);
        Captured0 = Rows(tile.Captured0, row, 2);
        Captured1 = Rows(tile.Captured1, row, 3);
        Captured2 = Rows(tile.Captured2, row, 4);
        Captured3 = Rows(tile.Captured3, row, 5);
    }

    // Where the rows of a tensor lie together they are taken from there. Beyond the tile's last row the values mean nothing.
    private readonly Strip<V> Rows(LaneRows lanes, nint row, int strip)
    {
        nint block = AttentionTiles.Block<V>();
        if (lanes.Step == block)
            return Strip<V>.At(lanes.At(row));
        float* to = memory + strip * Strip<V>.Length;
        for (nint at = 0; at < Strip<V>.Length; at += V.Count)
            V.Load(lanes.At(row + at / block) + at % block).Store(to + at);
        return Strip<V>.At(to);
    }
}
