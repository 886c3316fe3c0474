using System.Runtime.ExceptionServices;

namespace TransformerKernels;

/// <summary>Threads that share the items of one call at a time. Which thread takes an item is left to chance, so an item's result may depend on the item only.</summary>
internal sealed unsafe class CpuThreads : IDisposable
{
    // How many times an idle thread looks for the next call before it sleeps: some tens of microseconds.
    private const int Looks = 2000;

    private readonly object sleep = new();
    private readonly Thread[] helpers;
    private int calling, generation, pending;
    private volatile bool closed;

    private delegate*<void*, nint, byte*, void> body;
    private void* state;
    private byte* scratch;
    private nint scratchStride, items;
    private long next;
    private CancellationToken cancellation;
    private ExceptionDispatchInfo? failure;

    public CpuThreads(int count)
    {
        Count = count;
        helpers = new Thread[count - 1];
        for (int i = 0; i < helpers.Length; i++)
        {
            int number = i + 1;
            helpers[i] = new Thread(() => Help(number)) { IsBackground = true, Name = $"TransformerKernels {number}" };
            helpers[i].Start();
        }
    }

    /// <summary>How many threads work on a call, the calling one included.</summary>
    public int Count { get; }

    /// <summary>Whether the threads were ended; a call then works alone.</summary>
    public bool IsClosed => closed;

    /// <summary>Runs body(state, item, scratch of the thread) for every item below <paramref name="count"/>. A call while another one is running works alone, on its own thread.</summary>
    public void Run(delegate*<void*, nint, byte*, void> body, void* state, nint count, byte* scratch, nint scratchStride, CancellationToken cancellation)
    {
        if (helpers.Length == 0 || count <= 1 || Interlocked.Exchange(ref calling, 1) != 0)
        {
            Alone(body, state, count, scratch, cancellation);
            return;
        }
        try
        {
            this.body = body;
            this.state = state;
            this.scratch = scratch;
            this.scratchStride = scratchStride;
            this.cancellation = cancellation;
            items = count;
            next = 0;
            failure = null;
            Volatile.Write(ref pending, helpers.Length);
            if (!Wake())
            {
                Alone(body, state, count, scratch, cancellation);
                return;
            }
            Work(0);
            SpinWait wait = default;
            while (Volatile.Read(ref pending) != 0)
                wait.SpinOnce(sleep1Threshold: -1);
            this.cancellation = default;
            failure?.Throw();
            cancellation.ThrowIfCancellationRequested();
        }
        finally
        {
            Volatile.Write(ref calling, 0);
        }
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

    private static void Alone(delegate*<void*, nint, byte*, void> body, void* state, nint count, byte* scratch, CancellationToken cancellation)
    {
        for (nint item = 0; item < count; item++)
        {
            cancellation.ThrowIfCancellationRequested();
            body(state, item, scratch);
        }
    }

    // Under the lock, so that no helper leaves between the question whether it is there and the call.
    private bool Wake()
    {
        lock (sleep)
        {
            if (closed)
                return false;
            generation++;
            Monitor.PulseAll(sleep);
            return true;
        }
    }

    private void Work(int thread)
    {
        try
        {
            byte* own = scratch + thread * scratchStride;
            long item;
            while ((item = Interlocked.Increment(ref next) - 1) < items && !cancellation.IsCancellationRequested)
                body(state, (nint)item, own);
        }
        catch (Exception exception)
        {
            failure = ExceptionDispatchInfo.Capture(exception);
            Volatile.Write(ref next, items); // nobody takes another item
        }
    }

    private void Help(int thread)
    {
        int seen = 0;
        while (true)
        {
            for (int look = 0; look < Looks && Volatile.Read(ref generation) == seen; look++)
                Thread.SpinWait(8);
            lock (sleep)
            {
                while (generation == seen && !closed)
                    Monitor.Wait(sleep);
                if (generation == seen)
                    return;
                seen = generation;
            }
            Work(thread);
            Interlocked.Decrement(ref pending);
        }
    }
}
