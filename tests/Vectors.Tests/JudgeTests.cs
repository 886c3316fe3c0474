using Xunit;

namespace TransformerKernels.Tests;

/// <summary>The replay itself: what is right passes, what is wrong, missing or unknown doesn't.</summary>
public sealed class JudgeTests : IDisposable
{
    // DPO at beta 0.5 of one pair with margin 2: ln(1 + e⁻¹), and −0.5/(1 + e) as the gradient.
    private const string Case = """
        {"name": "NAME", "parameters": {"beta": 0.5, "label_smoothing": 0.0, "ipo": false EXTRA},
         "inputs": {"policy_chosen_logps": {"shape": [1], "data": [-3]}, "policy_rejected_logps": {"shape": [1], "data": [-6]},
                    "reference_chosen_logps": {"shape": [1], "data": [-4]}, "reference_rejected_logps": {"shape": [1], "data": [-5]}},
         "outputs": {"loss": {"shape": [], "data": [LOSS]} MORE},
         "gradients": {"policy_chosen_logps": {"shape": [1], "data": [-0.13447071068499756]}}, "computedIn": "float64"}
        """;

    private const string Right = "0.31326168751822286";

    private readonly DirectoryInfo root = Directory.CreateTempSubdirectory("vectors");

    public void Dispose() => root.Delete(recursive: true);

    [Fact]
    public void A_case_that_agrees_passes()
    {
        VectorCase vector = Make(Right);
        Assert.Equal(Outcome.Passed, Judge.Library(vector, []).Outcome);
        Assert.Equal("", Judge.Oracle(vector, []));
    }

    [Theory]
    [InlineData("0.313262")]
    [InlineData("\"NaN\"")]
    [InlineData("\"Infinity\"")]
    public void A_wrong_number_is_found(string loss)
    {
        VectorCase vector = Make(loss);
        Assert.Equal(Outcome.Wrong, Judge.Library(vector, []).Outcome);
        Assert.Contains("outputs/loss", Judge.Oracle(vector, []));
    }

    [Fact]
    public void A_number_in_place_of_theirs_is_checked()
    {
        VectorCase vector = Make("\"NaN\"");
        Assert.Equal(Outcome.Passed, Judge.Library(vector, [new(vector.Id, "outputs/loss", Right, "why")]).Outcome);
        Assert.Equal(Outcome.Wrong, Judge.Library(vector, [new(vector.Id, "outputs/loss", "0.3", "why")]).Outcome);
        Assert.Equal(Outcome.Wrong, Judge.Library(vector, [new(vector.Id, "call", "throws ArgumentException", "why")]).Outcome);
    }

    [Fact]
    public void A_parameter_that_nobody_reads_is_not_passed_over()
    {
        Verdict verdict = Judge.Library(Make(Right, extra: ", \"temperature\": 2"), []);
        Assert.Equal(Outcome.NotSupported, verdict.Outcome);
        Assert.Equal("temperature", verdict.Message);
    }

    [Fact]
    public void A_case_with_an_output_that_nobody_computes_does_not_pass()
    {
        Verdict verdict = Judge.Library(Make(Right, more: ", \"accuracy\": {\"shape\": [], \"data\": [1]}"), []);
        Assert.Equal(Outcome.NotSupported, verdict.Outcome);
        Assert.Equal("without outputs/accuracy", verdict.Message);
    }

    [Fact]
    public void A_case_of_no_family_is_not_supported() => Assert.Equal(Outcome.NotSupported, Judge.Library(Make(Right, folder: "unknown"), []).Outcome);

    private VectorCase Make(string loss, string extra = "", string more = "", string folder = "openrlhf")
    {
        string json = Case.Replace("NAME", "one").Replace("LOSS", loss).Replace("EXTRA", extra).Replace("MORE", more);
        root.CreateSubdirectory(folder);
        File.WriteAllText(Path.Combine(root.FullName, folder, "preference.json"), $$"""{"cases": [{{json}}]}""");
        return new VectorSet(root.FullName).Find(folder, "preference.json", "one");
    }
}
