using Xunit;

namespace TransformerKernels.Tests;

public unsafe class CpuThreadsTests
{
    [Fact]
    public void Every_item_runs_once()
    {
        foreach (int threads in (int[])[1, 2, 5])
        {
            using var pool = new CpuThreads(threads);
            foreach (int items in (int[])[0, 1, 2, 3, 1000])
            {
                for (int repeat = 0; repeat < 20; repeat++)
                    Assert.All(Visits(pool, items), visits => Assert.Equal(1, visits));
            }
        }
    }

    [Fact]
    public void Each_thread_has_scratch_memory_of_its_own()
    {
        using var pool = new CpuThreads(4);
        const int stride = 64;
        int* scratch = stackalloc int[4 * stride / sizeof(int)];
        int clashes = 0;
        pool.Run(&UseScratch, &clashes, 500, (byte*)scratch, stride, CancellationToken.None);
        Assert.Equal(0, clashes);

        static void UseScratch(void* state, nint item, byte* own)
        {
            if (Interlocked.Increment(ref *(int*)own) != 1)
                Interlocked.Increment(ref *(int*)state);
            Thread.SpinWait(200);
            Interlocked.Decrement(ref *(int*)own);
        }
    }

    [Fact]
    public void An_exception_reaches_the_caller_and_the_threads_live_on()
    {
        foreach (int threads in (int[])[1, 3])
        {
            using var pool = new CpuThreads(threads);
            for (int repeat = 0; repeat < 50; repeat++)
            {
                nint bad = repeat * 7 % 100;
                InvalidTimeZoneException thrown = Assert.Throws<InvalidTimeZoneException>(() =>
                {
                    nint which = bad;
                    pool.Run(&ThrowAt, &which, 100, null, 0, CancellationToken.None);
                });
                Assert.Equal($"item {bad}", thrown.Message);
            }
            Assert.All(Visits(pool, 100), visits => Assert.Equal(1, visits));
        }

        static void ThrowAt(void* state, nint item, byte* scratch)
        {
            if (item == *(nint*)state)
                throw new InvalidTimeZoneException($"item {item}");
        }
    }

    private static CancellationTokenSource? cancelInside;

    [Fact]
    public void Cancelling_stops_between_items()
    {
        foreach (int threads in (int[])[1, 3])
        {
            using var pool = new CpuThreads(threads);
            using var source = new CancellationTokenSource();
            cancelInside = source;
            int ran = 0;
            OperationCanceledException thrown = Assert.Throws<OperationCanceledException>(() => Call(pool, source.Token, ref ran));
            Assert.Equal(source.Token, thrown.CancellationToken);
            Assert.InRange(ran, 11, threads == 1 ? 11 : 999_999); // the others run on until the token says it
            Assert.All(Visits(pool, 100), visits => Assert.Equal(1, visits));
        }

        static void Call(CpuThreads pool, CancellationToken token, ref int ran)
        {
            fixed (int* count = &ran)
                pool.Run(&CancelAtTheEleventh, count, 1_000_000, null, 0, token);
        }

        static void CancelAtTheEleventh(void* state, nint item, byte* scratch)
        {
            if (Interlocked.Increment(ref *(int*)state) == 11)
                cancelInside!.Cancel();
        }
    }

    [Fact]
    public void Callers_at_the_same_time_and_calls_within_calls_all_finish()
    {
        using var pool = new CpuThreads(3);
        Parallel.For(0, 64, new() { MaxDegreeOfParallelism = 6 }, _ =>
        {
            for (int repeat = 0; repeat < 20; repeat++)
                Assert.All(Visits(pool, 50), visits => Assert.Equal(1, visits));
        });
    }

    [Fact]
    public void Disposing_while_others_call_ends_and_calls_afterwards_work_on_the_callers_thread()
    {
        for (int repeat = 0; repeat < 30; repeat++)
        {
            var pool = new CpuThreads(3);
            bool allRan = true;
            var caller = new Thread(() =>
            {
                for (int call = 0; call < 50; call++)
                    allRan &= Visits(pool, 20).All(visits => visits == 1);
            });
            caller.Start();
            Thread.SpinWait(repeat * 500);
            pool.Dispose();
            Assert.True(caller.Join(TimeSpan.FromSeconds(60)), "a call hangs");
            Assert.True(allRan);
            Assert.All(Visits(pool, 20), visits => Assert.Equal(1, visits));
        }
    }

    [Fact]
    public void The_shared_device_survives_being_disposed_and_opened_ones_say_how_many_threads_they_have()
    {
        ComputeDevice.Cpu.Dispose();
        Assert.StartsWith($"CPU, {Environment.ProcessorCount} thread", ComputeDevice.Cpu.Name);
        using ComputeDevice one = ComputeDevice.OpenCpu(1), three = ComputeDevice.OpenCpu(3);
        Assert.StartsWith("CPU, 1 thread, ", one.Name);
        Assert.StartsWith("CPU, 3 threads, ", three.Name);
        Assert.Throws<ArgumentOutOfRangeException>("threads", () => ComputeDevice.OpenCpu(0));
        using (ComputeDevice handle = three.With(CancellationToken.None))
            Assert.Equal(three.Name, handle.Name);
        three.Synchronize();
    }

    [Fact]
    public void A_disposed_device_gives_no_memory_and_that_of_its_tensors_stays()
    {
        foreach (int threads in (int[])[1, 3])
        {
            ComputeDevice device = ComputeDevice.OpenCpu(threads), handle = device.With(CancellationToken.None);
            TensorBuffer buffer = device.Upload<float>([1, 2]);
            using var workspace = new Workspace(device);
            handle.Dispose(); // closes nothing
            device.Synchronize();
            device.Dispose();
            device.Dispose();
            foreach (ComputeDevice closed in (ComputeDevice[])[device, handle])
            {
                Assert.Throws<ObjectDisposedException>(closed.Synchronize);
                Assert.Throws<ObjectDisposedException>(() => closed.Allocate(ElementType.Float32, 1));
                Assert.Throws<ObjectDisposedException>(() => closed.Upload<float>([1]));
            }
            Assert.Throws<ObjectDisposedException>(() => workspace.Reserve(1));
            Assert.Equal([1f, 2f], buffer.ToArray<float>());
            buffer.Dispose();
        }
    }

    private static int[] Visits(CpuThreads pool, int items)
    {
        int[] visits = new int[items];
        fixed (int* first = visits)
            pool.Run(&Visit, first, items, null, 0, CancellationToken.None);
        return visits;

        static void Visit(void* state, nint item, byte* scratch) => Interlocked.Increment(ref ((int*)state)[item]);
    }
}
