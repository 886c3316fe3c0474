using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>Owns the memory of one row-major tensor on one device, until it is disposed.</summary>
/// <remarks>
/// Made by <see cref="ComputeDevice.Allocate"/>, filled with zeros. A view of a disposed buffer throws <see cref="ObjectDisposedException"/>.
/// Work that is queued on a GPU may still use a buffer when it is disposed: its memory is handed on to what is queued later. Not thread-safe. The memory of a
/// buffer that nobody disposes is not given back: a finalizer could free it under a call that only holds a view.
/// </remarks>
public abstract class TensorBuffer : IDisposable
{
    // Spans of bytes are shorter than spans of wider elements can be.
    private const int LargestCopy = 1 << 30;

    private readonly long[] shape;

    /// <summary>For devices: describes the buffer; the derived class owns the memory.</summary>
    /// <param name="device">The device whose memory it is.</param>
    /// <param name="type">The type of the elements.</param>
    /// <param name="shape">The lengths of the axes.</param>
    /// <exception cref="ArgumentException">There is no device; or the shape has a negative length, more than <see cref="TensorView.MaximumRank"/> axes or more than 2⁶⁰ bytes.</exception>
    protected TensorBuffer(ComputeDevice device, ElementType type, ReadOnlySpan<long> shape)
    {
        ArgumentNullException.ThrowIfNull(device);
        Device = device;
        Type = type;
        ElementCount = TensorView.CountElements(type, shape);
        this.shape = shape.ToArray();
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
    public long ByteCount => ElementCount * Type.Size();

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
        CopyFrom(source, 0);
    }

    /// <summary>Writes some of the elements, in row-major order, from host memory.</summary>
    /// <inheritdoc cref="CopyFrom{T}(ReadOnlySpan{T})"/>
    /// <param name="source">Elements of the buffer's type.</param>
    /// <param name="start">Where the first of them goes.</param>
    /// <exception cref="ArgumentOutOfRangeException">The buffer ends before.</exception>
    public void CopyFrom<T>(ReadOnlySpan<T> source, long start) where T : unmanaged
    {
        CheckPart<T>(start, source.Length, nameof(source));
        for (int at = 0, most = LargestCopy / Type.Size(); at < source.Length; at += most)
            Upload(MemoryMarshal.AsBytes(source.Slice(at, Math.Min(most, source.Length - at))), (start + at) * Type.Size());
    }

    /// <summary>Reads all elements into host memory; on a GPU after everything queued before.</summary>
    /// <param name="destination">Exactly as many elements as the buffer has, of its type.</param>
    public void CopyTo<T>(Span<T> destination) where T : unmanaged
    {
        CheckCopy<T>(destination.Length, nameof(destination));
        CopyTo(destination, 0);
    }

    /// <summary>Reads some of the elements, in row-major order, into host memory; on a GPU after everything queued before.</summary>
    /// <param name="destination">As many elements as to read, of the buffer's type.</param>
    /// <param name="start">The first of them.</param>
    /// <exception cref="ArgumentOutOfRangeException">The buffer ends before.</exception>
    public void CopyTo<T>(Span<T> destination, long start) where T : unmanaged
    {
        CheckPart<T>(start, destination.Length, nameof(destination));
        for (int at = 0, most = LargestCopy / Type.Size(); at < destination.Length; at += most)
            Download(MemoryMarshal.AsBytes(destination.Slice(at, Math.Min(most, destination.Length - at))), (start + at) * Type.Size());
    }

    /// <summary>All elements in a new array.</summary>
    /// <exception cref="InvalidOperationException">An array can't have so many.</exception>
    public T[] ToArray<T>() where T : unmanaged
    {
        if (ElementCount > Array.MaxLength)
            throw new InvalidOperationException($"An array holds at most {Array.MaxLength} elements, the buffer has {ElementCount}; read it in parts with CopyTo(span, start).");
        var array = new T[ElementCount];
        CopyTo(array.AsSpan());
        return array;
    }

    /// <summary>The elements themselves, without a copy: host memory only.</summary>
    /// <exception cref="InvalidOperationException">The buffer lies in device memory, or a span can't have so many elements.</exception>
    public unsafe Span<T> AsSpan<T>() where T : unmanaged
    {
        CheckCopy<T>(ElementCount, nameof(T));
        if (ElementCount > int.MaxValue)
            throw new InvalidOperationException($"A span holds at most {int.MaxValue} elements, the buffer has {ElementCount}; copy parts with CopyTo(span, start).");
        return new Span<T>((void*)HostAddress, (int)ElementCount);
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

    /// <summary>Copies host bytes into the buffer from a byte on; at least one, and none beyond its end.</summary>
    protected abstract void Upload(ReadOnlySpan<byte> source, long offset);

    /// <summary>Copies the buffer's bytes from one on into host memory; at least one, and none beyond its end.</summary>
    protected abstract void Download(Span<byte> destination, long offset);

    /// <summary>Gives the memory back; called once.</summary>
    protected abstract void Free();

    private void CheckCopy<T>(long count, string name) where T : unmanaged
    {
        CheckPart<T>(0, 0, name);
        if (count != ElementCount)
            throw new ArgumentException($"The buffer has {ElementCount} elements, not {count}.", name);
    }

    private void CheckPart<T>(long start, long count, string name) where T : unmanaged
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        if (ElementTypes.Of<T>() != Type)
            throw new ArgumentException($"The buffer holds {Type}, not {ElementTypes.Of<T>()}.", name);
        if (start < 0 || start > ElementCount - count)
            throw new ArgumentOutOfRangeException(nameof(start), start, $"{count} elements from {start} on don't lie in the buffer, which has {ElementCount}.");
    }
}
