using System.Globalization;
using System.Runtime.InteropServices;

namespace TransformerKernels.Benchmarks;

/// <summary>Where the threads of a measurement run. Linux only; elsewhere nothing happens.</summary>
internal static partial class Placement
{
    private const string Tasks = "/proc/self/task", NameFile = "comm";

    private static string MainTask => Environment.ProcessId.ToString(CultureInfo.InvariantCulture);

    // See proc(5): names are cut to so many characters; stat has the name in parentheses as its second field and the processor as its 39th.
    private const int NameLength = 15;
    private const int FieldsFromNameToProcessor = 37;

    // A mask of the C library names so many processors.
    private const int MaskBits = 1024;
    private const int WordBits = 64;

    /// <summary>The name of the main thread, and of those that native libraries make on it.</summary>
    public static string MainName => OperatingSystem.IsLinux() ? File.ReadAllText(Path.Combine(Tasks, MainTask, NameFile)).Trim() : "";

    /// <summary>Moves the calling thread off the processors on which threads of a name last ran, if others are left, and lets it go anywhere from there.</summary>
    /// <remarks>
    /// A thread wakes where it slept. Where its caller has come to run there meanwhile, a scheduler may leave both on that processor and another one idle, for milliseconds to seconds (Linux 6.18 in a
    /// virtual machine): what two threads share then takes twice as long, in all rounds alike.
    /// </remarks>
    public static void MakeRoom(string name)
    {
        if (!OperatingSystem.IsLinux())
            return;
        Span<ulong> allowed = stackalloc ulong[MaskBits / WordBits], room = stackalloc ulong[MaskBits / WordBits];
        nuint bytes = MaskBits / 8;
        if (GetAffinity(0, bytes, allowed) != 0)
            return;
        allowed.CopyTo(room);
        foreach (int processor in ProcessorsOf(name))
            room[processor / WordBits] &= ~(1ul << (processor % WordBits));
        if (SetAffinity(0, bytes, room) == 0) // refused if none is left
            SetAffinity(0, bytes, allowed);
    }

    /// <summary>The processors on which this process's threads of a name, beside the main one, last ran.</summary>
    public static IReadOnlyList<int> ProcessorsOf(string name)
    {
        var processors = new List<int>();
        foreach (string task in Directory.GetDirectories(Tasks).Where(task => Path.GetFileName(task) != MainTask))
        {
            try
            {
                if (!File.ReadAllText(Path.Combine(task, NameFile)).StartsWith(name[..Math.Min(name.Length, NameLength)], StringComparison.Ordinal))
                    continue;
                string stat = File.ReadAllText(Path.Combine(task, "stat"));
                processors.Add(int.Parse(stat[stat.LastIndexOf(')')..].Split(' ')[FieldsFromNameToProcessor], CultureInfo.InvariantCulture));
            }
            catch (IOException)
            {
                // The thread has ended meanwhile.
            }
        }
        return processors;
    }

    [LibraryImport("libc", EntryPoint = "sched_getaffinity")]
    private static partial int GetAffinity(int thread, nuint bytes, Span<ulong> mask);

    [LibraryImport("libc", EntryPoint = "sched_setaffinity")]
    private static partial int SetAffinity(int thread, nuint bytes, Span<ulong> mask);
}
