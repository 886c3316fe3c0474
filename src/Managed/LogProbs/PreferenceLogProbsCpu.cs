namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override long PreferenceLogProbsWorkspaceBytes(in PreferenceProblem problem, bool backward, long budget)
    {
        long own = AnswerScratch.Bytes(problem), left = HiddenPlan.Left(budget, own), tokens = LogProbsFromHiddenWorkspaceBytes(problem.Policy, backward, topTokens: false, left);
        return own + (backward || !problem.Reference.Hidden.IsPresent ? tokens : Math.Max(tokens, LogProbsFromHiddenWorkspaceBytes(problem.Reference, backward, topTokens: false, left)));
    }

    protected internal override unsafe void PreferenceLogProbs(in PreferenceProblem problem, in PreferenceOutputs outputs, Workspace workspace)
    {
        bool policy = outputs.Chosen.IsPresent || outputs.Rejected.IsPresent, reference = outputs.ReferenceChosen.IsPresent || outputs.ReferenceRejected.IsPresent;
        cancellation.ThrowIfCancellationRequested();
        using Workspace.Lease lease = workspace.Rent(PreferenceLogProbsWorkspaceBytes(problem, backward: false, workspace.Limit));
        fixed (byte* memory = lease.View, bounds = problem.CumulativeLengths, mask = problem.Mask, targets = problem.Policy.Targets, referenceTargets = problem.Reference.Targets)
        {
            TensorView any = outputs.Chosen.IsPresent ? outputs.Chosen : outputs.Rejected.IsPresent ? outputs.Rejected : outputs.ReferenceChosen.IsPresent ? outputs.ReferenceChosen : outputs.ReferenceRejected;
            var answers = new AnswerScratch(memory, problem, (nint)any.Length(0), new(bounds, problem.CumulativeLengths), mask);
            // All before anything is written.
            if (policy)
                answers.SetTargets(new(targets, problem.Policy.Targets), problem.Policy, "problem.Policy.Targets");
            if (referenceTargets != null)
                answers.CheckReference(new(targets, problem.Policy.Targets), new(referenceTargets, problem.Reference.Targets), problem);
            if (reference)
            {
                answers.SetTargets(new(referenceTargets, problem.Reference.Targets), problem.Reference, "problem.Reference.Targets");
                Answer(problem.Reference, answers, problem.Reduction, outputs.ReferenceChosen, outputs.ReferenceRejected, workspace.Limit);
            }
            if (!policy)
                return;
            answers.SetTargets(new(targets, problem.Policy.Targets), problem.Policy, "problem.Policy.Targets");
            Answer(problem.Policy, answers, problem.Reduction, outputs.Chosen, outputs.Rejected, workspace.Limit);
        }
    }

    protected internal override unsafe void PreferenceLogProbsBackward(in PreferenceProblem problem, in PreferenceUpstream upstream, in HiddenGradients gradients, Workspace workspace)
    {
        cancellation.ThrowIfCancellationRequested();
        using Workspace.Lease lease = workspace.Rent(PreferenceLogProbsWorkspaceBytes(problem, backward: true, workspace.Limit));
        fixed (byte* memory = lease.View, bounds = problem.CumulativeLengths, mask = problem.Mask, targets = problem.Policy.Targets, chosen = upstream.Chosen, rejected = upstream.Rejected)
        {
            nint pairs = (nint)(upstream.Chosen.IsPresent ? upstream.Chosen : upstream.Rejected).Length(0);
            var answers = new AnswerScratch(memory, problem, pairs, new(bounds, problem.CumulativeLengths), mask);
            answers.SetTargets(new(targets, problem.Policy.Targets), problem.Policy, "problem.Policy.Targets");
            HostVector ofChosen = new(chosen, upstream.Chosen), ofRejected = new(rejected, upstream.Rejected);
            for (nint pair = 0; pair < pairs; pair++)
                (answers.PerAnswer[pair], answers.PerAnswer[pairs + pair]) = (ofChosen.OrZero(pair), ofRejected.OrZero(pair));
            TensorView arriving = answers.PerAnswerView(this);
            bool mean = problem.Reduction == SequenceReduction.Mean;
            SpreadSequences(answers.Layout(this, problem.Policy), new() { Sum = mean ? default : arriving, Mean = mean ? arriving : default }, answers.PerTokenView(this));
            var plan = new HiddenPlan(problem.Policy, backward: true, keeps: true, HiddenPlan.Left(workspace.Limit, answers.Size), Lanes, ThreadCount);
            FromHidden(plan, answers.Of(this, problem.Policy), null, new() { LogProb = answers.PerTokenView(this) }, default, default, default, gradients, answers.Rest);
        }
    }

    // Chosen and rejected log-probs of one model; the targets are set.
    private unsafe void Answer(in HiddenProblem problem, in AnswerScratch answers, SequenceReduction reduction, TensorView chosen, TensorView rejected, long limit)
    {
        TensorView logProb = answers.PerTokenView(this), perAnswer = answers.PerAnswerView(this);
        var plan = new HiddenPlan(problem, backward: false, keeps: false, HiddenPlan.Left(limit, answers.Size), Lanes, ThreadCount);
        FromHidden(plan, answers.Of(this, problem), null, default, new() { LogProb = logProb }, default, default, default, answers.Rest);
        bool mean = reduction == SequenceReduction.Mean;
        ReduceSequences(logProb, answers.Layout(this, problem), new() { Sum = mean ? default : perAnswer, Mean = mean ? perAnswer : default });
        fixed (byte* first = chosen, second = rejected)
        {
            HostVector ofChosen = new(first, chosen), ofRejected = new(second, rejected);
            for (nint pair = 0; pair < answers.Pairs; pair++)
            {
                ofChosen.Set(pair, answers.PerAnswer[pair]);
                ofRejected.Set(pair, answers.PerAnswer[answers.Pairs + pair]);
            }
        }
    }

    /// <summary>What lies in the workspace before the scratch memory of log-probs: the targets of the answers' tokens, the answers' bounds, a number per token and one per answer.</summary>
    private readonly unsafe struct AnswerScratch
    {
        // A vector's; what follows begins there.
        private const int Alignment = 64;

        private readonly long* targets, bounds;
        private readonly byte* mask;
        private readonly float* perToken;
        private readonly nint maskStep, tokens;
        private readonly long bytes;

        public readonly float* PerAnswer, Rest;
        public readonly nint Pairs;

        public AnswerScratch(byte* memory, in PreferenceProblem problem, nint pairs, TokenVector cumulativeLengths, byte* mask)
        {
            tokens = (nint)problem.Policy.Hidden.Length(0);
            Pairs = pairs;
            this.mask = mask;
            maskStep = mask == null ? 0 : (nint)problem.Mask.Stride(0);
            bytes = Bytes(problem);
            targets = (long*)memory;
            bounds = targets + tokens;
            perToken = (float*)(bounds + 2 * pairs + 1);
            PerAnswer = perToken + tokens;
            Rest = (float*)(memory + bytes);
            for (nint s = 0; s <= 2 * pairs; s++)
            {
                bounds[s] = cumulativeLengths.IsPresent ? cumulativeLengths[s] : pairs == 0 ? 0 : s * (tokens / (2 * pairs));
                SequenceTokens.CheckBound(s, s == 0 ? 0 : bounds[s - 1], bounds[s], tokens, "problem.CumulativeLengths");
            }
        }

        /// <summary>For as many answers as there can be: without bounds, each has a token.</summary>
        public static long Bytes(in PreferenceProblem problem)
        {
            long tokens = problem.Policy.Hidden.Length(0), answers = problem.CumulativeLengths.IsPresent ? problem.CumulativeLengths.Length(0) - 1 : tokens;
            return (sizeof(long) * (tokens + answers + 1) + sizeof(float) * (tokens + answers) + Alignment - 1) / Alignment * Alignment;
        }

        public long Size => bytes;

        /// <summary>The targets of the answers' tokens; the others are ignored.</summary>
        public void SetTargets(TokenVector given, in HiddenProblem problem, string name)
        {
            for (nint token = 0; token < tokens; token++)
                targets[token] = problem.IgnoreTarget;
            for (nint token = (nint)bounds[0]; token < bounds[2 * Pairs]; token++)
            {
                if (mask != null && mask[token * maskStep] == 0)
                    continue;
                targets[token] = given[token];
                CheckTarget(token, given[token], problem.ValidVocabulary ?? problem.Vocabulary.Length(0), problem.IgnoreTarget, name);
            }
        }

        /// <summary>Log-probs of the same tokens, or no margin means anything.</summary>
        public void CheckReference(TokenVector policy, TokenVector reference, in PreferenceProblem problem)
        {
            for (nint token = (nint)bounds[0]; token < bounds[2 * Pairs]; token++)
            {
                bool counts = policy[token] != problem.Policy.IgnoreTarget;
                if ((mask != null && mask[token * maskStep] == 0) || reference[token] != problem.Reference.IgnoreTarget == counts)
                    continue;
                throw new ArgumentException($"problem.Reference.Targets[{token}] is {reference[token]}, which {(counts ? "ignores" : "counts")} a token that problem.Policy.Targets, {policy[token]} there, "
                    + $"{(counts ? "counts" : "ignores")}; both must count the same ones. Without problem.Reference.Targets they do.", "problem.Reference.Targets");
            }
        }

        /// <summary>The problem with the answers' targets.</summary>
        public HiddenProblem Of(CpuDevice device, HiddenProblem problem)
        {
            problem.Targets = TensorView.FromPointer(device, (nint)targets, ElementType.Int64, tokens);
            return problem;
        }

        public SequenceLayout Layout(CpuDevice device, in HiddenProblem problem) => new()
        {
            CumulativeLengths = TensorView.FromPointer(device, (nint)bounds, ElementType.Int64, 2 * Pairs + 1),
            Targets = TensorView.FromPointer(device, (nint)targets, ElementType.Int64, tokens),
            IgnoreTarget = problem.IgnoreTarget,
        };

        public TensorView PerTokenView(CpuDevice device) => TensorView.FromPointer(device, (nint)perToken, ElementType.Float32, tokens);

        public TensorView PerAnswerView(CpuDevice device) => TensorView.FromPointer(device, (nint)PerAnswer, ElementType.Float32, 2 * Pairs);
    }
}
