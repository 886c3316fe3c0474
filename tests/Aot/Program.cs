using System.Runtime.CompilerServices;
using TransformerKernels;

// Calls every verb of the CPU once, as a program that was compiled ahead of time: dispatch through the abstract device, generic over structs of this
// program, needs no JIT. Every number is small enough to be checked by hand.
ComputeDevice device = ComputeDevice.OpenCpu(threads: 2);
using var workspace = new Workspace(device);
int wrong = 0;

// A pair (1, 0) at position 1 turns by 1 radian, and back.
float[] query = [5, 6, 1, 0];
using (RotaryTable table = RotaryTable.Build(device, rotarySize: 2, positions: 2))
{
    RotaryEmbedding.Apply(device, TensorView.Of(query, 1, 1, 2, 2), default, table);
    Expect("rotary embedding", query, [5, 6, (float)Math.Cos(1), (float)Math.Sin(1)]);
    RotaryEmbedding.Backward(device, TensorView.Of(query, 1, 1, 2, 2), default, table);
    Expect("rotary embedding, backward", query, [5, 6, 1, 0]);
}

// One query, two keys: scores 2 and 0, halved by one rule, multiplied by a captured ln 3 by the rule inside it: weights ¾ and ¼.
float[] q = [1, 0], k = [2, 0, 0, 7], v = [4, 0, 0, 8], output = new float[2], logSumExp = new float[1];
float[] gain = [(float)Math.Log(3)], gainGradient = new float[1], valueGradient = new float[4];
float[] upstream = [1, 0];
var attention = new AttentionProblem
{
    Query = TensorView.Of(q, 1, 1, 1, 2),
    Key = TensorView.Of(k, 1, 1, 2, 2),
    Value = TensorView.Of(v, 1, 1, 2, 2),
    Scale = 1f,
    Captured0 = CapturedTensor.PerHead(TensorView.Of(gain)),
};
var rule = new HalfOf<Gained>(default);
Attention.Forward(device, attention, rule, TensorView.Of(output, 1, 1, 1, 2), TensorView.Of(logSumExp, 1, 1, 1), workspace);
Expect("attention with a rule", output, [3, 2]);
Expect("log-sum-exp", logSumExp, [(float)Math.Log(4)]);
Attention.Backward(device, attention, rule, new AttentionSaved { Output = TensorView.Of(output, 1, 1, 1, 2), LogSumExp = TensorView.Of(logSumExp, 1, 1, 1) },
    new AttentionUpstream { Output = TensorView.Of(upstream, 1, 1, 1, 2) },
    new AttentionGradients { Value = TensorView.Of(valueGradient, 1, 1, 2, 2), Captured0 = TensorView.Of(gainGradient) }, workspace);
Expect("gradient of the values", valueGradient, [0.75f, 0, 0.25f, 0]);
Expect("gradient of the captured tensor", gainGradient, [0.75f * (4 - 3)]);
Attention.Forward(device, attention with { Captured0 = default }, TensorView.Of(output, 1, 1, 1, 2), TensorView.Of(logSumExp, 1, 1, 1), workspace);
Expect("attention without a rule", logSumExp, [(float)Math.Log(Math.Exp(2) + 1)]);

// Logits 0 and ln 3: probabilities ¼ and ¾.
float[] logits = [0, (float)Math.Log(3)], logProb = new float[1], total = new float[1], entropy = new float[1], one = [1];
int[] targets = [1];
var tokens = new LogitsProblem { Logits = TensorView.Of(logits, 1, 2), Targets = TensorView.Of(targets) };
LogProbs.FromLogits(device, tokens, new TokenOutputs { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(total), Entropy = TensorView.Of(entropy) });
Expect("log-prob", logProb, [(float)Math.Log(0.75)]);
Expect("entropy", entropy, [(float)-(0.25 * Math.Log(0.25) + 0.75 * Math.Log(0.75))]);
LogProbs.FromLogitsBackward(device, tokens, new TokenSaved { LogSumExp = TensorView.Of(total) }, new TokenUpstream { LogProb = TensorView.Of(one) }, TensorView.Of(logits, 1, 2));
Expect("gradient of the logits", logits, [-0.25f, 0.25f]);

// The same distribution from a hidden state of 1 and a vocabulary of 0 and ln 3; the gradient of the hidden state is (1 − ¾) ln 3.
float[] hidden = [1], entries = [0, (float)Math.Log(3)], hiddenGradient = new float[1], entriesGradient = new float[2];
LogProbs.FromLogits(entries, targets, logProb);
Expect("log-prob from arrays", logProb, [(float)Math.Log(0.75)]);
var states = new HiddenProblem { Hidden = TensorView.Of(hidden, 1, 1), Vocabulary = TensorView.Of(entries, 2, 1), Targets = TensorView.Of(targets) };
LogProbs.TrainFromHidden(device, states, new TokenUpstream { LogProb = TensorView.Of(one) }, new TokenOutputs { LogProb = TensorView.Of(logProb) },
    new HiddenGradients { Hidden = TensorView.Of(hiddenGradient, 1, 1), Vocabulary = TensorView.Of(entriesGradient, 2, 1) }, workspace);
Expect("log-prob from a hidden state", logProb, [(float)Math.Log(0.75)]);
Expect("gradients of hidden state and vocabulary", [.. hiddenGradient, .. entriesGradient], [0.25f * (float)Math.Log(3), -0.25f, 0.25f]);

// A margin of ln 3 with β = 1: loss −ln ¾, gradient −¼. The same formula, written by this program.
float[] chosen = [(float)Math.Log(3)], rejected = [0], loss = new float[1], chosenGradient = new float[1], metrics = new float[PreferenceMetrics.Count];
var pairs = new PairBatch { Chosen = TensorView.Of(chosen), Rejected = TensorView.Of(rejected) };
var outputs = new PairOutputs { Loss = TensorView.Of(loss), ChosenGradient = TensorView.Of(chosenGradient) };
PreferenceLoss.Evaluate(device, pairs, new DpoSigmoid(beta: 1), outputs, TensorView.Of(metrics), workspace);
Expect("DPO", [.. loss, .. chosenGradient, metrics[PreferenceMetrics.RewardAccuracy]], [(float)-Math.Log(0.75), -0.25f, 1]);
PreferenceLoss.Evaluate(device, pairs, new OwnLoss(), outputs, TensorView.Of(metrics), workspace);
Expect("a loss of this program", [.. loss, .. chosenGradient], [(float)-Math.Log(0.75), -0.25f]);

// The ratio 1.5 is clipped to 1.2 where the advantage is positive: no gradient.
float[] now = [(float)Math.Log(1.5), 0], old = [0, 0], advantage = [1, -1], tokenLoss = new float[2], tokenGradient = new float[2];
var policy = new TokenBatch { LogProb = TensorView.Of(now, 1, 2), OldLogProb = TensorView.Of(old, 1, 2), Advantage = TensorView.Of(advantage, 1, 2) };
PolicyLoss.Evaluate(device, policy, new PpoClip(), new TokenLossOutputs { Loss = TensorView.Of(tokenLoss, 1, 2), LogProbGradient = TensorView.Of(tokenGradient, 1, 2) }, default, workspace);
Expect("PPO", [.. tokenLoss, .. tokenGradient], [-1.2f, 1, 0, 0.5f]);

float[] rewards = [0, 1], values = [0.5f, 0.5f], advantages = new float[2], returns = new float[2];
GeneralizedAdvantage.Estimate(device, new AdvantageProblem { Rewards = TensorView.Of(rewards, 1, 2), Values = TensorView.Of(values, 1, 2) }, TensorView.Of(advantages, 1, 2), TensorView.Of(returns, 1, 2));
Expect("advantages and returns", [.. advantages, .. returns], [0.5f, 0.5f, 1, 1]);
float[] whitened = [1, 3];
GeneralizedAdvantage.Whiten(device, TensorView.Of(whitened, 1, 2));
Expect("whitening", whitened, [(float)-Math.Sqrt(0.5), (float)Math.Sqrt(0.5)]);

Console.WriteLine($"{(wrong == 0 ? "OK" : $"{wrong} WRONG")}: {device.Name}, {(RuntimeFeature.IsDynamicCodeCompiled ? "compiled just in time" : "compiled ahead of time")}");
return wrong == 0 ? 0 : 1;

void Expect(string what, float[] actual, float[] expected)
{
    const float tolerance = 2e-6f;
    if (actual.Length == expected.Length && actual.Zip(expected).All(pair => Math.Abs(pair.First - pair.Second) <= tolerance * Math.Max(1, Math.Abs(pair.Second))))
        return;
    wrong++;
    Console.Error.WriteLine($"{what}: {string.Join(", ", actual)}; expected {string.Join(", ", expected)}");
}

internal readonly struct HalfOf<TInner>(TInner inner) : IScoreRule where TInner : unmanaged, IScoreRule
{
    private readonly TInner inner = inner;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => inner.Score(0.5f * score, at.Shift(0));
}

internal readonly struct Gained : IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => at.Captured0 * score;
}

internal readonly struct OwnLoss : IPairLoss
{
    public float RewardScale => 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T> => -T.Log(T.Sigmoid(pair.Margin));
}
