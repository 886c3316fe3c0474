using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>Rows of pairs, written tile by tile past the caches (<see cref="StreamingStores"/>). What a tile leaves of a line is kept until the next one fills it, so that lines are written whole wherever rows begin.</summary>
/// <param name="memory">Of <see cref="Floats"/> floats.</param>
/// <remarks>Ordinary stores write a line that a row shares with what lies beside it: where its first key begins, and behind its last one.</remarks>
internal readonly unsafe struct PairStream(float* memory)
{
    private const int Line = Prefetch.LineFloats;

    // Rows.
    private const int Ahead = 16;

    /// <summary>The distance of a tile's rows.</summary>
    public const int Step = Line + AttentionTiles.Keys;

    /// <summary>The floats of memory.</summary>
    public static long Floats(long rows) => rows * Step;

    public bool IsPresent => memory != null;

    /// <summary>The tile that is written next, a row a query; what is kept lies before each row.</summary>
    public float* Tile => memory + Line;

    /// <summary>Whether a tensor can be written so: its floats lie at the places of floats.</summary>
    public static bool Suits(float* to) => (nint)to % sizeof(float) == 0;

    /// <summary>to[row·step + column] = <see cref="Tile"/>.</summary>
    /// <param name="to">Where the tile begins.</param>
    /// <param name="step">The distance of its rows.</param>
    /// <param name="rows">The rows.</param>
    /// <param name="columns">The columns, at most a tile's keys.</param>
    /// <param name="before">The columns of the same rows that were written before.</param>
    /// <param name="ends">Whether these are the last.</param>
    public void Write(float* to, nint step, nint rows, nint columns, nint before, bool ends) => Write<No>(to, step, rows, columns, before, ends);

    /// <summary>to[row·step + column] = 0, of any number of columns.</summary>
    public void Clear(float* to, nint step, nint rows, nint columns, nint before, bool ends) => Write<Yes>(to, step, rows, columns, before, ends);

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private void Write<TZeros>(float* to, nint step, nint rows, nint columns, nint before, bool ends) where TZeros : struct, IChoice
    {
        float* kept = memory;
        for (nint row = 0; row < rows; row++, to += step, kept += Step)
        {
            if (row + Ahead < rows && before == 0)
                Prefetch.One(to + Ahead * step);
            if (row + Ahead < rows && ends)
                Prefetch.One(to + Ahead * step + columns - 1);
            if (TZeros.Taken)
                Vector512<float>.Zero.Store(kept + Line);
            // The line holds some floats before the first column, of which the first may be another's.
            nint earlier = ((nint)to / sizeof(float)) & (Line - 1), others = Math.Max(earlier - before, 0), count = earlier + columns, done = 0;
            float* from = kept + Line - earlier, line = to - earlier;
            if (others > 0 && count >= Line)
            {
                Copy(from + others, line + others, Line - others);
                done = Line;
            }
            for (; done + Line <= count; done += Line)
                (TZeros.Taken && done > 0 ? Vector512<float>.Zero : Vector512.Load(from + done)).StoreAlignedNonTemporal(line + done);
            if (ends)
            {
                nint first = Math.Max(done, others);
                Copy(TZeros.Taken && done > 0 ? kept + Line : from + first, line + first, count - first);
            }
            else
                (TZeros.Taken && columns >= Line ? Vector512<float>.Zero : Vector512.Load(kept + columns)).Store(kept);
        }
    }

    // Less than a line.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Copy(float* from, float* to, nint count) => new Span<float>(from, (int)count).CopyTo(new Span<float>(to, (int)count));
}

/// <summary>The streams of tensors with a value a pair.</summary>
[InlineArray(PairTensors.DenseBias + 1)]
internal struct PairStreamSet
{
    private PairStream first;
}
