using CsCheck;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class RotaryEmbeddingTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

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
                (Strided queryBefore, Strided keyBefore) = (query.Copy(), key.Copy());
                var options = new RotaryOptions { Pairing = pairing, Offset = offset };
                if (keyHeads == 0)
                    RotaryEmbedding.Apply(Device, query.View, default, table, options);
                else
                    RotaryEmbedding.Apply(Device, query.View, key.View, table, options);
                CheckTurned(query, queryBefore, rotarySize, pairing, table, (_, s) => s + offset, 1);
                CheckTurned(key, keyBefore, rotarySize, pairing, table, (_, s) => s + offset, 1);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Rotation_and_its_gradient_keep_the_contract(int headSize, int rotarySize, RotaryPairing pairing)
    {
        using RotaryTable table = RotaryTable.Build(Device, rotarySize, positions: 3000, theta: 500_000);
        foreach (bool backward in (bool[])[false, true])
        {
            float[] query = Seeded.Normal(2 * 3 * 5 * headSize, 1);
            Grid<double> x = Grid.Of(query, 2, 3, 5, headSize);
            var options = new RotaryOptions { Pairing = pairing, Offset = 2990 };
            if (backward)
                RotaryEmbedding.Backward(Device, TensorView.Of(query, 2, 3, 5, headSize), default, table, options);
            else
                RotaryEmbedding.Apply(Device, TensorView.Of(query, 2, 3, 5, headSize), default, table, options);
            double[] frequencies = RotaryOracle.Frequencies(rotarySize, 500_000);
            Grid<double> oracle = RotaryOracle.Rotate<double>(x, RotaryOracle.Positions(5, 2990), frequencies, pairing == RotaryPairing.Interleaved, backward);
            Grid<float> naive = RotaryOracle.Rotate<float>(x, RotaryOracle.Positions(5, 2990), frequencies, pairing == RotaryPairing.Interleaved, backward);
            Contract.Check(query, oracle.Data, naive.Data, backward ? Contract.Gradient : Contract.Forward, "rotated", heads: 3, batch: 2);
        }
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Position_ids_of_either_type_shared_or_per_sequence_choose_the_angles(int headSize, int rotarySize, RotaryPairing pairing)
    {
        const int batch = 2, tokens = 35;
        using RotaryTable table = RotaryTable.Build(Device, rotarySize, positions: 50);
        long[] ids = [.. Enumerable.Range(0, batch * tokens).Select(i => (long)(i * 37 % 45))];
        int[] narrow = Array.ConvertAll(ids, id => (int)id);
        foreach (bool perSequence in (bool[])[false, true])
        {
            foreach (bool backward in (bool[])[false, true])
            {
                foreach (bool wide in (bool[])[false, true])
                {
                    Strided query = new Strided([batch, 2, tokens, headSize], [0, 2, 1, 3]).Fill(1);
                    Strided before = query.Copy();
                    long[] shape = perSequence ? [batch, tokens] : [tokens];
                    var options = new RotaryOptions { Pairing = pairing, Offset = 5, PositionIds = wide ? TensorView.Of(ids, shape) : TensorView.Of(narrow, shape) };
                    if (backward)
                        RotaryEmbedding.Backward(Device, query.View, default, table, options);
                    else
                        RotaryEmbedding.Apply(Device, query.View, default, table, options);
                    CheckTurned(query, before, rotarySize, pairing, table, (b, s) => ids[(perSequence ? b * tokens : 0) + s] + 5, backward ? -1 : 1);
                }
            }
        }
    }

    [Fact]
    public void Query_and_key_packed_side_by_side_turn_as_if_apart()
    {
        using RotaryTable table = RotaryTable.Build(Device, 16, positions: 9);
        Strided packed = new Strided([2, 9, 7, 16], [0, 1, 2, 3]).Fill(1); // [batch, position, 4 query heads + 2 key heads + 1 value head, headSize]
        Strided expected = packed.Copy();
        RotaryEmbedding.Apply(Device, expected.View.Slice(2, 0, 4).Permute(0, 2, 1, 3), default, table);
        RotaryEmbedding.Apply(Device, expected.View.Slice(2, 4, 2).Permute(0, 2, 1, 3), default, table);
        RotaryEmbedding.Apply(Device, packed.View.Slice(2, 0, 4).Permute(0, 2, 1, 3), packed.View.Slice(2, 4, 2).Permute(0, 2, 1, 3), table);
        Assert.Equal(expected.Data, packed.Data);
    }

    [Fact]
    public void Backward_turns_back_what_was_turned() => Gen.Select(Gen.Int[1, 40], Gen.Int[0, 9], Gen.Int[1, 40], Gen.Bool, Gen.Int[0, 1000]).Sample((pairs, rest, tokens, interleaved, seed) =>
    {
        int headSize = 2 * pairs + rest;
        using RotaryTable table = RotaryTable.Build(Device, 2 * pairs, positions: tokens);
        float[] original = Seeded.Normal(2 * tokens * headSize, seed), turned = [.. original];
        var options = new RotaryOptions { Pairing = interleaved ? RotaryPairing.Interleaved : RotaryPairing.HalfSplit };
        RotaryEmbedding.Apply(Device, TensorView.Of(turned, 1, 2, tokens, headSize), default, table, options);
        RotaryEmbedding.Backward(Device, TensorView.Of(turned, 1, 2, tokens, headSize), default, table, options);
        for (int i = 0; i < original.Length; i++)
            Assert.Equal(original[i], turned[i], 4e-6f);
    }, iter: DeviceUnderTest.Samples(200));

    [Fact]
    public void Scores_depend_on_the_distance_alone() => Gen.Select(Gen.Int[1, 64], Gen.Int[0, 500], Gen.Int[0, 500], Gen.Int[0, 400]).Sample((pairs, query, key, shift) =>
    {
        using RotaryTable table = RotaryTable.Build(Device, 2 * pairs, positions: 1000);
        double Score(int queryPosition, int keyPosition)
        {
            float[] q = Seeded.Normal(2 * pairs, 1), k = Seeded.Normal(2 * pairs, 2);
            RotaryEmbedding.Apply(Device, TensorView.Of(q, 1, 1, 1, 2 * pairs), default, table, new RotaryOptions { Offset = queryPosition });
            RotaryEmbedding.Apply(Device, TensorView.Of(k, 1, 1, 1, 2 * pairs), default, table, new RotaryOptions { Offset = keyPosition });
            double score = 0;
            for (int i = 0; i < q.Length; i++)
                score += (double)q[i] * k[i];
            return score;
        }
        Assert.Equal(Score(query, key), Score(query + shift, key + shift), 2e-5 * pairs);
    }, iter: DeviceUnderTest.Samples(200));

    [Fact]
    public void Infinities_and_NaN_stay_in_their_pairs()
    {
        using RotaryTable table = RotaryTable.Build(Device, 64, positions: 4);
        foreach (RotaryPairing pairing in Enum.GetValues<RotaryPairing>())
        {
            foreach (float special in (float[])[float.NaN, float.PositiveInfinity, float.NegativeInfinity])
            {
                for (int at = 0; at < 64; at++)
                {
                    Strided query = new Strided([1, 1, 4, 64], [0, 1, 2, 3]).Fill(at);
                    query[0, 0, 2, at] = special;
                    Strided before = query.Copy();
                    RotaryEmbedding.Apply(Device, query.View, default, table, new RotaryOptions { Pairing = pairing });
                    CheckTurned(query, before, 64, pairing, table, (_, s) => s, 1);
                }
            }
        }
    }

    [Fact]
    public void Nothing_happens_to_empty_tensors()
    {
        using RotaryTable table = RotaryTable.Build(Device, 4, positions: 4);
        foreach (long[] shape in (long[][])[[0, 2, 3, 4], [2, 0, 3, 4], [2, 2, 0, 4]])
            RotaryEmbedding.Apply(Device, TensorView.Of(Array.Empty<float>(), shape), default, table);
    }

#if !GPU // whose kernel finds out
    [Theory]
    [InlineData(47L, 3L, 50L)]
    [InlineData(-1L, 0L, -1L)]
    [InlineData(2L, -3L, -1L)]
    [InlineData(long.MaxValue, 3L, 0L)]
    [InlineData(long.MinValue, long.MinValue, 0L)]
    public void A_position_id_outside_the_table_throws_before_anything_is_written(long id, long offset, long position)
    {
        using RotaryTable table = RotaryTable.Build(Device, 4, positions: 50);
        float[] query = Seeded.Normal(2 * 3 * 4, 1), before = [.. query];
        long other = 4 - offset % 4; // a good one, so that the first rows could be written
        long[] ids = offset < -100 ? [id, id, id, id, id, id] : [other, other, other, other, id, other];
        ArgumentOutOfRangeException thrown = Assert.Throws<ArgumentOutOfRangeException>("options.PositionIds", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 2, 1, 3, 4), default, table,
            new RotaryOptions { PositionIds = TensorView.Of(ids, 2, 3), Offset = offset }));
        Assert.Equal(id, thrown.ActualValue);
        if (offset > -100)
            Assert.Contains("options.PositionIds[1, 1]", thrown.Message);
        if (position != 0)
            Assert.Contains($"is position {position}; the table has 0 to 49", thrown.Message);
        Assert.Equal(before, query);
    }
#endif

    [Theory]
    [InlineData(-1L)]
    [InlineData(48L)]
    [InlineData(long.MaxValue)]
    [InlineData(long.MinValue)]
    public void An_offset_beyond_the_table_throws(long offset)
    {
        using RotaryTable table = RotaryTable.Build(Device, 4, positions: 50);
        var query = new float[12];
        Assert.Throws<ArgumentOutOfRangeException>("options", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 1, 3, 4), default, table, new RotaryOptions { Offset = offset }));
        RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 1, 3, 4), default, table, new RotaryOptions { Offset = 47 });
    }

    [Fact]
    public unsafe void Bad_tensors_throw_naming_them()
    {
        using RotaryTable table = RotaryTable.Build(Device, 4, positions: 50);
        var query = new float[48];
        var foreign = new ForeignDevice();
        Throws<ArgumentNullException>("device", () => RotaryEmbedding.Apply(null!, TensorView.Of(query, 1, 2, 3, 8), default, table));
        Throws<ArgumentNullException>("table", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), default, null!));
        Throws<ArgumentNullException>("query", () => RotaryEmbedding.Apply(Device, default, default, table));
        Throws<ArgumentException>("query", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 2, 3, 8), default, table));
        Throws<ArgumentException>("query", () => RotaryEmbedding.Apply(Device, TensorView.Of(new int[48], 1, 2, 3, 8), default, table));
        Throws<ArgumentException>("query", () => RotaryEmbedding.Apply(Device, TensorView.Of((ReadOnlySpan<float>)query, 1, 2, 3, 8), default, table));
        Throws<ArgumentException>("query", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 1, 6, 8).Expand(1, 2), default, table));
        Throws<ArgumentException>("query", () =>
        {
            fixed (float* first = query) // rows that overlap by half
                RotaryEmbedding.Apply(Device, TensorView.FromPointer(Device, (nint)first, ElementType.Float32, [1, 1, 3, 8], [32, 32, 4, 1]), default, table);
        });
        Throws<ArgumentException>("query", () => RotaryEmbedding.Apply(Device, foreign.View(1, 2, 3, 8), default, table));
        Throws<ArgumentException>("key", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), foreign.View(1, 2, 3, 8), table));
        Throws<ArgumentException>("key", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), TensorView.Of(new float[40], 1, 1, 5, 8), table));
        Throws<ArgumentException>("query", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8).Slice(1, 0, 1), TensorView.Of(query, 1, 2, 3, 8), table));
        Throws<ArgumentException>("table", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 8, 3, 2), default, table));
        Throws<ArgumentException>("options.PositionIds", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), default, table, new RotaryOptions { PositionIds = TensorView.Of(new long[4]) }));
        Throws<ArgumentException>("options.PositionIds", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), default, table, new RotaryOptions { PositionIds = TensorView.Of(new float[3]) }));
        Throws<ArgumentException>("options.PositionIds", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), default, table, new RotaryOptions { PositionIds = TensorView.Of(new int[6], 2, 3) }));
        Throws<ArgumentOutOfRangeException>("options", () => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), default, table, new RotaryOptions { Pairing = (RotaryPairing)2 }));
        Assert.Equal(new float[48], query);

        TensorBuffer disposed = Device.Allocate(ElementType.Float32, 1, 2, 3, 8);
        disposed.Dispose();
        Assert.Throws<ObjectDisposedException>(() => RotaryEmbedding.Apply(Device, disposed, default, table));
        RotaryTable gone = RotaryTable.Build(Device, 4, positions: 50);
        gone.Dispose();
        Assert.Throws<ObjectDisposedException>(() => RotaryEmbedding.Apply(Device, TensorView.Of(query, 1, 2, 3, 8), default, gone));

        static void Throws<T>(string name, Action call) where T : ArgumentException => Assert.Throws<T>(name, call);
    }

    [Fact]
    public void A_table_refuses_what_makes_no_angles()
    {
        Assert.Contains("63 is odd", Assert.Throws<ArgumentOutOfRangeException>("rotarySize", () => RotaryTable.Build(Device, 63, 8)).Message);
        Assert.Throws<ArgumentOutOfRangeException>("rotarySize", () => RotaryTable.Build(Device, 0, 8));
        Assert.Throws<ArgumentOutOfRangeException>("positions", () => RotaryTable.Build(Device, 64, 0));
        Assert.Throws<ArgumentOutOfRangeException>("theta", () => RotaryTable.Build(Device, 64, 8, 0));
        Assert.Throws<ArgumentOutOfRangeException>("theta", () => RotaryTable.Build(Device, 64, 8, double.NaN));
        Assert.Throws<ArgumentNullException>("device", () => RotaryTable.Build(null!, 64, 8));
        Assert.Throws<ArgumentException>("inverseFrequencies", () => RotaryTable.Build(Device, [], 8));
        Assert.Throws<ArgumentOutOfRangeException>("inverseFrequencies", () => RotaryTable.Build(Device, [1, double.NaN], 8));
        Assert.Throws<ArgumentOutOfRangeException>("attentionFactor", () => RotaryTable.Build(Device, [1.0], 8, double.PositiveInfinity));
    }

    [Fact]
    public void Table_holds_cosines_and_sines_to_the_last_bit()
    {
        using RotaryTable table = RotaryTable.Build(Device, [1, 0.1, 0.003], positions: 100_000, attentionFactor: 1.25);
        Assert.Equal((6, 100_000), (table.RotarySize, table.Positions));
        float[] cosines = table.Cosines.Owner!.ToArray<float>(), sines = table.Sines.Owner!.ToArray<float>();
        foreach (int position in (int[])[0, 1, 2, 777, 99_999])
        {
            for (int pair = 0; pair < 3; pair++)
            {
                double angle = position * new[] { 1, 0.1, 0.003 }[pair];
                Assert.Equal((float)(1.25 * Math.Cos(angle)), cosines[position * 3 + pair]);
                Assert.Equal((float)(1.25 * Math.Sin(angle)), sines[position * 3 + pair]);
            }
        }
    }

    // The formula in float32, with the table's cosines and sines: the CPU's kernel keeps to its roundings, so the bits are the same. Gaps stay as they were.
    private static void CheckTurned(Strided turned, Strided before, int rotarySize, RotaryPairing pairing, RotaryTable table, Func<long, long, long> position, float sign)
    {
        float[] expected = Turned(before, rotarySize, pairing, table, position, sign, out double[] exact).Data;
        if (DeviceUnderTest.RoundsAsWritten)
            Assert.Equal(expected, turned.Data);
        else
            Contract.Check(turned.Data, exact, expected, Contract.Forward, "turned");
    }

    private static Strided Turned(Strided x, int rotarySize, RotaryPairing pairing, RotaryTable table, Func<long, long, long> position, float sign,
        out double[] exact)
    {
        var cosines = new float[table.Positions * rotarySize / 2];
        var sines = new float[cosines.Length];
        table.Cosines.Owner!.CopyTo(cosines.AsSpan());
        table.Sines.Owner!.CopyTo(sines.AsSpan());
        Strided y = x.Copy();
        exact = Array.ConvertAll(y.Data, value => (double)value);
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
                        exact[y.At(b, h, s, first)] = (double)x0 * cosine - (double)x1 * sine;
                        exact[y.At(b, h, s, second)] = (double)x0 * sine + (double)x1 * cosine;
                    }
                }
            }
        }
        return y;
    }
}
