namespace TransformerKernels.Tests;

/// <summary>Runs a kernel's PTX on the host, group after group, and checks every access. For tests: it shows what a GPU wouldn't, and how much memory a kernel moves.</summary>
internal static class PtxMachine
{
    /// <summary>Runs one launch.</summary>
    /// <param name="traffic">What it moves is added here.</param>
    /// <param name="parameters">The parameters' bytes, as <see cref="PtxProgram.Parameters"/> says.</param>
    /// <param name="dynamicSharedBytes">The length of the shared array that the text leaves open.</param>
    /// <exception cref="PtxFault">The kernel did what it must not.</exception>
    public static void Run(Traffic traffic, PtxProgram program, DecodedProgram decoded, Coordinates grid, Coordinates group, MemoryMap memory, byte[] parameters,
        int dynamicSharedBytes = 0)
    {
        if (program.MaximumGroupSize is { } maximum && group.Count > maximum.Count)
            throw new ArgumentException($"{traffic.Kernel} was compiled for groups of {maximum} threads; these have {group}.", nameof(group));
        if (parameters.Length != program.ParameterBytes)
            throw new ArgumentException($"{traffic.Kernel} takes {program.ParameterBytes} bytes of parameters; these are {parameters.Length}.", nameof(parameters));
        byte[][] shared = program.SharedArrays.Select(array => GC.AllocateArray<byte>(array.Length == 0 ? dynamicSharedBytes : array.Length, pinned: true)).ToArray();
        ulong[] sharedAddresses = program.SharedArrays.Zip(shared, memory.AddSharedArray).ToArray();
        var threads = new ThreadGroup(decoded, group, grid, memory, sharedAddresses, parameters, traffic);
        for (int index = 0; index < grid.Count; index++)
            threads.Run(index);
        GC.KeepAlive(shared);
        foreach (AccessRecord buffer in memory.Buffers)
        {
            (long read, long written) = buffer.Touched();
            traffic.DistinctRead += read;
            traffic.DistinctWritten += written;
        }
    }
}
