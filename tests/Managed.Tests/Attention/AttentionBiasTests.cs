using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What GPUs don't offer yet: bucketed and two-dimensional tables, dense, row and column biases, sinks, boolean masks, offsets and lengths of each sequence and softcap.</summary>
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

    [Theory]
    [InlineData(1, 1)]
    [InlineData(2, 3)]
    [InlineData(7, 7)]
    [InlineData(5, 16)]
    [InlineData(1, 70)]
    [InlineData(70, 1)]
    [InlineData(9, 33)]
    public void A_table_by_two_coordinates_agrees_with_the_definition(int height, int width)
    {
        int positions = height * width, cells = (2 * height - 1) * (2 * width - 1);
        foreach ((int queries, int keys, int? offset, bool causal) in ((int, int, int?, bool)[])[(positions, positions, null, false), ((positions + 2) / 3, (positions + 1) / 2, positions / 4, true)])
        {
            foreach (bool full in (bool[])[false, true])
            {
                Grid<double> table = AttentionCase.Numbers(4, 1, cells, 4);
                if (full && cells > 20)
                    table[7, 1] = double.NegativeInfinity;
                var problem = new AttentionCase
                {
                    Batch = 2, Heads = 4, KeyHeads = 2, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = causal, QueryOffset = offset, HasLogSumExpUpstream = true,
                    CellTable = table, WindowHeight = height, WindowWidth = width,
                    DenseBias = full ? AttentionCase.Numbers(3, 1, 2, 1, queries, keys) : null, Slopes = full ? AttentionCase.Numbers(1, 0.1f, 4) : null,
                    Mask = full ? RandomMask(0.7f, 1, 1, queries, keys) : null, ColumnBias = causal ? AttentionCase.Numbers(6, 1, 1, 4, keys) : null,
                };
                problem.Check(Device, default(PlainScore));
                AttentionCase.Results fresh = problem.Run(Device, default(PlainScore)), added = problem.Run(Device, default(PlainScore), accumulate: true);
                for (int i = 0; i < fresh.CellTable.Length; i++)
                    Assert.Equal(1 + fresh.CellTable[i], added.CellTable[i], 2e-6 * (1 + Math.Abs(fresh.CellTable[i])));
            }
        }
    }

    [Fact]
    public void Row_and_column_biases_agree_with_the_definition()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(1, 1), (4, 6), (65, 63), (100, 530)])
        {
            var problem = new AttentionCase
            {
                Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = queries > 4, HasLogSumExpUpstream = true,
                RowBias = AttentionCase.Numbers(4, 1, 2, 2, queries), ColumnBias = AttentionCase.Numbers(5, 1, 1, 2, keys), DenseBias = AttentionCase.Numbers(6, 1, 2, 1, 1, keys),
            };
            problem.Check(Device, default(PlainScore));
            AttentionCase.Results fresh = problem.Run(Device, default(PlainScore)), added = problem.Run(Device, default(PlainScore), accumulate: true);
            foreach ((float[] a, float[] b) in ((float[], float[])[])[(fresh.RowBias, added.RowBias), (fresh.ColumnBias, added.ColumnBias), (fresh.DenseBias, added.DenseBias)])
            {
                for (int i = 0; i < a.Length; i++)
                    Assert.Equal(1 + a[i], b[i], 2e-6 * (1 + Math.Abs(a[i])));
            }
            new AttentionCase { Queries = queries, Keys = keys, RowBias = AttentionCase.Numbers(4, 1, 1, 1, queries), ColumnBias = AttentionCase.Numbers(5, 1, 1, 1, 1) }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Minus_infinity_in_biases_of_queries_keys_and_pairs_hides_alone_and_together()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(5, 7), (64, 128), (70, 200)])
        {
            Grid<double> row = AttentionCase.Numbers(4, 1, 1, 2, queries), column = AttentionCase.Numbers(5, 1, 1, 2, keys), dense = AttentionCase.Numbers(6, 1, 1, 2, queries, keys);
            row.Data[queries - 2] = column.Data[3] = column.Data[keys - 1] = dense.Data[0] = dense.Data[keys * queries - 1] = double.NegativeInfinity;
            for (int some = 1; some < 8; some++)
            {
                new AttentionCase
                {
                    Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 8, ValueSize = 4, HasLogSumExpUpstream = true,
                    RowBias = (some & 1) != 0 ? row : null, ColumnBias = (some & 2) != 0 ? column : null, DenseBias = (some & 4) != 0 ? dense : null,
                    Slopes = some == 4 && queries > 64 ? AttentionCase.Numbers(1, 0.2f, 2) : null,
                }.Check(Device, default(PlainScore));
            }
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
    public void A_sinks_gradient_is_of_every_query_whichever_keys_it_sees()
    {
        // Block by block of the widest vectors: all keys, the last ones alone, none.
        const int queries = 150, keys = 600, block = 64;
        Grid<double> mask = AttentionCase.Numbers(4, 1, 1, 1, queries, keys);
        for (int i = 0; i < queries; i++)
        {
            for (int j = 0; j < keys; j++)
                mask.Data[i * keys + j] = i < block || i < 2 * block && j >= keys / 2 ? 1 : 0;
        }
        foreach (int heads in (int[])[1, 2])
        {
            foreach (bool arrives in (bool[])[false, true])
            {
                new AttentionCase
                {
                    Batch = 2, Heads = heads, KeyHeads = 1, Queries = queries, Keys = keys, ValueSize = 70, Mask = mask, Sinks = AttentionCase.Numbers(5, 1, heads), HasLogSumExpUpstream = arrives, KeyLengths = [keys, keys - 1],
                }.Check(Device, default(PlainScore));
            }
        }
    }

    [Fact]
    public void What_arrives_at_the_log_sum_exps_alone_gives_the_bits_that_it_gives_beside_zeros_at_the_output()
    {
        const int batch = 2, heads = 4, keyHeads = 2, queries = 37, keys = 70, size = 5, valueSize = 9;
        float[] query = Seeded.Normal(batch * heads * queries * size, 1), key = Seeded.Normal(batch * keyHeads * keys * size, 2), value = Seeded.Normal(batch * keyHeads * keys * valueSize, 3);
        float[] slopes = Alibi.Slopes(heads), output = new float[batch * heads * queries * valueSize], logSumExp = new float[batch * heads * queries], arriving = Seeded.Normal(logSumExp.Length, 4);
        using var workspace = new Workspace(Device);
        float[][] alone = Backward(default), beside = Backward(TensorView.Of(new float[output.Length], batch, heads, queries, valueSize));
        Assert.Equal(beside, alone);
        Assert.All(alone[..2], gradient => Assert.Contains(gradient, x => x != 0));
        Assert.All(alone[2], x => Assert.Equal(0, x)); // values play no part

        float[][] Backward(TensorView upstream)
        {
            float[][] gradients = [new float[query.Length], new float[heads], new float[value.Length]];
            var problem = new AttentionProblem
            {
                Query = TensorView.Of(query, batch, heads, queries, size), Key = TensorView.Of(key, batch, keyHeads, keys, size), Value = TensorView.Of(value, batch, keyHeads, keys, valueSize),
                Slopes = TensorView.Of(slopes), Causal = true, Softcap = 8,
            };
            TensorView o = TensorView.Of(output, batch, heads, queries, valueSize), l = TensorView.Of(logSumExp, batch, heads, queries);
            TransformerKernels.Attention.Forward(Device, problem, o, l, workspace);
            TransformerKernels.Attention.Backward(Device, problem, new() { Output = o, LogSumExp = l }, new() { Output = upstream, LogSumExp = TensorView.Of(arriving, batch, heads, queries) },
                new() { Query = TensorView.Of(gradients[0], batch, heads, queries, size), Slopes = TensorView.Of(gradients[1]), Value = TensorView.Of(gradients[2], batch, keyHeads, keys, valueSize) }, workspace);
            return gradients;
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
    [MemberData(nameof(Sharings))]
    public void A_boolean_mask_shared_along_any_axes_agrees_with_the_definition(bool batch, bool head, bool query, bool key) =>
        CheckMask(batch, head, query, key, [(3, 4, false), (20, 30, true)]);

    [Theory]
    [MemberData(nameof(Sharings))]
    [Trait("Grid", "Full")]
    public void A_boolean_mask_of_whole_tiles_shared_along_any_axes_agrees_with_the_definition(bool batch, bool head, bool query, bool key) =>
        CheckMask(batch, head, query, key, [(67, 133, true), (70, 66, false)]);

    private static void CheckMask(bool batch, bool head, bool query, bool key, (int, int, bool)[] sizes)
    {
        foreach ((int queries, int keys, bool causal) in sizes)
        {
            foreach ((float share, bool full) in ((float, bool)[])[(0.5f, false), (0.5f, true), (0.03f, true), (0.97f, false)])
            {
                new AttentionCase
                {
                    Batch = 2, Heads = 4, KeyHeads = 2, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = causal, HasLogSumExpUpstream = true,
                    Mask = RandomMask(share, batch ? 1 : 2, head ? 1 : 4, query ? 1 : queries, key ? 1 : keys),
                    DenseBias = full ? AttentionCase.Numbers(4, 1, 1, 4, queries, keys) : null, Slopes = full ? AttentionCase.Numbers(1, 0.2f, 4) : null,
                    Sinks = full && causal ? AttentionCase.Numbers(5, 1, 4) : null, ColumnBias = full ? AttentionCase.Numbers(6, 1, 2, 1, keys) : null,
                }.Check(Device, default(PlainScore));
            }
        }
    }

    // So large a share of the pairs is visible; in long rows whole tiles are all visible or all hidden.
    private static Grid<double> RandomMask(float share, params int[] shape)
    {
        Grid<double> mask = AttentionCase.Numbers(9, 1, shape);
        var random = new Random(1);
        for (int i = 0; i < mask.Data.Length; i++)
            mask.Data[i] = random.NextSingle() < share ? 1 : 0;
        for (int at = 0; shape[3] > 128 && at < mask.Data.Length; at += shape[3])
        {
            Array.Fill(mask.Data, 1, at, 64);
            Array.Fill(mask.Data, 0, at + 64, 64);
        }
        return mask;
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    [InlineData(float.MaxValue)]
    public void What_a_boolean_mask_hides_contributes_nothing_whatever_it_holds(float poison)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(5, 9), (70, 140)])
        {
            // Hidden are a key and a value of some heads, and pairs whose bias is poisoned.
            Grid<double> mask = Grid.Zeros<double>(2, 1, queries, keys), bias = AttentionCase.Numbers(4, 1, 2, 2, queries, keys), captured = AttentionCase.Numbers(2, 1, 1, 2, queries, keys);
            for (int i = 0; i < queries; i++)
            {
                for (int b = 0; b < 2; b++)
                {
                    for (int j = 0; j < keys; j++)
                        mask[b, 0, i, j] = j == 2 || j == keys - 1 || (i + j) % 5 == 0 ? 0 : 1;
                    bias[b, 1, i, (5 - i % 5) % 5] = captured[0, 1, i, (5 - i % 5) % 5] = poison;
                }
            }
            new AttentionCase
            {
                Batch = 2, Queries = queries, Keys = keys, Mask = mask, DenseBias = bias, HasLogSumExpUpstream = true,
                Prepare = (_, k, v) => { k[0, 0, 2, 0] = poison; v[1, 1, keys - 1, 1] = poison; },
            }.Check(Device, default(PlainScore));
            new AttentionCase
            {
                Batch = 2, Queries = queries, Keys = keys, Mask = mask, Captured = [new(AttentionCase.Numbers(1, 1, 2), CapturedBy.Head), new(captured, CapturedBy.Pair)],
                Prepare = (_, k, v) => { k[0, 0, 2, 0] = poison; v[1, 1, keys - 1, 1] = poison; },
            }.Check(Device, new Gained<Temperature>(new Temperature(0.25f, 200)), new GainedTemperatureFormula(0.25f, 200));
        }
    }

    // Other libraries pad so: the lowest number of a type, here on the first key. Causality leaves the first query nothing else.
    [Theory]
    [InlineData(-65504f)]
    [InlineData(-1e29f)]
    [InlineData(-1e31f)]
    [InlineData(float.MinValue)]
    public void A_query_that_sees_padding_alone_has_the_definitions_gradients(float padding)
    {
        foreach (int length in (int[])[9, 70, 140])
        {
            Grid<double> bias = Grid.Zeros<double>(1, 1, length, length);
            for (int i = 0; i < length; i++)
                bias[0, 0, i, 0] = padding;
            new AttentionCase { Queries = length, Keys = length, Causal = true, DenseBias = bias, HasLogSumExpUpstream = true }.Check(Device, default(PlainScore));
            new AttentionCase { Queries = length, Keys = length, Causal = true, DenseBias = bias }.Check(Device, new Temperature(0.25f, 200), new TemperatureFormula(0.25f, 200));
        }
    }

    // Padding on the left: the first queries see several keys, all of them padding. Beside numbers so low the logarithm of how many they are is nothing, beside numbers so high too.
    [Theory]
    [InlineData(9, 4)]
    [InlineData(20, 17)]
    public void A_query_that_sees_several_keys_of_padding_alone_has_the_definitions_gradients(int length, int padded) => CheckPadding(length, padded, [-1e9f, -1e29f, float.MinValue, 1e29f]);

    [Theory]
    [InlineData(70, 37)]
    [InlineData(140, 100)]
    [InlineData(140, 140)]
    [Trait("Grid", "Full")]
    public void A_query_that_sees_tiles_of_padding_alone_has_the_definitions_gradients(int length, int padded) => CheckPadding(length, padded, length < 100 ? [-1e9f, -1e29f, float.MinValue, 1e29f] : [-1e29f]);

    private static void CheckPadding(int length, int padded, float[] paddings)
    {
        foreach (float padding in paddings)
        {
            Grid<double> dense = Grid.Zeros<double>(1, 1, length, length), column = Grid.Zeros<double>(1, 1, length), sinks = Grid.Of((ReadOnlySpan<double>)[padding, 1], 2);
            for (int i = 0; i < length; i++)
                dense.Data.AsSpan(i * length, padded).Fill(padding);
            column.Data.AsSpan(0, padded).Fill(padding);
            foreach (bool keeps in (bool[])[false, true])
            {
                AttentionCase Padded(Grid<double>? sinks = null, float? softcap = null, params CapturedValues[] captured) =>
                    new() { Queries = length, Keys = length, Causal = true, DenseBias = dense, HasLogSumExpUpstream = true, KeepsRemainder = keeps, Sinks = sinks, Softcap = softcap, Captured = captured };
                Padded().Check(Device, default(PlainScore));
                Padded(sinks).Check(Device, default(PlainScore));
                Padded(softcap: 2).Check(Device, default(PlainScore));
                Padded().Check(Device, new Temperature(0.25f, 200), new TemperatureFormula(0.25f, 200));
                Padded(sinks, 2).Check(Device, new Many<Temperature>(new(0.25f, 200)), new TemperatureFormula(0.25f, 200));
                Padded(null, null, new CapturedValues(AttentionCase.Numbers(1, 0.3f, 2), CapturedBy.Head)).Check(Device, new Temperature(0.25f, 200), new TemperatureFormula(0.25f, 200));
                new AttentionCase { Heads = 4, KeyHeads = 1, Queries = length, Keys = length, Causal = true, ColumnBias = column, HeadSize = 20, ValueSize = 9, KeepsRemainder = keeps }.Check(Device, default(PlainScore));
            }
        }
    }

    [Fact]
    public void A_query_whose_keys_the_mask_hides_sees_none()
    {
        Grid<double> mask = Grid.Zeros<double>(1, 1, 7, 1);
        mask.Data.AsSpan()[3..].Fill(1);
        AttentionCase.Results results = new AttentionCase { Queries = 7, Keys = 130, Mask = mask, HasLogSumExpUpstream = true }.Run(Device, default(PlainScore));
        for (int i = 0; i < 7; i++)
            Assert.Equal(i < 3, results.LogSumExp[i] == float.NegativeInfinity);
        Assert.All(results.Output[..12], o => Assert.Equal(0, o));
        Assert.All(results.Query[..12], g => Assert.Equal(0, g));
        mask.Data.AsSpan().Clear();
        results = new AttentionCase { Queries = 7, Keys = 130, Mask = mask, DenseBias = AttentionCase.Numbers(1, 1, 1, 2, 7, 130), HasLogSumExpUpstream = true }.Run(Device, default(PlainScore));
        Assert.All(results.LogSumExp, l => Assert.Equal(float.NegativeInfinity, l));
        foreach (float[] zeros in (float[][])[results.Output, results.Query, results.Key, results.Value, results.DenseBias])
            Assert.All(zeros, x => Assert.Equal(0, x));
    }

    [Fact]
    public void A_boolean_mask_has_any_strides_and_any_byte_but_0_is_true()
    {
        const int queries = 70, keys = 66;
        float[] q = Seeded.Normal(2 * queries * 4, 2), k = Seeded.Normal(2 * keys * 4, 3);
        using var workspace = new Workspace(Device);
        var random = new Random(2);
        var bytes = new byte[3 * queries * keys]; // [key, query, head] of three heads
        for (int n = 0; n < bytes.Length; n++)
            bytes[n] = (byte)(random.Next(3) * 85);
        Span<bool> visible = System.Runtime.InteropServices.MemoryMarshal.Cast<byte, bool>(bytes.AsSpan());
        var packed = new bool[2 * queries * keys];
        var transposed = new bool[2 * queries * keys];
        for (int h = 0; h < 2; h++)
        {
            for (int i = 0; i < queries; i++)
            {
                for (int j = 0; j < keys; j++)
                    packed[(h * queries + i) * keys + j] = transposed[(h * keys + j) * queries + i] = bytes[(j * queries + i) * 3 + h + 1] != 0;
            }
        }
        float[] Run(TensorView mask)
        {
            float[] o = new float[q.Length];
            var problem = new AttentionProblem { Query = TensorView.Of(q, 1, 2, queries, 4), Key = TensorView.Of(k, 1, 2, keys, 4), Value = TensorView.Of(k, 1, 2, keys, 4), Mask = mask };
            TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(o, 1, 2, queries, 4), default, workspace);
            return o;
        }
        float[] expected = Run(TensorView.Of(packed, 1, 2, queries, keys));
        Assert.Equal(expected, Run(TensorView.Of(transposed, 1, 2, keys, queries).Permute(0, 1, 3, 2)));
        Assert.Equal(expected, Run(TensorView.Of(visible, 1, keys, queries, 3).Slice(3, 1, 2).Permute(0, 3, 2, 1)));
    }

    [Fact]
    public void A_large_gradient_of_a_dense_bias_is_written_everywhere_and_is_what_is_added_to_ones()
    {
        // Large enough to be written past the caches; rows begin at all places of a line.
        foreach ((int queries, int keys, bool causal) in ((int, int, bool)[])[(131, 4111, false), (727, 731, true)])
        {
            var problem = new AttentionCase
            {
                Batch = 2, Heads = 1, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 2, ValueSize = 3, Causal = causal, KeyLengths = [keys, keys * 2 / 3],
                DenseBias = AttentionCase.Numbers(4, 1, 2, 1, queries, keys), Mask = RandomMask(0.03f, 1, 1, queries, keys), Softcap = causal ? 5 : null,
            };
            float[] fresh = problem.Run(Device, default(PlainScore)).DenseBias, added = problem.Run(Device, default(PlainScore), accumulate: true).DenseBias;
            Assert.Equal(fresh.Select(g => 1 + g), added);
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
