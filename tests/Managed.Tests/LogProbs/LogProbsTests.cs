using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class LogProbsTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    public static TheoryData<int, string> Rows()
    {
        var rows = new TheoryData<int, string>();
        foreach (int vocabulary in (int[])[1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 65, 100, 1000, 2047, 2048, 2049, 2064, 4099, 10007])
        {
            foreach (string kind in (string[])["plain", "wide", "above 1e4", "below -1e4", "minus infinity", "peaked", "rising"])
                rows.Add(vocabulary, kind);
        }
        return rows;
    }

    // 5 rows; the third is ignored and full of NaN.
    private static (float[] Logits, long[] Targets) Example(int vocabulary, string kind, int seed = 1)
    {
        const int tokens = 5;
        float[] logits = Seeded.Normal(tokens * vocabulary, seed, kind == "wide" ? 20 : 2);
        var random = new Random(seed);
        var targets = new long[tokens];
        for (int row = 0; row < tokens; row++)
        {
            Span<float> z = logits.AsSpan(row * vocabulary, vocabulary);
            targets[row] = random.Next(vocabulary);
            for (int j = 0; j < vocabulary; j++)
            {
                z[j] = kind switch
                {
                    "above 1e4" => MathF.Round(16 * z[j]) / 16 + 10000,
                    "below -1e4" => MathF.Round(16 * z[j]) / 16 - 10000,
                    "minus infinity" => j % 3 == 1 ? float.NegativeInfinity : z[j],
                    "rising" => z[j] + 30f * j / vocabulary,
                    _ => z[j],
                };
            }
            if (kind == "peaked")
                z[row % 2 == 0 ? (int)targets[row] : random.Next(vocabulary)] = 20 + 20 * row;
        }
        targets[2] = -100;
        logits.AsSpan(2 * vocabulary, vocabulary).Fill(float.NaN);
        return (logits, targets);
    }

    [Theory]
    [MemberData(nameof(Rows))]
    public void Log_prob_log_sum_exp_and_entropy_keep_the_contract(int vocabulary, string kind)
    {
        (float[] logits, long[] targets) = Example(vocabulary, kind);
        float[] logProb = new float[5], logSumExp = new float[5], entropy = new float[5];
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 5, vocabulary), Targets = TensorView.Of(targets) },
            new() { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(logSumExp), Entropy = TensorView.Of(entropy) });
        Grid<double> z = Grid.Of(logits, 5, vocabulary);
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(z, targets);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(z, targets);
        Contract.Check(logProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
        Contract.Check(logSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
        Contract.Check(entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
    }

    [Theory]
    [MemberData(nameof(Rows))]
    public void Gradient_of_the_logits_keeps_the_contract_in_place_and_elsewhere(int vocabulary, string kind)
    {
        (float[] logits, long[] targets) = Example(vocabulary, kind);
        for (int which = 1; which < 8; which++)
        {
            float[]? ofLogProb = (which & 1) != 0 ? Seeded.Normal(5, 10) : null, ofLogSumExp = (which & 2) != 0 ? Seeded.Normal(5, 11) : null;
            float[]? ofEntropy = (which & 4) != 0 ? Seeded.Normal(5, 12) : null;
            float[] elsewhere = Gradient(logits, targets, vocabulary, ofLogProb, ofLogSumExp, ofEntropy, inPlace: false);
            float[] inPlace = Gradient(logits, targets, vocabulary, ofLogProb, ofLogSumExp, ofEntropy, inPlace: true);
            Assert.Equal(elsewhere, inPlace);
            Grid<double> z = Grid.Of(logits, 5, vocabulary);
            double[]? Doubles(float[]? x) => x is null ? null : Array.ConvertAll(x, v => (double)v);
            Grid<double> oracle = LogProbsOracle.Backward<double>(z, targets, Doubles(ofLogProb), Doubles(ofLogSumExp), Doubles(ofEntropy));
            Grid<float> naive = LogProbsOracle.Backward<float>(z, targets, Doubles(ofLogProb), Doubles(ofLogSumExp), Doubles(ofEntropy));
            Contract.Check(elsewhere, oracle.Data, naive.Data, Contract.Gradient, $"gradient, upstream {which}");
        }
    }

    private static float[] Gradient(float[] logits, long[] targets, int vocabulary, float[]? ofLogProb, float[]? ofLogSumExp, float[]? ofEntropy, bool inPlace)
    {
        logits = [.. logits];
        float[] gradient = inPlace ? logits : new float[logits.Length], logSumExp = new float[targets.Length], entropy = new float[targets.Length];
        if (!inPlace)
            Array.Fill(gradient, float.NaN);
        LogitsProblem problem = new() { Logits = TensorView.Of(logits, targets.Length, vocabulary), Targets = TensorView.Of(targets) };
        LogProbs.FromLogits(Device, problem, new() { LogSumExp = TensorView.Of(logSumExp), Entropy = TensorView.Of(entropy) });
        LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = TensorView.Of(logSumExp), Entropy = TensorView.Of(entropy) },
            new()
            {
                LogProb = ofLogProb is null ? default : TensorView.Of(ofLogProb),
                LogSumExp = ofLogSumExp is null ? default : TensorView.Of(ofLogSumExp),
                Entropy = ofEntropy is null ? default : TensorView.Of(ofEntropy),
            }, TensorView.Of(gradient, targets.Length, vocabulary));
        return gradient;
    }
}
