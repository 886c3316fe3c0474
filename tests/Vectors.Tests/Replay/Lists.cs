using System.Globalization;
using System.Text.Json;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>pending.txt: the cases that aren't supported yet, one id a line.</summary>
public static class Pending
{
    public static HashSet<string> Read(string path)
    {
        var ids = new HashSet<string>();
        foreach (string line in Lines.Of(path))
        {
            if (!ids.Add(line))
                throw new InvalidDataException($"{path} lists {line} twice.");
        }
        return ids;
    }
}

/// <summary>A line of disagree.txt: where the reference is wrong, or we refuse, and what we do instead.</summary>
/// <param name="Id">folder/file#case.</param>
/// <param name="Entry">outputs/name or gradients/name; "call" if we throw.</param>
/// <param name="Instead">A number, [numbers], "0 where INPUT is 0", "0 where mask shows no key", or "throws EXCEPTION".</param>
/// <param name="Reason">Why.</param>
public sealed record Disagreement(string Id, string Entry, string Instead, string Reason)
{
    private const string Throws = "throws ", ZeroWhere = "0 where ", IsZero = " is 0", ShowsNoKey = "0 where mask shows no key";

    public static ILookup<string, Disagreement> Read(string path) => Lines.Of(path).Select(line =>
    {
        string[] parts = line.Split(" | ");
        if (parts.Length != 4 || parts.Any(string.IsNullOrWhiteSpace))
            throw new InvalidDataException($"{path}: \"{line}\" isn't \"id | entry | instead | reason\".");
        return new Disagreement(parts[0], parts[1], parts[2], parts[3]);
    }).ToLookup(line => line.Id);

    /// <summary>The name of the exception that we throw; null if we don't.</summary>
    public string? Exception => Instead.StartsWith(Throws, StringComparison.Ordinal) ? Instead[Throws.Length..] : null;

    /// <summary>What we give in place of the reference's numbers.</summary>
    public double[] Replace(VectorCase vector, double[] theirs)
    {
        if (Instead.StartsWith(ZeroWhere, StringComparison.Ordinal) && Instead.EndsWith(IsZero, StringComparison.Ordinal))
        {
            double[] where = vector.Need(Instead[ZeroWhere.Length..^IsZero.Length]).Data;
            if (where.Length != theirs.Length)
                throw new InvalidDataException($"{Id}: \"{Instead}\" doesn't fit {theirs.Length} numbers.");
            return [.. theirs.Select((x, i) => where[i] == 0 ? 0 : x)];
        }
        if (Instead == ShowsNoKey)
            return WithoutKeys(vector, theirs);
        double[] ours = Instead.StartsWith('[') ? JsonSerializer.Deserialize<double[]>(Instead, Named)! : [double.Parse(Instead, CultureInfo.InvariantCulture)];
        return ours.Length == theirs.Length ? ours : throw new InvalidDataException($"{Id}: {ours.Length} numbers in place of {theirs.Length}.");
    }

    // The output [b, h, Sq, dv] is 0 where the mask [b or 1, h or 1, Sq, Sk] has a row of zeros.
    private static double[] WithoutKeys(VectorCase vector, double[] theirs)
    {
        Grid<double> mask = vector.Need("mask").Grid, output = new([.. theirs], vector.Outputs["output"].Shape);
        for (int b = 0; b < output.Shape[0]; b++)
        {
            for (int h = 0; h < output.Shape[1]; h++)
            {
                for (int i = 0; i < output.Shape[2]; i++)
                {
                    if (!Enumerable.Range(0, mask.Shape[3]).Any(j => mask[b, h, i, j] != 0))
                        output.Row(b, h, i).Clear();
                }
            }
        }
        return output.Data;
    }

    private static readonly JsonSerializerOptions Named = new() { NumberHandling = System.Text.Json.Serialization.JsonNumberHandling.AllowNamedFloatingPointLiterals };
}

file static class Lines
{
    // Ids hold a #, so a remark is a line that begins with "# ".
    public static IEnumerable<string> Of(string path) =>
        File.ReadLines(path).Select(line => line.Trim()).Where(line => line.Length > 0 && line != "#" && !line.StartsWith("# ", StringComparison.Ordinal));
}
