using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Two vectors that take every step of a formula side by side.</summary>
/// <remarks>
/// The compiler keeps instructions in the order of the text, and a formula is one long chain: the processor sees about four vectors' chains at a time,
/// and waits. Two chains interleaved fill the units that one leaves idle.
/// </remarks>
internal readonly struct Lockstep<V> : ILanes<Lockstep<V>> where V : struct, ILanes<V>
{
    private readonly V first, second;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Lockstep(V first, V second)
    {
        this.first = first;
        this.second = second;
    }

    public V First
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => first;
    }

    public V Second
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => second;
    }

    /// <summary>One vector twice: what depends on such numbers alone is the same in both, and the compiler computes it once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Twice(V x) => new(x, x);

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

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> From(float value) => new(V.From(value), V.From(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(Lockstep<V> x) => new(-x.first, -x.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator +(Lockstep<V> a, Lockstep<V> b) => new(a.first + b.first, a.second + b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator +(Lockstep<V> a, float b) => new(a.first + b, a.second + b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator +(float a, Lockstep<V> b) => new(a + b.first, a + b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(Lockstep<V> a, Lockstep<V> b) => new(a.first - b.first, a.second - b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(Lockstep<V> a, float b) => new(a.first - b, a.second - b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator -(float a, Lockstep<V> b) => new(a - b.first, a - b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator *(Lockstep<V> a, Lockstep<V> b) => new(a.first * b.first, a.second * b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator *(Lockstep<V> a, float b) => new(a.first * b, a.second * b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator *(float a, Lockstep<V> b) => new(a * b.first, a * b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator /(Lockstep<V> a, Lockstep<V> b) => new(a.first / b.first, a.second / b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator /(Lockstep<V> a, float b) => new(a.first / b, a.second / b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> operator /(float a, Lockstep<V> b) => new(a / b.first, a / b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Abs(Lockstep<V> x) => new(V.Abs(x.first), V.Abs(x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Sqrt(Lockstep<V> x) => new(V.Sqrt(x.first), V.Sqrt(x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Relu(Lockstep<V> x) => new(V.Relu(x.first), V.Relu(x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Floor(Lockstep<V> x) => new(V.Floor(x.first), V.Floor(x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Round(Lockstep<V> x) => new(V.Round(x.first), V.Round(x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> PowerOfTwo(Lockstep<V> x) => new(V.PowerOfTwo(x.first), V.PowerOfTwo(x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Min(Lockstep<V> a, Lockstep<V> b) => new(V.Min(a.first, b.first), V.Min(a.second, b.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Max(Lockstep<V> a, Lockstep<V> b) => new(V.Max(a.first, b.first), V.Max(a.second, b.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Scale(Lockstep<V> a, Lockstep<V> b) => new(V.Scale(a.first, b.first), V.Scale(a.second, b.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MinKeepingNaN(float bound, Lockstep<V> x) => new(V.MinKeepingNaN(bound, x.first), V.MinKeepingNaN(bound, x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MaxKeepingNaN(float bound, Lockstep<V> x) => new(V.MaxKeepingNaN(bound, x.first), V.MaxKeepingNaN(bound, x.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Clamp(Lockstep<V> x, Lockstep<V> low, Lockstep<V> high) => new(V.Clamp(x.first, low.first, high.first), V.Clamp(x.second, low.second, high.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(ref Lockstep<V> sum, Lockstep<V> a, Lockstep<V> b) => sum = MultiplyAdd(a, b, sum);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MultiplyAdd(Lockstep<V> a, Lockstep<V> b, Lockstep<V> c) => new(V.MultiplyAdd(a.first, b.first, c.first), V.MultiplyAdd(a.second, b.second, c.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> SelectLess(Lockstep<V> a, Lockstep<V> b, Lockstep<V> then, Lockstep<V> otherwise) =>
        new(V.SelectLess(a.first, b.first, then.first, otherwise.first), V.SelectLess(a.second, b.second, then.second, otherwise.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> SelectEqual(Lockstep<V> a, Lockstep<V> b, Lockstep<V> then, Lockstep<V> otherwise) =>
        new(V.SelectEqual(a.first, b.first, then.first, otherwise.first), V.SelectEqual(a.second, b.second, then.second, otherwise.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Mantissa(Lockstep<V> x, out Lockstep<V> exponent)
    {
        V a = V.Mantissa(x.first, out V exponentOfA), b = V.Mantissa(x.second, out V exponentOfB);
        exponent = new(exponentOfA, exponentOfB);
        return new(a, b);
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
    public static Lockstep<V> Tanh(Lockstep<V> x, out Lockstep<V> slope) => Elementary.Tanh(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Sigmoid(Lockstep<V> x, out Lockstep<V> slope) => Elementary.Sigmoid(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Softplus(Lockstep<V> x, out Lockstep<V> slope) => Elementary.Softplus(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Detach(Lockstep<V> x) => x;

    public static int Count
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => 2 * V.Count;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lockstep<V> Load(float* source) => new(V.Load(source), V.Load(source + V.Count));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Store(float* destination)
    {
        first.Store(destination);
        second.Store(destination + V.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lockstep<V> LoadFloat16(ushort* source) => new(V.LoadFloat16(source), V.LoadFloat16(source + V.Count));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lockstep<V> LoadScaledFloat16(ushort* source) => new(V.LoadScaledFloat16(source), V.LoadScaledFloat16(source + V.Count));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lockstep<V> LoadBFloat16(ushort* source) => new(V.LoadBFloat16(source), V.LoadBFloat16(source + V.Count));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void LoadBFloat16(ushort* source, out Lockstep<V> even, out Lockstep<V> odd)
    {
        V.LoadBFloat16(source, out V even0, out V odd0);
        V.LoadBFloat16(source + 2 * V.Count, out V even1, out V odd1);
        even = new(even0, even1);
        odd = new(odd0, odd1);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreFloat16(ushort* destination)
    {
        first.StoreFloat16(destination);
        second.StoreFloat16(destination + V.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreBFloat16(ushort* destination)
    {
        first.StoreBFloat16(destination);
        second.StoreBFloat16(destination + V.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Fraction(Lockstep<V> x, out Lockstep<V> power)
    {
        V first = V.Fraction(x.first, out V firstPower), second = V.Fraction(x.second, out V secondPower);
        power = new(firstPower, secondPower);
        return new(first, second);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> BiasedPower(Lockstep<V> biased) => new(V.BiasedPower(biased.first), V.BiasedPower(biased.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> ScaleGradually(Lockstep<V> x, Lockstep<V> n) => new(V.ScaleGradually(x.first, n.first), V.ScaleGradually(x.second, n.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> ScaleDown(Lockstep<V> x, Lockstep<V> power) => new(V.ScaleDown(x.first, power.first), V.ScaleDown(x.second, power.second));

    public static float LowestPower
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => V.LowestPower;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Iota(float start) => new(V.Iota(start), V.Iota(start + V.Count));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Sum() => (first + second).Sum();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyLess(Lockstep<V> a, Lockstep<V> b) => V.AnyLess(a.first, b.first) || V.AnyLess(a.second, b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyEqual(Lockstep<V> a, Lockstep<V> b) => V.AnyEqual(a.first, b.first) || V.AnyEqual(a.second, b.second);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int BitsLess(Lockstep<V> a, Lockstep<V> b) => V.BitsLess(a.first, b.first) | V.BitsLess(a.second, b.second) << V.Count;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> SelectBits(int bits, Lockstep<V> then, Lockstep<V> otherwise) =>
        new(V.SelectBits(bits, then.first, otherwise.first), V.SelectBits(bits >> V.Count, then.second, otherwise.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> MaxNative(Lockstep<V> a, Lockstep<V> b) => new(V.MaxNative(a.first, b.first), V.MaxNative(a.second, b.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Largest() => V.MaxNative(first, second).Largest();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lockstep<V> Fold(Lockstep<V> a, Lockstep<V> b) => V.Count == 1 ? new(a.first + a.second, b.first + b.second) : new(V.Fold(a.first, b.first), V.Fold(a.second, b.second));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Unzip(Lockstep<V> a, Lockstep<V> b, out Lockstep<V> even, out Lockstep<V> odd)
    {
        V.Unzip(a.first, a.second, out V even0, out V odd0);
        V.Unzip(b.first, b.second, out V even1, out V odd1);
        even = new(even0, even1);
        odd = new(odd0, odd1);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Zip(Lockstep<V> even, Lockstep<V> odd, out Lockstep<V> a, out Lockstep<V> b)
    {
        V.Zip(even.first, odd.first, out V a0, out V a1);
        V.Zip(even.second, odd.second, out V b0, out V b1);
        a = new(a0, a1);
        b = new(b0, b1);
    }
}
