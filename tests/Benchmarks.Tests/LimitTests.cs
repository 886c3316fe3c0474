using System.Runtime.InteropServices;
using TransformerKernels.Benchmarks;
using Xunit;

namespace TransformerKernels.Tests;

public unsafe class LimitTests
{
    private const int Count = 1024;
    private const int Alignment = 64;

    [Fact]
    public void The_loops_do_what_they_are_timed_for()
    {
        float* first = (float*)NativeMemory.AlignedAlloc(2 * Count * sizeof(float), Alignment), second = first + Count;
        try
        {
            for (int i = 0; i < Count; i++)
                (first[i], second[i]) = (i, -1);
            LimitLoops loops = LimitLoops.Widest;

            Assert.Equal(Count * (Count - 1) / 2, loops.Read(first, Count));
            Assert.Equal(Count * (Count - 1) / 2, loops.ReadPrefetching(first, Count));
            loops.Copy(first, second, Count);
            Assert.True(new Span<float>(first, Count).SequenceEqual(new Span<float>(second, Count)));
            loops.Update(first, Count, 2);
            loops.CopyNonTemporal(first, second, Count);
            for (int i = 0; i < Count; i++)
                Assert.Equal(2 * i, second[i]);
        }
        finally
        {
            NativeMemory.AlignedFree(first);
        }
    }

    [Fact]
    public void A_crew_does_every_piece_once()
    {
        const int Pieces = 1000;
        using var crew = new Crew(3);
        var done = new int[Pieces];

        for (int round = 0; round < 5; round++)
            crew.Time(Pieces, piece => Interlocked.Increment(ref done[piece]));

        Assert.All(done, times => Assert.Equal(5, times));
    }

    [Fact]
    public void The_peak_of_resident_memory_sees_what_was_allocated_and_freed()
    {
        const int Megabytes = 64;
        long? peak = ResidentMemory.PeakAbove(() =>
        {
            void* memory = NativeMemory.Alloc(Megabytes << 20);
            NativeMemory.Fill(memory, Megabytes << 20, 1);
            NativeMemory.Free(memory);
        });
        Assert.SkipWhen(peak is null, "The system doesn't tell resident memory.");

        Assert.InRange(peak!.Value >> 20, Megabytes - 8, Megabytes + 64);
    }
}
