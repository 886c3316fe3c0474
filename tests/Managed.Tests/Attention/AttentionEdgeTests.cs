using System.Runtime.CompilerServices;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Edges of everything that a score can be made of: whole rows of −∞, biases of ±10⁴, nothing to see, views that repeat, sequences alone and in batches.</summary>
public class AttentionEdgeTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    private const double Hidden = double.NegativeInfinity;

    [Fact]
    public void Every_head_size_from_1_to_130_agrees_with_the_definition()
    {
        for (int size = 1; size <= 130; size++)
            AttentionCase.Of(1, 1, 1, 18, 21, size, 131 - size, causal: size % 2 == 0).Check(Device, default(PlainScore));
    }

    [Fact]
    public void A_head_size_of_512_agrees_with_the_definition() => CheckLarge(512);

    [Theory]
    [InlineData(160)]
    [InlineData(192)]
    [InlineData(255)]
    [InlineData(256)]
    [InlineData(257)]
    [InlineData(320)]
    [InlineData(511)]
    [Trait("Grid", "Full")]
    public void Head_sizes_up_to_512_agree_with_the_definition(int size)
    {
        CheckLarge(size);
        new AttentionCase { Queries = 5, Keys = 67, HeadSize = size / 4, ValueSize = size, Order = [0, 2, 1, 3], Gap = 1, DistanceBias = AttentionCase.Numbers(8, 1, 2, 71) }.Check(Device, default(PlainScore));
    }

    private static void CheckLarge(int size) => AttentionCase.Of(1, 2, 1, 18, 21, size, size / 2 + 1, causal: size % 2 == 0).Check(Device, default(PlainScore));

    // s², or s below 0 a slope less steep.
    private readonly struct Marked(bool squares, char sixteenths) : IScoreRule
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => squares ? score * score : T.SelectLess(score, T.Zero, sixteenths / 16f * score, score);
    }

    [Fact]
    public void A_rule_may_have_fields_that_are_no_numbers_and_need_not_be_public()
    {
        AttentionCase attention = AttentionCase.Of(2, 2, 1, 21, 33, 12, 9, causal: true);
        attention.Check(Device, new Marked(true, default), new SquaredFormula());
        attention.Check(Device, new Marked(false, (char)4), new LeakyFormula(0.25));
    }

    public static TheoryData<string> Biases => ["slopes", "distance", "buckets", "grid", "dense", "row", "column", "sinks"];

    // With so many numbers in the bias, all of the same size.
    private static AttentionCase Of(string bias, int queries, int keys, float size, Action<Grid<double>> change)
    {
        Grid<double> Made(params int[] shape)
        {
            Grid<double> made = AttentionCase.Numbers(5, size, shape);
            change(made);
            return made;
        }
        return new()
        {
            Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, HasLogSumExpUpstream = true, QueryOffset = bias == "grid" ? 0 : null,
            Slopes = bias == "slopes" ? Made(2, 2) : null,
            DistanceBias = bias == "distance" ? Made(2, queries + keys - 1) : null,
            BucketTable = bias == "buckets" ? Made(12, 2) : null, MaximumDistance = 30, IsBidirectional = true,
            CellTable = bias == "grid" ? Made(9 * (2 * ((Math.Max(queries, keys) + 4) / 5) - 1), 2) : null, WindowHeight = 5, WindowWidth = (Math.Max(queries, keys) + 4) / 5,
            DenseBias = bias == "dense" ? Made(2, 1, queries, keys) : null,
            RowBias = bias == "row" ? Made(2, 2, queries) : null,
            ColumnBias = bias == "column" ? Made(2, 2, keys) : null,
            Sinks = bias == "sinks" ? Made(2) : null,
        };
    }

    [Theory]
    [MemberData(nameof(Biases))]
    public void Biases_of_10000_keep_the_contract(string bias)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(5, 9), (66, 130)])
        {
            Of(bias, queries, keys, 1e4f, _ => { }).Check(Device, default(PlainScore));
            Of(bias, queries, keys, 1, numbers => Array.Fill(numbers.Data, -1e4)).Check(Device, default(PlainScore));
        }
    }

    [Theory]
    [InlineData("distance")]
    [InlineData("buckets")]
    [InlineData("grid")]
    [InlineData("dense")]
    [InlineData("row")]
    [InlineData("column")]
    [InlineData("sinks")]
    public void Minus_infinity_hides_some_pairs_whole_rows_or_all(string bias)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(5, 9), (66, 130)])
        {
            Of(bias, queries, keys, 1, numbers => Array.Fill(numbers.Data, Hidden)).Check(Device, default(PlainScore));
            Of(bias, queries, keys, 1, numbers =>
            {
                for (int at = 0; at < numbers.Data.Length; at += 3)
                    numbers.Data[at] = Hidden;
            }).Check(Device, default(PlainScore));
            // Of a dense bias rows 2 and the last, of the others their entries.
            int row = numbers(bias);
            Of(bias, queries, keys, 1, made =>
            {
                Array.Fill(made.Data, Hidden, made.Data.Length - row, row);
                if (made.Data.Length >= 3 * row)
                    Array.Fill(made.Data, Hidden, 2 * row, row);
            }).Check(Device, default(PlainScore));

            int numbers(string bias) => bias == "dense" ? keys : 1;
        }
    }

    [Theory]
    [InlineData(3, 0)]
    [InlineData(0, 3)]
    [InlineData(0, 0)]
    public void Without_keys_or_queries_every_bias_has_gradients_of_zero(int queries, int keys)
    {
        AttentionCase problem = new()
        {
            Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, QueryOffset = 0, Causal = true, HasLogSumExpUpstream = true, Softcap = 5, KeyLengths = [0, keys],
            Slopes = AttentionCase.Numbers(1, 1, 2), DistanceBias = AttentionCase.Numbers(2, 1, 2, 9), DistanceCentre = 4, BucketTable = AttentionCase.Numbers(3, 1, 8, 2), CellTable = AttentionCase.Numbers(4, 1, 15, 2),
            WindowHeight = 2, WindowWidth = 3, DenseBias = AttentionCase.Numbers(5, 1, 2, 1, queries, keys), RowBias = AttentionCase.Numbers(6, 1, 2, 2, queries), ColumnBias = AttentionCase.Numbers(7, 1, 1, 2, keys),
            Sinks = AttentionCase.Numbers(8, 1, 2), Mask = AttentionCase.Numbers(9, 1, 1, 1, queries, keys),
        };
        problem.Check(Device, default(PlainScore));
        AttentionCase.Results results = problem.Run(Device, default(PlainScore));
        foreach (float[] gradient in (float[][])[results.Slopes, results.DistanceBias, results.BucketTable, results.CellTable, results.DenseBias, results.RowBias, results.ColumnBias])
            Assert.All(gradient, g => Assert.Equal(0, g));
    }

    [Fact]
    public void Biases_of_keys_beyond_a_sequences_length_may_be_NaN()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(4, 7), (70, 133)])
        {
            int[] lengths = [keys / 2, 0, keys];
            Grid<double> dense = AttentionCase.Numbers(1, 1, 3, 1, queries, keys), column = AttentionCase.Numbers(2, 1, 3, 2, keys);
            for (int b = 0; b < 3; b++)
            {
                for (int j = lengths[b]; j < keys; j++)
                {
                    column[b, 0, j] = column[b, 1, j] = double.NaN;
                    for (int i = 0; i < queries; i++)
                        dense[b, 0, i, j] = double.NaN;
                }
            }
            foreach (bool causal in (bool[])[false, true])
                new AttentionCase { Batch = 3, Queries = queries, Keys = keys, Causal = causal, KeyLengths = lengths, DenseBias = dense, ColumnBias = column, HasLogSumExpUpstream = true }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Biases_of_pairs_that_causality_hides_may_be_NaN()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(7, 7), (70, 133)])
        {
            Grid<double> dense = AttentionCase.Numbers(1, 1, 1, 2, queries, keys), distance = AttentionCase.Numbers(2, 1, 2, queries + keys - 1);
            for (int h = 0; h < 2; h++)
            {
                for (int d = keys; d < queries + keys - 1; d++)
                    distance[h, d] = double.NaN;
                for (int i = 0; i < queries; i++)
                {
                    for (int j = i + keys - queries + 1; j < keys; j++)
                        dense[0, h, i, j] = double.NaN;
                }
            }
            new AttentionCase { Queries = queries, Keys = keys, Causal = true, DenseBias = dense, HasLogSumExpUpstream = true }.Check(Device, default(PlainScore));
            new AttentionCase { Queries = queries, Keys = keys, Causal = true, DistanceBias = distance, HasLogSumExpUpstream = true }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Views_that_repeat_one_row_have_the_bits_of_copies()
    {
        const int batch = 2, heads = 2, queries = 67, keys = 70, size = 5;
        float[] q = Seeded.Normal(queries * size, 1), k = Seeded.Normal(batch * keys * size, 2), v = Seeded.Normal(batch * heads * size, 3), row = Seeded.Normal(queries, 4), column = Seeded.Normal(keys, 5), dense = Seeded.Normal(keys, 6);
        bool[] mask = [.. Enumerable.Range(0, keys).Select(j => j % 5 != 3)];
        using var workspace = new Workspace(Device);
        Assert.Equal(Run(copied: false), Run(copied: true));

        float[][] Run(bool copied)
        {
            TensorView Of(float[] data, long[] shape, params int[] repeated)
            {
                TensorView view = TensorView.Of(data, [.. shape.Select((length, axis) => repeated.Contains(axis) ? 1 : length)]);
                foreach (int axis in repeated)
                    view = view.Expand(axis, shape[axis]);
                return copied ? TensorView.Of(Packed(view, shape), shape) : view;
            }
            TensorView visible = TensorView.Of(mask, 1, 1, 1, keys);
            var problem = new AttentionProblem
            {
                Query = Of(q, [batch, heads, queries, size], 0, 1), Key = Of(k, [batch, heads, keys, size], 1), Value = Of(v, [batch, heads, keys, size], 2), Causal = true,
                RowBias = Of(row, [batch, heads, queries], 0, 1), ColumnBias = Of(column, [batch, heads, keys], 0, 1), DenseBias = Of(dense, [batch, heads, queries, keys], 0, 1, 2),
                Mask = copied ? TensorView.Of(Enumerable.Range(0, batch * heads * queries).SelectMany(_ => mask).ToArray(), batch, heads, queries, keys)
                    : visible.Expand(0, batch).Expand(1, heads).Expand(2, queries),
            };
            float[] output = new float[batch * heads * queries * size], logSumExp = new float[batch * heads * queries];
            float[][] gradients = [new float[output.Length], new float[batch * heads * keys * size], new float[batch * heads * keys * size], new float[batch * heads * queries], new float[batch * heads * keys], new float[batch * heads * queries * keys]];
            TensorView o = TensorView.Of(output, batch, heads, queries, size), l = TensorView.Of(logSumExp, batch, heads, queries);
            TransformerKernels.Attention.Forward(Device, problem, o, l, workspace);
            TransformerKernels.Attention.Backward(Device, problem, new() { Output = o, LogSumExp = l }, new() { Output = Of(q, [batch, heads, queries, size], 0, 1), LogSumExp = Of(row, [batch, heads, queries], 0, 1) }, new()
            {
                Query = TensorView.Of(gradients[0], batch, heads, queries, size), Key = TensorView.Of(gradients[1], batch, heads, keys, size), Value = TensorView.Of(gradients[2], batch, heads, keys, size),
                RowBias = TensorView.Of(gradients[3], batch, heads, queries), ColumnBias = TensorView.Of(gradients[4], batch, heads, keys), DenseBias = TensorView.Of(gradients[5], batch, heads, queries, keys),
            }, workspace);
            return [output, logSumExp, .. gradients];
        }
    }

    private static unsafe float[] Packed(TensorView view, long[] shape)
    {
        var packed = new float[view.ElementCount];
        fixed (byte* data = view)
        {
            for (int n = 0; n < packed.Length; n++)
            {
                long at = 0, rest = n;
                for (int axis = shape.Length - 1; axis >= 0; rest /= shape[axis--])
                    at += rest % shape[axis] * view.Stride(axis);
                packed[n] = ((float*)data)[at];
            }
        }
        return packed;
    }

    [Fact]
    public void A_sequence_and_its_own_gradients_are_bitwise_the_same_alone_and_anywhere_in_a_batch()
    {
        const int batch = 3, heads = 4, keyHeads = 2, queries = 70, keys = 530, size = 12, valueSize = 9;
        int[] offsets = [keys - queries, 0, 100], lengths = [keys, 300, 77];
        bool[] mask = [.. Enumerable.Range(0, batch * queries * keys).Select(n => n * 7 % 11 != 0 || n % keys < 64)];
        float[] q = Seeded.Normal(batch * heads * queries * size, 1), k = Seeded.Normal(batch * keyHeads * keys * size, 2), v = Seeded.Normal(batch * keyHeads * keys * valueSize, 3);
        float[] upstream = Seeded.Normal(batch * heads * queries * valueSize, 4), ofSums = Seeded.Normal(batch * heads * queries, 5), slopes = Seeded.Normal(batch * heads, 6, 0.1f);
        float[] dense = Seeded.Normal(batch * queries * keys, 7), row = Seeded.Normal(batch * heads * queries, 8), column = Seeded.Normal(batch * heads * keys, 9);
        float[] distance = Seeded.Normal(heads * 1400, 10), table = Seeded.Normal(16 * heads, 11), cells = Seeded.Normal(39 * 69 * heads, 12), sinks = Seeded.Normal(heads, 13);
        using var workspace = new Workspace(Device);
        float[][] whole = Run(0, batch);
        for (int sequence = 0; sequence < batch; sequence++)
        {
            float[][] alone = Run(sequence, 1);
            for (int tensor = 0; tensor < whole.Length; tensor++)
            {
                int each = whole[tensor].Length / batch;
                Assert.Equal(whole[tensor][(sequence * each)..((sequence + 1) * each)], alone[tensor]);
            }
        }

        // Outputs, and the gradients of what a sequence has for itself.
        float[][] Run(int first, int count)
        {
            TensorView Part(TensorView view) => view.Slice(0, first, count);
            var problem = new AttentionProblem
            {
                Query = Part(TensorView.Of(q, batch, heads, queries, size)), Key = Part(TensorView.Of(k, batch, keyHeads, keys, size)), Value = Part(TensorView.Of(v, batch, keyHeads, keys, valueSize)),
                Causal = true, Softcap = 20, QueryOffsets = Part(TensorView.Of(offsets, batch)), KeyLengths = Part(TensorView.Of(lengths, batch)), Mask = Part(TensorView.Of(mask, batch, 1, queries, keys)),
                Slopes = Part(TensorView.Of(slopes, batch, heads)), DistanceBias = TensorView.Of(distance, heads, 1400), DistanceCentre = 700, BucketedBias = new(TensorView.Of(table, 16, heads), 128, bidirectional: true),
                GridBias = new(TensorView.Of(cells, 39 * 69, heads), 20, 35), DenseBias = Part(TensorView.Of(dense, batch, 1, queries, keys)), RowBias = Part(TensorView.Of(row, batch, heads, queries)),
                ColumnBias = Part(TensorView.Of(column, batch, heads, keys)), Sinks = TensorView.Of(sinks, heads),
            };
            float[][] results = [new float[count * heads * queries * valueSize], new float[count * heads * queries], new float[count * heads * queries * size], new float[count * keyHeads * keys * size],
                new float[count * keyHeads * keys * valueSize], new float[count * heads], new float[count * queries * keys], new float[count * heads * queries], new float[count * heads * keys]];
            TensorView o = TensorView.Of(results[0], count, heads, queries, valueSize), l = TensorView.Of(results[1], count, heads, queries);
            TransformerKernels.Attention.Forward(Device, problem, o, l, workspace);
            TransformerKernels.Attention.Backward(Device, problem, new() { Output = o, LogSumExp = l },
                new() { Output = Part(TensorView.Of(upstream, batch, heads, queries, valueSize)), LogSumExp = Part(TensorView.Of(ofSums, batch, heads, queries)) }, new()
                {
                    Query = TensorView.Of(results[2], count, heads, queries, size), Key = TensorView.Of(results[3], count, keyHeads, keys, size), Value = TensorView.Of(results[4], count, keyHeads, keys, valueSize),
                    Slopes = TensorView.Of(results[5], count, heads), DenseBias = TensorView.Of(results[6], count, 1, queries, keys), RowBias = TensorView.Of(results[7], count, heads, queries),
                    ColumnBias = TensorView.Of(results[8], count, heads, keys),
                }, workspace);
            return results;
        }
    }

    [Fact]
    public unsafe void A_workspace_of_any_size_that_held_anything_gives_the_same_bits()
    {
        AttentionCase problem = new()
        {
            Batch = 2, Heads = 4, KeyHeads = 2, Queries = 40, Keys = 530, HeadSize = 6, Causal = true, HasLogSumExpUpstream = true, DistanceBias = AttentionCase.Numbers(1, 1, 4, 569),
            BucketTable = AttentionCase.Numbers(2, 1, 8, 4), MaximumDistance = 60, DenseBias = AttentionCase.Numbers(3, 1, 1, 1, 40, 530), Sinks = AttentionCase.Numbers(4, 1, 4),
        };
        AttentionCase.Results expected = problem.Run(Device, default(PlainScore));
        foreach (long bytes in (long[])[0, 10_000_003])
        {
            using var workspace = new Workspace(Device);
            workspace.Reserve(bytes);
            for (int run = 0; run < 2; run++)
            {
                if (workspace.Bytes > 0)
                {
                    using Workspace.Lease lease = workspace.Rent(workspace.Bytes);
                    fixed (byte* memory = lease.View)
                        new Span<byte>(memory, (int)workspace.Bytes).Fill(0xff);
                }
                Assert.All(expected.All.Zip(problem.Run(Device, default(PlainScore), workspace: workspace).All), pair => Assert.Equal(pair.First, pair.Second));
            }
        }
    }

    [Fact]
    public void Sums_over_many_keys_are_nearer_than_those_of_the_naive_loops() =>
        new AttentionCase { Queries = 64, Keys = 1024, RowBias = AttentionCase.Numbers(2, 1, 1, 2, 64), Share = 0.35 }.Check(Device, default(PlainScore));

    // There dP − D is little more than the rounding of the output. A bias of a query changes nothing, so its gradient is all error.
    [Fact]
    public void Where_one_key_has_nearly_all_the_weight_gradients_are_nearer_than_those_of_the_naive_loops()
    {
        foreach (int keys in (int[])[12, 64])
        {
            var problem = new AttentionCase { Queries = 40, Keys = keys, HeadSize = 8, ValueSize = 8, Scale = 2, RowBias = AttentionCase.Numbers(2, 1, 1, 2, 40) };
            AttentionCase.Results ours = problem.Run(Device, default(PlainScore));
            var inputs = new AttentionInputs { Query = ours.Inputs[0], Key = ours.Inputs[1], Value = ours.Inputs[2], Scale = problem.Scale, RowBias = problem.RowBias };
            Contract.Check(ours.RowBias, AttentionOracle.Backward<double>(inputs, ours.Inputs[3]).RowBias!.Data, AttentionOracle.Backward<float>(inputs, ours.Inputs[3]).RowBias!.Data, 0.5, problem.Text);
        }
    }
}
