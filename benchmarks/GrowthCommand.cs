using System.CommandLine;
using System.Diagnostics;
using System.Globalization;

namespace TransformerKernels.Benchmarks;

/// <summary>growth: how time and memory grow with the size of a problem, as a table in Markdown.</summary>
internal static class GrowthCommand
{
    private const int DefaultRounds = 3;

    // The runtime compiles hot code anew after some calls.
    private const int WarmRuns = 2;

    private const double MsPerSecond = 1000, BytesPerMb = 1e6, PicosecondsPerSecond = 1e12;

    // Training takes all of its budget with few tokens; a forward pass of the smallest vocabulary with more than 5,616.
    private const int Width = 1024, FewTokens = 512, ManyTokens = 6144, SmallVocabulary = 32_000;

    // The fewest logits leave the last cache behind.
    private static readonly int[] TokenCounts = [256, 512, 1024, 2048], ForwardTokenCounts = [ManyTokens, 9216, 12_288, 18_432], Rows = [512, 1024, 2048, 4096], Vocabularies = [32_000, 64_000, 128_256, 151_936, 256_000];

    private static IEnumerable<Size> Sizes =>
    [
        .. Rows.SelectMany(tokens => FromLogits("tokens", tokens, SmallVocabulary)),
        .. Vocabularies.SelectMany(vocabulary => FromLogits("vocabulary", FewTokens, vocabulary)),
        .. ForwardTokenCounts.Select(tokens => FromHidden(Pass.Forward, "tokens", tokens, SmallVocabulary)),
        .. Vocabularies.Select(vocabulary => FromHidden(Pass.Forward, "vocabulary", ManyTokens, vocabulary)),
        .. TokenCounts.Select(tokens => FromHidden(Pass.Train, "tokens", tokens, SmallVocabulary)),
        .. Vocabularies.Select(vocabulary => FromHidden(Pass.Train, "vocabulary", FewTokens, vocabulary)),
    ];

    private static Size[] FromLogits(string what, int tokens, int vocabulary) =>
    [
        new($"logprobs/from-logits/{what}", new() { Tokens = tokens, Vocabulary = vocabulary, HasEntropy = true }),
        new($"logprobs/backward/{what}", new() { Tokens = tokens, Vocabulary = vocabulary, Pass = Pass.Backward }),
    ];

    private static Size FromHidden(Pass pass, string what, int tokens, int vocabulary) =>
        new($"logprobs/fused-{(pass == Pass.Forward ? "forward" : "train")}/{what}", new() { Tokens = tokens, Vocabulary = vocabulary, Width = Width, Pass = pass });

    /// <summary>Reads the arguments and runs.</summary>
    public static int Run(string[] args)
    {
        var filter = new Option<string[]>("--filter") { Description = "Only series whose name contains this text; may be repeated." };
        var rounds = new Option<int>("--rounds") { Description = "How often each size is timed; the median counts.", DefaultValueFactory = _ => DefaultRounds };
        var threads = new Option<int>("--threads") { Description = "Threads to run on.", DefaultValueFactory = _ => Environment.ProcessorCount };
        var command = new RootCommand("Measures how time and memory grow with a problem's size, and prints a table in Markdown.") { filter, rounds, threads };
        command.SetAction(parsed => Measure(parsed.GetValue(filter) ?? [], parsed.GetValue(rounds), parsed.GetValue(threads)));
        return command.Parse(args).Invoke();
    }

    private static int Measure(string[] filters, int rounds, int threads)
    {
        Size[] sizes = [.. Sizes.Where(size => filters.Length == 0 || filters.Any(text => size.Series.Contains(text, StringComparison.OrdinalIgnoreCase))).OrderBy(size => size.Series, StringComparer.Ordinal)];
        if (sizes.Length == 0)
        {
            Console.Error.WriteLine($"No series' name contains {string.Join(" or ", filters)}.");
            return 1;
        }
        using ComputeDevice device = ComputeDevice.OpenCpu(threads);
        Console.WriteLine($"{device.Name}, float32, hidden states of width {Width}, medians of {rounds} rounds");
        Console.WriteLine();
        Console.WriteLine("| series | tokens | vocabulary | ms | ps per token and entry | memory beside inputs and gradients, MB | logits, MB |");
        Console.WriteLine("|---|---:|---:|---:|---:|---:|---:|");
        foreach (Size size in sizes)
        {
            using Contest contest = size.Setup.Contest(device);
            for (int run = 0; run < WarmRuns; run++)
                contest.Run();
            contest.DropWorkspace();
            contest.Restore();
            long? extra = ResidentMemory.PeakAbove(contest.Run);
            Samples seconds = new();
            for (int round = 0; round < rounds; round++)
            {
                contest.Restore();
                long start = Stopwatch.GetTimestamp();
                contest.Run();
                seconds.Add(Stopwatch.GetElapsedTime(start).TotalSeconds);
            }
            double logits = (double)size.Setup.Tokens * size.Setup.Vocabulary;
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {size.Series} | {size.Setup.Tokens} | {size.Setup.Vocabulary} | {seconds.Median * MsPerSecond:0.0} | {seconds.Median * PicosecondsPerSecond / logits:0} | {extra / BytesPerMb:0} | {logits * sizeof(float) / BytesPerMb:0} |"));
        }
        return 0;
    }

    private sealed record Size(string Series, LogProbsSetup Setup);
}
