using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Rows of logits with their targets, run by the library and by the oracle: what every log-prob family has in common.</summary>
/// <param name="Logits">[n, V], row-major.</param>
/// <param name="Vocabulary">V.</param>
/// <param name="Targets">[n].</param>
/// <param name="IgnoreTarget">The target of rows that are left out.</param>
public sealed record TokenLogits(double[] Logits, int Vocabulary, long[] Targets, long IgnoreTarget = -100)
{
    public TokenLogits(VectorTensor logits, long[] targets, long ignoreTarget = -100) : this(logits.Data, logits.Shape[^1], targets, ignoreTarget)
    {
    }

    /// <summary>Bias, softcap, temperature and padding.</summary>
    public LogitShaping Shaping { get; init; } = LogitShaping.None;

    /// <summary>How the library gets the logits.</summary>
    public ElementType Storage { get; init; } = ElementType.Float32;

    private int Tokens => Targets.Length;

    private Grid<double> Stored => new(Logits, Tokens, Vocabulary);

    /// <summary>The results per token.</summary>
    public TokenResult<T> Forward<T>(bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return LogProbsOracle.Forward<T>(Stored, Targets, IgnoreTarget, Shaping);
        float[] logProb = new float[Tokens], logSumExp = new float[Tokens], entropy = new float[Tokens], squares = new float[Tokens];
        LogProbs.FromLogits(DeviceUnderTest.Device, Problem(StoredLogits()), new TokenOutputs
        {
            LogProb = TensorView.Of(logProb, Tokens),
            LogSumExp = TensorView.Of(logSumExp, Tokens),
            Entropy = TensorView.Of(entropy, Tokens),
            SumOfSquares = TensorView.Of(squares, Tokens),
        });
        return new((T[])(object)logProb, (T[])(object)logSumExp, (T[])(object)entropy, (T[])(object)squares);
    }

    /// <summary>The likeliest tokens of each row [n, k], with their log-probs.</summary>
    public (long[] Tokens, T[] LogProbs) Top<T>(bool library, int count) where T : unmanaged, IFloatingPointIeee754<T>
    {
        var tokens = new long[Tokens * count];
        var logProbs = new float[Tokens * count];
        if (library)
        {
            LogProbs.FromLogits(DeviceUnderTest.Device, Problem(StoredLogits()), new TokenOutputs { TopLogProbs = TensorView.Of(logProbs, Tokens, count), TopTokens = TensorView.Of(tokens, Tokens, count) });
            return (tokens, (T[])(object)logProbs);
        }
        tokens = LogProbsOracle.Top(Stored, Targets, count, IgnoreTarget, Shaping);
        T[][] ranks = [.. Enumerable.Range(0, count).Select(rank => LogProbsOracle.Forward<T>(Stored,
            [.. Targets.Select((target, row) => target == IgnoreTarget ? target : tokens[row * count + rank])], IgnoreTarget, Shaping).LogProb)];
        return (tokens, [.. Enumerable.Range(0, tokens.Length).Select(i => ranks[i % count][i / count])]);
    }

    /// <summary>The token with the largest logit of each row.</summary>
    public long[] Argmax(bool library)
    {
        if (!library)
            return LogProbsOracle.Top(Stored, Targets, 1, IgnoreTarget, Shaping);
        var tokens = new long[Tokens];
        LogProbs.FromLogits(DeviceUnderTest.Device, Problem(StoredLogits()), new TokenOutputs { Argmax = TensorView.Of(tokens) });
        return tokens;
    }

    /// <summary>Σ z / V of each row.</summary>
    public T[] MeanLogit<T>(bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return LogProbsOracle.Forward<T>(Stored, Targets, IgnoreTarget, Shaping).MeanLogit;
        var mean = new float[Tokens];
        LogProbs.FromLogits(DeviceUnderTest.Device, Problem(StoredLogits()), new TokenOutputs { MeanLogit = TensorView.Of(mean) });
        return (T[])(object)mean;
    }

    /// <summary>The gradient of the logits [n, V]; null upstreams are 0.</summary>
    /// <param name="library">Whose.</param>
    /// <param name="logProb">Upstream of the log-probs.</param>
    /// <param name="logSumExp">Upstream of the log-sum-exps.</param>
    /// <param name="entropy">Upstream of the entropies.</param>
    /// <param name="rounded">Whether it is rounded to how the logits are stored.</param>
    /// <param name="squares">Upstream of Σ p².</param>
    /// <param name="meanLogit">Upstream of the mean logits.</param>
    public T[] Backward<T>(bool library, double[]? logProb, double[]? logSumExp, double[]? entropy, bool rounded = false, double[]? squares = null, double[]? meanLogit = null) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (library)
            return (T[])(object)LibraryBackward(new() { LogProb = View(logProb), LogSumExp = View(logSumExp), Entropy = View(entropy), SumOfSquares = View(squares), MeanLogit = View(meanLogit) }, rounded);
        T[] gradient = LogProbsOracle.Backward<T>(Stored, Targets, logProb, logSumExp, entropy, IgnoreTarget, Shaping, squares, meanLogit).Data;
        return rounded ? Array.ConvertAll(gradient, x => T.CreateTruncating(Round(double.CreateTruncating(x)))) : gradient;
    }

    private double Round(double x) => Storage switch
    {
        ElementType.Float16 => (double)(Half)x,
        ElementType.BFloat16 => BitConverter.Int32BitsToSingle(BFloat16Bits((float)x) << 16),
        _ => x,
    };

    // To the nearest, ties to even.
    private static ushort BFloat16Bits(float x)
    {
        uint bits = BitConverter.SingleToUInt32Bits(x);
        return (ushort)(float.IsNaN(x) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }

    private Array StoredLogits() => Storage switch
    {
        ElementType.Float16 => Array.ConvertAll(Logits, x => (Half)x),
        ElementType.BFloat16 => Array.ConvertAll(Logits, x => new BFloat16(BFloat16Bits((float)x))),
        _ => Array.ConvertAll(Logits, x => (float)x),
    };

    private static TensorView View(Array stored, params ReadOnlySpan<long> shape) => stored switch
    {
        Half[] halves => TensorView.Of(halves, shape),
        BFloat16[] halves => TensorView.Of(halves, shape),
        _ => TensorView.Of((float[])stored, shape),
    };

    private LogitsProblem Problem(Array stored) => new()
    {
        Logits = View(stored, Tokens, Vocabulary),
        Targets = TensorView.Of(Targets, Tokens),
        IgnoreTarget = IgnoreTarget,
        Bias = View(Shaping.Bias),
        Softcap = Shaping.Softcap == 0 ? null : (float)Shaping.Softcap,
        Temperature = (float)Shaping.Temperature,
        ValidVocabulary = Shaping.Valid,
        MeanWeights = View(Shaping.MeanWeights),
    };

    private float[] LibraryBackward(in TokenUpstream upstream, bool rounded)
    {
        Array logits = StoredLogits();
        TokenResult<float> saved = Forward<float>(library: true);
        var state = new TokenSaved { LogSumExp = TensorView.Of(saved.LogSumExp, Tokens), Entropy = TensorView.Of(saved.Entropy, Tokens) };
        if (!rounded)
        {
            var gradient = new float[logits.Length];
            LogProbs.FromLogitsBackward(DeviceUnderTest.Device, Problem(logits), state, upstream, TensorView.Of(gradient, Tokens, Vocabulary));
            return gradient;
        }
        LogProbs.FromLogitsBackward(DeviceUnderTest.Device, Problem(logits), state, upstream, View(logits, Tokens, Vocabulary));
        return logits switch
        {
            Half[] halves => Array.ConvertAll(halves, x => (float)x),
            BFloat16[] halves => Array.ConvertAll(halves, x => BitConverter.Int32BitsToSingle(x.Bits << 16)),
            _ => (float[])logits,
        };
    }

    private static TensorView View(double[]? values) => values is null ? default : TensorView.Of(Array.ConvertAll(values, x => (float)x), values.Length);

    private readonly record struct BFloat16(ushort Bits);
}
