using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>The pointers to a captured tensor, or to a bias like one, while a call runs.</summary>
internal readonly unsafe struct Captured
{
    private readonly float* data;
    private readonly nint batchStep, headStep, queryStep, keyStep, length;

    public readonly CapturedStructure Structure;

    /// <summary>The index of distance 0.</summary>
    public readonly nint Centre;

    public Captured(byte* values, in CapturedTensor tensor) : this(values, tensor.Values, tensor.Structure, tensor.Centre)
    {
    }

    /// <summary>A tensor, or its gradient. A dense one that is shared by all queries or keys counts as one per key or query.</summary>
    public Captured(byte* values, in TensorView view, CapturedStructure structure, long centre = 0)
    {
        if (!view.IsPresent)
            return;
        data = (float*)values;
        Structure = structure;
        Centre = (nint)centre;
        switch (structure)
        {
            case CapturedStructure.PerHead:
                headStep = Step(view, 0);
                Heads = (nint)view.Length(0);
                break;
            case CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance:
                headStep = Step(view, 0);
                keyStep = (nint)view.Stride(1);
                Heads = (nint)view.Length(0);
                length = (nint)view.Length(1);
                break;
            default:
                batchStep = Step(view, 0);
                headStep = Step(view, 1);
                (Batches, Heads) = ((nint)view.Length(0), (nint)view.Length(1));
                bool perQuery = structure != CapturedStructure.PerKey && view.Length(2) != 1;
                bool perKey = structure != CapturedStructure.PerQuery && view.Length(view.Rank - 1) != 1;
                Structure = perQuery && perKey ? CapturedStructure.Dense : perKey ? CapturedStructure.PerKey : CapturedStructure.PerQuery;
                queryStep = perQuery ? (nint)view.Stride(2) : 0;
                keyStep = perKey ? (nint)view.Stride(view.Rank - 1) : 0;
                Places = perKey ? (nint)view.Length(view.Rank - 1) : perQuery ? (nint)view.Length(2) : 1;
                break;
        }
    }

    /// <summary>How many sequences, heads, and queries or keys have values of their own.</summary>
    public nint Batches { get; }

    public nint Heads { get; }

    public nint Places { get; }

    /// <summary>The entries of a structure by distance.</summary>
    public nint Entries => length;

    /// <summary>The distance between the values of neighbouring queries.</summary>
    public nint QueryStep => queryStep;

    /// <summary>The distance between the values of neighbouring keys.</summary>
    public nint KeyStep => keyStep;

    public bool IsPresent => data != null;

    public bool IsByDistance => Structure is CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance;

    /// <summary>Whether several sequences share the value of a pair.</summary>
    public bool IsSharedByBatch(in AttentionShape shape) => IsPresent && Structure == CapturedStructure.Dense && Batches == 1 && shape.Batch > 1;

    /// <summary>Whether several heads share the value of a pair.</summary>
    public bool IsSharedByHeads(in AttentionShape shape) => IsPresent && Structure == CapturedStructure.Dense && Heads == 1 && shape.Heads > 1;

    /// <summary>Where the value of a pair lies.</summary>
    public float* At(nint batch, nint head, nint query, nint key, nint distance)
    {
        float* start = data + batch * batchStep + head * headStep;
        if (!IsByDistance)
            return start + query * queryStep + key * keyStep;
        nint index = Structure == CapturedStructure.PerHeadAndDistance ? distance + Centre : Math.Abs(distance);
        return start + Math.Clamp(index, 0, length - 1) * keyStep;
    }

    /// <summary>Reads a structure by distance into a line: line[t] for t from .. from+count−1 is what belongs to distance −(t + offset).</summary>
    public void ReadLine<V>(nint head, float* line, nint from, nint count, nint offset) where V : struct, ILanes<V>
    {
        float* start = data + head * headStep;
        if (Structure == CapturedStructure.PerHeadAndDistance)
        {
            ScoreLine.Read<V>(start, keyStep, length, Centre - (from + offset), -1, line + from, count);
            return;
        }
        // |distance| falls to 0 at t = −offset and rises from there.
        nint falling = Math.Clamp(-offset - from, 0, count);
        ScoreLine.Read<V>(start, keyStep, length, -(from + offset), -1, line + from, falling);
        ScoreLine.Read<V>(start, keyStep, length, from + falling + offset, 1, line + from + falling, count - falling);
    }

    /// <summary>Where an entry of a structure by distance lies.</summary>
    public float* Entry(nint head, nint index) => data + head * headStep + index * keyStep;

    private static nint Step(in TensorView view, int axis) => view.Length(axis) == 1 ? 0 : (nint)view.Stride(axis);
}

/// <summary>The four captured tensors of a call.</summary>
[InlineArray(Count)]
internal struct CapturedSet
{
    public const int Count = 4;

    private Captured first;
}

/// <summary>The tensors of a call with a value a query, a key or a pair: the captured ones, then those that are added to the scores.</summary>
[InlineArray(Count)]
internal struct PairTensors
{
    public const int DenseBias = CapturedSet.Count, RowBias = DenseBias + 1, ColumnBias = RowBias + 1, Count = ColumnBias + 1;

    private Captured first;
}
