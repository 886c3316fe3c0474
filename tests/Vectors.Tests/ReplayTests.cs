using System.Text;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Replays what other projects computed, through the library and through the oracle.</summary>
/// <remarks>
/// The vectors are those of this project, or of the folder that the environment variable TRANSFORMERKERNELS_VECTORS names; the table goes to the test's
/// output and to replay.txt beside the program. pending.txt lists what isn't supported yet, disagree.txt where we do otherwise and why.
/// </remarks>
public class ReplayTests(ITestOutputHelper output)
{
    private const string FolderVariable = "TRANSFORMERKERNELS_VECTORS";

    private static readonly string? Foreign = Environment.GetEnvironmentVariable(FolderVariable) is { Length: > 0 } folder ? folder : null;

    private static readonly Lazy<VectorSet> Vectors = new(() => new VectorSet(Foreign ?? Beside("vectors")));

    private static readonly Lazy<ILookup<string, Disagreement>> Disagreements = new(() => Disagreement.Read(Beside("disagree.txt")));

    [Fact]
    public void Every_case_agrees_or_is_listed()
    {
        HashSet<string> pending = Pending.Read(Beside("pending.txt"));
        var table = new ReplayTable();
        var failures = new List<string>();
        foreach (VectorCase vector in Vectors.Value.Cases)
        {
            Verdict verdict = Judge.Library(vector, Disagreements.Value[vector.Id]);
            bool listed = pending.Contains(vector.Id);
            table.Add(vector, verdict, listed);
            if (verdict.Outcome == Outcome.Wrong)
                failures.Add($"{vector.Id} is wrong: {verdict.Message}");
            else if (verdict.Outcome == Outcome.NotSupported && !listed)
                failures.Add($"{vector.Id} isn't supported ({verdict.Message}) and not in pending.txt");
            else if (verdict.Outcome == Outcome.Passed && listed)
                failures.Add($"{vector.Id} passes: take it out of pending.txt");
        }
        if (Foreign is null)
        {
            HashSet<string> known = [.. Vectors.Value.Cases.Select(vector => vector.Id)];
            failures.AddRange(pending.Except(known).Select(id => $"pending.txt lists {id}, which doesn't exist"));
            failures.AddRange(Disagreements.Value.Select(lines => lines.Key).Except(known).Select(id => $"disagree.txt lists {id}, which doesn't exist"));
        }
        string text = table.ToString();
        output.WriteLine(text);
        Console.Out.WriteLine(text);
        File.WriteAllText(Beside("replay.txt"), text + (failures.Count == 0 ? "" : Environment.NewLine + string.Join(Environment.NewLine, failures) + Environment.NewLine));
        Assert.True(failures.Count == 0, string.Join(Environment.NewLine, failures));
    }

    [Fact]
    public void The_oracle_agrees_with_every_case_that_it_covers()
    {
        var verdicts = Vectors.Value.Cases.Select(vector => Judge.Oracle(vector, Disagreements.Value[vector.Id])).OfType<string>().ToList();
        List<string> failures = [.. verdicts.Where(verdict => verdict.Length > 0)];
        output.WriteLine($"{verdicts.Count} cases");
        Assert.True(failures.Count == 0, string.Join(Environment.NewLine, failures));
        Assert.True(verdicts.Count > 0 || Foreign is not null);
    }

    private static string Beside(string name) => Path.Combine(AppContext.BaseDirectory, name);
}
