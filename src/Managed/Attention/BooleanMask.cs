using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>The boolean mask of a call, as a pointer while it runs: a byte a pair, 0 hides. It is read a block of queries at a time, a bit a pair, and never written out in full.</summary>
internal readonly unsafe struct BooleanMask
{
    // So many heads of sequences that share a mask let it be read once, if its bits stay in a second-level cache until the last of them has read these.
    private const long LeastSharers = 4, MostSharedBytes = 1 << 20;

    private readonly byte* data;
    private readonly nint batchStep, headStep, queryStep, keyStep, queries, keys;
    private readonly ulong* shared;

    public BooleanMask(byte* mask, in TensorView view, in AttentionShape shape, byte* memory)
    {
        if (!view.IsPresent)
            return;
        data = mask;
        (batchStep, headStep, queryStep, keyStep) = (Step(view, 0), Step(view, 1), Step(view, 2), Step(view, 3));
        (Batches, Heads) = (Own(view, 0), Own(view, 1));
        (queries, keys) = ((nint)shape.Queries, (nint)shape.Keys);
        shared = SharedBytes(view, shape) > 0 ? (ulong*)memory : null;
    }

    /// <summary>How many sequences and heads have a mask of their own.</summary>
    public nint Batches { get; }

    public nint Heads { get; }

    public bool IsPresent => data != null;

    /// <summary>Whether it is read once for several heads.</summary>
    public bool IsShared => shared != null;

    /// <summary>The memory of what several heads share; 0 if each reads for itself.</summary>
    public static long SharedBytes(in TensorView view, in AttentionShape shape)
    {
        if (!view.IsPresent || Own(view, 2) == 1 || shape.Batch * shape.Heads < LeastSharers * Own(view, 0) * Own(view, 1))
            return 0;
        Int128 bytes = (Int128)Own(view, 0) * Own(view, 1) * AttentionTiles.RoundUp(shape.Queries, AttentionTiles.WidestBlock) * Tiles((nint)shape.Keys) * sizeof(ulong);
        return bytes <= MostSharedBytes ? (long)bytes : 0;
    }

    /// <summary>Where all heads find what <see cref="Read"/> says of a block of queries and all keys.</summary>
    public ulong* Shared(nint batch, nint head, nint i0)
    {
        nint matrix = (batchStep == 0 ? 0 : batch * Heads) + (headStep == 0 ? 0 : head);
        return shared + (matrix * (nint)AttentionTiles.RoundUp(queries, AttentionTiles.WidestBlock) + i0) * Tiles(keys);
    }

    private static nint Tiles(nint keys) => (keys + AttentionTiles.Keys - 1) / AttentionTiles.Keys;

    /// <summary>Reads a block of queries: for each tile of keys a word for each query, of which bit j says whether the query sees the tile's key j. Row by row, as the mask lies, so that memory is read on and on.</summary>
    /// <param name="batch">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="queries">The queries, at most a word's bits.</param>
    /// <param name="j0">The first key.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="words">For each tile as many as <paramref name="step"/> says; those beyond the queries are left as they are.</param>
    /// <param name="step">The words of a tile, at least the queries.</param>
    public void Read(nint batch, nint head, nint i0, nint queries, nint j0, nint keys, ulong* words, nint step)
    {
        byte* start = At(batch, head, i0, j0);
        if (queryStep == 1 && keyStep > 1)
        {
            ulong* tile = stackalloc ulong[AttentionTiles.Keys];
            for (nint first = 0; first < keys; first += AttentionTiles.Keys, words += step)
            {
                for (nint key = 0; key < AttentionTiles.Keys; key++)
                    tile[key] = first + key < keys ? Word(start + (first + key) * keyStep, queries, 1, i0) : 0;
                TileVisibility.Transpose(tile);
                new ReadOnlySpan<ulong>(tile, (int)queries).CopyTo(new Span<ulong>(words, (int)queries));
            }
            return;
        }
        if (queryStep == 0)
        {
            for (nint first = 0; first < keys; first += AttentionTiles.Keys, words += step)
                new Span<ulong>(words, (int)queries).Fill(Word(start + first * keyStep, Math.Min(AttentionTiles.Keys, keys - first), keyStep, j0 + first));
            return;
        }
        if (keyStep == 1)
        {
            ReadRows(start, queries, j0, keys, words, step);
            return;
        }
        for (nint query = 0; query < queries; query++)
        {
            ulong* word = words + query;
            for (nint first = 0; first < keys; first += AttentionTiles.Keys, word += step)
                *word = Word(start + query * queryStep + first * keyStep, Math.Min(AttentionTiles.Keys, keys - first), keyStep, j0 + first);
        }
    }

    // Keys side by side: a short loop, so that many rows are on their way from memory at once.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private void ReadRows(byte* row, nint queries, nint j0, nint keys, ulong* words, nint step)
    {
        nint rest = keys % AttentionTiles.Keys, whole = keys - rest;
        for (nint query = 0; query < queries; query++, row += queryStep)
        {
            ulong* word = words + query;
            for (byte* from = row; from < row + whole; from += AttentionTiles.Keys, word += step)
                *word = ~Vector512.Equals(Vector512.Load(from), Vector512<byte>.Zero).ExtractMostSignificantBits();
            if (rest > 0)
                *word = Word(row + whole, rest, 1, j0 + whole);
        }
    }

    /// <summary>How many of the first <paramref name="keys"/> keys a query sees.</summary>
    public nint Count(nint batch, nint head, nint query, nint keys)
    {
        byte* row = At(batch, head, query, 0);
        if (keyStep == 1)
            return keys - new ReadOnlySpan<byte>(row, (int)keys).Count((byte)0);
        nint shown = 0;
        for (nint key = 0; key < keys; key++)
            shown += row[key * keyStep] == 0 ? 0 : 1;
        return shown;
    }

    // A bit each of so many bytes, at most 64; so many others lie before them.
    private static ulong Word(byte* from, nint count, nint step, nint before)
    {
        if (step == 0)
            return *from == 0 ? 0 : TileVisibility.First(count);
        int whole = Vector512<byte>.Count;
        if (step == 1 && count + before >= whole)
            return ~Vector512.Equals(Vector512.Load(from + count - whole), Vector512<byte>.Zero).ExtractMostSignificantBits() >> (int)(whole - count);
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

    // How many places along an axis have flags of their own.
    private static nint Own(in TensorView view, int axis) => Step(view, axis) == 0 ? 1 : (nint)view.Length(axis);
}

/// <summary>Reads a mask for all heads that share it, a block of queries an item.</summary>
internal unsafe struct SharedMask : IWork
{
    public BooleanMask Mask;
    public nint Queries, Keys;

    public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), blocks = (Queries + block - 1) / block, i0 = item % blocks * block, head = item / blocks % Mask.Heads, batch = item / blocks / Mask.Heads;
        Mask.Read(batch, head, i0, Math.Min(block, Queries - i0), 0, Keys, Mask.Shared(batch, head, i0), block);
    }
}
