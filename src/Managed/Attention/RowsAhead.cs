using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Rows that will be read or written soon: of a tile's pairs, of a block's queries. They lie far apart, where the processor's own prefetching doesn't follow: a product asks for them one by one while it runs.</summary>
/// <remarks>
/// A processor that waits for as many lines as it can forgets what else it is asked for. On Zen 5 half of a tile's loads from memory still waited where its 256 lines had been asked for at once, a fifth where
/// they had been asked for in 16 parts 250 cycles apart.
/// </remarks>
internal unsafe struct RowsAhead(nint queries)
{
    // A register tile of a product that is shorter takes less than 250 cycles.
    private const int LeastDepth = 32;

    private RowsOfTensors rows;
    private int count;
    private nint asked;

    /// <summary>Adds the rows of a dense tensor that has its keys side by side; others need no help.</summary>
    public void Add(in Captured tensor, nint batch, nint head, nint i0, nint j0)
    {
        if (tensor.IsPresent && tensor.Structure == CapturedStructure.Dense && tensor.KeyStep == 1)
            rows[count++] = new() { Start = tensor.At(batch, head, i0, j0, 0), Step = tensor.QueryStep, Count = queries, Features = AttentionTiles.Keys };
    }

    /// <summary>Adds rows of features side by side: a tile's worth of them, so that the last tiles of a block ask for all.</summary>
    /// <param name="matrix">Their steps.</param>
    /// <param name="start">The first row.</param>
    /// <param name="length">The rows.</param>
    /// <param name="features">The features of a row.</param>
    /// <param name="tilesLeft">How many tiles of the block come after this one.</param>
    public void Add(in Strided matrix, float* start, nint length, nint features, nint tilesLeft)
    {
        nint feature = tilesLeft * AttentionTiles.Keys;
        if (matrix.Column == 1 && feature < features)
            rows[count++] = new() { Start = start + feature, Step = matrix.Row, Count = length, Features = AttentionTiles.Keys };
    }

    /// <summary>Adds the rows of a tile of keys, with all their features.</summary>
    /// <param name="matrix">Their steps.</param>
    /// <param name="start">The first row.</param>
    /// <param name="length">The rows from there on; none if negative.</param>
    /// <param name="features">The features of a row.</param>
    public void AddKeys(in Strided matrix, float* start, nint length, nint features)
    {
        if (matrix.Column == 1 && length > 0)
            rows[count++] = new() { Start = start, Step = matrix.Row, Count = Math.Min(length, AttentionTiles.Keys), Features = features };
    }

    /// <summary>c = a·b of a part of a tile of keys and a block of queries; where a pass over them follows that asks too, a short product leaves it to that.</summary>
    public void Set<V>(float* a, nint rowStep, nint step, in TilePart part, float* b, nint depth, float* c, bool passFollows) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        fixed (RowsAhead* ahead = &this)
        {
            if (count > 0 && (depth >= LeastDepth || !passFollows))
                Product.SetThen<V, AskingTile>(a, rowStep, step, part.Keys, b, block, part.Vectors, depth, c, block, new AskingTile { Ahead = ahead });
            else
                Product.Set<V>(a, rowStep, step, part.Keys, b, block, part.Vectors, depth, c, block);
        }
    }

    /// <summary>The same times a number.</summary>
    public void SetScaled<V>(float* a, nint rowStep, nint step, in TilePart part, float* b, nint depth, float* c, float scale) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        fixed (RowsAhead* ahead = &this)
            Product.SetThen<V, ScaledTile>(a, rowStep, step, part.Keys, b, block, part.Vectors, depth, c, block, new() { Scale = scale, Ahead = ahead });
    }

    /// <summary>Asks for as many rows as a register tile has vectors. Of a tile that is seen whole that is 64 in all, as many as the widest block has queries and a tile keys.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Ask(nint vectors)
    {
        if (count > 0)
            AskFor(vectors);
    }

    /// <summary>The piece of a part, from its first key on, that a pass had better take before it asks for the next rows: all of it where none are left.</summary>
    public readonly TilePart Piece(in TilePart part) => part with { EndKey = IsDone ? part.EndKey : Math.Min(part.FirstKey + Product.Rows, part.EndKey) };

    /// <summary>Whether none are left.</summary>
    public readonly bool IsDone => count == 0 || asked >= AttentionTiles.Keys;

    /// <summary>Asks for what is left after a tile that isn't seen whole.</summary>
    public void AskForRest() => Ask(Math.Max(0, AttentionTiles.Keys - asked));

    // Not inlined: a product's loop has no register to spare.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private void AskFor(nint more)
    {
        for (int n = 0; n < count; n++)
        {
            nint end = Math.Min(asked + more, rows[n].Count), step = rows[n].Step;
            float* at = rows[n].Start + asked * step;
            for (nint next = asked; next < end; next++, at += step)
            {
                if (rows[n].Features == AttentionTiles.Keys)
                    Prefetch.Tile(at);
                else
                    Prefetch.Row(at, rows[n].Features);
            }
        }
        asked += more;
    }

    private struct Rows
    {
        public float* Start;
        public nint Step, Count, Features;
    }

    // Captured tensors and a dense bias; two of Q, O and dO; K.
    [InlineArray(CapturedSet.Count + 1 + 2 + 1)]
    private struct RowsOfTensors
    {
        private Rows first;
    }
}

/// <summary>Stores a product's sums and asks for what lies ahead.</summary>
internal unsafe struct AskingTile : ITileEnd
{
    /// <summary>A pointer: the compiler copies a product's end before it calls it, and a long one by a call.</summary>
    public RowsAhead* Ahead;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Column<V>(V s0, V s1, V s2, V s3, nint row, nint lane, float* c, nint cStep) where V : struct, ILanes<V> =>
        default(StoreTile).Column(s0, s1, s2, s3, row, lane, c, cStep);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Done<V>(nint row, nint lane, nint vectors) where V : struct, ILanes<V> => Ahead->Ask(vectors);
}
