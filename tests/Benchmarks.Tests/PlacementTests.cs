using TransformerKernels.Benchmarks;
using Xunit;

namespace TransformerKernels.Tests;

public class PlacementTests
{
    [Fact]
    public void A_thread_is_found_by_its_name_while_it_sleeps()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "Threads are found on Linux.");
        const string Name = "Found by a name that is cut";
        Assert.Empty(Placement.ProcessorsOf(Name));

        WhileOneSleeps(Name, () => Assert.Single(Placement.ProcessorsOf(Name)));
    }

    [Fact]
    public void A_thread_that_made_room_may_go_where_it_might_before()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "Threads are moved on Linux.");
        const string Name = "Given room";
        string before = Allowed(), after = "";

        WhileOneSleeps(Name, () =>
        {
            Placement.MakeRoom(Name);
            after = Allowed();
        });

        Assert.Equal(before, after);
    }

    private static void WhileOneSleeps(string name, Action meanwhile)
    {
        using var isAsleep = new Semaphore(0, 1);
        using var wakes = new Semaphore(0, 1);
        var sleeper = new Thread(() =>
        {
            isAsleep.Release();
            wakes.WaitOne();
        })
        { Name = name };
        sleeper.Start();
        isAsleep.WaitOne();
        try
        {
            meanwhile();
        }
        finally
        {
            wakes.Release();
            sleeper.Join();
        }
    }

    private static string Allowed() => File.ReadLines("/proc/thread-self/status").First(line => line.StartsWith("Cpus_allowed:", StringComparison.Ordinal));
}
