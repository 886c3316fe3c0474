using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>Reads and writes as many 16-bit numbers as a vector has 32-bit places.</summary>
internal static unsafe class Storage16
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector128<uint> wide) => wide = Vector128.WidenLower(Vector128.CreateScalarUnsafe(Unsafe.ReadUnaligned<ulong>(source)).AsUInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector256<uint> wide) => wide = Vector256.WidenLower(Vector128.Load(source).ToVector256Unsafe());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector512<uint> wide) => wide = Vector512.WidenLower(Vector256.Load(source).ToVector512Unsafe());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector128<int> wide) => wide = Vector128.WidenLower(Vector128.CreateScalarUnsafe(Unsafe.ReadUnaligned<ulong>(source)).AsInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector256<int> wide) => wide = Vector256.WidenLower(Vector128.Load(source).ToVector256Unsafe().AsInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load(ushort* source, out Vector512<int> wide) => wide = Vector512.WidenLower(Vector256.Load(source).ToVector512Unsafe().AsInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector128<uint> wide, ushort* destination) => Unsafe.WriteUnaligned(destination, Vector128.Narrow(wide, wide).AsUInt64().ToScalar());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector256<uint> wide, ushort* destination) => Vector128.Narrow(wide.GetLower(), wide.GetUpper()).Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector512<uint> wide, ushort* destination) => Vector256.Narrow(wide.GetLower(), wide.GetUpper()).Store(destination);

    /// <summary>Whether a float16 is NaN: without its sign it is larger than infinity.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static bool AnyNaN(ushort* numbers, nint count)
    {
        nint w = Vector512<ushort>.Count, i = 0;
        Vector512<ushort> magnitude = Vector512.Create((ushort)(LanesConstants.HalfSign - 1)), infinity = Vector512.Create((ushort)LanesConstants.HalfInfinity), a = Vector512<ushort>.Zero, b = a;
        for (; i <= count - 2 * w; i += 2 * w)
        {
            a = Vector512.Max(a, Vector512.Load(numbers + i) & magnitude);
            b = Vector512.Max(b, Vector512.Load(numbers + i + w) & magnitude);
        }
        bool any = Vector512.GreaterThanAny(Vector512.Max(a, b), infinity);
        for (; i < count; i++)
            any |= (numbers[i] & (LanesConstants.HalfSign - 1)) > LanesConstants.HalfInfinity;
        return any;
    }
}
