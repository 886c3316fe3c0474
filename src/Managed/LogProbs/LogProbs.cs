namespace TransformerKernels;

/// <summary>Logits and the tokens that came.</summary>
/// <remarks>n tokens, a vocabulary of V. What counts as the logit z of a stored x is c · tanh((x + bias) / c) / temperature, as Gemma 2 under TRL and verl has it.</remarks>
public ref struct LogitsProblem
{
    // As in a struct that nobody constructed.
    private long? ignoreTarget;
    private float? temperature;

    /// <summary>[n, V], float32, float16 or bfloat16; any distance between rows, each row contiguous. Required.</summary>
    public TensorView Logits { get; set; }

    /// <summary>[n], int32 or int64: the index of each token, or <see cref="IgnoreTarget"/>. Required.</summary>
    public TensorView Targets { get; set; }

    /// <summary>The target that marks a token to ignore, −100 unless set: its outputs are 0 and its gradient is 0, whatever its logits are.</summary>
    public long IgnoreTarget
    {
        readonly get => ignoreTarget ?? LogProbs.UsualIgnoreTarget;
        set => ignoreTarget = value;
    }

    /// <summary>[V], float32, contiguous: added to every row. Optional.</summary>
    public TensorView Bias { get; set; }

    /// <summary>c of c · tanh(x / c), at least 2⁻¹²⁶, which bends logits into (−c, c) after the bias; none if absent.</summary>
    public float? Softcap { get; set; }

    /// <summary>What logits are divided by, last of all, above 2⁻¹²⁸; 1 for none. A softcap divided by it must be a float32 above 0.</summary>
    public float Temperature
    {
        readonly get => temperature ?? 1;
        set => temperature = value;
    }

    /// <summary>How many columns count, the first ones: those after them pad the vocabulary, may hold anything, and get the gradient 0. All if absent.</summary>
    public long? ValidVocabulary { get; set; }

    /// <summary>[V], float32, contiguous: the weights w of the mean logit, Σ w z / V, as class weights under label smoothing. All 1 if absent; an entry of weight 0 is left out.</summary>
    public TensorView MeanWeights { get; set; }
}

/// <summary>Where per-token results go; absent ones are not computed. [n] and float32 where nothing else is said.</summary>
public ref struct TokenOutputs
{
    /// <summary>ln p of the target: z_target − ln Σ e^z.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>ln Σ e^z. Or [n, 2]: that and what rounding it to float32 took, for a faster backward pass.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>−Σ p ln p; logits of −∞ are left out.</summary>
    public TensorView Entropy { get; set; }

    /// <summary>Σ p².</summary>
    public TensorView SumOfSquares { get; set; }

    /// <summary>[n], int32 or int64: the token with the largest logit, the first of several; the first NaN if there is one.</summary>
    public TensorView Argmax { get; set; }

    /// <summary>[n, k], k at most the vocabulary that counts: ln p of the k likeliest tokens, the likeliest first.</summary>
    public TensorView TopLogProbs { get; set; }

    /// <summary>[n, k], int32 or int64: those tokens; of several with one logit, the first ones first. Some tokens of a row that has a NaN: its log-probs are NaN.</summary>
    public TensorView TopTokens { get; set; }

    /// <summary>Σ w z / V, over the vocabulary that counts, with the problem's MeanWeights or w = 1: what label smoothing needs. −∞ if a logit of weight above 0 is. Summed by hundreds in float32, of which those sums must be.</summary>
    public TensorView MeanLogit { get; set; }

    /// <summary>How many outputs there are.</summary>
    internal const int Count = 8;

    internal readonly TensorView this[int index] => index switch
    {
        0 => LogProb,
        1 => LogSumExp,
        2 => Entropy,
        3 => SumOfSquares,
        4 => Argmax,
        5 => TopLogProbs,
        6 => TopTokens,
        _ => MeanLogit,
    };

    internal static string Name(int index) => index switch
    {
        0 => "outputs.LogProb",
        1 => "outputs.LogSumExp",
        2 => "outputs.Entropy",
        3 => "outputs.SumOfSquares",
        4 => "outputs.Argmax",
        5 => "outputs.TopLogProbs",
        6 => "outputs.TopTokens",
        _ => "outputs.MeanLogit",
    };

    /// <summary>Types, shapes, and that no two share memory.</summary>
    internal readonly void Check(ComputeDevice device, long tokens, long vocabulary)
    {
        Require.OptionalOutput(device, LogProb, Name(0), tokens);
        if (LogSumExp.Rank == 2)
            Require.Output(device, LogSumExp, Name(1), tokens, 2);
        else
            Require.OptionalOutput(device, LogSumExp, Name(1), tokens);
        Require.OptionalOutput(device, Entropy, Name(2), tokens);
        Require.OptionalOutput(device, SumOfSquares, Name(3), tokens);
        ReadOnlySpan<ElementType> indices = [ElementType.Int32, ElementType.Int64];
        if (Argmax.IsPresent)
            Require.Output(device, Argmax, Name(4), indices, tokens);
        Require.OptionalOutput(device, TopLogProbs, Name(5), tokens, -1);
        if (TopTokens.IsPresent)
        {
            if (!TopLogProbs.IsPresent)
                throw new ArgumentNullException(Name(5), "outputs.TopLogProbs is required where outputs.TopTokens is set.");
            Require.Output(device, TopTokens, Name(6), indices, tokens, TopLogProbs.Length(1));
        }
        Require.OptionalOutput(device, MeanLogit, Name(7), tokens);
        if (TopLogProbs.IsPresent && (TopLogProbs.Length(1) < 1 || TopLogProbs.Length(1) > vocabulary))
            throw new ArgumentException($"outputs.TopLogProbs asks for {TopLogProbs.Length(1)} tokens; it must be between 1 and the vocabulary, {vocabulary}.", Name(5));
        for (int i = 0; i < Count; i++)
        {
            for (int j = i + 1; j < Count; j++)
                Require.Disjoint(this[i], Name(i), this[j], Name(j));
        }
        Require.Any(IsAnyPresent, "outputs", "LogProb, LogSumExp, Entropy, SumOfSquares, Argmax, TopLogProbs, MeanLogit");
    }

    internal readonly bool IsAnyPresent
    {
        get
        {
            bool any = false;
            for (int i = 0; i < Count; i++)
                any |= this[i].IsPresent;
            return any;
        }
    }

    internal readonly void RequireDisjoint(in TensorView input, string name)
    {
        for (int i = 0; i < Count; i++)
            Require.Disjoint(this[i], Name(i), input, name);
    }
}

/// <summary>What the forward pass left for the backward pass. All float32.</summary>
public ref struct TokenSaved
{
    /// <summary>[n] or [n, 2], as the forward pass wrote it. Required. With what rounding took, the backward pass is faster, but for a gradient of Σ p² on GPUs; without, it forms the row's sums again.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>[n], as the forward pass wrote it. Required if <see cref="TokenUpstream.Entropy"/> is set.</summary>
    public TensorView Entropy { get; set; }
}

/// <summary>The gradients that arrive at the per-token results; zero if absent, but one must be there. All [n], float32.</summary>
public ref struct TokenUpstream
{
    /// <summary>At the log-prob.</summary>
    public TensorView LogProb { get; set; }

    /// <summary>At the log-sum-exp.</summary>
    public TensorView LogSumExp { get; set; }

    /// <summary>At the entropy.</summary>
    public TensorView Entropy { get; set; }

    /// <summary>At Σ p².</summary>
    public TensorView SumOfSquares { get; set; }

    /// <summary>At the mean logit.</summary>
    public TensorView MeanLogit { get; set; }

    /// <summary>How many upstreams there are.</summary>
    internal const int Count = 5;

    internal readonly TensorView this[int index] => index switch
    {
        0 => LogProb,
        1 => LogSumExp,
        2 => Entropy,
        3 => SumOfSquares,
        _ => MeanLogit,
    };

    internal static string Name(int index) => index switch
    {
        0 => "upstream.LogProb",
        1 => "upstream.LogSumExp",
        2 => "upstream.Entropy",
        3 => "upstream.SumOfSquares",
        _ => "upstream.MeanLogit",
    };

    /// <summary>Types and shapes.</summary>
    internal readonly void Check(ComputeDevice device, long tokens)
    {
        for (int i = 0; i < Count; i++)
            Require.OptionalInput(device, this[i], Name(i), tokens);
    }

    /// <summary>Something arrives.</summary>
    internal readonly void RequireAny()
    {
        bool any = false;
        for (int i = 0; i < Count; i++)
            any |= this[i].IsPresent;
        Require.Any(any, "upstream", "LogProb, LogSumExp, Entropy, SumOfSquares, MeanLogit", verb: "holds");
    }

    internal readonly void RequireDisjoint(in TensorView written, string name)
    {
        for (int i = 0; i < Count; i++)
            Require.Disjoint(written, name, this[i], Name(i));
    }
}

/// <summary>Token log-probabilities, log-sum-exp and entropy, and their gradients: the reduction under every alignment loss.</summary>
public static partial class LogProbs
{
    // As in PyTorch.
    internal const long UsualIgnoreTarget = -100;

    /// <summary>Writes, for every token, what is asked for.</summary>
    /// <remarks>
    /// Logits of −∞ have probability 0. If all of a row are −∞, its log-sum-exp is −∞; with a logit of ∞ the log-sum-exp is ∞, and log-probs of all other logits are −∞; other log-probs of such rows, entropy
    /// and Σ p² are NaN, the mean logit is that infinity (NaN with both), and tokens are found as ever. A NaN in a row that counts makes all of its results NaN, but for tokens.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Logits and targets.</param>
    /// <param name="outputs">What to compute and where to put it, overwritten.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary; on a GPU such a row becomes NaN, its tokens −1, and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromLogits(ComputeDevice device, in LogitsProblem problem, in TokenOutputs outputs)
    {
        Check(device, problem);
        long tokens = problem.Logits.Length(0);
        outputs.Check(device, tokens, problem.ValidVocabulary ?? problem.Logits.Length(1));
        outputs.RequireDisjoint(problem.Logits, "problem.Logits");
        outputs.RequireDisjoint(problem.Targets, "problem.Targets");
        outputs.RequireDisjoint(problem.Bias, "problem.Bias");
        outputs.RequireDisjoint(problem.MeanWeights, "problem.MeanWeights");
        device.RequireOffered(problem, outputs);
        device.LogProbsFromLogits(problem, outputs);
    }

    /// <summary>The log-prob of every token, and the entropy if asked for, straight from arrays: what users of inference engines have.</summary>
    /// <remarks>As <see cref="FromLogits(ComputeDevice, in LogitsProblem, in TokenOutputs)"/>, on all processors of this machine.</remarks>
    /// <param name="logits">[n, V] row-major, n being the number of targets.</param>
    /// <param name="targets">[n]: the token of each row; −100 to ignore the row.</param>
    /// <param name="logProbs">[n], overwritten: ln p of the targets.</param>
    /// <param name="entropies">[n], overwritten: −Σ p ln p. Optional.</param>
    /// <exception cref="ArgumentException">The lengths don't fit, or what is written overlaps something.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary.</exception>
    public static void FromLogits(ReadOnlySpan<float> logits, ReadOnlySpan<int> targets, Span<float> logProbs, Span<float> entropies = default)
    {
        int tokens = targets.Length;
        if (tokens == 0 ? !logits.IsEmpty : logits.IsEmpty || logits.Length % tokens != 0)
            throw new ArgumentException($"{logits.Length} logits aren't {tokens} rows of a vocabulary.", nameof(logits));
        if (logProbs.Length != tokens)
            throw new ArgumentException($"logProbs has the length {logProbs.Length}; there are {tokens} targets.", nameof(logProbs));
        if (!entropies.IsEmpty && entropies.Length != tokens)
            throw new ArgumentException($"entropies has the length {entropies.Length}; there are {tokens} targets.", nameof(entropies));
        if (tokens == 0)
            return;
        var problem = new LogitsProblem { Logits = TensorView.Of(logits, tokens, logits.Length / tokens), Targets = TensorView.Of(targets) };
        var outputs = new TokenOutputs { LogProb = TensorView.Of(logProbs), Entropy = entropies.IsEmpty ? default : TensorView.Of(entropies) };
        // What is amiss is called by its name here.
        Require.Disjoint(outputs.LogProb, nameof(logProbs), outputs.Entropy, nameof(entropies));
        Require.Disjoint(outputs.LogProb, nameof(logProbs), problem.Logits, nameof(logits));
        Require.Disjoint(outputs.LogProb, nameof(logProbs), problem.Targets, nameof(targets));
        Require.Disjoint(outputs.Entropy, nameof(entropies), problem.Logits, nameof(logits));
        Require.Disjoint(outputs.Entropy, nameof(entropies), problem.Targets, nameof(targets));
        for (int token = 0; token < tokens; token++)
            CpuDevice.CheckTarget(token, targets[token], logits.Length / tokens, problem.IgnoreTarget, nameof(targets));
        FromLogits(ComputeDevice.Cpu, problem, outputs);
    }

    /// <summary>The gradient of the logits, from the gradients of log-prob, log-sum-exp, entropy, Σ p² and mean logit together.</summary>
    /// <remarks>
    /// With p = e^(z − logSumExp), H the entropy and Q = Σ p²: dz = u_logProb (1[target] − p) + u_logSumExp p − u_entropy p (ln p + H) + 2 u_squares p (p − Q) + u_mean w / V, 1 − p
    /// formed before rounding, and dx = dz (1 − tanh²((x + bias) / c)) / temperature, rounded last. The gradient of a bias is the sum of dx over the rows.
    /// Of the saved log-sum-exp L every ln p takes the error: half a unit in the last place of L where it is [n], up to |L| 2⁻²⁴, and |L| 2⁻⁴⁸ where it is [n, 2]. So from [n] the sums of a row are
    /// formed again, and from [n, 2] too where |L| is above 2²⁴ (z in the ten millions: a temperature near 0): then nothing of L counts, and p is as exact as that of small logits.
    /// GPUs do so unless logits are float32 and count as they are, and no gradient of Σ p² or the mean logit arrives: there [n, 2] is exact.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="saved">What the forward pass wrote.</param>
    /// <param name="upstream">The gradients that arrive.</param>
    /// <param name="logitsGradient">[n, V], float32 or the logits' type, rows contiguous, overwritten. May be the logits themselves: then they are replaced in place.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A target lies outside the vocabulary; on a GPU the gradient of such a row becomes NaN, and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    /// <exception cref="OperationCanceledException">The device's token was cancelled; what was to be written is undefined then.</exception>
    public static void FromLogitsBackward(ComputeDevice device, in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream,
        TensorView logitsGradient)
    {
        Check(device, problem);
        long tokens = problem.Logits.Length(0);
        if (saved.LogSumExp.Rank == 2)
            Require.Input(device, saved.LogSumExp, "saved.LogSumExp", tokens, 2);
        else
            Require.Input(device, saved.LogSumExp, "saved.LogSumExp", tokens);
        Require.OptionalInput(device, saved.Entropy, "saved.Entropy", tokens);
        if (upstream.Entropy.IsPresent && !saved.Entropy.IsPresent)
            throw new ArgumentNullException("saved.Entropy", "saved.Entropy is required where upstream.Entropy is set.");
        CheckGradient(device, problem, upstream, logitsGradient);
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.LogSumExp, "saved.LogSumExp");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), saved.Entropy, "saved.Entropy");
        upstream.RequireAny();
        device.RequireOffered(problem, default);
        device.LogProbsFromLogitsBackward(problem, saved, upstream, logitsGradient);
    }

    internal static void CheckGradient(ComputeDevice device, in LogitsProblem problem, in TokenUpstream upstream, in TensorView logitsGradient)
    {
        long tokens = problem.Logits.Length(0);
        upstream.Check(device, tokens);
        Require.Output(device, logitsGradient, nameof(logitsGradient), problem.Logits.Type == ElementType.Float32 ? [ElementType.Float32] : [ElementType.Float32, problem.Logits.Type], tokens, problem.Logits.Length(1));
        CheckRows(logitsGradient, nameof(logitsGradient));
        if (!logitsGradient.IsSameAs(problem.Logits))
            Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Logits, "problem.Logits");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Targets, "problem.Targets");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.Bias, "problem.Bias");
        Require.Disjoint(logitsGradient, nameof(logitsGradient), problem.MeanWeights, "problem.MeanWeights");
        upstream.RequireDisjoint(logitsGradient, nameof(logitsGradient));
    }

    internal static void Check(ComputeDevice device, in LogitsProblem problem)
    {
        Require.Device(device);
        Require.Input(device, problem.Logits, "problem.Logits", [ElementType.Float32, ElementType.Float16, ElementType.BFloat16], -1, -1);
        CheckRows(problem.Logits, "problem.Logits");
        long vocabulary = problem.Logits.Length(1);
        if (vocabulary == 0)
            throw new ArgumentException("problem.Logits has a vocabulary of 0; it must be at least 1.", "problem.Logits");
        Require.Input(device, problem.Targets, "problem.Targets", [ElementType.Int32, ElementType.Int64], problem.Logits.Length(0));
        CheckShaping(device, ProblemNames.Problem, vocabulary, problem.Bias, problem.MeanWeights, problem.Softcap, problem.Temperature, problem.ValidVocabulary);
    }

    internal static void CheckShaping(ComputeDevice device, ProblemNames names, long vocabulary, in TensorView bias, in TensorView meanWeights, float? softcap, float temperature, long? validVocabulary)
    {
        Require.OptionalInput(device, bias, names.Bias, vocabulary);
        if (bias.IsPresent && vocabulary > 1 && bias.Stride(0) != 1)
            throw new ArgumentException($"{names.Bias} has the stride {bias.Stride(0)}; it must be 1.", names.Bias);
        Require.OptionalInput(device, meanWeights, names.MeanWeights, vocabulary);
        if (meanWeights.IsPresent && vocabulary > 1 && meanWeights.Stride(0) != 1)
            throw new ArgumentException($"{names.MeanWeights} has the stride {meanWeights.Stride(0)}; it must be 1.", names.MeanWeights);
        if (softcap is { } cap && !(cap > 0 && cap <= float.MaxValue))
            throw new ArgumentOutOfRangeException(names.Softcap, cap, $"{names.Softcap} is {cap}; it must be a positive number, or absent.");
        if (softcap is { } small && !float.IsNormal(small))
            throw new ArgumentOutOfRangeException(names.Softcap, small, $"{names.Softcap} is {small}; it must be at least 2⁻¹²⁶, for logits are multiplied by its reciprocal.");
        if (!(temperature > 0 && temperature <= float.MaxValue))
            throw new ArgumentOutOfRangeException(names.Temperature, temperature, $"{names.Temperature} is {temperature}; it must be a positive number.");
        if (!float.IsFinite(1 / temperature))
            throw new ArgumentOutOfRangeException(names.Temperature, temperature, $"{names.Temperature} is {temperature}; it must be above 2⁻¹²⁸, for logits are multiplied by its reciprocal.");
        if (softcap / temperature is { } bound && !(bound > 0 && bound <= float.MaxValue))
            throw new ArgumentOutOfRangeException(names.Temperature, temperature, $"{names.Temperature} is {temperature}; {names.Softcap}, {softcap}, divided by it is {bound}: logits need a bound that is a positive number.");
        if (validVocabulary is { } valid && (valid < 1 || valid > vocabulary))
            throw new ArgumentOutOfRangeException(names.ValidVocabulary, valid, $"{names.ValidVocabulary} is {valid}; it must lie between 1 and the vocabulary, {vocabulary}.");
    }

    internal static void CheckRows(in TensorView rows, string name)
    {
        if (rows.Length(1) > 1 && rows.Stride(1) != 1)
            throw new ArgumentException($"{name} has stride {rows.Stride(1)} along the vocabulary; it must be 1.", name);
    }
}
