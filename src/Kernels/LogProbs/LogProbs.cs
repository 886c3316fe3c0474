namespace TransformerKernels;

// A group takes a row, its threads neighbouring logits: each thread keeps the largest logit that it saw and sums relative to it, and the group brings them
// to one maximum and adds them, halves to halves. So the forward pass reads each logit once.
//
// The backward pass needs what the sums gave. If what rounding took from the log-sum-exp was saved beside it, each logit is read once and replaced, by any group: a
// row is cut into slices. Rows of shaped logits whose log-sum-exp is too large for that, or that have a gradient of Σ p², are left to a second kernel, which reads a row twice.
// A float32 log-sum-exp alone is off by up to |logSumExp| · 2^-24, and every probability with it; at logits around 10,000 that is a thousand times what the contract allows. Then a group forms
// the sums again: it reads the row, keeps all of it in shared memory, and writes the gradient. So each logit is read once here too. A row that is longer than what shared memory keeps is the second
// kernel's: read twice, it costs 1.5 times its bytes.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs)
    {
        if (IsShaped(problem) || outputs.SumOfSquares.IsPresent || outputs.Argmax.IsPresent || outputs.MeanLogit.IsPresent)
            LogProbsFromLogits<ShapedLogits>(problem, outputs);
        else
            LogProbsFromLogits<PlainLogits>(problem, outputs);
    }

    /// <inheritdoc/>
    protected internal override void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    {
        if (IsShaped(problem) || upstream.SumOfSquares.IsPresent || upstream.MeanLogit.IsPresent || (saved.LogSumExp.Rank == 1 && !IsKept(problem)))
            LogProbsFromLogitsBackward<ShapedLogits>(problem, saved, upstream, logitsGradient);
        else
            LogProbsFromLogitsBackward<PlainLogits>(problem, saved, upstream, logitsGradient);
    }

    private static bool IsKept(in LogitsProblem problem) => (problem.ValidVocabulary ?? problem.Logits.Length(1)) <= LogProbsSize.KeptLogits;

    private static bool IsShaped(in LogitsProblem problem) =>
        problem.Logits.Type != ElementType.Float32 || problem.Bias.IsPresent || problem.Softcap is not null || problem.Temperature != 1
        || (problem.ValidVocabulary is { } valid && valid != problem.Logits.Length(1));

    private void LogProbsFromLogits<TLogits>(in LogitsProblem problem, in TokenOutputs outputs) where TLogits : struct, IGpuLogits<TLogits>
    {
        TokenOutputs others = outputs;
        others.TopLogProbs = others.TopTokens = default;
        if (outputs.TopLogProbs.IsPresent)
            TopTokens<TLogits>(problem, outputs);
        LogProbsArguments<TLogits> arguments = new(this, problem, outputs);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count > 0 && others.IsAnyPresent)
            Queue.Launch(LogProbsKernels<TLogits>.FromLogits, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, arguments, Queue.Faults);
    }

    private void LogProbsFromLogitsBackward<TLogits>(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient) where TLogits : struct, IGpuLogits<TLogits>
    {
        LogProbsBackwardArguments<TLogits> arguments = new(this, problem, saved, upstream, logitsGradient);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Rows.Count == 0)
            return;
        bool isSaved = arguments.HasRemainder != 0, isKept = IsKept(problem);
        if (isSaved)
            Queue.Launch(LogProbsKernels<TLogits>.FromLogitsBackwardOfSaved, LogProbsSize.Groups(arguments.Rows.Count * arguments.Slices), LogProbsSize.GroupSize, arguments, Queue.Faults);
        else if (isKept)
            Queue.Launch(LogProbsKernels<TLogits>.FromLogitsBackward, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, arguments, Queue.Faults);
        if ((isSaved || !isKept) && arguments is LogProbsBackwardArguments<ShapedLogits> shaped)
            Queue.Launch(FarLogitKernels.FromLogitsBackward, LogProbsSize.Groups(arguments.Rows.Count), LogProbsSize.GroupSize, shaped, Queue.Faults);
    }
}

/// <summary>The logits of a kernel's argument, and which token came at each row.</summary>
internal readonly struct GpuLogitRows<TLogits> where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly TLogits Logits;
    public readonly GpuIntegers Targets;
    public readonly long Count, IgnoreTarget;

    /// <summary>The weights of the mean logit; absent for 1.</summary>
    public readonly GpuTensor<float> MeanWeights;

    /// <summary>How many columns count, the first ones, and how many there are.</summary>
    public readonly long Vocabulary, Columns;

    public GpuLogitRows(GpuDevice device, in LogitsProblem problem)
    {
        Logits = TLogits.Of(device, problem);
        Targets = new(device, problem.Targets, "problem.Targets");
        MeanWeights = new(device, problem.MeanWeights, "problem.MeanWeights");
        Count = problem.Logits.Length(0);
        Columns = problem.Logits.Length(1);
        Vocabulary = problem.ValidVocabulary ?? Columns;
        IgnoreTarget = problem.IgnoreTarget;
    }

    public bool IsOutside(long target) => target < 0 || target >= Vocabulary;

    public float MeanWeight(long column) => MeanWeights.IsPresent ? MeanWeights[column] : 1f;
}

/// <summary>What the forward kernel reads and writes.</summary>
internal readonly struct LogProbsArguments<TLogits>(GpuDevice device, in LogitsProblem problem, in TokenOutputs outputs) where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly GpuLogitRows<TLogits> Rows = new(device, problem);
    public readonly GpuTensor<float> LogProb = new(device, outputs.LogProb, "outputs.LogProb");
    public readonly GpuTensor<float> LogSumExp = new(device, outputs.LogSumExp, "outputs.LogSumExp");
    public readonly int HasRemainder = outputs.LogSumExp.Rank == 2 ? 1 : 0;
    public readonly GpuTensor<float> Entropy = new(device, outputs.Entropy, "outputs.Entropy");

    // What is asked for besides only kernels of shaped logits compute.
    public readonly GpuTensor<float> SumOfSquares = new(device, outputs.SumOfSquares, "outputs.SumOfSquares");
    public readonly GpuTensor<float> MeanLogit = new(device, outputs.MeanLogit, "outputs.MeanLogit");
    public readonly GpuIntegers Argmax = new(device, outputs.Argmax, "outputs.Argmax");
}

/// <summary>What the backward kernel reads and writes.</summary>
internal readonly struct LogProbsBackwardArguments<TLogits>(GpuDevice device, in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream, TensorView logitsGradient)
    where TLogits : struct, IGpuLogits<TLogits>
{
    public readonly GpuLogitRows<TLogits> Rows = new(device, problem);
    public readonly GpuTensor<float> LogSumExp = new(device, saved.LogSumExp, "saved.LogSumExp");
    public readonly int HasRemainder = saved.LogSumExp.Rank == 2 ? 1 : 0;
    public readonly GpuTensor<float> Entropy = new(device, saved.Entropy, "saved.Entropy");
    public readonly GpuTensor<float> OfLogProb = new(device, upstream.LogProb, "upstream.LogProb");
    public readonly GpuTensor<float> OfLogSumExp = new(device, upstream.LogSumExp, "upstream.LogSumExp");
    public readonly GpuTensor<float> OfEntropy = new(device, upstream.Entropy, "upstream.Entropy");
    public readonly GpuTensor<float> OfSquares = new(device, upstream.SumOfSquares, "upstream.SumOfSquares");
    public readonly GpuTensor<float> OfMean = new(device, upstream.MeanLogit, "upstream.MeanLogit");
    public readonly GpuStoredRows Gradient = new(device, logitsGradient, "logitsGradient");

    /// <summary>Into how many parts a row is cut where its sums are saved.</summary>
    public readonly long Slices = (problem.Logits.Length(1) + LogProbsSize.SliceLogits - 1) / LogProbsSize.SliceLogits;
}

/// <summary>How the kernels' work is cut.</summary>
internal static class LogProbsSize
{
    public const int GroupSize = 256;

    // A thread takes so many logits at a time, a group's width apart: their loads are under way together, and they share one look at the maximum.
    private const int Logits = 4;

    public const int BlockLogits = Logits * GroupSize;

    /// <summary>Logits of a row whose sums aren't saved, which stay in shared memory until their gradient is written: with the sums 47 of the 48 KB that a kernel may declare, or all of them.</summary>
    public const int KeptLogits = 11 * BlockLogits;

    /// <summary>Logits of a row whose sums are saved that a group takes: enough to make little of what is read for the row.</summary>
    public const int SliceLogits = 4 * BlockLogits;

    // Beyond so many, a group takes several rows, slices or sequences.
    private const long MaximumGroups = 1 << 20;

    public static int Groups(long items) => (int)Math.Clamp(items, 1, MaximumGroups);
}
