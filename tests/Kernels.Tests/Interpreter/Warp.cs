using System.Numerics;

namespace TransformerKernels.Tests;

/// <summary>32 threads that follow each other in a group. They execute an instruction together while they are at the same one; where a branch parts them, one way
/// is executed up to where the ways meet, then the other.</summary>
internal sealed class Warp
{
    public const int Size = 32;

    /// <summary>What <see cref="Run"/> returns when all threads have left the kernel.</summary>
    public const int Finished = -1;

    private readonly DecodedProgram program;
    private readonly uint members;
    private readonly Stack<Way> ways = [];

    public Warp(DecodedProgram program, ThreadGroup group, int number)
    {
        this.program = program;
        Group = group;
        FirstThread = number * Size;
        members = uint.MaxValue >> Size - Math.Min(Size, group.Threads - FirstThread);
        Registers = new ulong[program.RegisterCount * Size];
    }

    // The active threads from an instruction on, up to where they meet with others.
    private sealed class Way(int next, int end, uint active)
    {
        public int Next = next;
        public readonly int End = end;
        public uint Active = active;
    }

    public ThreadGroup Group { get; }

    /// <summary>The linear index in the group of the first thread.</summary>
    public int FirstThread { get; }

    /// <summary>The registers of the text and one for each constant: 32 threads' values after each other. A register's number is where its first is.</summary>
    public ulong[] Registers { get; }

    /// <summary>The threads that haven't left the kernel, a bit each.</summary>
    public uint Live { get; private set; }

    /// <summary>To the kernel's first instruction.</summary>
    public void Start()
    {
        // What an instruction reads before anything wrote it shall not pass for a number.
        Array.Fill(Registers, ulong.MaxValue);
        program.FillConstants(this);
        Live = members;
        ways.Clear();
        ways.Push(new(0, program.Steps.Length, members));
    }

    /// <summary>Executes up to the next barrier, or to the end.</summary>
    /// <returns>The barrier's place in the program.</returns>
    public int Run()
    {
        while (ways.TryPeek(out Way? way))
        {
            way.Active &= Live;
            if (way.Active == 0 || way.Next == way.End)
            {
                ways.Pop();
                if (way.Next == program.Steps.Length)
                    Live &= ~way.Active;
                continue;
            }
            int at = way.Next++;
            Step step = program.Steps[at];
            Group.CountInstruction(step.Source);
            uint active = step.Guard < 0 ? way.Active : way.Active & Truths(step.Guard, step.Source);
            switch (step.Kind)
            {
                case StepKind.Plain:
                    if (active != 0)
                        step.Action!(this, active);
                    break;
                case StepKind.Branch:
                    if (active == way.Active)
                        way.Next = step.Targets[0];
                    else if (active != 0)
                        Part(way, step, [(step.Targets[0], active), (at + 1, way.Active & ~active)]);
                    break;
                case StepKind.IndexedBranch:
                    BranchByIndex(way, step, active, at + 1);
                    break;
                case StepKind.Exit:
                    Live &= ~active;
                    break;
                case StepKind.Barrier:
                    if (active != Live)
                        throw Fault(step.Source, active, $"only {BitOperations.PopCount(active)} of the {BitOperations.PopCount(Live)} threads of its warp reach this barrier");
                    return at;
            }
        }
        return Finished;
    }

    /// <summary>A fault of the first of these threads.</summary>
    public PtxFault Fault(PtxInstruction instruction, uint threads, string what) =>
        new(instruction, Group.Place, Group.Size.At(FirstThread + BitOperations.TrailingZeroCount(threads)), what);

    /// <summary>The active threads that have 1 in a predicate register.</summary>
    private uint Truths(int register, PtxInstruction instruction)
    {
        uint truths = 0;
        for (int lane = 0; lane < Size; lane++)
            truths |= (uint)(Registers[register + lane] & 1) << lane;
        return instruction.IsNegated ? ~truths : truths;
    }

    private void BranchByIndex(Way way, Step step, uint active, int otherwise)
    {
        var parts = new List<(int Next, uint Active)>();
        for (uint rest = active; rest != 0;)
        {
            ulong index = (uint)Registers[step.Index + BitOperations.TrailingZeroCount(rest)];
            if (index >= (ulong)step.Targets.Length)
                throw Fault(step.Source, rest, $"its table has {step.Targets.Length} targets; the index is {index}");
            uint alike = 0;
            for (uint others = rest; others != 0; others &= others - 1)
            {
                int lane = BitOperations.TrailingZeroCount(others);
                alike |= (uint)Registers[step.Index + lane] == index ? 1u << lane : 0;
            }
            parts.Add((step.Targets[index], alike));
            rest &= ~alike;
        }
        if (active != way.Active)
            parts.Add((otherwise, way.Active & ~active));
        if (parts.Count == 1)
            way.Next = parts[0].Next;
        else
            Part(way, step, parts);
    }

    private void Part(Way way, Step step, IEnumerable<(int Next, uint Active)> parts)
    {
        if (step.IsUniform)
            throw Fault(step.Source, way.Active, "the branch is marked uniform, and threads of one warp take it differently");
        way.Next = step.Meeting;
        foreach ((int next, uint active) in parts)
        {
            if (next != step.Meeting)
                ways.Push(new(next, step.Meeting, active));
        }
    }
}
