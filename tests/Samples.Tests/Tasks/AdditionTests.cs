using System.Text.Json;
using Spectre.Console;
using TransformerKernels;
using Xunit;

namespace Alignment.Tests;

public class AdditionTests
{
    private static readonly AdditionSettings Short = new() { Seed = 5, SupervisedSteps = 12, PreferenceSteps = 6, BatchSize = 16, PairQuestions = 24, TestQuestions = 50 };

    [Theory]
    [InlineData(347_285, "347+285=", "2360")]
    [InlineData(999_999, "999+999=", "8991")]
    [InlineData(000_007, "000+007=", "7000")]
    public void The_right_answer_is_the_sum_from_the_ones_up(int question, string prompt, string answer)
    {
        Assert.Equal(prompt, ColumnAddition.Text(ColumnAddition.Prompt(question)));
        Assert.Equal(answer, ColumnAddition.Text(ColumnAddition.Answer(question)));
        Assert.True(ColumnAddition.IsRight(question, ColumnAddition.Answer(question)));
        Assert.False(ColumnAddition.IsRight(question, ColumnAddition.Answer(question)[..3]));
    }

    [Fact]
    public void Demonstrations_forget_carries_and_slips_are_wrong()
    {
        var random = new Random(1);
        const int draws = 4000, carries = 008_007, both = 099_001;
        string[] answers = [.. Enumerable.Range(0, draws).Select(_ => ColumnAddition.Text(ColumnAddition.Demonstration(carries, random)))];
        Assert.Equal(["5000", "5100"], answers.Distinct().Order());
        Assert.InRange(answers.Count(answer => answer == "5000") / (double)draws, 0.6, 0.7);
        Assert.Equal(["0000", "0010", "0900"], Enumerable.Range(0, draws).Select(_ => ColumnAddition.Text(ColumnAddition.Demonstration(both, random))).Distinct().Order());
        for (int i = 0; i < draws; i++)
            Assert.False(ColumnAddition.IsRight(both, ColumnAddition.Slip(both, random)));
    }

    [Fact]
    public void The_same_seed_gives_the_same_numbers_bit_for_bit()
    {
        AdditionResult first = Run(Short), second = Run(Short), other = Run(Short with { Seed = 6 });
        Assert.Equal(Numbers(first), Numbers(second));
        Assert.NotEqual(Numbers(first), Numbers(other));
    }

    [Fact]
    public void No_test_question_is_trained_on()
    {
        AdditionResult result = Run(Short);
        Assert.Equal(Short.TestQuestions, result.TestedOn.Distinct().Count());
        Assert.DoesNotContain(result.TestedOn, result.TrainedOn.Contains);
        Assert.NotEmpty(result.TrainedOn);
    }

    [Fact]
    public void A_plot_is_written_as_PNG_and_SVG()
    {
        string folder = Directory.CreateTempSubdirectory().FullName;
        try
        {
            (string png, string svg) = TrainingPlot.Save(Run(Short).Curves, folder, "training");
            Assert.Equal([0x89, 0x50, 0x4e, 0x47], File.ReadAllBytes(png)[..4]);
            string text = File.ReadAllText(svg);
            Assert.Contains("<svg", text);
            Assert.EndsWith("</svg>", text.TrimEnd());
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void The_JSON_object_has_the_documented_fields()
    {
        string path = Path.GetTempFileName();
        new JobSummary(0.5, 0.9, 1.5, 0.95, 1e5, "CPU", 3, 12.5).Write(path);
        using JsonDocument document = JsonDocument.Parse(File.ReadAllText(path));
        File.Delete(path);
        Assert.Equal(["accuracy_before", "accuracy_after", "reward_margin", "reward_accuracy", "tokens_per_second", "device", "seed", "seconds"],
            document.RootElement.EnumerateObject().Select(field => field.Name));
    }

    private static AdditionResult Run(AdditionSettings settings)
    {
        using var maths = new CpuMaths(ComputeDevice.Cpu, threads: 2);
        using var job = new AdditionJob(maths, settings, SilentScreen());
        return job.Run();
    }

    internal static Screen SilentScreen() => new(AnsiConsole.Create(new() { Out = new AnsiConsoleOutput(TextWriter.Null) }));

    private static double[] Numbers(AdditionResult result) =>
    [
        result.AccuracyBefore, result.AccuracyAfter, result.AccuracyFurther, result.PairsBefore.ChosenLogProb, result.PairsAfter.ChosenLogProb,
        result.PairsAfter.RejectedLogProb, result.PairsAfter.RewardMargin, .. result.Curves.SupervisedLoss.Values, .. result.Curves.PreferenceLoss.Values,
    ];
}
