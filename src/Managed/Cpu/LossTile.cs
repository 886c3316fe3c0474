namespace TransformerKernels;

/// <summary>A piece of the streams that a loss reads and writes, seen as whole vectors: streams that lie so are used where they are, all others through a copy.</summary>
/// <remarks>A tile has whole vectors only or is a part of one. So the same code runs on every element, wherever it lies, and the bits don't depend on strides.</remarks>
internal unsafe struct LossTile<TLanes> where TLanes : struct, ILanes<TLanes>
{
    // Few enough that all copies stay in the first cache, and that a lane's sum in float32 has few terms; then sums go on in double.
    private const int Vectors = 32;

    private readonly float* zeros;
    private readonly nint start, count;
    private float* free;

    /// <param name="memory">As many zeros as <see cref="Floats"/> says; the first stream's worth stays so.</param>
    /// <param name="start">The first element.</param>
    /// <param name="count">A multiple of the vector's length, at most <see cref="Length"/>, or less than one vector.</param>
    public LossTile(float* memory, nint start, nint count)
    {
        zeros = memory;
        free = memory + Length;
        this.start = start;
        this.count = count;
        Padded = (count + TLanes.Count - 1) / TLanes.Count * TLanes.Count;
    }

    /// <summary>The most elements of a tile.</summary>
    public static int Length => Vectors * TLanes.Count;

    /// <summary>The memory that so many streams need.</summary>
    public static int Floats(int streams) => (streams + 1) * Length;

    /// <summary>The elements, counted in whole vectors.</summary>
    public readonly nint Padded;

    /// <summary>The elements of a stream, zeros after them; zeros if it is absent.</summary>
    public float* Read(HostVector stream)
    {
        if (!stream.IsPresent)
            return zeros;
        if (LiesInVectors(stream))
            return stream.Data + start;
        float* copy = Place();
        for (nint i = 0; i < Padded; i++)
            copy[i] = i < count ? stream[start + i] : 0f;
        return copy;
    }

    /// <summary>Where to put the elements of a stream before <see cref="Write"/>; somewhere if it is absent.</summary>
    public float* Place(HostVector stream) => stream.IsPresent && LiesInVectors(stream) ? stream.Data + start : Place();

    /// <summary>Moves what was put at <paramref name="place"/> to where it belongs.</summary>
    public readonly void Write(float* place, HostVector stream)
    {
        if (!stream.IsPresent || LiesInVectors(stream))
            return;
        for (nint i = 0; i < count; i++)
            stream[start + i] = place[i];
    }

    /// <summary>The sum of lanes that belong to elements.</summary>
    public readonly double Total(TLanes lanes)
    {
        float* each = stackalloc float[TLanes.Count];
        lanes.Store(each);
        double total = 0;
        for (int i = 0; i < TLanes.Count && i < count; i++)
            total += each[i];
        return total;
    }

    private readonly bool LiesInVectors(HostVector stream) => stream.Stride == 1 && count == Padded;

    private float* Place()
    {
        float* place = free;
        free += Length;
        return place;
    }
}
