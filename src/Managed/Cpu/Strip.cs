using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A number of a long formula: some rows of a tile, in memory. Every step is a call that takes all of them through one operation.</summary>
/// <remarks>
/// A long formula in one piece is more than the JIT inlines, and one long chain of instructions that wait for each other. Step by step over many vectors, each step keeps the processor busy,
/// and a formula may be as long as it likes; what that costs is a load and a store a step. A derivative may have several directions, one strip behind the other; a value counts for all of them.
/// Where there is no derivative nothing is computed: <see cref="Zero"/> times anything is <see cref="Zero"/>.
/// </remarks>
internal readonly unsafe struct Strip<V> : IReal<Strip<V>> where V : struct, ILanes<V>
{
    /// <summary>The rows of a tile in a strip.</summary>
    public const int Rows = 4;

    // Null for a constant.
    private readonly float* start;
    private readonly float constant;

    // 0 where there is nothing.
    private readonly int directions;

    private Strip(float* start, int directions)
    {
        this.start = start;
        this.directions = directions;
    }

    private Strip(float constant, int directions = 1)
    {
        this.constant = constant;
        this.directions = directions;
    }

    /// <summary>The floats of a strip.</summary>
    public static int Length
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Rows * AttentionTiles.Vectors * V.Count;
    }

    /// <summary>Strips that lie in memory one behind the other, one a direction.</summary>
    public static Strip<V> At(float* start, int directions = 1) => new(start, directions);

    /// <summary>Copies what there is of a direction.</summary>
    public void CopyTo(float* destination, int direction = 0)
    {
        if (start == null)
            new Span<float>(destination, Length).Fill(constant);
        else
            new ReadOnlySpan<float>(start + (directions > 1 ? direction * Length : 0), Length).CopyTo(new Span<float>(destination, Length));
    }

    private bool IsNothing => directions == 0;

    private Strip<V> AsValue => IsNothing ? From(0) : this;

    // Where the floats of a direction begin, and how far it is from two vectors to the next two: a constant stands there once.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private float* Direction(int direction, out nint step)
    {
        step = 2 * V.Count;
        if (start != null)
            return start + (directions > 1 ? direction * Length : 0);
        float* vectors = StripMemory.Take((int)step);
        Lockstep<V>.From(constant).Store(vectors);
        step = 0;
        return vectors;
    }

    private interface IStep
    {
        static abstract W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W>;
    }

    private interface IFunction
    {
        static abstract W Take<W>(W x, out W slope) where W : struct, ILanes<W>;
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static Strip<V> Take<TStep>(Strip<V> a, Strip<V> b) where TStep : struct, IStep
    {
        int directions = Math.Max(a.directions, b.directions);
        float* taken = StripMemory.Take(directions * Length), to = taken;
        for (int direction = 0; direction < directions; direction++)
        {
            float* x = a.Direction(direction, out nint stepX), y = b.Direction(direction, out nint stepY), end = to + Length;
            for (; to < end; to += 2 * V.Count, x += stepX, y += stepY)
                TStep.Take(Lockstep<V>.Load(x), Lockstep<V>.Load(y), default, default).Store(to);
        }
        return new(taken, directions);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static Strip<V> Take<TStep>(Strip<V> a, Strip<V> b, Strip<V> c, Strip<V> d) where TStep : struct, IStep
    {
        int directions = Math.Max(Math.Max(a.directions, b.directions), Math.Max(c.directions, d.directions));
        float* taken = StripMemory.Take(directions * Length), to = taken;
        for (int direction = 0; direction < directions; direction++)
        {
            float* x = a.Direction(direction, out nint stepX), y = b.Direction(direction, out nint stepY), z = c.Direction(direction, out nint stepZ), w = d.Direction(direction, out nint stepW), end = to + Length;
            for (; to < end; to += 2 * V.Count, x += stepX, y += stepY, z += stepZ, w += stepW)
                TStep.Take(Lockstep<V>.Load(x), Lockstep<V>.Load(y), Lockstep<V>.Load(z), Lockstep<V>.Load(w)).Store(to);
        }
        return new(taken, directions);
    }

    // A value has one direction.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static Strip<V> Take<TStep>(Strip<V> a) where TStep : struct, IStep
    {
        int directions = a.directions;
        float* taken = StripMemory.Take(directions * Length), to = taken;
        for (int direction = 0; direction < directions; direction++)
        {
            float* x = a.Direction(direction, out nint stepX), end = to + Length;
            for (; to < end; to += 2 * V.Count, x += stepX)
                TStep.Take(Lockstep<V>.Load(x), default, default, default).Store(to);
        }
        return new(taken, directions);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static Strip<V> Take<TFunction>(Strip<V> a, out Strip<V> slope) where TFunction : struct, IFunction
    {
        float* taken = StripMemory.Take(2 * Length), slopes = taken + Length, x = a.Direction(0, out nint stepX);
        for (float* to = taken; to < slopes; to += 2 * V.Count, x += stepX)
        {
            TFunction.Take(Lockstep<V>.Load(x), out Lockstep<V> s).Store(to);
            s.Store(to + Length);
        }
        slope = new(slopes, 1);
        return new(taken, 1);
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
    private readonly struct SoftPositive : IStep, IFunction
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W a, W b, W c, W d) where W : struct, ILanes<W> => W.Softplus(a);
        [MethodImpl(MethodImplOptions.AggressiveInlining)] public static W Take<W>(W x, out W slope) where W : struct, ILanes<W> => W.Softplus(x, out slope);
    }

    public static Strip<V> Zero => new(0, 0);
    public static Strip<V> One => new(1f);
    public static Strip<V> From(float value) => new(value);

    public static Strip<V> operator -(Strip<V> x) => x.IsNothing ? x : Take<Negative>(x);
    public static Strip<V> operator +(Strip<V> a, Strip<V> b) => a.IsNothing ? b : b.IsNothing ? a : Take<Sum>(a, b);
    public static Strip<V> operator +(Strip<V> a, float b) => Take<Sum>(a, From(b));
    public static Strip<V> operator +(float a, Strip<V> b) => Take<Sum>(From(a), b);
    public static Strip<V> operator -(Strip<V> a, Strip<V> b) => b.IsNothing ? a : Take<Difference>(a, b);
    public static Strip<V> operator -(Strip<V> a, float b) => Take<Difference>(a, From(b));
    public static Strip<V> operator -(float a, Strip<V> b) => Take<Difference>(From(a), b);
    public static Strip<V> operator *(Strip<V> a, Strip<V> b) => a.IsNothing || b.IsNothing ? Zero : Take<Product>(a, b);
    public static Strip<V> operator *(Strip<V> a, float b) => a.IsNothing ? a : Take<Product>(a, From(b));
    public static Strip<V> operator *(float a, Strip<V> b) => b.IsNothing ? b : Take<Product>(From(a), b);
    public static Strip<V> operator /(Strip<V> a, Strip<V> b) => a.IsNothing ? a : Take<Quotient>(a, b);
    public static Strip<V> operator /(Strip<V> a, float b) => a.IsNothing ? a : Take<Quotient>(a, From(b));
    public static Strip<V> operator /(float a, Strip<V> b) => Take<Quotient>(From(a), b);

    public static Strip<V> Abs(Strip<V> x) => Take<Magnitude>(x.AsValue);
    public static Strip<V> Sqrt(Strip<V> x) => Take<Root>(x.AsValue);
    public static Strip<V> Exp(Strip<V> x) => Take<Exponential>(x.AsValue);
    public static Strip<V> Expm1(Strip<V> x) => Take<ExponentialLess1>(x.AsValue);
    public static Strip<V> Log(Strip<V> x) => Take<Logarithm>(x.AsValue);
    public static Strip<V> Log1p(Strip<V> x) => Take<LogarithmOf1Plus>(x.AsValue);
    public static Strip<V> Tanh(Strip<V> x) => Take<HyperbolicTangent>(x.AsValue);
    public static Strip<V> Sigmoid(Strip<V> x) => Take<Logistic>(x.AsValue);
    public static Strip<V> LogSigmoid(Strip<V> x) => -Softplus(-x);
    public static Strip<V> Softplus(Strip<V> x) => Take<SoftPositive>(x.AsValue);
    public static Strip<V> Tanh(Strip<V> x, out Strip<V> slope) => Take<HyperbolicTangent>(x, out slope);
    public static Strip<V> Sigmoid(Strip<V> x, out Strip<V> slope) => Take<Logistic>(x, out slope);
    public static Strip<V> Softplus(Strip<V> x, out Strip<V> slope) => Take<SoftPositive>(x, out slope);
    public static Strip<V> Relu(Strip<V> x) => Take<Positive>(x.AsValue);
    public static Strip<V> Min(Strip<V> a, Strip<V> b) => Take<Smaller>(a.AsValue, b.AsValue);
    public static Strip<V> Max(Strip<V> a, Strip<V> b) => Take<Larger>(a.AsValue, b.AsValue);
    public static Strip<V> Clamp(Strip<V> x, Strip<V> low, Strip<V> high) => Take<Clamped>(x, low, high, One);
    public static Strip<V> Floor(Strip<V> x) => Take<Whole>(x.AsValue);
    public static Strip<V> Detach(Strip<V> x) => x;
    public static Strip<V> SelectLess(Strip<V> a, Strip<V> b, Strip<V> then, Strip<V> otherwise) => then.IsNothing && otherwise.IsNothing ? then : Take<IfLess>(a, b, then, otherwise);
    public static Strip<V> SelectEqual(Strip<V> a, Strip<V> b, Strip<V> then, Strip<V> otherwise) => then.IsNothing && otherwise.IsNothing ? then : Take<IfEqual>(a, b, then, otherwise);
}

/// <summary>Where a thread's strips lie: memory that one evaluation of a formula takes in order, and the next one takes again.</summary>
internal static unsafe class StripMemory
{
    [ThreadStatic]
    private static float* next;

    /// <summary>Begins an evaluation.</summary>
    public static void Begin(float* memory) => next = memory;

    /// <summary>The floats taken since.</summary>
    public static int TakenSince(float* memory) => (int)(next - memory);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float* Take(int floats)
    {
        float* taken = next;
        next = taken + floats;
        return taken;
    }
}
