using System.Globalization;
using System.Numerics;
using System.Text.RegularExpressions;

namespace TransformerKernels.Tests;

/// <summary>Loads, stores and atomic operations, with all that is checked about an access.</summary>
internal static partial class MemoryInstructions
{
    // How a cache shall treat the line, and volatile, which all is here.
    private static readonly HashSet<string> Hints = ["volatile", "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"];

    public static WarpAction? Decode(PtxInstruction instruction, DecodedProgram program)
    {
        string[] parts = instruction.Opcode.Split('.').Where(part => !Hints.Contains(part)).ToArray();
        if (parts is ["ld", "param", var parameterType])
            return Bytes(parameterType) is { } size ? LoadParameter(instruction, program, size, parameterType[0] == 's') : null;

        // ILGPU's atom.add.shared.u32 is what NVIDIA's manual calls atom.shared.add.u32; ptxas takes both.
        if (parts is ["atom" or "red", var atomic, "global" or "shared", var atomicType])
            parts = [parts[0], parts[2], atomic, atomicType];
        MemorySpace space = parts.Length > 1 ? parts[1] switch { "global" => MemorySpace.Global, "shared" => MemorySpace.Shared, _ => MemorySpace.Generic } : default;
        string[] rest = parts[(space == MemorySpace.Generic ? 1 : 2)..];
        int count = 1;
        if (parts[0] is "ld" or "st")
        {
            if (rest is ["v2" or "v4", _])
                (count, rest) = (rest[0] == "v2" ? 2 : 4, rest[1..]);
            if (rest.Length != 1 || Bytes(rest[0]) is not { } bytes || instruction.Operands.Length != 2)
                return null;
            program.Accesses(bytes);
            int[] values = program.Vector(instruction, instruction.Operands[parts[0] == "ld" ? 0 : 1]);
            if (values.Length != count)
                return null;
            (int address, long offset) = Address(instruction, program, instruction.Operands[parts[0] == "ld" ? 1 : 0]);
            return parts[0] == "ld" ? Load(instruction, space, address, offset, values, bytes, rest[0][0] == 's') : Store(instruction, space, address, offset, values, bytes);
        }

        // Of a sum of floats the order would matter.
        if (rest is not [var operation, var type] || Bytes(type) is not (4 or 8) || type[0] == 'f')
            return null;
        bool hasResult = parts[0] == "atom";
        int first = hasResult ? 1 : 0;
        if (instruction.Operands.Length != first + (operation == "cas" ? 3 : 2) || Atomic(operation, type) is not { } change)
            return null;
        int width = Bytes(type)!.Value;
        program.Accesses(width);
        (int target, long targetOffset) = Address(instruction, program, instruction.Operands[first]);
        return Atomically(instruction, space, target, targetOffset, width, hasResult ? program.Register(instruction, instruction.Operands[0]) : -1,
            program.Register(instruction, instruction.Operands[first + 1]), program.Register(instruction, instruction.Operands[^1]), change);
    }

    private static WarpAction LoadParameter(PtxInstruction instruction, DecodedProgram program, int bytes, bool isSigned)
    {
        int to = program.Register(instruction, instruction.Operands[0]);
        Match match = AddressOperand().Match(instruction.Operands[1]);
        PtxParameter parameter = program.Parameter(instruction, match.Groups[1].Value);
        int offset = match.Groups[2].Success ? int.Parse(match.Groups[2].ValueSpan, CultureInfo.InvariantCulture) : 0;
        if (offset < 0 || offset + bytes > parameter.Size || offset % bytes != 0)
            throw new PtxFault(instruction, $"{bytes} bytes at {offset} of a parameter of {parameter.Size} bytes");
        return (warp, active) =>
        {
            ulong value = ReadNumber(warp.Group.Parameters.AsSpan(parameter.Offset + offset), bytes, isSigned);
            for (; active != 0; active &= active - 1)
                warp.Registers[to + BitOperations.TrailingZeroCount(active)] = value;
        };
    }

    private static WarpAction Load(PtxInstruction instruction, MemorySpace space, int address, long offset, int[] to, int bytes, bool isSigned) => (warp, active) =>
    {
        int whole = bytes * to.Length;
        long moved = 0;
        for (; active != 0; active &= active - 1)
        {
            int lane = BitOperations.TrailingZeroCount(active);
            ulong at = warp.Registers[address + lane] + (ulong)offset;
            MemoryRegion region = Find(warp, instruction, active, space, at, whole, out long within);
            if (region.IsShared && !warp.Group.HasWritten(region, within, whole))
                throw warp.Fault(instruction, active, $"reads {whole} bytes at 0x{at:X}, offset {within} of {region.Name}, which the group hasn't written");
            if (region.Record.Read(region.RecordOffset + within, whole, warp.Group.Access(warp.FirstThread + lane, instruction, region.IsShared)) is { } race)
                throw Race(warp, instruction, active, region, at, within, race);
            if (!region.IsShared)
            {
                warp.Group.Traffic.Touch(region, at);
                moved += whole;
            }
            ReadOnlySpan<byte> memory = Memory(region, within, whole);
            for (int i = 0; i < to.Length; i++)
                warp.Registers[to[i] + lane] = ReadNumber(memory[(i * bytes)..], bytes, isSigned);
        }
        warp.Group.Traffic.EndRead(moved);
    };

    private static WarpAction Store(PtxInstruction instruction, MemorySpace space, int address, long offset, int[] from, int bytes) => (warp, active) =>
    {
        int whole = bytes * from.Length;
        long moved = 0;
        for (; active != 0; active &= active - 1)
        {
            int lane = BitOperations.TrailingZeroCount(active);
            ulong at = warp.Registers[address + lane] + (ulong)offset;
            MemoryRegion region = Find(warp, instruction, active, space, at, whole, out long within);
            Span<byte> memory = Memory(region, within, whole);
            bool isSame = true;
            for (int i = 0; i < from.Length; i++)
            {
                ulong value = warp.Registers[from[i] + lane];
                isSame &= ReadNumber(memory[(i * bytes)..], bytes, isSigned: false) == (value & ulong.MaxValue >> 64 - 8 * bytes);
                WriteNumber(memory[(i * bytes)..], bytes, value);
            }
            if (region.Record.Write(region.RecordOffset + within, whole, isSame, warp.Group.Access(warp.FirstThread + lane, instruction, region.IsShared)) is { } race)
                throw Race(warp, instruction, active, region, at, within, race);
            if (!region.IsShared)
            {
                warp.Group.Traffic.Touch(region, at);
                moved += whole;
            }
        }
        warp.Group.Traffic.EndWrite(moved);
    };

    private static WarpAction Atomically(PtxInstruction instruction, MemorySpace space, int address, long offset, int bytes, int to, int first, int second,
        Func<ulong, ulong, ulong, ulong> change) => (warp, active) =>
    {
        long moved = 0;
        for (; active != 0; active &= active - 1)
        {
            int lane = BitOperations.TrailingZeroCount(active);
            ulong at = warp.Registers[address + lane] + (ulong)offset;
            MemoryRegion region = Find(warp, instruction, active, space, at, bytes, out long within);
            Span<byte> memory = Memory(region, within, bytes);
            ulong mask = ulong.MaxValue >> 64 - 8 * bytes, before = ReadNumber(memory, bytes, isSigned: false);
            WriteNumber(memory, bytes, change(before, warp.Registers[first + lane] & mask, warp.Registers[second + lane] & mask));
            if (to >= 0)
                warp.Registers[to + lane] = before;
            if (!region.IsShared)
            {
                warp.Group.Traffic.Touch(region, at);
                moved += bytes;
            }
        }
        warp.Group.Traffic.EndWrite(moved);
    };

    // What memory holds afterwards, of what it held and of the operands.
    private static Func<ulong, ulong, ulong, ulong>? Atomic(string operation, string type) => (operation, type) switch
    {
        ("exch", _) => (_, x, _) => x,
        ("cas", _) => (old, compare, x) => old == compare ? x : old,
        ("add", _) => (old, x, _) => old + x,
        ("and", _) => (old, x, _) => old & x,
        ("or", _) => (old, x, _) => old | x,
        ("xor", _) => (old, x, _) => old ^ x,
        ("min", "u32" or "u64") => (old, x, _) => Math.Min(old, x),
        ("max", "u32" or "u64") => (old, x, _) => Math.Max(old, x),
        ("min", "s32") => (old, x, _) => (uint)Math.Min((int)old, (int)x),
        ("max", "s32") => (old, x, _) => (uint)Math.Max((int)old, (int)x),
        ("min", "s64") => (old, x, _) => (ulong)Math.Min((long)old, (long)x),
        ("max", "s64") => (old, x, _) => (ulong)Math.Max((long)old, (long)x),
        _ => null,
    };

    private static MemoryRegion Find(Warp warp, PtxInstruction instruction, uint threads, MemorySpace space, ulong address, int bytes, out long within)
    {
        if (address % (ulong)bytes != 0)
            throw warp.Fault(instruction, threads, $"{bytes} bytes at 0x{address:X}, which isn't aligned to them{Place(warp, space, address)}");
        MemoryRegion region = warp.Group.Memory.Find(space, address, bytes, out string reason) ?? throw warp.Fault(instruction, threads, $"out of bounds: {reason}");
        within = MemoryMap.Offset(region, address);
        return region;
    }

    private static string Place(Warp warp, MemorySpace space, ulong address) =>
        warp.Group.Memory.Find(space, address, 1, out _) is { } region ? $" (offset {MemoryMap.Offset(region, address)} of {region.Name})" : "";

    private static PtxFault Race(Warp warp, PtxInstruction instruction, uint threads, MemoryRegion region, ulong address, long within, string race) =>
        warp.Fault(instruction, threads, $"race at 0x{address:X}, offset {within} of {region.Name}: it {race}");

    private static unsafe Span<byte> Memory(MemoryRegion region, long offset, int bytes) => new((byte*)region.Data + offset, bytes);

    private static ulong ReadNumber(ReadOnlySpan<byte> memory, int bytes, bool isSigned) => bytes switch
    {
        1 => isSigned ? (ulong)(sbyte)memory[0] : memory[0],
        2 => isSigned ? (ulong)BitConverter.ToInt16(memory) : BitConverter.ToUInt16(memory),
        4 => isSigned ? (ulong)BitConverter.ToInt32(memory) : BitConverter.ToUInt32(memory),
        _ => BitConverter.ToUInt64(memory),
    };

    private static void WriteNumber(Span<byte> memory, int bytes, ulong value)
    {
        for (int i = 0; i < bytes; i++)
            memory[i] = (byte)(value >> 8 * i);
    }

    private static (int Register, long Offset) Address(PtxInstruction instruction, DecodedProgram program, string operand)
    {
        Match match = AddressOperand().Match(operand);
        if (!match.Success)
            throw new PtxFault(instruction, $"the address {operand} isn't understood");
        return (program.Register(instruction, match.Groups[1].Value), match.Groups[2].Success ? long.Parse(match.Groups[2].ValueSpan, CultureInfo.InvariantCulture) : 0);
    }

    private static int? Bytes(string type) => type switch
    {
        "b8" or "s8" or "u8" => 1,
        "b16" or "s16" or "u16" or "f16" => 2,
        "b32" or "s32" or "u32" or "f32" => 4,
        "b64" or "s64" or "u64" or "f64" => 8,
        _ => null,
    };

    [GeneratedRegex(@"^\[\s*(%?[\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]$")]
    private static partial Regex AddressOperand();
}
