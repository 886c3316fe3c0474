namespace TransformerKernels.Tests;

/// <summary>An array seen as a tensor whose axes lie in memory in any order, with gaps between them.</summary>
public sealed class Strided
{
    private readonly long[] lengths, strides;
    private readonly long start;
    private readonly long[] outerLengths;
    private readonly int[] order;
    private readonly int gap;

    /// <param name="lengths">The lengths of the axes.</param>
    /// <param name="order">The axes from the outermost to the innermost one in memory.</param>
    /// <param name="gap">So many unused elements before and after every run along every axis.</param>
    public Strided(long[] lengths, int[] order, int gap = 0)
    {
        this.lengths = lengths;
        this.order = order;
        this.gap = gap;
        strides = new long[lengths.Length];
        outerLengths = order.Select(axis => lengths[axis] + 2 * gap).ToArray();
        long step = 1;
        for (int i = order.Length - 1; i >= 0; i--)
        {
            strides[order[i]] = step;
            start += gap * step;
            step *= outerLengths[i];
        }
        Data = new float[step];
    }

    public float[] Data { get; }

    public long[] Lengths => lengths;

    public TensorView View
    {
        get
        {
            TensorView view = TensorView.Of(Data, outerLengths);
            for (int i = 0; i < order.Length; i++)
                view = view.Slice(i, gap, lengths[order[i]]);
            var axes = new int[order.Length];
            for (int i = 0; i < order.Length; i++)
                axes[order[i]] = i;
            return view.Permute(axes);
        }
    }

    public ref float this[params ReadOnlySpan<long> index] => ref Data[At(index)];

    /// <summary>Where an element lies in <see cref="Data"/>.</summary>
    public long At(params ReadOnlySpan<long> index)
    {
        long at = start;
        for (int axis = 0; axis < index.Length; axis++)
            at += index[axis] * strides[axis];
        return at;
    }

    public Strided Fill(int seed, float scale = 1)
    {
        Seeded.Normal(Data, seed, scale);
        return this;
    }

    public Strided Copy()
    {
        var copy = new Strided(lengths, order, gap);
        Data.CopyTo(copy.Data, 0);
        return copy;
    }
}
