using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Replays on a GPU what other projects computed, as Vectors.Tests does on the CPU: the same numbers, the same judge.</summary>
/// <remarks>What pending.txt lists no device can run yet. The table goes to the test's output and to replay.txt beside the program.</remarks>
public class GpuReplayTests(ITestOutputHelper output)
{
    private const string FolderVariable = "TRANSFORMERKERNELS_VECTORS";

    // Cases of the sample's model, which runs on the CPU.
    private static bool IsOfModel(VectorCase vector) => vector.Folder == "model" || vector.File == "tiny-llama.json";

    [Fact]
    public void Every_case_that_the_device_offers_agrees()
    {
        GpuUnderTest.Current.NeedsOpenCl();
        string folder = Environment.GetEnvironmentVariable(FolderVariable) is { Length: > 0 } foreign ? foreign : Beside("vectors");
        HashSet<string> pending = Pending.Read(Beside("pending.txt"));
        ILookup<string, Disagreement> disagreements = Disagreement.Read(Beside("disagree.txt"));
        var table = new ReplayTable();
        var failures = new List<string>();
        var missing = new SortedDictionary<string, int>();
        foreach (VectorCase vector in new VectorSet(folder).Cases)
        {
            if (IsOfModel(vector))
                continue;
            Verdict verdict = Judge.Library(vector, disagreements[vector.Id]);
            bool listed = pending.Contains(vector.Id);
            table.Add(vector, verdict, listed);
            if (verdict.Outcome == Outcome.Wrong)
                failures.Add($"{vector.Id} is wrong: {verdict.Message}");
            if (verdict.Outcome == Outcome.NotSupported && !listed)
                missing[verdict.Message] = missing.GetValueOrDefault(verdict.Message) + 1;
        }
        string text = table + string.Join(Environment.NewLine, missing.Select(reason => $"{reason.Value} not supported: {reason.Key}")) + Environment.NewLine;
        output.WriteLine(text);
        File.WriteAllText(Beside("replay.txt"), text + string.Join(Environment.NewLine, failures) + Environment.NewLine);
        failures.AddRange(missing.Keys.Where(reason => !reason.Contains("doesn't offer", StringComparison.Ordinal)));
        Assert.True(failures.Count == 0, string.Join(Environment.NewLine, failures));
    }

    private static string Beside(string name) => Path.Combine(AppContext.BaseDirectory, name);
}
