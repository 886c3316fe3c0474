using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What is promised of attention on CPU devices alone.</summary>
public class AttentionThreadsTests
{
    [Fact]
    public void A_call_allocates_nothing_once_the_workspace_is_large_enough()
    {
        float[] q = Seeded.Normal(2 * 70 * 8, 1), o = new float[q.Length], l = new float[2 * 70], g = new float[q.Length];
        using ComputeDevice device = ComputeDevice.OpenCpu(1);
        using var workspace = new Workspace(device);
        long before = 0;
        for (int run = 0; run < 3; run++)
        {
            before = GC.GetAllocatedBytesForCurrentThread();
            TensorView t = TensorView.Of(q, 1, 2, 70, 8), output = TensorView.Of(o, 1, 2, 70, 8), sums = TensorView.Of(l, 1, 2, 70);
            var problem = new AttentionProblem { Query = t, Key = t, Value = t, Causal = true };
            TransformerKernels.Attention.Forward(device, problem, output, sums, workspace);
            TransformerKernels.Attention.Backward(device, problem, new AttentionSaved { Output = output, LogSumExp = sums }, new AttentionUpstream { Output = t },
                new AttentionGradients { Query = TensorView.Of(g, 1, 2, 70, 8) }, workspace);
        }
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    [Fact]
    public void Results_are_bitwise_equal_for_1_2_3_and_7_threads_and_100_runs()
    {
        AttentionCase[] problems =
        [
            new()
            {
                Batch = 2, Heads = 4, KeyHeads = 2, Queries = 100, Keys = 530, HeadSize = 20, ValueSize = 12, Causal = true, HasLogSumExpUpstream = true,
                Slopes = AttentionCase.Numbers(1, 0.2f, 4), DistanceBias = AttentionCase.Numbers(2, 1, 4, 629), Captured = [new(AttentionCase.Numbers(3, 1, 4), CapturedBy.Head)],
            },
            new()
            {
                Batch = 2, Heads = 4, KeyHeads = 1, Queries = 260, Keys = 530, HeadSize = 20, ValueSize = 12, Causal = true, HasLogSumExpUpstream = true,
                Sinks = AttentionCase.Numbers(1, 1, 4), ColumnBias = AttentionCase.Numbers(2, 1, 2, 4, 530), Captured = [new(AttentionCase.Numbers(3, 1, 4), CapturedBy.Head)],
            },
        ];
        var rule = new Temperature(0.1f, 400);
        foreach (AttentionCase problem in problems)
        {
            AttentionCase.Results reference = problem.Run(ComputeDevice.Cpu, rule);
            foreach (int threads in (int[])[1, 2, 3, 7])
            {
                using ComputeDevice device = ComputeDevice.OpenCpu(threads);
                for (int run = 0; run < 25; run++)
                    Assert.All(reference.All.Zip(problem.Run(device, rule).All), pair => Assert.Equal(pair.First, pair.Second));
            }
        }
    }

    // Rows of RowBias lift the log-sum-exps of the last queries.
    private static AttentionCase Lifted(int batch, double by, bool keepsRemainder = false)
    {
        const int queries = 2 * Lift, heads = 2;
        Grid<double> bias = AttentionCase.Numbers(7, 0.1f, batch, heads, queries);
        for (int i = 0; i < bias.Data.Length; i++)
            bias.Data[i] = (float)(bias.Data[i] + (i % queries < Lift ? 0 : by));
        return new()
        {
            Batch = batch, Heads = heads, KeyHeads = 1, Queries = queries, Keys = 300, HeadSize = 12, ValueSize = 7, RowBias = bias, Sinks = AttentionCase.Numbers(8, 1, heads), HasLogSumExpUpstream = true,
            KeepsRemainder = keepsRemainder,
        };
    }

    // The first query that is lifted: a whole number of blocks on every instruction set.
    private const int Lift = 64;

    [Theory]
    [InlineData(30)]
    [InlineData(3000)]
    [InlineData(-3000)]
    public void Of_a_rounded_log_sum_exp_blocks_of_large_ones_alone_are_summed_again(double by)
    {
        Lifted(1, by).Check(ComputeDevice.Cpu, default(PlainScore));
        AttentionCase.Results rounded = Lifted(1, by).Run(ComputeDevice.Cpu, default(PlainScore)), exact = Lifted(1, by, keepsRemainder: true).Run(ComputeDevice.Cpu, default(PlainScore));
        const int half = Lift * 12;
        for (int start = 0; start < rounded.Query.Length; start += 2 * half)
        {
            Assert.NotEqual(exact.Query[start..(start + half)], rounded.Query[start..(start + half)]);
            Assert.Equal(exact.Query[(start + half)..(start + 2 * half)], rounded.Query[(start + half)..(start + 2 * half)]);
        }
    }

    // Log-sum-exps near by + 6. Causal queries see 384 keys and more.
    private static AttentionCase Large(int queries, int keys, double by, int hidden, bool causal, bool keepsRemainder)
    {
        Grid<double> bias = AttentionCase.Numbers(7, 0.1f, 1, 1, queries), mask = Grid.Zeros<double>(1, 1, 1, keys);
        for (int i = 0; i < bias.Data.Length; i++)
            bias.Data[i] = (float)(bias.Data[i] + by);
        for (int j = hidden; j < keys; j++)
            mask.Data[j] = 1;
        return new()
        {
            Heads = 1, KeyHeads = 1, Queries = queries, Keys = keys, HeadSize = 12, ValueSize = 7, RowBias = bias, Causal = causal, QueryOffset = causal ? 383 : null,
            Mask = hidden > 0 ? mask : null, HasLogSumExpUpstream = true, KeepsRemainder = keepsRemainder,
        };
    }

    // The first queries, so many, get the bits that they get with the remainder.
    [Theory]
    [InlineData(256, 512, 4, 0, false, 0)]
    [InlineData(256, 512, -18, 0, false, 0)]
    [InlineData(256, 516, 4, 4, false, 0)]
    [InlineData(260, 650, 4, 0, true, 128)]
    [InlineData(256, 512, 12, 0, false, 256)]
    [InlineData(256, 512, -24, 0, false, 256)]
    [InlineData(256, 511, 4, 0, false, 256)]
    [InlineData(255, 512, 4, 0, false, 255)]
    [InlineData(256, 516, 4, 5, false, 256)]
    public void Of_many_keys_that_many_queries_see_larger_log_sum_exps_stay_rounded(int queries, int keys, double by, int hidden, bool causal, int summedAgain)
    {
        AttentionCase problem = Large(queries, keys, by, hidden, causal, keepsRemainder: false);
        problem.Check(ComputeDevice.Cpu, default(PlainScore));
        float[] rounded = problem.Run(ComputeDevice.Cpu, default(PlainScore)).Query, exact = Large(queries, keys, by, hidden, causal, keepsRemainder: true).Run(ComputeDevice.Cpu, default(PlainScore)).Query;
        int split = summedAgain * problem.HeadSize;
        Assert.Equal(exact[..split], rounded[..split]);
        if (split < exact.Length)
            Assert.NotEqual(exact[split..], rounded[split..]);
    }

    [Fact]
    public void A_sequence_of_both_kinds_of_blocks_is_bitwise_the_same_alone_and_in_a_batch_for_1_2_3_and_7_threads()
    {
        AttentionCase.Results alone = Lifted(1, 30).Run(ComputeDevice.Cpu, default(PlainScore)), batch = Lifted(2, 30).Run(ComputeDevice.Cpu, default(PlainScore));
        foreach ((float[] one, float[] two) in ((float[], float[])[])[(alone.Query, batch.Query), (alone.Key, batch.Key), (alone.Value, batch.Value), (alone.RowBias, batch.RowBias)])
            Assert.Equal(one, two[..one.Length]); // the first sequence's numbers are those of the lone one
        foreach (int threads in (int[])[1, 2, 3, 7])
        {
            using ComputeDevice device = ComputeDevice.OpenCpu(threads);
            Assert.All(batch.All.Zip(Lifted(2, 30).Run(device, default(PlainScore)).All), pair => Assert.Equal(pair.First, pair.Second));
        }
    }

    // Enough blocks of queries for two sequences and two heads to take turns at the tiles of a bias that they share; one sequence and head has a bias to itself.
    [Theory]
    [InlineData(1, false)]
    [InlineData(1, true)]
    [InlineData(4, false)]
    [InlineData(4, true)]
    public void Sequences_and_heads_that_share_a_dense_bias_are_bitwise_the_same_alone(int biasHeads, bool addsMore)
    {
        const int batch = 2, heads = 4, keyHeads = 2, queries = 530, keys = 200, size = 3, valueSize = 5;
        int[] offsets = [-300, 0], lengths = [77, keys];
        bool[] mask = [.. Enumerable.Range(0, batch * queries * keys).Select(n => n * 7 % 11 != 0 || n % keys < 64)];
        float[] q = Seeded.Normal(batch * heads * queries * size, 1), k = Seeded.Normal(batch * keyHeads * keys * size, 2), v = Seeded.Normal(batch * keyHeads * keys * valueSize, 3);
        float[] dense = Seeded.Normal(biasHeads * queries * keys, 4), row = Seeded.Normal(batch * heads * queries, 5);
        const int hidden = 70, notFinite = 1; // a key that the bias hides from every other query; one sequence's value of it is NaN
        for (int i = 0; i < biasHeads * queries; i += 2)
            dense[i * keys + hidden] = float.NegativeInfinity;
        v.AsSpan((notFinite * keyHeads * keys + hidden) * valueSize, valueSize).Fill(float.NaN);
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        using var workspace = new Workspace(device);
        (float[] output, float[] logSumExp) = Run(0, batch, 0, heads);
        Assert.Contains(output, float.IsNaN);
        for (int sequence = 0; sequence < batch; sequence++)
        {
            for (int head = 0; head < heads; head++)
            {
                (float[] one, float[] ofOne) = Run(sequence, 1, head, 1);
                int start = sequence * heads + head;
                Assert.Equal(output[(start * one.Length)..((start + 1) * one.Length)], one);
                Assert.Equal(logSumExp[(start * queries)..((start + 1) * queries)], ofOne);
            }
        }

        (float[] Output, float[] LogSumExp) Run(int sequence, int sequences, int head, int count)
        {
            const int group = heads / keyHeads;
            int keyCount = (count + group - 1) / group;
            TensorView Part(TensorView view) => view.Slice(0, sequence, sequences);
            var problem = new AttentionProblem
            {
                Query = Part(TensorView.Of(q, batch, heads, queries, size)).Slice(1, head, count), Key = Part(TensorView.Of(k, batch, keyHeads, keys, size)).Slice(1, head / group, keyCount),
                Value = Part(TensorView.Of(v, batch, keyHeads, keys, valueSize)).Slice(1, head / group, keyCount),
                DenseBias = biasHeads == 1 ? TensorView.Of(dense, 1, 1, queries, keys) : TensorView.Of(dense, 1, heads, queries, keys).Slice(1, head, count),
                Causal = true, QueryOffsets = Part(TensorView.Of(offsets, batch)), KeyLengths = Part(TensorView.Of(lengths, batch)),
            };
            if (addsMore)
            {
                problem.Mask = Part(TensorView.Of(mask, batch, 1, queries, keys));
                problem.RowBias = Part(TensorView.Of(row, batch, heads, queries)).Slice(1, head, count);
            }
            float[] o = new float[sequences * count * queries * valueSize], l = new float[sequences * count * queries];
            TransformerKernels.Attention.Forward(device, problem, TensorView.Of(o, sequences, count, queries, valueSize), TensorView.Of(l, sequences, count, queries), workspace);
            return (o, l);
        }
    }

    [Fact]
    public void Results_too_large_for_a_cache_are_bitwise_those_of_a_sequence_alone()
    {
        const int batch = 33, heads = 2, size = 131, length = 65; // odd places: rows begin in the midst of lines
        Assert.True(StreamingStores.Suit(batch * heads * size * length) && !StreamingStores.Suit(heads * size * length));
        AttentionCase Case(int sequences) => new() { Batch = sequences, Heads = heads, KeyHeads = heads, Queries = length, Keys = length, HeadSize = size, ValueSize = size, Causal = true };
        AttentionCase.Results alone = Case(1).Run(ComputeDevice.Cpu, default(PlainScore)), together = Case(batch).Run(ComputeDevice.Cpu, default(PlainScore));
        foreach ((float[] one, float[] all) in ((float[], float[])[])[(alone.Output, together.Output), (alone.Query, together.Query), (alone.Key, together.Key), (alone.Value, together.Value)])
            Assert.Equal(one, all[..one.Length]); // the first sequence's numbers are those of the lone one
    }
}
