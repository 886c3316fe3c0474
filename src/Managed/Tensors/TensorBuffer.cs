using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>Owns the memory of one row-major tensor on one device, until it is disposed.</summary>
/// <remarks>
/// Made by <see cref="ComputeDevice.Allocate"/>, filled with zeros. A view of a disposed buffer throws <see cref="ObjectDisposedException"/>.
/// Work queued on a GPU must be synchronised before its buffers are disposed. Not thread-safe. The memory of a buffer that nobody disposes is not given
/// back: a finalizer could free it under a call that only holds a view.
/// </remarks>
public abstract class TensorBuffer : IDisposable
{
    private readonly long[] shape;

    /// <summary>For devices: describes the buffer; the derived class owns the memory.</summary>
    protected TensorBuffer(ComputeDevice device, ElementType type, ReadOnlySpan<long> shape)
    {
        ArgumentNullException.ThrowIfNull(device);
        Device = device;
        Type = type;
        this.shape = shape.ToArray();
        ElementCount = 1;
        foreach (long length in shape)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(length, nameof(shape));
            ElementCount = checked(ElementCount * length);
        }
    }

    /// <summary>The device whose memory it is.</summary>
    public ComputeDevice Device { get; }

    /// <summary>The type of the elements.</summary>
    public ElementType Type { get; }

    /// <summary>The lengths of the axes.</summary>
    public ReadOnlySpan<long> Shape => shape;

    /// <summary>The product of the lengths.</summary>
    public long ElementCount { get; }

    /// <summary>The number of bytes.</summary>
    public long ByteCount => checked(ElementCount * Type.Size());

    /// <summary>Whether <see cref="Dispose()"/> was called.</summary>
    public bool IsDisposed { get; private set; }

    /// <summary>The whole tensor.</summary>
    /// <exception cref="ObjectDisposedException">The buffer was disposed.</exception>
    public TensorView View
    {
        get
        {
            ObjectDisposedException.ThrowIf(IsDisposed, this);
            return TensorView.OfBuffer(this, BaseAddress, Type, shape);
        }
    }

    /// <summary>The whole tensor.</summary>
    /// <exception cref="ObjectDisposedException">The buffer was disposed.</exception>
    public static implicit operator TensorView(TensorBuffer buffer)
    {
        ArgumentNullException.ThrowIfNull(buffer);
        return buffer.View;
    }

    /// <summary>What <see cref="TensorView.Address"/> of the whole buffer is: an address, or 0 for memory with handles.</summary>
    protected abstract nint BaseAddress { get; }

    /// <summary>Writes all elements from host memory; on a GPU after everything queued before, returning when <paramref name="source"/> may be reused.</summary>
    /// <param name="source">Exactly as many elements as the buffer has, of its type.</param>
    public void CopyFrom<T>(ReadOnlySpan<T> source) where T : unmanaged
    {
        CheckCopy<T>(source.Length, nameof(source));
        Upload(MemoryMarshal.AsBytes(source));
    }

    /// <summary>Reads all elements into host memory; on a GPU after everything queued before.</summary>
    /// <param name="destination">Exactly as many elements as the buffer has, of its type.</param>
    public void CopyTo<T>(Span<T> destination) where T : unmanaged
    {
        CheckCopy<T>(destination.Length, nameof(destination));
        Download(MemoryMarshal.AsBytes(destination));
    }

    /// <summary>All elements in a new array.</summary>
    public T[] ToArray<T>() where T : unmanaged
    {
        var array = new T[ElementCount];
        CopyTo(array.AsSpan());
        return array;
    }

    /// <summary>The elements themselves, without a copy: host memory only.</summary>
    /// <exception cref="InvalidOperationException">The buffer lies in device memory.</exception>
    public unsafe Span<T> AsSpan<T>() where T : unmanaged
    {
        CheckCopy<T>(ElementCount, nameof(T));
        return new Span<T>((void*)HostAddress, checked((int)ElementCount));
    }

    /// <summary>Sets all bytes to zero.</summary>
    public abstract void Clear();

    /// <summary>Frees the memory.</summary>
    public void Dispose()
    {
        if (IsDisposed)
            return;
        IsDisposed = true;
        Free();
    }

    /// <summary>Where the memory lies, for devices of host memory; others throw <see cref="InvalidOperationException"/>.</summary>
    protected virtual nint HostAddress =>
        throw new InvalidOperationException($"This tensor lies in the memory of {Device.Name}; copy it with CopyTo.");

    /// <summary>Copies host bytes into the buffer.</summary>
    protected abstract void Upload(ReadOnlySpan<byte> source);

    /// <summary>Copies the buffer into host bytes.</summary>
    protected abstract void Download(Span<byte> destination);

    /// <summary>Gives the memory back; called once.</summary>
    protected abstract void Free();

    private void CheckCopy<T>(long count, string name) where T : unmanaged
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        if (ElementTypes.Of<T>() != Type)
            throw new ArgumentException($"The buffer holds {Type}, not {ElementTypes.Of<T>()}.", name);
        if (count != ElementCount)
            throw new ArgumentException($"The buffer has {ElementCount} elements, not {count}.", name);
    }
}
