namespace TransformerKernels.Tests;

/// <summary>Host memory, a GPU's kernels: every call copies its tensors to the GPU, runs there, and copies what was written back. For tests alone.</summary>
/// <remarks>
/// Strides, gaps and offsets are kept: the whole stretch of memory that a view reaches is copied there, and only the view's own elements are copied back.
/// </remarks>
public sealed class MirroredDevice(GpuDevice gpu) : ComputeDevice
{
    private readonly Lock gate = new();

    public override string Name => gpu.Name;

    protected internal override object MemorySpace => Cpu.MemorySpace;

    public override ComputeDevice With(CancellationToken cancellation) => new MirroredDevice(gpu.With(cancellation));

    public override void Synchronize() => gpu.Synchronize();

    public override TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape) => Cpu.Allocate(type, shape);

    protected override void Dispose(bool disposing)
    {
    }

    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) => gpu.AttentionForwardWorkspaceBytes(problem);

    protected internal override long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients) =>
        gpu.AttentionBackwardWorkspaceBytes(problem, gradients);

    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp, Workspace workspace)
    {
        lock (gate)
        {
            using var scratch = new Workspace(gpu, workspace.Limit);
            using var call = new MirroredCall(gpu);
            gpu.AttentionForward(Mirror(call, problem), rule, call.Written(output), call.Written(logSumExp), scratch);
            call.CopyBack(0, output);
            call.CopyBack(1, logSumExp);
        }
    }

    protected internal override void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved, in AttentionUpstream upstream,
        in AttentionGradients gradients, Workspace workspace)
    {
        lock (gate)
        {
            using var scratch = new Workspace(gpu, workspace.Limit);
            using var call = new MirroredCall(gpu);
            var mirroredSaved = new AttentionSaved { Output = call.Read(saved.Output), LogSumExp = call.Read(saved.LogSumExp) };
            var mirroredUpstream = new AttentionUpstream { Output = call.Read(upstream.Output), LogSumExp = call.Read(upstream.LogSumExp) };
            var mirrored = new AttentionGradients
            {
                Query = call.Written(gradients.Query),
                Key = call.Written(gradients.Key),
                Value = call.Written(gradients.Value),
                Slopes = call.Written(gradients.Slopes),
                DistanceBias = call.Written(gradients.DistanceBias),
                Captured0 = call.Written(gradients.Captured0),
                Captured1 = call.Written(gradients.Captured1),
                Captured2 = call.Written(gradients.Captured2),
                Captured3 = call.Written(gradients.Captured3),
                Accumulate = gradients.Accumulate,
            };
            gpu.AttentionBackward(Mirror(call, problem), rule, mirroredSaved, mirroredUpstream, mirrored, scratch);
            call.CopyBack(0, gradients.Query);
            call.CopyBack(1, gradients.Key);
            call.CopyBack(2, gradients.Value);
            call.CopyBack(3, gradients.Slopes);
            call.CopyBack(4, gradients.DistanceBias);
            call.CopyBack(5, gradients.Captured0);
            call.CopyBack(6, gradients.Captured1);
            call.CopyBack(7, gradients.Captured2);
            call.CopyBack(8, gradients.Captured3);
        }
    }

    protected internal override void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            using var mirrored = new RotaryTable(gpu, Copy(table.Cosines), Copy(table.Sines));
            var mirroredOptions = new RotaryOptions { Pairing = options.Pairing, Offset = options.Offset, PositionIds = call.Read(options.PositionIds) };
            gpu.Rotate(call.Written(query), call.Written(key), mirrored, mirroredOptions, backward);
            call.CopyBack(0, query);
            call.CopyBack(1, key);
        }
    }

    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            LogitsProblem mirrored = Mirror(call, problem, call.Read(problem.Logits));
            TokenOutputs mirroredOutputs = outputs;
            mirroredOutputs.LogProb = call.Written(outputs.LogProb);
            mirroredOutputs.LogSumExp = call.Written(outputs.LogSumExp);
            mirroredOutputs.Entropy = call.Written(outputs.Entropy);
            mirroredOutputs.SumOfSquares = call.Written(outputs.SumOfSquares);
            mirroredOutputs.Argmax = call.Written(outputs.Argmax);
            mirroredOutputs.MeanLogit = call.Written(outputs.MeanLogit);
            mirroredOutputs.TopLogProbs = call.Written(outputs.TopLogProbs);
            mirroredOutputs.TopTokens = call.Written(outputs.TopTokens);
            gpu.LogProbsFromLogits(mirrored, mirroredOutputs);
            call.CopyBack(0, outputs.LogProb);
            call.CopyBack(1, outputs.LogSumExp);
            call.CopyBack(2, outputs.Entropy);
            call.CopyBack(3, outputs.SumOfSquares);
            call.CopyBack(4, outputs.Argmax);
            call.CopyBack(5, outputs.MeanLogit);
            call.CopyBack(6, outputs.TopLogProbs);
            call.CopyBack(7, outputs.TopTokens);
        }
    }

    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            TensorView gradient = call.Written(logitsGradient);
            LogitsProblem mirrored = Mirror(call, problem, logitsGradient.IsSameAs(problem.Logits) ? gradient : call.Read(problem.Logits));
            var mirroredSaved = new TokenSaved { LogSumExp = call.Read(saved.LogSumExp), Entropy = call.Read(saved.Entropy) };
            var mirroredUpstream = new TokenUpstream { LogProb = call.Read(upstream.LogProb), LogSumExp = call.Read(upstream.LogSumExp), Entropy = call.Read(upstream.Entropy) };
            mirroredUpstream.SumOfSquares = call.Read(upstream.SumOfSquares);
            mirroredUpstream.MeanLogit = call.Read(upstream.MeanLogit);
            gpu.LogProbsFromLogitsBackward(mirrored, mirroredSaved, mirroredUpstream, gradient);
            call.CopyBack(0, logitsGradient);
        }
    }

    protected internal override bool OffersAllOfAttention => gpu.OffersAllOfAttention;

    protected internal override void RequireOffered(in LogitsProblem problem, in TokenOutputs outputs) => gpu.RequireOffered(problem, outputs);

    // GPUs refuse it; nothing is copied for that.
    protected internal override long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget) =>
        gpu.LogProbsFromHiddenWorkspaceBytes(problem, backward, topTokens, budget);

    protected internal override void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace) => gpu.LogProbsFromHidden(problem, upstream, outputs, gradients, backward, workspace);

    protected internal override void ReduceSequences(TensorView values, in SequenceLayout layout, in SequenceOutputs outputs)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            gpu.ReduceSequences(call.Read(values), Mirror(call, layout), new SequenceOutputs { Sum = call.Written(outputs.Sum), Mean = call.Written(outputs.Mean), Count = call.Written(outputs.Count) });
            call.CopyBack(0, outputs.Sum);
            call.CopyBack(1, outputs.Mean);
            call.CopyBack(2, outputs.Count);
        }
    }

    protected internal override void SpreadSequences(in SequenceLayout layout, in SequenceUpstream upstream, TensorView gradient)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            gpu.SpreadSequences(Mirror(call, layout), new SequenceUpstream { Sum = call.Read(upstream.Sum), Mean = call.Read(upstream.Mean) }, call.Written(gradient));
            call.CopyBack(0, gradient);
        }
    }

    protected internal override long LossWorkspaceBytes(long rows, long columns) => gpu.LossWorkspaceBytes(rows, columns);

    protected internal override void PairLoss<TLoss>(in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics, Workspace workspace)
    {
        lock (gate)
        {
            using var scratch = new Workspace(gpu, workspace.Limit);
            using var call = new MirroredCall(gpu);
            var mirrored = new PairBatch
            {
                Chosen = call.Read(batch.Chosen),
                Rejected = call.Read(batch.Rejected),
                ReferenceChosen = call.Read(batch.ReferenceChosen),
                ReferenceRejected = call.Read(batch.ReferenceRejected),
                Reduction = batch.Reduction,
            };
            var mirroredOutputs = new PairOutputs
            {
                Loss = call.Written(outputs.Loss),
                ChosenGradient = call.Written(outputs.ChosenGradient),
                RejectedGradient = call.Written(outputs.RejectedGradient),
                ReferenceChosenGradient = call.Written(outputs.ReferenceChosenGradient),
                ReferenceRejectedGradient = call.Written(outputs.ReferenceRejectedGradient),
                ChosenReward = call.Written(outputs.ChosenReward),
                RejectedReward = call.Written(outputs.RejectedReward),
            };
            gpu.PairLoss(mirrored, loss, mirroredOutputs, call.Written(metrics), scratch);
            call.CopyBack(0, outputs.Loss);
            call.CopyBack(1, outputs.ChosenGradient);
            call.CopyBack(2, outputs.RejectedGradient);
            call.CopyBack(3, outputs.ReferenceChosenGradient);
            call.CopyBack(4, outputs.ReferenceRejectedGradient);
            call.CopyBack(5, outputs.ChosenReward);
            call.CopyBack(6, outputs.RejectedReward);
            call.CopyBack(7, metrics);
        }
    }

    protected internal override void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics, Workspace workspace)
    {
        lock (gate)
        {
            using var scratch = new Workspace(gpu, workspace.Limit);
            using var call = new MirroredCall(gpu);
            var mirrored = new TokenBatch
            {
                LogProb = call.Read(batch.LogProb),
                OldLogProb = call.Read(batch.OldLogProb),
                Advantage = call.Read(batch.Advantage),
                Mask = call.Read(batch.Mask),
                Reduction = batch.Reduction,
                Divisor = batch.Divisor,
            };
            gpu.TokenLoss(mirrored, loss, new TokenLossOutputs { Loss = call.Written(outputs.Loss), LogProbGradient = call.Written(outputs.LogProbGradient) }, call.Written(metrics), scratch);
            call.CopyBack(0, outputs.Loss);
            call.CopyBack(1, outputs.LogProbGradient);
            call.CopyBack(2, metrics);
        }
    }

    protected internal override void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            AdvantageProblem mirrored = problem;
            mirrored.Rewards = call.Read(problem.Rewards);
            mirrored.Values = call.Read(problem.Values);
            mirrored.Mask = call.Read(problem.Mask);
            gpu.EstimateAdvantages(mirrored, call.Written(advantages), call.Written(returns));
            call.CopyBack(0, advantages);
            call.CopyBack(1, returns);
        }
    }

    protected internal override void Whiten(TensorView values, TensorView mask, bool keepMean)
    {
        lock (gate)
        {
            using var call = new MirroredCall(gpu);
            gpu.Whiten(call.Written(values), call.Read(mask), keepMean);
            call.CopyBack(0, values);
        }
    }

    private static LogitsProblem Mirror(MirroredCall call, scoped in LogitsProblem problem, TensorView logits)
    {
        LogitsProblem mirrored = problem;
        mirrored.Logits = logits;
        mirrored.Targets = call.Read(problem.Targets);
        mirrored.Bias = call.Read(problem.Bias);
        mirrored.MeanWeights = call.Read(problem.MeanWeights);
        return mirrored;
    }

    private static SequenceLayout Mirror(MirroredCall call, scoped in SequenceLayout layout)
    {
        SequenceLayout mirrored = layout;
        mirrored.CumulativeLengths = call.Read(layout.CumulativeLengths);
        mirrored.Mask = call.Read(layout.Mask);
        mirrored.Targets = call.Read(layout.Targets);
        return mirrored;
    }

    private static AttentionProblem Mirror(MirroredCall call, scoped in AttentionProblem problem)
    {
        AttentionProblem mirrored = problem;
        mirrored.Query = call.Read(problem.Query);
        mirrored.Key = call.Read(problem.Key);
        mirrored.Value = call.Read(problem.Value);
        mirrored.Slopes = call.Read(problem.Slopes);
        mirrored.DistanceBias = call.Read(problem.DistanceBias);
        mirrored.Captured0 = Mirror(call, problem.Captured0);
        mirrored.Captured1 = Mirror(call, problem.Captured1);
        mirrored.Captured2 = Mirror(call, problem.Captured2);
        mirrored.Captured3 = Mirror(call, problem.Captured3);
        return mirrored;
    }

    private static CapturedTensor Mirror(MirroredCall call, scoped in CapturedTensor captured)
    {
        if (!captured.IsPresent)
            return default;
        TensorView values = call.Read(captured.Values);
        return captured.Structure switch
        {
            CapturedStructure.PerHead => CapturedTensor.PerHead(values),
            CapturedStructure.PerHeadAndDistance => CapturedTensor.PerHeadAndDistance(values, captured.Centre),
            CapturedStructure.PerHeadAndAbsoluteDistance => CapturedTensor.PerHeadAndAbsoluteDistance(values),
            CapturedStructure.PerQuery => CapturedTensor.PerQuery(values),
            CapturedStructure.PerKey => CapturedTensor.PerKey(values),
            _ => CapturedTensor.Dense(values),
        };
    }

    private unsafe TensorBuffer Copy(in TensorView table)
    {
        fixed (byte* data = table)
            return gpu.Upload<float>(new ReadOnlySpan<float>(data, checked((int)table.ElementCount)), table.Length(0), table.Length(1));
    }
}
