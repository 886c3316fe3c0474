using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>Numbers of 16 bits to float32 and back, in integers: not every device has float16, and none is asked for it.</summary>
internal static class GpuStorage
{
    // The bits of float32: those of a float16 stand so far to the left, and its exponent counts from so much less.
    private const int Float16Shift = 13, Float16Bias = 112 << 23;

    // Bits of float32: 2⁻¹⁴, the smallest normal float16; 2¹⁶, beyond the largest; a half, whose units are those of a float16 below 2⁻¹⁴; ∞.
    private const int SmallestNormal = 113 << 23, BeyondFloat16 = 143 << 23, Half = 126 << 23, Infinity = 255 << 23;

    // Without the sign; the sign of 16 bits.
    private const int Magnitude = int.MaxValue, Magnitude16 = short.MaxValue, Sign16 = 0x8000;

    // Of float16.
    private const int Infinity16 = 0x7c00, QuietNaN16 = 0x7e00;

    private const int QuietBFloat16 = 0x40;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float OfBFloat16(int bits) => BitConverter.Int32BitsToSingle(bits << 16);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float OfFloat16(int bits)
    {
        int magnitude = (bits & Magnitude16) << Float16Shift, wide = magnitude + Float16Bias;
        if ((bits & Infinity16) == Infinity16)
            wide = magnitude | Infinity;
        // Below the normal numbers the fraction is added to 2⁻¹⁴, which is then taken off.
        float x = (bits & Infinity16) == 0
            ? BitConverter.Int32BitsToSingle(magnitude + SmallestNormal) - BitConverter.Int32BitsToSingle(SmallestNormal) : BitConverter.Int32BitsToSingle(wide);
        return (bits & Sign16) != 0 ? -x : x;
    }

    /// <summary>Rounded to even.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int ToBFloat16(float x)
    {
        int bits = BitConverter.SingleToInt32Bits(x);
        return (bits & Magnitude) > Infinity ? ((bits >> 16) & ushort.MaxValue) | QuietBFloat16 : ((bits + ((bits >> 16) & 1) + Magnitude16) >> 16) & ushort.MaxValue;
    }

    /// <summary>Rounded to even.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int ToFloat16(float x)
    {
        int bits = BitConverter.SingleToInt32Bits(x), magnitude = bits & Magnitude;
        const int halfUnit = (1 << (Float16Shift - 1)) - 1;
        int rounded = (magnitude - Float16Bias + halfUnit + ((magnitude >> Float16Shift) & 1)) >> Float16Shift;
        if (magnitude < SmallestNormal)
            rounded = BitConverter.SingleToInt32Bits(BitConverter.Int32BitsToSingle(magnitude) + BitConverter.Int32BitsToSingle(Half)) - Half;
        if (magnitude >= BeyondFloat16)
            rounded = magnitude > Infinity ? QuietNaN16 : Infinity16;
        return rounded | ((bits >> 16) & Sign16);
    }
}

/// <summary>Four numbers that a thread takes at a time: their loads are under way together.</summary>
internal readonly struct FourNumbers(float first, float second, float third, float fourth)
{
    public readonly float First = first, Second = second, Third = third, Fourth = fourth;

    /// <summary>Four columns of a row that begins there, a group's width apart; another number from an end on, before which the first lies.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static FourNumbers Of(ArrayView<float> memory, long at, long column, int apart, long end, float beyond)
    {
        long j1 = column + apart, j2 = j1 + apart, j3 = j2 + apart;
        float x0 = memory[at + column], x1 = beyond, x2 = beyond, x3 = beyond;
        if (j1 < end)
            x1 = memory[at + j1];
        if (j2 < end)
            x2 = memory[at + j2];
        if (j3 < end)
            x3 = memory[at + j3];
        return new(x0, x1, x2, x3);
    }

    public float Largest
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get
        {
            float low = First > Second ? First : Second, high = Third > Fourth ? Third : Fourth;
            return low > high ? low : high;
        }
    }
}

/// <summary>Rows of float32, float16 or bfloat16 numbers in a GPU's memory; which one, all threads find alike.</summary>
internal readonly struct GpuStoredRows
{
    private readonly GpuTensor<float> floats;
    private readonly GpuTensor<ushort> halves;
    private readonly int has16Bits, isFloat16;

    public GpuStoredRows(GpuDevice device, in TensorView view, string name)
    {
        has16Bits = view.Type == ElementType.Float32 ? 0 : 1;
        isFloat16 = view.Type == ElementType.Float16 ? 1 : 0;
        floats = new(device, has16Bits != 0 ? default : view, name);
        halves = new(device, has16Bits != 0 ? view : default, name);
    }

    /// <summary>Where a row begins.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long At(long row) => has16Bits != 0 ? halves.At(row, 0) : floats.At(row, 0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Read(long at) => has16Bits != 0 ? Widened(halves.Memory[at]) : floats.Memory[at];

    /// <summary>Four columns, a group's width apart; 0 from an end on, before which the first lies.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public FourNumbers ReadFour(long at, long column, int apart, long end)
    {
        FourNumbers four;
        if (has16Bits != 0)
        {
            long j1 = column + apart, j2 = j1 + apart, j3 = j2 + apart;
            ArrayView<ushort> memory = halves.Memory;
            int bits0 = memory[at + column], bits1 = 0, bits2 = 0, bits3 = 0;
            if (j1 < end)
                bits1 = memory[at + j1];
            if (j2 < end)
                bits2 = memory[at + j2];
            if (j3 < end)
                bits3 = memory[at + j3];
            four = new(Widened(bits0), Widened(bits1), Widened(bits2), Widened(bits3));
        }
        else
        {
            four = FourNumbers.Of(floats.Memory, at, column, apart, end, 0f);
        }
        return four;
    }

    /// <summary>Rounds a number into its place.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Write(long at, float x)
    {
        if (has16Bits != 0)
            halves.Memory[at] = (ushort)(isFloat16 != 0 ? GpuStorage.ToFloat16(x) : GpuStorage.ToBFloat16(x));
        else
            floats.Memory[at] = x;
    }

    /// <summary>Writes float32, where that is known.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void WriteFloat(long at, float x) => floats.Memory[at] = x;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long AtFloat(long row) => floats.At(row, 0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private float Widened(int bits) => isFloat16 != 0 ? GpuStorage.OfFloat16(bits) : GpuStorage.OfBFloat16(bits);
}
