using Xunit;

namespace TransformerKernels.Tests;

public class AlignmentCode
{
    private static readonly ComputeDevice device = ComputeDevice.Cpu;

    [Fact]
    public void Dpo_pulls_at_both_answers_of_a_pair()
    {
        using var workspace = new Workspace(device);
        float[] chosen = [-10], rejected = [-12], referenceChosen = [-11], referenceRejected = [-11];
        // snippet: dpo
        float[] loss = new float[chosen.Length], chosenGradient = new float[chosen.Length], rejectedGradient = new float[chosen.Length];
        var metrics = new float[PreferenceMetrics.Count];
        PreferenceLoss.Evaluate(device,
            new PairBatch
            {
                Chosen = TensorView.Of(chosen),
                Rejected = TensorView.Of(rejected),
                ReferenceChosen = TensorView.Of(referenceChosen),
                ReferenceRejected = TensorView.Of(referenceRejected),
                Reduction = LossReduction.Mean,
            },
            new DpoSigmoid(beta: 0.1f, labelSmoothing: 0.05f),
            new PairOutputs { Loss = TensorView.Of(loss), ChosenGradient = TensorView.Of(chosenGradient), RejectedGradient = TensorView.Of(rejectedGradient) },
            TensorView.Of(metrics), workspace);
        // snippet ends

        double scaled = 0.1 * 2, expected = 0.95 * Math.Log(1 + Math.Exp(-scaled)) + 0.05 * Math.Log(1 + Math.Exp(scaled));
        double slope = 0.1 * (-0.95 / (1 + Math.Exp(scaled)) + 0.05 / (1 + Math.Exp(-scaled)));
        Assert.Equal(expected, loss[0], 1e-6);
        Assert.Equal(slope, chosenGradient[0], 1e-7);
        Assert.Equal(-slope, rejectedGradient[0], 1e-7);
        Assert.Equal(1, metrics[PreferenceMetrics.RewardAccuracy]);
    }

    [Fact]
    public void Ppo_stops_pulling_where_the_ratio_is_clipped()
    {
        using var workspace = new Workspace(device);
        float[] now = [0, MathF.Log(2), float.NaN], old = [0, 0, 0], advantages = [1, 1, 1];
        bool[] kept = [true, true, false];
        const int sequences = 1, tokens = 3;
        // snippet: ppo
        float[] gradient = new float[sequences * tokens], metrics = new float[PolicyMetrics.Count];
        PolicyLoss.Evaluate(device,
            new TokenBatch
            {
                LogProb = TensorView.Of(now, sequences, tokens),
                OldLogProb = TensorView.Of(old, sequences, tokens),
                Advantage = TensorView.Of(advantages, sequences, tokens),
                Mask = TensorView.Of(kept, sequences, tokens),
                Reduction = TokenReduction.TokenMean,
            },
            new PpoClip(lower: 0.2f, upper: 0.2f),
            new TokenLossOutputs { LogProbGradient = TensorView.Of(gradient, sequences, tokens) }, TensorView.Of(metrics), workspace);
        // snippet ends

        // Ratios 1 and 2, the second one clipped to 1.2: loss −(1 + 1.2) / 2.
        Assert.Equal(-1.1, metrics[PolicyMetrics.Loss], 1e-6);
        Assert.Equal(0.5, metrics[PolicyMetrics.ClipFraction], 1e-6);
        Assert.Equal([-0.5f, 0f, 0f], gradient);
    }

    [Fact]
    public void Advantages_step_over_a_masked_token()
    {
        float[] rewards = [0, 9, 1], values = [0.5f, 9, 0.5f];
        bool[] kept = [true, false, true];
        const int sequences = 1, tokens = 3;
        // snippet: gae
        float[] advantages = new float[sequences * tokens], returns = new float[sequences * tokens];
        GeneralizedAdvantage.Estimate(device,
            new AdvantageProblem
            {
                Rewards = TensorView.Of(rewards, sequences, tokens),
                Values = TensorView.Of(values, sequences, tokens),
                Mask = TensorView.Of(kept, sequences, tokens),
                Gamma = 1f,
                Lambda = 0.95f,
            },
            TensorView.Of(advantages, sequences, tokens), TensorView.Of(returns, sequences, tokens));
        // snippet ends

        float[] expected = [0.475f, 0, 0.5f], expectedReturns = [0.975f, 0, 1f];
        Assert.All(expected.Zip(advantages), pair => Assert.Equal(pair.First, pair.Second, 1e-6f));
        Assert.All(expectedReturns.Zip(returns), pair => Assert.Equal(pair.First, pair.Second, 1e-6f));
        // snippet: whiten
        GeneralizedAdvantage.Whiten(device, TensorView.Of(advantages, sequences, tokens), TensorView.Of(kept, sequences, tokens));
        // snippet ends
        Assert.Equal(0, advantages[0] + advantages[2], 1e-5);
    }
}
