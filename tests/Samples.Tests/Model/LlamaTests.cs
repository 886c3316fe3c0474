using TransformerKernels;
using Xunit;

namespace Alignment.Tests;

public class LlamaTests
{
    [Fact]
    public void Gradient_of_the_preference_loss_matches_finite_differences()
    {
        using ModelMaths maths = MathsUnderTest.Open();
        using Llama model = SmallModel.Create(maths);
        using var logProbs = new AnswerLogProbs(model, trainable: true);
        using var loss = new DirectPreferenceLoss(model, logProbs, new DpoSigmoid(0.5f));
        List<ScoredPair> pairs = SmallModel.Pairs(6);
        loss.Step(pairs);
        float[] gradients = model.Parameters.Gradients.ToArray<float>();

        // Along the gradient the loss grows by the square of its norm a unit.
        double square = gradients.Sum(g => (double)g * g), step = 1e-3 / Math.Sqrt(square);
        float[] weights = model.Parameters.Values.ToArray<float>();
        double Loss(double at)
        {
            model.Parameters.Values.CopyFrom<float>([.. weights.Zip(gradients, (weight, gradient) => (float)(weight + at * gradient))]);
            loss.Step(pairs);
            return loss.Metrics[PreferenceMetrics.Loss];
        }
        double slope = (Loss(step) - Loss(-step)) / (2 * step);
        Assert.InRange(slope / square, 0.99, 1.01);
    }

    [Fact]
    public void Padding_changes_no_log_prob()
    {
        using ModelMaths maths = MathsUnderTest.Open();
        using Llama model = SmallModel.Create(maths);
        using var logProbs = new AnswerLogProbs(model, trainable: false);
        List<Example> examples = SmallModel.Examples(7);
        float[] together = logProbs.Score(examples, 7), alone = logProbs.Score(examples, 1);
        for (int i = 0; i < examples.Count; i++)
            Assert.Equal(alone[i], together[i], 1e-5f * Math.Abs(alone[i]));
    }

    [Fact]
    public void A_sequence_beyond_the_context_or_a_token_beyond_the_vocabulary_is_refused()
    {
        using ModelMaths maths = MathsUnderTest.Open();
        using Llama model = SmallModel.Create(maths);
        using var run = new Activations(model.Device, SmallModel.Shape, keep: false);
        Assert.Contains("context is 16", Assert.Throws<ArgumentException>(() => Forward(new int[17])).Message);
        Assert.Throws<ArgumentOutOfRangeException>(() => Forward([SmallModel.Shape.Vocabulary]));

        void Forward(int[] tokens)
        {
            using var batch = new TokenBatch(model.Device);
            batch.Fill(tokens, 1);
            model.Forward(batch, run);
        }
    }
}
