using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Two vectors that take every step of a formula side by side.</summary>
/// <remarks>
/// The compiler keeps instructions in the order of the text, and a formula is one long chain: the processor sees about four vectors' chains at a time,
/// and waits. Two chains interleaved fill the units that one leaves idle.
/// </remarks>
internal readonly struct Lockstep<V> : IElementary<Lockstep<V>> where V : struct, ILanes<V>
{
    public readonly V First, Second;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Lockstep(V first, V second)
    {
        First = first;
        Second = second;
    }

    public static Lockstep<V> Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(V.Zero, V.Zero);
    }

    public static Lockstep<V> One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(V.One, V.One);
    }

    /// <summary>The same vector twice.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Both(V x) => new(x, x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> From(float value) => Both(V.From(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(Lockstep<V> x) => new(-x.First, -x.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator +(Lockstep<V> a, Lockstep<V> b) => new(a.First + b.First, a.Second + b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator +(Lockstep<V> a, float b) => new(a.First + b, a.Second + b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator +(float a, Lockstep<V> b) => new(a + b.First, a + b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(Lockstep<V> a, Lockstep<V> b) => new(a.First - b.First, a.Second - b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(Lockstep<V> a, float b) => new(a.First - b, a.Second - b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(float a, Lockstep<V> b) => new(a - b.First, a - b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator *(Lockstep<V> a, Lockstep<V> b) => new(a.First * b.First, a.Second * b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator *(Lockstep<V> a, float b) => new(a.First * b, a.Second * b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator *(float a, Lockstep<V> b) => new(a * b.First, a * b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator /(Lockstep<V> a, Lockstep<V> b) => new(a.First / b.First, a.Second / b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator /(Lockstep<V> a, float b) => new(a.First / b, a.Second / b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator /(float a, Lockstep<V> b) => new(a / b.First, a / b.Second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Abs(Lockstep<V> x) => new(V.Abs(x.First), V.Abs(x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Sqrt(Lockstep<V> x) => new(V.Sqrt(x.First), V.Sqrt(x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Relu(Lockstep<V> x) => new(V.Relu(x.First), V.Relu(x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Floor(Lockstep<V> x) => new(V.Floor(x.First), V.Floor(x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Round(Lockstep<V> x) => new(V.Round(x.First), V.Round(x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> PowerOfTwo(Lockstep<V> x) => new(V.PowerOfTwo(x.First), V.PowerOfTwo(x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Min(Lockstep<V> a, Lockstep<V> b) => new(V.Min(a.First, b.First), V.Min(a.Second, b.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Max(Lockstep<V> a, Lockstep<V> b) => new(V.Max(a.First, b.First), V.Max(a.Second, b.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Scale(Lockstep<V> a, Lockstep<V> b) => new(V.Scale(a.First, b.First), V.Scale(a.Second, b.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MinKeepingNaN(float bound, Lockstep<V> x) => new(V.MinKeepingNaN(bound, x.First), V.MinKeepingNaN(bound, x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MaxKeepingNaN(float bound, Lockstep<V> x) => new(V.MaxKeepingNaN(bound, x.First), V.MaxKeepingNaN(bound, x.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Clamp(Lockstep<V> x, Lockstep<V> low, Lockstep<V> high) => new(V.Clamp(x.First, low.First, high.First), V.Clamp(x.Second, low.Second, high.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MultiplyAdd(Lockstep<V> a, Lockstep<V> b, Lockstep<V> c) => new(V.MultiplyAdd(a.First, b.First, c.First), V.MultiplyAdd(a.Second, b.Second, c.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> SelectLess(Lockstep<V> a, Lockstep<V> b, Lockstep<V> then, Lockstep<V> otherwise) =>
        new(V.SelectLess(a.First, b.First, then.First, otherwise.First), V.SelectLess(a.Second, b.Second, then.Second, otherwise.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> SelectEqual(Lockstep<V> a, Lockstep<V> b, Lockstep<V> then, Lockstep<V> otherwise) =>
        new(V.SelectEqual(a.First, b.First, then.First, otherwise.First), V.SelectEqual(a.Second, b.Second, then.Second, otherwise.Second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Mantissa(Lockstep<V> x, out Lockstep<V> exponent)
    {
        V first = V.Mantissa(x.First, out V firstExponent), second = V.Mantissa(x.Second, out V secondExponent);
        exponent = new(firstExponent, secondExponent);
        return new(first, second);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Exp(Lockstep<V> x) => Elementary.Exp(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Expm1(Lockstep<V> x) => Elementary.Expm1(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Log(Lockstep<V> x) => Elementary.Log(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Log1p(Lockstep<V> x) => Elementary.Log1p(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Tanh(Lockstep<V> x) => Elementary.Tanh(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Sigmoid(Lockstep<V> x) => Elementary.Sigmoid(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Softplus(Lockstep<V> x) => Elementary.Softplus(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> LogSigmoid(Lockstep<V> x) => -Elementary.Softplus(-x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Detach(Lockstep<V> x) => x;
}
