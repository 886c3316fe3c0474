using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Asks for memory that will be needed soon: the processor's own prefetching stops at each page. Any address will do; on other processors it does nothing.</summary>
internal static unsafe class Prefetch
{
    // Bytes of a cache line.
    private const int Line = 64;

    /// <summary>Four vectors of floats.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Four<V>(float* at) where V : struct, ILanes<V> => Bytes((byte*)at, 4 * V.Count * sizeof(float));

    /// <summary>So many bytes, at most four lines.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Bytes(byte* at, nint count)
    {
        if (!Sse.IsSupported)
            return;
        Sse.Prefetch0(at);
        if (count > Line)
            Sse.Prefetch0(at + Line);
        if (count > 2 * Line)
        {
            Sse.Prefetch0(at + 2 * Line);
            Sse.Prefetch0(at + 3 * Line);
        }
    }
}
