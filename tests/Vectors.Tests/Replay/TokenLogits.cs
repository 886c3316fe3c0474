using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Rows of logits with their targets, run by the library and by the oracle: what every log-prob family has in common.</summary>
/// <param name="Logits">[n, V], row-major.</param>
/// <param name="Vocabulary">V.</param>
/// <param name="Targets">[n].</param>
/// <param name="IgnoreTarget">The target of rows that are left out.</param>
/// <param name="Valid">How many columns count, the first ones; the others get no gradient.</param>
public sealed record TokenLogits(double[] Logits, int Vocabulary, long[] Targets, long IgnoreTarget, int Valid)
{
    public TokenLogits(VectorTensor logits, long[] targets, long ignoreTarget = -100)
        : this(logits.Data, logits.Shape[^1], targets, ignoreTarget, logits.Shape[^1])
    {
    }

    private int Tokens => Targets.Length;

    private Grid<double> ValidLogits
    {
        get
        {
            Grid<double> all = new(Logits, Tokens, Vocabulary), valid = Grid.Zeros<double>(Tokens, Valid);
            for (int row = 0; row < Tokens; row++)
                all.Row(row)[..Valid].CopyTo(valid.Row(row));
            return valid;
        }
    }

    /// <summary>The results per token.</summary>
    public TokenResult<T> Forward<T>(bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (!library)
            return LogProbsOracle.Forward<T>(ValidLogits, Targets, IgnoreTarget);
        (float[] logProb, float[] logSumExp, float[] entropy) = LibraryForward(Array.ConvertAll(Logits, x => (float)x));
        return new((T[])(object)logProb, (T[])(object)logSumExp, (T[])(object)entropy);
    }

    /// <summary>The gradient of the logits [n, V]; null upstreams are 0.</summary>
    public T[] Backward<T>(bool library, double[]? logProb, double[]? logSumExp, double[]? entropy) where T : unmanaged, IFloatingPointIeee754<T>
    {
        if (library)
            return (T[])(object)LibraryBackward(logProb, logSumExp, entropy);
        Grid<T> valid = LogProbsOracle.Backward<T>(ValidLogits, Targets, logProb, logSumExp, entropy, IgnoreTarget);
        Grid<T> all = Grid.Zeros<T>(Tokens, Vocabulary);
        for (int row = 0; row < Tokens; row++)
            valid.Row(row).CopyTo(all.Row(row));
        return all.Data;
    }

    private (float[] LogProb, float[] LogSumExp, float[] Entropy) LibraryForward(float[] logits)
    {
        float[] logProb = new float[Tokens], logSumExp = new float[Tokens], entropy = new float[Tokens];
        var problem = new LogitsProblem
        {
            Logits = TensorView.Of(logits, Tokens, Vocabulary).Slice(1, 0, Valid),
            Targets = TensorView.Of(Targets, Tokens),
            IgnoreTarget = IgnoreTarget,
        };
        LogProbs.FromLogits(ComputeDevice.Cpu, problem, new TokenOutputs
        {
            LogProb = TensorView.Of(logProb, Tokens),
            LogSumExp = TensorView.Of(logSumExp, Tokens),
            Entropy = TensorView.Of(entropy, Tokens),
        });
        return (logProb, logSumExp, entropy);
    }

    private float[] LibraryBackward(double[]? logProb, double[]? logSumExp, double[]? entropy)
    {
        float[] logits = Array.ConvertAll(Logits, x => (float)x), gradient = new float[logits.Length];
        (_, float[] savedLogSumExp, float[] savedEntropy) = LibraryForward(logits);
        var problem = new LogitsProblem
        {
            Logits = TensorView.Of(logits, Tokens, Vocabulary).Slice(1, 0, Valid),
            Targets = TensorView.Of(Targets, Tokens),
            IgnoreTarget = IgnoreTarget,
        };
        LogProbs.FromLogitsBackward(ComputeDevice.Cpu, problem,
            new TokenSaved { LogSumExp = TensorView.Of(savedLogSumExp, Tokens), Entropy = TensorView.Of(savedEntropy, Tokens) },
            new TokenUpstream { LogProb = View(logProb), LogSumExp = View(logSumExp), Entropy = View(entropy) },
            TensorView.Of(gradient, Tokens, Vocabulary).Slice(1, 0, Valid));
        return gradient;
    }

    private static TensorView View(double[]? values) => values is null ? default : TensorView.Of(Array.ConvertAll(values, x => (float)x), values.Length);
}
