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
}
