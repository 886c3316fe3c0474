namespace TransformerKernels.Tests;

/// <summary>Something that a kernel's text must not do, or that the interpreter doesn't know. The message names the instruction, its line, the thread and the address.</summary>
internal sealed class PtxFault : Exception
{
    public PtxFault(PtxInstruction instruction, string what) : base($"line {instruction.Line}, \"{instruction.Text}\": {what}")
    {
    }

    /// <summary>Whether it is that the kernel has run for too long.</summary>
    public bool IsEndless { get; init; }

    public PtxFault(PtxInstruction instruction, Coordinates group, Coordinates thread, string what) : this(instruction, $"group {group}, thread {thread}: {what}")
    {
    }
}

/// <summary>A place in, or the size of, a grid or a group.</summary>
internal readonly record struct Coordinates(int X, int Y = 1, int Z = 1)
{
    public int Count => checked(X * Y * Z);

    /// <summary>The place of a linear index, x fastest.</summary>
    public Coordinates At(int index) => new(index % X, index / X % Y, index / X / Y);

    public override string ToString() => $"({X}, {Y}, {Z})";
}
