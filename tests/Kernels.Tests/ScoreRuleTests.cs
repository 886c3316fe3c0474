using ILGPU;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>A rule that selects, reads captured tables and wraps another rule: value and derivatives on a GPU and in double, against derivatives by hand.</summary>
public class ScoreRuleTests(GpuUnderTest gpu)
{
    private const float Strength = 0.25f, Reach = 5f;

    private static readonly Gated<OffsetTemperature> Rule = new(new OffsetTemperature(Strength), Reach);

    [Fact]
    public void Value_and_gradients_on_the_device_keep_the_contract()
    {
        var tile = new Tile(heads: 3, queries: gpu.Size(37, 5), keys: gpu.Size(41, 7));
        Reference<double> oracle = Reference<double>.Of(tile);
        Reference<float> naive = Reference<float>.Of(tile);

        using TensorBuffer score = gpu.Device.Upload<float>(tile.Score), upstream = gpu.Device.Upload<float>(tile.Upstream);
        using TensorBuffer perHead = gpu.Device.Upload<float>(tile.PerHead), perDistance = gpu.Device.Upload<float>(tile.PerDistance);
        using TensorBuffer value = gpu.Device.Allocate(ElementType.Float32, tile.Pairs), scoreGradient = gpu.Device.Allocate(ElementType.Float32, tile.Pairs);
        using TensorBuffer perHeadGradient = gpu.Device.Allocate(ElementType.Float32, tile.PerHead.Length);
        using TensorBuffer perDistanceGradient = gpu.Device.Allocate(ElementType.Float32, tile.PerDistance.Length);
        var arguments = new ProofTile
        {
            Score = Memory(score),
            Upstream = Memory(upstream),
            PerHead = Memory(perHead),
            PerDistance = Memory(perDistance),
            Value = Memory(value),
            ScoreGradient = Memory(scoreGradient),
            PerHeadGradient = Memory(perHeadGradient),
            PerDistanceGradient = Memory(perDistanceGradient),
            Heads = tile.Heads,
            Queries = tile.Queries,
            Keys = tile.Keys,
        };
        gpu.Device.Queue.Launch(ProofKernels.Score, Groups(tile.Pairs), ProofKernels.GroupSize, Rule, arguments);
        gpu.Device.Queue.Launch(ProofKernels.Captured, Groups(tile.PerDistance.Length), ProofKernels.GroupSize, Rule, arguments);
        gpu.Device.Synchronize();

        Contract.Check(value.ToArray<float>(), oracle.Value, naive.Value, Contract.Forward, "value", tile.Heads);
        Contract.Check(scoreGradient.ToArray<float>(), oracle.ScoreGradient, naive.ScoreGradient, Contract.Gradient, "score gradient", tile.Heads);
        Contract.Check(perHeadGradient.ToArray<float>(), oracle.PerHeadGradient, naive.PerHeadGradient, Contract.Gradient, "table per head", tile.Heads);
        Contract.Check(perDistanceGradient.ToArray<float>(), oracle.PerDistanceGradient, naive.PerDistanceGradient, Contract.Gradient, "table per distance", tile.Heads);
        Assert.Contains(float.NegativeInfinity, value.ToArray<float>());
    }

    [Fact]
    public void The_double_instance_agrees_with_derivatives_by_hand()
    {
        var tile = new Tile(heads: 2, queries: 9, keys: 11);
        for (int head = 0; head < tile.Heads; head++)
        {
            for (int query = 0; query < tile.Queries; query++)
            {
                for (int key = 0; key < tile.Keys; key++)
                {
                    double score = tile.Score[tile.Pair(head, query, key)], gain = tile.PerHead[head], offset = tile.PerDistance[tile.Entry(head, query, key)];
                    (double value, double byScore, double byGain, double byOffset) = Reference<double>.Pair(score, gain, offset, key - query);
                    AssertClose(value, At(query, key, score, gain, offset, 1, 0, 0).Value.Value);
                    AssertClose(byScore, At(query, key, score, gain, offset, 1, 0, 0).Derivative.Value);
                    AssertClose(byGain, At(query, key, score, gain, offset, 0, 1, 0).Derivative.Value);
                    AssertClose(byOffset, At(query, key, score, gain, offset, 0, 0, 1).Derivative.Value);
                }
            }
        }
    }

    [Fact]
    public void Derivatives_by_hand_are_finite_differences()
    {
        foreach (int distance in (int[])[-4, 0, 3, 8])
        {
            double[] at = [0.7, -1.3, 0.2]; // score, gain, offset
            (_, double byScore, double byGain, double byOffset) = Reference<double>.Pair(at[0], at[1], at[2], distance);
            if (Math.Abs(distance) >= Reach)
            {
                Assert.Equal((0, 0, 0), (byScore, byGain, byOffset));
                continue;
            }
            double[] numeric = FiniteDifferences.Gradient(at, () => Reference<double>.Pair(at[0], at[1], at[2], distance).Value);
            Assert.Equal(numeric[0], byScore, 1e-10);
            Assert.Equal(numeric[1], byGain, 1e-10);
            Assert.Equal(numeric[2], byOffset, 1e-10);
        }
    }

    private static int Groups(long threads) => (int)((threads + ProofKernels.GroupSize - 1) / ProofKernels.GroupSize);

    private static ArrayView<float> Memory(TensorBuffer buffer) => ((GpuBuffer)buffer).Use<float>();

    private static Dual<Real64> At(int query, int key, double score, double gain, double offset, double seedScore, double seedGain, double seedOffset) =>
        Rule.Score(new Dual<Real64>(new(score), new(seedScore)), new ScorePlace<Dual<Real64>>
        {
            QueryPosition = Dual<Real64>.From(query),
            KeyPosition = Dual<Real64>.From(key),
            Captured0 = new(new(gain), new(seedGain)),
            Captured1 = new(new(offset), new(seedOffset)),
        });

    private static void AssertClose(double expected, double actual)
    {
        if (double.IsInfinity(expected))
            Assert.Equal(expected, actual);
        else
            Assert.Equal(expected, actual, 1e-14 * Math.Max(1, Math.Abs(expected)));
    }

    private sealed class Tile
    {
        public Tile(int heads, int queries, int keys)
        {
            (Heads, Queries, Keys) = (heads, queries, keys);
            var random = new Random(7);
            Score = Fill(heads * queries * keys, 2);
            Upstream = Fill(heads * queries * keys, 1);
            PerHead = Fill(heads, 1.5);
            PerDistance = Fill(heads * Distances, 1);

            float[] Fill(int count, double scale) => Enumerable.Range(0, count).Select(_ => (float)(scale * (2 * random.NextDouble() - 1))).ToArray();
        }

        public int Heads { get; }
        public int Queries { get; }
        public int Keys { get; }
        public int Distances => Queries + Keys - 1;
        public int Pairs => Heads * Queries * Keys;
        public float[] Score { get; }
        public float[] Upstream { get; }
        public float[] PerHead { get; }
        public float[] PerDistance { get; }

        public int Pair(int head, int query, int key) => (head * Queries + query) * Keys + key;

        public int Entry(int head, int query, int key) => head * Distances + key - query + Queries - 1;
    }

    /// <summary>The rule without IReal and without duals. T = double is the oracle, T = float the naive loops.</summary>
    private sealed class Reference<T>(Tile tile) where T : System.Numerics.IFloatingPointIeee754<T>
    {
        public readonly T[] Value = new T[tile.Pairs], ScoreGradient = new T[tile.Pairs];
        public readonly T[] PerHeadGradient = new T[tile.PerHead.Length], PerDistanceGradient = new T[tile.PerDistance.Length];

        public static (T Value, T ByScore, T ByGain, T ByOffset) Pair(T score, T gain, T offset, int distance)
        {
            if (Math.Abs(distance) >= Reach)
                return (T.NegativeInfinity, T.Zero, T.Zero, T.Zero);
            T tanh = T.Tanh(score), temperature = T.One + T.CreateChecked(Strength) * T.CreateChecked(Math.Abs(distance));
            return (gain * tanh / temperature + offset, gain * (T.One - tanh * tanh) / temperature, tanh / temperature, T.One);
        }

        public static Reference<T> Of(Tile tile)
        {
            var result = new Reference<T>(tile);
            for (int head = 0; head < tile.Heads; head++)
            {
                for (int query = 0; query < tile.Queries; query++)
                {
                    for (int key = 0; key < tile.Keys; key++)
                    {
                        int pair = tile.Pair(head, query, key), entry = tile.Entry(head, query, key);
                        T upstream = T.CreateChecked(tile.Upstream[pair]);
                        (T value, T byScore, T byGain, T byOffset) = Pair(T.CreateChecked(tile.Score[pair]), T.CreateChecked(tile.PerHead[head]),
                            T.CreateChecked(tile.PerDistance[entry]), key - query);
                        result.Value[pair] = value;
                        result.ScoreGradient[pair] = upstream * byScore;
                        result.PerHeadGradient[head] += upstream * byGain;
                        result.PerDistanceGradient[entry] += upstream * byOffset;
                    }
                }
            }
            return result;
        }
    }
}
