namespace TransformerKernels;

/// <summary>So many floats side by side: what a CPU kernel is written in, once for every instruction set.</summary>
internal interface ILanes<T> : IElementary<T> where T : struct, ILanes<T>
{
    /// <summary>How many floats.</summary>
    static abstract int Count { get; }
    /// <summary>Reads <see cref="Count"/> floats; no alignment is needed.</summary>
    static abstract unsafe T Load(float* source);
    /// <summary>Writes <see cref="Count"/> floats; no alignment is needed.</summary>
    unsafe void Store(float* destination);
    /// <summary>Reads <see cref="Count"/> float16 numbers; every one is a float32.</summary>
    static abstract unsafe T LoadFloat16(ushort* source);
    /// <summary>Reads <see cref="Count"/> float16 numbers, none of them infinite or NaN, times <see cref="ScaledFloat16Storage.Unit"/>.</summary>
    static abstract unsafe T LoadScaledFloat16(ushort* source);
    /// <summary>Reads <see cref="Count"/> bfloat16 numbers; every one is a float32.</summary>
    static abstract unsafe T LoadBFloat16(ushort* source);
    /// <summary>Reads 2 · <see cref="Count"/> bfloat16 numbers: those at even and those at odd places, which takes half as many steps as one after the other.</summary>
    static abstract unsafe void LoadBFloat16(ushort* source, out T even, out T odd);
    /// <summary>Writes <see cref="Count"/> numbers as float16, to the nearest, ties to even; beyond its range they become infinite.</summary>
    unsafe void StoreFloat16(ushort* destination);
    /// <summary>Writes <see cref="Count"/> numbers as bfloat16, to the nearest, ties to even.</summary>
    unsafe void StoreBFloat16(ushort* destination);
    /// <summary>start, start + 1, start + 2 ...</summary>
    static abstract T Iota(float start);
    /// <summary>The sum of the lanes, in an order fixed by the width.</summary>
    float Sum();
    /// <summary>sum += a·b, fused where the hardware does it fast. Written to where it was read, a sum keeps its register in a loop; a new one was moved at every step.</summary>
    static abstract void AddProduct(ref T sum, T a, T b);
    /// <summary>Whether a &lt; b in any lane.</summary>
    static abstract bool AnyLess(T a, T b);
    /// <summary>Whether a = b in any lane.</summary>
    static abstract bool AnyEqual(T a, T b);
    /// <summary>A bit for each lane in which a &lt; b; lane 0 has the lowest bit.</summary>
    static abstract int BitsLess(T a, T b);
    /// <summary>then where the lane's bit is set, otherwise elsewhere; lane 0 has the lowest bit.</summary>
    static abstract T SelectBits(int bits, T then, T otherwise);
    /// <summary>The larger one; what a NaN gives depends on the processor.</summary>
    static abstract T MaxNative(T a, T b);
    /// <summary>The largest lane; what a NaN gives depends on the processor.</summary>
    float Largest();
    /// <summary>x − ⌊x⌋, and for <see cref="ScaleDown"/> the power 2^⌊x⌋, for x from <see cref="LowestPower"/> to 0.</summary>
    static abstract T Fraction(T x, out T power);
    /// <summary>x from 1 to 2 times a power of two of <see cref="Fraction"/>; below the normal range the result may be anything from 0 to 2⁻¹²⁶.</summary>
    static abstract T ScaleDown(T x, T power);
    /// <summary>The power of two for which <see cref="ScaleDown"/> makes 0 of 1.</summary>
    static abstract float LowestPower { get; }
    /// <summary>2^n of n + <see cref="LanesConstants.PowerBias"/>, for an integer n from −126 to 127: the sum's last places are the power's exponent.</summary>
    static abstract T BiasedPower(T biased);
    /// <summary>x·2^n for an integer n from −150 to 1 and x from ½ to 2, with gradual underflow.</summary>
    static abstract T ScaleGradually(T x, T n);
    /// <summary>a and b interleaved, and the halves of that added: sums of two lanes each, a's at even places, b's at odd ones. Every four lanes may be taken alone.</summary>
    static abstract T Fold(T a, T b);
    /// <summary>Of the 2 · <see cref="Count"/> floats in a and b: those at even and those at odd places.</summary>
    static abstract void Unzip(T a, T b, out T even, out T odd);
    /// <summary>Undoes <see cref="Unzip"/>.</summary>
    static abstract void Zip(T even, T odd, out T a, out T b);
}

internal static class LanesConstants
{
    /// <summary>The exponent that has the bits of 0.</summary>
    public const float LowestExponent = -127f;

    /// <summary>1.5 · 2^23, which leaves no place for a fraction: added to a number below 2^22 and taken off again, it rounds to the nearest integer, ties to even. And the bias of float32's exponents.</summary>
    public const float PowerBias = 12582912f + 127;

    /// <summary>The bits of the float √½.</summary>
    public const int SqrtHalfBits = 0x3f3504f3;

    // float16: a sign, 5 bits of exponent, 10 of fraction; float32 has 8 and 23.
    /// <summary>By how many bits float32's fraction is longer than float16's.</summary>
    public const int HalfShift = 13;
    /// <summary>The bit of float16's sign.</summary>
    public const int HalfSign = 0x8000;
    /// <summary>float16's infinity.</summary>
    public const int HalfInfinity = 0x7c00;
    /// <summary>Sign, exponent and fraction of a float16 that is moved to where float32's fraction is, its sign to float32's.</summary>
    public const int HalfBits = int.MinValue | 0x7fff << HalfShift;
    /// <summary>The bits of the float 2¹¹², the difference of the exponents' biases.</summary>
    public const int HalfBias = (127 - 15 + 127) << 23;
    /// <summary>The bits of the float32 from which on float16 is infinite: 65520, half a unit above the largest.</summary>
    public const int HalfOverflow = 0x477ff000;
    /// <summary>The bits of the smallest normal float16, 2⁻¹⁴, as a float32.</summary>
    public const int HalfSmallestNormal = (127 - 14) << 23;
    /// <summary>The bits of the float ½: added to a number below the normal range of float16, it leaves the number's float16 bits in its own last places.</summary>
    public const int HalfSubnormalMagic = 126 << 23;
    /// <summary>Of two bfloat16 numbers side by side, the second one's bits; behind it they are a float's.</summary>
    public const uint UpperHalf = 0xffff0000;
    /// <summary>What <see cref="ILanes{T}.ScaleGradually"/> adds to an exponent, so that the power is a normal number for every n it takes, and the power of two that takes it off again: the one product that rounds.</summary>
    public const float ExponentShift = 63f, ShiftBack = 1.08420217e-19f;
    /// <summary>The bit of each lane.</summary>
    public static ReadOnlySpan<int> Bits => [1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15];
    /// <summary>float32's infinity.</summary>
    public const int Infinity = 0x7f800000;
    /// <summary>What makes a NaN of float16, of bfloat16, quiet.</summary>
    public const int QuietHalf = 0x7e00, QuietBFloat16 = 0x40;
}
