using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Reads and writes as many 16-bit numbers as a vector has 32-bit places.</summary>
internal static unsafe class Storage16
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector128<uint> wide) => wide = Vector128.WidenLower(Vector128.CreateScalarUnsafe(Unsafe.ReadUnaligned<ulong>(source)).AsUInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector256<uint> wide) => wide = Vector256.WidenLower(Vector128.Load(source).ToVector256Unsafe());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector512<uint> wide) =>
        wide = Avx512F.IsSupported ? Avx512F.ConvertToVector512UInt32(Vector256.Load(source)) : Vector512.WidenLower(Vector256.Load(source).ToVector512Unsafe());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector128<int> wide) => wide = Vector128.WidenLower(Vector128.CreateScalarUnsafe(Unsafe.ReadUnaligned<ulong>(source)).AsInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector256<int> wide) => wide = Vector256.WidenLower(Vector128.Load(source).ToVector256Unsafe().AsInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector512<int> wide) =>
        wide = Avx512F.IsSupported ? Avx512F.ConvertToVector512Int32(Vector256.Load((short*)source)) : Vector512.WidenLower(Vector256.Load(source).ToVector512Unsafe().AsInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector128<uint> wide, ushort* destination) => Unsafe.WriteUnaligned(destination, Vector128.Narrow(wide, wide).AsUInt64().ToScalar());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector256<uint> wide, ushort* destination) => Vector128.Narrow(wide.GetLower(), wide.GetUpper()).Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector512<uint> wide, ushort* destination) =>
        (Avx512F.IsSupported ? Avx512F.ConvertToVector256UInt16(wide) : Vector256.Narrow(wide.GetLower(), wide.GetUpper())).Store(destination);

    /// <summary>Whether any float16, but for its sign, is larger than a limit, or is NaN: as integers they are in the same order, and NaN comes last.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static bool AnyBeyond(ushort limit, ushort* numbers, nint count)
    {
        const ushort magnitude = ushort.MaxValue >> 1;
        bool any = false;
        nint i = 0;
        if (Vector512.IsHardwareAccelerated)
        {
            Vector512<ushort> a = Vector512<ushort>.Zero, b = a, magnitudes = Vector512.Create(magnitude);
            for (nint w = Vector512<ushort>.Count; i <= count - 2 * w; i += 2 * w)
            {
                a = Vector512.Max(a, Vector512.Load(numbers + i) & magnitudes);
                b = Vector512.Max(b, Vector512.Load(numbers + i + w) & magnitudes);
            }
            any = Vector512.GreaterThanAny(Vector512.Max(a, b), Vector512.Create(limit));
        }
        else
        {
            Vector<ushort> a = Vector<ushort>.Zero, b = a, magnitudes = new(magnitude);
            for (nint w = Vector<ushort>.Count; i <= count - 2 * w; i += 2 * w)
            {
                a = Vector.Max(a, Vector.Load(numbers + i) & magnitudes);
                b = Vector.Max(b, Vector.Load(numbers + i + w) & magnitudes);
            }
            any = Vector.GreaterThanAny(Vector.Max(a, b), new Vector<ushort>(limit));
        }
        for (; i < count; i++)
            any |= (numbers[i] & magnitude) > limit;
        return any;
    }
}
