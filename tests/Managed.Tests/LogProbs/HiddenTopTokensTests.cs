using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class HiddenTopTokensTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    [Theory]
    [InlineData(1, 1, 1, "")]
    [InlineData(17, 7, 7, "ignored")]
    [InlineData(20, 63, 1, "bias")]
    [InlineData(33, 130, 20, "bias temperature padded ignored")]
    [InlineData(50, 1300, 100, "bfloat16 ignored")]
    public void Top_tokens_are_the_likeliest_ones_in_order_in_any_workspace(int tokens, int vocabulary, int count, string options)
    {
        var example = new HiddenExample(tokens, 11, vocabulary, options);
        float[] logProbs = new float[tokens * count], ours = new float[tokens], hidden = new float[tokens * 11], withoutTop = new float[tokens * 11], logProb = new float[tokens];
        long[] top = new long[tokens * count];
        using var workspace = new Workspace(Device);
        LogProbs.FromHidden(Device, example.Problem, new() { TopLogProbs = TensorView.Of(logProbs, tokens, count), TopTokens = TensorView.Of(top, tokens, count) }, workspace);
        Grid<double> logits = HiddenLogProbsOracle.Logits<double>(Grid.Of(example.Hidden, tokens, 11), Grid.Of(example.Entries, vocabulary, 11), example.Targets, -100, example.Shaping);
        Assert.Equal(LogProbsOracle.Top(logits, example.Targets, count, shaping: example.Shaping), top);
        for (int rank = 0; rank < count; rank += 9)
        {
            HiddenProblem problem = example.Problem;
            problem.Targets = TensorView.Of((long[])[.. Enumerable.Range(0, tokens).Select(i => example.Targets[i] == -100 ? -100 : top[i * count + rank])]);
            LogProbs.FromHidden(Device, problem, new() { LogProb = TensorView.Of(ours) }, workspace);
            Assert.Equal(ours, Enumerable.Range(0, tokens).Select(i => logProbs[i * count + rank]));
        }

        // Logits that are kept, logits that are computed again, and training give the same bits; and nobody's presence changes the others.
        long least = LogProbs.FromHiddenWorkspaceBytes(Device, example.Problem, backward: false, budget: 0), training = LogProbs.FromHiddenWorkspaceBytes(Device, example.Problem, backward: true, budget: 0);
        using var small = new Workspace(Device, least);
        float[] again = new float[logProbs.Length];
        LogProbs.FromHidden(Device, example.Problem, new() { TopLogProbs = TensorView.Of(again, tokens, count) }, small);
        Assert.Equal(logProbs, again);
        using var tight = new Workspace(Device, training);
        foreach (Workspace each in (Workspace[])[workspace, tight])
        {
            LogProbs.TrainFromHidden(Device, example.Problem, example.Upstream, new() { TopLogProbs = TensorView.Of(again, tokens, count), LogProb = TensorView.Of(logProb) }, new() { Hidden = TensorView.Of(hidden, tokens, 11) }, each);
            Assert.Equal(logProbs, again);
        }
        LogProbs.TrainFromHidden(Device, example.Problem, example.Upstream, new() { LogProb = TensorView.Of(ours) }, new() { Hidden = TensorView.Of(withoutTop, tokens, 11) }, workspace);
        Assert.Equal(withoutTop, hidden);
        Assert.Equal(ours, logProb);
    }

    [Theory]
    [InlineData(40, 700)]
    [InlineData(512, 32_000)]
    public void The_bytes_of_workspace_are_those_that_a_call_takes(int tokens, int vocabulary)
    {
        float[] hidden = new float[tokens * 8], entries = new float[vocabulary * 8], logProb = new float[tokens], top = new float[5 * tokens], gradient = new float[tokens * 8], merged = new float[tokens * ShardPartials.Count];
        foreach (long limit in (long[])[long.MaxValue, 3_000_000])
        {
            Takes(backward: false, topTokens: false, (problem, workspace) => LogProbs.FromHidden(Device, problem, new() { LogProb = TensorView.Of(logProb) }, workspace));
            Takes(backward: false, topTokens: true, (problem, workspace) => LogProbs.FromHidden(Device, problem, new() { TopLogProbs = TensorView.Of(top, tokens, 5) }, workspace));
            Takes(backward: true, topTokens: false, (problem, workspace) => LogProbs.FromHiddenBackward(Device, problem, new() { LogProb = TensorView.Of(logProb) }, new() { Hidden = TensorView.Of(gradient, tokens, 8) }, workspace));
            Takes(backward: true, topTokens: true, (problem, workspace) =>
                LogProbs.TrainFromHidden(Device, problem, new() { LogProb = TensorView.Of(new float[tokens]) }, new() { TopLogProbs = TensorView.Of(top, tokens, 5) }, new() { Hidden = TensorView.Of(gradient, tokens, 8) }, workspace));
            Takes(backward: false, topTokens: false, (problem, workspace) => VocabularyShards.FromHidden(Device, problem, new(0, vocabulary), TensorView.Of(merged, tokens, ShardPartials.Count), workspace));

            void Takes(bool backward, bool topTokens, Call call)
            {
                HiddenProblem problem = new() { Hidden = TensorView.Of(hidden, tokens, 8), Vocabulary = TensorView.Of(entries, vocabulary, 8), Targets = TensorView.Of(new int[tokens]) };
                using var workspace = new Workspace(Device, limit);
                call(problem, workspace);
                Assert.Equal(LogProbs.FromHiddenWorkspaceBytes(Device, problem, backward, limit, topTokens), workspace.Bytes);
            }
        }
    }

    private delegate void Call(HiddenProblem problem, Workspace workspace);

    [Fact]
    public void Of_equal_logits_the_first_come_first()
    {
        float[] hidden = [1, 1], entries = [.. Enumerable.Repeat(1f, 1500)], top = new float[6];
        entries[700] = 2;
        int[] tokens = new int[6];
        using var workspace = new Workspace(Device);
        LogProbs.FromHidden(Device, new() { Hidden = TensorView.Of(hidden, 2, 1), Vocabulary = TensorView.Of(entries, 1500, 1), Targets = TensorView.Of(new int[2]) },
            new() { TopLogProbs = TensorView.Of(top, 2, 3), TopTokens = TensorView.Of(tokens, 2, 3) }, workspace);
        Assert.Equal([700, 0, 1, 700, 0, 1], tokens);
    }
}
