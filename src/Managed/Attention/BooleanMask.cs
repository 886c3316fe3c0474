using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>The boolean mask of a call, as a pointer while it runs: a byte a pair, 0 hides. It is read tile by tile, a bit a pair, and never written out in full.</summary>
internal readonly unsafe struct BooleanMask
{
    private readonly byte* data;
    private readonly nint batchStep, headStep, queryStep, keyStep;

    public BooleanMask(byte* mask, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        data = mask;
        (batchStep, headStep, queryStep, keyStep) = (Step(view, 0), Step(view, 1), Step(view, 2), Step(view, 3));
    }

    public bool IsPresent => data != null;

    /// <summary>Reads a tile: a word for each query, of which bit j says whether the query sees the tile's key j.</summary>
    /// <param name="batch">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="queries">The queries.</param>
    /// <param name="j0">The first key.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="words">As many as a tile has keys; 0 for those beyond the queries.</param>
    public void Read(nint batch, nint head, nint i0, nint queries, nint j0, nint keys, ulong* words)
    {
        byte* start = At(batch, head, i0, j0);
        bool byKey = queryStep == 1 && keyStep > 1;
        (nint rows, nint rowStep, nint columns, nint columnStep) = byKey ? (keys, keyStep, queries, queryStep) : (queries, queryStep, keys, keyStep);
        for (nint row = 0; row < AttentionTiles.Keys; row++)
        {
            words[row] = row >= rows ? 0 : row > 0 && rowStep == 0 ? words[0] : Word(start + row * rowStep, columns, columnStep);
            // Rows lie far apart, where the processor's own prefetching doesn't follow: the next tile's come while this one is worked on.
            if (row < rows && !byKey)
                Prefetch.Bytes(start + row * rowStep + columns, columns);
        }
        if (byKey)
            TileVisibility.Transpose(words);
    }

    private static ulong Word(byte* from, nint count, nint step)
    {
        if (step == 0)
            return *from == 0 ? 0 : TileVisibility.First(count);
        if (step == 1 && count == Vector512<byte>.Count)
            return ~Vector512.Equals(Vector512.Load(from), Vector512<byte>.Zero).ExtractMostSignificantBits();
        ulong word = 0;
        nint n = 0;
        for (; step == 1 && n + Vector128<byte>.Count <= count; n += Vector128<byte>.Count)
            word |= (ulong)(ushort)~Vector128.Equals(Vector128.Load(from + n), Vector128<byte>.Zero).ExtractMostSignificantBits() << (int)n;
        for (; n < count; n++)
            word |= from[n * step] == 0 ? 0 : 1ul << (int)n;
        return word;
    }

    private byte* At(nint batch, nint head, nint query, nint key) => data + batch * batchStep + head * headStep + query * queryStep + key * keyStep;

    private static nint Step(in TensorView view, int axis) => view.Length(axis) == 1 ? 0 : (nint)view.Stride(axis);
}
