using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>What changes the scores of one query head: the bias by distance, and the captured values of the rule, as rows of lanes.</summary>
/// <remarks>
/// Everything that depends on the distance alone lies in a <see cref="ScoreLine"/>; slopes and a distance vector add up into one. A tile in which pairs are
/// hidden by position has its biases written out, −∞ for what is hidden; all other tiles pay nothing for masks.
/// </remarks>
internal unsafe struct HeadScores
{
    private nint batch, head, queries, firstKey, keys, offset;
    private float* zeros, tile, queryBiases, keyBiases, visibility, cells;
    private nint* places;
    private PairTile* pairs;
    private ulong* shown; // by the mask to the block's queries, for each tile of keys
    private bool addsPairs, addsQueries, addsKeys;

    /// <summary>The bias by distance; Start is null if there is none. Index with i − j.</summary>
    public float* Line;

    /// <summary>Whether the line holds −∞, which hides pairs.</summary>
    public bool LineHides;

    public LaneRowsSet Captures;

    /// <summary>The floats of scratch memory: a line a distance structure, a tile a captured tensor and one for the biases, what the mask shows to a block of queries, a tile's visibility, the head's table by two coordinates, a block of zeros, one of biases a query, and the biases of a tile's keys.</summary>
    public static long ScratchFloats(in AttentionShape shape) =>
        (1 + CapturedSet.Count) * (shape.Queries + shape.Keys + AttentionTiles.WidestBlock) + (1 + CapturedSet.Count) * AttentionTiles.WidestTile + TileVisibility.Floats + 2 * AttentionTiles.WidestBlock + AttentionTiles.Keys
        + AttentionTiles.RoundUp(shape.Keys, AttentionTiles.Keys) / AttentionTiles.Keys * AttentionTiles.WidestBlock * (sizeof(ulong) / sizeof(float))
        + (shape.GridCells > 0 ? AttentionTiles.RoundUp(shape.GridCells, 2) + AttentionTiles.WidestBlock * (sizeof(nint) / sizeof(float)) : 0);

    /// <summary>Lays out the lines of a head for queries from <paramref name="query"/> on and keys from <paramref name="key"/> on. Heads that have the same biases a pair may have one <paramref name="pairs"/>.</summary>
    public void Begin<V>(in AttentionScoring scoring, in AttentionShape shape, nint batch, nint head, nint query, nint queries, nint key, nint keys, PairTile* pairs, ref float* scratch)
        where V : struct, ILanes<V>
    {
        this.batch = batch;
        this.head = head;
        this.pairs = pairs;
        this.queries = query + queries;
        firstKey = key;
        this.keys = key + keys;
        offset = scoring.QueryOffset(batch);
        nint block = AttentionTiles.Block<V>();
        zeros = Take(ref scratch, block);
        new Span<float>(zeros, (int)block).Clear();
        queryBiases = Take(ref scratch, block);
        keyBiases = Take(ref scratch, AttentionTiles.Keys);
        tile = Take(ref scratch, AttentionTiles.Keys * block);
        visibility = Take(ref scratch, TileVisibility.Floats);
        shown = (ulong*)Take(ref scratch, (nint)AttentionTiles.RoundUp(keys, AttentionTiles.Keys) / AttentionTiles.Keys * block * (sizeof(ulong) / sizeof(float)));
        addsPairs = scoring.Grid.IsPresent;
        addsQueries = addsKeys = false;
        for (int c = PairTensors.DenseBias; c < PairTensors.Count; c++)
        {
            ref readonly Captured tensor = ref scoring.Tensors[c];
            addsPairs |= tensor.IsPresent && tensor.Structure == CapturedStructure.Dense;
            addsQueries |= tensor.IsPresent && tensor.Structure == CapturedStructure.PerQuery;
            addsKeys |= tensor.IsPresent && tensor.Structure == CapturedStructure.PerKey;
        }
        if (scoring.Grid.IsPresent)
        {
            cells = Take(ref scratch, (nint)AttentionTiles.RoundUp(scoring.Grid.Cells, 2));
            places = (nint*)Take(ref scratch, block * (sizeof(nint) / sizeof(float)));
            scoring.Grid.Read(head, cells);
        }

        // Query i and key j stand at line[i − j]: from the last key's first query to the first key's last query, and a block of spare lanes.
        nint first = query - (key + keys - 1), length = queries + keys - 1 + block;
        Line = null;
        LineHides = false;
        if (scoring.HasLine)
        {
            Line = Take(ref scratch, length) - first;
            scoring.ReadLine<V>(batch, head, Line, first, length, offset, (nint)shape.DistanceCentre);
            LineHides = ScoreLine.Hides<V>(Line + first, queries + keys - 1);
        }
        for (int c = 0; c < CapturedSet.Count; c++)
        {
            ref readonly Captured captured = ref scoring.Tensors[c];
            ref LaneRows rows = ref Captures[c];
            rows = new() { Start = zeros };
            if (!captured.IsPresent)
                continue;
            if (captured.IsByDistance)
            {
                rows.Start = Take(ref scratch, length) - first;
                rows.Step = -1;
                captured.ReadLine<V>(head, rows.Start, first, length, offset);
            }
            else if (captured.Structure is CapturedStructure.PerHead or CapturedStructure.PerQuery)
            {
                rows.Start = Take(ref scratch, block);
                new Span<float>(rows.Start, (int)block).Fill(*captured.At(batch, head, 0, 0, 0));
            }
            else
            {
                rows.Start = Take(ref scratch, AttentionTiles.Keys * block);
                rows.Step = block;
            }
        }
    }

    /// <summary>Fetches the captured values of a block of queries.</summary>
    public readonly void BeginBlock<V>(in AttentionScoring scoring, nint i0) where V : struct, ILanes<V>
    {
        pairs->FirstKey = pairs->Asked = PairTile.None;
        new Span<float>(queryBiases, (int)AttentionTiles.Block<V>()).Clear();
        for (nint lane = 0; lane < AttentionTiles.Block<V>() && scoring.Grid.IsPresent; lane++)
            places[lane] = scoring.Grid.Place(Math.Min(i0 + lane, queries - 1) + offset) + scoring.Grid.Centre;
        for (int c = 0; c < PairTensors.Count; c++)
        {
            ref readonly Captured tensor = ref scoring.Tensors[c];
            if (!tensor.IsPresent || tensor.Structure != CapturedStructure.PerQuery)
                continue;
            for (nint lane = 0; lane < AttentionTiles.Block<V>(); lane++)
            {
                float value = *tensor.At(batch, head, Math.Min(i0 + lane, queries - 1), 0, 0);
                if (c < CapturedSet.Count)
                    Captures[c].Start[lane] = value;
                else
                    queryBiases[lane] += value;
            }
        }
    }

    /// <summary>Fetches the captured values of a tile; those by key only if they are wanted in lanes.</summary>
    public readonly RuleTile BeginTile<V>(in AttentionScoring scoring, nint i0, nint j0, nint rows, bool wantsKeys) where V : struct, ILanes<V> => new()
    {
        Batch = batch,
        Head = head,
        FirstQuery = i0 + offset,
        FirstKey = j0,
        Captured0 = BeginTile<V>(scoring, 0, i0, j0, rows, wantsKeys),
        Captured1 = BeginTile<V>(scoring, 1, i0, j0, rows, wantsKeys),
        Captured2 = BeginTile<V>(scoring, 2, i0, j0, rows, wantsKeys),
        Captured3 = BeginTile<V>(scoring, 3, i0, j0, rows, wantsKeys),
    };

    // Fetches the values of one captured tensor, and says where its rows of lanes begin.
    private readonly LaneRows BeginTile<V>(in AttentionScoring scoring, int capture, nint i0, nint j0, nint rows, bool wantsKeys) where V : struct, ILanes<V>
    {
        ref readonly Captured captured = ref scoring.Tensors[capture];
        LaneRows lanes = Captures[capture];
        if (!captured.IsPresent || captured.Structure is CapturedStructure.PerHead or CapturedStructure.PerQuery)
            return lanes;
        if (captured.IsByDistance)
            return new() { Start = lanes.Start + i0 - j0, Step = -1 };
        nint block = AttentionTiles.Block<V>();
        if (captured.Structure == CapturedStructure.PerKey)
        {
            if (wantsKeys)
                FillKeys<V>(captured.At(batch, head, 0, j0, 0), captured.KeyStep, lanes.Start, rows);
            return lanes;
        }
        nint count = Math.Min(block, queries - i0);
        ReadPairs(captured, i0, count, j0, rows, lanes.Start, block);
        // Spare lanes take what the last query has: a rule may be no number at a place that isn't there.
        for (nint row = 0; row < rows && count < block; row++)
            new Span<float>(lanes.Start + row * block + count, (int)(block - count)).Fill(lanes.Start[row * block + count - 1]);
        return lanes;
    }

    // Writes the values of a tile's keys to all lanes.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void FillKeys<V>(float* from, nint step, float* lanes, nint rows) where V : struct, ILanes<V>
    {
        for (nint row = 0; row < rows; row++, from += step)
        {
            V value = V.From(*from);
            for (nint vector = 0; vector < AttentionTiles.Vectors; vector++, lanes += V.Count)
                value.Store(lanes);
        }
    }

    // Copies the values of a tile's pairs into rows of lanes.
    private readonly void ReadPairs(in Captured tensor, nint i0, nint count, nint j0, nint rows, float* lanes, nint block) =>
        MatrixCopy.Run(tensor.At(batch, head, i0, j0, 0), tensor.QueryStep, tensor.KeyStep, lanes, 1, block, count, rows);

    /// <summary>Where the next tile's values of pairs lie, of which the mask shows some, to be asked for while this one is worked on.</summary>
    /// <param name="scoring">The tensors.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="j0">The first key after this tile.</param>
    /// <param name="end">The keys of the block end here.</param>
    public readonly RowsAhead Ahead<V>(in AttentionScoring scoring, nint i0, nint j0, nint end) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), count = Math.Min(block, queries - i0);
        while (scoring.Mask.IsPresent && j0 < end && !new ReadOnlySpan<ulong>(Shown<V>(scoring, i0, j0), (int)count).ContainsAnyExcept(0ul))
            j0 += AttentionTiles.Keys;
        var ahead = new RowsAhead(count);
        for (int c = 0; c < CapturedSet.Count && j0 < end; c++)
            ahead.Add(scoring.Tensors[c], batch, head, i0, j0);
        if (j0 < end && pairs->Asked != j0)
            ahead.Add(scoring.Tensors[PairTensors.DenseBias], batch, head, i0, j0);
        pairs->Asked = j0;
        return ahead;
    }

    /// <summary>Reads what the mask shows to a block of queries of the head's keys up to an end; comes before its tiles are looked at.</summary>
    public readonly void ReadMask<V>(in AttentionScoring scoring, nint i0, nint queryCount, nint end) where V : struct, ILanes<V>
    {
        if (scoring.Mask.IsPresent && !scoring.Mask.IsShared)
            scoring.Mask.Read(batch, head, i0, queryCount, firstKey, end - firstKey, shown, AttentionTiles.Block<V>());
    }

    // What the mask shows of the tile that begins at a key to a block of queries.
    private readonly ulong* Shown<V>(in AttentionScoring scoring, nint i0, nint j0) where V : struct, ILanes<V> => scoring.Mask.IsShared
        ? scoring.Mask.Shared(batch, head, i0) + j0 / AttentionTiles.Keys * AttentionTiles.Block<V>()
        : shown + (j0 - firstKey) / AttentionTiles.Keys * AttentionTiles.Block<V>();

    /// <summary>Which pairs of a tile are visible: those that a causal query sees from its position and the mask shows. Lanes beyond the queries see nothing.</summary>
    /// <param name="scoring">The tensors.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="queryCount">The queries.</param>
    /// <param name="j0">The first key.</param>
    /// <param name="keyCount">The keys.</param>
    /// <param name="causal">Whether a query sees no keys behind its position.</param>
    public readonly TileVisibility Look<V>(in AttentionScoring scoring, nint i0, nint queryCount, nint j0, nint keyCount, bool causal) where V : struct, ILanes<V>
    {
        // So many keys of the tile lie before the first query's position. The first key that some query of the block doesn't see lies right after it.
        nint before = i0 + offset - j0;
        bool crossesDiagonal = causal && before < keyCount - 1;
        if (!crossesDiagonal && queryCount == AttentionTiles.Block<V>() && !scoring.Mask.IsPresent)
            return new(visibility, keyCount);
        var seen = new Span<ulong>(visibility, AttentionTiles.Keys);
        Span<ulong> ofQueries = seen[..(int)queryCount];
        seen[(int)queryCount..].Clear();
        if (scoring.Mask.IsPresent)
            new ReadOnlySpan<ulong>(Shown<V>(scoring, i0, j0), (int)queryCount).CopyTo(ofQueries);
        else
            ofQueries.Fill(TileVisibility.First(keyCount));
        // What is shared says of the keys beyond the head's too whether they are seen.
        for (nint query = 0; query < queryCount && keyCount < AttentionTiles.Keys && scoring.Mask.IsShared; query++)
            seen[(int)query] &= TileVisibility.First(keyCount);
        for (nint query = 0; query < queryCount && crossesDiagonal; query++)
            seen[(int)query] &= TileVisibility.First(before + query + 1);
        return TileVisibility.Cut<V>(visibility, keyCount);
    }

    /// <summary>The biases of a tile, −∞ where a pair is hidden.</summary>
    /// <param name="scoring">The tensors.</param>
    /// <param name="i0">The first query.</param>
    /// <param name="j0">The first key.</param>
    /// <param name="keyCount">The keys.</param>
    /// <param name="visible">What <see cref="Look"/> said of the tile.</param>
    /// <param name="hides">Whether there may be −∞.</param>
    public readonly LaneRows Bias<V>(in AttentionScoring scoring, nint i0, nint j0, nint keyCount, in TileVisibility visible, out bool hides) where V : struct, ILanes<V>
    {
        LaneRows rows = Line == null ? new() { Start = zeros } : new() { Start = Line + i0 - j0, Step = -1 };
        LaneRows written = new() { Start = tile, Step = AttentionTiles.Block<V>() };
        hides = visible.HidesPairs || LineHides;
        bool areHidden = false;
        if (addsPairs || addsQueries || addsKeys)
            rows = Add<V>(scoring, rows, i0, j0, keyCount, visible, ref hides, out areHidden);
        if (!visible.HidesPairs || areHidden)
            return rows;
        Hide<V>(rows, visible.Bounds<V>(keyCount), visible.ByKey());
        return written;
    }

    /// <summary>Whether <see cref="Bias"/> says that nothing is added.</summary>
    public readonly bool IsNone(LaneRows bias) => bias.Start == zeros;

    // Writes biases with −∞ for the hidden pairs out, as far as some are visible.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void Hide<V>(LaneRows bias, in TilePart bounds, ulong* seen) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), first = bounds.Lane<V>(), end = bounds.EndVector * V.Count;
        V none = V.From(float.NegativeInfinity);
        float* from = bias.At(bounds.FirstKey), to = tile + bounds.FirstKey * block;
        for (nint row = bounds.FirstKey; row < bounds.EndKey; row++, from += bias.Step, to += block)
        {
            for (nint lane = first; lane < end; lane += V.Count)
                V.SelectBits((int)(seen[row] >> (int)lane), V.Load(from + lane), none).Store(to + lane);
        }
    }

    // The sum of all biases of a tile: what the queries alone have, or the pairs alone, as it is; anything else is written out. Says too whether hidden pairs have −∞ already.
    private readonly LaneRows Add<V>(in AttentionScoring scoring, LaneRows line, nint i0, nint j0, nint keyCount, in TileVisibility visible, ref bool hides, out bool areHidden) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        LaneRows sums = new() { Start = tile, Step = block }, ofPairs = new() { Start = zeros };
        bool isOne = Line == null && !addsKeys && !(addsPairs && addsQueries);
        areHidden = false;
        if (addsPairs)
        {
            hides |= ReadAddedPairs<V>(scoring, i0, j0, keyCount, visible, isOne, out areHidden);
            ofPairs = new() { Start = pairs->Values, Step = block };
        }
        if (isOne)
        {
            if (addsPairs)
                return ofPairs;
            hides |= ScoreLine.Hides<V>(queryBiases, block);
            return new() { Start = queryBiases };
        }
        new Span<float>(keyBiases, (int)keyCount).Clear();
        for (int c = PairTensors.DenseBias; c < PairTensors.Count && addsKeys; c++)
        {
            ref readonly Captured tensor = ref scoring.Tensors[c];
            if (!tensor.IsPresent || tensor.Structure != CapturedStructure.PerKey)
                continue;
            float* from = tensor.At(batch, head, 0, j0, 0);
            for (nint row = 0; row < keyCount; row++)
                keyBiases[row] += from[row * tensor.KeyStep];
        }
        hides |= Sum<V>(queryBiases, keyBiases, ofPairs, line, sums, keyCount);
        return sums;
    }

    // Lays out the values a pair of the dense bias and of the table by two coordinates, summed: of pairs of which some are visible, if nothing else is added and nobody shares them. Returns whether
    // some are −∞, unless that is known, and whether all hidden pairs are.
    private readonly bool ReadAddedPairs<V>(in AttentionScoring scoring, nint i0, nint j0, nint keyCount, in TileVisibility visible, bool isOne, out bool areHidden) where V : struct, ILanes<V>
    {
        areHidden = false;
        nint block = AttentionTiles.Block<V>(), count = Math.Min(block, queries - i0);
        float* lanes = pairs->Values;
        ref readonly Captured dense = ref scoring.Tensors[PairTensors.DenseBias];
        bool hasDense = dense.IsPresent && dense.Structure == CapturedStructure.Dense;
        bool isAlone = isOne && hasDense && !scoring.Grid.IsPresent && !pairs->IsShared && visible.HidesPairs;
        if (isAlone && MatrixCopy.HidesColumns(dense.KeyStep))
        {
            TilePart bounds = visible.Bounds<V>(keyCount);
            nint lane = bounds.Lane<V>();
            MatrixCopy.TransposeShown(dense.At(batch, head, i0 + lane, j0, 0), dense.QueryStep, visible.ByQuery + lane, lanes + lane, block, bounds.EndVector * V.Count - lane, bounds.FirstKey, bounds.EndKey);
            pairs->FirstKey = PairTile.None;
            return areHidden = true;
        }
        if (pairs->FirstKey == j0 && pairs->Keys == keyCount)
            return pairs->Hides;
        if (isAlone)
        {
            TilePart bounds = visible.Bounds<V>(keyCount);
            ReadPairs(dense, i0 + bounds.Lane<V>(), Math.Min(count, bounds.EndVector * V.Count) - bounds.Lane<V>(), j0 + bounds.FirstKey, bounds.Keys, lanes + bounds.Start<V>(), block);
        }
        else if (hasDense && !scoring.Grid.IsPresent && count == block && MatrixCopy.IsOfSquares(dense.KeyStep, count, keyCount))
            pairs->Hides = MatrixCopy.TransposeSquares(dense.At(batch, head, i0, j0, 0), dense.QueryStep, lanes, block, count, keyCount);
        else
        {
            if (hasDense && count < block)
                new Span<float>(lanes, (int)(keyCount * block)).Clear();
            if (hasDense)
                ReadPairs(dense, i0, count, j0, keyCount, lanes, block);
            if (scoring.Grid.IsPresent)
                ReadGrid<V>(scoring, j0, keyCount, lanes, add: hasDense);
            pairs->Hides = isOne && ScoreLine.Hides<V>(lanes, keyCount * block);
        }
        pairs->FirstKey = scoring.Grid.IsPresent ? PairTile.None : j0; // a table is read where a sequence's queries stand
        pairs->Keys = keyCount;
        return pairs->Hides;
    }

    // Writes sums of what queries, keys, pairs and distances have; returns whether some are −∞.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static bool Sum<V>(float* ofQueries, float* ofKeys, LaneRows ofPairs, LaneRows ofDistances, LaneRows sums, nint keyCount) where V : struct, ILanes<V>
    {
        nint w = V.Count;
        V none = V.From(float.NegativeInfinity), least = V.Zero;
        V q0 = V.Load(ofQueries), q1 = V.Load(ofQueries + w), q2 = V.Load(ofQueries + 2 * w), q3 = V.Load(ofQueries + 3 * w);
        float* pair = ofPairs.Start, distance = ofDistances.Start, to = sums.Start;
        for (nint row = 0; row < keyCount; row++)
        {
            // What belongs to distances is the largest far from the diagonal, so it comes last.
            V key = V.From(ofKeys[row]);
            V b0 = q0 + key + V.Load(pair) + V.Load(distance), b1 = q1 + key + V.Load(pair + w) + V.Load(distance + w);
            V b2 = q2 + key + V.Load(pair + 2 * w) + V.Load(distance + 2 * w), b3 = q3 + key + V.Load(pair + 3 * w) + V.Load(distance + 3 * w);
            least = V.SelectEqual(b0, none, none, V.SelectEqual(b1, none, none, V.SelectEqual(b2, none, none, V.SelectEqual(b3, none, none, least))));
            b0.Store(to);
            b1.Store(to + w);
            b2.Store(to + 2 * w);
            b3.Store(to + 3 * w);
            pair += ofPairs.Step;
            distance += ofDistances.Step;
            to += sums.Step;
        }
        return V.AnyEqual(least, none);
    }

    // The table's entries of a tile, or added to what is there.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private readonly void ReadGrid<V>(in AttentionScoring scoring, nint j0, nint keyCount, float* to, bool add) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        for (nint row = 0; row < keyCount; row++, to += block)
        {
            float* from = cells - scoring.Grid.Place(j0 + row);
            if (add)
            {
                for (nint lane = 0; lane < block; lane++)
                    to[lane] += from[places[lane]];
            }
            else
            {
                for (nint lane = 0; lane < block; lane++)
                    to[lane] = from[places[lane]];
            }
        }
    }

    /// <summary>Adds a tile's dz to the gradient of the head's table by two coordinates.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public readonly void AddToGrid<V>(in AttentionScoring scoring, float* dz, nint j0, nint queryCount, nint keyCount, float* gradient) where V : struct, ILanes<V>
    {
        for (nint row = 0; row < keyCount; row++, dz += AttentionTiles.Block<V>())
        {
            float* to = gradient - scoring.Grid.Place(j0 + row);
            for (nint lane = 0; lane < queryCount; lane++)
                to[places[lane]] += dz[lane];
        }
    }

    private static float* Take(ref float* scratch, nint floats)
    {
        float* taken = scratch;
        scratch += floats;
        return taken;
    }
}

/// <summary>The sums of a tile's biases that have a value a pair, as rows of lanes. Of sequences and heads that share them the first lays them out.</summary>
internal unsafe struct PairTile
{
    /// <summary>No tile's first key.</summary>
    public const nint None = -1;

    public float* Values;

    /// <summary>Whether there are several such sequences or heads: what one doesn't see another may.</summary>
    public bool IsShared;

    /// <summary>Which keys of the block's they are of.</summary>
    public nint FirstKey, Keys;

    /// <summary>Whether some are −∞, if that was looked for.</summary>
    public bool Hides;

    /// <summary>The first key of the tile that was asked for last.</summary>
    public nint Asked;
}

/// <summary>What a rule sees on a tile, beside the scores.</summary>
internal struct RuleTile
{
    public nint Batch, Head, FirstQuery, FirstKey;
    public LaneRows Captured0, Captured1, Captured2, Captured3;
}
