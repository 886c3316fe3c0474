using System.Globalization;

namespace TransformerKernels.Benchmarks;

/// <summary>Problems that nobody chose: drawn with a fixed seed from everything that is offered, to see that nothing of it is slow.</summary>
internal static class Sweep
{
    /// <summary>How many problems are drawn of either family.</summary>
    public const int AttentionProblems = 40, LogProbsProblems = 20;

    /// <summary>No problem's share may be lower, and the median must not be lower than that.</summary>
    public const double Lowest = 0.35, Median = 0.60;

    private const int Seed = 1;

    // A problem is large enough if it needs so much of either; what memory bounds needs few operations.
    private const double Operations = 1e9, Bytes = 1e8;

    private static readonly Pass[] Passes = [Pass.Forward, Pass.Backward];

    /// <summary>Every problem as its passes, as cases that have to reach the lowest share and aim at the median.</summary>
    public static IReadOnlyList<Case> Cases { get; } =
    [
        .. Attention(Seed).SelectMany((setup, index) => Passes.Select(pass => Of($"sweep/attention/{index + 1:00}", setup with { Pass = pass }))),
        .. LogProbs(Seed).SelectMany((setup, index) => Passes.Append(Pass.Train).Where(pass => pass != Pass.Train || setup.Width > 0).Select(pass => Of($"sweep/logprobs/{index + 1:00}", setup with { Pass = pass }))),
    ];

    public static AttentionSetup[] Attention(int seed)
    {
        var draw = new AttentionDraw(new Random(seed));
        return [.. Enumerable.Range(0, AttentionProblems).Select(_ => draw.Next())];
    }

    public static LogProbsSetup[] LogProbs(int seed)
    {
        var draw = new LogProbsDraw(new Random(seed));
        return [.. Enumerable.Range(0, LogProbsProblems).Select(_ => draw.Next())];
    }

    public static bool IsLargeEnough(Cost cost) => cost.Operations >= Operations || cost.Bytes >= Bytes;

    /// <summary>The lowest share, the median, and whether they are high enough.</summary>
    public static string Verdict(IReadOnlyCollection<Result> results)
    {
        if (results.Count == 0)
            return "nothing was measured";
        var shares = new Samples();
        foreach (Result result in results)
            shares.Add(result.LimitShare);
        Result lowest = results.MinBy(result => result.LimitShare)!;
        int below = results.Count(result => result.LimitShare < Lowest);
        return string.Create(CultureInfo.InvariantCulture,
            $"lowest share {lowest.LimitShare:0.000} ({lowest.Case}), median {shares.Median:0.000}, {below} of {results.Count} below {Lowest}; none below {Lowest} and median at least {Median}: {(below == 0 && shares.Median >= Median ? "met" : "not met")}");
    }

    private static Case Of(string name, AttentionSetup setup) => new($"{name}/{Text(setup.Pass)}", setup.Text, setup.Cost, Lowest, Median, device => AttentionContest.Of(device, setup));

    private static Case Of(string name, LogProbsSetup setup) => new($"{name}/{Text(setup.Pass)}", setup.Text, setup.Cost, Lowest, Median, setup.Contest);

    private static string Text(Pass pass) => pass.ToString().ToLowerInvariant();
}
