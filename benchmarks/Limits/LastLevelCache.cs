using System.Globalization;

namespace TransformerKernels.Benchmarks;

/// <summary>The size of the last-level caches together: what a bandwidth must be measured beyond.</summary>
internal static class LastLevelCache
{
    // Where the system doesn't tell: more than any desktop processor has, less than the largest servers'.
    private const long Assumed = 128L << 20;

    /// <summary>The bytes, and whether the system told them.</summary>
    public static (long Bytes, bool IsKnown) Find()
    {
        long bytes = OperatingSystem.IsLinux() ? FromSysfs("/sys/devices/system/cpu") : 0;
        return bytes > 0 ? (bytes, true) : (Assumed, false);
    }

    // Every processor lists its caches; those of the highest level count once for each set of processors that shares one.
    private static long FromSysfs(string root)
    {
        var sizes = new Dictionary<(int Level, string SharedBy), long>();
        foreach (string processor in Directory.Exists(root) ? Directory.GetDirectories(root, "cpu*") : [])
        {
            string caches = Path.Combine(processor, "cache");
            foreach (string cache in Directory.Exists(caches) ? Directory.GetDirectories(caches, "index*") : [])
            {
                if (Read(cache, "level") is { } level && Read(cache, "shared_cpu_list") is { } sharedBy && Read(cache, "size") is { } size)
                    sizes[(int.Parse(level, CultureInfo.InvariantCulture), sharedBy)] = Bytes(size);
            }
        }
        if (sizes.Count == 0)
            return 0;
        int highest = sizes.Keys.Max(cache => cache.Level);
        return sizes.Where(cache => cache.Key.Level == highest).Sum(cache => cache.Value);
    }

    private static string? Read(string folder, string file)
    {
        string path = Path.Combine(folder, file);
        return File.Exists(path) ? File.ReadAllText(path).Trim() : null;
    }

    private static long Bytes(string size) => size[^1] switch
    {
        'K' => long.Parse(size.AsSpan(0, size.Length - 1), CultureInfo.InvariantCulture) << 10,
        'M' => long.Parse(size.AsSpan(0, size.Length - 1), CultureInfo.InvariantCulture) << 20,
        _ => long.Parse(size, CultureInfo.InvariantCulture),
    };
}
