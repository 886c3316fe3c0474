using System.Globalization;

namespace TransformerKernels.Benchmarks;

/// <summary>How much faster compute-bound cases are with two threads than with one, both timed in turns in this process.</summary>
internal static class Scaling
{
    /// <summary>What a compute-bound case has to reach.</summary>
    public const double Least = 1.85;

    private const int Threads = 2;

    private const double MsPerSecond = 1000;

    /// <summary>Measures and prints the cases that are compute-bound here.</summary>
    /// <returns>The exit code: 1 if there is none.</returns>
    public static int Run(IEnumerable<Case> cases, int rounds)
    {
        using var limits = new MachineLimits(Threads);
        using ComputeDevice one = ComputeDevice.OpenCpu(1), two = ComputeDevice.OpenCpu(Threads);
        Console.WriteLine($"{two.Name}; limits: {limits.Description}; medians of {rounds} rounds");
        var ratios = new List<double>();
        foreach (Case @case in cases.Where(@case => !@case.CountsMemory && @case.Cost.IsComputeBound(new(limits.Peak(), limits.Bandwidth(@case.Cost.Traffic)))))
        {
            using Contest alone = @case.Prepare(one), together = @case.Prepare(two);
            Samples slow = new(), fast = new();
            Comparison.WarmUp(alone);
            Comparison.WarmUp(together);
            for (int round = 0; round < rounds; round++)
            {
                slow.Add(Time(alone));
                fast.Add(Time(together));
            }
            double ratio = slow.Median / fast.Median;
            ratios.Add(ratio);
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{@case.Name,-36} {slow.Median * MsPerSecond,9:0.00} ms {fast.Median * MsPerSecond,9:0.00} ms {ratio:0.000}x {(ratio >= Least ? "" : "below")}"));
        }
        if (ratios.Count == 0)
        {
            Console.Error.WriteLine("None of the cases is bound by arithmetic here.");
            return 1;
        }
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"lowest {ratios.Min():0.000}x; at least {Least}x everywhere: {(ratios.Min() >= Least ? "met" : "not met")}"));
        return 0;

        static double Time(Contest contest)
        {
            contest.Restore();
            return Comparison.Time(contest.Run);
        }
    }
}
