using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A tensor of int32 or int64 numbers of up to two axes in a GPU's memory; which one, all threads find alike. It may be absent.</summary>
internal readonly struct GpuIntegers
{
    private readonly GpuTensor<int> ints;
    private readonly GpuTensor<long> longs;

    public GpuIntegers(GpuDevice device, in TensorView view, string name)
    {
        bool areLong = view.IsPresent && view.Type == ElementType.Int64;
        ints = new(device, areLong ? default : view, name);
        longs = new(device, areLong ? view : default, name);
    }

    public bool IsPresent => ints.IsPresent || longs.IsPresent;

    /// <summary>A number of a tensor of one axis that is there.</summary>
    public long this[long i]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => longs.IsPresent ? longs[i] : ints[i];
    }

    /// <summary>A number of a tensor of two axes that is there.</summary>
    public long this[long i, long j]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => longs.IsPresent ? longs[i, j] : ints[i, j];
    }

    /// <summary>Writes a number unless the tensor is absent.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Set(long i, long value)
    {
        if (ints.IsPresent)
            ints[i] = (int)value;
        if (longs.IsPresent)
            longs[i] = value;
    }

    /// <inheritdoc cref="Set(long, long)"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Set(long i, long j, long value)
    {
        if (ints.IsPresent)
            ints[i, j] = (int)value;
        if (longs.IsPresent)
            longs[i, j] = value;
    }
}
