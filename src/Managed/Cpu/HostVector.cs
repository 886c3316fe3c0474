namespace TransformerKernels;

/// <summary>Floats at equal distances in pinned host memory: a tensor of rank 1, or a row of one of rank 2. The default value is an absent tensor.</summary>
internal readonly unsafe struct HostVector
{
    public readonly float* Data;
    public readonly nint Stride;

    public HostVector(byte* data, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        Data = (float*)data;
        Stride = (nint)view.Stride(view.Rank - 1);
        IsPresent = true;
    }

    private HostVector(float* data, nint stride)
    {
        Data = data;
        Stride = stride;
        IsPresent = true;
    }

    public readonly bool IsPresent;

    public ref float this[nint index] => ref Data[index * Stride];

    /// <summary>The element, or 0 if the tensor is absent.</summary>
    public float OrZero(nint index) => IsPresent ? this[index] : 0f;

    /// <summary>Writes the element unless the tensor is absent.</summary>
    public void Set(nint index, float value)
    {
        if (IsPresent)
            this[index] = value;
    }

    /// <summary>The vector that begins so many elements after <see cref="Data"/>; absent stays absent.</summary>
    public HostVector From(nint elements) => IsPresent ? new(Data + elements, Stride) : default;
}
