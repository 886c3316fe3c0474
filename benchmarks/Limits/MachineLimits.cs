using System.Runtime.InteropServices;

namespace TransformerKernels.Benchmarks;

/// <summary>Measures what the machine can do: multiply-adds at the widest vector, and reading, updating and copying arrays of at least four times the last-level cache, with all threads.</summary>
internal sealed unsafe class MachineLimits : IDisposable
{
    // The least size of an array in last-level caches: what is left of it in the caches after a pass then hardly matters.
    private const int CacheMultiple = 4;

    // Threads take so many floats of an array at a time: a megabyte, some tens of microseconds.
    private const int PieceFloats = 1 << 18;

    // The turns of a piece of arithmetic: some tens of microseconds too.
    private const int PieceTurns = 5000;

    // A sample should last so long that starting and stopping it doesn't count.
    private const double SampleSeconds = 0.02;

    // The best of so many trials decides between two ways to do one thing.
    private const int Trials = 5;

    private const int Alignment = 64;

    private readonly Crew crew;
    private readonly LimitLoops loops = LimitLoops.Widest;
    private readonly float* first, second;
    private readonly int arrayPieces;
    private readonly Sampled multiplyAdd, read, update, copy;
    private readonly bool prefetches, copiesNonTemporally;
    private readonly bool cacheIsKnown;
    private readonly long cacheBytes;

    public MachineLimits(int threads)
    {
        crew = new Crew(threads);
        (cacheBytes, cacheIsKnown) = LastLevelCache.Find();
        arrayPieces = (int)((CacheMultiple * cacheBytes + PieceFloats * sizeof(float) - 1) / (PieceFloats * sizeof(float)));
        first = Allocate();
        second = Allocate();

        Action<int> plainRead = piece => loops.Read(At(first, piece), PieceFloats);
        Action<int> prefetchingRead = piece => loops.ReadPrefetching(At(first, piece), PieceFloats);
        Action<int> plainCopy = piece => loops.Copy(At(first, piece), At(second, piece), PieceFloats);
        Action<int> nonTemporalCopy = piece => loops.CopyNonTemporal(At(first, piece), At(second, piece), PieceFloats);
        prefetches = Best(prefetchingRead) < Best(plainRead);
        copiesNonTemporally = Best(nonTemporalCopy) < Best(plainCopy);

        const double PieceBytes = (double)PieceFloats * sizeof(float);
        multiplyAdd = Calibrate(_ => loops.MultiplyAdds(PieceTurns), crew.Threads, PieceTurns * loops.OperationsPerTurn);
        read = Calibrate(prefetches ? prefetchingRead : plainRead, arrayPieces, PieceBytes);
        update = Calibrate(piece => loops.Update(At(first, piece), PieceFloats, 1f), arrayPieces, 2 * PieceBytes); // a factor of 1 may run for ever
        copy = Calibrate(copiesNonTemporally ? nonTemporalCopy : plainCopy, arrayPieces, 2 * PieceBytes);
    }

    public int VectorBits => loops.VectorBits;

    /// <summary>How the limits are measured, for people.</summary>
    public string Description =>
        $"{crew.Threads} {(crew.Threads == 1 ? "thread" : "threads")}; {loops.VectorBits}-bit multiply-adds; arrays of {(long)arrayPieces * PieceFloats * sizeof(float) >> 20} MB, " +
        $"last-level cache {cacheBytes >> 20} MB{(cacheIsKnown ? "" : " (assumed: the system doesn't tell)")}; " +
        $"read {(prefetches ? "with prefetch" : "without prefetch")}; copy with {(copiesNonTemporally ? "non-temporal" : "ordinary")} stores";

    /// <summary>Operations a second.</summary>
    public double Peak() => Rate(multiplyAdd);

    /// <summary>Bytes a second, read plus written.</summary>
    public double Bandwidth(Traffic traffic) => Rate(traffic switch { Traffic.Read => read, Traffic.Update => update, _ => copy });

    public void Dispose()
    {
        crew.Dispose();
        NativeMemory.AlignedFree(first);
        NativeMemory.AlignedFree(second);
    }

    private float* At(float* array, int piece) => array + (nint)(piece % arrayPieces) * PieceFloats;

    private float* Allocate()
    {
        nuint bytes = (nuint)arrayPieces * PieceFloats * sizeof(float);
        float* array = (float*)NativeMemory.AlignedAlloc(bytes, Alignment);
        // Not with 0: lines of zeros are written faster than any data, measured by 16 to 20 % in `update` and `copy`, not at all in `read` (Zen 5).
        nint each = PieceFloats;
        Parallel.For(0, arrayPieces, piece =>
        {
            for (nint i = piece * each; i < (piece + 1) * each; i++)
                array[i] = Noise.At(0, i);
        });
        return array;
    }

    // A loop, how many pieces of it make a sample, and what a piece counts: operations or bytes.
    private sealed record Sampled(Action<int> Piece, int Pieces, double PerPiece);

    private Sampled Calibrate(Action<int> piece, int pass, double perPiece)
    {
        int passes = 1;
        while (crew.Time(passes * pass, piece) < SampleSeconds)
            passes *= 2;
        return new(piece, passes * pass, perPiece);
    }

    private double Rate(Sampled what) => what.Pieces * what.PerPiece / crew.Time(what.Pieces, what.Piece);

    private double Best(Action<int> piece)
    {
        double best = double.PositiveInfinity;
        for (int trial = 0; trial < Trials; trial++)
            best = Math.Min(best, crew.Time(arrayPieces, piece));
        return best;
    }
}
