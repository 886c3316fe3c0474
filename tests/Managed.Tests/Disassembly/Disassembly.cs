using System.Text.RegularExpressions;

namespace TransformerKernels.Tests;

/// <summary>What the JIT compiled, as <c>DOTNET_JitDisasm</c> writes it for x86-64.</summary>
internal static partial class Disassembly
{
    /// <summary>The methods in a listing with the loop of each that holds most vector instructions.</summary>
    public static IEnumerable<Loop> MainLoops(string listing)
    {
        string[] parts = MethodHeading().Split(listing);
        for (int i = 1; i + 1 < parts.Length; i += 2)
        {
            Loop[] loops = InnermostLoops(parts[i].Trim(), parts[i + 1]).ToArray();
            if (loops.Length > 0)
                yield return loops.MaxBy(loop => loop.Vector)!;
        }
    }

    private static IEnumerable<Loop> InnermostLoops(string method, string text)
    {
        var instructions = new List<string>();
        var labels = new Dictionary<string, int>();
        foreach (string line in text.Split('\n'))
        {
            if (Label().Match(line) is { Success: true } label)
                labels[label.Groups[1].Value] = instructions.Count;
            else if (Instruction().Match(line) is { Success: true } instruction)
                instructions.Add(instruction.Groups[1].Value);
        }
        var ranges = new List<(int First, int Last)>();
        for (int i = 0; i < instructions.Count; i++)
        {
            if (Jump().Match(instructions[i]) is { Success: true } jump && labels.TryGetValue(jump.Groups[1].Value, out int target) && target <= i)
                ranges.Add((target, i));
        }
        return ranges.Where(range => !ranges.Any(other => other != range && other.First >= range.First && other.Last <= range.Last))
            .Select(range => new Loop(method, instructions[range.First..(range.Last + 1)]));
    }

    [GeneratedRegex(@"^; Assembly listing for method (.*) \(.*\)\s*$", RegexOptions.Multiline)]
    private static partial Regex MethodHeading();

    [GeneratedRegex(@"^(G_M\w+):")]
    private static partial Regex Label();

    [GeneratedRegex(@"^\s+([a-z]\w*(\s.*)?)$")]
    private static partial Regex Instruction();

    [GeneratedRegex(@"^j\w+\s.*\b(G_M\w+)")]
    private static partial Regex Jump();
}

/// <summary>A loop of a method, as the JIT compiled it.</summary>
internal sealed partial class Loop(string method, List<string> instructions)
{
    public string Method => method;

    public int Instructions => instructions.Count;

    /// <summary>Instructions on vectors or their masks.</summary>
    public int Vector => instructions.Count(line => VectorRegister().IsMatch(line));

    public int Calls => instructions.Count(line => line.StartsWith("call", StringComparison.Ordinal));

    /// <summary>Branches inside the loop: all but the one that closes it.</summary>
    public int Branches => instructions.Count(line => line[0] == 'j') - 1;

    /// <summary>Vectors read from the stack or written to it: registers ran out.</summary>
    public int VectorSpills => instructions.Count(line => VectorOnStack().IsMatch(line));

    public override string ToString() =>
        $"{method}: {Instructions} instructions, {Vector} on vectors, {Calls} calls, {Branches} branches, {VectorSpills} vectors to or from the stack";

    [GeneratedRegex(@"\b([xyz]mm\d+|k[1-7])\b")]
    private static partial Regex VectorRegister();

    // Broadcasts of one float from the stack are constants that the loop reads, as from any other memory.
    [GeneratedRegex(@"\b[xyz]mmword ptr \[r[bs]p")]
    private static partial Regex VectorOnStack();
}
