namespace TransformerKernels.Tests;

/// <summary>What an instruction does to the registers of a warp's active threads (a bit each), and to memory.</summary>
internal delegate void WarpAction(Warp warp, uint active);

internal enum StepKind
{
    Plain,
    Branch,
    IndexedBranch,
    Barrier,
    Exit,
}

/// <summary>An instruction, decoded.</summary>
internal sealed class Step(PtxInstruction source, StepKind kind)
{
    public PtxInstruction Source => source;

    public StepKind Kind => kind;

    /// <summary>The register of the predicate; −1 without one.</summary>
    public int Guard { get; init; } = -1;

    public WarpAction? Action { get; init; }

    /// <summary>Where a branch leads; those of an indexed branch by index.</summary>
    public int[] Targets { get; init; } = [];

    /// <summary>The register that indexes the targets.</summary>
    public int Index { get; init; }

    /// <summary>Whether the text promises that all threads take the branch alike.</summary>
    public bool IsUniform { get; init; }

    /// <summary>Where threads that part here meet again.</summary>
    public int Meeting { get; set; }
}
