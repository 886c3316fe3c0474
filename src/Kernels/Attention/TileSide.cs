namespace TransformerKernels;

/// <summary>How many rows and columns the tiles of attention's kernels have.</summary>
internal interface ITileSide
{
    static abstract int Length { get; }
}

/// <summary>Of long sequences: a group of 256 threads, each with 4 x 4 sums of a product.</summary>
internal readonly struct Side64 : ITileSide
{
    public static int Length => 64;
}

/// <summary>Of short sequences, which would fill little of the large tile: a group of 64 threads, each with 4 x 1 sums of a product.</summary>
internal readonly struct Side16 : ITileSide
{
    public static int Length => 16;
}

/// <summary>Which tile a problem gets, and how many of them cover it.</summary>
internal static class TileSide
{
    // On PoCL one small tile takes 0.07 to 0.28 of the large one's time, four take 0.17 to 0.95, nine up to 1.67 where heads are wide; docs/attention.md has a table.
    private const long MostSmallTiles = 4;

    /// <summary>The side of a problem's tiles: by the numbers of queries and keys alone, since it decides in which order a row's weights are summed.</summary>
    public static int Of(in AttentionShape shape) => Blocks(shape.Queries, Side16.Length) * Blocks(shape.Keys, Side16.Length) <= MostSmallTiles ? Side16.Length : Side64.Length;

    /// <summary>How many tiles cover a length.</summary>
    public static long Blocks(long length, int side) => (length + side - 1) / side;

    /// <summary>How many groups share the columns of an output, each of two sides at most; at least one.</summary>
    public static long Slices(long size, int side) => Math.Max(1, Blocks(size, 2 * side));
}
