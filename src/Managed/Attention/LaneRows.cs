using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Rows of lanes, one a key: what stands at key j and the lanes of the block is read at Start + j·Step.</summary>
internal unsafe struct LaneRows
{
    public float* Start;
    public nint Step;

    /// <summary>The lanes at key j.</summary>
    public readonly float* At(nint key) => Start + key * Step;
}

/// <summary><see cref="LaneRows"/> of every tensor.</summary>
[InlineArray(PairTensors.Count)]
internal struct LaneRowsSet
{
    private LaneRows first;
}

/// <summary>Lines of values by distance: the value of query i and key j stands at line[i − j + const], so that for the next key the lanes begin one float earlier.</summary>
internal static unsafe class ScoreLine
{
    /// <summary>line[n] = table[(index + n·direction)·step]; an index beyond an end takes the end.</summary>
    public static void Read<V>(float* table, nint step, nint length, nint index, nint direction, float* line, nint count) where V : struct, ILanes<V>
    {
        nint last = length - 1;
        // How many entries lie before the table is reached, and how many until it is left again.
        nint before = Math.Clamp(direction > 0 ? -index : index - last, 0, count);
        nint inside = Math.Clamp((direction > 0 ? last - index : index) + 1, before, count);
        for (nint n = 0; n < before; n++)
            line[n] = table[(direction > 0 ? 0 : last) * step];
        float* from = table + (index + before * direction) * step;
        nint stride = direction * step;
        for (nint n = before; n < inside; n++, from += stride)
            line[n] = *from;
        for (nint n = inside; n < count; n++)
            line[n] = table[(direction > 0 ? last : 0) * step];
    }

    /// <summary>line[t] −= slope·|t + offset| for t from .. from+count−1.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void AddSlope<V>(float slope, nint offset, float* line, nint from, nint count) where V : struct, ILanes<V>
    {
        nint t = from;
        for (; t + V.Count <= from + count; t += V.Count)
            (V.Load(line + t) - slope * V.Abs(V.Iota(t + offset))).Store(line + t);
        for (; t < from + count; t++)
            line[t] -= slope * Math.Abs(t + offset);
    }

    /// <summary>Whether a line holds −∞.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static bool Hides<V>(float* line, nint count) where V : struct, ILanes<V>
    {
        nint n = 0, w = V.Count;
        V none = V.From(float.NegativeInfinity), least0 = V.Zero, least1 = V.Zero, least2 = V.Zero, least3 = V.Zero;
        for (; n + 4 * w <= count; n += 4 * w)
        {
            least0 = V.SelectEqual(V.Load(line + n), none, none, least0);
            least1 = V.SelectEqual(V.Load(line + n + w), none, none, least1);
            least2 = V.SelectEqual(V.Load(line + n + 2 * w), none, none, least2);
            least3 = V.SelectEqual(V.Load(line + n + 3 * w), none, none, least3);
        }
        bool hides = V.AnyEqual(least0, none) || V.AnyEqual(least1, none) || V.AnyEqual(least2, none) || V.AnyEqual(least3, none);
        for (; n < count; n++)
            hides |= line[n] == float.NegativeInfinity;
        return hides;
    }
}
