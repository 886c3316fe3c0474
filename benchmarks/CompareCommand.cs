using System.CommandLine;
using System.Globalization;
using System.Runtime.InteropServices;
using TransformerKernels.Oracle;

namespace TransformerKernels.Benchmarks;

/// <summary>compare: every case beside the machine's limits and the peer.</summary>
internal static class CompareCommand
{
    private const int DefaultRounds = 15;

    // Many short problems: what matters is that none is far off.
    private const int SweepRounds = 5;

    /// <summary>Reads the arguments and runs; the exit code is 1 if a case is wrong or fails.</summary>
    public static int Run(string[] args)
    {
        var filter = new Option<string[]>("--filter") { Description = "Only cases whose name contains this text; may be repeated." };
        var sweep = new Option<bool>("--sweep") { Description = "Problems drawn from everything that is offered, in place of the cases, without a peer." };
        var scaling = new Option<bool>("--scaling") { Description = "Compute-bound cases with one thread against two, without limits and peer." };
        var rounds = new Option<int>("--rounds") { Description = $"How often everything is measured; medians count. {DefaultRounds}, or {SweepRounds} of a sweep, if absent.", DefaultValueFactory = result => result.GetValue(sweep) ? SweepRounds : DefaultRounds };
        var threads = new Option<int>("--threads") { Description = "Threads for the limits, ours and the peer.", DefaultValueFactory = _ => Environment.ProcessorCount };
        var json = new Option<FileInfo?>("--json") { Description = "Writes one JSON object a line into this file." };
        var markdown = new Option<FileInfo?>("--markdown") { Description = "Writes a page for benchmarks/results into this file." };
        foreach (Option<int> count in (Option<int>[])[rounds, threads])
        {
            count.Validators.Add(result =>
            {
                if (result.GetValueOrDefault<int>() < 1)
                    result.AddError($"{count.Name} must be at least 1.");
            });
        }
        var command = new RootCommand("Compares every case with the machine's limits and with TorchSharp.") { filter, sweep, scaling, rounds, threads, json, markdown };
        command.SetAction(parsed => Compare(parsed.GetValue(filter) ?? [], parsed.GetValue(sweep), parsed.GetValue(scaling), parsed.GetValue(rounds), parsed.GetValue(threads),
            parsed.GetValue(json), parsed.GetValue(markdown)));
        return command.Parse(args).Invoke();
    }

    private static int Compare(string[] filters, bool isSweep, bool isScaling, int rounds, int threads, FileInfo? json, FileInfo? markdown)
    {
        Case[] cases = [.. (isSweep ? Sweep.Cases : Cases.All).Where(@case => Wanted(@case.Name))];
        string[] missing = isSweep ? [] : [.. Cases.Missing.Where(group => group.Names.Any(Wanted)).Select(group => $"{string.Join(", ", group.Names.Where(Wanted))} ({group.WaitingFor})")];
        if (cases.Length == 0 && missing.Length == 0)
        {
            Console.Error.WriteLine($"No case's name contains {string.Join(" or ", filters)}.");
            return 1;
        }
        if (isScaling)
            return Scaling.Run(cases, rounds);

        using ComputeDevice device = ComputeDevice.OpenCpu(threads);
        using var limits = new MachineLimits(threads);
        string? whyNoPeer = isSweep ? "a sweep has none" : TorchPeer.Load(threads);
        string peerText = whyNoPeer is null ? $"peer: TorchSharp, libtorch {TorchPeer.Version}, {threads} threads" : $"peer: none, {whyNoPeer}";
        string[] facts = [$"ours: {device.Name}, {RuntimeInformation.FrameworkDescription}", $"limits: {limits.Description}", peerText, $"medians of {rounds} rounds"];
        foreach (string fact in facts)
            Console.WriteLine(fact);
        Console.WriteLine();

        json?.Directory?.Create();
        markdown?.Directory?.Create();
        using StreamWriter? lines = json is null ? null : new StreamWriter(json.FullName) { AutoFlush = true };
        var comparison = new Comparison(device, limits, whyNoPeer, rounds);
        var results = new List<Result>();
        var failures = new List<string>();
        foreach (Case @case in cases)
        {
            Console.Write($"{results.Count + failures.Count + 1,3}/{cases.Length} {@case.Name}, {@case.Shape} ... ");
            try
            {
                Result result = comparison.Measure(@case);
                results.Add(result);
                lines?.WriteLine(Report.Json(result));
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{result.OursMs:0.00} ms, {result.LimitShare:0.000} of {result.Limit}{(result.PeerMs is { } ms ? $"; peer {ms:0.00} ms, {result.Peer}" : "")}"));
            }
            catch (Exception exception) when (exception is ContractException or NotSupportedException or NotImplementedException or ArgumentException)
            {
                string kind = exception is ContractException ? "WRONG" : "FAILED";
                failures.Add($"{kind} {@case.Name}: {exception.Message}");
                Console.WriteLine(kind);
            }
        }

        Console.WriteLine();
        Report.Print(results);
        if (markdown is not null)
            Report.WriteMarkdown(markdown.FullName, results, facts);
        if (isSweep)
            Console.WriteLine(Sweep.Verdict(results));
        foreach (string failure in failures)
            Console.WriteLine(failure);
        if (missing.Length > 0)
            Console.WriteLine($"not yet, waiting for what stands behind them: {string.Join("; ", missing)}");
        return failures.Count == 0 ? 0 : 1;

        bool Wanted(string name) => filters.Length == 0 || filters.Any(text => name.Contains(text, StringComparison.OrdinalIgnoreCase));
    }
}
