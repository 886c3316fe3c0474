using TransformerKernels;
using Xunit;

namespace Alignment.Tests;

public class CheckpointJobTests
{
    [Fact]
    public void Pairs_longer_than_the_context_are_counted_and_skipped_and_a_tenth_is_held_out()
    {
        string Line(string answer) => $$"""{"prompt": "What is it?", "chosen": "{{answer}}", "rejected": "no"}""" + "\n";
        string lines = string.Concat(Enumerable.Range(0, 20).Select(i => Line($"it is {i}"))) + Line(new string('x', 500));
        using var file = new TemporaryFile(lines);
        using var maths = new CpuMaths(ComputeDevice.Cpu, threads: 2);
        CheckpointResult result = CheckpointJob.Run(maths, Path.Combine(AppContext.BaseDirectory, "data", "tiny-llama-f32.gguf"), file.Path, new() { Passes = 3, PairsPerStep = 6 }, AdditionTests.SilentScreen());
        Assert.Equal((18, 2, 1), (result.TrainingPairs, result.HeldOutPairs, result.Skipped));
        Assert.Equal(0, result.Before.RewardMargin);
        Assert.True(result.After.RewardMargin > 0, $"margin {result.After.RewardMargin}");
    }
}
