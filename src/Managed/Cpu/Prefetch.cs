using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Asks for memory that will be needed soon: the processor's own prefetching stops at each page. Any address will do; on other processors it does nothing.</summary>
internal static unsafe class Prefetch
{
    // Bytes of a cache line.
    private const int Line = 64;

    /// <summary>The floats of a cache line.</summary>
    public const int LineFloats = Line / sizeof(float);

    /// <summary>One line.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void One(float* at)
    {
        if (Sse.IsSupported)
            Sse.Prefetch0(at);
    }

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

    /// <summary>A row of floats, into the second-level cache: for what would fill the first.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Row(float* at, nint count)
    {
        if (!Sse.IsSupported)
            return;
        for (nint done = 0; done < count; done += LineFloats)
            Sse.Prefetch1(at + done);
        Sse.Prefetch1(at + count - 1);
    }

    /// <summary>The floats of one row of a tile of keys. Where they don't begin with a line, the first one belongs to the tile before and is there already: so the end of each line's worth is asked for.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Tile(float* at)
    {
        if (!Sse.IsSupported)
            return;
        byte* end = (byte*)at + Line - sizeof(float);
        Sse.Prefetch0(end);
        Sse.Prefetch0(end + Line);
        Sse.Prefetch0(end + 2 * Line);
        Sse.Prefetch0(end + 3 * Line);
    }
}
