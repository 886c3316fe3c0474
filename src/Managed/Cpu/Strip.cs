using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A number of a long formula: some rows of a tile, in memory. Every step is a call that takes all of them through one operation.</summary>
/// <remarks>
/// A long formula in one piece is more than the JIT inlines, and one long chain of instructions that wait for each other. Step by step over many vectors, each step keeps the processor busy,
/// and a formula may be as long as it likes; what that costs is a load and a store a step, and forty cycles a call.
/// <para>
/// What doesn't depend on the pair isn't computed pair by pair: a strip knows its <see cref="Spread"/>, and an operation computes as many values as its operands together have. The distance of
/// 64 queries and 32 keys has 95 values, not 2048. The functions are lane by lane, so that a value has the same bits wherever it is computed.
/// </para>
/// <para>
/// A derivative may have two directions; a value counts for both. Where there is no derivative nothing is computed: <see cref="Zero"/> times anything is <see cref="Zero"/>, and
/// <see cref="One"/> times anything is that.
/// </para>
/// </remarks>
internal readonly unsafe struct Strip<V> : IReal<Strip<V>> where V : struct, ILanes<V>
{
    // In the two directions; null where there is nothing, the same where both are one.
    private readonly StripValues* first, second;

    private Strip(StripValues* values) : this(values, values)
    {
    }

    private Strip(StripValues* first, StripValues* second)
    {
        this.first = first;
        this.second = second;
    }

    /// <summary>Values that lie in memory, as many as <see cref="StripMemory.Floats"/> says.</summary>
    public static Strip<V> At(float* start, Spread spread) => new(StripMemory.Current->Place(start, spread));

    /// <summary>Values pair by pair whose rows lie so far from each other.</summary>
    public static Strip<V> Rows(float* start, nint step)
    {
        StripValues* values = StripMemory.Current->Place(start, Spread.ByPair);
        values->RowStep = step - StripMemory.Current->Lanes;
        values->IsPacked = values->RowStep == 0;
        return new(values);
    }

    /// <summary>Values by key, copied from where they lie so far from each other.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static Strip<V> Keys(float* start, nint step)
    {
        StripValues* values = StripMemory.Current->TakeGiven(Spread.ByKey);
        nint rows = StripMemory.Current->Rows, floats = StripMemory.Current->Floats(Spread.ByKey);
        for (nint row = 0; row < rows; row++)
            values->Start[row] = start[row * step];
        for (nint row = rows; row < floats; row++)
            values->Start[row] = values->Start[rows - 1];
        return new(values);
    }

    /// <summary>Values by distance, copied from a <see cref="ScoreLine"/>. Of what follows its last value nothing is read.</summary>
    /// <param name="start">Where the lanes of the first row begin.</param>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static Strip<V> Line(float* start)
    {
        StripValues* values = StripMemory.Current->TakeGiven(Spread.ByDistance);
        nint before = StripMemory.Current->Rows - 1, last = StripMemory.Current->Lanes + before - V.Count;
        for (nint at = 0; at < StripMemory.Current->Floats(Spread.ByDistance); at += V.Count)
            V.Load(start - before + Math.Min(at, last)).Store(values->Start + at);
        V.Load(start - before + last).Store(values->Start + last);
        return new(values);
    }

    /// <summary>Positions of keys or queries, which count up from the first: their difference is <see cref="Spread.ByDistance"/>.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static Strip<V> Positions(Spread spread, float first)
    {
        StripValues* values = StripMemory.Current->Take(spread);
        values->Number = first;
        values->ArePositions = true;
        for (nint at = 0; at < StripMemory.Current->Floats(spread); at += V.Count)
            V.Iota(first + at).Store(values->Start + at);
        return new(values);
    }

    /// <summary>A derivative in two directions.</summary>
    public static Strip<V> Both(Strip<V> first, Strip<V> second) => new(first.first, second.first);

    /// <summary>Writes the values of a direction pair by pair.</summary>
    /// <param name="destination">Where the lanes of the first row go.</param>
    /// <param name="step">The distance from row to row.</param>
    /// <param name="direction">0 or 1.</param>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public void CopyTo(float* destination, nint step, int direction = 0)
    {
        StripValues* a = Given(direction == 0 ? first : second);
        float* x = RowsOf(a);
        nint rows = a->Memory->Rows, lanes = a->Memory->Lanes, stepX = a->Step, rowX = a->RowStep;
        for (nint row = 0; row < rows; row++, destination += step, x += rowX)
        {
            for (nint lane = 0; lane < lanes; lane += 2 * V.Count, x += stepX)
                Lockstep<V>.Load(x).Store(destination + lane);
        }
    }

    /// <summary>Where the values lie in rows of lanes: their own if they have such, else written where they are told.</summary>
    /// <param name="destination">Where the lanes of the first row go.</param>
    /// <param name="step">The distance from row to row.</param>
    public LaneRows InLanes(float* destination, nint step)
    {
        StripValues* a = Given(first);
        if (a->Step != 0)
            return new() { Start = a->Rows, Step = a->Memory->Lanes + a->RowStep };
        CopyTo(destination, step);
        return new() { Start = destination, Step = step };
    }

    // Where an operation over rows begins. Values by key are written out for it, once.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static float* RowsOf(StripValues* values)
    {
        if (values->Rows != null)
            return values->Rows;
        values->Rows = values->Start + values->Memory->Floats(Spread.ByKey);
        for (nint row = 0; row < values->Memory->Rows; row++)
            Lockstep<V>.From(values->Start[row]).Store(values->Rows + row * values->RowStep);
        return values->Rows;
    }

    private static StripValues* Given(StripValues* values) => values != null ? values : StripMemory.Current->Nothing;

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* Constant(float number)
    {
        StripValues* values = StripMemory.Current->Take(Spread.Constant);
        values->Number = number;
        Lockstep<V>.From(number).Store(values->Start);
        return values;
    }

    // Whether an operation needn't count rows: all that it takes lies as what it gives, or is a constant.
    private static bool IsFlat(StripValues* operand, Spread result) => operand->Spread == Spread.Constant || (operand->Spread == result && operand->IsPacked);

    // So many vectors at a time.
    private const int SoftplusVectors = 32;

    private interface IStep
    {
        static abstract W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W>;
    }

    private interface IFunction
    {
        static abstract W Take<W>(W x, out W slope) where W : struct, ILanes<W>;
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* Take<TStep>(StripValues* a) where TStep : struct, IStep
    {
        StripMemory* memory = a->Memory;
        StripValues* taken = memory->Take(a->Spread);
        bool isFlat = IsFlat(a, a->Spread);
        float* x = isFlat ? a->Start : a->Rows, to = taken->Start, end = to + memory->Floats(a->Spread);
        nint width = isFlat ? memory->Floats(a->Spread) : memory->Lanes, stepX = isFlat ? a->FlatStep : a->Step, rowX = a->RowStep;
        for (; to < end; x += rowX)
        {
            for (float* rowEnd = to + width; to < rowEnd; to += 2 * V.Count, x += stepX)
                TStep.Take(Lockstep<V>.Load(x), default, default, default).Store(to);
        }
        return taken;
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* Take<TFunction>(StripValues* a, out StripValues* slope) where TFunction : struct, IFunction
    {
        StripMemory* memory = a->Memory;
        StripValues* taken = memory->Take(a->Spread);
        slope = memory->Take(a->Spread);
        bool isFlat = IsFlat(a, a->Spread);
        float* x = isFlat ? a->Start : a->Rows, to = taken->Start, end = to + memory->Floats(a->Spread), slopes = slope->Start;
        nint width = isFlat ? memory->Floats(a->Spread) : memory->Lanes, stepX = isFlat ? a->FlatStep : a->Step, rowX = a->RowStep;
        for (; to < end; x += rowX)
        {
            for (float* rowEnd = to + width; to < rowEnd; to += 2 * V.Count, slopes += 2 * V.Count, x += stepX)
            {
                TFunction.Take(Lockstep<V>.Load(x), out Lockstep<V> s).Store(to);
                s.Store(slopes);
            }
        }
        return taken;
    }

    // Twice as long as the other functions, so it goes through some vectors at a time twice: of two short passes the processor overlaps twice as many vectors. The powers lie where the results will.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* TakeSoftplus<TSlopes>(StripValues* a, out StripValues* slope) where TSlopes : struct, IChoice
    {
        StripMemory* memory = a->Memory;
        StripValues* taken = memory->Take(a->Spread);
        slope = TSlopes.Taken ? memory->Take(a->Spread) : null;
        bool isFlat = IsFlat(a, a->Spread);
        float* x = isFlat ? a->Start : a->Rows, to = taken->Start, end = to + memory->Floats(a->Spread), slopes = TSlopes.Taken ? slope->Start : null;
        nint width = isFlat ? memory->Floats(a->Spread) : memory->Lanes, stepX = isFlat ? a->FlatStep : a->Step, rowX = a->RowStep;
        for (; to < end; x += rowX)
        {
            for (float* rowEnd = to + width; to < rowEnd;)
            {
                float* power = to, of = x, partEnd = to + Math.Min(rowEnd - to, SoftplusVectors * V.Count);
                for (; power < partEnd; power += 2 * V.Count, of += stepX)
                    Elementary.ExpOfMinusAbs(Lockstep<V>.Load(of)).Store(power);
                for (; to < partEnd; to += 2 * V.Count, x += stepX, slopes += 2 * V.Count)
                {
                    Lockstep<V> number = Lockstep<V>.Load(x), e = Lockstep<V>.Load(to);
                    Elementary.Softplus(number, e).Store(to);
                    if (TSlopes.Taken)
                        Elementary.Sigmoid(number, e).Store(slopes);
                }
            }
        }
        return taken;
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* Take<TStep>(StripValues* a, StripValues* b) where TStep : struct, IStep
    {
        StripMemory* memory = a->Memory;
        Spread spread = Spreads.Join(a->Spread, b->Spread);
        StripValues* taken = memory->Take(spread);
        bool isFlat = IsFlat(a, spread) && IsFlat(b, spread);
        float* x = isFlat ? a->Start : RowsOf(a), y = isFlat ? b->Start : RowsOf(b), to = taken->Start, end = to + memory->Floats(spread);
        nint width = isFlat ? memory->Floats(spread) : memory->Lanes, stepX = isFlat ? a->FlatStep : a->Step, stepY = isFlat ? b->FlatStep : b->Step, rowX = a->RowStep, rowY = b->RowStep;
        for (; to < end; x += rowX, y += rowY)
        {
            for (float* rowEnd = to + width; to < rowEnd; to += 2 * V.Count, x += stepX, y += stepY)
                TStep.Take(Lockstep<V>.Load(x), Lockstep<V>.Load(y), default, default).Store(to);
        }
        return taken;
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* Take<TStep>(StripValues* a, StripValues* b, StripValues* c, StripValues* d) where TStep : struct, IStep
    {
        StripMemory* memory = a->Memory;
        Spread spread = Spreads.Join(Spreads.Join(a->Spread, b->Spread), Spreads.Join(c->Spread, d->Spread));
        StripValues* taken = memory->Take(spread);
        bool isFlat = IsFlat(a, spread) && IsFlat(b, spread) && IsFlat(c, spread) && IsFlat(d, spread);
        float* x = isFlat ? a->Start : RowsOf(a), y = isFlat ? b->Start : RowsOf(b), z = isFlat ? c->Start : RowsOf(c), w = isFlat ? d->Start : RowsOf(d), to = taken->Start, end = to + memory->Floats(spread);
        nint width = isFlat ? memory->Floats(spread) : memory->Lanes, rowX = a->RowStep, rowY = b->RowStep, rowZ = c->RowStep, rowW = d->RowStep;
        nint stepX = isFlat ? a->FlatStep : a->Step, stepY = isFlat ? b->FlatStep : b->Step, stepZ = isFlat ? c->FlatStep : c->Step, stepW = isFlat ? d->FlatStep : d->Step;
        for (; to < end; x += rowX, y += rowY, z += rowZ, w += rowW)
        {
            for (float* rowEnd = to + width; to < rowEnd; to += 2 * V.Count, x += stepX, y += stepY, z += stepZ, w += stepW)
                TStep.Take(Lockstep<V>.Load(x), Lockstep<V>.Load(y), Lockstep<V>.Load(z), Lockstep<V>.Load(w)).Store(to);
        }
        return taken;
    }

    private readonly struct Negative : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => -a; }
    private readonly struct Sum : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => a + b; }
    private readonly struct Difference : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => a - b; }
    private readonly struct Product : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => a * b; }
    private readonly struct Quotient : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => a / b; }
    private readonly struct Smaller : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Min(a, b); }
    private readonly struct Larger : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Max(a, b); }
    private readonly struct Clamped : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Clamp(a, b, c); }
    private readonly struct IfLess : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.SelectLess(a, b, c, d); }
    private readonly struct IfEqual : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.SelectEqual(a, b, c, d); }
    private readonly struct Magnitude : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Abs(a); }
    private readonly struct Root : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Sqrt(a); }
    private readonly struct Positive : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Relu(a); }
    private readonly struct Whole : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Floor(a); }
    private readonly struct Exponential : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Exp(a); }
    private readonly struct ExponentialLess1 : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Expm1(a); }
    private readonly struct Logarithm : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Log(a); }
    private readonly struct LogarithmOf1Plus : IStep { [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Log1p(a); }
    private readonly struct HyperbolicTangent : IStep, IFunction
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Tanh(a);
        [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W x, out W slope) where W : struct, ILanes<W> => W.Tanh(x, out slope);
    }
    private readonly struct Logistic : IStep, IFunction
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Sigmoid(a);
        [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W x, out W slope) where W : struct, ILanes<W> => W.Sigmoid(x, out slope);
    }

    public static Strip<V> Zero => default;
    public static Strip<V> One => From(1);
    public static Strip<V> From(float value) => new(Constant(value));

    private static StripValues* Minus(StripValues* x) => x == null ? null : Take<Negative>(x);
    private static StripValues* Add(StripValues* a, StripValues* b) => a == null ? b : b == null ? a : Take<Sum>(a, b);
    private static StripValues* Subtract(StripValues* a, StripValues* b) => b == null ? a : a == null ? Take<Negative>(b) : a->ArePositions && b->ArePositions && a->Spread != b->Spread ? Distances(a, b) : Take<Difference>(a, b);
    private static StripValues* Multiply(StripValues* a, StripValues* b) => a == null || b == null ? null : a->AreOne ? b : b->AreOne ? a : Take<Product>(a, b);
    private static StripValues* Divide(StripValues* a, StripValues* b) => a == null ? null : Take<Quotient>(a, Given(b));

    // Row r and lane l stand at rows − 1 − r + l of a line, so the first pair at rows − 1. From there on the distance to a query falls, that from a query rises.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static StripValues* Distances(StripValues* a, StripValues* b)
    {
        StripValues* taken = a->Memory->Take(Spread.ByDistance);
        bool toQuery = b->Spread == Spread.ByQuery;
        float last = a->Memory->Rows - 1 + (toQuery ? a->Number - b->Number : b->Number - a->Number);
        for (nint at = 0; at < a->Memory->Floats(Spread.ByDistance); at += V.Count)
            (toQuery ? last - V.Iota(at) : V.Iota(at) - last).Store(taken->Start + at);
        return taken;
    }

    private bool IsOne => first == second;

    public static Strip<V> operator -(Strip<V> x) => x.IsOne ? new(Minus(x.first)) : new(Minus(x.first), Minus(x.second));
    public static Strip<V> operator +(Strip<V> a, Strip<V> b) => a.IsOne && b.IsOne ? new(Add(a.first, b.first)) : new(Add(a.first, b.first), Add(a.second, b.second));
    public static Strip<V> operator +(Strip<V> a, float b) => a + From(b);
    public static Strip<V> operator +(float a, Strip<V> b) => From(a) + b;
    public static Strip<V> operator -(Strip<V> a, Strip<V> b) => a.IsOne && b.IsOne ? new(Subtract(a.first, b.first)) : new(Subtract(a.first, b.first), Subtract(a.second, b.second));
    public static Strip<V> operator -(Strip<V> a, float b) => a - From(b);
    public static Strip<V> operator -(float a, Strip<V> b) => From(a) - b;
    public static Strip<V> operator *(Strip<V> a, Strip<V> b) => a.IsOne && b.IsOne ? new(Multiply(a.first, b.first)) : new(Multiply(a.first, b.first), Multiply(a.second, b.second));
    public static Strip<V> operator *(Strip<V> a, float b) => a * From(b);
    public static Strip<V> operator *(float a, Strip<V> b) => From(a) * b;
    public static Strip<V> operator /(Strip<V> a, Strip<V> b) => a.IsOne && b.IsOne ? new(Divide(a.first, b.first)) : new(Divide(a.first, b.first), Divide(a.second, b.second));
    public static Strip<V> operator /(Strip<V> a, float b) => a / From(b);
    public static Strip<V> operator /(float a, Strip<V> b) => From(a) / b;

    // A value has one direction.
    public static Strip<V> Abs(Strip<V> x) => new(Take<Magnitude>(Given(x.first)));
    public static Strip<V> Sqrt(Strip<V> x) => new(Take<Root>(Given(x.first)));
    public static Strip<V> Exp(Strip<V> x) => new(Take<Exponential>(Given(x.first)));
    public static Strip<V> Expm1(Strip<V> x) => new(Take<ExponentialLess1>(Given(x.first)));
    public static Strip<V> Log(Strip<V> x) => new(Take<Logarithm>(Given(x.first)));
    public static Strip<V> Log1p(Strip<V> x) => new(Take<LogarithmOf1Plus>(Given(x.first)));
    public static Strip<V> Tanh(Strip<V> x) => new(Take<HyperbolicTangent>(Given(x.first)));
    public static Strip<V> Sigmoid(Strip<V> x) => new(Take<Logistic>(Given(x.first)));
    public static Strip<V> LogSigmoid(Strip<V> x) => -Softplus(-x);
    public static Strip<V> Softplus(Strip<V> x) => new(TakeSoftplus<No>(Given(x.first), out _));
    public static Strip<V> Tanh(Strip<V> x, out Strip<V> slope) => WithSlope<HyperbolicTangent>(x, out slope);
    public static Strip<V> Sigmoid(Strip<V> x, out Strip<V> slope) => WithSlope<Logistic>(x, out slope);
    public static Strip<V> Softplus(Strip<V> x, out Strip<V> slope)
    {
        StripValues* taken = TakeSoftplus<Yes>(Given(x.first), out StripValues* slopes);
        slope = new(slopes);
        return new(taken);
    }
    public static Strip<V> Relu(Strip<V> x) => new(Take<Positive>(Given(x.first)));
    public static Strip<V> Min(Strip<V> a, Strip<V> b) => new(Take<Smaller>(Given(a.first), Given(b.first)));
    public static Strip<V> Max(Strip<V> a, Strip<V> b) => new(Take<Larger>(Given(a.first), Given(b.first)));
    public static Strip<V> Clamp(Strip<V> x, Strip<V> low, Strip<V> high) => new(Take<Clamped>(Given(x.first), Given(low.first), Given(high.first), Given(null)));
    public static Strip<V> Floor(Strip<V> x) => new(Take<Whole>(Given(x.first)));
    public static Strip<V> Detach(Strip<V> x) => x;
    public static Strip<V> SelectLess(Strip<V> a, Strip<V> b, Strip<V> then, Strip<V> otherwise) => Select<IfLess>(a, b, then, otherwise);
    public static Strip<V> SelectEqual(Strip<V> a, Strip<V> b, Strip<V> then, Strip<V> otherwise) => Select<IfEqual>(a, b, then, otherwise);

    private static Strip<V> WithSlope<TFunction>(Strip<V> x, out Strip<V> slope) where TFunction : struct, IFunction
    {
        StripValues* taken = Take<TFunction>(Given(x.first), out StripValues* slopes);
        slope = new(slopes);
        return new(taken);
    }

    private static Strip<V> Select<TStep>(Strip<V> a, Strip<V> b, Strip<V> then, Strip<V> otherwise) where TStep : struct, IStep => a.IsOne && b.IsOne && then.IsOne && otherwise.IsOne
        ? new(Select<TStep>(a.first, b.first, then.first, otherwise.first))
        : new(Select<TStep>(a.first, b.first, then.first, otherwise.first), Select<TStep>(a.second, b.second, then.second, otherwise.second));

    private static StripValues* Select<TStep>(StripValues* a, StripValues* b, StripValues* then, StripValues* otherwise) where TStep : struct, IStep =>
        then == null && otherwise == null ? null : Take<TStep>(Given(a), Given(b), Given(then), Given(otherwise));
}
