using System.Globalization;
using System.Text;
using System.Text.Json;
using BenchmarkDotNet.Environments;
using Spectre.Console;

namespace TransformerKernels.Benchmarks;

/// <summary>Results as a table for people, as JSON lines, and as a page of Markdown to keep.</summary>
internal static class Report
{
    private const double Giga = 1e9;

    // What the table needs.
    private const int TableWidth = 165;

    private static readonly string[] Headings =
        ["case", "ours ms", "spread", "limit", "share", "must", "aim", "met", "peer ms", "peer share", "speed-up", "extra MB", "error"];

    // The columns of words; the others hold numbers.
    private static readonly int[] Words = [0, 7];

    // The page has room for these too.
    private static readonly string[] MoreHeadings = ["fastest peer", "shape"];

    /// <summary>Prints the table.</summary>
    public static void Print(IReadOnlyList<Result> results)
    {
        IAnsiConsole console = AnsiConsole.Console;
        console.Profile.Width = Math.Max(console.Profile.Width, TableWidth);
        var table = new Table { Border = TableBorder.Simple };
        for (int column = 0; column < Headings.Length; column++)
        {
            var heading = new TableColumn(Headings[column]) { NoWrap = true };
            table.AddColumn(Words.Contains(column) ? heading : heading.RightAligned());
        }
        foreach (Result result in results)
            table.AddRow([.. Cells(result).Select(cell => new Text(cell))]);
        console.Write(table);
    }

    /// <summary>A result as one line.</summary>
    public static string Json(Result result) => JsonSerializer.Serialize(result);

    /// <summary>A page with the machine, how it was measured, and the table.</summary>
    public static void WriteMarkdown(string path, IReadOnlyList<Result> results, IEnumerable<string> facts)
    {
        var page = new StringBuilder();
        page.AppendLine("```");
        foreach (string line in HostEnvironmentInfo.GetCurrent().ToFormattedString())
            page.AppendLine(line);
        page.AppendLine("```").AppendLine();
        foreach (string fact in facts)
            page.Append("* ").AppendLine(fact);
        page.AppendLine();
        page.Append("| ").AppendJoin(" | ", [.. Headings, .. MoreHeadings]).AppendLine(" |");
        page.Append("|").AppendJoin("|", Headings.Select((_, column) => Words.Contains(column) ? "---" : "---:")).AppendLine("|---|---|");
        foreach (Result result in results)
            page.Append("| ").AppendJoin(" | ", [.. Cells(result), result.PeerMs is null ? "" : result.Peer, result.Shape]).AppendLine(" |");
        File.WriteAllText(path, page.ToString());
    }

    private static string[] Cells(Result result) =>
    [
        result.Case, Text(result.OursMs, "0.00"), Text(result.Spread, "0.0%"),
        $"{result.Limit} {Text(result.LimitRate / Giga, "0.0")} {(result.Limit == "peak" ? "GFLOP/s" : "GB/s")}",
        Text(result.LimitShare, "0.000"), Text(result.Must, "0.00"), Text(result.Aim, "0.00"), result.Met,
        Text(result.PeerMs, "0.00"), Text(result.PeerShare, "0.000"), Text(result.Speedup, "0.0x"), Text(result.ExtraMb, "0.0"),
        Text(result.Error, "0.00"),
    ];

    private static string Text(double? value, string format) => value?.ToString(format, CultureInfo.InvariantCulture) ?? "";
}
