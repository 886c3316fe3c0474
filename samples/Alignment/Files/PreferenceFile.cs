using System.Text.Json;

namespace Alignment;

/// <summary>A question and two answers to it, of which the first is preferred.</summary>
internal sealed record PreferenceText(string Prompt, string Chosen, string Rejected);

/// <summary>Preference pairs in the usual form: one JSON object a line, with the texts <c>prompt</c>, <c>chosen</c> and <c>rejected</c>.</summary>
internal static class PreferenceFile
{
    /// <summary>Reads all lines; empty ones are passed over, other fields ignored.</summary>
    /// <exception cref="InvalidDataException">A line isn't such an object; the message names file and line.</exception>
    public static List<PreferenceText> Read(string path)
    {
        var pairs = new List<PreferenceText>();
        int number = 0;
        foreach (string line in File.ReadLines(path))
        {
            number++;
            if (string.IsNullOrWhiteSpace(line))
                continue;
            try
            {
                using JsonDocument document = JsonDocument.Parse(line);
                pairs.Add(new(Text(document.RootElement, "prompt"), Text(document.RootElement, "chosen"), Text(document.RootElement, "rejected")));
            }
            catch (JsonException exception)
            {
                throw new InvalidDataException($"{path}, line {number}: not a JSON object, at byte {exception.BytePositionInLine}.", exception);
            }
            catch (InvalidDataException exception)
            {
                throw new InvalidDataException($"{path}, line {number}: {exception.Message}", exception);
            }
        }
        return pairs;
    }

    private static string Text(JsonElement line, string name)
    {
        if (line.ValueKind != JsonValueKind.Object)
            throw new InvalidDataException($"expected an object with prompt, chosen and rejected, found {line.ValueKind}.");
        if (!line.TryGetProperty(name, out JsonElement value))
            throw new InvalidDataException($"the text \"{name}\" is missing.");
        return value.ValueKind == JsonValueKind.String ? value.GetString()! : throw new InvalidDataException($"\"{name}\" is {value.ValueKind}, not text.");
    }
}
