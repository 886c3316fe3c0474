using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>A tensor of rank 1 or 2 in pinned host memory, whose elements a loss takes one after the other, row by row. The default value is an absent tensor.</summary>
internal readonly unsafe struct LossStream
{
    private readonly float* data;
    private readonly nint columns, rowStride, stride;

    public LossStream(byte* data, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        this.data = (float*)data;
        columns = (nint)view.Length(view.Rank - 1);
        stride = (nint)view.Stride(view.Rank - 1);
        rowStride = view.Rank == 1 ? 0 : (nint)view.Stride(0);
        IsPresent = true;
        IsFlat = view.IsContiguous;
    }

    public readonly bool IsPresent;

    /// <summary>Whether the elements follow each other in memory.</summary>
    public readonly bool IsFlat;

    /// <summary>The address of an element of a flat tensor.</summary>
    public float* At(nint element) => data + element;

    public void CopyTo(float* destination, nint start, nint count)
    {
        for (nint done = 0; done < count;)
        {
            float* source = Part(start + done, count - done, out nint length);
            var part = new Span<float>(destination + done, (int)length);
            if (stride == 1)
                new Span<float>(source, (int)length).CopyTo(part);
            else if (stride == 0)
                part.Fill(*source);
            else
            {
                for (nint i = 0; i < length; i++)
                    destination[done + i] = source[i * stride];
            }
            done += length;
        }
    }

    public void CopyFrom(float* source, nint start, nint count)
    {
        for (nint done = 0; done < count;)
        {
            float* destination = Part(start + done, count - done, out nint length);
            for (nint i = 0; i < length; i++)
                destination[i * stride] = source[done + i];
            done += length;
        }
    }

    // From one element to the end of its row, but not more than so many.
    private float* Part(nint element, nint atMost, out nint length)
    {
        (nint row, nint column) = Math.DivRem(element, columns);
        length = Math.Min(atMost, columns - column);
        return data + row * rowStride + column * stride;
    }
}

/// <summary>A piece of the streams that a loss reads and writes, seen as whole vectors: streams that lie so are used where they are, all others through a copy.</summary>
/// <remarks>A tile has whole vectors only, or is a part of one. So the same code runs on every element, wherever it lies, and the bits don't depend on strides.</remarks>
internal unsafe struct LossTile<TLanes> where TLanes : struct, ILanes<TLanes>
{
    // Few enough that all copies stay in the first cache, and that a lane's sum in float32 has few terms; then sums go on in double.
    private const int Vectors = 32;

    private float* free;

    /// <param name="memory">As much as <see cref="Floats"/> says.</param>
    /// <param name="start">The first element.</param>
    /// <param name="count">A multiple of the vector's length, at most <see cref="Length"/>, or less than one vector.</param>
    public LossTile(float* memory, nint start, nint count)
    {
        free = memory;
        Start = start;
        Count = count;
        Padded = (count + TLanes.Count - 1) / TLanes.Count * TLanes.Count;
    }

    /// <summary>The most elements of a tile.</summary>
    public static int Length => Vectors * TLanes.Count;

    /// <summary>The memory that so many streams need.</summary>
    public static int Floats(int streams) => streams * Length;

    /// <summary>The first element.</summary>
    public readonly nint Start;

    /// <summary>How many elements.</summary>
    public readonly nint Count;

    /// <summary>The elements, counted in whole vectors.</summary>
    public readonly nint Padded;

    /// <summary>The elements of a stream, zeros after them; zeros if it is absent.</summary>
    public float* Read(in LossStream stream)
    {
        if (stream.IsPresent && LiesInVectors(stream))
            return stream.At(Start);
        float* copy = Place();
        nint count = stream.IsPresent ? Count : 0;
        new Span<float>(copy + count, (int)(Padded - count)).Clear();
        if (stream.IsPresent)
            stream.CopyTo(copy, Start, count);
        return copy;
    }

    /// <summary>Where to put the elements of a stream before <see cref="Write"/>; somewhere if it is absent.</summary>
    public float* Place(in LossStream stream) => stream.IsPresent && LiesInVectors(stream) ? stream.At(Start) : Place();

    /// <summary>Room for as many floats as the tile has.</summary>
    public float* Place()
    {
        float* place = free;
        free += Length;
        return place;
    }

    /// <summary>Moves what was put at <paramref name="place"/> to where it belongs.</summary>
    public readonly void Write(float* place, in LossStream stream)
    {
        if (stream.IsPresent && !LiesInVectors(stream))
            stream.CopyFrom(place, Start, Count);
    }

    /// <summary>The sum of the lanes that belong to elements.</summary>
    public readonly double Total(TLanes lanes)
    {
        float* each = stackalloc float[TLanes.Count];
        lanes.Store(each);
        double total = 0;
        for (int i = 0; i < TLanes.Count && i < Count; i++)
            total += each[i];
        return total;
    }

    private readonly bool LiesInVectors(in LossStream stream) => stream.IsFlat && Count == Padded;
}
