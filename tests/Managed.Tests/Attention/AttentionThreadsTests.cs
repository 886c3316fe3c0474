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
        AttentionCase problem = new()
        {
            Batch = 2, Heads = 4, KeyHeads = 2, Queries = 100, Keys = 530, HeadSize = 20, ValueSize = 12, Causal = true, HasLogSumExpUpstream = true,
            Slopes = AttentionCase.Numbers(1, 0.2f, 4), DistanceBias = AttentionCase.Numbers(2, 1, 4, 629), Captured = [new(AttentionCase.Numbers(3, 1, 4), CapturedBy.Head)],
        };
        var rule = new Temperature(0.1f, 400);
        AttentionCase.Results reference = problem.Run(ComputeDevice.Cpu, rule);
        foreach (int threads in (int[])[1, 2, 3, 7])
        {
            using ComputeDevice device = ComputeDevice.OpenCpu(threads);
            for (int run = 0; run < 25; run++)
                Assert.All(reference.All.Zip(problem.Run(device, rule).All), pair => Assert.Equal(pair.First, pair.Second));
        }
    }
}
