using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>How numbers are stored: a kernel's type argument, so that its loop has no branch for it.</summary>
internal unsafe interface IStorage
{
    /// <summary>The bytes of a number.</summary>
    static abstract int Size { get; }

    /// <summary>Reads a vector of numbers.</summary>
    static abstract V Load<V>(byte* source) where V : struct, ILanes<V>;

    /// <summary>Reads two vectors of numbers, in an order of the storage's own: for what doesn't ask where a number stands.</summary>
    static abstract void Load<V>(byte* source, out V a, out V b) where V : struct, ILanes<V>;
}

internal readonly unsafe struct Float32Storage : IStorage
{
    public static int Size => sizeof(float);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load<V>(byte* source) where V : struct, ILanes<V> => V.Load((float*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load<V>(byte* source, out V a, out V b) where V : struct, ILanes<V> => (a, b) = (V.Load((float*)source), V.Load((float*)source + V.Count));
}

internal readonly unsafe struct Float16Storage : IStorage
{
    public static int Size => sizeof(ushort);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load<V>(byte* source) where V : struct, ILanes<V> => V.LoadFloat16((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load<V>(byte* source, out V a, out V b) where V : struct, ILanes<V> => (a, b) = (V.LoadFloat16((ushort*)source), V.LoadFloat16((ushort*)source + V.Count));
}

/// <summary>Float16 numbers, none of them infinite or NaN, times <see cref="Unit"/>, which what they are multiplied by makes up for: that takes less than half of the steps.</summary>
internal readonly unsafe struct ScaledFloat16Storage : IStorage
{
    /// <summary>2⁻¹¹².</summary>
    public const float Unit = 1 / 5.192296858534828e33f;

    public static int Size => sizeof(ushort);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load<V>(byte* source) where V : struct, ILanes<V> => V.LoadScaledFloat16((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load<V>(byte* source, out V a, out V b) where V : struct, ILanes<V> => (a, b) = (V.LoadScaledFloat16((ushort*)source), V.LoadScaledFloat16((ushort*)source + V.Count));
}

internal readonly unsafe struct BFloat16Storage : IStorage
{
    public static int Size => sizeof(ushort);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load<V>(byte* source) where V : struct, ILanes<V> => V.LoadBFloat16((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load<V>(byte* source, out V a, out V b) where V : struct, ILanes<V> => V.LoadBFloat16((ushort*)source, out a, out b);
}
