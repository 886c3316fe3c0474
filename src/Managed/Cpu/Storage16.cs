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
}
