using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class AttentionTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    // Head sizes and lengths around the edges of vectors, register tiles, blocks and tiles.
    private static readonly int[] HeadSizes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 20, 22, 24, 25, 31, 33, 40, 63, 64, 65, 80, 127, 128, 130];

    private static readonly (int Queries, int Keys)[] Lengths =
        [(1, 1), (1, 7), (7, 1), (3, 5), (15, 17), (16, 16), (31, 33), (63, 65), (64, 64), (65, 63), (66, 130), (129, 70), (2, 300)];

    [Fact]
    public void Every_head_size_agrees_with_the_definition()
    {
        foreach (int size in HeadSizes)
        {
            foreach (bool causal in (bool[])[false, true])
                AttentionCase.Of(1, 2, 1, 19, 37, size, Math.Max(1, (size * 3) % 71), causal).Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Every_length_agrees_with_the_definition()
    {
        foreach ((int queries, int keys) in Lengths)
        {
            foreach (bool causal in (bool[])[false, true])
            {
                AttentionCase.Of(2, 4, 2, queries, keys, 8, 12, causal).Check(Device, default(PlainScore));
                new AttentionCase
                {
                    Heads = 3, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 16, ValueSize = 5, Causal = causal, HasLogSumExpUpstream = true, Gap = 1, Order = [0, 2, 1, 3],
                    Slopes = AttentionCase.Numbers(7, 0.3f, 3), DistanceBias = AttentionCase.Numbers(8, 1, 3, queries + keys - 1),
                }.Check(Device, default(PlainScore));
            }
        }
    }

    [Fact]
    [Trait("Grid", "Full")]
    public void Long_sequences_of_several_chunks_agree_with_the_definition()
    {
        foreach ((int batch, int queries, int keys, bool causal) in ((int, int, int, bool)[])[(1, 100, 700, true), (2, 300, 1030, false), (1, 515, 515, true)])
        {
            new AttentionCase
            {
                Batch = batch, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 24, ValueSize = 24, Causal = causal, HasLogSumExpUpstream = true,
                DistanceBias = AttentionCase.Numbers(8, 1, 1, queries + keys - 1),
            }.Check(Device, default(PlainScore));
            new AttentionCase
            {
                Batch = batch, Heads = 2, KeyHeads = 2, Queries = queries, Keys = keys, HeadSize = 9, ValueSize = 7, Causal = causal, Slopes = AttentionCase.Numbers(7, 0.1f, batch, 2),
            }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Many_queries_of_few_key_heads_agree_with_the_definition()
    {
        foreach ((int batch, int heads, int keyHeads, int queries, int keys, bool causal) in ((int, int, int, int, int, bool)[])[(2, 4, 1, 300, 40, false), (1, 4, 2, 530, 67, true), (1, 6, 1, 180, 520, true)])
        {
            var problem = new AttentionCase
            {
                Batch = batch, Heads = heads, KeyHeads = keyHeads, Queries = queries, Keys = keys, HeadSize = 24, ValueSize = 5, Causal = causal, HasLogSumExpUpstream = true, Gap = 1, Order = [0, 2, 1, 3],
                DistanceBias = AttentionCase.Numbers(8, 1, heads, queries + keys - 1),
            };
            problem.Check(Device, default(PlainScore));
            AttentionCase.Results fresh = problem.Run(Device, default(PlainScore)), added = problem.Run(Device, default(PlainScore), accumulate: true);
            Assert.All(fresh.Key.Zip(added.Key), pair => Assert.Equal(1 + pair.First, pair.Second, 2e-6 * (1 + Math.Abs(pair.First))));
            Assert.All(fresh.Value.Zip(added.Value), pair => Assert.Equal(1 + pair.First, pair.Second, 2e-6 * (1 + Math.Abs(pair.First))));
        }
    }

    [Fact]
    public void Every_layout_agrees_with_the_definition()
    {
        foreach (int[] order in (int[][])[[0, 1, 2, 3], [0, 2, 1, 3], [2, 0, 1, 3], [0, 1, 3, 2], [3, 1, 2, 0]])
        {
            foreach (int gap in (int[])[0, 1, 3])
                new AttentionCase { Batch = 2, Heads = 2, KeyHeads = 1, Queries = 21, Keys = 34, HeadSize = 10, ValueSize = 6, Causal = true, Order = order, Gap = gap }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void A_long_rule_has_the_bits_of_the_short_one_that_it_equals()
    {
        // In lockstep, vector by vector, in strips, and vector by vector again for want of memory.
        var rule = new Temperature(0.25f, 20);
        var twice = new LongWay<LongWay<Temperature>>(new(rule));
        var often = new LongWay<LongWay<LongWay<LongWay<Temperature>>>>(new(twice));
        var veryOften = new Many<Temperature>(rule);
        Assert.True(RuleLength.OfDerivative(rule, 1).IsShort);
        Assert.True(RuleLength.OfDerivative(twice, 1) is { IsShort: false, IsLong: false } && RuleLength.Of(twice) is { IsShort: false, IsLong: false });
        Assert.True(RuleLength.OfDerivative(often, 1).IsLong && RuleLength.Of(often).IsLong);
        Assert.True(FormulaLength.Of(veryOften) > FormulaLength.Of(often) && RuleLength.Of(veryOften) is { IsShort: false, IsLong: false });
        foreach (AttentionCase problem in (AttentionCase[])
            [
                new() { Queries = 70, Keys = 133, HeadSize = 9, Causal = true, Captured = [new(AttentionCase.Numbers(3, 1, 1, 2, 133), CapturedBy.Key)] },
                new() { Queries = 21, Keys = 34, HeadSize = 5, Captured = [new(AttentionCase.Numbers(4, 1, 2, 11), CapturedBy.HeadAndDistance, 6)] },
            ])
        {
            AttentionCase.Results shorter = problem.Run(Device, rule);
            foreach (AttentionCase.Results longer in (AttentionCase.Results[])[problem.Run(Device, twice), problem.Run(Device, often), problem.Run(Device, veryOften)])
                Assert.All(shorter.All.Zip(longer.All), pair => Assert.Equal(pair.First, pair.Second));
        }
    }

    [Fact]
    public void Long_rules_agree_with_the_definition_whatever_they_capture()
    {
        var rule = new LongWay<LongWay<LongWay<LongWay<FourCaptures>>>>(new(new(new(default))));
        Assert.True(RuleLength.Of(rule).IsLong && RuleLength.OfDerivative(rule, 0b1111).IsLong);
        foreach ((int queries, int keys) in ((int, int)[])[(5, 5), (67, 71)])
        {
            new AttentionCase
            {
                Batch = 2, Queries = queries, Keys = keys, HeadSize = 6, Causal = true,
                Captured =
                [
                    new(AttentionCase.Numbers(30, 0.5f, 2, 2, queries, keys), CapturedBy.Pair), new(AttentionCase.Numbers(31, 0.5f, 2), CapturedBy.Head),
                    new(AttentionCase.Numbers(32, 0.5f, 2, 2, queries), CapturedBy.Query), new(AttentionCase.Numbers(33, 0.5f, 2, 9), CapturedBy.HeadAndDistance, 3),
                ],
            }.Check(Device, rule, new FourCapturesFormula());
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    [InlineData(-4)]
    [InlineData(40)]
    public void Query_offset_moves_the_queries(int offset)
    {
        foreach (bool causal in (bool[])[false, true])
        {
            new AttentionCase
            {
                Queries = 9, Keys = 14, Causal = causal, QueryOffset = offset, Slopes = AttentionCase.Numbers(1, 0.5f, 2), DistanceBias = AttentionCase.Numbers(2, 1, 2, 140), DistanceCentre = 70,
            }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void Scale_is_applied_to_the_scores()
    {
        foreach (float scale in (float[])[0, 1, 0.3f, -2])
            new AttentionCase { Scale = scale }.Check(Device, default(PlainScore));
    }

    [Fact]
    public void Slopes_may_differ_between_sequences_and_have_any_sign()
    {
        new AttentionCase { Batch = 3, Slopes = Grid.Of((ReadOnlySpan<double>)[0.5, -0.25, 0, 1, 2, -0.125], 3, 2), Queries = 20, Keys = 70 }.Check(Device, default(PlainScore));
    }

    [Fact]
    public void A_rule_selects_has_a_captured_table_and_wraps_another()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(1, 7), (15, 17), (63, 65), (66, 130)])
        {
            foreach (bool causal in (bool[])[false, true])
            {
                var rule = new Gained<Temperature>(new Temperature(0.25f, 20));
                new AttentionCase
                {
                    Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 8, ValueSize = 8, Causal = causal, HasLogSumExpUpstream = true,
                    DistanceBias = AttentionCase.Numbers(8, 1, 2, queries + keys - 1),
                    Captured = [new(AttentionCase.Numbers(20, 0.3f, 2), CapturedBy.Head), new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
                }.Check(Device, rule, new GainedTemperatureFormula(0.25f, 20));
            }
        }
    }

    public static TheoryData<CapturedBy, bool> Structures()
    {
        var structures = new TheoryData<CapturedBy, bool>();
        foreach (CapturedBy by in Enum.GetValues<CapturedBy>())
        {
            structures.Add(by, false);
#if GPU // which refuse the gradient of a dense captured tensor shared along an axis: GpuAttentionTests
            if (by == CapturedBy.Pair)
                continue;
#endif
            structures.Add(by, true);
        }
        return structures;
    }

    [Theory]
    [MemberData(nameof(Structures))]
    public void Captured_tensors_of_every_structure_agree_with_the_definition(CapturedBy by, bool shared)
    {
        const int batch = 2, heads = 2;
        foreach ((int queries, int keys) in ((int, int)[])[(5, 5), (20, 30), (67, 71)])
        {
            (int b, int h) = shared ? (1, 1) : (batch, heads);
            CapturedValues Of(CapturedBy structure, int seed) => new(AttentionCase.Numbers(seed, 0.5f, structure switch
            {
                CapturedBy.Head => [h],
                CapturedBy.HeadAndDistance => [h, 9],
                CapturedBy.HeadAndAbsoluteDistance => [h, 4],
                CapturedBy.Query => [b, h, shared ? 1 : queries],
                CapturedBy.Key => [b, h, shared ? 1 : keys],
                _ => [b, h, queries, keys],
            }), structure, 3);
            foreach (bool causal in (bool[])[false, true])
            {
                new AttentionCase
                {
                    Batch = batch, Heads = heads, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 6, Causal = causal,
                    Captured = [Of(by, 30), Of(CapturedBy.Head, 31), Of(CapturedBy.Query, 32), Of(by, 33)],
                }.Check(Device, default(FourCaptures), new FourCapturesFormula());
            }
        }
    }

    [Fact]
    public void One_captured_tensors_gradient_agrees_with_the_definition_whichever_it_is()
    {
        for (int only = 0; only < 4; only++)
        {
            new AttentionCase
            {
                Queries = 67, Keys = 71, WantedCapture = only,
                Captured = [new(AttentionCase.Numbers(30, 0.5f, 2), CapturedBy.Head), new(AttentionCase.Numbers(31, 0.5f, 1, 2, 67), CapturedBy.Query), new(AttentionCase.Numbers(32, 0.5f, 1, 2, 71), CapturedBy.Key), new(AttentionCase.Numbers(33, 0.5f, 2, 9), CapturedBy.HeadAndDistance, 3)],
            }.Check(Device, default(FourCaptures), new FourCapturesFormula());
        }
    }

    [Fact]
    public void Minus_infinity_in_a_bias_hides_the_pair()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(7, 7), (70, 40), (40, 140)])
        {
            Grid<double> bias = AttentionCase.Numbers(8, 1, 2, queries + keys - 1);
            for (int i = 0; i < bias.Data.Length; i += 3)
                bias.Data[i] = double.NegativeInfinity;
            new AttentionCase { Queries = queries, Keys = keys, DistanceBias = bias }.Check(Device, default(PlainScore));
            Array.Fill(bias.Data, double.NegativeInfinity, 0, queries + keys - 1);
            new AttentionCase { Queries = queries, Keys = keys, DistanceBias = bias, HasLogSumExpUpstream = true }.Check(Device, default(PlainScore));
        }
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    [InlineData(float.NegativeInfinity)]
    public void What_is_hidden_contributes_nothing_whatever_it_holds(float poison)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(9, 9), (70, 100)])
        {
            // Causal: the last queries alone see the last key; with offset −2 nobody sees the last two.
            new AttentionCase
            {
                Queries = queries, Keys = keys, Causal = true, QueryOffset = keys - queries - 2,
                Prepare = (_, k, v) => { k[0, 0, keys - 1, 0] = poison; v[0, 1, keys - 2, 1] = poison; },
            }.Check(Device, default(PlainScore));

            // A bias of −∞ for distance 0 and farther keys hides key 0 of query 0 only behind a row that others see: nothing may leak from hidden places.
            Grid<double> bias = AttentionCase.Numbers(8, 1, 2, queries + keys - 1);
            for (int h = 0; h < 2; h++)
            {
                for (int i = keys - 1; i < queries + keys - 1; i++)
                    bias[h, i] = double.NegativeInfinity;
            }
            new AttentionCase { Queries = queries, Keys = keys, DistanceBias = bias, Prepare = (_, k, v) => { k[0, 0, keys - 1, 0] = poison; v[0, 1, keys - 1, 1] = poison; } }.Check(Device, default(PlainScore));
            new AttentionCase
            {
                Queries = queries, Keys = keys, Captured = [new(AttentionCase.Numbers(1, 1, 2), CapturedBy.Head)],
                Prepare = (_, k, v) => { k[0, 0, keys - 1, 0] = poison; v[0, 1, 0, 1] = poison; },
                QueryOffset = keys + 10,
            }.Check(Device, new Temperature(0.5f, 11), new TemperatureFormula(0.5, 11));
        }
    }

    [Fact]
    public void NaN_in_visible_places_surfaces()
    {
        AttentionCase.Results results = new AttentionCase { Queries = 6, Keys = 6, Causal = true, Prepare = (_, _, v) => v[0, 0, 3, 1] = float.NaN }.Run(Device, default(PlainScore));
        for (int i = 0; i < 6; i++)
            Assert.Equal(i >= 3, float.IsNaN(results.Output[i * 4 + 1]));
        Assert.All(results.LogSumExp, l => Assert.True(float.IsFinite(l)));
    }

    [Fact]
    public void A_query_without_keys_gives_zero_and_minus_infinity()
    {
        var problem = new AttentionCase { Queries = 7, Keys = 4, Causal = true, HasLogSumExpUpstream = true };
        problem.Check(Device, default(PlainScore));
        AttentionCase.Results results = problem.Run(Device, default(PlainScore));
        for (int h = 0; h < 2; h++)
        {
            for (int i = 0; i < 3; i++)
            {
                Assert.Equal(float.NegativeInfinity, results.LogSumExp[h * 7 + i]);
                Assert.All(results.Output[((h * 7 + i) * 4)..((h * 7 + i) * 4 + 4)], o => Assert.Equal(0, o));
                Assert.All(results.Query[((h * 7 + i) * 4)..((h * 7 + i) * 4 + 4)], g => Assert.Equal(0, g));
            }
        }
        new AttentionCase { Queries = 3, Keys = 0 }.Check(Device, default(PlainScore));
        new AttentionCase { Queries = 0, Keys = 3 }.Check(Device, default(PlainScore));
        new AttentionCase { Batch = 0 }.Check(Device, default(PlainScore));
    }

    [Fact]
    public void Large_scores_and_biases_keep_the_contract()
    {
        foreach (bool keepsRemainder in (bool[])[false, true])
        {
            foreach (float scale in (float[])[1e-6f, 10, 1000])
            {
                new AttentionCase { Queries = 20, Keys = 30, Scale = scale, KeepsRemainder = keepsRemainder }.Check(Device, default(PlainScore));
                new AttentionCase { Queries = 20, Keys = 30, DistanceBias = AttentionCase.Numbers(3, scale, 2, 49), Causal = true, KeepsRemainder = keepsRemainder }.Check(Device, default(PlainScore));
            }
        }
    }

    // Beside numbers of this size the logarithm of how many keys are alike is nothing, and yet all that says what each of them weighs.
    [Theory]
    [InlineData(5, 9)]
    [InlineData(20, 30)]
    public void Keys_that_are_alike_share_a_query_however_large_their_scores_are(int queries, int keys)
    {
        foreach (float bias in (float[])[-1e9f, -1e29f, float.MinValue, 1e29f])
        {
            Grid<double> first = AttentionCase.Numbers(3, 1, 1, 1, keys), all = Grid.Zeros<double>(1, queries + keys - 1);
            first.Data.AsSpan(0, keys - queries / 2).Fill(bias);
            all.Data.AsSpan().Fill(bias);
            foreach (bool keeps in (bool[])[false, true])
            {
                new AttentionCase { Queries = queries, Keys = keys, Causal = true, DistanceBias = all, HasLogSumExpUpstream = true, KeepsRemainder = keeps }.Check(Device, default(PlainScore));
                new AttentionCase { Queries = queries, Keys = keys, QueryOffset = 0, Causal = true, HeadSize = 5, Captured = [new(first, CapturedBy.Key)], KeepsRemainder = keeps }
                    .Check(Device, new Temperature(0.1f, 100), new TemperatureFormula(0.1f, 100));
            }
        }
    }

    [Fact]
    public void Where_its_rounding_matters_a_rounded_log_sum_exp_gives_the_bits_that_one_with_its_remainder_gives()
    {
        // It does in small problems, and where the log-sum-exp is large.
        foreach ((int queries, int keys, double shift) in ((int, int, double)[])[(5, 9, 0), (70, 300, 20)])
        {
            Grid<double> slopes = AttentionCase.Numbers(1, 0.2f, 2), bias = AttentionCase.Numbers(2, 1, 2, queries + keys - 1);
            for (int i = 0; i < bias.Data.Length; i++)
                bias.Data[i] = (float)(bias.Data[i] + shift);
            AttentionCase Case(bool keepsRemainder) =>
                new() { Queries = queries, Keys = keys, Causal = true, Slopes = slopes, DistanceBias = bias, HasLogSumExpUpstream = true, KeepsRemainder = keepsRemainder };
            Assert.All(Case(false).Run(Device, default(PlainScore)).All.Zip(Case(true).Run(Device, default(PlainScore)).All), pair => Assert.Equal(pair.First, pair.Second));
        }
    }

    [Fact]
    public void Callers_on_several_threads_may_share_a_device()
    {
#if GPU
        GpuUnderTest.Current.NeedsOpenCl(); // the interpreter's skip, thrown on another thread, would be a failure
#endif
        AttentionCase problem = new() { Queries = 40, Keys = 90, Causal = true };
        AttentionCase.Results reference = problem.Run(Device, default(PlainScore));
        Parallel.For(0, 16, _ => Assert.All(reference.All.Zip(problem.Run(Device, default(PlainScore)).All), pair => Assert.Equal(pair.First, pair.Second)));
    }

    [Fact]
    public void Accumulate_adds_to_what_is_there()
    {
        foreach ((int queries, int keys) in ((int, int)[])[(9, 13), (40, 600)])
        {
            foreach (CapturedValues[] captured in (CapturedValues[][])
                [
                    [new(AttentionCase.Numbers(3, 1, 2), CapturedBy.Head), new(AttentionCase.Numbers(4, 1, 2, 2, queries, keys), CapturedBy.Pair), new(AttentionCase.Numbers(5, 1, 2, 2, queries), CapturedBy.Query), new(AttentionCase.Numbers(6, 1, 2, 2, keys), CapturedBy.Key)],
                    [new(AttentionCase.Numbers(3, 1, 2, 11), CapturedBy.HeadAndDistance, 6), new(AttentionCase.Numbers(4, 1, 2, 7), CapturedBy.HeadAndAbsoluteDistance), new(AttentionCase.Numbers(5, 1, 1, 2, 1), CapturedBy.Query), new(AttentionCase.Numbers(6, 1, 2, 1, keys), CapturedBy.Key)],
                ])
            {
                var problem = new AttentionCase
                {
                    Batch = 2, Heads = 2, KeyHeads = 1, Queries = queries, Keys = keys, Causal = true, Slopes = AttentionCase.Numbers(1, 0.2f, 2), DistanceBias = AttentionCase.Numbers(2, 1, 2, queries + keys - 1), Captured = captured,
                };
                AttentionCase.Results fresh = problem.Run(Device, default(FourCaptures)), added = problem.Run(Device, default(FourCaptures), accumulate: true);
                foreach ((float[] a, float[] b) in fresh.All.Zip(added.All).Skip(2))
                {
                    for (int i = 0; i < a.Length; i++)
                        Assert.Equal(1 + a[i], b[i], 2e-6 * (1 + Math.Abs(a[i])));
                }
            }
        }
    }

    [Fact]
    public void A_sequence_is_bitwise_the_same_alone_and_in_a_batch()
    {
        AttentionCase alone = new() { Queries = 70, Keys = 300, HeadSize = 12, ValueSize = 12 };
        AttentionCase.Results one = alone.Run(Device, default(PlainScore));
        // In the batch of two the first sequence's numbers differ, so it is set to those of the lone one.
        AttentionCase.Results two = new AttentionCase
        {
            Batch = 2, Queries = 70, Keys = 300, HeadSize = 12, ValueSize = 12,
            Prepare = (q, k, v) =>
            {
                new Strided([1, 2, 70, 12], [0, 1, 2, 3]).Fill(1).Data.CopyTo(q.Data, q.Data.Length / 2);
                new Strided([1, 2, 300, 12], [0, 1, 2, 3]).Fill(2).Data.CopyTo(k.Data, k.Data.Length / 2);
                new Strided([1, 2, 300, 12], [0, 1, 2, 3]).Fill(3).Data.CopyTo(v.Data, v.Data.Length / 2);
            },
        }.Run(Device, default(PlainScore));
        Assert.Equal(one.Output, two.Output[(two.Output.Length / 2)..]);
        Assert.Equal(one.LogSumExp, two.LogSumExp[(two.LogSumExp.Length / 2)..]);
    }
}
