using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What GPUs don't offer yet: bucketed table, dense, row and column biases, sinks, key lengths and softcap.</summary>
public class AttentionBiasTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<bool, bool, bool, bool> Sharings()
    {
        var sharings = new TheoryData<bool, bool, bool, bool>();
        for (int shared = 0; shared < 16; shared++)
            sharings.Add((shared & 8) != 0, (shared & 4) != 0, (shared & 2) != 0, (shared & 1) != 0);
        return sharings;
    }

    [Theory]
    [MemberData(nameof(Sharings))]
    public void A_dense_bias_shared_along_any_axes_agrees_with_the_definition(bool batch, bool head, bool query, bool key)
    {
        foreach ((int queries, int keys, bool causal) in ((int, int, bool)[])[(3, 4, false), (20, 30, true), (67, 133, true), (70, 66, false)])
        {
            Grid<double> bias = AttentionCase.Numbers(4, 1, batch ? 1 : 2, head ? 1 : 4, query ? 1 : queries, key ? 1 : keys);
            if (bias.Data.Length > 4)
                bias.Data[1] = double.NegativeInfinity;
            var problem = new AttentionCase
            {
                Batch = 2, Heads = 4, KeyHeads = 2, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = causal, HasLogSumExpUpstream = true, DenseBias = bias,
                Slopes = causal ? AttentionCase.Numbers(1, 0.2f, 4) : null,
            };
            problem.Check(Device, default(PlainScore));
            AttentionCase.Results fresh = problem.Run(Device, default(PlainScore)), added = problem.Run(Device, default(PlainScore), accumulate: true);
            for (int i = 0; i < fresh.DenseBias.Length; i++)
                Assert.Equal(1 + fresh.DenseBias[i], added.DenseBias[i], 2e-6 * (1 + Math.Abs(fresh.DenseBias[i])));
        }
    }

    public static TheoryData<int, int, bool> Buckets => new()
    {
        { 32, 128, false }, { 32, 128, true }, { 64, 256, true }, { 128, 1024, false }, { 12, 10, false }, { 10, 37, false }, { 8, 12, true }, { 4, 128, true }, { 5, 3, false }, { 16, 9, false },
    };

    [Theory]
    [MemberData(nameof(Buckets))]
    public void Buckets_are_those_of_the_definition_at_every_distance(int buckets, int maximumDistance, bool bidirectional)
    {
        const int far = 100_000;
        for (int distance = -far; distance <= far; distance++)
        {
            int bucket = BucketedBias.Bucket(distance, buckets, maximumDistance, bidirectional);
            if (bucket != AttentionOracle.Bucket(distance, buckets, maximumDistance, bidirectional))
                Assert.Fail($"distance {distance} is in bucket {bucket}");
        }
    }

    [Theory]
    [MemberData(nameof(Buckets))]
    public void A_bucketed_table_agrees_with_the_definition(int buckets, int maximumDistance, bool bidirectional)
    {
        foreach ((int queries, int keys, bool causal, int? offset) in ((int, int, bool, int?)[])[(1, 1, false, null), (9, 14, true, null), (70, 66, false, null), (40, 300, true, null), (20, 30, false, 140), (5, 40, false, -20)])
        {
            var problem = new AttentionCase
            {
                Batch = 2, Heads = 4, KeyHeads = 2, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = causal, QueryOffset = offset, Scale = 1, HasLogSumExpUpstream = true,
                BucketTable = AttentionCase.Numbers(4, 1, buckets, 4), MaximumDistance = maximumDistance, IsBidirectional = bidirectional,
                Slopes = causal ? AttentionCase.Numbers(1, 0.1f, 4) : null, DistanceBias = offset is null ? AttentionCase.Numbers(2, 1, 4, queries + keys - 1) : null,
                DenseBias = causal ? AttentionCase.Numbers(3, 1, 1, 4, 1, keys) : null,
            };
            problem.Check(Device, default(PlainScore));
            AttentionCase.Results fresh = problem.Run(Device, default(PlainScore)), added = problem.Run(Device, default(PlainScore), accumulate: true);
            for (int i = 0; i < fresh.BucketTable.Length; i++)
                Assert.Equal(1 + fresh.BucketTable[i], added.BucketTable[i], 2e-6 * (1 + Math.Abs(fresh.BucketTable[i])));
        }
    }

    [Fact]
    public void Row_and_column_biases_agree_with_the_definition()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(1, 1), (4, 6), (65, 63), (100, 530)])
        {
            new AttentionCase
            {
                Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = queries > 4, HasLogSumExpUpstream = true,
                RowBias = AttentionCase.Numbers(4, 1, 2, 2, queries), ColumnBias = AttentionCase.Numbers(5, 1, 1, 2, keys), DenseBias = AttentionCase.Numbers(6, 1, 2, 1, 1, keys),
            }.Check(Device, default(PlainScore));
            new AttentionCase { Queries = queries, Keys = keys, RowBias = AttentionCase.Numbers(4, 1, 1, 1, queries), ColumnBias = AttentionCase.Numbers(5, 1, 1, 1, 1) }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Softcap_bends_scores_after_the_rule_and_before_the_biases()
    {
        foreach (float cap in (float[])[2, 5, 50])
        {
            foreach ((int queries, int keys) in ((int, int)[])[(5, 5), (66, 130)])
            {
                new AttentionCase { Queries = queries, Keys = keys, Softcap = cap, Scale = 2, DistanceBias = AttentionCase.Numbers(8, 1, 2, queries + keys - 1), Causal = true }.Check(Device, default(PlainScore));
                var rule = new Gained<Temperature>(new Temperature(0.25f, 20));
                new AttentionCase
                {
                    Queries = queries, Keys = keys, Softcap = cap, DenseBias = AttentionCase.Numbers(8, 1, 1, 2, queries, keys),
                    Captured = [new(AttentionCase.Numbers(20, 0.3f, 2), CapturedBy.Head), new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
                }.Check(Device, rule, new GainedTemperatureFormula(0.25f, 20));
            }
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(-30)]
    [InlineData(5)]
    [InlineData(79)]
    [InlineData(95)]
    [InlineData(200)]
    [InlineData(double.NegativeInfinity)]
    public void Sinks_join_the_denominator_and_have_a_gradient(double sink)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(1, 1), (7, 4), (66, 130)])
        {
            Grid<double> sinks = AttentionCase.Numbers(4, 1, 4);
            sinks.Data[0] = sink;
            var problem = new AttentionCase
            {
                Batch = 2, Heads = 4, KeyHeads = 2, Queries = queries, Keys = keys, Causal = true, Sinks = sinks, HasLogSumExpUpstream = true, KeepsRemainder = keys > 4,
                RowBias = keys > 4 ? AttentionCase.Numbers(5, 1, 2, 4, queries) : null,
            };
            problem.Check(Device, default(PlainScore));
            AttentionCase.Results fresh = problem.Run(Device, default(PlainScore)), added = problem.Run(Device, default(PlainScore), accumulate: true);
            for (int i = 0; i < fresh.Sinks.Length; i++)
                Assert.Equal(1 + fresh.Sinks[i], added.Sinks[i], 2e-6 * (1 + Math.Abs(fresh.Sinks[i])));
            new AttentionCase { Queries = queries, Keys = keys, Softcap = 3, Sinks = AttentionCase.Numbers(6, 1, 2), BucketTable = AttentionCase.Numbers(7, 1, 8, 2), MaximumDistance = 20 }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void A_query_that_sees_a_sink_alone_has_output_0_and_the_sink_as_its_log_sum_exp()
    {
        foreach (float sink in (float[])[0.5f, -2, 300])
        {
            AttentionCase.Results results = new AttentionCase { Queries = 7, Keys = 4, Causal = true, Sinks = Grid.Of((ReadOnlySpan<double>)[sink, -2], 2), HasLogSumExpUpstream = true }.Run(Device, default(PlainScore));
            Assert.Equal([sink, sink, sink], results.LogSumExp[..3]);
            Assert.All(results.Output[..12], o => Assert.Equal(0, o));
            Assert.All(results.Query[..12], g => Assert.Equal(0, g));
        }
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(1f)]
    public void Keys_beyond_a_sequences_length_contribute_nothing_whatever_they_hold(float poison)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(4, 7), (70, 133), (5, 600)])
        {
            foreach (bool causal in (bool[])[false, true])
            {
                int[] lengths = [keys, 0, keys / 2 + 1, 1];
                new AttentionCase
                {
                    Batch = 4, Queries = queries, Keys = keys, Causal = causal, KeyLengths = lengths, HasLogSumExpUpstream = true,
                    DistanceBias = AttentionCase.Numbers(8, 1, 2, queries + keys - 1), DenseBias = AttentionCase.Numbers(9, 1, 4, 1, queries, keys),
                    Prepare = (_, k, v) =>
                    {
                        for (int b = 0; b < 4; b++)
                        {
                            for (int j = lengths[b]; j < keys; j++)
                                k[b, 0, j, 0] = v[b, 1, j, 1] = poison;
                        }
                    },
                }.Check(Device, default(PlainScore));
            }
        }
    }

    [Fact]
    public void A_length_beyond_the_keys_is_refused_before_anything_is_written()
    {
        foreach (int length in (int[])[-1, 6])
        {
            float[] q = new float[2 * 3 * 4], k = new float[2 * 5 * 4], o = new float[q.Length];
            Array.Fill(o, 7);
            using var workspace = new Workspace(Device);
            var problem = new AttentionProblem
            {
                Query = TensorView.Of(q, 2, 1, 3, 4), Key = TensorView.Of(k, 2, 1, 5, 4), Value = TensorView.Of(k, 2, 1, 5, 4), KeyLengths = TensorView.Of((int[])[5, length], 2),
            };
            ArgumentOutOfRangeException? thrown = null;
            try
            {
                TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(o, 2, 1, 3, 4), default, workspace);
            }
            catch (ArgumentOutOfRangeException exception)
            {
                thrown = exception;
            }
            Assert.Equal("problem.KeyLengths", thrown?.ParamName);
            Assert.Contains($"Sequence 1 has {length} keys; there are 0 to 5", thrown!.Message);
            Assert.All(o, x => Assert.Equal(7, x));
        }
    }

    [Fact]
    public void A_dense_bias_and_its_gradient_have_any_strides()
    {
        const int queries = 70, keys = 66;
        float[] bias = Seeded.Normal(3 * queries * keys, 1), packed = new float[2 * queries * keys], q = Seeded.Normal(2 * queries * 4, 2), k = Seeded.Normal(2 * keys * 4, 3), o = new float[q.Length], l = new float[2 * queries];
        TensorView query = TensorView.Of(q, 1, 2, queries, 4), key = TensorView.Of(k, 1, 2, keys, 4), output = TensorView.Of(o, 1, 2, queries, 4), sums = TensorView.Of(l, 1, 2, queries);
        using var workspace = new Workspace(Device);
        float[][] results = new float[2][], gradients = new float[2][];
        foreach (bool transposed in (bool[])[false, true])
        {
            // Of three heads' worth of numbers [key, query, head] the last two; or a copy of them [head, query, key].
            for (int h = 0; h < 2; h++)
                for (int i = 0; i < queries; i++)
                    for (int j = 0; j < keys; j++)
                        packed[(h * queries + i) * keys + j] = bias[(j * queries + i) * 3 + h + 1];
            float[] gradient = new float[transposed ? bias.Length : packed.Length];
            TensorView Of(float[] data) => transposed
                ? TensorView.Of(data, 1, keys, queries, 3).Slice(3, 1, 2).Permute(0, 3, 2, 1) : TensorView.Of(data, 1, 2, queries, keys);
            var problem = new AttentionProblem { Query = query, Key = key, Value = key, DenseBias = Of(transposed ? bias : packed) };
            TransformerKernels.Attention.Forward(Device, problem, output, sums, workspace);
            TransformerKernels.Attention.Backward(Device, problem, new AttentionSaved { Output = output, LogSumExp = sums }, new AttentionUpstream { Output = query },
                new AttentionGradients { DenseBias = Of(gradient) }, workspace);
            results[transposed ? 1 : 0] = [.. o];
            gradients[transposed ? 1 : 0] = transposed
                ? [.. Enumerable.Range(0, packed.Length).Select(n => gradient[(n % keys * queries + n / keys % queries) * 3 + n / keys / queries + 1])] : gradient;
        }
        Assert.Equal(results[0], results[1]);
        Assert.Equal(gradients[0], gradients[1]);
    }
}
