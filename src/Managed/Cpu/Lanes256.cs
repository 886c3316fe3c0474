using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>8 floats side by side. The text of Lanes128, Lanes256 and Lanes512 is one, up to the width; a test compares them.</summary>
internal struct Lanes256 : ILanes<Lanes256>
{
    private Vector256<float> v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Lanes256(Vector256<float> value) => v = value;

    public readonly Vector256<float> Vector
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => v;
    }

    public static Lanes256 Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Vector256<float>.Zero);
    }

    public static Lanes256 One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Vector256<float>.One);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 From(float value) => new(Vector256.Create(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator -(Lanes256 x) => new(-x.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator +(Lanes256 a, Lanes256 b) => new(a.v + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator +(Lanes256 a, float b) => new(a.v + Vector256.Create(b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator +(float a, Lanes256 b) => new(Vector256.Create(a) + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator -(Lanes256 a, Lanes256 b) => new(a.v - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator -(Lanes256 a, float b) => new(a.v - Vector256.Create(b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator -(float a, Lanes256 b) => new(Vector256.Create(a) - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator *(Lanes256 a, Lanes256 b) => new(a.v * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator *(Lanes256 a, float b) => new(a.v * b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator *(float a, Lanes256 b) => new(a * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator /(Lanes256 a, Lanes256 b) => new(a.v / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator /(Lanes256 a, float b) => new(a.v / b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator /(float a, Lanes256 b) => new(Vector256.Create(a) / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Abs(Lanes256 x) => new(Vector256.Abs(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Sqrt(Lanes256 x) => new(Vector256.Sqrt(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Floor(Lanes256 x) => new(Vector256.Floor(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Min(Lanes256 a, Lanes256 b) => new(Vector256.Min(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Max(Lanes256 a, Lanes256 b) => new(Vector256.Max(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Relu(Lanes256 x) => new(Vector256.MaxNative(Vector256<float>.Zero, x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Clamp(Lanes256 x, Lanes256 low, Lanes256 high) => new(Vector256.MinNative(high.v, Vector256.MaxNative(low.v, x.v)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 SelectLess(Lanes256 a, Lanes256 b, Lanes256 then, Lanes256 otherwise) => new(Vector256.ConditionalSelect(Vector256.LessThan(a.v, b.v), then.v, otherwise.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 SelectEqual(Lanes256 a, Lanes256 b, Lanes256 then, Lanes256 otherwise) => new(Vector256.ConditionalSelect(Vector256.Equals(a.v, b.v), then.v, otherwise.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(ref Lanes256 sum, Lanes256 a, Lanes256 b) => sum.v = Vector256.MultiplyAddEstimate(a.v, b.v, sum.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 MultiplyAdd(Lanes256 a, Lanes256 b, Lanes256 c) => new(Vector256.MultiplyAddEstimate(a.v, b.v, c.v));

    // The native minimum and maximum return their second operand if either is NaN (x86), or NaN (Arm).
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 MinKeepingNaN(float bound, Lanes256 x) => new(Vector256.MinNative(Vector256.Create(bound), x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 MaxKeepingNaN(float bound, Lanes256 x) => new(Vector256.MaxNative(Vector256.Create(bound), x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Round(Lanes256 x) => new(Vector256.Round(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 PowerOfTwo(Lanes256 n) => new(Vector256.ShiftLeft(Vector256.ConvertToInt32Native(n.v) + Vector256.Create(127), 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Scale(Lanes256 x, Lanes256 n)
    {
        Lanes256 half = Floor(n * 0.5f);
        return x * PowerOfTwo(half) * PowerOfTwo(n - half);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Mantissa(Lanes256 x, out Lanes256 exponent)
    {
        Vector256<int> bits = x.v.AsInt32();
        Vector256<int> power = Vector256.ShiftRightArithmetic(bits - Vector256.Create(LanesConstants.SqrtHalfBits), 23);
        exponent = new(Vector256.ConvertToSingle(power));
        return new((bits - Vector256.ShiftLeft(power, 23)).AsSingle());
    }

    public static int Count
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => 8;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes256 Load(float* source) => new(Vector256.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Store(float* destination) => v.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes256 LoadFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector256<int> wide);
        // Scaling by the difference of the biases makes normal numbers of subnormal ones too. Infinity and NaN take the largest exponent.
        Vector256<int> number = (Widened(wide).AsSingle() * Vector256.Create(LanesConstants.HalfBias).AsSingle()).AsInt32(), infinity = Vector256.Create(LanesConstants.HalfInfinity);
        return new(Vector256.ConditionalSelect(Vector256.Equals(wide & infinity, infinity), number | Vector256.Create(LanesConstants.Infinity), number).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes256 LoadScaledFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector256<int> wide);
        return new(Widened(wide).AsSingle());
    }

    // Of numbers widened with their sign. Shifted, each bit stands where float32 has it, but for copies of the sign in the upper places of the exponent.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<int> Widened(Vector256<int> wide) => Vector256.ShiftLeft(wide, LanesConstants.HalfShift) & Vector256.Create(LanesConstants.HalfBits);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes256 LoadBFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector256<uint> wide);
        return new(Vector256.ShiftLeft(wide, 16).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void LoadBFloat16(ushort* source, out Lanes256 even, out Lanes256 odd)
    {
        Vector256<uint> both = Vector256.Load((uint*)source);
        even = new(Vector256.ShiftLeft(both, 16).AsSingle());
        odd = new((both & Vector256.Create(LanesConstants.UpperHalf)).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreFloat16(ushort* destination)
    {
        Vector256<int> bits = v.AsInt32(), magnitude = bits & Vector256.Create(int.MaxValue);
        Vector256<int> odd = Vector256.ShiftRightLogical(magnitude, LanesConstants.HalfShift) & Vector256<int>.One;
        Vector256<int> normal = Vector256.ShiftRightLogical(magnitude - Vector256.Create(LanesConstants.HalfSmallestNormal - (1 << 23)) + odd
            + Vector256.Create((1 << (LanesConstants.HalfShift - 1)) - 1), LanesConstants.HalfShift);
        Vector256<float> magic = Vector256.Create(LanesConstants.HalfSubnormalMagic).AsSingle();
        Vector256<int> subnormal = (magnitude.AsSingle() + magic).AsInt32() - magic.AsInt32();
        Vector256<int> half = Vector256.ConditionalSelect(Vector256.LessThan(magnitude, Vector256.Create(LanesConstants.HalfSmallestNormal)), subnormal, normal);
        half = Vector256.ConditionalSelect(Vector256.LessThan(magnitude, Vector256.Create(LanesConstants.HalfOverflow)), half, Vector256.Create(LanesConstants.HalfInfinity));
        half = Vector256.ConditionalSelect(Vector256.GreaterThan(magnitude, Vector256.Create(LanesConstants.Infinity)), Vector256.Create(LanesConstants.QuietHalf), half);
        Storage16.Store((half | (Vector256.ShiftRightLogical(bits, 16) & Vector256.Create(LanesConstants.HalfSign))).AsUInt32(), destination);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreBFloat16(ushort* destination)
    {
        Vector256<int> bits = v.AsInt32(), upper = Vector256.ShiftRightLogical(bits, 16);
        Vector256<int> rounded = Vector256.ShiftRightLogical(bits + (upper & Vector256<int>.One) + Vector256.Create((int)short.MaxValue), 16);
        Vector256<int> isNumber = Vector256.Equals(v, v).AsInt32();
        Storage16.Store(Vector256.ConditionalSelect(isNumber, rounded, upper | Vector256.Create(LanesConstants.QuietBFloat16)).AsUInt32(), destination);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Iota(float start) => new(Vector256.Create(start) + Vector256.CreateSequence(0f, 1f));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Sum() => Vector256.Sum(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyLess(Lanes256 a, Lanes256 b) => Vector256.LessThanAny(a.v, b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyEqual(Lanes256 a, Lanes256 b) => Vector256.EqualsAny(a.v, b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int BitsLess(Lanes256 a, Lanes256 b) => (int)Vector256.LessThan(a.v, b.v).ExtractMostSignificantBits();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 SelectBits(int bits, Lanes256 then, Lanes256 otherwise)
    {
        Vector256<int> isOff = Vector256.Equals(Vector256.Create(bits) & Vector256.Create(LanesConstants.Bits), Vector256<int>.Zero);
        return new(Vector256.ConditionalSelect(isOff.AsSingle(), otherwise.v, then.v));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 MaxNative(Lanes256 a, Lanes256 b) => new(Vector256.MaxNative(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Largest()
    {
        // Written out, for a loop isn't made so, and takes four times as long.
        Vector256<float> largest = LargerOf(LargerOf(LargerOf(LargerOf(v, 8), 4), 2), 1);
        return largest.ToScalar();
    }

    // Of each lane and the one at a distance; of itself beyond the width.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> LargerOf(Vector256<float> x, int distance) =>
        distance < Count ? Vector256.MaxNative(x, Vector256.Shuffle(x, Vector256<int>.Indices ^ Vector256.Create(distance))) : x;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Fraction(Lanes256 x, out Lanes256 power)
    {
        Lanes256 floor = Floor(x);
        power = new(Vector256.ShiftLeft(Vector256.ConvertToInt32Native(floor.v), 23).AsSingle());
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
    public static Lanes256 ScaleDown(Lanes256 x, Lanes256 power)
    {
        return new((x.v.AsInt32() + power.v.AsInt32()).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 BiasedPower(Lanes256 biased) => new(Vector256.ShiftLeft(biased.v.AsInt32(), 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 ScaleGradually(Lanes256 x, Lanes256 n)
    {
        return x * PowerOfTwo(n + LanesConstants.ExponentShift) * LanesConstants.ShiftBack;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Fold(Lanes256 a, Lanes256 b)
    {
        if (Avx.IsSupported)
            return new(Avx.UnpackLow(a.v, b.v) + Avx.UnpackHigh(a.v, b.v));
        Zip(a, b, out Lanes256 lower, out Lanes256 upper);
        return lower + upper;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Unzip(Lanes256 a, Lanes256 b, out Lanes256 even, out Lanes256 odd)
    {
        // An index outside the vector gives 0: a fills the lower half, b the upper one.
        Vector256<int> twice = Vector256.ShiftLeft(Vector256<int>.Indices, 1), ofB = twice - Vector256.Create(Count);
        even = new(Vector256.Shuffle(a.v, twice) | Vector256.Shuffle(b.v, ofB));
        odd = new(Vector256.Shuffle(a.v, twice + Vector256<int>.One) | Vector256.Shuffle(b.v, ofB + Vector256<int>.One));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Zip(Lanes256 even, Lanes256 odd, out Lanes256 a, out Lanes256 b)
    {
        Vector256<int> half = Vector256.ShiftRightLogical(Vector256<int>.Indices, 1), upper = half + Vector256.Create(Count / 2);
        Vector256<float> isEven = Vector256.Equals(Vector256<int>.Indices & Vector256<int>.One, Vector256<int>.Zero).AsSingle();
        a = new(Vector256.ConditionalSelect(isEven, Vector256.Shuffle(even.v, half), Vector256.Shuffle(odd.v, half)));
        b = new(Vector256.ConditionalSelect(isEven, Vector256.Shuffle(even.v, upper), Vector256.Shuffle(odd.v, upper)));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Exp(Lanes256 x) => Elementary.Exp(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Expm1(Lanes256 x) => Elementary.Expm1(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Log(Lanes256 x) => Elementary.Log(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Log1p(Lanes256 x) => Elementary.Log1p(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Tanh(Lanes256 x) => Elementary.Tanh(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Sigmoid(Lanes256 x) => Elementary.Sigmoid(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Softplus(Lanes256 x) => Elementary.Softplus(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 LogSigmoid(Lanes256 x) => -Elementary.Softplus(-x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Tanh(Lanes256 x, out Lanes256 slope) => Elementary.Tanh(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Sigmoid(Lanes256 x, out Lanes256 slope) => Elementary.Sigmoid(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Softplus(Lanes256 x, out Lanes256 slope) => Elementary.Softplus(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Detach(Lanes256 x) => x;
}
