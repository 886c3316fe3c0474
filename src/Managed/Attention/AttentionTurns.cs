namespace TransformerKernels;

/// <summary>Which blocks of queries an item of the forward pass has. Two sequences, and two heads, that share a dense bias take turns at each of its tiles: it is read from memory and laid out in lanes once for all of them.</summary>
/// <remarks>A tile's biases cost a sixth of its products (d = 64), half of that to bring them from memory; keys and values of both sequences, which a cache may no longer hold, a fiftieth.</remarks>
internal readonly struct AttentionTurns
{
    /// <summary>The most blocks of an item.</summary>
    public const int Most = 4;

    private readonly nint batches, heads;

    private AttentionTurns(nint batches, nint heads)
    {
        this.batches = batches;
        this.heads = heads;
    }

    /// <summary>Every block is an item.</summary>
    public static AttentionTurns None => new(1, 1);

    /// <summary>The blocks of an item.</summary>
    public nint Count => batches * heads;

    public static unsafe AttentionTurns Of(in AttentionProblem problem)
    {
        byte* somewhere = (byte*)sizeof(float);
        AttentionShape shape = AttentionShape.Of(problem);
        var dense = new Captured(somewhere, problem.DenseBias, CapturedStructure.Dense);
        // Of the items that are wanted none are taken away.
        long items = shape.Batch * shape.Heads * (AttentionTiles.RoundUp(shape.Queries, AttentionTiles.WidestBlock) / AttentionTiles.WidestBlock);
        nint batches = dense.IsSharedByBatch(shape) && shape.Batch % 2 == 0 && items >= 2 * AttentionTiles.ItemsWanted ? 2 : 1;
        return new(batches, dense.IsSharedByHeads(shape) && shape.Heads % 2 == 0 && items >= 2 * batches * AttentionTiles.ItemsWanted ? 2 : 1);
    }

    /// <summary>Where a block lies; those of an item come one after the other. Beyond the last one: the first.</summary>
    public void Locate<V>(in AttentionShape shape, nint index, out nint batch, out nint head, out nint i0) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), blocks = ((nint)shape.Queries + block - 1) / block;
        nint turn = index % Count, place = index / Count, group = place / blocks, headGroups = (nint)shape.Heads / heads;
        head = group % headGroups * heads + turn % heads;
        batch = group / headGroups % ((nint)shape.Batch / batches) * batches + turn / heads;
        i0 = (blocks - 1 - place % blocks) * block; // the last block first: under a causal mask it takes longest
    }

    /// <summary>The scratch memory of a thread: that of a tile, and of each block.</summary>
    public long ScratchBytes(in AttentionShape shape) =>
        (2 * (AttentionTiles.WidestTile + AttentionTiles.WidestBlock) + Count * BlockFloats(shape)) * sizeof(float);

    /// <summary>The scratch memory of a block: Q, O, maxima and sums, and what changes its scores. Whole cache lines.</summary>
    public static long BlockFloats(in AttentionShape shape) =>
        AttentionTiles.RoundUp((Math.Max(shape.HeadSize, shape.ValueSize) + AttentionTiles.RoundUp(shape.ValueSize, Product.Rows) + 2) * AttentionTiles.WidestBlock + HeadScores.ScratchFloats(shape), Prefetch.LineFloats);
}
