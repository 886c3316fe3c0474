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

    [Fact]
    public void Slices_of_a_vocabulary_are_merged_and_differentiated()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        const int slice = 2, rank = 1;
        float[] h = [1], v = [0, MathF.Log(2), MathF.Log(3), MathF.Log(4)], all = new float[2 * ShardPartials.Count], sums = new float[ShardPartials.Count], p = new float[1], H = new float[1], arriving = [1], dh = [0], dv = new float[2];
        HiddenProblem Of(int rank) => new() { Hidden = TensorView.Of(h, 1, 1), Vocabulary = TensorView.Of(v, 4, 1).Slice(0, rank * slice, slice), Targets = TensorView.Of((int[])[3]) };
        TensorView gathered = TensorView.Of(all, 2, 1, ShardPartials.Count), partials = gathered.Select(0, rank), merged = TensorView.Of(sums, 1, ShardPartials.Count);
        TensorView logProb = TensorView.Of(p), entropy = TensorView.Of(H), hiddenPart = TensorView.Of(dh, 1, 1), vocabularyGradient = TensorView.Of(dv, 2, 1);
        var upstream = new TokenUpstream { LogProb = TensorView.Of(arriving) };
        VocabularyShards.FromHidden(device, Of(0), new(0, 2 * slice), gathered.Select(0, 0), workspace);
        HiddenProblem problem = Of(rank);
        // snippet: logprobs-shards
        // problem: hidden states [n, W], this slice of the vocabulary [slice, W], targets [n]. partials, merged: [n, 8]. logProb, entropy: [n]. hiddenPart: [n, W]. vocabularyGradient: [slice, W].
        var shard = new VocabularyShard(First: rank * slice, Whole: 2 * slice);
        VocabularyShards.FromHidden(device, problem, shard, partials, workspace);               // targets are indices in the whole vocabulary
        // ... gather the partials of all slices, in their order: [slices, n, 8] ...
        VocabularyShards.Merge(device, gathered, new TokenOutputs { LogProb = logProb, Entropy = entropy }, merged);
        VocabularyShards.FromHiddenBackward(device, problem, shard, merged, upstream, new HiddenGradients { Hidden = hiddenPart, Vocabulary = vocabularyGradient }, workspace);
        // snippet ends

        Assert.Equal(Math.Log(0.4), p[0], 1e-6);
        Assert.Equal(-0.1 * Math.Log(0.1) - 0.2 * Math.Log(0.2) - 0.3 * Math.Log(0.3) - 0.4 * Math.Log(0.4), H[0], 1e-6);
        Assert.Equal(-0.3, dv[0], 1e-6);
        Assert.Equal(0.6, dv[1], 1e-6);
        Assert.Equal(-0.3 * Math.Log(3) + 0.6 * Math.Log(4), dh[0], 1e-6);
    }

    [Fact]
    public void Dpo_goes_from_hidden_states_to_their_gradients()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        float[] h = [1, 1], old = [0, 0], v = [0, MathF.Log(3)], dh = new float[2], numbers = new float[6], measured = new float[PreferenceMetrics.Count];
        HiddenProblem Of(float[] hidden) => new() { Hidden = TensorView.Of(hidden, 2, 1), Vocabulary = TensorView.Of(v, 2, 1), Targets = TensorView.Of((int[])[1, 0]) };
        HiddenProblem policy = Of(h), reference = Of(old);
        TensorView cumulativeLengths = TensorView.Of((int[])[0, 1, 2]), answerTokens = TensorView.Of((bool[])[true, true]), metrics = TensorView.Of(measured), all = TensorView.Of(numbers, 6, 1);
        TensorView chosen = all.Select(0, 0), rejected = all.Select(0, 1), referenceChosen = all.Select(0, 2), referenceRejected = all.Select(0, 3), ofChosen = all.Select(0, 4), ofRejected = all.Select(0, 5);
        var gradients = new HiddenGradients { Hidden = TensorView.Of(dh, 2, 1) };
        // snippet: logprobs-preference
        // policy, reference: a HiddenProblem of hidden states [tokens, W], vocabulary [V, W], targets [tokens]. cumulativeLengths: [2n + 1]. answerTokens: bool [tokens].
        // chosen ... referenceRejected, ofChosen, ofRejected: [n]. metrics: [PreferenceMetrics.Count]. gradients: of hidden states [tokens, W] and vocabulary [V, W].
        // 2n sequences: first the chosen answers, then the rejected ones. Tokens outside the answers are dropped before any product.
        var problem = new PreferenceProblem { Policy = policy, Reference = reference, CumulativeLengths = cumulativeLengths, Mask = answerTokens };
        PreferenceLogProbs.FromHidden(device, problem, new PreferenceOutputs { Chosen = chosen, Rejected = rejected, ReferenceChosen = referenceChosen, ReferenceRejected = referenceRejected }, workspace);
        PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosen, Rejected = rejected, ReferenceChosen = referenceChosen, ReferenceRejected = referenceRejected },
            new DpoSigmoid(beta: 0.1f), new PairOutputs { ChosenGradient = ofChosen, RejectedGradient = ofRejected }, metrics, workspace);
        PreferenceLogProbs.FromHiddenBackward(device, problem, new PreferenceUpstream { Chosen = ofChosen, Rejected = ofRejected }, gradients, workspace);
        // snippet ends

        Assert.Equal([Math.Log(0.75), Math.Log(0.25), Math.Log(0.5), Math.Log(0.5)], numbers[..4].Select(x => (double)x), (expected, actual) => Math.Abs(expected - actual) < 1e-6);
        double slope = -0.1 / (1 + Math.Pow(3, 0.1));
        Assert.Equal(slope * 0.25 * Math.Log(3), dh[0], 1e-6);
        Assert.Equal(slope * 0.75 * Math.Log(3), dh[1], 1e-6);
    }
}
