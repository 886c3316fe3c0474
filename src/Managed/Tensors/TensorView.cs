using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TransformerKernels;

/// <summary>A tensor in someone else's memory: where it lies, its element type, shape and strides. Copies nothing, owns nothing.</summary>
/// <remarks>
/// A view is made from a span, a <see cref="TensorSpan{T}"/>, a <see cref="TensorBuffer"/>, or a foreign pointer together with the device whose
/// memory it is. Managed memory is pinned only while a call runs. Rank up to <see cref="MaximumRank"/>; strides are in elements and 64-bit, zero and negative too;
/// an operation that writes refuses a view whose elements alias each other. No view has more than 2⁶⁰ bytes, and none reaches further from its first element: what would is refused, since
/// its addresses would wrap around. The stride of an axis of length 1, or of a view without elements, leads nowhere: it may be anything, and counts as 0 if it is larger.
/// The default value means "absent": every optional tensor of this library is absent until it is set.
/// </remarks>
public readonly ref struct TensorView
{
    /// <summary>The largest number of axes.</summary>
    public const int MaximumRank = 6;

    // Far beyond every memory, and sums of a few don't overflow.
    private const long FarthestByte = 1L << 60;

    private readonly ref byte reference;
    private readonly nint address;
    private readonly object? space;
    private readonly TensorBuffer? owner;
    private readonly Axes lengths, strides;

    private TensorView(ref byte reference, nint address, object space, TensorBuffer? owner, ElementType type, bool isReadOnly,
        scoped ReadOnlySpan<long> shape, scoped ReadOnlySpan<long> strides)
    {
        long elements = CountElements(type, shape), most = FarthestByte / type.Size();
        if (strides.Length != shape.Length)
            throw new ArgumentException($"A shape of {shape.Length} axes needs as many strides; there are {strides.Length}.", nameof(strides));
        Int128 reach = 0;
        for (int axis = 0; axis < shape.Length; axis++)
        {
            Int128 stride = Int128.Abs(strides[axis]);
            bool leads = elements > 0 && shape[axis] > 1;
            if (leads && (reach += (shape[axis] - 1) * stride) > most)
                throw new ArgumentException($"The strides {Text(strides)} of the shape {Text(shape)} lead further than {FarthestByte} bytes from the first element.", nameof(strides));
            lengths[axis] = shape[axis];
            this.strides[axis] = leads || stride <= most ? strides[axis] : 0;
        }
        this.reference = ref reference;
        this.address = address;
        this.space = space;
        this.owner = owner;
        Type = type;
        IsReadOnly = isReadOnly;
        Rank = shape.Length;
        ElementCount = elements;
    }

    /// <summary>Whether there is a tensor; false for the default value.</summary>
    public bool IsPresent => space is not null;

    /// <summary>The type of the elements.</summary>
    public ElementType Type { get; }

    /// <summary>Whether the view was made from read-only memory; writing to it is refused.</summary>
    public bool IsReadOnly { get; }

    /// <summary>The number of axes.</summary>
    public int Rank { get; }

    /// <summary>The product of the lengths: 1 for rank 0.</summary>
    public long ElementCount { get; }

    /// <summary>The length of an axis.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such axis.</exception>
    public long Length(int axis) => lengths[Checked(axis)];

    /// <summary>The distance between neighbours along an axis, in elements.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such axis.</exception>
    public long Stride(int axis) => strides[Checked(axis)];

    /// <summary>Views a whole array, row-major.</summary>
    /// <param name="data">At least as many elements as the shape has.</param>
    /// <param name="shape">The lengths of the axes; none means one axis of the array's length.</param>
    /// <exception cref="ArgumentNullException">There is no array.</exception>
    /// <exception cref="ArgumentException">The memory has fewer elements than the shape, the shape has a negative length or more than <see cref="MaximumRank"/> axes, or the elements are of no <see cref="ElementType"/>.</exception>
    public static TensorView Of<T>(T[] data, params scoped ReadOnlySpan<long> shape) where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(data);
        return Of(data.AsSpan(), shape);
    }

    /// <summary>Views a span, row-major.</summary>
    /// <param name="data">At least as many elements as the shape has.</param>
    /// <param name="shape">The lengths of the axes; none means one axis of the span's length.</param>
    /// <exception cref="ArgumentException">The memory has fewer elements than the shape, the shape has a negative length or more than <see cref="MaximumRank"/> axes, or the elements are of no <see cref="ElementType"/>.</exception>
    public static TensorView Of<T>(Span<T> data, params scoped ReadOnlySpan<long> shape) where T : unmanaged =>
        OfSpan(data, shape, isReadOnly: false);

    /// <summary>Views a read-only span, row-major. The view can be an input only.</summary>
    /// <param name="data">At least as many elements as the shape has.</param>
    /// <param name="shape">The lengths of the axes; none means one axis of the span's length.</param>
    /// <exception cref="ArgumentException">The memory has fewer elements than the shape, the shape has a negative length or more than <see cref="MaximumRank"/> axes, or the elements are of no <see cref="ElementType"/>.</exception>
    public static TensorView Of<T>(ReadOnlySpan<T> data, params scoped ReadOnlySpan<long> shape) where T : unmanaged =>
        OfSpan(data, shape, isReadOnly: true);

    /// <summary>Views a <see cref="TensorSpan{T}"/> with its shape and strides.</summary>
    /// <exception cref="ArgumentException">It has more than <see cref="MaximumRank"/> axes, or its elements are of no <see cref="ElementType"/>.</exception>
    public static TensorView Of<T>(scoped in TensorSpan<T> data) where T : unmanaged =>
        OfTensorSpan(ref data.GetPinnableReference(), data.Lengths, data.Strides, ElementTypes.Of<T>(), isReadOnly: false);

    /// <summary>Views a <see cref="ReadOnlyTensorSpan{T}"/> with its shape and strides. The view can be an input only.</summary>
    /// <exception cref="ArgumentException">It has more than <see cref="MaximumRank"/> axes, or its elements are of no <see cref="ElementType"/>.</exception>
    public static TensorView Of<T>(scoped in ReadOnlyTensorSpan<T> data) where T : unmanaged =>
        OfTensorSpan(ref Unsafe.AsRef(in data.GetPinnableReference()), data.Lengths, data.Strides, ElementTypes.Of<T>(), isReadOnly: true);

    /// <summary>Views memory that another library owns (TorchSharp, ONNX Runtime, native code), row-major.</summary>
    /// <param name="device">The device whose memory it is; any CPU device for host memory.</param>
    /// <param name="pointer">The address of the first element, aligned to the element's size. The memory must outlive every call that uses the view.</param>
    /// <param name="type">The type of the elements.</param>
    /// <param name="shape">The lengths of the axes.</param>
    /// <exception cref="ArgumentNullException">There is no device, or the address is 0.</exception>
    /// <exception cref="ArgumentException">The address isn't aligned, or the shape has a negative length, more than <see cref="MaximumRank"/> axes or more than 2⁶⁰ bytes.</exception>
    public static TensorView FromPointer(ComputeDevice device, nint pointer, ElementType type, params scoped ReadOnlySpan<long> shape) =>
        FromPointer(device, pointer, type, shape, RowMajor(type, shape, stackalloc long[MaximumRank]));

    /// <summary>Views memory that another library owns, with strides.</summary>
    /// <param name="device">The device whose memory it is; any CPU device for host memory.</param>
    /// <param name="pointer">The address of the first element, aligned to the element's size. The memory must outlive every call that uses the view.</param>
    /// <param name="type">The type of the elements.</param>
    /// <param name="shape">The lengths of the axes.</param>
    /// <param name="strides">The strides of the axes, in elements.</param>
    /// <exception cref="ArgumentNullException">There is no device, or the address is 0.</exception>
    /// <exception cref="ArgumentException">The address isn't aligned; the shape has a negative length, more than <see cref="MaximumRank"/> axes or more than 2⁶⁰ bytes; or the strides are
    /// of another number than the axes, or lead further than 2⁶⁰ bytes from the first element.</exception>
    public static TensorView FromPointer(ComputeDevice device, nint pointer, ElementType type, scoped ReadOnlySpan<long> shape, scoped ReadOnlySpan<long> strides)
    {
        ArgumentNullException.ThrowIfNull(device);
        if (pointer == 0)
            throw new ArgumentNullException(nameof(pointer));
        if (pointer % type.Size() != 0)
            throw new ArgumentException($"The address 0x{pointer:x} is not aligned to the {type.Size()} bytes of {type}.", nameof(pointer));
        return new(ref Unsafe.NullRef<byte>(), pointer, device.MemorySpace, null, type, false, shape, strides);
    }

    internal static TensorView OfBuffer(TensorBuffer owner, nint address, ElementType type, scoped ReadOnlySpan<long> shape) =>
        OfBuffer(owner, address, type, shape, RowMajor(type, shape, stackalloc long[MaximumRank]));

    internal static TensorView OfBuffer(TensorBuffer owner, nint address, ElementType type, scoped ReadOnlySpan<long> shape, scoped ReadOnlySpan<long> strides) =>
        new(ref Unsafe.NullRef<byte>(), address, owner.Device.MemorySpace, owner, type, false, shape, strides);

    /// <summary>The same elements with the axes in another order.</summary>
    /// <param name="axes">For each new axis, the old one.</param>
    /// <exception cref="ArgumentException">That isn't each axis once.</exception>
    public TensorView Permute(params scoped ReadOnlySpan<int> axes)
    {
        if (axes.Length != Rank)
            throw new ArgumentException($"A permutation of {Rank} axes needs as many entries; there are {axes.Length}.", nameof(axes));
        Span<long> shape = stackalloc long[Rank], steps = stackalloc long[Rank];
        int seen = 0;
        for (int axis = 0; axis < axes.Length; axis++)
        {
            int from = axes[axis];
            if ((uint)from >= (uint)Rank)
                throw new ArgumentException($"There is no axis {from} in a tensor with {Rank} axes.", nameof(axes));
            if ((seen & (1 << from)) != 0)
                throw new ArgumentException($"Axis {from} occurs twice in the permutation.", nameof(axes));
            seen |= 1 << from;
            shape[axis] = lengths[from];
            steps[axis] = strides[from];
        }
        return With(0, shape, steps);
    }

    /// <summary>The elements from <paramref name="start"/> on along one axis.</summary>
    /// <param name="axis">The axis to cut.</param>
    /// <param name="start">The first element that stays.</param>
    /// <param name="length">How many stay.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such axis, or it hasn't all of these elements.</exception>
    public TensorView Slice(int axis, long start, long length)
    {
        long old = Length(axis);
        if (start < 0 || length < 0 || start > old - length)
            throw new ArgumentOutOfRangeException(nameof(start), $"Elements {start} to {start + length} of axis {axis}, which has {old}.");
        Span<long> shape = stackalloc long[Rank], steps = stackalloc long[Rank];
        for (int i = 0; i < Rank; i++)
        {
            shape[i] = i == axis ? length : lengths[i];
            steps[i] = strides[i];
        }
        return With(start * strides[axis], shape, steps);
    }

    /// <summary>The elements at one index of an axis; that axis goes.</summary>
    /// <param name="axis">The axis to remove.</param>
    /// <param name="index">Which of its elements stay.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such axis, or it has no such element.</exception>
    public TensorView Select(int axis, long index)
    {
        if ((ulong)index >= (ulong)Length(axis))
            throw new ArgumentOutOfRangeException(nameof(index), $"Element {index} of axis {axis}, which has {Length(axis)}.");
        Span<long> shape = stackalloc long[Rank - 1], steps = stackalloc long[Rank - 1];
        for (int i = 0; i < shape.Length; i++)
        {
            shape[i] = lengths[i < axis ? i : i + 1];
            steps[i] = strides[i < axis ? i : i + 1];
        }
        return With(index * strides[axis], shape, steps);
    }

    /// <summary>The same elements again and again along an axis of length 1, which gets a stride of 0. The view can be an input only.</summary>
    /// <param name="axis">The axis to lengthen.</param>
    /// <param name="length">Its new length.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such axis, or the length is negative or makes a view of more than 2⁶⁰ bytes.</exception>
    /// <exception cref="ArgumentException">The axis has another length than 1.</exception>
    public TensorView Expand(int axis, long length)
    {
        if (Length(axis) != 1)
            throw new ArgumentException($"Axis {axis} has the length {Length(axis)}; only an axis of length 1 can be expanded.", nameof(axis));
        if (length < 0 || length > FarthestByte / Type.Size() / Math.Max(1, ElementCount))
            throw new ArgumentOutOfRangeException(nameof(length), length, $"Axis {axis} of {ShapeText} can have a length from 0 to what makes a view of {FarthestByte} bytes.");
        Span<long> shape = stackalloc long[Rank], steps = stackalloc long[Rank];
        for (int i = 0; i < Rank; i++)
        {
            shape[i] = i == axis ? length : lengths[i];
            steps[i] = i == axis ? 0 : strides[i];
        }
        return With(0, shape, steps);
    }

    /// <summary>The same elements, which must lie row-major without gaps, in another shape of as many elements.</summary>
    /// <param name="shape">The lengths of the axes.</param>
    /// <exception cref="InvalidOperationException">They don't lie so.</exception>
    /// <exception cref="ArgumentException">The shape has another number of elements, a negative length, or more than <see cref="MaximumRank"/> axes.</exception>
    public TensorView Reshape(params scoped ReadOnlySpan<long> shape)
    {
        if (!IsContiguous)
            throw new InvalidOperationException("Only a row-major view without gaps can take another shape.");
        TensorView reshaped = With(0, shape, RowMajor(Type, shape, stackalloc long[MaximumRank]));
        if (reshaped.ElementCount != ElementCount)
            throw new ArgumentException($"{ElementCount} elements don't fill the shape {reshaped.ShapeText}.", nameof(shape));
        return reshaped;
    }

    /// <summary>Whether the elements lie row-major without gaps.</summary>
    public bool IsContiguous
    {
        get
        {
            long expected = 1;
            for (int axis = Rank - 1; axis >= 0; axis--)
            {
                if (lengths[axis] != 1 && strides[axis] != expected)
                    return false;
                expected *= lengths[axis];
            }
            return true;
        }
    }

    /// <summary>The shape as text, "[2, 8, 64]".</summary>
    public string ShapeText => Text(((ReadOnlySpan<long>)lengths)[..Rank]);

    /// <summary>The first element, for <c>fixed</c>: host memory only. An absent tensor gives a null pointer.</summary>
    /// <exception cref="InvalidOperationException">The tensor lies in device memory.</exception>
    public ref byte GetPinnableReference()
    {
        if (!IsPresent)
            return ref Unsafe.NullRef<byte>();
        if (!IsHost)
            throw new InvalidOperationException("This tensor lies in device memory, which the host can't address; copy it to the host first.");
        return ref HostReference;
    }

    /// <summary>The buffer the view was made from, if it was made from one.</summary>
    public TensorBuffer? Owner => owner;

    /// <summary>The address, or for a view of a device's buffer the offset in bytes from the start of that buffer. Zero for managed memory.</summary>
    public nint Address => address;

    internal bool IsHost => ReferenceEquals(space, CpuDevice.HostMemory);

    internal object? Space => space;

    /// <summary>Whether two elements may lie at one address: some stride is smaller than what the smaller strides reach.</summary>
    internal bool AliasesItself
    {
        get
        {
            if (ElementCount <= 1)
                return false;
            Span<(long Step, long Length)> axes = stackalloc (long, long)[Rank];
            int count = 0;
            for (int axis = 0; axis < Rank; axis++)
            {
                if (lengths[axis] > 1)
                    axes[count++] = (Math.Abs(strides[axis]), lengths[axis]);
            }
            axes = axes[..count];
            axes.Sort((a, b) => a.Step.CompareTo(b.Step));
            long reach = 0;
            foreach ((long step, long length) in axes)
            {
                if (step <= reach)
                    return true;
                reach += step * (length - 1);
            }
            return false;
        }
    }

    /// <summary>Whether the two views may share a byte. Views interleaved in one buffer (query, key and value packed side by side) are told apart.</summary>
    internal bool Overlaps(in TensorView other)
    {
        if (!ReferenceEquals(space, other.space) || ElementCount == 0 || other.ElementCount == 0)
            return false;
        if (!IsHost && !ReferenceEquals(owner, other.owner) && owner is not null && other.owner is not null)
            return false;
        long distance = IsHost ? Unsafe.ByteOffset(ref HostReference, ref other.HostReference) : other.address - address;
        (long first, long end) = ReachBelow(long.MaxValue);
        (long otherFirst, long otherEnd) = other.ReachBelow(long.MaxValue);
        if (distance + otherFirst >= end || first >= distance + otherEnd)
            return false;

        // The ranges meet. For a step that both share and all larger steps are multiples of, compare the places within one step.
        for (int axis = 0; axis < Rank + other.Rank; axis++)
        {
            long step = axis < Rank ? Math.Abs(strides[axis]) * Type.Size() : Math.Abs(other.strides[axis - Rank]) * other.Type.Size();
            if (step == 0 || !OuterStepsAreMultiplesOf(step) || !other.OuterStepsAreMultiplesOf(step))
                continue;
            (first, end) = ReachBelow(step);
            (otherFirst, otherEnd) = other.ReachBelow(step);
            long shift = ((distance + otherFirst - first) % step + step) % step;
            if (shift >= end - first && shift + (otherEnd - otherFirst) <= step)
                return false;
        }
        return true;
    }

    /// <summary>Whether the two views are of the same memory, shape and strides.</summary>
    internal bool IsSameAs(in TensorView other)
    {
        if (!ReferenceEquals(space, other.space) || !ReferenceEquals(owner, other.owner) || Type != other.Type || Rank != other.Rank)
            return false;
        for (int axis = 0; axis < Rank; axis++)
        {
            if (lengths[axis] != other.lengths[axis] || strides[axis] != other.strides[axis])
                return false;
        }
        return IsHost ? Unsafe.AreSame(ref HostReference, ref other.HostReference) : address == other.address;
    }

    // The bytes before and after the first element that axes with steps below the given one reach.
    private (long First, long End) ReachBelow(long step)
    {
        long low = 0, high = Type.Size();
        for (int axis = 0; axis < Rank; axis++)
        {
            if (Math.Abs(strides[axis]) * Type.Size() >= step)
                continue;
            long reach = (lengths[axis] - 1) * strides[axis] * Type.Size();
            if (reach < 0)
                low += reach;
            else
                high += reach;
        }
        return (low, high);
    }

    private bool OuterStepsAreMultiplesOf(long step)
    {
        for (int axis = 0; axis < Rank; axis++)
        {
            long own = Math.Abs(strides[axis]) * Type.Size();
            if (lengths[axis] > 1 && own >= step && own % step != 0)
                return false;
        }
        return true;
    }

    private unsafe ref byte HostReference
    {
        get
        {
            if (Unsafe.IsNullRef(ref reference))
                return ref Unsafe.AsRef<byte>((void*)address);
            return ref reference;
        }
    }

    private TensorView With(long elementOffset, scoped ReadOnlySpan<long> shape, scoped ReadOnlySpan<long> steps)
    {
        nint bytes = shape.Contains(0) ? 0 : (nint)(elementOffset * Type.Size()); // where there is nothing to point at, the offset may be anything
        if (Unsafe.IsNullRef(ref reference))
            return new(ref Unsafe.NullRef<byte>(), address + bytes, space!, owner, Type, IsReadOnly, shape, steps);
        return new(ref Unsafe.AddByteOffset(ref reference, bytes), 0, space!, owner, Type, IsReadOnly, shape, steps);
    }

    private int Checked(int axis)
    {
        if ((uint)axis >= (uint)Rank)
            throw new ArgumentOutOfRangeException(nameof(axis), $"Axis {axis} of a tensor with {Rank} axes.");
        return axis;
    }

    private static TensorView OfSpan<T>(ReadOnlySpan<T> data, scoped ReadOnlySpan<long> shape, bool isReadOnly) where T : unmanaged
    {
        ElementType type = ElementTypes.Of<T>();
        long whole = data.Length;
        if (shape.IsEmpty)
            shape = new ReadOnlySpan<long>(in whole);
        var view = new TensorView(ref Unsafe.As<T, byte>(ref MemoryMarshal.GetReference(data)), 0, CpuDevice.HostMemory, null, type, isReadOnly,
            shape, RowMajor(type, shape, stackalloc long[MaximumRank]));
        if (view.ElementCount > data.Length)
            throw new ArgumentException($"The shape {view.ShapeText} has {view.ElementCount} elements; the memory has {data.Length}.", nameof(data));
        return view;
    }

    private static TensorView OfTensorSpan<T>(ref T first, scoped ReadOnlySpan<nint> lengths, scoped ReadOnlySpan<nint> strides, ElementType type, bool isReadOnly)
    {
        if (lengths.Length > MaximumRank)
            throw new ArgumentException($"A tensor has at most {MaximumRank} axes; this one has {lengths.Length}.", "data");
        Span<long> shape = stackalloc long[lengths.Length], steps = stackalloc long[lengths.Length];
        for (int axis = 0; axis < lengths.Length; axis++)
            (shape[axis], steps[axis]) = (lengths[axis], strides[axis]);
        return new(ref Unsafe.As<T, byte>(ref first), 0, CpuDevice.HostMemory, null, type, isReadOnly, shape, steps);
    }

    private static ReadOnlySpan<long> RowMajor(ElementType type, scoped ReadOnlySpan<long> shape, Span<long> strides)
    {
        CountElements(type, shape);
        long step = 1;
        for (int axis = shape.Length - 1; axis >= 0; axis--)
        {
            strides[axis] = step;
            step *= shape[axis]; // may wrap where the shape has no elements
        }
        return strides[..shape.Length];
    }

    /// <summary>The elements of a shape that a tensor can have.</summary>
    internal static long CountElements(ElementType type, scoped ReadOnlySpan<long> shape)
    {
        if (shape.Length > MaximumRank)
            throw new ArgumentException($"A tensor has at most {MaximumRank} axes; this shape has {shape.Length}.", nameof(shape));
        long most = FarthestByte / type.Size();
        Int128 elements = shape.Contains(0) ? 0 : 1;
        foreach (long length in shape)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(length, nameof(shape));
            if ((elements *= length) > most)
                throw new ArgumentException($"The shape {Text(shape)} has more than {FarthestByte} bytes of {type}.", nameof(shape));
        }
        return (long)elements;
    }

    private static string Text(scoped ReadOnlySpan<long> numbers) => $"[{string.Join(", ", numbers.ToArray())}]";

    [InlineArray(MaximumRank)]
    private struct Axes
    {
        private long first;
    }
}
