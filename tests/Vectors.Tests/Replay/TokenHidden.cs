using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Hidden states and a vocabulary with the targets, run by the library and by the oracle.</summary>
/// <param name="Hidden">[n, W].</param>
/// <param name="Vocabulary">[V, W].</param>
/// <param name="Targets">[n].</param>
/// <param name="IgnoreTarget">The target of tokens that are left out.</param>
public sealed record TokenHidden(Grid<double> Hidden, Grid<double> Vocabulary, long[] Targets, long IgnoreTarget = -100)
{
    /// <summary>Bias, softcap, temperature and padding.</summary>
    public LogitShaping Shaping { get; init; } = LogitShaping.None;

    /// <summary>How the library gets hidden states and vocabulary.</summary>
    public ElementType Storage { get; init; } = ElementType.Float32;

    private int Tokens => Targets.Length;

    /// <summary>The results per token.</summary>
    public TokenResult<T> Forward<T>(bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return HiddenLogProbsOracle.Forward<T>(Hidden, Vocabulary, Targets, IgnoreTarget, Shaping);
        float[] logProb = new float[Tokens], logSumExp = new float[Tokens], entropy = new float[Tokens], squares = new float[Tokens];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        LogProbs.FromHidden(ComputeDevice.Cpu, Problem(), new()
        {
            LogProb = TensorView.Of(logProb, Tokens),
            LogSumExp = TensorView.Of(logSumExp, Tokens),
            Entropy = TensorView.Of(entropy, Tokens),
            SumOfSquares = TensorView.Of(squares, Tokens),
        }, workspace);
        return new((T[])(object)logProb, (T[])(object)logSumExp, (T[])(object)entropy, (T[])(object)squares);
    }

    /// <summary>The token with the largest logit.</summary>
    public long[] Argmax(bool library)
    {
        if (!library)
            return LogProbsOracle.Top(HiddenLogProbsOracle.Logits<double>(Hidden, Vocabulary, Targets, IgnoreTarget, Shaping), Targets, 1, IgnoreTarget, Shaping);
        var tokens = new long[Tokens];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        LogProbs.FromHidden(ComputeDevice.Cpu, Problem(), new() { Argmax = TensorView.Of(tokens) }, workspace);
        return tokens;
    }

    /// <summary>Σ z / V of each token.</summary>
    public T[] MeanLogit<T>(bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return HiddenLogProbsOracle.Forward<T>(Hidden, Vocabulary, Targets, IgnoreTarget, Shaping).MeanLogit;
        var mean = new float[Tokens];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        LogProbs.FromHidden(ComputeDevice.Cpu, Problem(), new() { MeanLogit = TensorView.Of(mean) }, workspace);
        return (T[])(object)mean;
    }

    /// <summary>The gradients; null upstreams are 0.</summary>
    public HiddenGradient<T> Backward<T>(bool library, double[]? logProb, double[]? logSumExp, double[]? entropy, double[]? meanLogit = null) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return HiddenLogProbsOracle.Backward<T>(Hidden, Vocabulary, Targets, logProb, logSumExp, entropy, IgnoreTarget, Shaping, meanUpstream: meanLogit);
        Grid<float> hidden = Grid.Zeros<float>(Hidden.Shape), vocabulary = Grid.Zeros<float>(Vocabulary.Shape);
        float[] bias = new float[Vocabulary.Shape[0]];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        LogProbs.FromHiddenBackward(ComputeDevice.Cpu, Problem(), new() { LogProb = View(logProb), LogSumExp = View(logSumExp), Entropy = View(entropy), MeanLogit = View(meanLogit) }, new()
        {
            Hidden = TensorView.Of(hidden.Data, Tokens, Hidden.Shape[1]),
            Vocabulary = TensorView.Of(vocabulary.Data, Vocabulary.Shape[0], Vocabulary.Shape[1]),
            Bias = Shaping.Bias is null ? default : TensorView.Of(bias),
        }, workspace);
        return new((Grid<T>)(object)hidden, (Grid<T>)(object)vocabulary, (T[])(object)bias);
    }

    /// <summary>The log-probs of so many answers of equal length: Σ log-prob of their tokens, or the mean.</summary>
    public T[] Answers<T>(bool library, int answers, bool mean) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return AnswerOracle.Forward<T>(Hidden, Vocabulary, Targets, Bounds(answers), mean, Shaping);
        float[] chosen = new float[answers / 2], rejected = new float[answers / 2];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        PreferenceLogProbs.FromHidden(ComputeDevice.Cpu, Pairs(mean), new() { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) }, workspace);
        return (T[])(object)(float[])[.. chosen, .. rejected];
    }

    /// <summary>The gradients of Σ u·answer.</summary>
    public HiddenGradient<T> AnswersBackward<T>(bool library, int answers, bool mean, double[] upstream) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return AnswerOracle.Backward<T>(Hidden, Vocabulary, Targets, Bounds(answers), mean, upstream, Shaping);
        Grid<float> hidden = Grid.Zeros<float>(Hidden.Shape), vocabulary = Grid.Zeros<float>(Vocabulary.Shape);
        float[] bias = new float[Vocabulary.Shape[0]];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        PreferenceLogProbs.FromHiddenBackward(ComputeDevice.Cpu, Pairs(mean), new() { Chosen = View(upstream[..(answers / 2)]), Rejected = View(upstream[(answers / 2)..]) }, new()
        {
            Hidden = TensorView.Of(hidden.Data, Tokens, Hidden.Shape[1]),
            Vocabulary = TensorView.Of(vocabulary.Data, Vocabulary.Shape[0], Vocabulary.Shape[1]),
            Bias = Shaping.Bias is null ? default : TensorView.Of(bias),
        }, workspace);
        return new((Grid<T>)(object)hidden, (Grid<T>)(object)vocabulary, (T[])(object)bias);
    }

    private long[] Bounds(int answers) => [.. Enumerable.Range(0, answers + 1).Select(answer => (long)answer * Tokens / answers)];

    private PreferenceProblem Pairs(bool mean) => new() { Policy = Problem(), Reduction = mean ? SequenceReduction.Mean : SequenceReduction.Sum };

    private HiddenProblem Problem() => new()
    {
        Hidden = View(Hidden),
        Vocabulary = View(Vocabulary),
        Targets = TensorView.Of(Targets, Tokens),
        IgnoreTarget = IgnoreTarget,
        Bias = View(Shaping.Bias),
        Softcap = Shaping.Softcap == 0 ? null : (float)Shaping.Softcap,
        Temperature = (float)Shaping.Temperature,
        ValidVocabulary = Shaping.Valid,
        MeanWeights = View(Shaping.MeanWeights),
    };

    private TensorView View(Grid<double> grid) => Storage switch
    {
        ElementType.Float16 => TensorView.Of(Array.ConvertAll(grid.Data, x => (Half)x), grid.Shape[0], grid.Shape[1]),
        // The files hold rounded numbers.
        ElementType.BFloat16 => TensorView.Of(Array.ConvertAll(grid.Data, x => new BFloat16((ushort)(BitConverter.SingleToUInt32Bits((float)x) >> 16))), grid.Shape[0], grid.Shape[1]),
        _ => TensorView.Of(Array.ConvertAll(grid.Data, x => (float)x), grid.Shape[0], grid.Shape[1]),
    };

    private static TensorView View(double[]? values) => values is null ? default : TensorView.Of(Array.ConvertAll(values, x => (float)x), values.Length);

    private readonly record struct BFloat16(ushort Bits);
}
