using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>A part of a tile: keys FirstKey .. EndKey−1, and the queries of the block's vectors FirstVector .. EndVector−1.</summary>
internal struct TilePart
{
    public nint FirstKey, EndKey, FirstVector, EndVector;

    public readonly nint Keys => EndKey - FirstKey;

    public readonly nint Vectors => EndVector - FirstVector;

    /// <summary>The part for vectors twice as wide; lanes that it has more are hidden.</summary>
    public readonly TilePart OfPairs => this with { FirstVector = FirstVector / 2, EndVector = (EndVector + 1) / 2 };

    /// <summary>The first query, counted from the block's.</summary>
    public readonly nint Lane<V>() where V : struct, ILanes<V> => FirstVector * V.Count;

    /// <summary>Where the part begins in a tile's rows of lanes.</summary>
    public readonly nint Start<V>() where V : struct, ILanes<V> => FirstKey * AttentionTiles.Block<V>() + Lane<V>();
}

/// <summary>Which pairs of a tile are visible by their position and by the mask, and in which parts they lie. All that is computed of a tile is computed of its parts.</summary>
/// <remarks>
/// <code>
///            vectors of queries            vectors of queries
///          +----+----+----+----+         +----+----+----+----+
///   keys   | 1\ | 1  | 1  | 1  |         | 1  | 1 :|    |    |     Every four keys have the vectors from the first to the last with a query that sees
///          |  \ | 2\ | 2  | 2  |         | 1  | 1 :|    |    |     one of them; neighbours with the same vectors make a part. Left, a tile on the
///          |    |  \ | 3\ | 3  |         |....|....|....|....|     diagonal: its parts are 10 of 16 blocks. Right, one where two documents meet.
///          |    |    |  \ | 4\ |         |    | : 2| 2  | 2  |     A tile that is seen whole has one part.
///          +----+----+----+----+         +----+----+----+----+
/// </code>
/// The parts come in the order of their keys, so whatever is summed over keys is summed in their order.
/// </remarks>
internal readonly unsafe struct TileVisibility
{
    /// <summary>The most parts of a tile.</summary>
    private const int MostParts = AttentionTiles.Keys / Product.Rows;

    private readonly ulong* seen;
    private readonly TilePart* parts;
    private readonly int count;

    /// <summary>The memory of a tile's visibility.</summary>
    public static int Floats => (AttentionTiles.Keys * sizeof(ulong) + MostParts * sizeof(TilePart)) / sizeof(float);

    /// <summary>Whether some pair of the tile is hidden.</summary>
    public bool HidesPairs { get; }

    /// <summary>A tile that is seen whole.</summary>
    /// <param name="memory">Of <see cref="Floats"/> floats.</param>
    /// <param name="keys">The keys.</param>
    public TileVisibility(float* memory, nint keys)
    {
        seen = (ulong*)memory;
        parts = (TilePart*)(seen + AttentionTiles.Keys);
        parts[0] = new() { EndKey = keys, EndVector = AttentionTiles.Vectors };
        count = 1;
    }

    private TileVisibility(float* memory, int count, bool hidesPairs)
    {
        seen = (ulong*)memory;
        parts = (TilePart*)(seen + AttentionTiles.Keys);
        this.count = count;
        HidesPairs = hidesPairs;
    }

    /// <summary>Cuts a tile into parts.</summary>
    /// <param name="memory">Of <see cref="Floats"/> floats. It begins with a word for each query of the block, of which bit j says whether the query sees key j.</param>
    /// <param name="keys">The keys.</param>
    public static TileVisibility Cut<V>(float* memory, nint keys) where V : struct, ILanes<V>
    {
        ulong* seen = (ulong*)memory, byVector = stackalloc ulong[AttentionTiles.Vectors];
        ulong byAny = 0;
        Vector256<ulong> all = Vector256<ulong>.AllBitsSet;
        for (nint vector = 0; vector < AttentionTiles.Vectors; vector++)
        {
            Vector256<ulong> some = default;
            nint query = vector * V.Count, end = query + V.Count;
            for (; query + Vector256<ulong>.Count <= end; query += Vector256<ulong>.Count)
            {
                Vector256<ulong> words = Vector256.Load(seen + query);
                (some, all) = (some | words, all & words);
            }
            for (; query < end; query++)
            {
                Vector256<ulong> word = Vector256.Create(seen[query]);
                (some, all) = (some | word, all & word);
            }
            byVector[vector] = (some[0] | some[1]) | (some[2] | some[3]);
            byAny |= byVector[vector];
        }
        if (byAny == 0)
            return new(memory, 0, true);
        if (((all[0] & all[1]) & (all[2] & all[3])) == First(keys))
            return new(memory, keys);
        // A bit where four keys begin: of each vector, whether it sees one of them; of all, whether one sees otherwise than before.
        const ulong groups = ulong.MaxValue / ((1 << Product.Rows) - 1);
        ulong changes = 0;
        for (nint vector = 0; vector < AttentionTiles.Vectors; vector++)
        {
            ulong some = byVector[vector] | byVector[vector] >> 1;
            byVector[vector] = (some | some >> 2) & groups;
            changes |= byVector[vector] ^ byVector[vector] << Product.Rows;
        }
        var parts = (TilePart*)(seen + AttentionTiles.Keys);
        int count = 0;
        for (changes &= First(keys); changes != 0;)
        {
            int key = BitOperations.TrailingZeroCount(changes);
            changes &= changes - 1;
            nint first = 0, end = AttentionTiles.Vectors;
            while (first < end && (byVector[first] >> key & 1) == 0)
                first++;
            while (end > first && (byVector[end - 1] >> key & 1) == 0)
                end--;
            if (first == end)
                continue;
            if (count == 0 || parts[count - 1].EndKey != key || parts[count - 1].FirstVector != first || parts[count - 1].EndVector != end)
                parts[count++] = new() { FirstKey = key, FirstVector = first, EndVector = end };
            parts[count - 1].EndKey = Math.Min(BitOperations.TrailingZeroCount(changes), keys);
        }
        return new(memory, count, true);
    }

    public ReadOnlySpan<TilePart> Parts => new(parts, count);

    /// <summary>What the parts lie in: pairs of vectors of queries, as passes over two at a time need them, and whole vectors of keys where the tile has them.</summary>
    public TilePart Bounds<V>(nint keys) where V : struct, ILanes<V>
    {
        TilePart bounds = parts[0];
        foreach (ref readonly TilePart part in Parts)
        {
            bounds.FirstVector = Math.Min(bounds.FirstVector, part.FirstVector);
            bounds.EndVector = Math.Max(bounds.EndVector, part.EndVector);
            bounds.EndKey = part.EndKey;
        }
        return new()
        {
            FirstKey = bounds.FirstKey / V.Count * V.Count,
            EndKey = Math.Min((nint)AttentionTiles.RoundUp(bounds.EndKey, V.Count), keys),
            FirstVector = bounds.FirstVector / 2 * 2,
            EndVector = (bounds.EndVector + 1) / 2 * 2,
        };
    }

    /// <summary>Whether the parts are less than the tile.</summary>
    public bool LeavesOut(nint keys) => count != 1 || parts[0].Keys != keys || parts[0].Vectors != AttentionTiles.Vectors;

    /// <summary>A word for each query of a tile that isn't seen whole, of which bit j says whether the query sees key j.</summary>
    public ulong* ByQuery => seen;

    /// <summary>Turns the words around: one for each key, of which bit i says whether query i sees it.</summary>
    public ulong* ByKey()
    {
        Transpose(seen);
        return seen;
    }

    /// <summary>A word whose first bits are set.</summary>
    /// <param name="bits">How many; none if negative, all from 64 on.</param>
    public static ulong First(nint bits) => bits <= 0 ? 0 : ulong.MaxValue >> (int)Math.Max(AttentionTiles.Keys - bits, 0);

    /// <summary>Transposes a matrix of 64 by 64 bits, a word a row: swaps the two blocks beside the diagonal, of 32 by 32 first, then within each block of 32, and so on (Warren, Hacker's Delight, 7-3).</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void Transpose(ulong* rows)
    {
        ulong left = uint.MaxValue;
        for (int size = AttentionTiles.Keys / 2; size > 0; size /= 2, left ^= left << size)
        {
            for (int row = 0; row < AttentionTiles.Keys; row = (row + size + 1) & ~size)
            {
                ulong difference = ((rows[row] >> size) ^ rows[row + size]) & left;
                rows[row] ^= difference << size;
                rows[row + size] ^= difference;
            }
        }
    }
}
