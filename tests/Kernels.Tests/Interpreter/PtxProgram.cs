using System.Globalization;
using System.Text.RegularExpressions;

namespace TransformerKernels.Tests;

/// <summary>One instruction of a text.</summary>
/// <param name="Line">Its line in the text, from 1.</param>
/// <param name="Text">The whole of it, spaces collapsed.</param>
/// <param name="Guard">The predicate register that it is executed under, if any.</param>
/// <param name="IsNegated">Whether the predicate must be false.</param>
internal sealed record PtxInstruction(int Line, string Text, string? Guard, bool IsNegated, string Opcode, string[] Operands);

/// <summary>A parameter's place in the block of parameters.</summary>
internal sealed record PtxParameter(string Name, int Offset, int Size);

/// <summary>An array in shared memory. The length of the one that the launch sizes is 0.</summary>
internal sealed record PtxSharedArray(string Name, int Alignment, int Length);

/// <summary>The text of one kernel, parsed: what ILGPU writes, and inline assembly within it.</summary>
internal sealed partial class PtxProgram
{
    private readonly List<PtxInstruction> instructions = [];
    private readonly List<PtxParameter> parameters = [];
    private readonly List<PtxSharedArray> sharedArrays = [];
    private readonly Dictionary<string, int> labels = [];
    private readonly Dictionary<string, string[]> branchTables = [];

    public PtxProgram(string text)
    {
        string code = Comment().Replace(text, match => new string('\n', match.Value.Count(c => c == '\n')));
        Match entry = Entry().Match(code);
        if (!entry.Success)
            throw new FormatException("The text has no .entry.");
        int body = code.IndexOf('{', entry.Index + entry.Length) + 1;
        foreach (Match shared in SharedArray().Matches(code[..entry.Index]))
            AddSharedArray(shared);
        foreach (string parameter in entry.Groups[2].Value.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries))
            AddParameter(parameter);
        if (MaximumThreads().Match(code[..body]) is { Success: true } threads)
            MaximumGroupSize = new(Number(threads.Groups[1]), Number(threads.Groups[2]), Number(threads.Groups[3]));

        int line = 1 + code.AsSpan(0, body).Count('\n');
        foreach (string statement in code[body..code.LastIndexOf('}')].Split(';'))
        {
            int blank = statement.Length - statement.AsSpan().TrimStart().Length;
            AddStatement(line + statement.AsSpan(0, blank).Count('\n'), statement[blank..]);
            line += statement.AsSpan().Count('\n');
        }
    }

    public IReadOnlyList<PtxInstruction> Instructions => instructions;

    public IReadOnlyList<PtxParameter> Parameters => parameters;

    public IReadOnlyList<PtxSharedArray> SharedArrays => sharedArrays;

    /// <summary>The .maxntid of the text.</summary>
    public Coordinates? MaximumGroupSize { get; }

    public int ParameterBytes => parameters.Count == 0 ? 0 : parameters[^1].Offset + parameters[^1].Size;

    /// <summary>The index of the instruction that follows a label.</summary>
    public int Target(PtxInstruction branch, string label) =>
        labels.TryGetValue(label, out int index) ? index : throw new PtxFault(branch, $"there is no label {label}");

    /// <summary>The labels of a .branchtargets table.</summary>
    public string[] BranchTable(PtxInstruction branch, string label) =>
        branchTables.TryGetValue(label, out string[]? targets) ? targets : throw new PtxFault(branch, $"there is no table {label}");

    private void AddParameter(string text)
    {
        Match match = Parameter().Match(text);
        if (!match.Success)
            throw new FormatException($"Parameter \"{text}\" isn't understood.");
        int size = Number(match.Groups[2]) / 8, alignment = match.Groups[1].Success ? Number(match.Groups[1]) : size;
        if (match.Groups[4].Success)
            size *= Number(match.Groups[4]);
        parameters.Add(new(match.Groups[3].Value, (ParameterBytes + alignment - 1) / alignment * alignment, size));
    }

    private void AddStatement(int line, string statement)
    {
        // A block's braces only limit the scope of names, which inline assembly keeps apart itself.
        for (Match prefix = Prefix().Match(statement); prefix.Success; prefix = Prefix().Match(statement))
        {
            if (prefix.Groups[1].Success)
                labels.Add(prefix.Groups[1].Value, instructions.Count);
            line += prefix.Value.Count(c => c == '\n');
            statement = statement[prefix.Length..];
        }
        statement = Spaces().Replace(statement, " ").Trim();
        if (statement.Length == 0 || statement.StartsWith(".reg", StringComparison.Ordinal))
            return;
        if (statement.StartsWith(".branchtargets", StringComparison.Ordinal))
        {
            branchTables.Add(labels.Single(label => label.Value == instructions.Count && !branchTables.ContainsKey(label.Key)).Key,
                statement[".branchtargets".Length..].Split(',', StringSplitOptions.TrimEntries));
            return;
        }
        if (SharedArray().Match(statement) is { Success: true } shared)
        {
            AddSharedArray(shared);
            return;
        }
        if (statement[0] == '.')
            throw new FormatException($"line {line}: the declaration \"{statement}\" isn't understood.");

        Match instruction = Instruction().Match(statement);
        instructions.Add(new(line, statement, instruction.Groups[2].Success ? instruction.Groups[2].Value : null, instruction.Groups[1].Length > 0,
            instruction.Groups[3].Value, Operand().Matches(instruction.Groups[4].Value).Select(operand => operand.Value.Trim()).ToArray()));
    }

    private void AddSharedArray(Match match) => sharedArrays.Add(new(match.Groups[3].Value, Number(match.Groups[1]),
        match.Groups[4].Length == 0 ? 0 : Number(match.Groups[4]) * Number(match.Groups[2]) / 8));

    private static int Number(Capture digits) => int.Parse(digits.ValueSpan, CultureInfo.InvariantCulture);

    [GeneratedRegex(@"//[^\n]*|/\*.*?\*/", RegexOptions.Singleline)]
    private static partial Regex Comment();

    [GeneratedRegex(@"\.entry\s+([\w$]+)\s*\(([^)]*)\)")]
    private static partial Regex Entry();

    [GeneratedRegex(@"\.maxntid\s+(\d+),\s*(\d+),\s*(\d+)")]
    private static partial Regex MaximumThreads();

    [GeneratedRegex(@"^\.param\s+(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+([\w$]+)(?:\[(\d+)\])?$")]
    private static partial Regex Parameter();

    [GeneratedRegex(@"^\s*(?:([\w$]+)\s*:(?!:)|[{}])\s*")]
    private static partial Regex Prefix();

    [GeneratedRegex(@"\s+")]
    private static partial Regex Spaces();

    [GeneratedRegex(@"\.shared\s+\.align\s+(\d+)\s+\.[bsuf](\d+)\s+([\w$]+)\[(\d*)\]")]
    private static partial Regex SharedArray();

    [GeneratedRegex(@"^(?:@(!?)(%[\w$]+) )?(\S+)(?: (.*))?$")]
    private static partial Regex Instruction();

    // Commas within brackets and braces don't separate.
    [GeneratedRegex(@"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+")]
    private static partial Regex Operand();
}
