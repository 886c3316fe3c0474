using System.Globalization;
using System.Numerics;
using System.Text.RegularExpressions;

namespace TransformerKernels.Tests;

/// <summary>A program with names, constants and opcodes turned into register numbers and delegates, once.</summary>
internal sealed partial class DecodedProgram
{
    private readonly PtxProgram program;
    private readonly Dictionary<string, int> registers = [];
    private readonly List<(int Register, Func<ThreadGroup, int, ulong> Value)> constants = [];
    private readonly Dictionary<string, int> sharedArrays;

    public DecodedProgram(PtxProgram program)
    {
        this.program = program;
        sharedArrays = program.SharedArrays.Select((array, index) => (array.Name, index)).ToDictionary(pair => pair.Name, pair => pair.index);
        Steps = program.Instructions.Select(Decode).ToArray();
        int[] meetings = Reconvergence.Of(Steps.Select((step, index) => Successors(step, index, Steps.Length)).ToArray());
        for (int i = 0; i < Steps.Length; i++)
            Steps[i].Meeting = meetings[i];
    }

    public Step[] Steps { get; }

    public int RegisterCount => registers.Count;

    /// <summary>log2 of the narrowest access to memory in bytes, at most 2.</summary>
    public int WordShift { get; private set; } = 2;

    public void FillConstants(Warp warp)
    {
        foreach ((int register, Func<ThreadGroup, int, ulong> value) in constants)
        {
            for (int lane = 0; lane < Warp.Size; lane++)
                warp.Registers[register + lane] = value(warp.Group, warp.FirstThread + lane);
        }
    }

    private static int[] Successors(Step step, int index, int end) => step.Kind switch
    {
        StepKind.Exit => step.Guard < 0 ? [end] : [end, index + 1],
        StepKind.Branch or StepKind.IndexedBranch when step.Guard < 0 => step.Targets,
        StepKind.Branch or StepKind.IndexedBranch => [.. step.Targets, index + 1],
        _ => [index + 1],
    };

    private Step Decode(PtxInstruction instruction)
    {
        int guard = instruction.Guard is { } name ? Register(instruction, name) : -1;
        string[] operands = instruction.Operands;
        switch (instruction.Opcode)
        {
            case "bra" or "bra.uni":
                return new(instruction, StepKind.Branch)
                {
                    Guard = guard,
                    Targets = [program.Target(instruction, operands[0])],
                    IsUniform = instruction.Opcode == "bra.uni",
                };
            case "brx.idx" or "brx.idx.uni":
                return new(instruction, StepKind.IndexedBranch)
                {
                    Guard = guard,
                    Index = Register(instruction, operands[0]),
                    Targets = program.BranchTable(instruction, operands[1]).Select(label => program.Target(instruction, label)).ToArray(),
                    IsUniform = instruction.Opcode == "brx.idx.uni",
                };
            case "ret" or "exit":
                return new(instruction, StepKind.Exit) { Guard = guard };
            case "bar.sync" or "barrier.sync" when operands is ["0"]:
                return new(instruction, StepKind.Barrier) { Guard = guard };
            default:
                return new(instruction, StepKind.Plain) { Guard = guard, Action = Action(instruction) };
        }
    }

    private WarpAction Action(PtxInstruction instruction)
    {
        string opcode = instruction.Opcode;
        string[] operands = instruction.Operands;
        switch (opcode.Split('.')[0])
        {
            case "membar" or "fence":
                // Nothing here is seen late.
                return (_, _) => { };
            case "ld" or "st" or "atom" or "red":
                return MemoryInstructions.Decode(instruction, this) ?? throw Unknown(instruction);
            case "setp":
                return Compare(instruction);
            case "shfl":
                return Shuffle(instruction);
            case "mov" when operands is [_, ['{', ..]] or [['{', ..], _]:
                return MovePacked(instruction);
        }
        return operands.Length switch
        {
            2 when Arithmetic.Unary(opcode) is { } f => Unary(instruction, f),
            3 when Arithmetic.Binary(opcode) is { } f => Binary(instruction, f),
            4 when Arithmetic.Ternary(opcode) is { } f => Ternary(instruction, f),
            5 when opcode == "bfi.b32" => InsertBits(instruction),
            _ => throw Unknown(instruction),
        };
    }

    private WarpAction Unary(PtxInstruction instruction, Func<ulong, ulong> f)
    {
        (int to, int a) = (Register(instruction, 0), Register(instruction, 1));
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            for (; active != 0; active &= active - 1)
            {
                int lane = BitOperations.TrailingZeroCount(active);
                registers[to + lane] = f(registers[a + lane]);
            }
        };
    }

    private WarpAction Binary(PtxInstruction instruction, Func<ulong, ulong, ulong> f)
    {
        (int to, int a, int b) = (Register(instruction, 0), Register(instruction, 1), Register(instruction, 2));
        // Dividing an integer by zero gives anything.
        ulong divisorBits = IntegerDivision().Match(instruction.Opcode) is { Success: true } division
            ? ulong.MaxValue >> 64 - int.Parse(division.Groups[1].ValueSpan, CultureInfo.InvariantCulture) : 0;
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            for (; active != 0; active &= active - 1)
            {
                int lane = BitOperations.TrailingZeroCount(active);
                ulong y = registers[b + lane];
                if (divisorBits != 0 && (y & divisorBits) == 0)
                    throw warp.Fault(instruction, active, "divides by zero");
                registers[to + lane] = f(registers[a + lane], y);
            }
        };
    }

    private WarpAction Ternary(PtxInstruction instruction, Func<ulong, ulong, ulong, ulong> f)
    {
        (int to, int a, int b, int c) = (Register(instruction, 0), Register(instruction, 1), Register(instruction, 2), Register(instruction, 3));
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            for (; active != 0; active &= active - 1)
            {
                int lane = BitOperations.TrailingZeroCount(active);
                registers[to + lane] = f(registers[a + lane], registers[b + lane], registers[c + lane]);
            }
        };
    }

    private WarpAction InsertBits(PtxInstruction instruction)
    {
        int[] r = Enumerable.Range(0, 5).Select(i => Register(instruction, i)).ToArray();
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            for (; active != 0; active &= active - 1)
            {
                int lane = BitOperations.TrailingZeroCount(active);
                registers[r[0] + lane] = Arithmetic.Insert(registers[r[1] + lane], registers[r[2] + lane], registers[r[3] + lane], registers[r[4] + lane]);
            }
        };
    }

    // setp.COMPARISON[.BOOLEAN].TYPE p[|q], a, b[, [!]c]: p is the comparison, q its opposite, each joined with c.
    private WarpAction Compare(PtxInstruction instruction)
    {
        string[] parts = instruction.Opcode.Split('.'), to = instruction.Operands[0].Split('|');
        Func<ulong, ulong, bool> compare = Arithmetic.Comparison(parts[1], parts[^1]) ?? throw Unknown(instruction);
        bool isJoined = parts.Length == 4;
        string join = isJoined ? parts[2] : "";
        if (parts.Length > 4 || instruction.Operands.Length != (isJoined ? 4 : 3) || isJoined && join is not ("and" or "or" or "xor"))
            throw Unknown(instruction);
        (int p, int q) = (Register(instruction, to[0]), to.Length == 2 ? Register(instruction, to[1]) : -1);
        (int a, int b) = (Register(instruction, 1), Register(instruction, 2));
        bool isNegated = isJoined && instruction.Operands[3][0] == '!';
        int c = isJoined ? Register(instruction, instruction.Operands[3].TrimStart('!')) : -1;
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            for (; active != 0; active &= active - 1)
            {
                int lane = BitOperations.TrailingZeroCount(active);
                bool holds = compare(registers[a + lane], registers[b + lane]), with = c >= 0 && registers[c + lane] != 0 != isNegated;
                if (q >= 0)
                    registers[q + lane] = Arithmetic.Truth(Join(!holds, with));
                registers[p + lane] = Arithmetic.Truth(Join(holds, with));
            }
        };

        bool Join(bool x, bool y) => join switch { "and" => x & y, "or" => x | y, "xor" => x ^ y, _ => x };
    }

    // shfl.sync.MODE.b32 to[|p], from, lane or distance, clamp and segments, members.
    private WarpAction Shuffle(PtxInstruction instruction)
    {
        if (instruction.Opcode is not ("shfl.sync.idx.b32" or "shfl.sync.up.b32" or "shfl.sync.down.b32" or "shfl.sync.bfly.b32") || instruction.Operands.Length != 5)
            throw Unknown(instruction);
        string mode = instruction.Opcode.Split('.')[2];
        string[] results = instruction.Operands[0].Split('|');
        (int to, int found) = (Register(instruction, results[0]), results.Length == 2 ? Register(instruction, results[1]) : -1);
        (int from, int by, int limits, int members) = (Register(instruction, 1), Register(instruction, 2), Register(instruction, 3), Register(instruction, 4));
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            ulong[] before = registers.AsSpan(from, Warp.Size).ToArray();
            for (uint rest = active; rest != 0; rest &= rest - 1)
            {
                int lane = BitOperations.TrailingZeroCount(rest);
                uint expected = (uint)registers[members + lane] & warp.Live;
                if (expected != active)
                    throw warp.Fault(instruction, rest, $"threads 0x{expected:X8} of the warp have to be here, and 0x{active:X8} are");
                int distance = (int)registers[by + lane] & Warp.Size - 1, clamp = (int)registers[limits + lane] & Warp.Size - 1;
                int segment = (int)(registers[limits + lane] >> 8) & Warp.Size - 1, last = lane & segment | clamp & ~segment;
                int source = mode switch
                {
                    "up" => lane - distance,
                    "down" => lane + distance,
                    "bfly" => lane ^ distance,
                    _ => lane & segment | distance & ~segment,
                };
                bool isWithin = mode == "up" ? source >= last : source <= last;
                if (!isWithin)
                    source = lane;
                if ((active >> source & 1) == 0)
                    throw warp.Fault(instruction, rest, $"takes the number of thread {source} of the warp, which isn't there");
                registers[to + lane] = (uint)before[source];
                if (found >= 0)
                    registers[found + lane] = Arithmetic.Truth(isWithin);
            }
        };
    }

    // mov.b64 to, {low, high} and mov.b64 {low, high}, from, and the same with halves of 32 bits.
    private WarpAction MovePacked(PtxInstruction instruction)
    {
        bool packs = instruction.Operands[1][0] == '{';
        int whole = Register(instruction, packs ? 0 : 1);
        int[] parts = Vector(instruction, instruction.Operands[packs ? 1 : 0]);
        int bits = instruction.Opcode switch { "mov.b32" => 32, "mov.b64" => 64, _ => throw Unknown(instruction) } / parts.Length;
        ulong mask = ulong.MaxValue >> 64 - bits;
        return (warp, active) =>
        {
            ulong[] registers = warp.Registers;
            for (; active != 0; active &= active - 1)
            {
                int lane = BitOperations.TrailingZeroCount(active);
                if (packs)
                {
                    ulong value = 0;
                    for (int i = 0; i < parts.Length; i++)
                        value |= (registers[parts[i] + lane] & mask) << i * bits;
                    registers[whole + lane] = value;
                }
                else
                {
                    ulong value = registers[whole + lane];
                    for (int i = 0; i < parts.Length; i++)
                        registers[parts[i] + lane] = value >> i * bits & mask;
                }
            }
        };
    }

    /// <summary>The registers of an operand that may be a vector in braces.</summary>
    public int[] Vector(PtxInstruction instruction, string operand) =>
        operand.Trim('{', '}').Split(',', StringSplitOptions.TrimEntries).Select(name => Register(instruction, name)).ToArray();

    private int Register(PtxInstruction instruction, int operand) => Register(instruction, instruction.Operands[operand]);

    /// <summary>The register of a name; that of a constant holds it from the start.</summary>
    public int Register(PtxInstruction instruction, string name)
    {
        if (registers.TryGetValue(name, out int register))
            return register;
        register = registers.Count * Warp.Size;
        if (Constant(name) is { } constant)
            constants.Add((register, constant));
        else if (!RegisterName().IsMatch(name))
            throw new PtxFault(instruction, $"the operand {name} isn't understood");
        registers.Add(name, register);
        return register;
    }

    public PtxParameter Parameter(PtxInstruction instruction, string name) =>
        program.Parameters.SingleOrDefault(parameter => parameter.Name == name) ?? throw new PtxFault(instruction, $"there is no parameter {name}");

    /// <summary>Says how narrow an access to memory may be.</summary>
    public void Accesses(int bytes) => WordShift = Math.Min(WordShift, BitOperations.Log2((uint)bytes));

    public static PtxFault Unknown(PtxInstruction instruction) => new(instruction, $"the interpreter doesn't know {instruction.Opcode} with {instruction.Operands.Length} operands");

    private Func<ThreadGroup, int, ulong>? Constant(string name)
    {
        switch (name)
        {
            case "%tid.x": return (group, thread) => (ulong)group.Size.At(thread).X;
            case "%tid.y": return (group, thread) => (ulong)group.Size.At(thread).Y;
            case "%tid.z": return (group, thread) => (ulong)group.Size.At(thread).Z;
            case "%ntid.x": return (group, _) => (ulong)group.Size.X;
            case "%ntid.y": return (group, _) => (ulong)group.Size.Y;
            case "%ntid.z": return (group, _) => (ulong)group.Size.Z;
            case "%ctaid.x": return (group, _) => (ulong)group.Place.X;
            case "%ctaid.y": return (group, _) => (ulong)group.Place.Y;
            case "%ctaid.z": return (group, _) => (ulong)group.Place.Z;
            case "%nctaid.x": return (group, _) => (ulong)group.Grid.X;
            case "%nctaid.y": return (group, _) => (ulong)group.Grid.Y;
            case "%nctaid.z": return (group, _) => (ulong)group.Grid.Z;
            case "%laneid": return (_, thread) => (ulong)(thread % Warp.Size);
        }
        if (sharedArrays.TryGetValue(name, out int array))
            return (group, _) => group.SharedAddresses[array];
        return Number(name) is { } number ? (_, _) => number : null;
    }

    private static ulong? Number(string text)
    {
        if (text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) || text.StartsWith("0f", StringComparison.OrdinalIgnoreCase) || text.StartsWith("0d", StringComparison.OrdinalIgnoreCase))
            return ulong.Parse(text.AsSpan(2), NumberStyles.HexNumber, CultureInfo.InvariantCulture);
        return ulong.TryParse(text, CultureInfo.InvariantCulture, out ulong number) ? number :
            long.TryParse(text, CultureInfo.InvariantCulture, out long negative) ? (ulong)negative : null;
    }

    [GeneratedRegex(@"^(?:div|rem)\.[su](\d+)$")]
    private static partial Regex IntegerDivision();

    [GeneratedRegex(@"^%?[A-Za-z_$][\w$]*$")]
    private static partial Regex RegisterName();
}
