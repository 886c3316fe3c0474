using System.Runtime.CompilerServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs) => FromLogits(problem, null, outputs, default);

    protected internal override void LogProbsShard(in LogitsProblem problem, VocabularyShard shard, TensorView partials) => FromLogits(problem, shard, default, partials);

    private unsafe void FromLogits(in LogitsProblem problem, VocabularyShard? shard, in TokenOutputs outputs, TensorView partials)
    {
        fixed (byte* logits = problem.Logits, targets = problem.Targets, bias = problem.Bias, meanWeights = problem.MeanWeights, logProb = outputs.LogProb, logSumExp = outputs.LogSumExp,
            entropy = outputs.Entropy, squares = outputs.SumOfSquares, argmax = outputs.Argmax, topLogProbs = outputs.TopLogProbs, topTokens = outputs.TopTokens, mean = outputs.MeanLogit, parts = partials)
        {
            var work = new LogProbsWork
            {
                Rows = new(logits, targets, bias, meanWeights, problem, shard),
                Results = new(logProb, logSumExp, entropy, squares, argmax, mean, outputs),
                Partials = new(parts, partials),
                Top = new(topLogProbs, topTokens, outputs),
                Sought = Sought.Sum | (outputs.Entropy.IsPresent || partials.IsPresent ? Sought.Weighted : 0) | (outputs.SumOfSquares.IsPresent || partials.IsPresent ? Sought.Squares : 0),
            };
            Run(work, Groups(CheckTargets(work.Rows)));
        }
    }

    // So many rows one after the other: what is asked for ahead, or fetched while one is computed, is the next row's. Few rows are shared out one by one.
    private static nint RowsPerItem(nint rows) => Math.Clamp(rows / 64, 1, 16);

    private static nint Groups(nint rows) => (rows + RowsPerItem(rows) - 1) / RowsPerItem(rows);

    private static nint CheckTargets(in LogitRows rows)
    {
        for (nint row = 0; row < rows.Count; row++)
            CheckTarget(row, rows.Target(row), rows.Shard.Whole, rows.IgnoreTarget);
        return rows.Count;
    }

    internal static void CheckTarget(nint row, long target, long vocabulary, long ignoreTarget, string name = "problem.Targets")
    {
        if (target != ignoreTarget && (target < 0 || target >= vocabulary))
        {
            throw new ArgumentOutOfRangeException(name, target,
                $"{name}[{row}] is {target}; it must lie between 0 and {vocabulary - 1}, or be {ignoreTarget} to ignore the token.");
        }
    }

    private unsafe struct LogProbsWork : IWork
    {
        public LogitRows Rows;
        public TokenResults Results;
        public PartialRows Partials;
        public TopRows Top;
        public Sought Sought;

        [SkipLocalsInit]
        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            float* space = stackalloc float[StripMemory.Aligned(LogitSums<TLanes>.Block)], block = StripMemory.Align(space);
            nint rows = RowsPerItem(Rows.Count);
            for (nint row = item * rows; row < Math.Min((item + 1) * rows, Rows.Count); row++)
                Reduce<TLanes>(row, block);
        }

        private readonly void Reduce<TLanes>(nint row, float* block) where TLanes : struct, ILanes<TLanes>
        {
            long target = Rows.Target(row);
            if (target == Rows.IgnoreTarget)
            {
                Results.Clear(row);
                if (Partials.IsPresent)
                    Partials[row] = default;
                Top.Clear(row);
                return;
            }
            TopRows.List top = Top.Begin(row);
            RowSums sums = LogitSums<TLanes>.Of(Rows, row, Sought, block, Top.Count > 0 ? &top : null);
            top.Finish(Rows.Shape.Scale, sums.Shift, sums.LogSum);
            bool all = Partials.IsPresent;
            nint column = Rows.Column(target);
            var whole = new VocabularySums
            {
                // Where no sums could be formed the shift is 0.
                Max = sums.Sum == 0 ? double.NegativeInfinity : double.IsFinite(sums.Sum) ? sums.Shift : sums.Sum,
                Sum = sums.Sum,
                Weighted = sums.Weighted,
                Squares = sums.Squares,
                Logits = all || Results.HasMeanLogit ? Rows.Total<TLanes>(row, block) / Rows.Shard.Whole : 0,
                TargetLogit = column < 0 ? double.NegativeInfinity : Rows.Shape.Scale * Rows.At<TLanes>(row, column),
                Argmax = all || Results.HasArgmax ? Rows.Shard.First + FirstLargest<TLanes>(row, sums, top.Likeliest, block) : 0,
            };
            Results.Set(row, whole);
            if (all)
                Partials[row] = whole;
        }

        // The block's largest logit is looked for in pieces that are prepared anew one by one: eight vectors are what capping by table takes side by side.
        private const int LargestPieceVectors = 8;

        private readonly long FirstLargest<TLanes>(nint row, in RowSums sums, long likeliest, float* block) where TLanes : struct, ILanes<TLanes>
        {
            // Where there is a NaN, it may be anywhere; an infinite logit too, for no sums were formed of its block.
            bool anywhere = !double.IsFinite(sums.Sum) || sums.Sum == 0;
            if (!anywhere)
            {
                if (likeliest >= 0)
                    return likeliest;
                nint first = sums.LargestBlock, piece = LargestPieceVectors * TLanes.Count, at = 0;
                while (Rows.Prepare<TLanes>(row, first, Math.Min(piece, Rows.Vocabulary - first), block) < sums.Anchor && first + piece < Rows.Vocabulary)
                    first += piece;
                nint count = Math.Min(piece, Rows.Vocabulary - first);
                while (at + 1 < count && block[at] != sums.Anchor)
                    at++;
                return first + at;
            }
            float largest = float.NegativeInfinity;
            nint found = 0;
            for (nint start = 0; start < Rows.Vocabulary; start += LogitSums<TLanes>.Block)
            {
                nint count = Math.Min(LogitSums<TLanes>.Block, Rows.Vocabulary - start);
                Rows.Prepare<TLanes>(row, start, count, block);
                for (nint i = 0; i < count; i++)
                {
                    if (float.IsNaN(block[i]))
                        return start + i;
                    if (block[i] > largest)
                        (largest, found) = (block[i], start + i);
                }
            }
            return found;
        }
    }
}
