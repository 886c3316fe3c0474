namespace TransformerKernels;

/// <summary>
/// Swin's relative position bias (Liu et al. 2021): tokens are the cells of an image window row by row, and a learned table is read at the difference of their rows and columns.
/// </summary>
/// <remarks>
/// The cell of position p lies in row y = ⌊p / Width⌋ and column x = p mod Width. A query at p and a key at j add entry (yₚ − yⱼ + Height − 1)(2·Width − 1) + xₚ − xⱼ + Width − 1: query
/// minus key, unlike distances. Queries and keys must stand within the window; with the default offset and as many queries as keys that is Sq = Sk ≤ Height · Width.
/// </remarks>
public readonly ref struct GridBias
{
    /// <summary>A bias that reads a table at the difference of two coordinates.</summary>
    /// <param name="table">[(2·height − 1)(2·width − 1), h], float32.</param>
    /// <param name="height">The rows of the window, 1 to 2²⁰.</param>
    /// <param name="width">The columns of the window, 1 to 2²⁰.</param>
    /// <exception cref="ArgumentNullException">There is no table.</exception>
    public GridBias(TensorView table, int height, int width)
    {
        Require.Present(table, nameof(table));
        Table = table;
        Height = height;
        Width = width;
    }

    /// <summary>[(2·Height − 1)(2·Width − 1), h].</summary>
    public TensorView Table { get; }

    /// <summary>The rows of the window.</summary>
    public int Height { get; }

    /// <summary>The columns of the window.</summary>
    public int Width { get; }

    /// <summary>Whether there is a table.</summary>
    public bool IsPresent => Table.IsPresent;

    /// <summary>The largest height and width.</summary>
    internal const int LargestSide = 1 << 20;

    internal long Cells => (2L * Height - 1) * (2L * Width - 1);

    /// <summary>Throws unless positions offset .. offset + queries − 1 and 0 .. keys − 1 lie in the window.</summary>
    internal void CheckPositions(long queries, long keys, long offset)
    {
        long positions = (long)Height * Width;
        if (keys > positions)
            throw new ArgumentException($"problem.GridBias has a window of {Height} x {Width} = {positions} positions; there are {keys} keys.", "problem.GridBias");
        if (queries > 0 && (offset < 0 || offset > positions - queries))
            throw new ArgumentException($"problem.GridBias has a window of {Height} x {Width} = {positions} positions; queries stand at {offset} to {offset + queries - 1}.", "problem.GridBias");
    }
}

/// <summary>The table of a <see cref="GridBias"/> as a pointer while a call runs.</summary>
/// <remarks>
/// With rows of 2·Width − 1 places in place of Width, the entry of a pair is the difference of two places and a constant: so one line a head serves all pairs, and for the next key
/// all entries of a block of queries lie the same step further on.
/// </remarks>
internal readonly unsafe struct GridTable
{
    private readonly float* table;
    private readonly nint cellStep, headStep, width;

    public GridTable(byte* data, in GridBias bias)
    {
        if (!bias.IsPresent)
            return;
        table = (float*)data;
        (cellStep, headStep) = ((nint)bias.Table.Stride(0), (nint)bias.Table.Stride(1));
        width = bias.Width;
        Cells = (nint)bias.Cells;
    }

    public bool IsPresent => table != null;

    /// <summary>The entries of a head.</summary>
    public nint Cells { get; }

    /// <summary>The place of a position; the entry of a pair is place of the query − place of the key + <see cref="Centre"/>.</summary>
    public nint Place(nint position) => position / width * (2 * width - 1) + position % width;

    /// <summary>The entry of equal positions, the middle one.</summary>
    public nint Centre => Cells / 2;

    /// <summary>The entries of a head, side by side.</summary>
    public void Read(nint head, float* cells)
    {
        for (nint cell = 0; cell < Cells; cell++)
            cells[cell] = table[cell * cellStep + head * headStep];
    }
}
