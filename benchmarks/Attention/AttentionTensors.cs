using System.Runtime.InteropServices;

namespace TransformerKernels.Benchmarks;

/// <summary>Heads of a buffer, [batch, head, position, size] or [batch, position, head, size]: query, key, value, output or a gradient.</summary>
internal readonly record struct HeadTensor(TensorBuffer Buffer, bool PositionsFirst, int FirstHead, int Heads)
{
    /// <summary>[batch, head, position, size].</summary>
    public TensorView View => (PositionsFirst ? Buffer.View.Permute(0, 2, 1, 3) : Buffer.View).Slice(1, FirstHead, Heads);

    /// <summary>The features of a position.</summary>
    public Span<float> Row(int batch, int head, int position)
    {
        ReadOnlySpan<long> shape = Buffer.Shape;
        (long outer, long inner) = PositionsFirst ? (position, FirstHead + head) : (FirstHead + head, (long)position);
        return Buffer.AsSpan<float>().Slice((int)(((batch * shape[1] + outer) * shape[2] + inner) * shape[3]), (int)shape[3]);
    }
}

/// <summary>A tensor over pairs, [batch, head, query, key] with some axes shared: a bias, a mask, captured values or a gradient.</summary>
internal readonly record struct PairTensor(TensorBuffer Buffer, PairAxes Axes, AttentionSetup Setup)
{
    public bool Has(PairAxes axis) => Axes.HasFlag(axis);

    /// <summary>The value of a pair.</summary>
    public float At(int batch, int head, int query, int key)
    {
        long index = Has(PairAxes.Batch) ? batch : 0;
        index = Has(PairAxes.Head) ? index * Setup.Heads + head : index;
        index = Has(PairAxes.Query) ? index * Setup.Length + query : index;
        index = Has(PairAxes.Key) ? index * Setup.Keys + key : index;
        return Buffer.Type == ElementType.Bool ? MemoryMarshal.AsBytes(Buffer.AsSpan<bool>())[(int)index] : Buffer.AsSpan<float>()[(int)index];
    }
}
