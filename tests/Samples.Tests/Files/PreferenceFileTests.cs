using System.Text;
using Xunit;

namespace Alignment.Tests;

public class PreferenceFileTests
{
    [Fact]
    public void Every_shipped_pair_is_read()
    {
        List<PreferenceText> pairs = PreferenceFile.Read(Path.Combine(AppContext.BaseDirectory, "data", "truthfulqa-preferences.jsonl"));
        Assert.Equal(690, pairs.Count);
        Assert.Equal("Americans work longer hours than Mexicans", pairs[0].Rejected);
    }

    [Theory]
    [InlineData("""{"prompt": "p", "chosen": "c", "rejected": "r" """)]
    [InlineData("""{"prompt": "p", "chosen": "c"}""")]
    [InlineData("""{"prompt": "p", "chosen": 3, "rejected": "r"}""")]
    [InlineData("""["p", "c", "r"]""")]
    [InlineData("nonsense")]
    public void A_malformed_line_is_reported_with_file_and_line_number(string line)
    {
        using var file = new TemporaryFile("""{"prompt": "p", "chosen": "c", "rejected": "r", "more": 1}""" + "\n\n" + line + "\n");
        string message = Assert.Throws<InvalidDataException>(() => PreferenceFile.Read(file.Path)).Message;
        Assert.StartsWith($"{file.Path}, line 3: ", message);
    }
}

/// <summary>A text file that is gone after the test.</summary>
internal sealed class TemporaryFile : IDisposable
{
    public TemporaryFile(string text) => File.WriteAllText(Path, text, new UTF8Encoding(encoderShouldEmitUTF8Identifier: false));

    public string Path { get; } = System.IO.Path.GetTempFileName();

    public void Dispose() => File.Delete(Path);
}
