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

    [Fact]
    public void Arrays_are_enough()
    {
        float[] logits = [0, MathF.Log(3), 5, 5], logProbs = new float[2], entropies = new float[2];
        int[] targets = [1, 0];
        // snippet: logprobs-arrays
        LogProbs.FromLogits(logits, targets, logProbs, entropies);      // spans of float and int; on all processors of this machine
        // snippet ends

        Assert.Equal(Math.Log(0.75), logProbs[0], 1e-6);
        Assert.Equal(Math.Log(2), entropies[1], 1e-6);
    }

    [Fact]
    public void Training_takes_hidden_states_and_the_vocabulary()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        float[] h = [1, 0], v = [0, 7, MathF.Log(3), 7], p = new float[1], upstream = [-1], dh = new float[2], dv = [1, 1, 1, 1];
        TensorView hidden = TensorView.Of(h, 1, 2), vocabulary = TensorView.Of(v, 2, 2), targets = TensorView.Of((int[])[1]), minusOneNth = TensorView.Of(upstream), logProb = TensorView.Of(p);
        TensorView hiddenGradient = TensorView.Of(dh, 1, 2), vocabularyGradient = TensorView.Of(dv, 2, 2);
        // snippet: logprobs-hidden
        var problem = new HiddenProblem { Hidden = hidden, Vocabulary = vocabulary, Targets = targets };
        LogProbs.TrainFromHidden(device, problem, new TokenUpstream { LogProb = minusOneNth }, new TokenOutputs { LogProb = logProb },
            new HiddenGradients { Hidden = hiddenGradient, Vocabulary = vocabularyGradient, Accumulate = true }, workspace);
        // snippet ends

        Assert.Equal(Math.Log(0.75), p[0], 1e-6);
        double[] expected = [-0.25 * Math.Log(3), 0, 1.25, 1, 0.75, 1];
        Assert.All(expected.Zip(dh.Concat(dv)), pair => Assert.Equal(pair.First, pair.Second, 1e-5));
    }
}
