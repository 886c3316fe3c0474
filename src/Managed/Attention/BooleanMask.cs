using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>How much of a tile a mask shows.</summary>
internal enum TileVisibility
{
    All,
    Some,
    None,
}

/// <summary>The boolean mask of a call, as a pointer while it runs: a byte a pair, 0 hides. It is looked at tile by tile and never written out in full.</summary>
internal readonly unsafe struct BooleanMask
{
    private readonly byte* data;
    private readonly nint batchStep, headStep, queryStep, keyStep;

    public BooleanMask(byte* mask, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        data = mask;
        (batchStep, headStep, queryStep, keyStep) = (Step(view, 0), Step(view, 1), Step(view, 2), Step(view, 3));
    }

    public bool IsPresent => data != null;

    /// <summary>Whether a tile is visible. Without a mask all of it is.</summary>
    public TileVisibility Look(nint batch, nint head, nint i0, nint queries, nint j0, nint keys)
    {
        if (data == null)
            return TileVisibility.All;
        byte* start = At(batch, head, i0, j0);
        nint rows = queryStep == 0 ? 1 : queries, columns = keyStep == 0 ? 1 : keys, rowStep = queryStep, columnStep = keyStep;
        if (columnStep != 1 && rowStep == 1)
            (rows, columns, rowStep, columnStep) = (columns, rows, columnStep, rowStep);
        bool hides = false, shows = false;
        for (nint row = 0; row < rows && !(hides && shows); row++, start += rowStep)
        {
            if (columnStep == 1)
            {
                var side = new ReadOnlySpan<byte>(start, (int)columns);
                hides = hides || side.Contains((byte)0);
                shows = shows || side.ContainsAnyExcept((byte)0);
                continue;
            }
            for (nint column = 0; column < columns; column++)
            {
                bool visible = start[column * columnStep] != 0;
                hides |= !visible;
                shows |= visible;
            }
        }
        return !hides ? TileVisibility.All : shows ? TileVisibility.Some : TileVisibility.None;
    }

    /// <summary>Puts −∞ for the hidden pairs of a tile among its biases.</summary>
    /// <param name="batch">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="queries">The queries; lanes beyond them stay as they are.</param>
    /// <param name="j0">The first key.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="bias">The biases; may lie in <paramref name="tile"/>.</param>
    /// <param name="tile">Where the biases with the mask go, a row of lanes a key.</param>
    /// <param name="spare">The memory of two tiles.</param>
    public void Hide<V>(nint batch, nint head, nint i0, nint queries, nint j0, nint keys, LaneRows bias, float* tile, float* spare) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        byte* start = At(batch, head, i0, j0);
        LaneRows visible = new() { Start = spare, Step = keyStep == 0 ? 0 : block };
        if (queries < block)
            new Span<float>(spare, (int)(AttentionTiles.Keys * block)).Fill(1);
        if (keyStep == 1 && queryStep > 0)
        {
            float* rows = spare + AttentionTiles.Keys * block;
            for (nint i = 0; i < queries; i++)
                Widen(start + i * queryStep, rows + i * AttentionTiles.Keys, keys);
            MatrixCopy.Run(rows, AttentionTiles.Keys, 1, spare, 1, block, queries, keys);
        }
        else
        {
            for (nint j = 0; j < (keyStep == 0 ? 1 : keys); j++)
            {
                byte* from = start + j * keyStep;
                float* to = spare + j * block;
                if (queryStep == 1)
                    Widen(from, to, queries);
                else if (queryStep == 0)
                    new Span<float>(to, (int)queries).Fill(*from);
                else
                {
                    for (nint i = 0; i < queries; i++)
                        to[i] = from[i * queryStep];
                }
            }
        }
        V none = V.From(float.NegativeInfinity);
        for (nint row = 0; row < keys; row++)
        {
            for (nint lane = 0; lane < block; lane += V.Count)
                V.SelectEqual(V.Load(visible.Start + row * visible.Step + lane), V.Zero, none, V.Load(bias.Start + row * bias.Step + lane)).Store(tile + row * block + lane);
        }
    }

    private static void Widen(byte* from, float* to, nint count)
    {
        nint n = 0;
        for (; n + Vector128<byte>.Count <= count; n += Vector128<byte>.Count)
        {
            (Vector128<ushort> lower, Vector128<ushort> upper) = Vector128.Widen(Vector128.Load(from + n));
            Store(lower, to + n);
            Store(upper, to + n + Vector128<ushort>.Count);
        }
        for (; n < count; n++)
            to[n] = from[n];
    }

    private static void Store(Vector128<ushort> numbers, float* to)
    {
        (Vector128<uint> lower, Vector128<uint> upper) = Vector128.Widen(numbers);
        Vector128.ConvertToSingle(lower.AsInt32()).Store(to);
        Vector128.ConvertToSingle(upper.AsInt32()).Store(to + Vector128<float>.Count);
    }

    private byte* At(nint batch, nint head, nint query, nint key) => data + batch * batchStep + head * headStep + query * queryStep + key * keyStep;

    private static nint Step(in TensorView view, int axis) => view.Length(axis) == 1 ? 0 : (nint)view.Stride(axis);
}
