using System.Diagnostics;
using System.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Measures cases: in every round a limit, ours, the peer, and the limit again.</summary>
internal sealed class Comparison(ComputeDevice device, MachineLimits limits, string? whyNoPeer, int rounds)
{
    // The runtime compiles hot code anew, twice, each time after some tens of calls and a tenth of a second, and on a thread that takes a processor from what is timed:
    // short problems took up to 1.8 times as long for the first half of a second. Code that hasn't changed for so long is as it will be.
    private const int WarmRuns = 3;
    private const double SettledSeconds = 0.3;

    // The best of so many runs decides which form of the peer is timed.
    private const int FormTrials = 3;

    // Threads that have just finished look for more work a while. What is woken meanwhile shares a processor with them, for milliseconds: short cases took twice as long in half of the rounds.
    private const int PauseMs = 2;

    private const string OurThreads = "TransformerKernels";

    private const double MsPerSecond = 1000, BytesPerMb = 1 << 20;

    // With vectors of 256 bits and less, compute-bound cases are asked for so much less.
    private const double NarrowAllowance = 0.10;
    private const int WideBits = 512;

    /// <summary>Checks a case, then times it.</summary>
    /// <exception cref="Oracle.ContractException">It is wrong.</exception>
    public Result Measure(Case @case)
    {
        using Contest contest = @case.Prepare(device);
        contest.Run();
        double error = contest.Check();
        contest.Restore();
        contest.DropWorkspace();
        long? extra = ResidentMemory.PeakAbove(contest.Run);
        if (@case.CountsMemory)
            return OfMemory(@case, contest, error, extra);
        WarmUp(contest);

        using DisposeScope? scope = whyNoPeer is null ? NewDisposeScope() : null;
        Peer? peer = whyNoPeer is null ? Fastest(Checked(contest)) : null;
        Samples peak = new(), bandwidth = new(), ours = new(), theirs = new();
        for (int round = 0; round < rounds; round++)
        {
            SampleLimits();
            contest.Restore();
            ours.Add(Time(contest.Run));
            if (peer is not null)
                theirs.Add(Time(peer));
            SampleLimits();
        }

        var rates = new Rates(peak.Median, bandwidth.Median);
        bool computeBound = @case.Cost.IsComputeBound(rates);
        return new()
        {
            Case = @case.Name,
            Shape = @case.Shape,
            Device = device.Name,
            OursMs = ours.Median * MsPerSecond,
            Spread = ours.Spread,
            Peer = peer?.Name ?? $"none: {whyNoPeer}",
            PeerMs = peer is null ? null : theirs.Median * MsPerSecond,
            Limit = @case.Cost.LimitName(rates),
            LimitRate = computeBound ? rates.Peak : rates.Bandwidth,
            FloorMs = @case.Cost.Floor(rates) * MsPerSecond,
            ExtraMb = extra / BytesPerMb,
            Must = @case.Must - (computeBound && limits.VectorBits < WideBits ? NarrowAllowance : 0),
            Aim = @case.Aim,
            Error = error,
            Rounds = rounds,
        };

        void SampleLimits()
        {
            peak.Add(limits.Peak());
            bandwidth.Add(limits.Bandwidth(@case.Cost.Traffic));
        }
    }

    // Once more, for its time; nothing to compete with.
    private Result OfMemory(Case @case, Contest contest, double error, long? extra)
    {
        double seconds = Time(contest.Run);
        var rates = new Rates(limits.Peak(), limits.Bandwidth(@case.Cost.Traffic));
        return new()
        {
            Case = @case.Name,
            Shape = @case.Shape,
            Device = device.Name,
            OursMs = seconds * MsPerSecond,
            Spread = 0,
            Peer = "none: memory only",
            Limit = @case.Cost.LimitName(rates),
            LimitRate = @case.Cost.IsComputeBound(rates) ? rates.Peak : rates.Bandwidth,
            FloorMs = @case.Cost.Floor(rates) * MsPerSecond,
            ExtraMb = extra / BytesPerMb,
            Must = @case.Must,
            Aim = @case.Aim,
            CountsMemory = true,
            Error = error,
            Rounds = 1,
        };
    }

    /// <summary>Runs until the code is as it will be.</summary>
    public static void WarmUp(Contest contest)
    {
        long changed = Stopwatch.GetTimestamp();
        long methods = 0;
        for (int run = 0; run < WarmRuns || Stopwatch.GetElapsedTime(changed).TotalSeconds < SettledSeconds; run++)
        {
            contest.Restore();
            contest.Run();
            long compiled = JitInfo.GetCompiledMethodCount();
            if (compiled != methods)
                (methods, changed) = (compiled, Stopwatch.GetTimestamp());
        }
    }

    // The forms take the inputs as they are before our run.
    private static Peer[] Checked(Contest contest)
    {
        Peer[] forms = [.. contest.Peers()];
        contest.Restore();
        contest.Run();
        foreach (Peer form in forms)
            TorchPeer.Check(form, contest.Results);
        return forms;
    }

    // The first run of a form counts too: a slow form needn't be run more often than it takes to see that.
    private static Peer Fastest(Peer[] forms) => forms.MinBy(form => Enumerable.Range(0, FormTrials).Min(_ => Time(form)))!;

    /// <summary>The seconds that a run takes.</summary>
    /// <param name="run">What is timed.</param>
    /// <param name="threads">The name of the threads that it wakes.</param>
    public static double Time(Action run, string threads = OurThreads)
    {
        Thread.Sleep(PauseMs);
        Placement.MakeRoom(threads);
        long start = Stopwatch.GetTimestamp();
        run();
        return Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    private static double Time(Peer peer)
    {
        using DisposeScope scope = NewDisposeScope();
        return Time(() => _ = peer.Run(), Placement.MainName);
    }
}
