using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels.Tests;

/// <summary>s / (1 + strength · |distance|) + a captured number: a rule that another one wraps.</summary>
public readonly struct OffsetTemperature(float strength) : IScoreRule
{
    private readonly float strength = strength;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> =>
        score / (1f + strength * T.Abs(at.Distance)) + at.Captured0;
}

/// <summary>Gives its inner rule a captured gain times tanh of the score, and hides the pair from some distance on: everything that a rule may do.</summary>
public readonly struct Gated<TInner>(TInner inner, float reach) : IScoreRule where TInner : unmanaged, IScoreRule
{
    private readonly TInner inner = inner;
    private readonly float reach = reach;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T gated = inner.Score(at.Captured0 * T.Tanh(score), at.Shift(1));
        return T.SelectLess(T.Abs(at.Distance), T.From(reach), gated, T.From(float.NegativeInfinity));
    }
}

/// <summary>What a rule gives on a tile of scores [head, query, key], with the gradients of a sum weighted by <see cref="Upstream"/>.</summary>
public readonly struct ProofTile
{
    /// <summary>[head, query, key].</summary>
    public ArrayView<float> Score { get; init; }
    /// <summary>[head, query, key].</summary>
    public ArrayView<float> Upstream { get; init; }
    /// <summary>[head].</summary>
    public ArrayView<float> PerHead { get; init; }
    /// <summary>[head, queries + keys − 1], read at key − query + queries − 1.</summary>
    public ArrayView<float> PerDistance { get; init; }
    /// <summary>[head, query, key].</summary>
    public ArrayView<float> Value { get; init; }
    /// <summary>[head, query, key].</summary>
    public ArrayView<float> ScoreGradient { get; init; }
    /// <summary>[head].</summary>
    public ArrayView<float> PerHeadGradient { get; init; }
    /// <summary>[head, queries + keys − 1].</summary>
    public ArrayView<float> PerDistanceGradient { get; init; }
    public int Heads { get; init; }
    public int Queries { get; init; }
    public int Keys { get; init; }

    public int Distances => Queries + Keys - 1;
}

/// <summary>Kernels that only prove that a rule compiles and is right; attention's own are the library's.</summary>
internal static class ProofKernels
{
    public const int GroupSize = 64;

    /// <summary>A thread per pair: the value, and the gradient of the score.</summary>
    public static void Score<TRule>(TRule rule, ProofTile tile) where TRule : unmanaged, IScoreRule
    {
        long pair = (long)Grid.IdxX * GroupSize + Group.IdxX;
        if (pair >= (long)tile.Heads * tile.Queries * tile.Keys)
            return;
        int key = (int)(pair % tile.Keys), query = (int)(pair / tile.Keys % tile.Queries), head = (int)(pair / tile.Keys / tile.Queries);
        Dual<Real32> value = At(rule, tile, head, query, key, 1f, 0f, 0f);
        tile.Value[pair] = value.Value.Value;
        tile.ScoreGradient[pair] = tile.Upstream[pair] * value.Derivative.Value;
    }

    /// <summary>A thread per entry of the captured tables: the sum over the pairs that read it, in the order of the queries.</summary>
    public static void Captured<TRule>(TRule rule, ProofTile tile) where TRule : unmanaged, IScoreRule
    {
        long entry = (long)Grid.IdxX * GroupSize + Group.IdxX;
        if (entry >= (long)tile.Heads * tile.Distances)
            return;
        int head = (int)(entry / tile.Distances), place = (int)(entry % tile.Distances), distance = place - (tile.Queries - 1);
        float sum = 0f;
        for (int query = 0; query < tile.Queries; query++)
        {
            int key = query + distance;
            if (key >= 0 && key < tile.Keys)
                sum += tile.Upstream[Pair(tile, head, query, key)] * At(rule, tile, head, query, key, 0f, 0f, 1f).Derivative.Value;
        }
        tile.PerDistanceGradient[entry] = sum;
        if (place != 0)
            return;
        sum = 0f;
        for (int query = 0; query < tile.Queries; query++)
        {
            for (int key = 0; key < tile.Keys; key++)
                sum += tile.Upstream[Pair(tile, head, query, key)] * At(rule, tile, head, query, key, 0f, 1f, 0f).Derivative.Value;
        }
        tile.PerHeadGradient[head] = sum;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static long Pair(in ProofTile tile, int head, int query, int key) => ((long)head * tile.Queries + query) * tile.Keys + key;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Dual<Real32> At<TRule>(TRule rule, in ProofTile tile, int head, int query, int key, float seedScore, float seedPerHead,
        float seedPerDistance) where TRule : unmanaged, IScoreRule
    {
        Dual<Real32> score = new(new(tile.Score[Pair(tile, head, query, key)]), new(seedScore));
        return rule.Score(score, new ScorePlace<Dual<Real32>>
        {
            QueryPosition = Dual<Real32>.From(query),
            KeyPosition = Dual<Real32>.From(key),
            Head = Dual<Real32>.From(head),
            Batch = Dual<Real32>.Zero,
            Captured0 = new(new(tile.PerHead[head]), new(seedPerHead)),
            Captured1 = new(new(tile.PerDistance[(long)head * tile.Distances + key - query + tile.Queries - 1]), new(seedPerDistance)),
            Captured2 = Dual<Real32>.Zero,
            Captured3 = Dual<Real32>.Zero,
        });
    }
}
