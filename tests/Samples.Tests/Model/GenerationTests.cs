using Xunit;

namespace Alignment.Tests;

public sealed class GenerationTests : IDisposable
{
    private static readonly LlamaShape Shape = new()
    {
        Vocabulary = 23, Hidden = 24, Intermediate = 40, Layers = 2, Heads = 4, KeyHeads = 2, HeadSize = 6, Context = 24,
    };

    private readonly ModelMaths maths = MathsUnderTest.Open();
    private readonly Llama model;

    public GenerationTests()
    {
        model = new(maths, Shape);
        // Wide enough that the likeliest token changes from step to step.
        model.Initialize(new Random(1), deviation: 0.5f);
    }

    public void Dispose()
    {
        model.Dispose();
        maths.Dispose();
    }

    [Fact]
    public void The_cache_changes_no_token()
    {
        using var generation = new Generation(model);
        int[][] prompts = [[1, 2, 3], [4, 4, 4], [22, 0, 7]];
        List<int>[] cached = generation.Continue(prompts, 12), uncached = generation.Continue(prompts, 12, cached: false);
        Assert.All(cached, answer => Assert.Equal(12, answer.Count));
        Assert.True(cached.SelectMany(answer => answer).Distinct().Count() > 3);
        Assert.Equal(uncached, cached);
    }

    [Fact]
    public void A_prompt_gives_the_same_in_a_batch_as_alone()
    {
        using var generation = new Generation(model);
        int[][] prompts = [[1, 2, 3], [4, 4, 4], [22, 0, 7]];
        List<int>[] together = generation.Continue(prompts, 12), alone = [.. prompts.Select(prompt => generation.Continue([prompt], 12)[0])];
        Assert.Equal(together, alone);
    }

    [Fact]
    public void An_answer_ends_before_the_end_token()
    {
        using var generation = new Generation(model);
        int[][] prompts = [[1, 2, 3], [4, 4, 4]];
        List<int>[] open = generation.Continue(prompts, 12);
        int end = open[0][4];
        List<int>[] closed = generation.Continue(prompts, 12, end);
        Assert.Equal(open.Select(answer => answer.TakeWhile(token => token != end)), closed);
    }

    [Fact]
    public void The_context_limits_an_answer()
    {
        using var generation = new Generation(model);
        foreach (bool cached in new[] { true, false })
            // The last token needs no position of its own.
            Assert.Equal(Shape.Context - 3 + 1, generation.Continue([[1, 2, 3]], 100, cached: cached)[0].Count);
    }

    [Fact]
    public void Tokens_are_drawn_as_often_as_the_model_says()
    {
        const int Draws = 4000, Deviations = 5;
        int[] prompt = [1, 2, 3];
        using var generation = new Generation(model);
        List<int>[] drawn = generation.Continue([.. Enumerable.Repeat(prompt, Draws)], 1, random: new Random(2));
        using var logProbs = new AnswerLogProbs(model, trainable: false);
        float[] scores = logProbs.Score([.. Enumerable.Range(0, Shape.Vocabulary).Select(token => new Example([.. prompt, token], prompt.Length))], Shape.Vocabulary);
        for (int token = 0; token < Shape.Vocabulary; token++)
        {
            double expected = Draws * Math.Exp(scores[token]), found = drawn.Count(answer => answer[0] == token);
            Assert.True(Math.Abs(found - expected) <= Deviations * Math.Sqrt(expected) + 1, $"token {token}: {found} times, not {expected:F0}");
        }
        Assert.True(scores.Max() < MathF.Log(0.99f));
    }
}
