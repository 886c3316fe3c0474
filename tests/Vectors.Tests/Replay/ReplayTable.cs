using System.Globalization;
using System.Text;

namespace TransformerKernels.Tests;

/// <summary>One line a file: how many cases passed, were wrong, can't be run, are pending, and the largest error among those that ran.</summary>
public sealed class ReplayTable
{
    private const string Layout = "{0,-12} {1,-34} {2,6} {3,7} {4,6} {5,14} {6,8} {7,14} {8,11}";

    private readonly List<Line> lines = [];
    private int inPart;

    public void Add(VectorCase vector, Verdict verdict, bool listed)
    {
        if (lines.Count == 0 || lines[^1].Folder != vector.Folder || lines[^1].File != vector.File)
            lines.Add(new Line(vector.Folder, vector.File));
        lines[^1].Add(verdict, listed);
        inPart += verdict.Outcome == Outcome.NotSupported && verdict.Compared > 0 ? 1 : 0;
    }

    public override string ToString()
    {
        var text = new StringBuilder();
        text.AppendLine(string.Format(CultureInfo.InvariantCulture, Layout, "folder", "file", "cases", "passed", "wrong", "not supported", "pending", "largest error", "of allowed"));
        foreach (Line line in lines)
            text.AppendLine(line.ToString());
        var sum = new Line("", "sum");
        foreach (Line line in lines)
            sum.Add(line);
        text.AppendLine(sum.ToString());
        text.AppendLine($"{inPart} of the cases that are pending or not supported agree in the part that the library computes.");
        text.AppendLine("largest error: as a share of the larger of 1 and the largest number of its tensor; of allowed: as a share of what the contract allows there.");
        return text.ToString();
    }

    private sealed class Line(string folder, string file)
    {
        private int cases, passed, wrong, notSupported, pending;
        private double error, share;

        public string Folder => folder;

        public string File => file;

        public void Add(Verdict verdict, bool listed)
        {
            cases++;
            passed += verdict.Outcome == Outcome.Passed ? 1 : 0;
            wrong += verdict.Outcome == Outcome.Wrong ? 1 : 0;
            notSupported += verdict.Outcome == Outcome.NotSupported && !listed ? 1 : 0;
            pending += verdict.Outcome == Outcome.NotSupported && listed ? 1 : 0;
            error = Math.Max(error, verdict.LargestError);
            share = Math.Max(share, verdict.ShareOfAllowed);
        }

        public void Add(Line other)
        {
            (cases, passed, wrong) = (cases + other.cases, passed + other.passed, wrong + other.wrong);
            (notSupported, pending) = (notSupported + other.notSupported, pending + other.pending);
            (error, share) = (Math.Max(error, other.error), Math.Max(share, other.share));
        }

        public override string ToString() => string.Format(CultureInfo.InvariantCulture, Layout, folder, file, cases, passed, wrong, notSupported, pending,
            share == 0 && error == 0 ? "" : error.ToString("0.0e0", CultureInfo.InvariantCulture), share == 0 ? "" : share.ToString("0%", CultureInfo.InvariantCulture));
    }
}
