using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>What the values of a strip depend on. Where that is less than the pair there are fewer of them than pairs.</summary>
internal enum Spread
{
    /// <summary>On nothing: two vectors of one number.</summary>
    Constant,
    /// <summary>A value a row.</summary>
    ByKey,
    /// <summary>A value a lane.</summary>
    ByQuery,
    /// <summary>A value a distance: the lanes of the last row begin at the first one, those of each row before a float later. See <see cref="ScoreLine"/>.</summary>
    ByDistance = 4,
    /// <summary>A value a pair, row behind row.</summary>
    ByPair = 7,
}

internal static class Spreads
{
    /// <summary>What depends on two things at once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Spread Join(Spread a, Spread b)
    {
        Spread both = a | b;
        return (both & (both - 1)) == 0 ? both : Spread.ByPair;
    }
}

/// <summary>The values of a strip in one direction: where they lie, and how an operation goes through them, two vectors at a time.</summary>
internal unsafe struct StripValues
{
    public StripMemory* Memory;

    public float* Start;

    /// <summary>Where the first row begins; null for values by key that aren't written out yet, two vectors a row.</summary>
    public float* Rows;

    /// <summary>How far it is from two vectors to the next two: where all that is computed lies alike, and within a row. And what comes on top from row to row.</summary>
    public nint FlatStep, Step, RowStep;

    public Spread Spread;

    /// <summary>A constant's number, if it is 1 or was given; the first of positions.</summary>
    public float Number;

    public bool ArePositions, IsPacked;

    public readonly bool AreOne => Spread == Spread.Constant && Number == 1;
}

/// <summary>Something for each spread.</summary>
[InlineArray((int)Spread.ByPair + 1)]
internal struct SpreadSet<T>
{
    private T first;
}

/// <summary>Where the strips of an evaluation lie: memory that it takes in order, and the next one takes again. One that takes more than there is is refused before it is written.</summary>
internal unsafe struct StripMemory
{
    // A cache line.
    private const int Line = 16;

    private static int ValuesFloats => sizeof(StripValues) / sizeof(float);

    [ThreadStatic]
    private static StripMemory* current;

    private float* next, end;
    private SpreadSet<Way> ways;
    private SpreadSet<int> taken;

    // How the values of a spread lie: what every strip of it begins as.
    private struct Way
    {
        public nint Floats, WrittenOut, FirstRow;
        public StripValues Values;
    }

    /// <summary>The evaluation that runs on this thread.</summary>
    public static StripMemory* Current => current;

    /// <summary>The rows of the tile.</summary>
    public nint Rows { get; private set; }

    /// <summary>The lanes of a row.</summary>
    public nint Lanes { get; private set; }

    /// <summary>0: what stands for nothing where an operation needs a number.</summary>
    public StripValues* Nothing { get; private set; }

    /// <summary>How many strips were taken of each spread.</summary>
    public readonly SpreadSet<int> Taken => taken;

    /// <summary>Begins an evaluation of a formula on this thread.</summary>
    /// <param name="place">Its state; it stays there until the formula is evaluated.</param>
    /// <param name="memory">The memory.</param>
    /// <param name="floats">Its length, of <see cref="FloatsOf"/>.</param>
    /// <param name="rows">The rows.</param>
    /// <param name="lanes">Whole pairs of vectors.</param>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void Begin<V>(StripMemory* place, float* memory, nint floats, nint rows, nint lanes) where V : struct, ILanes<V>
    {
        Lay<V>(place, rows, lanes);
        place->next = memory;
        place->end = memory + floats;
        place->Nothing = place->Take(Spread.Constant);
        Lockstep<V>.Zero.Store(place->Nothing->Start);
        current = place;
    }

    private static void Lay<V>(StripMemory* place, nint rows, nint lanes) where V : struct, ILanes<V>
    {
        nint pair = 2 * V.Count;
        *place = new() { Rows = rows, Lanes = lanes };
        Lay(place, Spread.Constant, pair, 0, 0, 0);
        Lay(place, Spread.ByKey, (nint)AttentionTiles.RoundUp(rows, pair), pair, 0, pair);
        Lay(place, Spread.ByQuery, lanes, pair, pair, -lanes);
        Lay(place, Spread.ByDistance, (nint)AttentionTiles.RoundUp(lanes + rows - 1, pair), pair, pair, -lanes - 1);
        Lay(place, Spread.ByPair, rows * lanes, pair, pair, 0);
        place->ways[(int)Spread.ByKey].WrittenOut = rows * pair;
        place->ways[(int)Spread.ByDistance].FirstRow = rows - 1;
    }

    private static void Lay(StripMemory* place, Spread spread, nint floats, nint flatStep, nint step, nint rowStep)
    {
        ref Way way = ref place->ways[(int)spread];
        way.Floats = floats;
        way.Values = new() { Memory = place, FlatStep = flatStep, Step = step, RowStep = rowStep, Spread = spread, IsPacked = true };
    }

    /// <summary>The floats of memory that so many strips of so many rows take at most.</summary>
    public static nint FloatsOf<V>(in SpreadSet<int> strips, nint rows) where V : struct, ILanes<V>
    {
        StripMemory place;
        Lay<V>(&place, rows, AttentionTiles.Block<V>());
        // The score, and captured values: at most a line or a value a key each.
        nint floats = ValuesFloats + CapturedSet.Count * Math.Max(place.FloatsOf(Spread.ByKey), place.FloatsOf(Spread.ByDistance));
        for (int spread = 0; spread <= (int)Spread.ByPair; spread++)
            floats += strips[spread] * place.FloatsOf((Spread)spread);
        return floats;
    }

    private readonly nint FloatsOf(Spread spread) => ValuesFloats + ways[(int)spread].Floats + ways[(int)spread].WrittenOut;

    /// <summary>So many floats, and room to move them to where <see cref="Align"/> says: two vectors then lie in as few cache lines as they can.</summary>
    public static int Aligned(int floats) => floats + Line;

    /// <summary>The first address from here on where a cache line begins.</summary>
    public static float* Align(float* memory) => (float*)(((nint)memory + Line * sizeof(float) - 1) & -(Line * sizeof(float)));

    /// <summary>The floats of a strip, in whole pairs of vectors.</summary>
    public readonly nint Floats(Spread spread) => ways[(int)spread].Floats;

    /// <summary>Room for a strip.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public StripValues* Take(Spread spread)
    {
        taken[(int)spread]++;
        return TakeNext(spread);
    }

    /// <summary>Room for what is given to a formula.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public StripValues* TakeGiven(Spread spread) => TakeNext(spread);

    /// <summary>Values that lie in memory.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public StripValues* Place(float* start, Spread spread) => Place(start, spread, 0);

    // The values, and so many floats behind.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private StripValues* Place(float* start, Spread spread, nint floats)
    {
        ref readonly Way way = ref ways[(int)spread];
        var values = (StripValues*)next;
        next += ValuesFloats + floats;
        if (next > end)
            Overrun();
        *values = way.Values;
        values->Start = start;
        if (spread != Spread.ByKey)
            values->Rows = start + way.FirstRow;
        return values;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private StripValues* TakeNext(Spread spread) => Place(next + ValuesFloats, spread, ways[(int)spread].Floats + ways[(int)spread].WrittenOut);

    [DoesNotReturn]
    private static void Overrun() => throw new InvalidOperationException("A rule took more steps on some pairs than on others. It must be the same formula each time: what it does may depend on its fields alone.");
}
