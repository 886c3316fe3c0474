#:property PublishAot=false

// Sums what the legs of .ci/run left in a folder: "legs" (name, exit code, seconds, last line; tab-separated) and NAME/*.xml (xunit reports).
// Prints a table, the skipped tests, the failures, and as its last line "N passed, N failed, N skipped". Exit code 1 if anything failed.

using System.Globalization;
using System.Xml.Linq;

const int cannotRunHere = 77;

string folder = args[0];
var skipped = new List<(string What, string? Test)>();
var failed = new List<string>();
var ran = new HashSet<string>();
int passed = 0;
Console.WriteLine($"\n{"leg",-14}{"minutes",8}{"passed",8}{"failed",8}{"skipped",9}");
foreach (string line in File.ReadLines(Path.Combine(folder, "legs")))
{
    string[] fields = line.Split('\t');
    (string leg, int code, double seconds, string last) = (fields[0], int.Parse(fields[1]), double.Parse(fields[2], CultureInfo.InvariantCulture), fields[3]);
    int passedHere = 0, failedBefore = failed.Count, skippedBefore = skipped.Count;
    string[] reports = Directory.GetFiles(Path.Combine(folder, leg), "*.xml", SearchOption.AllDirectories);
    foreach (XElement assembly in reports.SelectMany(report => XDocument.Load(report).Descendants("assembly")))
    {
        foreach (XElement test in assembly.Descendants("test"))
        {
            string name = (string)test.Attribute("name")!;
            switch ((string)test.Attribute("result")!)
            {
                case "Pass":
                    passedHere++;
                    ran.Add(name);
                    break;
                case "Skip":
                    skipped.Add(($"{leg}: {name}: {FirstLine(test.Element("reason")?.Value)}", name));
                    break;
                case "NotRun": // left out by the filter
                    break;
                default:
                    failed.Add($"{leg}: {name}: {FirstLine(test.Element("failure")?.Element("message")?.Value)}");
                    break;
            }
        }
        foreach (XElement error in assembly.Descendants("error"))
            failed.Add($"{leg}: {(string?)error.Attribute("type")} {(string?)error.Attribute("name")}: {FirstLine(error.Descendants("message").FirstOrDefault()?.Value)}");
    }
    string crashed = Path.Combine(folder, leg, "crashed");
    if (File.Exists(crashed))
        failed.AddRange(File.ReadLines(crashed).Select(what => $"{leg}: {what}"));
    if (code == cannotRunHere)
        skipped.Add(($"{leg}, the whole leg: {last}", null));
    else if (code != 0 && failed.Count == failedBefore)
        failed.Add($"{leg}: exit code {code}: {last}");
    else if (code == 0 && reports.Length == 0)
        passedHere++;
    passed += passedHere;
    Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
        $"{leg,-14}{seconds / 60,8:F1}{passedHere,8}{failed.Count - failedBefore,8}{skipped.Count - skippedBefore,9}"));
}
int elsewhere = skipped.RemoveAll(skip => skip.Test is not null && ran.Contains(skip.Test));
if (elsewhere > 0)
    Console.WriteLine($"\nSkipped in one leg but passed in another, not counted as skipped: {elsewhere}");
Show("SKIPPED", skipped.Select(skip => skip.What));
Show("FAILED", failed);
Console.WriteLine($"\n{passed} passed, {failed.Count} failed{(skipped.Count > 0 ? $", {skipped.Count} skipped" : "")}");
return failed.Count > 0 || passed == 0 ? 1 : 0;

static void Show(string title, IEnumerable<string> lines)
{
    if (lines.Any())
        Console.WriteLine($"\n{title}\n  {string.Join("\n  ", lines)}");
}

static string FirstLine(string? text) => text?.Split('\n')[0] ?? "";
