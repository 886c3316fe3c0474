using Xunit;

namespace TransformerKernels.Tests;

public class LogProbsCode
{
    [Fact]
    public void The_gradient_of_a_cross_entropy_is_what_replaces_the_logits()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        float[] z = [0, MathF.Log(3), 0, 0, 5, 5, 5, 5], logProb = new float[2], logSumExp = new float[2];
        int[] y = [1, -100];
        TensorView logits = TensorView.Of(z, 2, 4), targets = TensorView.Of(y);
        // snippet: logprobs
        var problem = new LogitsProblem { Logits = logits, Targets = targets };
        LogProbs.FromLogits(device, problem, new TokenOutputs { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(logSumExp) });

        // Cross entropy: the mean of −log-prob over the tokens that count, here one.
        float[] upstream = [-1f, -1f];
        LogProbs.FromLogitsBackward(device, problem, new TokenSaved { LogSumExp = TensorView.Of(logSumExp) },
            new TokenUpstream { LogProb = TensorView.Of(upstream) }, logitsGradient: logits);
        // snippet ends

        Assert.Equal(Math.Log(0.5), logProb[0], 1e-6);
        Assert.Equal(0, logProb[1]);
        double[] expected = [1 / 6.0, -1 / 2.0, 1 / 6.0, 1 / 6.0, 0, 0, 0, 0];
        Assert.All(expected.Zip(z), pair => Assert.Equal(pair.First, pair.Second, 1e-6));
    }
}
