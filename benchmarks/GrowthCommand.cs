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

    private const int Width = 1024, FewTokens = 512, SmallVocabulary = 32_000;

    private static readonly int[] TokenCounts = [256, 512, 1024, 2048], Vocabularies = [32_000, 64_000, 128_256, 256_000];

    private static IEnumerable<Size> Sizes =>
    [
        .. TokenCounts.SelectMany(tokens => Both("tokens", tokens, SmallVocabulary)),
        .. Vocabularies.SelectMany(vocabulary => Both("vocabulary", FewTokens, vocabulary)),
    ];

    private static Size[] Both(string what, int tokens, int vocabulary) =>
        [new($"logprobs/fused-forward/{what}", tokens, vocabulary, Train: false), new($"logprobs/fused-train/{what}", tokens, vocabulary, Train: true)];

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
        Console.WriteLine($"{device.Name}, width {Width}, float32, medians of {rounds} rounds");
        Console.WriteLine();
        Console.WriteLine("| series | tokens | vocabulary | ms | ps per token and entry | memory beside inputs and gradients, MB | the logits would take, MB |");
        Console.WriteLine("|---|---:|---:|---:|---:|---:|---:|");
        foreach (Size size in sizes)
        {
            using Contest contest = new FromHiddenContest(device, new() { Tokens = size.Tokens, Vocabulary = size.Vocabulary, Width = Width, Pass = size.Train ? Pass.Train : Pass.Forward });
            for (int run = 0; run < WarmRuns; run++)
                contest.Run();
            contest.DropWorkspace();
            long? extra = ResidentMemory.PeakAbove(contest.Run);
            Samples seconds = new();
            for (int round = 0; round < rounds; round++)
            {
                long start = Stopwatch.GetTimestamp();
                contest.Run();
                seconds.Add(Stopwatch.GetElapsedTime(start).TotalSeconds);
            }
            double logits = (double)size.Tokens * size.Vocabulary;
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {size.Series} | {size.Tokens} | {size.Vocabulary} | {seconds.Median * MsPerSecond:0} | {seconds.Median * PicosecondsPerSecond / logits:0} | {extra / BytesPerMb:0} | {logits * sizeof(float) / BytesPerMb:0} |"));
        }
        return 0;
    }

    private sealed record Size(string Series, int Tokens, int Vocabulary, bool Train);
}
