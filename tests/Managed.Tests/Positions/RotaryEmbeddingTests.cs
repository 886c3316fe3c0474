using Xunit;

namespace TransformerKernels.Tests;

public class RotaryEmbeddingTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    // The orders in which the axes batch, head, position, feature lie in memory.
    private static readonly int[][] Orders = [[0, 1, 2, 3], [0, 2, 1, 3], [2, 1, 0, 3], [0, 1, 3, 2], [3, 2, 1, 0]];

    public static TheoryData<int, int, RotaryPairing> Sizes()
    {
        var sizes = new TheoryData<int, int, RotaryPairing>();
        foreach (RotaryPairing pairing in Enum.GetValues<RotaryPairing>())
        {
            foreach ((int head, int rotary) in ((int, int)[])[(2, 2), (3, 2), (10, 8), (16, 16), (36, 34), (40, 20), (64, 64), (66, 66), (80, 80), (128, 128), (129, 66)])
                sizes.Add(head, rotary, pairing);
        }
        return sizes;
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Turns_every_pair_as_the_formula_says_in_every_layout(int headSize, int rotarySize, RotaryPairing pairing)
    {
        using RotaryTable table = RotaryTable.Build(Device, rotarySize, positions: 80);
        foreach (int[] order in Orders)
        {
            foreach ((int batch, int heads, int keyHeads, int positions, int offset, int gap) in
                ((int, int, int, int, int, int)[])[(1, 1, 1, 1, 0, 0), (2, 3, 1, 37, 43, 0), (1, 4, 2, 5, 7, 3), (3, 2, 0, 70, 0, 1)])
            {
                Strided query = new Strided([batch, heads, positions, headSize], order, gap).Fill(1);
                Strided key = new Strided([batch, keyHeads, positions, headSize], order, gap).Fill(2);
                Strided queryTurned = Turned(query, rotarySize, pairing, table, (_, s) => s + offset, 1);
                Strided keyTurned = Turned(key, rotarySize, pairing, table, (_, s) => s + offset, 1);
                var options = new RotaryOptions { Pairing = pairing, Offset = offset };
                if (keyHeads == 0)
                    RotaryEmbedding.Apply(Device, query.View, default, table, options);
                else
                    RotaryEmbedding.Apply(Device, query.View, key.View, table, options);
                Assert.Equal(queryTurned.Data, query.Data);
                Assert.Equal(keyTurned.Data, key.Data);
            }
        }
    }

    // The formula in float32, with the table's cosines and sines: the kernel keeps to its roundings, so the bits are the same. Gaps stay as they were.
    private static Strided Turned(Strided x, int rotarySize, RotaryPairing pairing, RotaryTable table, Func<long, long, long> position, float sign)
    {
        var cosines = new float[table.Positions * rotarySize / 2];
        var sines = new float[cosines.Length];
        table.Cosines.Owner!.CopyTo(cosines.AsSpan());
        table.Sines.Owner!.CopyTo(sines.AsSpan());
        Strided y = x.Copy();
        int pairs = rotarySize / 2;
        for (long b = 0; b < x.Lengths[0]; b++)
        {
            for (long h = 0; h < x.Lengths[1]; h++)
            {
                for (long s = 0; s < x.Lengths[2]; s++)
                {
                    for (long m = 0; m < pairs; m++)
                    {
                        (long first, long second) = pairing == RotaryPairing.HalfSplit ? (m, m + pairs) : (2 * m, 2 * m + 1);
                        float cosine = cosines[position(b, s) * pairs + m], sine = sign * sines[position(b, s) * pairs + m];
                        float x0 = x[b, h, s, first], x1 = x[b, h, s, second];
                        y[b, h, s, first] = x0 * cosine - x1 * sine;
                        y[b, h, s, second] = x0 * sine + x1 * cosine;
                    }
                }
            }
        }
        return y;
    }
}
