using ILGPU;

namespace TransformerKernels;

/// <summary>A one-dimensional float32 tensor with any stride, as kernels read and write it; it may be absent.</summary>
internal readonly struct GpuVector
{
    private readonly ArrayView<float> memory;
    private readonly long offset, stride;
    private readonly int present;

    /// <summary>A view as a kernel's argument.</summary>
    /// <param name="view">A tensor of one axis in this device's memory, or absent.</param>
    /// <param name="name">The argument's name, for errors.</param>
    /// <param name="substitute">What an absent tensor points at, without being used.</param>
    public GpuVector(in TensorView view, string name, ArrayView<float> substitute)
    {
        if (!view.IsPresent)
        {
            memory = substitute;
            return;
        }
        memory = Memory(view, name);
        offset = view.Address / sizeof(float);
        stride = view.Stride(0);
        present = 1;
    }

    /// <summary>The memory that a view lies in, whole.</summary>
    public static ArrayView<float> Memory(in TensorView view, string name)
    {
        if (view.Owner is not GpuBuffer buffer)
            throw new NotSupportedException($"{name} is a foreign pointer; GPU devices take views of tensors they allocated.");
        return buffer.Use<float>();
    }

    /// <summary>Whether there is a tensor.</summary>
    public bool IsPresent => present != 0;

    /// <summary>Element i of a tensor that is there.</summary>
    public float this[long i]
    {
        get => memory[offset + i * stride];
        set => memory[offset + i * stride] = value;
    }
}
