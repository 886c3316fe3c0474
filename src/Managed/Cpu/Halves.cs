using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>What is made of all lanes of a vector: of one half and the other, until one lane is left.</summary>
internal static class Halves
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Largest(Vector512<float> v) => Largest(Vector256.MaxNative(v.GetLower(), v.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Largest(Vector256<float> v) => Largest(Vector128.MaxNative(v.GetLower(), v.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Largest(Vector128<float> v)
    {
        Vector128<float> largest = Vector128.MaxNative(v, Vector128.Shuffle(v, Vector128.Create(2, 3, 0, 1)));
        return Vector128.MaxNative(largest, Vector128.Shuffle(largest, Vector128.Create(1, 0, 3, 2))).ToScalar();
    }
}
