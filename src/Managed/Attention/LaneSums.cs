using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Sums over queries of features that would fill no vector: the queries stay in the lanes, block after block, and lanes are added up at the end.</summary>
/// <remarks>A product with two features in sixteen lanes takes 9 cycles a vector of pairs, this takes 1.5.</remarks>
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
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void Add<V>(float* weights, nint keys, nint vectors, float* columns, nint features, float* sums, float* hidden) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>(), lanes = vectors * V.Count, marks = hidden == null ? 0 : (nint)(hidden - weights);
        for (nint key = 0; key < keys; key++, weights += block)
        {
            float* column = columns;
            for (nint feature = 0; feature < features; feature++, column += block, sums += V.Count)
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
