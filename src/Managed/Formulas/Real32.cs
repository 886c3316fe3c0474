using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A float32: the arithmetic of formulas on GPUs, and in the CPU's scalar code.</summary>
public readonly struct Real32 : ILanes<Real32>
{
    private readonly float v;

    /// <summary>The number.</summary>
    public float Value
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => v;
    }

    /// <summary>Wraps a number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Real32(float value) => v = value;

    /// <inheritdoc/>
    public static Real32 Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(0f);
    }

    /// <inheritdoc/>
    public static Real32 One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(1f);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 From(float value) => new(value);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator -(Real32 x) => new(-x.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator +(Real32 a, Real32 b) => new(a.v + b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator +(Real32 a, float b) => new(a.v + b);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator +(float a, Real32 b) => new(a + b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator -(Real32 a, Real32 b) => new(a.v - b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator -(Real32 a, float b) => new(a.v - b);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator -(float a, Real32 b) => new(a - b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator *(Real32 a, Real32 b) => new(a.v * b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator *(Real32 a, float b) => new(a.v * b);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator *(float a, Real32 b) => new(a * b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator /(Real32 a, Real32 b) => new(a.v / b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator /(Real32 a, float b) => new(a.v / b);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 operator /(float a, Real32 b) => new(a / b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Abs(Real32 x) => new(MathF.Abs(x.v));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Sqrt(Real32 x) => new(MathF.Sqrt(x.v));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Floor(Real32 x) => new(MathF.Floor(x.v));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Min(Real32 a, Real32 b) => new(Less(a, b) ? a.v : Less(b, a) ? b.v : a.v == b.v ? a.v : a.v + b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Max(Real32 a, Real32 b) => new(Less(b, a) ? a.v : Less(a, b) ? b.v : a.v == b.v ? a.v : a.v + b.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Relu(Real32 x) => new(x.v < 0f ? 0f : x.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Clamp(Real32 x, Real32 low, Real32 high) => new(Less(x, low) ? low.v : Less(high, x) ? high.v : x.v);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 SelectLess(Real32 a, Real32 b, Real32 then, Real32 otherwise) => Less(a, b) ? then : otherwise;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 SelectEqual(Real32 a, Real32 b, Real32 then, Real32 otherwise) => a.v == b.v ? then : otherwise;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Exp(Real32 x) => Elementary.Exp(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Expm1(Real32 x) => Elementary.Expm1(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Log(Real32 x) => Elementary.Log(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Log1p(Real32 x) => Elementary.Log1p(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Tanh(Real32 x) => Elementary.Tanh(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Sigmoid(Real32 x) => Elementary.Sigmoid(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Softplus(Real32 x) => Elementary.Softplus(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 LogSigmoid(Real32 x) => -Elementary.Softplus(-x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IReal<Real32>.Tanh(Real32 x, out Real32 slope) => Elementary.Tanh(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IReal<Real32>.Sigmoid(Real32 x, out Real32 slope) => Elementary.Sigmoid(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IReal<Real32>.Softplus(Real32 x, out Real32 slope) => Elementary.Softplus(x, out slope);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Real32 Detach(Real32 x) => x;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static void ILanes<Real32>.AddProduct(ref Real32 sum, Real32 a, Real32 b) => sum = new(a.v * b.v + sum.v);

    static Real32 IElementary<Real32>.MultiplyAdd(Real32 a, Real32 b, Real32 c) => new(a.v * b.v + c.v);

    // The constant stands on the right: one on the left ILGPU turns around, and then the comparison is true for NaN on CUDA.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IElementary<Real32>.MinKeepingNaN(float bound, Real32 x) => new(x.v > bound ? bound : x.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IElementary<Real32>.MaxKeepingNaN(float bound, Real32 x) => new(x.v < bound ? bound : x.v);

    // MathF.Floor and MathF.Round become thirty integer instructions on a GPU: ILGPU takes their managed form.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IElementary<Real32>.Round(Real32 x) => Nearest(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IElementary<Real32>.PowerOfTwo(Real32 n) => new(BitConverter.Int32BitsToSingle(((int)n.v + 127) << 23));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IElementary<Real32>.Scale(Real32 x, Real32 n)
    {
        Real32 half = Nearest(n * 0.5f);
        return x * Power(half) * Power(n - half);

        static Real32 Power(Real32 n) => new(BitConverter.Int32BitsToSingle(((int)n.v + 127) << 23));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 IElementary<Real32>.Mantissa(Real32 x, out Real32 exponent)
    {
        int bits = BitConverter.SingleToInt32Bits(x.v);
        int power = (bits - LanesConstants.SqrtHalfBits) >> 23;
        exponent = new(power);
        return new(BitConverter.Int32BitsToSingle(bits - (power << 23)));
    }

    // Of a comparison with a constant on the left ILGPU makes the mirrored one, but true for NaN on CUDA: one of these two always has it on the right.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Less(Real32 a, Real32 b) => (a.v < b.v) & (b.v > a.v);

    // To even, for |x| below 2^22: so large a number has no fraction bits left.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Real32 Nearest(Real32 x)
    {
        const float large = 12582912f; // 1.5 · 2^23
        return new(x.v + large - large);
    }

    static int ILanes<Real32>.Count
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => 1;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static unsafe Real32 ILanes<Real32>.Load(float* source) => new(*source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    unsafe void ILanes<Real32>.Store(float* destination) => *destination = v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static unsafe Real32 ILanes<Real32>.LoadFloat16(ushort* source) => new((float)BitConverter.UInt16BitsToHalf(*source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static unsafe Real32 ILanes<Real32>.LoadScaledFloat16(ushort* source) => new((float)BitConverter.UInt16BitsToHalf(*source) * ScaledFloat16Storage.Unit);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static unsafe Real32 ILanes<Real32>.LoadBFloat16(ushort* source) => new(BitConverter.Int32BitsToSingle(*source << 16));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static unsafe void ILanes<Real32>.LoadBFloat16(ushort* source, out Real32 even, out Real32 odd)
    {
        even = new(BitConverter.Int32BitsToSingle(source[0] << 16));
        odd = new(BitConverter.Int32BitsToSingle(source[1] << 16));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    unsafe void ILanes<Real32>.StoreFloat16(ushort* destination) => *destination = BitConverter.HalfToUInt16Bits((Half)v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    unsafe void ILanes<Real32>.StoreBFloat16(ushort* destination)
    {
        uint bits = BitConverter.SingleToUInt32Bits(v), upper = bits >> 16;
        *destination = (ushort)(float.IsNaN(v) ? upper | LanesConstants.QuietBFloat16 : (bits + (upper & 1) + (uint)short.MaxValue) >> 16);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.Iota(float start) => new(start);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    float ILanes<Real32>.Sum() => v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static bool ILanes<Real32>.AnyLess(Real32 a, Real32 b) => a.v < b.v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static bool ILanes<Real32>.AnyEqual(Real32 a, Real32 b) => a.v == b.v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static int ILanes<Real32>.BitsLess(Real32 a, Real32 b) => a.v < b.v ? 1 : 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.SelectBits(int bits, Real32 then, Real32 otherwise) => (bits & 1) != 0 ? then : otherwise;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.MaxNative(Real32 a, Real32 b) => new(a.v > b.v ? a.v : b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    float ILanes<Real32>.Largest() => v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.Fraction(Real32 x, out Real32 power)
    {
        float floor = MathF.Floor(x.v);
        power = new(BitConverter.Int32BitsToSingle((int)floor << 23));
        return new(x.v - floor);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.BiasedPower(Real32 biased) => new(BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(biased.v) << 23));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.ScaleGradually(Real32 x, Real32 n) => new(MathF.ScaleB(x.v, (int)n.v));

    // An exponent of −127 has the bits of 0.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.ScaleDown(Real32 x, Real32 power) => new(BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(x.v) + BitConverter.SingleToInt32Bits(power.v)));

    static float ILanes<Real32>.LowestPower => LanesConstants.LowestExponent;

    // There is no second lane.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Real32 ILanes<Real32>.Fold(Real32 a, Real32 b) => a;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static void ILanes<Real32>.Unzip(Real32 a, Real32 b, out Real32 even, out Real32 odd)
    {
        even = a;
        odd = b;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static void ILanes<Real32>.Zip(Real32 even, Real32 odd, out Real32 a, out Real32 b)
    {
        a = even;
        b = odd;
    }
}
