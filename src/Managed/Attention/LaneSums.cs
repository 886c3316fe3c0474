using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Sums over queries of features that would fill no vector: the queries stay in the lanes, block after block, and lanes are added up at the end.</summary>
/// <remarks>A product with two features in sixteen lanes takes 9 cycles a vector of pairs, this takes 1.</remarks>
internal static unsafe class LaneSums
{
    // Features in the lanes, a vector of pairs takes as many multiply-adds as it has lanes; queries in the lanes, as many as there are features, and a fourth of a load and a store each.
    private const int Share = 4;

    /// <summary>Whether features are so few.</summary>
    public static bool Suit<V>(nint features) where V : struct, ILanes<V> => features * Share <= V.Count;

    /// <summary>The floats of the sums of one key, of the widest vectors.</summary>
    public static long WidestFloats(long features)
    {
        const int widest = AttentionTiles.WidestBlock / AttentionTiles.Vectors;
        return features * Share <= widest ? features * widest : 0;
    }

    /// <summary>sums[key, feature, lane] += Σ weight[key, query] · column[feature, query] over the queries that have the lane.</summary>
    /// <param name="weights">Of pairs, rows of lanes.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="vectors">The vectors of queries.</param>
    /// <param name="columns">Features of queries, rows of lanes.</param>
    /// <param name="features">The features.</param>
    /// <param name="sums">The sums.</param>
    /// <param name="hidden">Laid out as the weights: negative where a pair is left out, of which the feature may be NaN. Null if none is.</param>
    public static void Add<V>(float* weights, nint keys, nint vectors, float* columns, nint features, float* sums, float* hidden) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), feature = 0;
        if (vectors == AttentionTiles.Vectors && hidden == null)
        {
            for (; feature + 2 <= features; feature += 2)
                AddTwo<V>(weights, keys, columns + feature * block, sums + feature * V.Count, features * V.Count);
        }
        for (; feature < features; feature++)
            AddOne<V>(weights, keys, vectors * V.Count, columns + feature * block, sums + feature * V.Count, features * V.Count, hidden);
    }

    // Two features of whole rows: their columns stay in registers while the keys pass, and a weight is read once for both.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddTwo<V>(float* weights, nint keys, float* columns, float* sums, nint step) where V : struct, ILanes<V>
    {
        nint w = V.Count, block = AttentionTiles.Block<V>();
        float* next = columns + block;
        V a0 = V.Load(columns), a1 = V.Load(columns + w), a2 = V.Load(columns + 2 * w), a3 = V.Load(columns + 3 * w);
        V b0 = V.Load(next), b1 = V.Load(next + w), b2 = V.Load(next + 2 * w), b3 = V.Load(next + 3 * w);
        for (nint key = 0; key < keys; key++, weights += block, sums += step)
        {
            V weight = V.Load(weights), a = V.MultiplyAdd(weight, a0, V.Load(sums)), b = V.MultiplyAdd(weight, b0, V.Load(sums + w));
            weight = V.Load(weights + w);
            (a, b) = (V.MultiplyAdd(weight, a1, a), V.MultiplyAdd(weight, b1, b));
            weight = V.Load(weights + 2 * w);
            (a, b) = (V.MultiplyAdd(weight, a2, a), V.MultiplyAdd(weight, b2, b));
            weight = V.Load(weights + 3 * w);
            V.MultiplyAdd(weight, a3, a).Store(sums);
            V.MultiplyAdd(weight, b3, b).Store(sums + w);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddOne<V>(float* weights, nint keys, nint lanes, float* column, float* sums, nint step, float* hidden) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), marks = hidden == null ? 0 : (nint)(hidden - weights);
        for (nint key = 0; key < keys; key++, weights += block, sums += step)
        {
            V sum = V.Load(sums);
            for (nint lane = 0; lane < lanes; lane += V.Count)
            {
                V added = V.MultiplyAdd(V.Load(weights + lane), V.Load(column + lane), sum);
                sum = hidden == null ? added : V.SelectLess(V.Load(weights + marks + lane), V.Zero, sum, added);
            }
            sum.Store(sums);
        }
    }

    /// <summary>to[key·step + feature] = the sum of the lanes.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void AddLanes<V>(float* sums, nint keys, nint features, float* to, nint step) where V : struct, ILanes<V>
    {
        for (nint key = 0; key < keys; key++, to += step)
        {
            for (nint feature = 0; feature < features; feature++, sums += V.Count)
                to[feature] = V.Load(sums).Sum();
        }
    }
}
