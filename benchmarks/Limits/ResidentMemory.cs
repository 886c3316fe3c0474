using System.Globalization;
using System.Runtime.InteropServices;

namespace TransformerKernels.Benchmarks;

/// <summary>How far the resident memory of this process rises above its level while something runs. Linux only.</summary>
internal static partial class ResidentMemory
{
    private const string Status = "/proc/self/status";
    private const string ClearReferences = "/proc/self/clear_refs";

    // What clear_refs takes to set the peak back to the present size; see proc(5).
    private const string ResetPeak = "5";

    /// <summary>The bytes of the peak above the level before; null if the system doesn't tell.</summary>
    public static long? PeakAbove(Action run)
    {
        TrimHeap();
        bool reset = TryReset();
        long before = reset ? Read("VmRSS:") : 0;
        run();
        return reset ? Math.Max(0, Read("VmHWM:") - before) : null;
    }

    private static bool TryReset()
    {
        if (!OperatingSystem.IsLinux())
            return false;
        try
        {
            File.WriteAllText(ClearReferences, ResetPeak);
            return true;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    // Gives freed memory back to the system: what the allocator keeps would be taken anew without showing.
    private static void TrimHeap()
    {
        try
        {
            if (OperatingSystem.IsLinux())
                TrimHeap(0);
        }
        catch (EntryPointNotFoundException)
        {
            // Another C library than glibc, which keeps less.
        }
    }

    [LibraryImport("libc", EntryPoint = "malloc_trim")]
    private static partial int TrimHeap(nuint keep);

    // A line reads "VmHWM:     12345 kB".
    private static long Read(string name)
    {
        string line = File.ReadLines(Status).First(line => line.StartsWith(name, StringComparison.Ordinal));
        return long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture) << 10;
    }
}
