namespace TransformerKernels.Tests;

/// <summary>A group of threads while it runs, warp by warp from barrier to barrier.</summary>
internal sealed class ThreadGroup
{
    private readonly DecodedProgram program;
    private readonly Warp[] warps;
    private int time, number, startTime;

    public ThreadGroup(DecodedProgram program, Coordinates size, Coordinates grid, MemoryMap memory, ulong[] sharedAddresses, byte[] parameters, Traffic traffic)
    {
        this.program = program;
        (Size, Grid, Memory, SharedAddresses, Parameters, Traffic) = (size, grid, memory, sharedAddresses, parameters, traffic);
        warps = Enumerable.Range(0, (Threads + Warp.Size - 1) / Warp.Size).Select(i => new Warp(program, this, i)).ToArray();
    }

    public Coordinates Size { get; }

    public Coordinates Grid { get; }

    public MemoryMap Memory { get; }

    /// <summary>Where the shared arrays are, in the order of the text.</summary>
    public ulong[] SharedAddresses { get; }

    public byte[] Parameters { get; }

    public Traffic Traffic { get; }

    public int Threads => Size.Count;

    /// <summary>The group's place in the grid.</summary>
    public Coordinates Place { get; private set; }

    /// <summary>Runs the group with this linear index to its end.</summary>
    public void Run(int index)
    {
        Place = Grid.At(index);
        number = index + 1;
        startTime = ++time;
        foreach (Warp warp in warps)
            warp.Start();
        while (true)
        {
            int barrier = Warp.Finished;
            Warp? waiting = null;
            foreach (Warp warp in warps)
            {
                if (warp.Live == 0)
                    continue;
                int reached = warp.Run();
                if (reached == Warp.Finished)
                    continue;
                if (waiting is not null && reached != barrier)
                {
                    throw new PtxFault(program.Steps[reached].Source, Place, Size.At(warp.FirstThread),
                        $"it waits at this barrier while thread {Size.At(waiting.FirstThread)} waits at the one in line {program.Steps[barrier].Source.Line}");
                }
                barrier = reached;
                waiting ??= warp;
            }
            if (waiting is null)
                return;
            time++;
        }
    }

    public AccessRecord.Access Access(int thread, PtxInstruction instruction, bool isShared) => new(this, thread + 1, time, isShared ? 1 : number, instruction.Line);

    /// <summary>Whether the group wrote all of this part of a shared array.</summary>
    public bool HasWritten(MemoryRegion array, long offset, int bytes) => array.Record.IsWritten(offset, bytes, startTime);

    public void CountInstruction(PtxInstruction instruction)
    {
        if (++Traffic.Instructions > Traffic.MaximumInstructions)
            throw new PtxFault(instruction, $"after {Traffic.MaximumInstructions} instructions it still runs") { IsEndless = true };
    }

    public string NameThread(int counted) => counted > 0 ? $"thread {Size.At(counted - 1)}" : "several threads";

    public string NameGroup(int counted) => counted > 0 ? $"group {Grid.At(counted - 1)}" : "several groups";
}
