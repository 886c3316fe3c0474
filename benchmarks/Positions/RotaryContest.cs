using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Rotates queries and keys laid out [batch, position, head, headSize] in place.</summary>
internal sealed class RotaryContest : Contest
{
    private const int QuerySeed = 1, KeySeed = 2;

    // The check looks at the last positions of the last sequence.
    private const int CheckedPositions = 8;

    private readonly int positions, headSize;
    private readonly TensorBuffer query, key;
    private readonly RotaryTable table;

    public RotaryContest(ComputeDevice device, int batch, int positions, int heads, int keyHeads, int headSize) : base(device)
    {
        (this.positions, this.headSize) = (positions, headSize);
        query = Noisy(QuerySeed, 1, batch, positions, heads, headSize);
        key = Noisy(KeySeed, 1, batch, positions, keyHeads, headSize);
        table = Own(RotaryTable.Build(device, headSize, positions));
    }

    /// <summary>Queries and keys in place, the table once.</summary>
    public static Cost CostOf(long batch, long positions, long heads, long keyHeads, long headSize) =>
        Cost.Elementwise(sizeof(float) * (2 * batch * positions * (heads + keyHeads) * headSize + positions * headSize), Traffic.Update);

    public override void Run() => RotaryEmbedding.Apply(Device, query.View.Permute(0, 2, 1, 3), key.View.Permute(0, 2, 1, 3), table);

    public override double Check() => Math.Max(Check(query, QuerySeed, "query"), Check(key, KeySeed, "key"));

    private double Check(TensorBuffer rotated, int seed, string what)
    {
        // In this layout positions can stand where the oracle has sequences, each of one token.
        int heads = (int)rotated.Shape[2], count = CheckedPositions * heads * headSize;
        int start = checked((int)rotated.ElementCount - count);
        var input = Grid.Zeros<double>(CheckedPositions, heads, 1, headSize);
        for (int i = 0; i < count; i++)
            input.Data[i] = Noise.At(seed, start + i);
        var at = Grid.Zeros<double>(CheckedPositions, 1);
        for (int i = 0; i < CheckedPositions; i++)
            at.Data[i] = positions - CheckedPositions + i;
        double[] frequencies = RotaryOracle.Frequencies(headSize);
        return Contract.Check(rotated.AsSpan<float>()[start..], RotaryOracle.Rotate<double>(input, at, frequencies, interleaved: false).Data,
            RotaryOracle.Rotate<float>(input, at, frequencies, interleaved: false).Data, Contract.Forward, what);
    }

    public override IReadOnlyList<TensorBuffer> Results => [query, key];

    public override IEnumerable<Peer> Peers()
    {
        Tensor[] both = [TorchPeer.Copy(query), TorchPeer.Copy(key)];
        // Angles of thousands have no more than four digits behind the point in float32.
        Tensor frequencies = tensor(RotaryOracle.Frequencies(headSize), dtype: ScalarType.Float64);
        Tensor angles = (arange(positions, dtype: ScalarType.Float64).unsqueeze(1) * frequencies).reshape(1, positions, 1, headSize / 2);
        Tensor halfCos = angles.cos().to_type(ScalarType.Float32), halfSin = angles.sin().to_type(ScalarType.Float32);
        Tensor cos = cat([halfCos, halfCos], -1), sin = cat([halfSin, halfSin], -1);
        yield return new("x·cos + rotate_half(x)·sin", () => [.. both.Select(x =>
        {
            Tensor[] halves = x.chunk(2, -1);
            return (x * cos).add_(cat([-halves[1], halves[0]], -1).mul_(sin));
        })]);
        yield return new("cat of rotated halves", () => [.. both.Select(x =>
        {
            Tensor[] halves = x.chunk(2, -1);
            return cat([(halves[0] * halfCos).sub_(halves[1] * halfSin), (halves[0] * halfSin).add_(halves[1] * halfCos)], -1);
        })]);
        yield return new("halves in place", () =>
        {
            foreach (Tensor x in both)
            {
                Tensor[] halves = x.chunk(2, -1);
                Tensor first = halves[0].clone();
                halves[0].mul_(halfCos).addcmul_(halves[1], halfSin, -1);
                halves[1].mul_(halfCos).addcmul_(first, halfSin, 1);
            }
            return both;
        });
    }
}
