using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Alignment;

/// <summary>A vector register of floats, in which a kernel is written once for every width.</summary>
internal unsafe interface IWide<TSelf> where TSelf : struct, IWide<TSelf>
{
    static abstract int Count { get; }
    static abstract TSelf Load(float* source);
    static abstract TSelf Broadcast(float* source);
    static abstract TSelf Add(TSelf a, TSelf b);
    /// <summary>a·b + c, fused where the processor can.</summary>
    static abstract TSelf MultiplyAdd(TSelf a, TSelf b, TSelf c);
    void Store(float* destination);
}

internal readonly unsafe struct Wide512(Vector512<float> v) : IWide<Wide512>
{
    private readonly Vector512<float> v = v;

    public static int Count => Vector512<float>.Count;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide512 Load(float* source) => new(Vector512.Load(source));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide512 Broadcast(float* source) => new(Vector512.Create(*source));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide512 Add(Wide512 a, Wide512 b) => new(a.v + b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide512 MultiplyAdd(Wide512 a, Wide512 b, Wide512 c) => new(Vector512.MultiplyAddEstimate(a.v, b.v, c.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(float* destination) => v.Store(destination);
}

internal readonly unsafe struct Wide256(Vector256<float> v) : IWide<Wide256>
{
    private readonly Vector256<float> v = v;

    public static int Count => Vector256<float>.Count;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide256 Load(float* source) => new(Vector256.Load(source));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide256 Broadcast(float* source) => new(Vector256.Create(*source));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide256 Add(Wide256 a, Wide256 b) => new(a.v + b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide256 MultiplyAdd(Wide256 a, Wide256 b, Wide256 c) => new(Vector256.MultiplyAddEstimate(a.v, b.v, c.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(float* destination) => v.Store(destination);
}

internal readonly unsafe struct Wide128(Vector128<float> v) : IWide<Wide128>
{
    private readonly Vector128<float> v = v;

    public static int Count => Vector128<float>.Count;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide128 Load(float* source) => new(Vector128.Load(source));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide128 Broadcast(float* source) => new(Vector128.Create(*source));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide128 Add(Wide128 a, Wide128 b) => new(a.v + b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Wide128 MultiplyAdd(Wide128 a, Wide128 b, Wide128 c) => new(Vector128.MultiplyAddEstimate(a.v, b.v, c.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(float* destination) => v.Store(destination);
}
