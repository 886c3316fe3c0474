using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Numbers that other projects' own tests state, and their tolerances; to a few roundings where the exact number could be computed.</summary>
public class PublishedLogProbsTests
{
    private const double Rounding = 1e-6;

    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    private sealed record Results(float[] LogProb, float[] LogSumExp, float[] Entropy, float[] Squares);

    private static Results Forward(float[] logits, long[] targets, float temperature = 1)
    {
        int tokens = targets.Length;
        Results results = new(new float[tokens], new float[tokens], new float[tokens], new float[tokens]);
        LogProbs.FromLogits(Device, Problem(logits, targets, temperature), new()
        {
            LogProb = TensorView.Of(results.LogProb),
            LogSumExp = TensorView.Of(results.LogSumExp),
            Entropy = TensorView.Of(results.Entropy),
            SumOfSquares = TensorView.Of(results.Squares),
        });
        return results;
    }

    private static LogitsProblem Problem(float[] logits, long[] targets, float temperature = 1) =>
        new() { Logits = TensorView.Of(logits, targets.Length, logits.Length / targets.Length), Targets = TensorView.Of(targets), Temperature = temperature };

    private static void Equal(double[] expected, float[] actual, double tolerance = Rounding)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
            Assert.Equal(expected[i], actual[i], tolerance * Math.Max(1, Math.Abs(expected[i])));
    }

    // tunix c7d8950f, tests/rl/common_test.py::test_selective_log_softmax (1e-4); its logits are those of JAX's generator with the key 0.
    [Fact]
    public void Selective_log_softmax_of_tunix()
    {
        float[] logits =
        [
            0.899712324142456f, 0.3450719118118286f, 0.27445685863494873f, 0.22250819206237793f, 0.18449711799621582f, 0.4054182767868042f, 0.12090277671813965f, 0.058066606521606445f,
            0.43725907802581787f, 0.9683723449707031f, 0.48212409019470215f, 0.37375450134277344f, 0.8149425983428955f, 0.4369239807128906f, 0.3308591842651367f, 0.06470012664794922f,
            0.09331619739532471f, 0.7497676610946655f, 0.45144009590148926f, 0.4549182653427124f, 0.5957983732223511f, 0.86867356300354f, 0.19755423069000244f, 0.07700073719024658f,
            0.6710848808288574f, 0.2066255807876587f, 0.04886913299560547f, 0.7648358345031738f, 0.7006194591522217f, 0.7485262155532837f, 0.7863304615020752f, 0.5531497001647949f,
            0.6081832647323608f, 0.8458003997802734f, 0.6879035234451294f, 0.9460843801498413f, 0.2588322162628174f, 0.7088913917541504f, 0.5404942035675049f, 0.6089973449707031f,
            0.09361326694488525f, 0.06592416763305664f, 0.8023500442504883f, 0.7081820964813232f, 0.7506629228591919f, 0.434179425239563f, 0.2469463348388672f, 0.6028399467468262f,
            0.850569486618042f, 0.3408459424972534f, 0.10385644435882568f, 0.5980046987533569f, 0.8806039094924927f, 0.8877626657485962f, 0.5447957515716553f, 0.8246718645095825f,
            0.7447588443756104f, 0.4725611209869385f, 0.6508291959762573f, 0.40968143939971924f, 0.5254472494125366f, 0.2188035249710083f, 0.5860913991928101f, 0.5237243175506592f,
        ];
        float[] logProb = Forward(logits, [4, 6, 2, 0, 2, 0, 7, 6]).LogProb;
        Equal([-2.242679, -2.2733693, -2.1024966, -1.9994389, -2.0603075, -2.4863663, -1.9176172, -2.0206313], logProb);
    }

    // rlax 4c5d25b, _src/distributions_test.py::SoftmaxTest (1e-4).
    [Fact]
    public void Probabilities_and_entropies_of_rlax()
    {
        float[] logits = [1, 1, 0, 1, 2, 0], each = [1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0];
        long[] all = [0, 1, 2, 0, 1, 2];
        Equal([0.42231882, 0.42231882, 0.15536241, 0.24472848, 0.66524094, 0.09003057], Array.ConvertAll(Forward(each, all).LogProb, MathF.Exp));
        Equal([0.34425336, 0.34425336, 0.31149334, 0.332225, 0.3671654, 0.3006096], Array.ConvertAll(Forward(each, all, temperature: 10).LogProb, MathF.Exp));
        Equal([1.017357207555215, 0.832395581839939], Forward(logits, [0, 1]).Entropy);

        // _src/policy_gradients_test.py, entropy_loss: the mean of −weight · entropy.
        float[] entropy = Forward([1, 1, 1, 2, 0, 0, -1, -2, -3], [0, 1, 2]).Entropy;
        Equal([0.28869307117961, 1.15422], [-(-2 * entropy[0] + 2 * entropy[1]) / 3, -(-3 * entropy[0] + entropy[1] - entropy[2]) / 3]);
    }

    // The behaviour that huggingface/trl#7221 asks for: 0 · −∞ is 0.
    [Fact]
    public void Entropy_of_a_masked_vocabulary()
    {
        const float masked = float.NegativeInfinity;
        Equal([0, 0.6931471805599453, 0], Forward([0, masked, masked, 0, 0, masked, 65504, -65504, masked], [0, 0, 0]).Entropy);
    }

    // verl 1dda039b9, tests/utils/test_torch_functional.py::test_calculate_sum_pi_squared_from_logits_extreme_values.
    [Fact]
    public void Sum_of_squares_of_extreme_logits() => Equal([0.5105430578904046, 0.5105430578904046], Forward([1000, 1001, 999, -1000, -999, -998], [0, 0]).Squares);

    // NeMo-RL 7ea279abf, test_loss_functions.py::test_nll_loss.
    [Fact]
    public void Sharp_logits() => Assert.Equal([0f, -999f], Forward([0, 999, 0, 0, 999, 0, 0, 0], [1, 2]).LogProb);

    // verl, tests/utils/test_linear_cross_entropy.py (PR 5349): columns that aren't there must add no mass.
    [Fact]
    public void A_vocabulary_that_no_block_divides()
    {
        const int vocabulary = 152_064;
        const float temperature = 1.5f;
        float[] logits = new float[vocabulary];
        Array.Fill(logits, -15f);
        logits[vocabulary - 1] = 3;
        Results results = Forward(logits, [vocabulary - 1], temperature);
        double rest = (vocabulary - 1) * Math.Exp(-18 / temperature), expected = -Math.Log(1 + rest);
        Equal([expected], results.LogProb);
        Equal([rest / (1 + rest) * 18 / temperature - expected], results.Entropy);
    }

    // RL-Kernel 202f0e3, tests/test_reference_ops.py: 0 where the token is masked.
    [Fact]
    public void Masked_tokens_have_a_log_prob_of_0()
    {
        double lse = Math.Log(Math.Exp(1) + Math.Exp(2) + Math.Exp(3)), other = Math.Log(Math.Exp(0.5) + Math.Exp(-0.5) + Math.Exp(1.5));
        float[] logProb = Forward([1, 2, 3, 0.5f, -0.5f, 1.5f, 7, 8, 9], [2, 0, -100]).LogProb;
        Equal([3 - lse, 0.5 - other], logProb[..2]);
        Assert.Equal(0f, logProb[2]);
    }

    // In decimals, from the formulas; the gradients are those of the logits before the temperature.
    [Theory]
    [InlineData(1, 3.56145260129606, 0.750665483372828, 0.582714423016662,
        new[] { -1.56145260129606, -4.56145260129606, -3.06145260129606, -0.311452601296062, -7.56145260129606 },
        new[] { -0.209831048863, -0.0104468727754, -0.0468196355369, 0.267617676344, -0.000520119169101 }, new[] { 0.170128311358, 0.0398108081952, 0.108190210665, -0.321671751155, 0.0035424209367 })]
    [InlineData(0.7f, 4.81654877097603, 0.50238825181578, 0.726676353185531,
        new[] { -1.95940591383317, -6.24512019954746, -4.10226305669032, -0.173691628118888, -10.5308344852617 },
        new[] { -0.201345896889, -0.00277128198436, -0.0236217327195, 0.227777054927, -3.81433342099e-05 }, new[] { 0.293364527942, 0.0159147295877, 0.0850352804646, -0.394697056371, 0.000382518376288 })]
    public void A_row_of_five(float temperature, double logSumExp, double entropy, double squares, double[] logProbs, double[] ofLogProb, double[] ofEntropy)
    {
        float[] row = [2, -1, 0.5f, 3.25f, -4], five = [.. row, .. row, .. row, .. row, .. row];
        Results results = Forward(five, [0, 1, 2, 3, 4], temperature);
        Equal(logProbs, results.LogProb);
        Equal([logSumExp, entropy, squares], [results.LogSumExp[0], results.Entropy[0], results.Squares[0]]);

        float[] saved = [results.LogSumExp[3]], savedEntropy = [results.Entropy[3]], gradient = new float[5];
        var state = new TokenSaved { LogSumExp = TensorView.Of(saved), Entropy = TensorView.Of(savedEntropy) };
        LogProbs.FromLogitsBackward(Device, Problem(row, [3], temperature), state, new() { LogProb = TensorView.Of((float[])[1]) }, TensorView.Of(gradient, 1, 5));
        // The temperature is no decimal in float32.
        Equal(ofLogProb, gradient);
        LogProbs.FromLogitsBackward(Device, Problem(row, [3], temperature), state, new() { Entropy = TensorView.Of((float[])[1]) }, TensorView.Of(gradient, 1, 5));
        Equal(ofEntropy, gradient);
    }
}
