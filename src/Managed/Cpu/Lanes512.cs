using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>16 floats side by side. The text of Lanes128, Lanes256 and Lanes512 is one, up to the width; a test compares them.</summary>
internal struct Lanes512 : ILanes<Lanes512>
{
    private Vector512<float> v;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Lanes512(Vector512<float> value) => v = value;

    public readonly Vector512<float> Vector
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => v;
    }

    public static Lanes512 Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Vector512<float>.Zero);
    }

    public static Lanes512 One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Vector512<float>.One);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 From(float value) => new(Vector512.Create(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator -(Lanes512 x) => new(-x.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator +(Lanes512 a, Lanes512 b) => new(a.v + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator +(Lanes512 a, float b) => new(a.v + Vector512.Create(b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator +(float a, Lanes512 b) => new(Vector512.Create(a) + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator -(Lanes512 a, Lanes512 b) => new(a.v - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator -(Lanes512 a, float b) => new(a.v - Vector512.Create(b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator -(float a, Lanes512 b) => new(Vector512.Create(a) - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator *(Lanes512 a, Lanes512 b) => new(a.v * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator *(Lanes512 a, float b) => new(a.v * b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator *(float a, Lanes512 b) => new(a * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator /(Lanes512 a, Lanes512 b) => new(a.v / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator /(Lanes512 a, float b) => new(a.v / b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator /(float a, Lanes512 b) => new(Vector512.Create(a) / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Abs(Lanes512 x) => new(Vector512.Abs(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Sqrt(Lanes512 x) => new(Vector512.Sqrt(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Floor(Lanes512 x) => new(Vector512.Floor(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Min(Lanes512 a, Lanes512 b) => new(Vector512.Min(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Max(Lanes512 a, Lanes512 b) => new(Vector512.Max(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Relu(Lanes512 x) => new(Vector512.MaxNative(Vector512<float>.Zero, x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Clamp(Lanes512 x, Lanes512 low, Lanes512 high) => new(Vector512.MinNative(high.v, Vector512.MaxNative(low.v, x.v)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 SelectLess(Lanes512 a, Lanes512 b, Lanes512 then, Lanes512 otherwise) => new(Vector512.ConditionalSelect(Vector512.LessThan(a.v, b.v), then.v, otherwise.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 SelectEqual(Lanes512 a, Lanes512 b, Lanes512 then, Lanes512 otherwise) => new(Vector512.ConditionalSelect(Vector512.Equals(a.v, b.v), then.v, otherwise.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(ref Lanes512 sum, Lanes512 a, Lanes512 b) => sum.v = Vector512.MultiplyAddEstimate(a.v, b.v, sum.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 MultiplyAdd(Lanes512 a, Lanes512 b, Lanes512 c) => new(Vector512.MultiplyAddEstimate(a.v, b.v, c.v));

    // The native minimum and maximum return their second operand if either is NaN (x86), or NaN (Arm).
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 MinKeepingNaN(float bound, Lanes512 x) => new(Vector512.MinNative(Vector512.Create(bound), x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 MaxKeepingNaN(float bound, Lanes512 x) => new(Vector512.MaxNative(Vector512.Create(bound), x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Round(Lanes512 x) => new(Vector512.Round(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 PowerOfTwo(Lanes512 n) => new(Vector512.ShiftLeft(Vector512.ConvertToInt32Native(n.v) + Vector512.Create(127), 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Scale(Lanes512 x, Lanes512 n)
    {
        if (Avx512F.IsSupported)
            return new(Avx512F.Scale(x.v, n.v));
        Lanes512 half = Floor(n * 0.5f);
        return x * PowerOfTwo(half) * PowerOfTwo(n - half);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Mantissa(Lanes512 x, out Lanes512 exponent)
    {
        Vector512<int> bits = x.v.AsInt32();
        Vector512<int> power = Vector512.ShiftRightArithmetic(bits - Vector512.Create(LanesConstants.SqrtHalfBits), 23);
        exponent = new(Vector512.ConvertToSingle(power));
        return new((bits - Vector512.ShiftLeft(power, 23)).AsSingle());
    }

    public static int Count
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => 16;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes512 Load(float* source) => new(Vector512.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Store(float* destination) => v.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes512 LoadFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector512<int> wide);
        // Scaling by the difference of the biases makes normal numbers of subnormal ones too. Infinity and NaN take the largest exponent.
        Vector512<int> number = (Widened(wide).AsSingle() * Vector512.Create(LanesConstants.HalfBias).AsSingle()).AsInt32(), infinity = Vector512.Create(LanesConstants.HalfInfinity);
        return new(Vector512.ConditionalSelect(Vector512.Equals(wide & infinity, infinity), number | Vector512.Create(LanesConstants.Infinity), number).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes512 LoadScaledFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector512<int> wide);
        return new(Widened(wide).AsSingle());
    }

    // Of numbers widened with their sign. Shifted, each bit stands where float32 has it, but for copies of the sign in the upper places of the exponent.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<int> Widened(Vector512<int> wide) => Vector512.ShiftLeft(wide, LanesConstants.HalfShift) & Vector512.Create(LanesConstants.HalfBits);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Lanes512 LoadBFloat16(ushort* source)
    {
        Storage16.Load(source, out Vector512<uint> wide);
        return new(Vector512.ShiftLeft(wide, 16).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void LoadBFloat16(ushort* source, out Lanes512 even, out Lanes512 odd)
    {
        Vector512<uint> both = Vector512.Load((uint*)source);
        even = new(Vector512.ShiftLeft(both, 16).AsSingle());
        odd = new((both & Vector512.Create(LanesConstants.UpperHalf)).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreFloat16(ushort* destination)
    {
        Vector512<int> bits = v.AsInt32(), magnitude = bits & Vector512.Create(int.MaxValue);
        Vector512<int> odd = Vector512.ShiftRightLogical(magnitude, LanesConstants.HalfShift) & Vector512<int>.One;
        Vector512<int> normal = Vector512.ShiftRightLogical(magnitude - Vector512.Create(LanesConstants.HalfSmallestNormal - (1 << 23)) + odd
            + Vector512.Create((1 << (LanesConstants.HalfShift - 1)) - 1), LanesConstants.HalfShift);
        Vector512<float> magic = Vector512.Create(LanesConstants.HalfSubnormalMagic).AsSingle();
        Vector512<int> subnormal = (magnitude.AsSingle() + magic).AsInt32() - magic.AsInt32();
        Vector512<int> half = Vector512.ConditionalSelect(Vector512.LessThan(magnitude, Vector512.Create(LanesConstants.HalfSmallestNormal)), subnormal, normal);
        half = Vector512.ConditionalSelect(Vector512.LessThan(magnitude, Vector512.Create(LanesConstants.HalfOverflow)), half, Vector512.Create(LanesConstants.HalfInfinity));
        half = Vector512.ConditionalSelect(Vector512.GreaterThan(magnitude, Vector512.Create(LanesConstants.Infinity)), Vector512.Create(LanesConstants.QuietHalf), half);
        Storage16.Store((half | (Vector512.ShiftRightLogical(bits, 16) & Vector512.Create(LanesConstants.HalfSign))).AsUInt32(), destination);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void StoreBFloat16(ushort* destination)
    {
        Vector512<int> bits = v.AsInt32(), upper = Vector512.ShiftRightLogical(bits, 16);
        Vector512<int> rounded = Vector512.ShiftRightLogical(bits + (upper & Vector512<int>.One) + Vector512.Create((int)short.MaxValue), 16);
        Vector512<int> isNumber = Vector512.Equals(v, v).AsInt32();
        Storage16.Store(Vector512.ConditionalSelect(isNumber, rounded, upper | Vector512.Create(LanesConstants.QuietBFloat16)).AsUInt32(), destination);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Iota(float start) => new(Vector512.Create(start) + Vector512.CreateSequence(0f, 1f));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Sum() => Vector512.Sum(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyLess(Lanes512 a, Lanes512 b) => Vector512.LessThanAny(a.v, b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnyEqual(Lanes512 a, Lanes512 b) => Vector512.EqualsAny(a.v, b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int BitsLess(Lanes512 a, Lanes512 b) => (int)Vector512.LessThan(a.v, b.v).ExtractMostSignificantBits();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 SelectBits(int bits, Lanes512 then, Lanes512 otherwise)
    {
        Vector512<int> isOff = Vector512.Equals(Vector512.Create(bits) & Vector512.Create(LanesConstants.Bits), Vector512<int>.Zero);
        return new(Vector512.ConditionalSelect(isOff.AsSingle(), otherwise.v, then.v));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 MaxNative(Lanes512 a, Lanes512 b) => new(Vector512.MaxNative(a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Largest()
    {
        // Written out, for a loop isn't made so, and takes four times as long.
        Vector512<float> largest = LargerOf(LargerOf(LargerOf(LargerOf(v, 8), 4), 2), 1);
        return largest.ToScalar();
    }

    // Of each lane and the one at a distance; of itself beyond the width.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> LargerOf(Vector512<float> x, int distance) =>
        distance < Count ? Vector512.MaxNative(x, Vector512.Shuffle(x, Vector512<int>.Indices ^ Vector512.Create(distance))) : x;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Fraction(Lanes512 x, out Lanes512 power)
    {
        if (Avx512F.IsSupported)
        {
            power = x;
            return x - Floor(x);
        }
        Lanes512 floor = Floor(x);
        power = new(Vector512.ShiftLeft(Vector512.ConvertToInt32Native(floor.v), 23).AsSingle());
        return x - floor;
    }

    public static float LowestPower
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get
        {
            if (Avx512F.IsSupported)
                return -150f;
            return LanesConstants.LowestExponent;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 ScaleDown(Lanes512 x, Lanes512 power)
    {
        if (Avx512F.IsSupported)
            return new(Avx512F.Scale(x.v, power.v));
        return new((x.v.AsInt32() + power.v.AsInt32()).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 BiasedPower(Lanes512 biased) => new(Vector512.ShiftLeft(biased.v.AsInt32(), 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 ScaleGradually(Lanes512 x, Lanes512 n)
    {
        if (Avx512F.IsSupported)
            return new(Avx512F.Scale(x.v, n.v));
        return x * PowerOfTwo(n + LanesConstants.ExponentShift) * LanesConstants.ShiftBack;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Fold(Lanes512 a, Lanes512 b)
    {
        if (Avx512F.IsSupported)
            return new(Avx512F.UnpackLow(a.v, b.v) + Avx512F.UnpackHigh(a.v, b.v));
        Zip(a, b, out Lanes512 lower, out Lanes512 upper);
        return lower + upper;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Unzip(Lanes512 a, Lanes512 b, out Lanes512 even, out Lanes512 odd)
    {
        // An index outside the vector gives 0: a fills the lower half, b the upper one.
        Vector512<int> twice = Vector512.ShiftLeft(Vector512<int>.Indices, 1), ofB = twice - Vector512.Create(Count);
        even = new(Vector512.Shuffle(a.v, twice) | Vector512.Shuffle(b.v, ofB));
        odd = new(Vector512.Shuffle(a.v, twice + Vector512<int>.One) | Vector512.Shuffle(b.v, ofB + Vector512<int>.One));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Zip(Lanes512 even, Lanes512 odd, out Lanes512 a, out Lanes512 b)
    {
        Vector512<int> half = Vector512.ShiftRightLogical(Vector512<int>.Indices, 1), upper = half + Vector512.Create(Count / 2);
        Vector512<float> isEven = Vector512.Equals(Vector512<int>.Indices & Vector512<int>.One, Vector512<int>.Zero).AsSingle();
        a = new(Vector512.ConditionalSelect(isEven, Vector512.Shuffle(even.v, half), Vector512.Shuffle(odd.v, half)));
        b = new(Vector512.ConditionalSelect(isEven, Vector512.Shuffle(even.v, upper), Vector512.Shuffle(odd.v, upper)));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Exp(Lanes512 x) => Elementary.Exp(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Expm1(Lanes512 x) => Elementary.Expm1(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Log(Lanes512 x) => Elementary.Log(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Log1p(Lanes512 x) => Elementary.Log1p(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Tanh(Lanes512 x) => Elementary.Tanh(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Sigmoid(Lanes512 x) => Elementary.Sigmoid(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Softplus(Lanes512 x) => Elementary.Softplus(x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 LogSigmoid(Lanes512 x) => -Elementary.Softplus(-x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Tanh(Lanes512 x, out Lanes512 slope) => Elementary.Tanh(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Sigmoid(Lanes512 x, out Lanes512 slope) => Elementary.Sigmoid(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Softplus(Lanes512 x, out Lanes512 slope) => Elementary.Softplus(x, out slope);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Detach(Lanes512 x) => x;
}
