using System.Runtime.CompilerServices;

namespace Alignment;

/// <summary>A piece of work cut into items that can be done in any order, by any thread.</summary>
internal interface IWork
{
    /// <summary>Does one item.</summary>
    void Run(int item);
}

/// <summary>Threads that share the items of one piece of work; nothing is allocated in a call.</summary>
internal sealed unsafe class Team : IDisposable
{
    // How often an idle thread looks for work before it sleeps; some tens of microseconds.
    private const int Looks = 200;
    private const int SpinsPerLook = 20;

    private readonly object sleep = new();
    private readonly Thread[] helpers;
    private delegate*<void*, int, void> body;
    private void* work;
    private int items, next, working, generation;
    private bool open, closed;

    /// <param name="threads">How many threads there are, the calling one included.</param>
    public Team(int threads)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threads, 1);
        helpers = new Thread[threads - 1];
        for (int i = 0; i < helpers.Length; i++)
        {
            helpers[i] = new Thread(Help) { IsBackground = true };
            helpers[i].Start();
        }
    }

    public int Threads => helpers.Length + 1;

    /// <summary>Runs every item below <paramref name="count"/>; returns when all are done. One call at a time.</summary>
    public void Run<TWork>(ref TWork work, int count) where TWork : struct, IWork
    {
        if (count == 0)
            return;
        if (helpers.Length == 0 || count == 1)
        {
            for (int item = 0; item < count; item++)
                work.Run(item);
            return;
        }
        // The work lives on the caller's stack, or in a ref struct's place there, until the call returns.
        this.work = Unsafe.AsPointer(ref work);
        body = &Item<TWork>;
        items = count;
        next = 0;
        lock (sleep)
        {
            generation++;
            open = true;
            Monitor.PulseAll(sleep);
        }
        Share();
        // A helper that hasn't come by now needn't come: only those at work are waited for.
        lock (sleep)
            open = false;
        SpinWait wait = default;
        while (Volatile.Read(ref working) != 0)
            wait.SpinOnce(sleep1Threshold: -1);
    }

    public void Dispose()
    {
        lock (sleep)
        {
            closed = true;
            Monitor.PulseAll(sleep);
        }
        foreach (Thread helper in helpers)
            helper.Join();
    }

    private static void Item<TWork>(void* work, int item) where TWork : struct, IWork => Unsafe.AsRef<TWork>(work).Run(item);

    private void Share()
    {
        int item;
        while ((item = Interlocked.Increment(ref next) - 1) < items)
            body(work, item);
    }

    private void Help()
    {
        int seen = 0;
        while (true)
        {
            for (int look = 0; look < Looks && Volatile.Read(ref generation) == seen; look++)
                Thread.SpinWait(SpinsPerLook);
            lock (sleep)
            {
                while (!closed && (generation == seen || !open))
                {
                    seen = generation;
                    Monitor.Wait(sleep);
                }
                if (closed)
                    return;
                seen = generation;
                Interlocked.Increment(ref working);
            }
            Share();
            Interlocked.Decrement(ref working);
        }
    }
}
