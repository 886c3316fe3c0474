using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>How per-pair losses make one number.</summary>
public enum LossReduction
{
    /// <summary>Σ loss / n.</summary>
    Mean,
    /// <summary>Σ loss.</summary>
    Sum,
}

/// <summary>Sums of token log-probs of n preference pairs. All [n], float32, any stride.</summary>
public ref struct PairBatch
{
    /// <summary>ln π(chosen). Required.</summary>
    public TensorView Chosen { get; set; }
    /// <summary>ln π(rejected). Required.</summary>
    public TensorView Rejected { get; set; }
    /// <summary>ln π_ref(chosen); 0 if absent.</summary>
    public TensorView ReferenceChosen { get; set; }
    /// <summary>ln π_ref(rejected); 0 if absent.</summary>
    public TensorView ReferenceRejected { get; set; }
    /// <summary>Which reduced loss the gradients belong to.</summary>
    public LossReduction Reduction { get; set; }
}

/// <summary>Where per-pair results go; absent ones are not computed. All [n], float32, overwritten.</summary>
public ref struct PairOutputs
{
    /// <summary>The loss of each pair, not reduced.</summary>
    public TensorView Loss { get; set; }
    /// <summary>∂ reduced loss / ∂ chosen.</summary>
    public TensorView ChosenGradient { get; set; }
    /// <summary>∂ reduced loss / ∂ rejected.</summary>
    public TensorView RejectedGradient { get; set; }
    /// <summary>∂ reduced loss / ∂ reference chosen.</summary>
    public TensorView ReferenceChosenGradient { get; set; }
    /// <summary>∂ reduced loss / ∂ reference rejected.</summary>
    public TensorView ReferenceRejectedGradient { get; set; }
    /// <summary>Reward scale · (chosen − reference chosen).</summary>
    public TensorView ChosenReward { get; set; }
    /// <summary>Reward scale · (rejected − reference rejected).</summary>
    public TensorView RejectedReward { get; set; }
}

/// <summary>What the entries of a preference loss's metrics mean: averages over the pairs.</summary>
public static class PreferenceMetrics
{
    /// <summary>The reduced loss (a sum if that is the reduction).</summary>
    public const int Loss = 0;
    /// <summary>Mean reward of the chosen answers.</summary>
    public const int ChosenReward = 1;
    /// <summary>Mean reward of the rejected answers.</summary>
    public const int RejectedReward = 2;
    /// <summary>Mean difference of the two rewards.</summary>
    public const int RewardMargin = 3;
    /// <summary>Share of pairs whose chosen answer has the larger reward; a tie counts as wrong.</summary>
    public const int RewardAccuracy = 4;
    /// <summary>Mean ln π(chosen).</summary>
    public const int ChosenLogProb = 5;
    /// <summary>Mean ln π(rejected).</summary>
    public const int RejectedLogProb = 6;
    /// <summary>The number of entries.</summary>
    public const int Count = 7;
}

/// <summary>Preference losses over the log-probs of answer pairs: value, gradients and metrics in one pass.</summary>
public static class PreferenceLoss
{
    /// <summary>Evaluates a loss on every pair.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="batch">The log-probs.</param>
    /// <param name="loss">The formula, for instance <see cref="DpoSigmoid"/>.</param>
    /// <param name="outputs">What to compute per pair.</param>
    /// <param name="metrics">[<see cref="PreferenceMetrics.Count"/>], float32, overwritten; may be absent (default). No pairs: zeros.</param>
    /// <param name="workspace">Scratch memory of the device; <see cref="WorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps an output; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The loss's reward scale is no positive number, or the batch's reduction is none.</exception>
    public static void Evaluate<TLoss>(ComputeDevice device, in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics,
        Workspace workspace) where TLoss : unmanaged, IPairLoss
    {
        Require.Device(device);
        Require.Workspace(device, workspace);
        Require.Input(device, batch.Chosen, "batch.Chosen", -1);
        long pairs = batch.Chosen.Length(0);
        Require.Input(device, batch.Rejected, "batch.Rejected", pairs);
        Require.OptionalInput(device, batch.ReferenceChosen, "batch.ReferenceChosen", pairs);
        Require.OptionalInput(device, batch.ReferenceRejected, "batch.ReferenceRejected", pairs);
        if (batch.ReferenceChosen.IsPresent != batch.ReferenceRejected.IsPresent)
        {
            string absent = batch.ReferenceChosen.IsPresent ? "batch.ReferenceRejected" : "batch.ReferenceChosen";
            throw new ArgumentException($"{absent} is absent, but the other answer's reference is there; set both or neither.", absent);
        }
        if (!Enum.IsDefined(batch.Reduction))
            throw new ArgumentOutOfRangeException("batch.Reduction", batch.Reduction, "Not a reduction.");
        if (!(loss.RewardScale > 0) || !float.IsFinite(loss.RewardScale))
        {
            throw new ArgumentOutOfRangeException("loss.RewardScale", loss.RewardScale,
                $"loss.RewardScale is {loss.RewardScale}; it must be a positive number. What a constructor of {typeof(TLoss).Name} sets is 0 in default({typeof(TLoss).Name}).");
        }
        bool any = false;
        for (int i = 0; i < OutputCount; i++)
        {
            TensorView output = Output(outputs, metrics, i, out string name);
            any |= output.IsPresent;
            Require.OptionalOutput(device, output, name, i == OutputCount - 1 ? PreferenceMetrics.Count : pairs);
            Require.Disjoint(output, name, batch.Chosen, "batch.Chosen");
            Require.Disjoint(output, name, batch.Rejected, "batch.Rejected");
            Require.Disjoint(output, name, batch.ReferenceChosen, "batch.ReferenceChosen");
            Require.Disjoint(output, name, batch.ReferenceRejected, "batch.ReferenceRejected");
            for (int j = 0; j < i; j++)
            {
                TensorView other = Output(outputs, metrics, j, out string otherName);
                Require.Disjoint(output, name, other, otherName);
            }
        }
        Require.Any(any, nameof(outputs), "Loss, the four gradients, the two rewards, metrics");
        device.PairLoss(batch, loss, outputs, metrics, workspace);
    }

    /// <summary>The bytes of workspace that <see cref="Evaluate"/> needs for so many pairs.</summary>
    public static long WorkspaceBytes(ComputeDevice device, long pairs)
    {
        Require.Device(device);
        ArgumentOutOfRangeException.ThrowIfNegative(pairs);
        return device.LossWorkspaceBytes(1, pairs);
    }

    private const int OutputCount = 8;

    private static TensorView Output(in PairOutputs outputs, in TensorView metrics, int index, out string name)
    {
        switch (index)
        {
            case 0: name = "outputs.Loss"; return outputs.Loss;
            case 1: name = "outputs.ChosenGradient"; return outputs.ChosenGradient;
            case 2: name = "outputs.RejectedGradient"; return outputs.RejectedGradient;
            case 3: name = "outputs.ReferenceChosenGradient"; return outputs.ReferenceChosenGradient;
            case 4: name = "outputs.ReferenceRejectedGradient"; return outputs.ReferenceRejectedGradient;
            case 5: name = "outputs.ChosenReward"; return outputs.ChosenReward;
            case 6: name = "outputs.RejectedReward"; return outputs.RejectedReward;
            default: name = "metrics"; return metrics;
        }
    }
}

internal sealed partial class CpuDevice
{
    protected internal override long LossWorkspaceBytes(long rows, long columns) =>
        checked(LossBlocks(rows * columns) * LossSums * sizeof(double) + rows * sizeof(long));

    protected internal override unsafe void PairLoss<TLoss>(in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics, Workspace workspace)
    {
        nint pairs = (nint)batch.Chosen.Length(0);
        using Workspace.Lease lease = workspace.Rent(LossWorkspaceBytes(1, pairs));
        fixed (byte* chosen = batch.Chosen, rejected = batch.Rejected, referenceChosen = batch.ReferenceChosen, referenceRejected = batch.ReferenceRejected,
            losses = outputs.Loss, ofChosen = outputs.ChosenGradient, ofRejected = outputs.RejectedGradient, ofReferenceChosen = outputs.ReferenceChosenGradient,
            ofReferenceRejected = outputs.ReferenceRejectedGradient, chosenReward = outputs.ChosenReward, rejectedReward = outputs.RejectedReward,
            means = metrics, sums = lease.View)
        {
            var work = new PairLossWork<TLoss>
            {
                Loss = loss,
                Chosen = new(chosen, batch.Chosen),
                Rejected = new(rejected, batch.Rejected),
                ReferenceChosen = new(referenceChosen, batch.ReferenceChosen),
                ReferenceRejected = new(referenceRejected, batch.ReferenceRejected),
                Losses = new(losses, outputs.Loss),
                OfChosen = new(ofChosen, outputs.ChosenGradient),
                OfRejected = new(ofRejected, outputs.RejectedGradient),
                OfReferenceChosen = new(ofReferenceChosen, outputs.ReferenceChosenGradient),
                OfReferenceRejected = new(ofReferenceRejected, outputs.ReferenceRejectedGradient),
                ChosenReward = new(chosenReward, outputs.ChosenReward),
                RejectedReward = new(rejectedReward, outputs.RejectedReward),
                Pairs = pairs,
                Weight = batch.Reduction == LossReduction.Mean ? 1f / pairs : 1f,
                Sums = metrics.IsPresent ? (double*)sums : null,
            };
            Run(work, LossBlocks(pairs));
            if (!metrics.IsPresent)
                return;
            var results = new HostVector(means, metrics);
            for (int metric = 0; metric < PreferenceMetrics.Count; metric++)
            {
                double sum = 0;
                for (nint block = 0; block < LossBlocks(pairs); block++)
                    sum += work.Sums[block * LossSums + metric];
                bool isSum = metric == PreferenceMetrics.Loss && batch.Reduction == LossReduction.Sum;
                results[metric] = (float)(isSum || pairs == 0 ? sum : sum / pairs);
            }
        }
    }

    // Pairs or tokens of one item; what an item sums up goes to the workspace and is added in order afterwards.
    private const int LossBlock = 8192;

    // Doubles per block in the workspace, for the kind of loss that needs most. The lengths of sequences stand behind them.
    private const int LossSums = 8;

    private static nint LossBlocks(long count) => (nint)((count + LossBlock - 1) / LossBlock);

    private unsafe struct PairLossWork<TLoss> : IWork where TLoss : unmanaged, IPairLoss
    {
        private const int Inputs = 4;

        public TLoss Loss;
        public LossStream Chosen, Rejected, ReferenceChosen, ReferenceRejected;
        public LossStream Losses, OfChosen, OfRejected, OfReferenceChosen, OfReferenceRejected, ChosenReward, RejectedReward;
        public nint Pairs;
        public float Weight;
        public double* Sums;

        [SkipLocalsInit]
        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint end = Math.Min((item + 1) * LossBlock, Pairs);
            double* sums = Sums is null ? null : Sums + item * LossSums;
            if (sums is not null)
                new Span<double>(sums, LossSums).Clear();
            float* memory = stackalloc float[LossTile<TLanes>.Floats(2 * Inputs + 3)];
            for (nint start = item * LossBlock; start < end; start += LossTile<TLanes>.Length)
            {
                nint count = Math.Min(LossTile<TLanes>.Length, end - start), whole = count - count % TLanes.Count;
                if (whole > 0)
                    Evaluate(new LossTile<TLanes>(memory, start, whole), sums);
                if (whole < count)
                    Evaluate(new LossTile<TLanes>(memory, start + whole, count - whole), sums);
            }
        }

        private readonly void Evaluate<TLanes>(LossTile<TLanes> tile, double* sums) where TLanes : struct, ILanes<TLanes>
        {
            float** inputs = stackalloc float*[Inputs];
            inputs[0] = tile.Read(Chosen);
            inputs[1] = tile.Read(Rejected);
            inputs[2] = tile.Read(ReferenceChosen);
            inputs[3] = tile.Read(ReferenceRejected);
            float* losses = tile.Place(Losses);

            // The wanted gradients two by two, so that what two directions share is computed once; the losses come with the first two.
            int wanted = 0;
            int* directions = stackalloc int[Inputs];
            float** derivatives = stackalloc float*[Inputs];
            for (int input = 0; input < Inputs; input++)
            {
                if (!Gradient(input).IsPresent)
                    continue;
                directions[wanted] = input;
                derivatives[wanted++] = tile.Place(Gradient(input));
            }
            for (int next = 0; next < wanted; next += 2)
            {
                if (next + 1 < wanted)
                    Differentiate<TLanes>(inputs, tile.Padded, losses, directions[next], derivatives[next], directions[next + 1], derivatives[next + 1]);
                else
                    Differentiate<TLanes>(inputs, tile.Padded, losses, directions[next], derivatives[next]);
            }
            if (wanted == 0 && (Losses.IsPresent || sums is not null))
                Value<TLanes>(inputs, tile.Padded, losses);

            float* chosenReward = tile.Place(ChosenReward), rejectedReward = tile.Place(RejectedReward);
            if (sums is not null || ChosenReward.IsPresent || RejectedReward.IsPresent)
                Summarise(inputs, tile, losses, chosenReward, rejectedReward, sums);

            tile.Write(losses, Losses);
            for (int next = 0; next < wanted; next++)
                tile.Write(derivatives[next], Gradient(directions[next]));
            tile.Write(chosenReward, ChosenReward);
            tile.Write(rejectedReward, RejectedReward);
        }

        private readonly LossStream Gradient(int input) => input switch
        {
            0 => OfChosen,
            1 => OfRejected,
            2 => OfReferenceChosen,
            _ => OfReferenceRejected,
        };

        [MethodImpl(MethodImplOptions.NoInlining)]
        private readonly void Value<TLanes>(float** inputs, nint count, float* losses) where TLanes : struct, ILanes<TLanes>
        {
            float* chosen = inputs[0], rejected = inputs[1], referenceChosen = inputs[2], referenceRejected = inputs[3];
            TLoss loss = Loss;
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                var pair = new PairInputs<TLanes>
                {
                    Chosen = TLanes.Load(chosen + i),
                    Rejected = TLanes.Load(rejected + i),
                    ReferenceChosen = TLanes.Load(referenceChosen + i),
                    ReferenceRejected = TLanes.Load(referenceRejected + i),
                };
                loss.Loss(pair).Store(losses + i);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private readonly void Differentiate<TLanes>(float** inputs, nint count, float* losses, int direction, float* derivatives) where TLanes : struct, ILanes<TLanes>
        {
            float* chosen = inputs[0], rejected = inputs[1], referenceChosen = inputs[2], referenceRejected = inputs[3];
            TLoss loss = Loss;
            float weight = Weight;
            PairInputs<TLanes> seeds = Seeds<TLanes>(direction);
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes c = TLanes.Load(chosen + i), r = TLanes.Load(rejected + i), rc = TLanes.Load(referenceChosen + i), rr = TLanes.Load(referenceRejected + i);
                Dual<TLanes> value = loss.Loss(Seeded(c, r, rc, rr, seeds));
                value.Value.Store(losses + i);
                (value.Derivative * weight).Store(derivatives + i);
            }
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private readonly void Differentiate<TLanes>(float** inputs, nint count, float* losses, int direction, float* derivatives, int secondDirection,
            float* secondDerivatives) where TLanes : struct, ILanes<TLanes>
        {
            float* chosen = inputs[0], rejected = inputs[1], referenceChosen = inputs[2], referenceRejected = inputs[3];
            TLoss loss = Loss;
            float weight = Weight;
            PairInputs<TLanes> seeds = Seeds<TLanes>(direction), secondSeeds = Seeds<TLanes>(secondDirection);
            for (nint i = 0; i < count; i += TLanes.Count)
            {
                TLanes c = TLanes.Load(chosen + i), r = TLanes.Load(rejected + i), rc = TLanes.Load(referenceChosen + i), rr = TLanes.Load(referenceRejected + i);
                Dual<TLanes> first = loss.Loss(Seeded(c, r, rc, rr, seeds)), second = loss.Loss(Seeded(c, r, rc, rr, secondSeeds));
                first.Value.Store(losses + i);
                (first.Derivative * weight).Store(derivatives + i);
                (second.Derivative * weight).Store(secondDerivatives + i);
            }
        }

        // 1 for the input to differentiate by, 0 for the others.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static PairInputs<TLanes> Seeds<TLanes>(int direction) where TLanes : struct, ILanes<TLanes> => new()
        {
            Chosen = TLanes.From(direction == 0 ? 1f : 0f),
            Rejected = TLanes.From(direction == 1 ? 1f : 0f),
            ReferenceChosen = TLanes.From(direction == 2 ? 1f : 0f),
            ReferenceRejected = TLanes.From(direction == 3 ? 1f : 0f),
        };

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static PairInputs<Dual<TLanes>> Seeded<TLanes>(TLanes chosen, TLanes rejected, TLanes referenceChosen, TLanes referenceRejected, in PairInputs<TLanes> seeds)
            where TLanes : struct, ILanes<TLanes> => new()
            {
                Chosen = new(chosen, seeds.Chosen),
                Rejected = new(rejected, seeds.Rejected),
                ReferenceChosen = new(referenceChosen, seeds.ReferenceChosen),
                ReferenceRejected = new(referenceRejected, seeds.ReferenceRejected),
            };

        [MethodImpl(MethodImplOptions.NoInlining)]
        private readonly void Summarise<TLanes>(float** inputs, LossTile<TLanes> tile, float* losses, float* chosenReward, float* rejectedReward, double* sums)
            where TLanes : struct, ILanes<TLanes>
        {
            float* chosen = inputs[0], rejected = inputs[1], referenceChosen = inputs[2], referenceRejected = inputs[3];
            float scale = Loss.RewardScale;
            TLanes loss = TLanes.Zero, right = TLanes.Zero, ofChosen = TLanes.Zero, ofRejected = TLanes.Zero, margin = TLanes.Zero, c = TLanes.Zero, r = TLanes.Zero;
            for (nint i = 0; i < tile.Padded; i += TLanes.Count)
            {
                TLanes logChosen = TLanes.Load(chosen + i), logRejected = TLanes.Load(rejected + i);
                TLanes better = scale * (logChosen - TLanes.Load(referenceChosen + i)), worse = scale * (logRejected - TLanes.Load(referenceRejected + i));
                better.Store(chosenReward + i);
                worse.Store(rejectedReward + i);
                loss += TLanes.Load(losses + i);
                ofChosen += better;
                ofRejected += worse;
                margin += better - worse;
                right += TLanes.SelectLess(worse, better, TLanes.One, TLanes.Zero);
                c += logChosen;
                r += logRejected;
            }
            if (sums is not null)
                Add(tile, sums, loss, ofChosen, ofRejected, margin, right, c, r);
        }

        // Not inlined: what lives across the calls here would live on the stack, in the caller's loop too.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void Add<TLanes>(LossTile<TLanes> tile, double* sums, TLanes loss, TLanes ofChosen, TLanes ofRejected, TLanes margin, TLanes right, TLanes c, TLanes r)
            where TLanes : struct, ILanes<TLanes>
        {
            sums[PreferenceMetrics.Loss] += tile.Total(loss);
            sums[PreferenceMetrics.ChosenReward] += tile.Total(ofChosen);
            sums[PreferenceMetrics.RejectedReward] += tile.Total(ofRejected);
            sums[PreferenceMetrics.RewardMargin] += tile.Total(margin);
            sums[PreferenceMetrics.RewardAccuracy] += tile.Total(right);
            sums[PreferenceMetrics.ChosenLogProb] += tile.Total(c);
            sums[PreferenceMetrics.RejectedLogProb] += tile.Total(r);
        }
    }
}
