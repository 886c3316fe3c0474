using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>4 floats side by side. The text of Lanes128, Lanes256 and Lanes512 is one, up to the width; a test compares them.</summary>
internal struct Lanes128 : ILanes<Lanes128>
{
    private Vector128<float> v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Lanes128(Vector128<float> value) => v = value;

    public readonly Vector128<float> Vector
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => v;
    }

    public static Lanes128 Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Vector128<float>.Zero);
    }

    public static Lanes128 One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Vector128<float>.One);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 From(float value) => new(Vector128.Create(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator -(Lanes128 x) => new(-x.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator +(Lanes128 a, Lanes128 b) => new(a.v + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator +(Lanes128 a, float b) => new(a.v + Vector128.Create(b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator +(float a, Lanes128 b) => new(Vector128.Create(a) + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator -(Lanes128 a, Lanes128 b) => new(a.v - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator -(Lanes128 a, float b) => new(a.v - Vector128.Create(b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator -(float a, Lanes128 b) => new(Vector128.Create(a) - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator *(Lanes128 a, Lanes128 b) => new(a.v * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator *(Lanes128 a, float b) => new(a.v * b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator *(float a, Lanes128 b) => new(a * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator /(Lanes128 a, Lanes128 b) => new(a.v / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator /(Lanes128 a, float b) => new(a.v / b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator /(float a, Lanes128 b) => new(Vector128.Create(a) / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Abs(Lanes128 x) => new(Vector128.Abs(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Sqrt(Lanes128 x) => new(Vector128.Sqrt(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Floor(Lanes128 x) => new(Vector128.Floor(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Min(Lanes128 a, Lanes128 b) => new(Vector128.Min(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Max(Lanes128 a, Lanes128 b) => new(Vector128.Max(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Relu(Lanes128 x) => new(Vector128.MaxNative(Vector128<float>.Zero, x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Clamp(Lanes128 x, Lanes128 low, Lanes128 high) => new(Vector128.MinNative(high.v, Vector128.MaxNative(low.v, x.v)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 SelectLess(Lanes128 a, Lanes128 b, Lanes128 then, Lanes128 otherwise) => new(Vector128.ConditionalSelect(Vector128.LessThan(a.v, b.v), then.v, otherwise.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 SelectEqual(Lanes128 a, Lanes128 b, Lanes128 then, Lanes128 otherwise) => new(Vector128.ConditionalSelect(Vector128.Equals(a.v, b.v), then.v, otherwise.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(ref Lanes128 sum, Lanes128 a, Lanes128 b) => sum.v = Vector128.MultiplyAddEstimate(a.v, b.v, sum.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 MultiplyAdd(Lanes128 a, Lanes128 b, Lanes128 c) => new(Vector128.MultiplyAddEstimate(a.v, b.v, c.v));

    // The native minimum and maximum return their second operand if either is NaN (x86), or NaN (Arm).
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 MinKeepingNaN(float bound, Lanes128 x) => new(Vector128.MinNative(Vector128.Create(bound), x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 MaxKeepingNaN(float bound, Lanes128 x) => new(Vector128.MaxNative(Vector128.Create(bound), x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Round(Lanes128 x) => new(Vector128.Round(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 PowerOfTwo(Lanes128 n) => new(Vector128.ShiftLeft(Vector128.ConvertToInt32Native(n.v) + Vector128.Create(127), 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Scale(Lanes128 x, Lanes128 n)
    {
        Lanes128 half = Floor(n * 0.5f);
        return x * PowerOfTwo(half) * PowerOfTwo(n - half);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Mantissa(Lanes128 x, out Lanes128 exponent)
    {
        Vector128<int> bits = x.v.AsInt32();
        Vector128<int> power = Vector128.ShiftRightArithmetic(bits - Vector128.Create(LanesConstants.SqrtHalfBits), 23);
        exponent = new(Vector128.ConvertToSingle(power));
        return new((bits - Vector128.ShiftLeft(power, 23)).AsSingle());
    }

    public static int Count
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => 4;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes128 Load(float* source) => new(Vector128.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Store(float* destination) => v.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes128 LoadFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector128<int> wide);
        // Scaling by the difference of the biases makes normal numbers of subnormal ones too. Infinity and NaN take the largest exponent.
        Vector128<int> number = (Widened(wide).AsSingle() * Vector128.Create(LanesConstants.HalfBias).AsSingle()).AsInt32(), infinity = Vector128.Create(LanesConstants.HalfInfinity);
        return new(Vector128.ConditionalSelect(Vector128.Equals(wide & infinity, infinity), number | Vector128.Create(LanesConstants.Infinity), number).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes128 LoadScaledFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector128<int> wide);
        return new(Widened(wide).AsSingle());
    }

    // Of numbers widened with their sign. Shifted, each bit stands where float32 has it, but for copies of the sign in the upper places of the exponent.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<int> Widened(Vector128<int> wide) => Vector128.ShiftLeft(wide, LanesConstants.HalfShift) & Vector128.Create(LanesConstants.HalfBits);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes128 LoadBFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector128<uint> wide);
        return new(Vector128.ShiftLeft(wide, 16).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void LoadBFloat16(ushort* source, out Lanes128 even, out Lanes128 odd)
    {
        Vector128<uint> both = Vector128.Load((uint*)source);
        even = new(Vector128.ShiftLeft(both, 16).AsSingle());
        odd = new((both & Vector128.Create(LanesConstants.UpperHalf)).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreFloat16(ushort* destination)
    {
        Vector128<int> bits = v.AsInt32(), magnitude = bits & Vector128.Create(int.MaxValue);
        Vector128<int> odd = Vector128.ShiftRightLogical(magnitude, LanesConstants.HalfShift) & Vector128<int>.One;
        Vector128<int> normal = Vector128.ShiftRightLogical(magnitude - Vector128.Create(LanesConstants.HalfSmallestNormal - (1 << 23)) + odd
            + Vector128.Create((1 << (LanesConstants.HalfShift - 1)) - 1), LanesConstants.HalfShift);
        Vector128<float> magic = Vector128.Create(LanesConstants.HalfSubnormalMagic).AsSingle();
        Vector128<int> subnormal = (magnitude.AsSingle() + magic).AsInt32() - magic.AsInt32();
        Vector128<int> half = Vector128.ConditionalSelect(Vector128.LessThan(magnitude, Vector128.Create(LanesConstants.HalfSmallestNormal)), subnormal, normal);
        half = Vector128.ConditionalSelect(Vector128.LessThan(magnitude, Vector128.Create(LanesConstants.HalfOverflow)), half, Vector128.Create(LanesConstants.HalfInfinity));
        half = Vector128.ConditionalSelect(Vector128.GreaterThan(magnitude, Vector128.Create(LanesConstants.Infinity)), Vector128.Create(LanesConstants.QuietHalf), half);
        Storage16.Store((half | (Vector128.ShiftRightLogical(bits, 16) & Vector128.Create(LanesConstants.HalfSign))).AsUInt32(), destination);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreBFloat16(ushort* destination)
    {
        Vector128<int> bits = v.AsInt32(), upper = Vector128.ShiftRightLogical(bits, 16);
        Vector128<int> rounded = Vector128.ShiftRightLogical(bits + (upper & Vector128<int>.One) + Vector128.Create((int)short.MaxValue), 16);
        Vector128<int> isNumber = Vector128.Equals(v, v).AsInt32();
        Storage16.Store(Vector128.ConditionalSelect(isNumber, rounded, upper | Vector128.Create(LanesConstants.QuietBFloat16)).AsUInt32(), destination);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Iota(float start) => new(Vector128.Create(start) + Vector128.CreateSequence(0f, 1f));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Sum() => Vector128.Sum(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyLess(Lanes128 a, Lanes128 b) => Vector128.LessThanAny(a.v, b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyEqual(Lanes128 a, Lanes128 b) => Vector128.EqualsAny(a.v, b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int BitsLess(Lanes128 a, Lanes128 b) => (int)Vector128.LessThan(a.v, b.v).ExtractMostSignificantBits();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 SelectBits(int bits, Lanes128 then, Lanes128 otherwise)
    {
        Vector128<int> isOff = Vector128.Equals(Vector128.Create(bits) & Vector128.Create(LanesConstants.Bits), Vector128<int>.Zero);
        return new(Vector128.ConditionalSelect(isOff.AsSingle(), otherwise.v, then.v));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 MaxNative(Lanes128 a, Lanes128 b) => new(Vector128.MaxNative(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Largest()
    {
        // Written out, for a loop isn't made so, and takes four times as long.
        Vector128<float> largest = LargerOf(LargerOf(LargerOf(LargerOf(v, 8), 4), 2), 1);
        return largest.ToScalar();
    }

    // Of each lane and the one at a distance; of itself beyond the width.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> LargerOf(Vector128<float> x, int distance) =>
        distance < Count ? Vector128.MaxNative(x, Vector128.Shuffle(x, Vector128<int>.Indices ^ Vector128.Create(distance))) : x;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Fraction(Lanes128 x, out Lanes128 power)
    {
        Lanes128 floor = Floor(x);
        power = new(Vector128.ShiftLeft(Vector128.ConvertToInt32Native(floor.v), 23).AsSingle());
        return x - floor;
    }

    public static float LowestPower
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get
        {
            return LanesConstants.LowestExponent;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 ScaleDown(Lanes128 x, Lanes128 power)
    {
        return new((x.v.AsInt32() + power.v.AsInt32()).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 BiasedPower(Lanes128 biased) => new(Vector128.ShiftLeft(biased.v.AsInt32(), 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 ScaleGradually(Lanes128 x, Lanes128 n)
    {
        return x * PowerOfTwo(n + LanesConstants.ExponentShift) * LanesConstants.ShiftBack;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Fold(Lanes128 a, Lanes128 b)
    {
        if (Sse.IsSupported)
            return new(Sse.UnpackLow(a.v, b.v) + Sse.UnpackHigh(a.v, b.v));
        Zip(a, b, out Lanes128 lower, out Lanes128 upper);
        return lower + upper;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Unzip(Lanes128 a, Lanes128 b, out Lanes128 even, out Lanes128 odd)
    {
        // An index outside the vector gives 0: a fills the lower half, b the upper one.
        Vector128<int> twice = Vector128.ShiftLeft(Vector128<int>.Indices, 1), ofB = twice - Vector128.Create(Count);
        even = new(Vector128.Shuffle(a.v, twice) | Vector128.Shuffle(b.v, ofB));
        odd = new(Vector128.Shuffle(a.v, twice + Vector128<int>.One) | Vector128.Shuffle(b.v, ofB + Vector128<int>.One));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Zip(Lanes128 even, Lanes128 odd, out Lanes128 a, out Lanes128 b)
    {
        Vector128<int> half = Vector128.ShiftRightLogical(Vector128<int>.Indices, 1), upper = half + Vector128.Create(Count / 2);
        Vector128<float> isEven = Vector128.Equals(Vector128<int>.Indices & Vector128<int>.One, Vector128<int>.Zero).AsSingle();
        a = new(Vector128.ConditionalSelect(isEven, Vector128.Shuffle(even.v, half), Vector128.Shuffle(odd.v, half)));
        b = new(Vector128.ConditionalSelect(isEven, Vector128.Shuffle(even.v, upper), Vector128.Shuffle(odd.v, upper)));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Exp(Lanes128 x) => Elementary.Exp(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Expm1(Lanes128 x) => Elementary.Expm1(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Log(Lanes128 x) => Elementary.Log(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Log1p(Lanes128 x) => Elementary.Log1p(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Tanh(Lanes128 x) => Elementary.Tanh(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Sigmoid(Lanes128 x) => Elementary.Sigmoid(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Softplus(Lanes128 x) => Elementary.Softplus(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 LogSigmoid(Lanes128 x) => -Elementary.Softplus(-x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Tanh(Lanes128 x, out Lanes128 slope) => Elementary.Tanh(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Sigmoid(Lanes128 x, out Lanes128 slope) => Elementary.Sigmoid(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Softplus(Lanes128 x, out Lanes128 slope) => Elementary.Softplus(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Detach(Lanes128 x) => x;
}
