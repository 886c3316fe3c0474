using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What only a GPU's rotary embedding can get wrong: positions that lie in its memory, how the work is cut, what it touches.</summary>
public class GpuRotaryEmbeddingTests(OwnGpu gpu) : IClassFixture<OwnGpu>
{
    // A good position for the tests with a table of 50.
    private const int Positions = 50;

    [Theory]
    [InlineData(47L, 3L, 50L)]
    [InlineData(-1L, 0L, -1L)]
    [InlineData(2L, -3L, -1L)]
    [InlineData(1L << 32, 0L, 1L << 32)]
    [InlineData(long.MaxValue, 3L, long.MaxValue)]
    public void A_position_outside_the_table_spoils_its_token_alone_and_the_next_synchronize_names_it(long id, long offset, long position)
    {
        const int batch = 2, heads = 9, tokens = 3, size = 10, rotary = 6;
        using RotaryTable table = RotaryTable.Build(gpu.Device, rotary, Positions);
        long other = 4 - offset;
        long[] ids = [other, other, other, other, id, other], good = [other, other, other, other, other, other];
        float[] features = Seeded.Normal(batch * heads * tokens * size, 1);
        foreach (bool backward in (bool[])[false, true])
        {
            float[] expected = Turned(good, features), spoiled = Turned(ids, features, expectFault: true);
            for (int i = 0; i < expected.Length; i++)
            {
                bool isBad = i / size % tokens == 1 && i / (heads * tokens * size) == 1;
                Assert.Equal(isBad ? float.NaN : expected[i], spoiled[i]);
            }

            float[] Turned(long[] where, float[] from, bool expectFault = false)
            {
                using TensorBuffer query = gpu.Device.Upload<float>(from, batch, heads, tokens, size), positions = gpu.Device.Upload<long>(where, batch, tokens);
                var options = new RotaryOptions { PositionIds = positions, Offset = offset };
                if (backward)
                    RotaryEmbedding.Backward(gpu.Device, query, default, table, options);
                else
                    RotaryEmbedding.Apply(gpu.Device, query, default, table, options);
                if (expectFault)
                {
                    ArgumentOutOfRangeException thrown = Assert.Throws<ArgumentOutOfRangeException>("options.PositionIds", gpu.Device.Synchronize);
                    Assert.Equal(position, thrown.ActualValue);
                    Assert.Contains("0 to 49", thrown.Message);
                }
                gpu.Device.Synchronize();
                return query.ToArray<float>();
            }
        }
    }

    [Fact]
    public void Narrow_ids_shared_by_the_batch_are_checked_too()
    {
        using RotaryTable table = RotaryTable.Build(gpu.Device, 4, Positions);
        using TensorBuffer query = gpu.Device.Upload<float>(Seeded.Normal(2 * 3 * 4, 1), 2, 1, 3, 4), key = gpu.Device.Upload<float>(Seeded.Normal(2 * 3 * 4, 2), 2, 1, 3, 4);
        using TensorBuffer ids = gpu.Device.Upload<int>([0, 1, int.MinValue]);
        RotaryEmbedding.Apply(gpu.Device, query, key, table, new RotaryOptions { PositionIds = ids });
        Assert.Equal((long)int.MinValue, Assert.Throws<ArgumentOutOfRangeException>(gpu.Device.Synchronize).ActualValue);
        foreach (float[] turned in (float[][])[query.ToArray<float>(), key.ToArray<float>()])
        {
            for (int i = 0; i < turned.Length; i++)
                Assert.Equal(i / 4 % 3 == 2, float.IsNaN(turned[i]));
        }
    }

    [Fact]
    public void One_launch_turns_queries_and_keys_of_a_packed_buffer_and_touches_nothing_else()
    {
        const int batch = 2, tokens = 37, queries = 19, keys = 3, values = 2, size = 34, rotary = 32;
        float[] packed = Seeded.Normal(batch * tokens * (queries + keys + values) * size, 1);
        using RotaryTable table = RotaryTable.Build(gpu.Device, rotary, tokens);
        using TensorBuffer buffer = gpu.Device.Upload<float>(packed, batch, tokens, queries + keys + values, size);
        long before = gpu.Device.Counts.Launches;
        RotaryEmbedding.Apply(gpu.Device, buffer.View.Slice(2, 0, queries).Permute(0, 2, 1, 3), buffer.View.Slice(2, queries, keys).Permute(0, 2, 1, 3), table,
            new RotaryOptions { Pairing = RotaryPairing.Interleaved });
        Assert.Equal(before + 1, gpu.Device.Counts.Launches);

        float[] turned = buffer.ToArray<float>();
        Grid<double> x = Grid.Of(packed, batch, tokens, queries + keys + values, size);
        double[] frequencies = RotaryOracle.Frequencies(rotary);
        (float[] ours, double[] oracle, float[] naive) = (Rotated(turned), Oracle<double>(), Oracle<float>());
        Contract.Check(ours, oracle, naive, Contract.Forward, "turned");
        for (int i = 0; i < packed.Length; i++)
        {
            if (i / size % (queries + keys + values) >= queries + keys || i % size >= rotary)
                Assert.Equal(packed[i], turned[i]);
        }

        float[] Rotated(float[] all) => [.. all.Where((_, i) => i / size % (queries + keys + values) < queries + keys)];

        // The oracle takes [batch, head, token, feature]; here head and token change places.
        T[] Oracle<T>() where T : System.Numerics.IFloatingPointIeee754<T>
        {
            Grid<double> heads = Grid.Zeros<double>(batch, queries + keys, tokens, size);
            for (int b = 0; b < batch; b++)
                for (int t = 0; t < tokens; t++)
                    for (int h = 0; h < queries + keys; h++)
                        x.Row(b, t, h).CopyTo(heads.Row(b, h, t));
            Grid<T> result = RotaryOracle.Rotate<T>(heads, RotaryOracle.Positions(tokens, 0), frequencies, interleaved: true);
            var flat = new List<T>();
            for (int b = 0; b < batch; b++)
                for (int t = 0; t < tokens; t++)
                    for (int h = 0; h < queries + keys; h++)
                        flat.AddRange(result.Row(b, h, t));
            return [.. flat];
        }
    }

    [Fact]
    public void More_sequences_than_groups_are_all_turned()
    {
        gpu.NeedsOpenCl();
        const int batch = RotaryKernels.MaximumGroups + 5;
        using RotaryTable table = RotaryTable.Build(gpu.Device, 2, 2);
        using TensorBuffer query = gpu.Device.Upload<float>(Seeded.Normal(2 * batch, 1), batch, 1, 1, 2);
        float[] before = query.ToArray<float>();
        RotaryEmbedding.Apply(gpu.Device, query, default, table, new RotaryOptions { Offset = 1 });
        float[] turned = query.ToArray<float>();
        (double cosine, double sine) = (Math.Cos(1), Math.Sin(1));
        for (int i = 0; i < batch; i++)
        {
            Assert.Equal(before[2 * i] * cosine - before[2 * i + 1] * sine, turned[2 * i], 1e-6);
            Assert.Equal(before[2 * i] * sine + before[2 * i + 1] * cosine, turned[2 * i + 1], 1e-6);
        }
    }

    [Fact]
    public void Pairs_beyond_a_group_and_results_bitwise_the_same_every_time()
    {
        const int pairs = 2 * RotaryKernels.GroupSize + 7, tokens = 3;
        using RotaryTable table = RotaryTable.Build(gpu.Device, 2 * pairs, tokens);
        float[] features = Seeded.Normal(2 * pairs * tokens, 1), first = Turned();
        double[] frequencies = RotaryOracle.Frequencies(2 * pairs);
        Grid<double> x = Grid.Of(features, 1, 1, tokens, 2 * pairs);
        Contract.Check(first, RotaryOracle.Rotate<double>(x, RotaryOracle.Positions(tokens, 0), frequencies, interleaved: false).Data,
            RotaryOracle.Rotate<float>(x, RotaryOracle.Positions(tokens, 0), frequencies, interleaved: false).Data, Contract.Forward, "turned");
        for (int time = 0; time < 20; time++)
            Assert.Equal(first, Turned());

        float[] Turned()
        {
            using TensorBuffer query = gpu.Device.Upload<float>(features, 1, 1, tokens, 2 * pairs);
            RotaryEmbedding.Apply(gpu.Device, query, default, table);
            return query.ToArray<float>();
        }
    }

    [Fact]
    public void A_cancelled_call_throws_and_queues_nothing()
    {
        using RotaryTable table = RotaryTable.Build(gpu.Device, 2, 2);
        using TensorBuffer query = gpu.Device.Allocate(ElementType.Float32, 1, 1, 1, 2);
        using ComputeDevice cancelled = gpu.Device.With(new CancellationToken(canceled: true));
        long before = gpu.Device.Counts.Launches;
        Assert.Throws<OperationCanceledException>(() => RotaryEmbedding.Apply(cancelled, query, default, table));
        Assert.Equal(before, gpu.Device.Counts.Launches);
    }
}
