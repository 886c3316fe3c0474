namespace TransformerKernels;

/// <summary>A slice of a vocabulary that is divided among devices or processes ("tensor-parallel").</summary>
/// <param name="First">The index that the slice's first entry has in the whole vocabulary.</param>
/// <param name="Whole">How many entries the whole vocabulary has that count. Targets are indices in it. At most 2²⁴.</param>
public readonly record struct VocabularyShard(long First, long Whole)
{
    // Beyond it a float32 passes over integers.
    private const long LargestIndex = 1 << 24;

    internal void Check(long entries)
    {
        if (Whole < 1 || Whole > LargestIndex)
            throw new ArgumentOutOfRangeException("shard.Whole", Whole, $"shard.Whole is {Whole}; it must lie between 1 and {LargestIndex}: partials hold indices as float32.");
        if (First < 0 || First > Whole - entries)
            throw new ArgumentOutOfRangeException("shard.First", First, $"shard.First is {First}; with the slice's {entries} entries it must lie between 0 and {Whole - entries}, or shard.Whole, {Whole}, is too small.");
    }
}

/// <summary>What the columns of a shard's partials [n, <see cref="Count"/>] mean, float32. With t = z − max over the slice's logits z.</summary>
/// <remarks>
/// The rows of tokens that are ignored are zeros; no other row has both a maximum and a sum of 0. Partials of one slice, or merged ones of several neighbouring slices, are of one form:
/// they can be sent as they are, gathered, and merged in any grouping.
/// </remarks>
public static class ShardPartials
{
    /// <summary>max z; −∞ if all logits are. The sums are relative to it as it was rounded, up to 2²⁸; beyond, to it as it was.</summary>
    public const int Max = 0;
    /// <summary>Σ e^t.</summary>
    public const int Sum = 1;
    /// <summary>What rounding took from Σ e^t: of a nearly certain token the others' share.</summary>
    public const int SumRest = 2;
    /// <summary>Σ e^t t; logits of −∞ are left out.</summary>
    public const int WeightedSum = 3;
    /// <summary>Σ e^2t.</summary>
    public const int SumOfSquares = 4;
    /// <summary>Σ z / <see cref="VocabularyShard.Whole"/>: the slice's share of the mean logit.</summary>
    public const int MeanLogit = 5;
    /// <summary>z of the target; −∞ if the target lies in another slice.</summary>
    public const int TargetLogit = 6;
    /// <summary>The entry with the largest logit, the first of several; its index in the whole vocabulary.</summary>
    public const int Argmax = 7;
    /// <summary>The number of columns.</summary>
    public const int Count = 8;
}

/// <summary>Token log-probabilities over a vocabulary that is divided into slices: each slice's part, how the parts become the whole, and each slice's gradients.</summary>
/// <remarks>
/// Every holder of a slice calls <see cref="FromHidden"/> or <see cref="FromLogits"/>; the partials of all, gathered in the order of the slices, go through <see cref="Merge"/>; with the merged
/// ones every holder computes the gradients of its slice. Sums are merged in double in the order of the slices: everybody who merges the same partials gets the same bits.
/// </remarks>
public static class VocabularyShards
{
    /// <summary>The partials of a slice of the vocabulary, from its logits.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">The slice's logits, with targets of the whole vocabulary. Bias, <see cref="LogitsProblem.MeanWeights"/> and <see cref="LogitsProblem.ValidVocabulary"/> are the slice's.</param>
    /// <param name="shard">Where the slice lies.</param>
    /// <param name="partials">[n, <see cref="ShardPartials.Count"/>], float32, overwritten.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The slice leaves the vocabulary, or a target does.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromLogits(ComputeDevice device, in LogitsProblem problem, VocabularyShard shard, TensorView partials)
    {
        LogProbs.Check(device, problem);
        shard.Check(problem.ValidVocabulary ?? problem.Logits.Length(1));
        Require.Output(device, partials, nameof(partials), problem.Logits.Length(0), ShardPartials.Count);
        Require.Disjoint(partials, nameof(partials), problem.Logits, "problem.Logits");
        Require.Disjoint(partials, nameof(partials), problem.Targets, "problem.Targets");
        Require.Disjoint(partials, nameof(partials), problem.Bias, "problem.Bias");
        Require.Disjoint(partials, nameof(partials), problem.MeanWeights, "problem.MeanWeights");
        device.LogProbsShard(problem, shard, partials);
    }

    /// <summary>The partials of a slice of the vocabulary, straight from hidden states.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Hidden states and the slice's entries, with targets of the whole vocabulary. Bias, <see cref="HiddenProblem.MeanWeights"/> and <see cref="HiddenProblem.ValidVocabulary"/> are the slice's.</param>
    /// <param name="shard">Where the slice lies.</param>
    /// <param name="partials">[n, <see cref="ShardPartials.Count"/>], float32, overwritten.</param>
    /// <param name="workspace">Scratch memory of the device, <see cref="LogProbs.FromHiddenWorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or the workspace's limit is too low.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The slice leaves the vocabulary, or a target does.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromHidden(ComputeDevice device, in HiddenProblem problem, VocabularyShard shard, TensorView partials, Workspace workspace)
    {
        LogProbs.Check(device, ProblemNames.Problem, problem, workspace);
        shard.Check(problem.ValidVocabulary ?? problem.Vocabulary.Length(0));
        Require.Output(device, partials, nameof(partials), problem.Hidden.Length(0), ShardPartials.Count);
        LogProbs.RequireDisjoint(partials, nameof(partials), ProblemNames.Problem, problem);
        device.LogProbsShard(problem, shard, partials, workspace);
    }

    /// <summary>The results of the whole vocabulary from the partials of its slices.</summary>
    /// <remarks>
    /// With M the largest maximum and S = Σ sum e^(max − M): log-sum-exp = M + ln S, and so on. As exact as if it were one slice: the partials lose nothing that the results show.
    /// But of logits beyond 2²⁸ (a temperature near 0) a slice counts as if its largest were the float32 next to it, at most |z| 2⁻²⁴ away: maxima of two slices that round to one number count as equal, in
    /// the gradients too. Within a slice nothing is lost.
    /// Partials don't say where their slice begins and ends, only where its largest logit lies: of every token that counts it must lie behind that of the slice before, or this throws. So slices in the wrong
    /// order or there twice are found out. Slices that overlap, among them one beside merged partials that hold it already, are found out only where the largest logit of some token shows it, and a slice
    /// that is missing is never: some slices may be merged before others. The results then are of a vocabulary that has those entries twice, or not at all.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="partials">[slices, n, <see cref="ShardPartials.Count"/>], float32, the slices in the order of the vocabulary.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten. The likeliest tokens beyond the first aren't offered.</param>
    /// <param name="merged">[n, <see cref="ShardPartials.Count"/>], float32, overwritten: the partials of all slices together, for the backward passes. May be absent (default).</param>
    /// <exception cref="ArgumentException">
    /// A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or
    /// the largest logit of a token doesn't lie behind that of the slice before: slices are out of order, or there twice.
    /// </exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this; or the likeliest tokens are asked for.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void Merge(ComputeDevice device, TensorView partials, in TokenOutputs outputs, TensorView merged = default)
    {
        Require.Device(device);
        Require.Input(device, partials, nameof(partials), -1, -1, ShardPartials.Count);
        if (partials.Length(0) == 0)
            throw new ArgumentException("partials holds no slices; it must hold at least 1.", nameof(partials));
        if (!merged.IsPresent || outputs.IsAnyPresent)
            outputs.Check(device, partials.Length(1), long.MaxValue);
        if (outputs.TopLogProbs.IsPresent)
            throw new NotSupportedException("The likeliest tokens (outputs.TopLogProbs) aren't merged from shards: partials hold the largest logit only.");
        Require.OptionalOutput(device, merged, nameof(merged), partials.Length(1), ShardPartials.Count);
        outputs.RequireDisjoint(partials, nameof(partials));
        outputs.RequireDisjoint(merged, nameof(merged));
        Require.Disjoint(merged, nameof(merged), partials, nameof(partials));
        device.MergeShards(partials, outputs, merged);
    }

    /// <summary>The gradient of a slice's logits.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="shard">Where the slice lies.</param>
    /// <param name="merged">[n, <see cref="ShardPartials.Count"/>] as <see cref="Merge"/> wrote it.</param>
    /// <param name="upstream">The gradients that arrive at the results of the whole vocabulary.</param>
    /// <param name="logitsGradient">As in <see cref="LogProbs.FromLogitsBackward"/>; may be the logits themselves.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The slice leaves the vocabulary, or a target does.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromLogitsBackward(ComputeDevice device, in LogitsProblem problem, VocabularyShard shard, TensorView merged, in TokenUpstream upstream, TensorView logitsGradient)
    {
        LogProbs.Check(device, problem);
        shard.Check(problem.ValidVocabulary ?? problem.Logits.Length(1));
        Require.Input(device, merged, nameof(merged), problem.Logits.Length(0), ShardPartials.Count);
        LogProbs.CheckGradient(device, problem, upstream, logitsGradient);
        Require.Disjoint(logitsGradient, nameof(logitsGradient), merged, nameof(merged));
        upstream.RequireAny();
        device.LogProbsShardBackward(problem, shard, merged, upstream, logitsGradient);
    }

    /// <summary>The gradients of a slice's entries and bias, and the slice's part of the gradient of the hidden states.</summary>
    /// <remarks>The gradient of the hidden states is the sum of all slices' parts: with <see cref="HiddenGradients.Accumulate"/> the slices of one process add up; those of several are added by the caller.</remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="shard">Where the slice lies.</param>
    /// <param name="merged">[n, <see cref="ShardPartials.Count"/>] as <see cref="Merge"/> wrote it.</param>
    /// <param name="upstream">The gradients that arrive at the results of the whole vocabulary.</param>
    /// <param name="gradients">What to compute and where to put it.</param>
    /// <param name="workspace">Scratch memory of the device; what <see cref="LogProbs.FromHiddenWorkspaceBytes"/> tells suffices. With the sums known no logits are kept: chunks are as large as fit into that.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or the workspace's limit is too low.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The slice leaves the vocabulary, or a target does.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromHiddenBackward(ComputeDevice device, in HiddenProblem problem, VocabularyShard shard, TensorView merged, in TokenUpstream upstream, in HiddenGradients gradients, Workspace workspace)
    {
        LogProbs.Check(device, ProblemNames.Problem, problem, workspace);
        shard.Check(problem.ValidVocabulary ?? problem.Vocabulary.Length(0));
        Require.Input(device, merged, nameof(merged), problem.Hidden.Length(0), ShardPartials.Count);
        LogProbs.CheckGradients(device, ProblemNames.Problem, problem, upstream, gradients);
        gradients.RequireDisjoint(merged, nameof(merged));
        upstream.RequireAny();
        device.LogProbsShardBackward(problem, shard, merged, upstream, gradients, workspace);
    }
}
