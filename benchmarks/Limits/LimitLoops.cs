using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels.Benchmarks;

/// <summary>The loops that the limits are measured with, at the widest vector of this process.</summary>
internal abstract unsafe class LimitLoops
{
    /// <summary>The widest vectors that the processor multiplies and adds in one instruction, as the environment lets the runtime see them (<c>DOTNET_EnableAVX512=0</c> ...).</summary>
    public static LimitLoops Widest { get; } =
        Avx512F.IsSupported ? new LimitLoops<Wide512>() : Fma.IsSupported ? new LimitLoops<Wide256>() : new LimitLoops<Wide128>();

    public abstract int VectorBits { get; }

    /// <summary>Runs independent chains of multiply-adds.</summary>
    public abstract void MultiplyAdds(int turns);

    /// <summary>The operations of a turn: two for each lane of each chain.</summary>
    public abstract double OperationsPerTurn { get; }

    /// <summary>Sums an array.</summary>
    public abstract float Read(float* source, nint count);

    /// <summary>As <see cref="Read"/>, asking for the data ahead of time.</summary>
    public abstract float ReadPrefetching(float* source, nint count);

    /// <summary>x *= c in place.</summary>
    public abstract void Update(float* data, nint count, float factor);

    /// <summary>Copies an array with ordinary stores.</summary>
    public abstract void Copy(float* source, float* destination, nint count);

    /// <summary>Copies an array with stores that pass the caches by; the destination is aligned to a vector.</summary>
    public abstract void CopyNonTemporal(float* source, float* destination, nint count);
}

/// <summary>The loops at one width. Arrays are a multiple of <see cref="Block"/> vectors long.</summary>
internal sealed unsafe class LimitLoops<T> : LimitLoops where T : struct, IWide<T>
{
    // A multiply-add takes up to 5 cycles, and up to 2 start in a cycle (4 on some Arm processors): 12 chains keep the units busy and fit
    // into the 16 registers of AVX2. Arm has 32 registers and needs 16 chains, so it runs two sets.
    private const int Chains = 12;

    private const int Block = 8;

    // How far ahead data is asked for, in bytes: some microseconds.
    private const int Ahead = 8192;

    public override int VectorBits => T.Count * 8 * sizeof(float);

    public override double OperationsPerTurn => 2.0 * T.Count * Chains * (AdvSimd.IsSupported ? 2 : 1);

    public override void MultiplyAdds(int turns)
    {
        if (AdvSimd.IsSupported)
            TwoSets(turns);
        else
            OneSet(turns);
    }

    // All loops are compiled at full optimisation at once: the first sample counts as much as the last.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void OneSet(int turns)
    {
        T b = T.Create(0.999f), c = T.Create(0.001f);
        T a0 = c, a1 = c, a2 = c, a3 = c, a4 = c, a5 = c, a6 = c, a7 = c, a8 = c, a9 = c, a10 = c, a11 = c;
        for (int turn = 0; turn < turns; turn++)
        {
            a0 = T.MultiplyAdd(a0, b, c);
            a1 = T.MultiplyAdd(a1, b, c);
            a2 = T.MultiplyAdd(a2, b, c);
            a3 = T.MultiplyAdd(a3, b, c);
            a4 = T.MultiplyAdd(a4, b, c);
            a5 = T.MultiplyAdd(a5, b, c);
            a6 = T.MultiplyAdd(a6, b, c);
            a7 = T.MultiplyAdd(a7, b, c);
            a8 = T.MultiplyAdd(a8, b, c);
            a9 = T.MultiplyAdd(a9, b, c);
            a10 = T.MultiplyAdd(a10, b, c);
            a11 = T.MultiplyAdd(a11, b, c);
        }
        Keep(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void TwoSets(int turns)
    {
        T b = T.Create(0.999f), c = T.Create(0.001f);
        T a0 = c, a1 = c, a2 = c, a3 = c, a4 = c, a5 = c, a6 = c, a7 = c, a8 = c, a9 = c, a10 = c, a11 = c;
        T d0 = c, d1 = c, d2 = c, d3 = c, d4 = c, d5 = c, d6 = c, d7 = c, d8 = c, d9 = c, d10 = c, d11 = c;
        for (int turn = 0; turn < turns; turn++)
        {
            a0 = T.MultiplyAdd(a0, b, c);
            a1 = T.MultiplyAdd(a1, b, c);
            a2 = T.MultiplyAdd(a2, b, c);
            a3 = T.MultiplyAdd(a3, b, c);
            a4 = T.MultiplyAdd(a4, b, c);
            a5 = T.MultiplyAdd(a5, b, c);
            a6 = T.MultiplyAdd(a6, b, c);
            a7 = T.MultiplyAdd(a7, b, c);
            a8 = T.MultiplyAdd(a8, b, c);
            a9 = T.MultiplyAdd(a9, b, c);
            a10 = T.MultiplyAdd(a10, b, c);
            a11 = T.MultiplyAdd(a11, b, c);
            d0 = T.MultiplyAdd(d0, b, c);
            d1 = T.MultiplyAdd(d1, b, c);
            d2 = T.MultiplyAdd(d2, b, c);
            d3 = T.MultiplyAdd(d3, b, c);
            d4 = T.MultiplyAdd(d4, b, c);
            d5 = T.MultiplyAdd(d5, b, c);
            d6 = T.MultiplyAdd(d6, b, c);
            d7 = T.MultiplyAdd(d7, b, c);
            d8 = T.MultiplyAdd(d8, b, c);
            d9 = T.MultiplyAdd(d9, b, c);
            d10 = T.MultiplyAdd(d10, b, c);
            d11 = T.MultiplyAdd(d11, b, c);
        }
        Keep(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11 + d0 + d1 + d2 + d3 + d4 + d5 + d6 + d7 + d8 + d9 + d10 + d11);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public override float Read(float* source, nint count)
    {
        T s0 = T.Create(0), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
        for (float* end = source + count; source < end; source += Block * T.Count)
        {
            s0 += T.Load(source);
            s1 += T.Load(source + T.Count);
            s2 += T.Load(source + 2 * T.Count);
            s3 += T.Load(source + 3 * T.Count);
            s4 += T.Load(source + 4 * T.Count);
            s5 += T.Load(source + 5 * T.Count);
            s6 += T.Load(source + 6 * T.Count);
            s7 += T.Load(source + 7 * T.Count);
        }
        return (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7).Sum();
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public override float ReadPrefetching(float* source, nint count)
    {
        const int Line = 64 / sizeof(float);
        T s0 = T.Create(0), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
        for (float* end = source + count; source < end; source += Block * T.Count)
        {
            for (int ahead = 0; ahead < Block * T.Count; ahead += Line)
                Prefetch((byte*)(source + ahead) + Ahead);
            s0 += T.Load(source);
            s1 += T.Load(source + T.Count);
            s2 += T.Load(source + 2 * T.Count);
            s3 += T.Load(source + 3 * T.Count);
            s4 += T.Load(source + 4 * T.Count);
            s5 += T.Load(source + 5 * T.Count);
            s6 += T.Load(source + 6 * T.Count);
            s7 += T.Load(source + 7 * T.Count);
        }
        return (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7).Sum();
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public override void Update(float* data, nint count, float factor)
    {
        T c = T.Create(factor);
        for (float* end = data + count; data < end; data += Block * T.Count)
        {
            T x0 = T.Load(data), x1 = T.Load(data + T.Count), x2 = T.Load(data + 2 * T.Count), x3 = T.Load(data + 3 * T.Count);
            T x4 = T.Load(data + 4 * T.Count), x5 = T.Load(data + 5 * T.Count), x6 = T.Load(data + 6 * T.Count), x7 = T.Load(data + 7 * T.Count);
            (x0 * c).Store(data);
            (x1 * c).Store(data + T.Count);
            (x2 * c).Store(data + 2 * T.Count);
            (x3 * c).Store(data + 3 * T.Count);
            (x4 * c).Store(data + 4 * T.Count);
            (x5 * c).Store(data + 5 * T.Count);
            (x6 * c).Store(data + 6 * T.Count);
            (x7 * c).Store(data + 7 * T.Count);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public override void Copy(float* source, float* destination, nint count)
    {
        for (float* end = source + count; source < end; source += Block * T.Count, destination += Block * T.Count)
        {
            for (int i = 0; i < Block * T.Count; i += T.Count)
                T.Load(source + i).Store(destination + i);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public override void CopyNonTemporal(float* source, float* destination, nint count)
    {
        for (float* end = source + count; source < end; source += Block * T.Count, destination += Block * T.Count)
        {
            for (int i = 0; i < Block * T.Count; i += T.Count)
                T.Load(source + i).StoreNonTemporal(destination + i);
        }
    }

    private static void Prefetch(byte* address)
    {
        if (Sse.IsSupported)
            Sse.Prefetch0(address);
    }

    // A result that is used can't be optimised away; the sum of the chains is never this.
    private static void Keep(T value)
    {
        if (value.Sum() == float.MinValue)
            Console.Write("");
    }
}
