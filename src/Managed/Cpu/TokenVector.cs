namespace TransformerKernels;

/// <summary>Token indices of either type at equal distances in pinned host memory. The default value is an absent tensor.</summary>
internal readonly unsafe struct TokenVector
{
    private readonly byte* data;
    private readonly nint stride;
    private readonly bool isLong;

    public TokenVector(byte* data, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        this.data = data;
        stride = (nint)view.Stride(view.Rank - 1);
        isLong = view.Type == ElementType.Int64;
        IsPresent = true;
    }

    private TokenVector(byte* data, nint stride, bool isLong)
    {
        this.data = data;
        this.stride = stride;
        this.isLong = isLong;
        IsPresent = true;
    }

    public readonly bool IsPresent;

    public long this[nint index] => isLong ? ((long*)data)[index * stride] : ((int*)data)[index * stride];

    /// <summary>Writes an index unless the tensor is absent.</summary>
    public void Set(nint index, long token)
    {
        if (!IsPresent)
            return;
        if (isLong)
            ((long*)data)[index * stride] = token;
        else
            ((int*)data)[index * stride] = (int)token;
    }

    /// <summary>The vector that begins so many elements later; absent stays absent.</summary>
    public TokenVector From(nint elements) => IsPresent ? new(data + elements * (isLong ? sizeof(long) : sizeof(int)), stride, isLong) : default;
}
