using System.Runtime.CompilerServices;
using Xunit;

namespace TransformerKernels.Tests;

// snippet: own-rule
/// <summary>s − softplus(w) ln(1 + |distance|): scores fade with distance, each head learns how fast (KERPLE's logarithmic form).</summary>
public readonly struct LearnedFading : IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
        => score - T.Softplus(at.Captured0) * T.Log1p(T.Abs(at.Distance));
}
// snippet ends

// snippet: own-loss
/// <summary>max(0, 1 − β m): only pairs with a margin below 1/β pull (SLiC's hinge).</summary>
public readonly struct Hinge(float beta) : IPairLoss
{
    public float RewardScale => beta;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => T.Relu(1f - beta * pair.Margin);
}
// snippet ends

public class ReadmeCode
{
    [Fact]
    public void Quick_start_runs()
    {
        // snippet: quick-start
        const int heads = 8, keyHeads = 2, tokens = 200, headSize = 64;
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        var random = new Random(1);
        Console.WriteLine(device.Name); // CPU, 2 threads, 512-bit vectors: what the machine has

        // Queries and keys get their positions, in place, in one pass.
        using TensorBuffer query = Noise(1, heads, tokens, headSize), key = Noise(1, keyHeads, tokens, headSize), value = Noise(1, keyHeads, tokens, headSize);
        using RotaryTable rope = RotaryTable.Build(device, rotarySize: headSize, positions: tokens);
        RotaryEmbedding.Apply(device, query, key, rope);

        // Exact attention with a learned bias per head and distance; nothing of the size tokens x tokens is ever stored.
        using TensorBuffer bias = Noise(heads, 2 * tokens - 1);
        using TensorBuffer output = Zeros(1, heads, tokens, headSize), logSumExp = Zeros(1, heads, tokens);
        var problem = new AttentionProblem { Query = query, Key = key, Value = value, Causal = true, DistanceBias = bias };
        Attention.Forward(device, problem, output, logSumExp, workspace);

        // Its gradients, that of the bias included.
        using TensorBuffer upstream = Noise(1, heads, tokens, headSize), queryGradient = Zeros(1, heads, tokens, headSize);
        using TensorBuffer keyGradient = Zeros(1, keyHeads, tokens, headSize), valueGradient = Zeros(1, keyHeads, tokens, headSize);
        using TensorBuffer biasGradient = Zeros(heads, 2 * tokens - 1);
        Attention.Backward(device, problem,
            new AttentionSaved { Output = output, LogSumExp = logSumExp },
            new AttentionUpstream { Output = upstream },
            new AttentionGradients { Query = queryGradient, Key = keyGradient, Value = valueGradient, DistanceBias = biasGradient },
            workspace);
        Console.WriteLine($"bias gradient of head 0 at distance 0: {biasGradient.AsSpan<float>()[tokens - 1]:F4}"); // 0.1052

        // A preference loss over plain arrays: value, gradients and metrics in one pass.
        float[] chosen = [-10f, -12f], rejected = [-11f, -15f], referenceChosen = [-11f, -13f], referenceRejected = [-10.5f, -13f];
        float[] loss = new float[2], gradient = new float[2], metrics = new float[PreferenceMetrics.Count];
        var pairs = new PairBatch
        {
            Chosen = TensorView.Of(chosen),
            Rejected = TensorView.Of(rejected),
            ReferenceChosen = TensorView.Of(referenceChosen),
            ReferenceRejected = TensorView.Of(referenceRejected),
        };
        PreferenceLoss.Evaluate(device, pairs, new DpoSigmoid(beta: 0.1f),
            new PairOutputs { Loss = TensorView.Of(loss), ChosenGradient = TensorView.Of(gradient) }, TensorView.Of(metrics), workspace);
        Console.WriteLine($"DPO loss {metrics[PreferenceMetrics.Loss]:F4}, reward margin {metrics[PreferenceMetrics.RewardMargin]:F4}"); // 0.5877, 0.2250

        TensorBuffer Zeros(params ReadOnlySpan<long> shape) => device.Allocate(ElementType.Float32, shape);

        TensorBuffer Noise(params ReadOnlySpan<long> shape)
        {
            TensorBuffer buffer = Zeros(shape);
            foreach (ref float x in buffer.AsSpan<float>())
                x = random.NextSingle() - 0.5f;
            return buffer;
        }
        // snippet ends

        // Margins 1.5 and 3 at beta 0.1.
        Assert.Equal((Math.Log(1 + Math.Exp(-0.15)) + Math.Log(1 + Math.Exp(-0.3))) / 2, metrics[PreferenceMetrics.Loss], 1e-6);
        Assert.Equal(0.225, metrics[PreferenceMetrics.RewardMargin], 1e-6);
        // A softmax doesn't notice a constant: the gradient of a head's bias sums to zero.
        Assert.Equal(0, biasGradient.AsSpan<float>()[..(2 * tokens - 1)].ToArray().Sum(x => (double)x), 1e-3);
        Assert.Equal(0.1052, biasGradient.AsSpan<float>()[tokens - 1], 5e-5);
    }

    [Fact]
    public void Log_probs_are_summed_by_answer_and_its_gradient_is_spread_over_its_tokens()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        float[] p = [-1, -2, float.NaN, -4, -8], total = new float[2], arriving = [3, 5], spread = new float[5];
        TensorView logProb = TensorView.Of(p), sums = TensorView.Of(total), ofSums = TensorView.Of(arriving), gradient = TensorView.Of(spread);
        TensorView cumulativeLengths = TensorView.Of((int[])[0, 3, 5]), answerTokens = TensorView.Of((bool[])[true, true, false, false, true]);
        // snippet: logprobs-sequences
        // logProb, gradient: float32 [tokens]. cumulativeLengths: int32 [sequences + 1]. answerTokens: bool [tokens]. sums, ofSums: float32 [sequences].
        var layout = new SequenceLayout { CumulativeLengths = cumulativeLengths, Mask = answerTokens };
        SequenceLogProbs.Reduce(device, logProb, layout, new SequenceOutputs { Sum = sums });
        SequenceLogProbs.Backward(device, layout, new SequenceUpstream { Sum = ofSums }, gradient);
        // snippet ends

        Assert.Equal([-3f, -8f], total);
        Assert.Equal([3f, 3f, 0f, 0f, 5f], spread);
    }

    [Fact]
    public void T5_adds_the_bias_of_the_distances_bucket_to_unscaled_scores_of_what_is_no_padding()
    {
        const int heads = 2, tokens = 40, seen = 30, headSize = 8, buckets = 32;
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        float[] q = Seeded.Normal(heads * tokens * headSize, 1), k = Seeded.Normal(heads * tokens * headSize, 2), v = Seeded.Normal(heads * tokens * headSize, 3), t = Seeded.Normal(buckets * heads, 4);
        float[] got = new float[q.Length], l = new float[heads * tokens], expected = new float[q.Length], line = new float[heads * (tokens + seen - 1)];
        TensorView query = TensorView.Of(q, 1, heads, tokens, headSize), key = TensorView.Of(k, 1, heads, tokens, headSize), value = TensorView.Of(v, 1, heads, tokens, headSize);
        TensorView table = TensorView.Of(t, buckets, heads), output = TensorView.Of(got, 1, heads, tokens, headSize), logSumExp = TensorView.Of(l, 1, heads, tokens);
        TensorView visible = TensorView.Of([.. Enumerable.Range(0, tokens).Select(token => token < seen)], 1, 1, 1, tokens);
        // snippet: attention-t5
        // query, key, value: [b, h, S, d]. table: [32, h]. visible: bool [b, 1, 1, S], which keys are no padding.
        var problem = new AttentionProblem
        {
            Query = query, Key = key, Value = value, Scale = 1, Mask = visible,
            BucketedBias = new BucketedBias(table, maximumDistance: 128, bidirectional: true),
        };
        Attention.Forward(device, problem, output, logSumExp, workspace);
        // snippet ends

        for (int head = 0; head < heads; head++)
        {
            for (int distance = 1 - tokens; distance < seen; distance++)
                line[(head * (tokens + seen - 1)) + distance + tokens - 1] = t[(BucketedBias.Bucket(distance, buckets, 128, bidirectional: true) * heads) + head];
        }
        Attention.Forward(device, new AttentionProblem
        {
            Query = query,
            Key = key.Slice(2, 0, seen),
            Value = value.Slice(2, 0, seen),
            Scale = 1,
            QueryOffset = 0,
            DistanceBias = TensorView.Of(line, heads, tokens + seen - 1),
            DistanceCentre = tokens - 1,
        }, TensorView.Of(expected, 1, heads, tokens, headSize), default, workspace);
        Assert.All(expected.Zip(got), pair => Assert.Equal(pair.First, pair.Second, 1e-5));
    }

    [Fact]
    public void Own_rule_takes_part_in_attention_and_its_captured_tensor_gets_the_gradient_of_finite_differences()
    {
        const int heads = 2, tokens = 33, headSize = 16;
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        float[] query = Seeded.Normal(heads * tokens * headSize, 1), key = Seeded.Normal(heads * tokens * headSize, 2), value = Seeded.Normal(heads * tokens * headSize, 3);
        float[] output = new float[query.Length], logSumExp = new float[heads * tokens], upstream = Seeded.Normal(query.Length, 4);
        float[] fading = [0.3f, -0.7f], fadingGradient = new float[heads];

        double Loss()
        {
            var problem = new AttentionProblem
            {
                Query = TensorView.Of(query, 1, heads, tokens, headSize),
                Key = TensorView.Of(key, 1, heads, tokens, headSize),
                Value = TensorView.Of(value, 1, heads, tokens, headSize),
                Captured0 = CapturedTensor.PerHead(TensorView.Of(fading)),
            };
            Attention.Forward(device, problem, new LearnedFading(), TensorView.Of(output, 1, heads, tokens, headSize), TensorView.Of(logSumExp, 1, heads, tokens), workspace);
            return output.Zip(upstream, (o, u) => (double)o * u).Sum();
        }

        Loss();
        TensorView q = TensorView.Of(query, 1, heads, tokens, headSize), k = TensorView.Of(key, 1, heads, tokens, headSize), v = TensorView.Of(value, 1, heads, tokens, headSize);
        var saved = new AttentionSaved { Output = TensorView.Of(output, 1, heads, tokens, headSize), LogSumExp = TensorView.Of(logSumExp, 1, heads, tokens) };
        var arriving = new AttentionUpstream { Output = TensorView.Of(upstream, 1, heads, tokens, headSize) };
        TensorView learned = TensorView.Of(fading), learnedGradient = TensorView.Of(fadingGradient);
        // snippet: own-rule-call
        // q, k, v, saved.Output, arriving.Output: [b, h, S, d]. saved.LogSumExp: [b, h, S]. learned, learnedGradient: [h]. All float32.
        var problem = new AttentionProblem { Query = q, Key = k, Value = v, Captured0 = CapturedTensor.PerHead(learned) };
        Attention.Forward(device, problem, new LearnedFading(), saved.Output, saved.LogSumExp, workspace);
        Attention.Backward(device, problem, new LearnedFading(), saved, arriving, new AttentionGradients { Captured0 = learnedGradient }, workspace);
        // snippet ends

        for (int head = 0; head < heads; head++)
        {
            const float step = 1 / 64f;
            float kept = fading[head];
            fading[head] = kept + step;
            double above = Loss();
            fading[head] = kept - step;
            double below = Loss();
            fading[head] = kept;
            Assert.Equal((above - below) / (2 * step), fadingGradient[head], 5e-3);
        }
    }

    [Fact]
    public void Own_loss_gives_the_value_and_the_gradient_of_its_formula()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        float[] chosen = [1, 4, 12], rejected = [0, 0, 0], loss = new float[3], gradient = new float[3];
        var pairs = new PairBatch { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) };
        var outputs = new PairOutputs { Loss = TensorView.Of(loss), ChosenGradient = TensorView.Of(gradient) };
        // snippet: own-loss-call
        // pairs: a PairBatch of log-probs [n], as above. outputs: a PairOutputs of tensors [n]: the loss, the gradient of each log-prob.
        PreferenceLoss.Evaluate(device, pairs, new Hinge(beta: 0.125f), outputs, metrics: default, workspace);
        // snippet ends

        Assert.Equal([0.875f, 0.5f, 0f], loss);
        Assert.Equal([-0.125f / 3, -0.125f / 3, 0f], gradient);
    }
}
