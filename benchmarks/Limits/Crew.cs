using System.Diagnostics;

namespace TransformerKernels.Benchmarks;

/// <summary>Threads that share out the pieces of a measurement; the time runs from when all stand ready, so waking them costs nothing.</summary>
internal sealed class Crew : IDisposable
{
    private const string Name = "Limits";

    private readonly Barrier barrier;
    private readonly Thread[] others;
    private Action<int> piece = _ => { };
    private int next, count;
    private volatile bool closed;

    public Crew(int threads)
    {
        barrier = new Barrier(threads);
        others = new Thread[threads - 1];
        for (int i = 0; i < others.Length; i++)
        {
            others[i] = new Thread(Follow) { IsBackground = true, Name = $"{Name} {i + 1}" };
            others[i].Start();
        }
    }

    public int Threads => others.Length + 1;

    /// <summary>The seconds that all pieces together take.</summary>
    public double Time(int pieces, Action<int> piece)
    {
        this.piece = piece;
        count = pieces;
        next = 0;
        Placement.MakeRoom(Name);
        barrier.SignalAndWait(); // wakes them
        barrier.SignalAndWait(); // all are awake
        long start = Stopwatch.GetTimestamp();
        Work();
        barrier.SignalAndWait();
        return Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    public void Dispose()
    {
        closed = true;
        barrier.SignalAndWait();
        foreach (Thread thread in others)
            thread.Join();
        barrier.Dispose();
    }

    private void Follow()
    {
        while (true)
        {
            barrier.SignalAndWait();
            if (closed)
                return;
            barrier.SignalAndWait();
            Work();
            barrier.SignalAndWait();
        }
    }

    private void Work()
    {
        int item;
        while ((item = Interlocked.Increment(ref next) - 1) < count)
            piece(item);
    }
}
