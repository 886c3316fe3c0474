namespace TransformerKernels;

/// <summary>A float32 tensor of four axes while a call runs: its pinned address and strides.</summary>
internal readonly unsafe struct Strided
{
    /// <summary>The first element; null if the tensor is absent.</summary>
    public readonly float* Data;

    private readonly nint step0, step1;

    /// <summary>The distance between rows, the third axis.</summary>
    public readonly nint Row;

    /// <summary>The distance between columns, the last axis.</summary>
    public readonly nint Column;

    public Strided(byte* data, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        Data = (float*)data;
        step0 = Step(view, 0);
        step1 = Step(view, 1);
        Row = Step(view, 2);
        Column = Step(view, 3);
    }

    private Strided(float* data, nint step0, nint step1, nint row, nint column)
    {
        Data = data;
        this.step0 = step0;
        this.step1 = step1;
        Row = row;
        Column = column;
    }

    /// <summary>[b, h, s, 2] without gaps, at an address.</summary>
    public static Strided Pairs(float* data, nint heads, nint rows) => new(data, 2 * heads * rows, 2 * rows, 2, 1);

    public bool IsPresent => Data != null;

    /// <summary>The first element of a matrix of the last two axes.</summary>
    public float* Matrix(nint i0, nint i1) => Data + i0 * step0 + i1 * step1;

    // An axis of length 1 is shared along: its stride counts as zero. Axes beyond the rank too.
    private static nint Step(in TensorView view, int axis) => axis < view.Rank && view.Length(axis) != 1 ? (nint)view.Stride(axis) : 0;
}
