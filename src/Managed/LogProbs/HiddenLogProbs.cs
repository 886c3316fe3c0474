namespace TransformerKernels;

/// <summary>Hidden states, the vocabulary matrix, and the tokens that came.</summary>
/// <remarks>
/// n tokens, width W, a vocabulary of V. The logit of token i for entry j is hiddenᵢ · vocabularyⱼ + biasⱼ, then bent by the softcap, then divided by the temperature.
/// Logits are summed in float32 whatever the storage; they are never stored as a whole.
/// </remarks>
public ref struct HiddenProblem
{
    // As in a struct that nobody constructed.
    private long? ignoreTarget;
    private float? temperature;

    /// <summary>[n, W], float32, float16 or bfloat16; any distance between rows, each row contiguous. Required.</summary>
    public TensorView Hidden { get; set; }

    /// <summary>[V, W], float32, float16 or bfloat16; any distance between rows, each row contiguous. Required.</summary>
    public TensorView Vocabulary { get; set; }

    /// <summary>[n], int32 or int64: the index of each token, or <see cref="IgnoreTarget"/>. Required.</summary>
    public TensorView Targets { get; set; }

    /// <summary>The target that marks a token to ignore, −100 unless set: nothing is computed of it, its outputs and gradients are 0, and it adds nothing to any other's.</summary>
    public long IgnoreTarget
    {
        readonly get => ignoreTarget ?? LogProbs.UsualIgnoreTarget;
        set => ignoreTarget = value;
    }

    /// <summary>[V], float32, contiguous. Optional.</summary>
    public TensorView Bias { get; set; }

    /// <summary>c of c · tanh(x / c), at least 2⁻¹²⁶, which bends logits into (−c, c) after the bias; none if absent.</summary>
    public float? Softcap { get; set; }

    /// <summary>What logits are divided by, last of all, above 2⁻¹²⁸; 1 for none. A softcap divided by it must be a float32 above 0.</summary>
    public float Temperature
    {
        readonly get => temperature ?? 1;
        set => temperature = value;
    }

    /// <summary>How many rows of the vocabulary count, the first ones: those after them may hold anything and get the gradient 0. All if absent.</summary>
    public long? ValidVocabulary { get; set; }

    /// <summary>[V], float32, contiguous: the weights w of the mean logit, Σ w z / V, as class weights under label smoothing. All 1 if absent; an entry of weight 0 is left out.</summary>
    public TensorView MeanWeights { get; set; }
}

/// <summary>Where the gradients of hidden states, vocabulary and bias go; absent ones aren't computed. All float32.</summary>
public ref struct HiddenGradients
{
    /// <summary>[n, W], rows contiguous.</summary>
    public TensorView Hidden { get; set; }

    /// <summary>[V, W], rows contiguous.</summary>
    public TensorView Vocabulary { get; set; }

    /// <summary>[V], contiguous; only with <see cref="HiddenProblem.Bias"/>.</summary>
    public TensorView Bias { get; set; }

    /// <summary>Whether gradients are added to what the tensors hold; otherwise they are overwritten.</summary>
    public bool Accumulate { get; set; }

    /// <summary>How many tensors there are.</summary>
    internal const int Count = 3;

    internal readonly TensorView this[int index] => index switch
    {
        0 => Hidden,
        1 => Vocabulary,
        _ => Bias,
    };

    internal static string Name(int index) => index switch
    {
        0 => "gradients.Hidden",
        1 => "gradients.Vocabulary",
        _ => "gradients.Bias",
    };

    internal readonly void RequireDisjoint(in TensorView other, string name)
    {
        for (int i = 0; i < Count; i++)
            Require.Disjoint(this[i], Name(i), other, name);
    }
}

public static partial class LogProbs
{
    /// <summary>The same results as <see cref="FromLogits(ComputeDevice, in LogitsProblem, in TokenOutputs)"/>, straight from hidden states: logits exist a block at a time.</summary>
    /// <remarks>What the workspace takes is what <see cref="FromHiddenWorkspaceBytes"/> tells of its limit; results don't depend on that, not in one bit.</remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Hidden states, vocabulary and targets.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten. For the likeliest tokens a chunk keeps its logits, or computes them twice where they don't fit.</param>
    /// <param name="workspace">Scratch memory of the device.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or the workspace's limit is too low.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromHidden(ComputeDevice device, in HiddenProblem problem, in TokenOutputs outputs, Workspace workspace)
    {
        Check(device, ProblemNames.Problem, problem, workspace);
        CheckOutputs(device, problem, outputs);
        device.LogProbsFromHidden(problem, default, outputs, default, backward: false, workspace);
    }

    /// <summary>The gradients of hidden states, vocabulary and bias, from the gradients of log-prob, log-sum-exp, entropy, Σ p² and mean logit together.</summary>
    /// <remarks>
    /// dz as in <see cref="FromLogitsBackward"/>; the gradient of hiddenᵢ is Σⱼ dzᵢⱼ vocabularyⱼ, of vocabularyⱼ Σᵢ dzᵢⱼ hiddenᵢ, of biasⱼ Σᵢ dzᵢⱼ, summed in float32, over tokens in
    /// their order. Nothing of the forward pass is needed: logits are computed anew, and with them a normaliser that no storage has rounded.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="gradients">What to compute and where to put it.</param>
    /// <param name="workspace">Scratch memory of the device.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or the workspace's limit is too low.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromHiddenBackward(ComputeDevice device, in HiddenProblem problem, in TokenUpstream upstream, in HiddenGradients gradients, Workspace workspace)
    {
        Check(device, ProblemNames.Problem, problem, workspace);
        CheckGradients(device, ProblemNames.Problem, problem, upstream, gradients);
        upstream.RequireAny();
        device.LogProbsFromHidden(problem, upstream, default, gradients, backward: true, workspace);
    }

    /// <summary>Results and gradients at once, where the upstream gradients are known beforehand, as those of a cross entropy are: each logit is computed once.</summary>
    /// <remarks>
    /// The same bits as <see cref="FromHidden"/> and <see cref="FromHiddenBackward"/>. A chunk of tokens keeps its logits in the workspace until its normaliser is known; where that takes more
    /// than the workspace's limit, or without one more than 64 MB, blocks of logits are computed twice, with the same bits.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Hidden states, vocabulary and targets.</param>
    /// <param name="upstream">The gradients that arrive: −1/n at every log-prob for the mean cross entropy of n tokens.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten.</param>
    /// <param name="gradients">What to compute and where to put it.</param>
    /// <param name="workspace">Scratch memory of the device.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it. Or the workspace's limit is too low.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void TrainFromHidden(ComputeDevice device, in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients, Workspace workspace)
    {
        Check(device, ProblemNames.Problem, problem, workspace);
        CheckOutputs(device, problem, outputs);
        CheckGradients(device, ProblemNames.Problem, problem, upstream, gradients);
        upstream.RequireAny();
        for (int i = 0; i < TokenOutputs.Count; i++)
        {
            for (int j = 0; j < HiddenGradients.Count; j++)
                Require.Disjoint(outputs[i], TokenOutputs.Name(i), gradients[j], HiddenGradients.Name(j));
            upstream.RequireDisjoint(outputs[i], TokenOutputs.Name(i));
        }
        device.LogProbsFromHidden(problem, upstream, outputs, gradients, backward: true, workspace);
    }

    /// <summary>The bytes of workspace that a call takes.</summary>
    /// <param name="device">Where it will run.</param>
    /// <param name="problem">Only shapes and types count.</param>
    /// <param name="backward">Whether gradients are wanted.</param>
    /// <param name="budget">The workspace's limit. Without one 32 MB are taken at most, or what few tokens take with their logits up to 64 MB; with a higher one what 384 tokens take with theirs; or the least that is needed if that is more.</param>
    /// <param name="topTokens">Whether the likeliest tokens are wanted (<see cref="TokenOutputs.TopLogProbs"/>), for which a chunk keeps its logits without gradients too.</param>
    /// <returns>At most the budget, or if that is too small the least that is needed.</returns>
    /// <exception cref="ArgumentException">As in the call: a tensor is absent, of the wrong type or shape, or on another device; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The budget is negative.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    public static long FromHiddenWorkspaceBytes(ComputeDevice device, in HiddenProblem problem, bool backward, long budget = long.MaxValue, bool topTokens = false)
    {
        CheckProblem(device, ProblemNames.Problem, problem);
        ArgumentOutOfRangeException.ThrowIfNegative(budget);
        return device.LogProbsFromHiddenWorkspaceBytes(problem, backward, topTokens, budget);
    }

    internal static void Check(ComputeDevice device, ProblemNames names, in HiddenProblem problem, Workspace workspace)
    {
        CheckProblem(device, names, problem);
        Require.Workspace(device, workspace);
    }

    internal static void CheckProblem(ComputeDevice device, ProblemNames names, in HiddenProblem problem)
    {
        Require.Device(device);
        ReadOnlySpan<ElementType> storage = [ElementType.Float32, ElementType.Float16, ElementType.BFloat16];
        Require.Input(device, problem.Hidden, names.Hidden, storage, -1, -1);
        CheckWidth(problem.Hidden, names.Hidden);
        if (problem.Hidden.Length(1) == 0)
            throw new ArgumentException($"{names.Hidden} has a width of 0; it must be at least 1.", names.Hidden);
        Require.Input(device, problem.Vocabulary, names.Vocabulary, storage, -1, problem.Hidden.Length(1));
        CheckWidth(problem.Vocabulary, names.Vocabulary);
        if (problem.Vocabulary.Length(0) == 0)
            throw new ArgumentException($"{names.Vocabulary} has no entries; it must have at least 1.", names.Vocabulary);
        // Rows that are one row again and again may be more than memory holds.
        Require.Size(((Int128)problem.Hidden.Length(0) + 1) * (problem.Vocabulary.Length(0) + problem.Hidden.Length(1)), "(tokens + 1) · (vocabulary + width)", names.Hidden);
        Require.Input(device, problem.Targets, names.Targets, [ElementType.Int32, ElementType.Int64], problem.Hidden.Length(0));
        CheckShaping(device, names, problem.Vocabulary.Length(0), problem.Bias, problem.MeanWeights, problem.Softcap, problem.Temperature, problem.ValidVocabulary);
    }

    private static void CheckWidth(in TensorView rows, string name)
    {
        if (rows.Length(1) > 1 && rows.Stride(1) != 1)
            throw new ArgumentException($"{name} has stride {rows.Stride(1)} along the width; it must be 1.", name);
    }

    private static void CheckOutputs(ComputeDevice device, in HiddenProblem problem, in TokenOutputs outputs)
    {
        outputs.Check(device, problem.Hidden.Length(0), problem.ValidVocabulary ?? problem.Vocabulary.Length(0));
        for (int i = 0; i < TokenOutputs.Count; i++)
            RequireDisjoint(outputs[i], TokenOutputs.Name(i), ProblemNames.Problem, problem);
    }

    internal static void RequireDisjoint(in TensorView written, string name, ProblemNames names, in HiddenProblem problem)
    {
        Require.Disjoint(written, name, problem.Hidden, names.Hidden);
        Require.Disjoint(written, name, problem.Vocabulary, names.Vocabulary);
        Require.Disjoint(written, name, problem.Targets, names.Targets);
        Require.Disjoint(written, name, problem.Bias, names.Bias);
        Require.Disjoint(written, name, problem.MeanWeights, names.MeanWeights);
    }

    internal static void CheckGradients(ComputeDevice device, ProblemNames names, in HiddenProblem problem, in TokenUpstream upstream, in HiddenGradients gradients)
    {
        long tokens = problem.Hidden.Length(0), width = problem.Hidden.Length(1), vocabulary = problem.Vocabulary.Length(0);
        upstream.Check(device, tokens);
        Require.OptionalOutput(device, gradients.Hidden, "gradients.Hidden", tokens, width);
        Require.OptionalOutput(device, gradients.Vocabulary, "gradients.Vocabulary", vocabulary, width);
        Require.OptionalOutput(device, gradients.Bias, "gradients.Bias", vocabulary);
        if (gradients.Hidden.IsPresent)
            CheckWidth(gradients.Hidden, "gradients.Hidden");
        if (gradients.Vocabulary.IsPresent)
            CheckWidth(gradients.Vocabulary, "gradients.Vocabulary");
        if (gradients.Bias.IsPresent && vocabulary > 1 && gradients.Bias.Stride(0) != 1)
            throw new ArgumentException($"gradients.Bias has the stride {gradients.Bias.Stride(0)}; it must be 1.", "gradients.Bias");
        if (gradients.Bias.IsPresent && !problem.Bias.IsPresent)
            throw new ArgumentException($"gradients.Bias is set, but there is no {names.Bias}.", "gradients.Bias");
        bool any = false;
        for (int i = 0; i < HiddenGradients.Count; i++)
        {
            any |= gradients[i].IsPresent;
            RequireDisjoint(gradients[i], HiddenGradients.Name(i), names, problem);
            upstream.RequireDisjoint(gradients[i], HiddenGradients.Name(i));
            for (int j = i + 1; j < HiddenGradients.Count; j++)
                Require.Disjoint(gradients[i], HiddenGradients.Name(i), gradients[j], HiddenGradients.Name(j));
        }
        Require.Any(any, nameof(gradients), "Hidden, Vocabulary, Bias");
    }
}
