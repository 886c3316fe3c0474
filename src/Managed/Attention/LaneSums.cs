using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>Sums over queries of a head's last features, where these would fill half a vector at most: the queries stay in the lanes.</summary>
/// <remarks>
/// Of a key the lanes of several features are folded into one vector, block after block, and added up to one number a feature at the end. Of heads of 20 and 24 features, in vectors of 16, the gradients
/// of keys and values take 0.69 and 0.83 of the time that two vectors a key take. More than half a vector of features gained nothing.
/// </remarks>
internal static unsafe class LaneSums
{
    // Features in the lanes, a vector of pairs takes as many multiply-adds as it has lanes; queries in the lanes, as many as there are features, and what folds them.
    private const int Share = 2;

    /// <summary>How many of a head's features are summed so.</summary>
    public static nint Features<V>(nint features) where V : struct, ILanes<V> => (nint)Features(features, V.Count);

    private static long Features(long features, int lanes) => features % lanes <= lanes / Share ? features % lanes : 0;

    // How many features one vector of sums takes: of as many there are registers for the columns of a block, 16 of 32 where vectors are widest, else 8.
    private static int Together(int lanes) => Math.Max(2, lanes / 4);

    /// <summary>The floats of the sums of one key.</summary>
    public static nint Floats<V>(nint features) where V : struct, ILanes<V> => (nint)Floats(features, V.Count);

    private static long Floats(long features, int lanes) => (Features(features, lanes) + Together(lanes) - 1) / Together(lanes) * lanes;

    /// <summary>The floats of the sums of one key, at most.</summary>
    public static long MostFloats(long features)
    {
        long most = 0;
        for (int lanes = AttentionTiles.WidestBlock / AttentionTiles.Vectors; lanes > 1; lanes /= 2)
            most = Math.Max(most, Floats(features, lanes));
        return most;
    }

    /// <summary>Adds to the sums of each key Σ weight[key, query] · column[feature, query], over some of the queries each lane.</summary>
    /// <param name="weights">Of pairs, rows of lanes.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="vectors">The vectors of queries.</param>
    /// <param name="columns">Features of queries, rows of lanes.</param>
    /// <param name="features">The features.</param>
    /// <param name="sums">The sums of a key side by side, a vector of them for every few features.</param>
    /// <param name="hidden">Laid out as the weights: negative where a pair is left out, of which the feature may be NaN. Null if none is.</param>
    public static void Add<V>(float* weights, nint keys, nint vectors, float* columns, nint features, float* sums, float* hidden) where V : struct, ILanes<V>
    {
        nint step = Floats<V>(features);
        for (; features > 0; features -= Together(V.Count), columns += Together(V.Count) * AttentionTiles.Block<V>(), sums += V.Count)
        {
            if (hidden != null)
                AddVisible<V>(weights, keys, vectors * V.Count, columns, Math.Min(features, Together(V.Count)), sums, step, hidden);
            else if (features > 2 && Together(V.Count) > 2)
                AddFour<V>(weights, keys, vectors, columns, features, sums, step);
            else
                AddTwo<V>(weights, keys, vectors, columns, features, sums, step);
        }
    }

    // The columns stay in registers, and each weight is read once for all.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddTwo<V>(float* weights, nint keys, nint vectors, float* columns, nint features, float* sums, nint step) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        float* none = stackalloc float[V.Count];
        float* second = features > 1 ? columns + block : columns;
        float* w1 = VectorOf<V>(weights, 1, vectors, none), w2 = VectorOf<V>(weights, 2, vectors, none), w3 = VectorOf<V>(weights, 3, vectors, none);
        nint step1 = vectors > 1 ? block : 0, step2 = vectors > 2 ? block : 0, step3 = vectors > 3 ? block : 0;
        V a0 = V.Load(columns), a1 = V.Load(VectorOf<V>(columns, 1, vectors, none)), a2 = V.Load(VectorOf<V>(columns, 2, vectors, none)), a3 = V.Load(VectorOf<V>(columns, 3, vectors, none));
        V b0 = V.Load(second), b1 = V.Load(VectorOf<V>(second, 1, vectors, none)), b2 = V.Load(VectorOf<V>(second, 2, vectors, none)), b3 = V.Load(VectorOf<V>(second, 3, vectors, none));
        for (nint key = 0; key < keys; key++, weights += block, w1 += step1, w2 += step2, w3 += step3, sums += step)
        {
            V x = V.Load(weights), a = x * a0, b = x * b0;
            x = V.Load(w1);
            V.AddProduct(ref a, x, a1); V.AddProduct(ref b, x, b1);
            x = V.Load(w2);
            V.AddProduct(ref a, x, a2); V.AddProduct(ref b, x, b2);
            x = V.Load(w3);
            V.AddProduct(ref a, x, a3); V.AddProduct(ref b, x, b3);
            (V.Load(sums) + V.Fold(a, b)).Store(sums);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddFour<V>(float* weights, nint keys, nint vectors, float* columns, nint features, float* sums, nint step) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        float* none = stackalloc float[V.Count];
        float* second = columns + block, third = second + block, fourth = features > 3 ? third + block : third;
        float* w1 = VectorOf<V>(weights, 1, vectors, none), w2 = VectorOf<V>(weights, 2, vectors, none), w3 = VectorOf<V>(weights, 3, vectors, none);
        nint step1 = vectors > 1 ? block : 0, step2 = vectors > 2 ? block : 0, step3 = vectors > 3 ? block : 0;
        V a0 = V.Load(columns), a1 = V.Load(VectorOf<V>(columns, 1, vectors, none)), a2 = V.Load(VectorOf<V>(columns, 2, vectors, none)), a3 = V.Load(VectorOf<V>(columns, 3, vectors, none));
        V b0 = V.Load(second), b1 = V.Load(VectorOf<V>(second, 1, vectors, none)), b2 = V.Load(VectorOf<V>(second, 2, vectors, none)), b3 = V.Load(VectorOf<V>(second, 3, vectors, none));
        V c0 = V.Load(third), c1 = V.Load(VectorOf<V>(third, 1, vectors, none)), c2 = V.Load(VectorOf<V>(third, 2, vectors, none)), c3 = V.Load(VectorOf<V>(third, 3, vectors, none));
        V d0 = V.Load(fourth), d1 = V.Load(VectorOf<V>(fourth, 1, vectors, none)), d2 = V.Load(VectorOf<V>(fourth, 2, vectors, none)), d3 = V.Load(VectorOf<V>(fourth, 3, vectors, none));
        for (nint key = 0; key < keys; key++, weights += block, w1 += step1, w2 += step2, w3 += step3, sums += step)
        {
            V x = V.Load(weights), a = x * a0, b = x * b0, c = x * c0, d = x * d0;
            x = V.Load(w1);
            V.AddProduct(ref a, x, a1); V.AddProduct(ref b, x, b1); V.AddProduct(ref c, x, c1); V.AddProduct(ref d, x, d1);
            x = V.Load(w2);
            V.AddProduct(ref a, x, a2); V.AddProduct(ref b, x, b2); V.AddProduct(ref c, x, c2); V.AddProduct(ref d, x, d2);
            x = V.Load(w3);
            V.AddProduct(ref a, x, a3); V.AddProduct(ref b, x, b3); V.AddProduct(ref c, x, c3); V.AddProduct(ref d, x, d3);
            (V.Load(sums) + V.Fold(V.Fold(a, c), V.Fold(b, d))).Store(sums);
        }
    }

    // A part may have less vectors than a block: what stands for the others is 0.
    private static float* VectorOf<V>(float* row, nint vector, nint vectors, float* none) where V : struct, ILanes<V> => vector < vectors ? row + vector * V.Count : none;

    // Where pairs are left out.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void AddVisible<V>(float* weights, nint keys, nint lanes, float* columns, nint features, float* sums, nint step, float* hidden) where V : struct, ILanes<V>
    {
        nint block = AttentionTiles.Block<V>();
        float* c0 = columns, c1 = features > 1 ? c0 + block : c0, c2 = features > 2 ? c1 + block : c1, c3 = features > 3 ? c2 + block : c2;
        for (nint key = 0; key < keys; key++, weights += block, hidden += block, sums += step)
        {
            V a = V.Zero, b = V.Zero, c = V.Zero, d = V.Zero;
            for (nint lane = 0; lane < lanes; lane += V.Count)
            {
                V weight = V.Load(weights + lane), mark = V.Load(hidden + lane);
                a = AddVisible(mark, a, weight, V.Load(c0 + lane));
                b = AddVisible(mark, b, weight, V.Load(c1 + lane));
                c = AddVisible(mark, c, weight, V.Load(c2 + lane));
                d = AddVisible(mark, d, weight, V.Load(c3 + lane));
            }
            (V.Load(sums) + (features > 2 ? V.Fold(V.Fold(a, c), V.Fold(b, d)) : V.Fold(a, b))).Store(sums);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V AddVisible<V>(V mark, V sum, V weight, V feature) where V : struct, ILanes<V> => V.SelectLess(mark, V.Zero, sum, V.MultiplyAdd(weight, feature, sum));

    /// <summary>The sums of each key's features, the last ones of a row of whole vectors. What comes after them in the row isn't meaningful.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void AddLanes<V>(float* sums, nint keys, nint features, float* rows, nint row) where V : struct, ILanes<V>
    {
        nint few = Features<V>(features);
        rows += features - few;
        for (nint key = 0; key < keys && few > 0; key++, rows += row)
        {
            for (nint first = 0; first < few; first += Together(V.Count), sums += V.Count)
            {
                Vector128<float> sum = Vector128.Load(sums);
                for (nint lane = Vector128<float>.Count; lane < V.Count; lane += Vector128<float>.Count)
                    sum += Vector128.Load(sums + lane);
                if (few - first <= 2 || Together(V.Count) == 2)
                    sum += Vector128.Shuffle(sum, Vector128.Create(2, 3, 0, 1));
                sum.Store(rows + first);
            }
        }
    }
}
