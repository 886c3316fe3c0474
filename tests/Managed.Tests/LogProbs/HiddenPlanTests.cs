using Xunit;

namespace TransformerKernels.Tests;

public class HiddenPlanTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    public static TheoryData<int, int, int, ElementType> Shapes => new()
    {
        { 0, 1, 1, ElementType.Float32 },
        { 40, 3, 17, ElementType.Float32 },
        { 96, 1024, 8192, ElementType.Float32 },
        { 1000, 64, 700, ElementType.BFloat16 },
        { 1024, 1024, 32_000, ElementType.Float32 },
        { 300, 100, 128_256, ElementType.BFloat16 },
    };

    // Shapes alone; nothing lies there.
    private static HiddenProblem Problem(long tokens, int width, int vocabulary, ElementType type) => new()
    {
        Hidden = TensorView.FromPointer(Device, 1 << 20, type, tokens, width),
        Vocabulary = TensorView.FromPointer(Device, 1 << 20, type, vocabulary, width),
        Targets = TensorView.FromPointer(Device, 1 << 20, ElementType.Int32, tokens),
    };

    private static IEnumerable<(nint Lanes, bool Backward, bool Keeps, int Threads)> Kinds =>
        from lanes in (nint[])[1, 4, 8, 16] from backward in (bool[])[false, true] from keeps in (bool[])[false, true] from threads in (int[])[1, 7] select (lanes, backward, keeps, threads);

    [Theory]
    [MemberData(nameof(Shapes))]
    public void A_chunk_fills_its_panels_within_the_budget(int tokens, int width, int vocabulary, ElementType type)
    {
        foreach ((nint lanes, bool backward, bool keeps, int threads) in Kinds)
        {
            long least = new HiddenPlan(Problem(tokens, width, vocabulary, type), backward, keeps, 0, lanes, threads).Bytes;
            for (long budget = 0; budget < 50_000_000; budget = budget * 5 / 4 + 10_000)
            {
                var plan = new HiddenPlan(Problem(tokens, width, vocabulary, type), backward, keeps, budget, lanes, threads);
                Assert.True(plan.Chunk > 0);
                Assert.Equal(0, plan.Chunk % plan.Panel);
                Assert.True(plan.Bytes <= Math.Max(budget, least), $"{plan.Bytes} bytes of {budget}, {least} at least");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void What_a_plan_takes_suffices_for_it_and_a_byte_less_does_not(int tokens, int width, int vocabulary, ElementType type)
    {
        foreach ((nint lanes, bool backward, bool keeps, int threads) in Kinds)
        {
            HiddenPlan Plan(long budget) => new(Problem(tokens, width, vocabulary, type), backward, keeps, budget, lanes, threads);
            long least = Plan(0).Bytes;
            for (long budget = 0; budget < 50_000_000; budget = budget * 5 / 4 + 10_000)
            {
                HiddenPlan plan = Plan(budget), again = Plan(plan.Bytes);
                Assert.Equal((plan.Bytes, plan.Chunk, plan.Keeps), (again.Bytes, again.Chunk, again.Keeps));
                Assert.True(plan.Bytes == least || Plan(plan.Bytes - 1).Bytes < plan.Bytes);
            }
        }
    }

    [Theory]
    [InlineData(1024, 32_000, true)]
    [InlineData(2048, 128_256, true)]
    [InlineData(4096, 151_936, true)]
    [InlineData(1024, 256_000, true)]
    [InlineData(8192, 1_000_000, false)]
    public void Without_a_limit_logits_are_kept_if_that_takes_64_MB_at_most(int width, int vocabulary, bool keeps)
    {
        HiddenPlan plan = new(Problem(4096, width, vocabulary, ElementType.Float32), backward: true, keeps: true, long.MaxValue, lanes: 16, threads: 2);
        Assert.Equal(keeps, plan.Keeps);
        Assert.InRange(plan.Bytes, 16_000_000, keeps ? 64_000_000 : 32_000_000);
        HiddenPlan again = new(Problem(4096, width, vocabulary, ElementType.Float32), backward: true, keeps: true, plan.Bytes, lanes: 16, threads: 2);
        Assert.Equal((plan.Bytes, plan.Chunk, plan.Keeps), (again.Bytes, again.Chunk, again.Keeps));
    }

    [Fact]
    public async Task However_many_tokens_there_are_their_plan_is_made_at_once()
    {
        Task<long> bytes = Task.Run(() => LogProbs.FromHiddenWorkspaceBytes(Device, Problem(1L << 43, 3, 17, ElementType.Float32), backward: true), TestContext.Current.CancellationToken);
        await bytes.WaitAsync(TimeSpan.FromMinutes(1), TestContext.Current.CancellationToken);
        Assert.InRange(await bytes, 1, 32_000_000);
    }
}
