using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Sums over queries of a head's last features, where these would fill a fourth of a vector at most: the queries stay in the lanes.</summary>
/// <remarks>
/// Of a key the lanes of several features are folded into one vector, block after block, and added up to one number a feature at the end. Of a head of 20 features, in vectors of 16, the gradients of
/// keys and values take 0.85 of the time that two vectors a key take.
/// </remarks>
internal static unsafe class LaneSums
{
    // Features in the lanes, a vector of pairs takes as many multiply-adds as it has lanes; queries in the lanes, as many as there are features, and what folds them.
    private const int Share = 4;

    /// <summary>How many of a head's features are summed so.</summary>
    public static nint Features<V>(nint features) where V : struct, ILanes<V> => (nint)Features(features, V.Count);

    private static long Features(long features, int lanes) => features % lanes <= lanes / Share ? features % lanes : 0;

    /// <summary>The floats of the sums of one key, at most.</summary>
    public static long MostFloats(long features)
    {
        int lanes = AttentionTiles.WidestBlock / AttentionTiles.Vectors;
        while (lanes > 1 && Features(features, lanes) == 0)
            lanes /= 2;
        return lanes > 1 ? lanes : 0;
    }

    /// <summary>sums[key] += Σ weight[key, query] · column[feature, query] over some of the queries each, the feature being the lane mod 2, or mod 4 where there are more than two.</summary>
    /// <param name="weights">Of pairs, rows of lanes.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="vectors">The vectors of queries.</param>
    /// <param name="columns">Features of queries, rows of lanes.</param>
    /// <param name="features">The features.</param>
    /// <param name="sums">The sums, a vector a key.</param>
    /// <param name="hidden">Laid out as the weights: negative where a pair is left out, of which the feature may be NaN. Null if none is.</param>
    public static void Add<V>(float* weights, nint keys, nint vectors, float* columns, nint features, float* sums, float* hidden) where V : struct, ILanes<V>
    {
        if (hidden != null)
            AddSome<V, Yes>(weights, keys, vectors * V.Count, columns, features, sums, hidden);
        else if (vectors < AttentionTiles.Vectors)
            AddSome<V, No>(weights, keys, vectors * V.Count, columns, features, sums, weights);
        else if (features > 2)
            AddFour<V>(weights, keys, columns, features, sums);
        else
            AddTwo<V>(weights, keys, columns, features, sums);
    }

    // The columns stay in registers, and each weight is read once for all.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddTwo<V>(float* weights, nint keys, float* columns, nint features, float* sums) where V : struct, ILanes<V>
    {
        nint w = V.Count, block = AttentionTiles.Block<V>();
        float* second = features > 1 ? columns + block : columns;
        V a0 = V.Load(columns), a1 = V.Load(columns + w), a2 = V.Load(columns + 2 * w), a3 = V.Load(columns + 3 * w);
        V b0 = V.Load(second), b1 = V.Load(second + w), b2 = V.Load(second + 2 * w), b3 = V.Load(second + 3 * w);
        for (nint key = 0; key < keys; key++, weights += block, sums += w)
        {
            V w0 = V.Load(weights), w1 = V.Load(weights + w), w2 = V.Load(weights + 2 * w), w3 = V.Load(weights + 3 * w);
            (V.Load(sums) + V.Fold(Dot(w0, w1, w2, w3, a0, a1, a2, a3), Dot(w0, w1, w2, w3, b0, b1, b2, b3), 1)).Store(sums);
        }
    }

    // Three or four features are a fourth of vectors of 16 lanes alone, and where these are there are registers for all columns.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddFour<V>(float* weights, nint keys, float* columns, nint features, float* sums) where V : struct, ILanes<V>
    {
        nint w = V.Count, block = AttentionTiles.Block<V>();
        float* second = columns + block, third = second + block, fourth = features > 3 ? third + block : third;
        V a0 = V.Load(columns), a1 = V.Load(columns + w), a2 = V.Load(columns + 2 * w), a3 = V.Load(columns + 3 * w);
        V b0 = V.Load(second), b1 = V.Load(second + w), b2 = V.Load(second + 2 * w), b3 = V.Load(second + 3 * w);
        V c0 = V.Load(third), c1 = V.Load(third + w), c2 = V.Load(third + 2 * w), c3 = V.Load(third + 3 * w);
        V d0 = V.Load(fourth), d1 = V.Load(fourth + w), d2 = V.Load(fourth + 2 * w), d3 = V.Load(fourth + 3 * w);
        for (nint key = 0; key < keys; key++, weights += block, sums += w)
        {
            V w0 = V.Load(weights), w1 = V.Load(weights + w), w2 = V.Load(weights + 2 * w), w3 = V.Load(weights + 3 * w);
            V ab = V.Fold(Dot(w0, w1, w2, w3, a0, a1, a2, a3), Dot(w0, w1, w2, w3, b0, b1, b2, b3), 1);
            V cd = V.Fold(Dot(w0, w1, w2, w3, c0, c1, c2, c3), Dot(w0, w1, w2, w3, d0, d1, d2, d3), 1);
            (V.Load(sums) + V.Fold(ab, cd, 2)).Store(sums);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Dot<V>(V w0, V w1, V w2, V w3, V c0, V c1, V c2, V c3) where V : struct, ILanes<V> =>
        V.MultiplyAdd(w3, c3, V.MultiplyAdd(w2, c2, V.MultiplyAdd(w1, c1, w0 * c0)));

    // Of some of a block's queries, or where pairs are left out.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddSome<V, THiding>(float* weights, nint keys, nint lanes, float* columns, nint features, float* sums, float* hidden) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        nint block = AttentionTiles.Block<V>();
        float* c0 = columns, c1 = features > 1 ? c0 + block : c0, c2 = features > 2 ? c1 + block : c1, c3 = features > 3 ? c2 + block : c2;
        for (nint key = 0; key < keys; key++, weights += block, hidden += block, sums += V.Count)
        {
            V s0 = V.Zero, s1 = V.Zero, s2 = V.Zero, s3 = V.Zero;
            for (nint lane = 0; lane < lanes; lane += V.Count)
            {
                V weight = V.Load(weights + lane);
                AddProduct<V, THiding>(ref s0, weight, c0 + lane, hidden + lane);
                AddProduct<V, THiding>(ref s1, weight, c1 + lane, hidden + lane);
                if (features <= 2)
                    continue;
                AddProduct<V, THiding>(ref s2, weight, c2 + lane, hidden + lane);
                AddProduct<V, THiding>(ref s3, weight, c3 + lane, hidden + lane);
            }
            V folded = V.Fold(s0, s1, 1);
            (V.Load(sums) + (features > 2 ? V.Fold(folded, V.Fold(s2, s3, 1), 2) : folded)).Store(sums);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddProduct<V, THiding>(ref V sum, V weight, float* column, float* hidden) where V : struct, ILanes<V> where THiding : struct, IChoice
    {
        if (THiding.Taken)
            sum = V.SelectLess(V.Load(hidden), V.Zero, sum, V.MultiplyAdd(weight, V.Load(column), sum));
        else
            V.AddProduct(ref sum, weight, V.Load(column));
    }

    /// <summary>The sums of each key's features, the last ones of a row.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void AddLanes<V>(float* sums, nint keys, nint features, float* rows, nint row) where V : struct, ILanes<V>
    {
        nint few = Features<V>(features), step = few > 2 ? 4 : 2;
        if (few == 0)
            return;
        rows += features - few;
        for (nint key = 0; key < keys; key++, sums += V.Count, rows += row)
        {
            for (nint feature = 0; feature < few; feature++)
            {
                float sum = 0;
                for (nint lane = feature; lane < V.Count; lane += step)
                    sum += sums[lane];
                rows[feature] = sum;
            }
        }
    }
}
