using System.Runtime.InteropServices;

namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, long budget) => new HiddenPlan(problem, backward, budget, Lanes, ThreadCount).Bytes;

    protected internal override unsafe void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace)
    {
        var plan = new HiddenPlan(problem, backward, workspace.Limit, Lanes, ThreadCount);
        fixed (byte* hidden = problem.Hidden, vocabulary = problem.Vocabulary, targets = problem.Targets, bias = problem.Bias,
            ofLogProb = upstream.LogProb, ofLogSumExp = upstream.LogSumExp, ofEntropy = upstream.Entropy, ofSquares = upstream.SumOfSquares, ofMean = upstream.MeanLogit,
            logProb = outputs.LogProb, logSumExp = outputs.LogSumExp, entropy = outputs.Entropy, squares = outputs.SumOfSquares, argmax = outputs.Argmax, mean = outputs.MeanLogit,
            ofHidden = gradients.Hidden, ofVocabulary = gradients.Vocabulary, ofBias = gradients.Bias)
        {
            var tokens = new TokenVector(targets, problem.Targets);
            for (nint token = 0; token < plan.Tokens; token++)
                CheckTarget(token, tokens[token], plan.Vocabulary, problem.IgnoreTarget);
            cancellation.ThrowIfCancellationRequested();

            using Workspace.Lease lease = workspace.Rent(plan.Bytes);
            fixed (byte* memory = lease.View)
            {
                float* floats = (float*)memory;
                var work = new HiddenWork
                {
                    Plan = plan,
                    Hidden = new(hidden, problem.Hidden),
                    Vocabulary = new(vocabulary, problem.Vocabulary),
                    Bias = (float*)bias,
                    Shape = new(problem.Softcap, problem.Temperature),
                    Upstream = new(ofLogProb, ofLogSumExp, ofEntropy, ofSquares, ofMean, upstream),
                    LogProb = new(logProb, outputs.LogProb),
                    LogSumExp = new(logSumExp, outputs.LogSumExp),
                    Entropy = new(entropy, outputs.Entropy),
                    SumOfSquares = new(squares, outputs.SumOfSquares),
                    Argmax = new(argmax, outputs.Argmax),
                    MeanLogit = new(mean, outputs.MeanLogit),
                    OfHidden = new(ofHidden, gradients.Hidden),
                    OfVocabulary = new(ofVocabulary, gradients.Vocabulary),
                    OfBias = (float*)ofBias,
                    Accumulate = gradients.Accumulate,
                    Memory = floats,
                };
                long* indices = (long*)(floats + plan.Indices);
                work.Targets = indices + plan.Tokens;
                nint valid = 0;
                for (nint token = 0; token < plan.Tokens; token++)
                {
                    if (tokens[token] == problem.IgnoreTarget)
                        work.Ignore(token);
                    else
                        indices[valid++] = token;
                }
                work.ClearTail((nint)problem.Vocabulary.Length(0), all: valid == 0);

                byte* scratch = (byte*)(floats + plan.Scratch);
                nint stride = (nint)plan.ScratchBytes;
                for (nint start = 0; start < valid; start += plan.Chunk)
                {
                    work.Tokens = indices + start;
                    work.Count = Math.Min(plan.Chunk, valid - start);
                    work.First = start == 0;
                    for (nint i = 0; i < plan.Stride; i++)
                        work.Targets[i] = i < work.Count ? tokens[(nint)work.Tokens[i]] : -1;
                    work.Phase = HiddenPhase.Pack;
                    Run(work, plan.Stride / plan.Lanes, scratch, stride);
                    work.Phase = HiddenPhase.Sum;
                    Run(work, plan.Pieces, scratch, stride);
                    work.Phase = HiddenPhase.Merge;
                    Run(work, plan.Stride / plan.Lanes, scratch, stride);
                    if (!backward)
                        continue;
                    work.Phase = HiddenPhase.Differentiate;
                    Run(work, plan.Groups, scratch, stride);
                    if (work.OfHidden.IsPresent)
                    {
                        work.Phase = HiddenPhase.Unpack;
                        Run(work, plan.Stride / plan.Lanes, scratch, stride);
                    }
                }
            }
        }
    }

    private enum HiddenPhase
    {
        /// <summary>Transposes the chunk's hidden states; an item is a vector of tokens.</summary>
        Pack,
        /// <summary>Logits and their sums; an item is a piece of the vocabulary.</summary>
        Sum,
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
        public float* Bias, OfBias, Memory;
        public LogitShape Shape;
        public ArrivingGradients Upstream;
        public HostVector LogProb, LogSumExp, Entropy, SumOfSquares, MeanLogit;
        public TokenVector Argmax;
        public bool Accumulate, First;

        /// <summary>The chunk's tokens and their targets, and how many.</summary>
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
            LogProb.Set(token, 0);
            LogSumExp.Set(token, 0);
            Entropy.Set(token, 0);
            SumOfSquares.Set(token, 0);
            MeanLogit.Set(token, 0);
            Argmax.Set(token, 0);
            if (OfHidden.IsPresent && !Accumulate)
                NativeMemory.Clear(OfHidden.Floats(token), (nuint)(Plan.Width * sizeof(float)));
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
                case HiddenPhase.Merge: Merge<V>(item); break;
                case HiddenPhase.Differentiate: Differentiate<V>(item, (float*)scratch); break;
                default: Unpack<V>(item); break;
            }
        }
    }
}
