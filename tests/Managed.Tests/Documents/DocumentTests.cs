using System.Text.RegularExpressions;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What stands in README.md and docs/ is true: its C# is what the tests beside this file and in tests/Kernels.Tests/Documents run, and its links lead somewhere.</summary>
/// <remarks>
/// A C# block of a document starts with <c>```csharp name</c>; the same lines stand between <c>// snippet: name</c> and <c>// snippet ends</c> in a test.
/// Using directives at the top of a block are left out of the comparison: a test file has its own.
/// </remarks>
public partial class DocumentTests
{
    public static TheoryData<string> Documents()
    {
        var documents = new TheoryData<string> { "README.md", "CONTRIBUTING.md", "CHANGELOG.md" };
        foreach (string page in Directory.GetFiles(Path.Combine(Root, "docs"), "*.md").Order(StringComparer.Ordinal))
            documents.Add("docs/" + Path.GetFileName(page));
        return documents;
    }

    [Theory]
    [MemberData(nameof(Documents))]
    public void Code_in_a_document_is_code_that_a_test_runs(string document)
    {
        foreach (Match block in CodeBlock().Matches(Read(document)))
        {
            string name = block.Groups["name"].Value.Trim();
            Assert.True(Snippets.Value.ContainsKey(name), $"{document}: no test has the C# block \"{name}\"; mark it with \"// snippet: {name}\".");
            Assert.Equal(Snippets.Value[name], UsingDirectives().Replace(block.Groups["code"].Value, "").TrimEnd());
        }
    }

    [Theory]
    [MemberData(nameof(Documents))]
    public void Links_in_a_document_lead_to_files(string document)
    {
        string folder = Path.GetDirectoryName(Path.Combine(Root, document))!;
        foreach (Match link in Link().Matches(Read(document)))
        {
            string target = link.Groups["target"].Value;
            if (!target.StartsWith("https://", StringComparison.Ordinal))
                Assert.True(Path.Exists(Path.Combine(folder, target)), $"{document} links to {target}, which isn't there.");
        }
    }

    [Fact]
    public void Every_snippet_of_the_tests_stands_in_a_document()
    {
        string everything = string.Concat(Documents().Select(row => Read(row.Data)));
        Assert.All(Snippets.Value.Keys, name => Assert.Contains($"```csharp {name}\n", everything));
    }

    /// <summary>The text of a file of the repository.</summary>
    internal static string Read(string file) => File.ReadAllText(Path.Combine(Root, file));

    private static string Root { get; } = FindRoot();

    private static Lazy<Dictionary<string, string>> Snippets { get; } = new(FindSnippets);

    private static string FindRoot()
    {
        string? folder = AppContext.BaseDirectory;
        while (folder is not null && !File.Exists(Path.Combine(folder, "Kernels.sln")))
            folder = Path.GetDirectoryName(folder);
        return folder ?? throw new InvalidOperationException("The tests run outside the repository: no Kernels.sln above them.");
    }

    private static Dictionary<string, string> FindSnippets()
    {
        var snippets = new Dictionary<string, string>();
        string[] projects = ["Managed.Tests", "Kernels.Tests"]; // the latter for what runs on GPUs
        foreach (string file in projects.SelectMany(project => Directory.GetFiles(Path.Combine(Root, "tests", project, "Documents"), "*.cs")))
        {
            foreach (Match snippet in Snippet().Matches(File.ReadAllText(file)))
            {
                string indent = snippet.Groups["indent"].Value;
                IEnumerable<string> lines = snippet.Groups["code"].Value.Split('\n')
                    .Select(line => line.StartsWith(indent, StringComparison.Ordinal) ? line[indent.Length..] : line);
                snippets.Add(snippet.Groups["name"].Value, string.Join('\n', lines).TrimEnd());
            }
        }
        return snippets;
    }

    [GeneratedRegex(@"^```csharp(?<name>[^\n]*)\n(?<code>.*?)^```", RegexOptions.Multiline | RegexOptions.Singleline)]
    private static partial Regex CodeBlock();

    [GeneratedRegex(@"\A(using [\w.]+;\n)+\n")]
    private static partial Regex UsingDirectives();

    [GeneratedRegex(@"^(?<indent> *)// snippet: (?<name>[\w-]+)\n(?<code>.*?)^ *// snippet ends", RegexOptions.Multiline | RegexOptions.Singleline)]
    private static partial Regex Snippet();

    [GeneratedRegex(@"\]\((?<target>[^)#\s]+)(#[^)]*)?\)")]
    private static partial Regex Link();
}
