using System.Runtime.InteropServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) =>
        new HiddenPlan(problem, backward, keeps: backward || topTokens, budget, Lanes, ThreadCount).Bytes;

    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients, bool backward, Workspace workspace) =>
        FromHidden(problem, null, upstream, outputs, default, default, gradients, backward, workspace);

    protected internal override void LogProbsShard(in HiddenProblem problem, VocabularyShard shard, TensorView partials, Workspace workspace) =>
        FromHidden(problem, shard, default, default, partials, default, default, backward: false, workspace);

    protected internal override void LogProbsShardBackward(in HiddenProblem problem, VocabularyShard shard, TensorView merged, in TokenUpstream upstream, in HiddenGradients gradients, Workspace workspace) =>
        FromHidden(problem, shard, upstream, default, default, merged, gradients, backward: true, workspace);

    private unsafe void FromHidden(in HiddenProblem problem, VocabularyShard? shard, in TokenUpstream upstream, in TokenOutputs outputs, TensorView partials, TensorView merged,
        in HiddenGradients gradients, bool backward, Workspace workspace)
    {
        // Who knows the sums needs the logits once.
        var plan = new HiddenPlan(problem, backward, keeps: backward && !merged.IsPresent || outputs.TopLogProbs.IsPresent, workspace.Limit, Lanes, ThreadCount);
        fixed (byte* targets = problem.Targets)
        {
            var tokens = new TokenVector(targets, problem.Targets);
            for (nint token = 0; token < plan.Tokens; token++)
                CheckTarget(token, tokens[token], shard?.Whole ?? plan.Vocabulary, problem.IgnoreTarget);
        }
        cancellation.ThrowIfCancellationRequested();
        using Workspace.Lease lease = workspace.Rent(plan.Bytes);
        fixed (byte* memory = lease.View)
            FromHidden(plan, problem, shard, upstream, outputs, partials, merged, gradients, (float*)memory);
    }

    /// <summary>In memory of the plan's size; the targets are checked.</summary>
    private unsafe void FromHidden(in HiddenPlan plan, in HiddenProblem problem, VocabularyShard? shard, in TokenUpstream upstream, in TokenOutputs outputs, TensorView partials, TensorView merged,
        in HiddenGradients gradients, float* memory)
    {
        fixed (byte* hidden = problem.Hidden, vocabulary = problem.Vocabulary, targets = problem.Targets, bias = problem.Bias, meanWeights = problem.MeanWeights,
            ofLogProb = upstream.LogProb, ofLogSumExp = upstream.LogSumExp, ofEntropy = upstream.Entropy, ofSquares = upstream.SumOfSquares, ofMean = upstream.MeanLogit,
            logProb = outputs.LogProb, logSumExp = outputs.LogSumExp, entropy = outputs.Entropy, squares = outputs.SumOfSquares, argmax = outputs.Argmax, mean = outputs.MeanLogit,
            topLogProbs = outputs.TopLogProbs, topTokens = outputs.TopTokens, parts = partials, whole = merged,
            ofHidden = gradients.Hidden, ofVocabulary = gradients.Vocabulary, ofBias = gradients.Bias)
        {
            var work = new HiddenWork
            {
                Plan = plan,
                Shard = shard ?? new(0, plan.Vocabulary),
                Hidden = new(hidden, problem.Hidden),
                Vocabulary = new(vocabulary, problem.Vocabulary),
                Bias = (float*)bias,
                MeanWeights = (float*)meanWeights,
                Shape = new(problem.Softcap ?? 0, problem.Temperature),
                Upstream = new(ofLogProb, ofLogSumExp, ofEntropy, ofSquares, ofMean, upstream),
                Results = new(logProb, logSumExp, entropy, squares, argmax, mean, outputs),
                Top = new(topLogProbs, topTokens, outputs),
                Partials = new(parts, partials),
                Merged = new(whole, merged),
                OfHidden = new(ofHidden, gradients.Hidden),
                OfVocabulary = new(ofVocabulary, gradients.Vocabulary),
                OfBias = (float*)ofBias,
                Accumulate = gradients.Accumulate,
                Memory = memory,
            };
            var tokens = new TokenVector(targets, problem.Targets);
            work.Tokens = (long*)(memory + plan.Indices);
            work.Targets = work.Tokens + plan.Chunk;
            bool none = true;
            for (nint token = 0; token < plan.Tokens; token++)
            {
                if (tokens[token] == problem.IgnoreTarget)
                    work.Ignore(token);
                else
                    none = false;
            }
            work.ClearTail((nint)problem.Vocabulary.Length(0), all: none);
            work.First = true;
            for (nint next = 0; next < plan.Tokens;)
            {
                for (work.Count = 0; work.Count < plan.Chunk && next < plan.Tokens; next++)
                {
                    if (tokens[next] != problem.IgnoreTarget)
                        work.Tokens[work.Count++] = next;
                }
                if (work.Count == 0)
                    break;
                work.SetTargets(tokens);
                RunChunk(ref work);
                work.First = false;
            }
        }
    }

    private unsafe void RunChunk(ref HiddenWork work)
    {
        nint vectors = work.Plan.Stride / work.Plan.Lanes;
        RunPhase(ref work, HiddenPhase.Pack, vectors);
        if (!work.Merged.IsPresent)
            RunPhase(ref work, HiddenPhase.Sum, work.Plan.Pieces);
        if (work.Top.Count > 0)
            RunPhase(ref work, HiddenPhase.FindTop, vectors);
        RunPhase(ref work, HiddenPhase.Merge, vectors);
        if (work.Plan.Backward)
            RunPhase(ref work, HiddenPhase.Differentiate, work.Plan.Groups);
        if (work.OfHidden.IsPresent)
            RunPhase(ref work, HiddenPhase.Unpack, vectors);
    }

    private unsafe void RunPhase(ref HiddenWork work, HiddenPhase phase, nint items)
    {
        work.Phase = phase;
        Run(work, items, (byte*)(work.Memory + work.Plan.Scratch), (nint)work.Plan.ScratchBytes);
    }

    private enum HiddenPhase
    {
        /// <summary>Transposes the chunk's hidden states; an item is a vector of tokens.</summary>
        Pack,
        /// <summary>Logits and their sums; an item is a piece of the vocabulary.</summary>
        Sum,
        /// <summary>The likeliest tokens; an item is a vector of tokens.</summary>
        FindTop,
        /// <summary>Results, and what differentiation needs; an item is a vector of tokens.</summary>
        Merge,
        /// <summary>Gradients of the vocabulary and the bias, and parts of those of the hidden states; an item is a group of pieces.</summary>
        Differentiate,
        /// <summary>Gradients of the hidden states from their parts; an item is a vector of tokens.</summary>
        Unpack,
    }

    private unsafe partial struct HiddenWork : IWork
    {
        // The rows of the register tile of VocabularyProduct; gradients of so many rows go on side by side through memory.
        private const int TileRows = 8;

        public HiddenPlan Plan;
        public HiddenPhase Phase;
        public StoredRows Hidden, Vocabulary, OfHidden, OfVocabulary;
        public float* Bias, MeanWeights, OfBias, Memory;
        public LogitShape Shape;
        public ArrivingGradients Upstream;
        public TokenResults Results;
        public TopRows Top;

        /// <summary>Where the vocabulary lies in a larger one: all of it unless it is a slice.</summary>
        public VocabularyShard Shard;

        /// <summary>Of a slice: where its sums go, or those of the whole vocabulary, which are known then.</summary>
        public PartialRows Partials, Merged;
        public bool Accumulate, First;

        /// <summary>The chunk's tokens and their targets in the slice, −1 where there is none; and how many.</summary>
        public long* Tokens, Targets;
        public nint Count;

        private readonly float* PackedHidden => Memory + Plan.PackedHidden;
        private readonly float* PackedRows => Memory + Plan.PackedRows;
        private readonly float* Partial(nint piece, int field) => Memory + Plan.Partials + (piece * HiddenPlan.PartialFields + field) * Plan.Stride;
        private readonly float* Shift => Memory + Plan.PerToken;
        private readonly float* Constant => Shift + Plan.Stride;
        private readonly float* PerLogit => Constant + Plan.Stride;
        private readonly float* PerExponential => PerLogit + Plan.Stride;
        private readonly float* Everywhere => PerExponential + Plan.Stride;
        private readonly float* AtTarget => Everywhere + Plan.Stride;
        private readonly float* TargetLogit => AtTarget + Plan.Stride;
        private readonly float* HiddenPart(nint group) => Memory + Plan.HiddenParts + group * Plan.Width * Plan.Stride;

        /// <summary>Zeros for a token that doesn't count.</summary>
        public readonly void Ignore(nint token)
        {
            Results.Clear(token);
            Top.Clear(token);
            if (Partials.IsPresent)
                Partials[token] = default;
            if (OfHidden.IsPresent && !Accumulate)
                NativeMemory.Clear(OfHidden.Floats(token), (nuint)(Plan.Width * sizeof(float)));
        }

        /// <summary>The targets of the chunk's tokens.</summary>
        public readonly void SetTargets(in TokenVector targets)
        {
            for (nint i = 0; i < Plan.Stride; i++)
            {
                long entry = i < Count ? targets[(nint)Tokens[i]] - Shard.First : -1;
                Targets[i] = entry < Plan.Vocabulary ? Math.Max(entry, -1) : -1;
                TargetLogit[i] = float.NegativeInfinity;
            }
        }

        /// <summary>Zeros for entries that don't count, or for all.</summary>
        public readonly void ClearTail(nint entries, bool all)
        {
            if (Accumulate)
                return;
            for (nint entry = all ? 0 : Plan.Vocabulary; entry < entries; entry++)
            {
                if (OfVocabulary.IsPresent)
                    NativeMemory.Clear(OfVocabulary.Floats(entry), (nuint)(Plan.Width * sizeof(float)));
                if (OfBias != null)
                    OfBias[entry] = 0;
            }
        }

        public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
        {
            switch (Phase)
            {
                case HiddenPhase.Pack: Pack<V>(item, (float*)scratch); break;
                case HiddenPhase.Sum: Sum<V>(item, (float*)scratch); break;
                case HiddenPhase.FindTop: FindTop<V>(item, (float*)scratch); break;
                case HiddenPhase.Merge: Merge<V>(item); break;
                case HiddenPhase.Differentiate: Differentiate<V>(item, (float*)scratch); break;
                default: Unpack<V>(item); break;
            }
        }
    }
}
