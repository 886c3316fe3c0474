namespace TransformerKernels;

/// <summary>Logits and the tokens that came.</summary>
/// <remarks>n tokens, a vocabulary of V.</remarks>
public ref struct LogitsProblem
{
    /// <summary>A target of −100 marks a token to ignore unless <see cref="IgnoreTarget"/> says otherwise.</summary>
    public LogitsProblem()
    {
    }

    /// <summary>[n, V], float32; any distance between rows, each row contiguous. Required.</summary>
    public TensorView Logits { get; set; }

    /// <summary>[n], int32 or int64: the index of each token, or <see cref="IgnoreTarget"/>. Required.</summary>
    public TensorView Targets { get; set; }

    /// <summary>The target that marks a token to ignore: its outputs are 0 and its gradient is 0, whatever its logits are.</summary>
    public long IgnoreTarget { get; set; } = -100;
}

/// <summary>Where per-token results go; absent ones are not computed. All [n], float32.</summary>
public ref struct TokenOutputs
{
    /// <summary>ln p of the target: z_target − ln Σ e^z.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>ln Σ e^z.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>−Σ p ln p; logits of −∞ are left out.</summary>
    public TensorView Entropy { get; set; }
}

/// <summary>What the forward pass left for the backward pass. All [n], float32.</summary>
public ref struct TokenSaved
{
    /// <summary>As the forward pass wrote it. Required.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>As the forward pass wrote it. Required if <see cref="TokenUpstream.Entropy"/> is set.</summary>
    public TensorView Entropy { get; set; }
}

/// <summary>The gradients that arrive at the per-token results; zero if absent. All [n], float32.</summary>
public ref struct TokenUpstream
{
    /// <summary>At the log-prob.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>At the log-sum-exp.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>At the entropy.</summary>
    public TensorView Entropy { get; set; }
}

/// <summary>Token log-probabilities, log-sum-exp and entropy, and their gradients: the reduction under every alignment loss.</summary>
public static class LogProbs
{
    /// <summary>Reads every logit once and writes what is asked for.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Logits and targets.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary; on a GPU such a row becomes NaN and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    public static void FromLogits(ComputeDevice device, in LogitsProblem problem, in TokenOutputs outputs)
    {
        Check(device, problem);
        long tokens = problem.Logits.Length(0);
        Require.OptionalOutput(device, outputs.LogProb, "outputs.LogProb", tokens);
        Require.OptionalOutput(device, outputs.LogSumExp, "outputs.LogSumExp", tokens);
        Require.OptionalOutput(device, outputs.Entropy, "outputs.Entropy", tokens);
        if (!outputs.LogProb.IsPresent && !outputs.LogSumExp.IsPresent && !outputs.Entropy.IsPresent)
            throw new ArgumentException("outputs asks for nothing; set at least one tensor.", nameof(outputs));
        CheckApart(problem, outputs.LogProb, "outputs.LogProb");
        CheckApart(problem, outputs.LogSumExp, "outputs.LogSumExp");
        CheckApart(problem, outputs.Entropy, "outputs.Entropy");
        Require.Disjoint(outputs.LogProb, "outputs.LogProb", outputs.LogSumExp, "outputs.LogSumExp");
        Require.Disjoint(outputs.LogProb, "outputs.LogProb", outputs.Entropy, "outputs.Entropy");
        Require.Disjoint(outputs.LogSumExp, "outputs.LogSumExp", outputs.Entropy, "outputs.Entropy");
        device.LogProbsFromLogits(problem, outputs);
    }

    /// <summary>The gradient of the logits, from the gradients of log-prob, log-sum-exp and entropy together.</summary>
    /// <remarks>
    /// With p = e^(z − logSumExp) and H the entropy: dz = u_logProb (1[target] − p) + u_logSumExp p − u_entropy p (ln p + H), 1 − p formed in float32.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="saved">What the forward pass wrote.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="logitsGradient">[n, V], rows contiguous, overwritten. May be the logits themselves: then they are replaced in place.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    public static void FromLogitsBackward(ComputeDevice device, in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream,
        TensorView logitsGradient)
    {
        Check(device, problem);
        long tokens = problem.Logits.Length(0);
        Require.Input(device, saved.LogSumExp, "saved.LogSumExp", tokens);
        Require.OptionalInput(device, saved.Entropy, "saved.Entropy", tokens);
        Require.OptionalInput(device, upstream.LogProb, "upstream.LogProb", tokens);
        Require.OptionalInput(device, upstream.LogSumExp, "upstream.LogSumExp", tokens);
        Require.OptionalInput(device, upstream.Entropy, "upstream.Entropy", tokens);
        if (upstream.Entropy.IsPresent && !saved.Entropy.IsPresent)
            throw new ArgumentNullException(nameof(saved), "saved.Entropy is required where upstream.Entropy is set.");
        Require.Output(device, logitsGradient, nameof(logitsGradient), tokens, problem.Logits.Length(1));
        CheckRows(logitsGradient, nameof(logitsGradient));
        if (!logitsGradient.IsSameAs(problem.Logits))
            Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Logits, "problem.Logits");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Targets, "problem.Targets");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.LogSumExp, "saved.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.Entropy, "saved.Entropy");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.LogProb, "upstream.LogProb");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.LogSumExp, "upstream.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), upstream.Entropy, "upstream.Entropy");
        device.LogProbsFromLogitsBackward(problem, saved, upstream, logitsGradient);
    }

    private static void Check(ComputeDevice device, in LogitsProblem problem)
    {
        Require.Device(device);
        Require.Input(device, problem.Logits, "problem.Logits", -1, -1);
        CheckRows(problem.Logits, "problem.Logits");
        if (problem.Logits.Length(1) == 0)
            throw new ArgumentException("problem.Logits has a vocabulary of 0; it must be at least 1.", "problem.Logits");
        Require.Input(device, problem.Targets, "problem.Targets", [ElementType.Int32, ElementType.Int64], problem.Logits.Length(0));
    }

    private static void CheckRows(in TensorView logits, string name)
    {
        if (logits.Length(1) > 1 && logits.Stride(1) != 1)
            throw new ArgumentException($"{name} has stride {logits.Stride(1)} along the vocabulary; it must be 1.", name);
    }

    private static void CheckApart(in LogitsProblem problem, in TensorView written, string name)
    {
        Require.Disjoint(written, name, problem.Logits, "problem.Logits");
        Require.Disjoint(written, name, problem.Targets, "problem.Targets");
    }
}
