using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>How the backward pass is cut, by the shapes of one sequence alone, and where partial sums lie in the workspace.</summary>
/// <remarks>
/// An item is a sequence, a key head, a part of its query heads and a chunk of keys. What several items add to (the gradients of queries where there are several chunks, of keys and values
/// where there are several parts, of biases and of captured tensors) is kept apart per item and summed afterwards in the order of the items: at most <see cref="AttentionTiles.ItemsWanted"/>
/// times a sequence, so that it is proportional to the lengths. docs/attention.md has the bytes.
/// </remarks>
internal struct AttentionBackwardPlan
{
    // As many items a sequence as are wanted. Where key heads are few, their query heads are parted, which costs a sum of the parts' gradients of the keys:
    // little beside some blocks of queries. Then keys are cut, in chunks no shorter than some tiles: every chunk transposes all queries again and has a partial gradient of the queries. Half as
    // long they may be for a few items, of which two processors get even shares, and where heads take turns, so that chunks are all that runs side by side: an even number of them.
    // Training on Zen 5 with AVX-512 and two threads: chunks of 256 keys take 1.02 of the time that those of 512 do on [1, 1, 2048, 64], chunks of 1024 take 0.99; on [1, 1, 1024, 64] four of 256, as here,
    // are as fast as any, and one of 1024, which leaves a thread without work, takes 1.61. Parts of 256 queries take 1.03 of the time of those of 512 on 16 heads to a key head and 256 positions, parts of 1024 take 0.99.
    // So half of these numbers costs 2 or 3 hundredths, and twice of them gains 1, but makes half the work for the processors of a large machine.
    private const long ItemsNeeded = 4, LeastQueries = 8 * AttentionTiles.WidestBlock, LeastChunk = 8 * AttentionTiles.Keys, ShortestChunk = LeastChunk / 2;

    /// <summary>The parts that the query heads of a key head are cut into.</summary>
    public long Parts { get; private set; }

    public long Chunks { get; private set; }

    /// <summary>The keys of a chunk.</summary>
    public long Chunk { get; private set; }

    /// <summary>The floats of the gradient of one head's line over one chunk.</summary>
    public long LineLength { get; private set; }

    public bool WantsQuery { get; private set; }
    public bool WantsLine { get; private set; }
    public bool WantsGrid { get; private set; }
    public bool WantsSinks { get; private set; }

    /// <summary>The scratch memory of a thread.</summary>
    public long ScratchBytes { get; private set; }

    private long queryFloats, keyFloats, lineFloats, gridFloats, capturedFloats, logSumExpFloats, sinkDoubles;
    private CapturedPartials captured;

    // Where the partial gradients of each pair tensor begin, and the floats of one head and chunk.
    [InlineArray(PairTensors.Count)]
    private struct CapturedPartials
    {
        private (long Start, long Length) first;
    }

    public static AttentionBackwardPlan Of(in AttentionProblem problem, in AttentionGradients gradients)
    {
        AttentionShape shape = AttentionShape.Of(problem);
        bool takeTurns = false;
        for (int c = 0; c < PairTensors.Count; c++)
            takeTurns |= Gradient(problem, gradients, c).IsSharedByHeads(shape);
        long parts = takeTurns || shape.KeyHeads is 0 or >= ItemsNeeded ? 1 : MostParts(shape), heads = shape.KeyHeads * parts;
        long wanted = Math.Max(1, takeTurns ? Chunks(AttentionTiles.ItemsWanted, 1, ShortestChunk) : Math.Max(Chunks(AttentionTiles.ItemsWanted, heads, LeastChunk), Chunks(ItemsNeeded, heads, ShortestChunk)));
        if (takeTurns && wanted > 1)
            wanted = AttentionTiles.RoundUp(wanted, 2);
        long chunk = AttentionTiles.RoundUp(Math.Max(1, (shape.Keys + wanted - 1) / wanted), AttentionTiles.Keys);
        var plan = new AttentionBackwardPlan
        {
            Parts = parts,
            Chunk = chunk,
            Chunks = Math.Max(1, (shape.Keys + chunk - 1) / chunk),
            LineLength = shape.Queries + Math.Min(chunk, shape.Keys) + AttentionTiles.WidestBlock,
            WantsQuery = gradients.Query.IsPresent,
            WantsLine = gradients.DistanceBias.IsPresent || gradients.Slopes.IsPresent || gradients.BucketedBias.IsPresent,
            WantsGrid = gradients.GridBias.IsPresent,
            WantsSinks = gradients.Sinks.IsPresent,
        };
        long perHeadAndChunk = shape.Batch * shape.Heads * plan.Chunks;
        plan.queryFloats = plan.WantsQuery && plan.Chunks > 1 ? perHeadAndChunk * QueryFloats(shape) : 0;
        plan.keyFloats = parts > 1 ? shape.Batch * shape.KeyHeads * parts * plan.KeyRows * (KeyRow(shape) + ValueRow(shape)) : 0;
        plan.lineFloats = plan.WantsLine ? perHeadAndChunk * plan.LineLength : 0;
        plan.gridFloats = plan.WantsGrid ? perHeadAndChunk * shape.GridCells : 0;
        long streams = 0;
        for (int c = 0; c < PairTensors.Count; c++)
        {
            Captured gradient = Gradient(problem, gradients, c);
            plan.captured[c] = (plan.queryFloats + plan.keyFloats + plan.lineFloats + plan.gridFloats + plan.capturedFloats, Partial(gradient, shape, plan));
            plan.capturedFloats += perHeadAndChunk * plan.captured[c].Length;
            streams += gradient.IsPresent && gradient.Structure == CapturedStructure.Dense ? 1 : 0;
        }

        plan.sinkDoubles = plan.WantsSinks ? shape.Batch * shape.Heads : 0;
        plan.logSumExpFloats = 2 * shape.Batch * shape.Heads * shape.Queries;

        const long block = AttentionTiles.WidestBlock;
        long row = KeyRow(shape) + ValueRow(shape);
        long floats = (shape.HeadSize + shape.ValueSize) * block + block * row + QueryRow(shape) * block
            + 6 * AttentionTiles.WidestTile + 4 * block + (parts > 1 ? 0 : chunk * row) + chunk * (LaneSums.MostFloats(shape.HeadSize) + LaneSums.MostFloats(shape.ValueSize)) + TileFloats(chunk)
            + HeadScores.ScratchFloats(shape) + (1 + PairTensors.Count) * (LineCopies * plan.LineLength + AttentionTiles.WidestTile) + streams * PairStream.Floats(AttentionTiles.WidestBlock);
        plan.ScratchBytes = AttentionTiles.RoundUp(floats * sizeof(float), 64);
        return plan;

        long Chunks(long items, long heads, long least) => Math.Min(items / Math.Max(1, heads), (shape.Keys + least - 1) / least);
    }

    // Of as many query heads each.
    private static long MostParts(in AttentionShape shape)
    {
        long group = shape.Heads / shape.KeyHeads, parts = Math.Max(1, Math.Min(Math.Min(group, AttentionTiles.ItemsWanted / shape.KeyHeads), group * shape.Queries / LeastQueries));
        while (group % parts != 0)
            parts--;
        return parts;
    }

    /// <summary>Neighbouring keys add to lines that begin one float apart; four lines in turn keep a load from waiting for the store before it.</summary>
    public const int LineCopies = 4;

    public readonly long Bytes(int threads) => threads * ScratchBytes + SinkBytes + sinkDoubles * sizeof(double);

    /// <summary>Where log-sum-exps with remainders lie, if the caller has none: behind all partial sums.</summary>
    public readonly long LogSumExpPartial => queryFloats + keyFloats + lineFloats + gridFloats + capturedFloats;

    // The bytes before the gradients of the sinks, which lie behind all floats.
    private readonly long SinkBytes => AttentionTiles.RoundUp((LogSumExpPartial + logSumExpFloats) * sizeof(float), sizeof(double));

    /// <summary>Where the gradient of the sink of a sequence and head lies.</summary>
    public readonly unsafe double* SinkPartial(float* partials, in AttentionShape shape, long batch, long head) => (double*)((byte*)partials + SinkBytes) + batch * shape.Heads + head;

    /// <summary>Where the partial gradient of the queries of a head and chunk begins: [block, feature, lane], the first element of a block's query and feature standing at [query · row], unscaled.</summary>
    public readonly long QueryPartial(in AttentionShape shape, long batch, long head, long chunk) => ((batch * shape.Heads + head) * Chunks + chunk) * QueryFloats(shape);

    /// <summary>The floats of the gradient of one query, with what a product needs beside it.</summary>
    public static long QueryRow(in AttentionShape shape) => AttentionTiles.RoundUp(shape.HeadSize, Product.Rows);

    /// <summary>A float for each tile of a chunk; whole vectors, so that what lies behind it begins a line.</summary>
    public static long TileFloats(long chunk) => AttentionTiles.RoundUp(chunk / AttentionTiles.Keys, AttentionTiles.WidestBlock / AttentionTiles.Vectors);

    // Whole blocks.
    private static long QueryFloats(in AttentionShape shape) => AttentionTiles.RoundUp(shape.Queries, AttentionTiles.WidestBlock) * QueryRow(shape);

    /// <summary>Where the partial gradient of the keys of a key head and part begins, in rows of whole vectors, unscaled.</summary>
    public readonly long KeyPartial(in AttentionShape shape, long batch, long keyHead, long part) => queryFloats + ((batch * shape.KeyHeads + keyHead) * Parts + part) * KeyRows * (KeyRow(shape) + ValueRow(shape));

    /// <summary>The same for its values.</summary>
    public readonly long ValuePartial(in AttentionShape shape, long batch, long keyHead, long part) => KeyPartial(shape, batch, keyHead, part) + KeyRows * KeyRow(shape);

    // Whole chunks.
    private readonly long KeyRows => Chunks * Chunk;

    // The floats of a row of whole vectors, of the widest.
    private static long KeyRow(in AttentionShape shape) => AttentionTiles.RoundUp(shape.HeadSize, 16);

    private static long ValueRow(in AttentionShape shape) => AttentionTiles.RoundUp(shape.ValueSize, 16);

    /// <summary>Where the partial gradient of a head's line begins.</summary>
    public readonly long LinePartial(in AttentionShape shape, long batch, long head, long chunk) =>
        queryFloats + keyFloats + ((batch * shape.Heads + head) * Chunks + chunk) * LineLength;

    /// <summary>Where the partial gradient of a head's table by two coordinates begins.</summary>
    public readonly long GridPartial(in AttentionShape shape, long batch, long head, long chunk) =>
        queryFloats + keyFloats + lineFloats + ((batch * shape.Heads + head) * Chunks + chunk) * shape.GridCells;

    /// <summary>Where the partial gradient of a captured tensor begins for a head and chunk.</summary>
    public readonly long CapturedPartial(in AttentionShape shape, int capture, long batch, long head, long chunk) =>
        captured[capture].Start + ((batch * shape.Heads + head) * Chunks + chunk) * captured[capture].Length;

    /// <summary>The floats of the partial gradient of a captured tensor for a head and chunk.</summary>
    public readonly long CapturedLength(int capture) => captured[capture].Length;

    // The gradient of a pair tensor, without its memory.
    private static unsafe Captured Gradient(in AttentionProblem problem, in AttentionGradients gradients, int tensor)
    {
        byte* somewhere = (byte*)sizeof(float);
        return tensor switch
        {
            0 => new(somewhere, gradients.Captured0, problem.Captured0.Structure),
            1 => new(somewhere, gradients.Captured1, problem.Captured1.Structure),
            2 => new(somewhere, gradients.Captured2, problem.Captured2.Structure),
            3 => new(somewhere, gradients.Captured3, problem.Captured3.Structure),
            PairTensors.DenseBias => new(somewhere, gradients.DenseBias, CapturedStructure.Dense),
            PairTensors.RowBias => new(somewhere, gradients.RowBias, CapturedStructure.PerQuery),
            _ => new(somewhere, gradients.ColumnBias, CapturedStructure.PerKey),
        };
    }

    // The partial sums of a pair tensor's gradient for one head and chunk.
    private static long Partial(in Captured gradient, in AttentionShape shape, in AttentionBackwardPlan plan) => !gradient.IsPresent ? 0 : gradient.Structure switch
    {
        CapturedStructure.PerHead => 1,
        CapturedStructure.PerQuery => shape.Queries,
        CapturedStructure.PerKey => plan.Chunk,
        CapturedStructure.Dense => 0, // written straight to its place
        _ => plan.LineLength,
    };
}
