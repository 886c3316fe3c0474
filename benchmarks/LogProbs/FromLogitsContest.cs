using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Log-prob of the target, log-sum-exp and entropy of every row of logits; or, backward, the gradient of the log-probs in place of the logits.</summary>
internal sealed class FromLogitsContest : Contest
{
    // Noise of ±8 makes some tokens a million times likelier than others, as a language model does.
    private const float LogitScale = 8;

    // The check looks at the last rows.
    private const int CheckedRows = 4;

    // What a token needs besides its logits: the target, and three results forward; the target, log-sum-exp and upstream backward.
    private const int ForwardBytesPerToken = sizeof(long) + 3 * sizeof(float), BackwardBytesPerToken = sizeof(long) + 2 * sizeof(float);

    private readonly int tokens, vocabulary;
    private readonly bool backward, isNarrow;
    private readonly TensorBuffer logits, targets, logProb, logSumExp, entropy, upstream;
    private readonly TensorBuffer? original;

    /// <param name="device">Where ours runs.</param>
    /// <param name="tokens">Rows.</param>
    /// <param name="vocabulary">Columns.</param>
    /// <param name="backward">Whether it is the gradient that is timed.</param>
    /// <param name="isNarrow">Whether logits are bfloat16.</param>
    /// <param name="keepsRemainder">Whether the forward pass saves what rounding took from the log-sum-exp.</param>
    public FromLogitsContest(ComputeDevice device, int tokens, int vocabulary, bool backward, bool isNarrow = false, bool keepsRemainder = false) : base(device)
    {
        (this.tokens, this.vocabulary, this.backward, this.isNarrow) = (tokens, vocabulary, backward, isNarrow);
        logits = isNarrow ? NoisyBFloat16(1, LogitScale, tokens, vocabulary) : Noisy(1, LogitScale, tokens, vocabulary);
        targets = Own(device.Allocate(ElementType.Int64, tokens));
        Span<long> target = targets.AsSpan<long>();
        for (int token = 0; token < tokens; token++)
            target[token] = (long)((Noise.At(2, token) + 1) / 2 * vocabulary);
        logProb = Zeros(tokens);
        logSumExp = keepsRemainder ? Zeros(tokens, 2) : Zeros(tokens);
        entropy = Zeros(tokens);
        upstream = Noisy(3, 1, tokens);
        if (backward)
        {
            original = Noisy(1, LogitScale, tokens, vocabulary);
            LogProbs.FromLogits(device, Problem, new TokenOutputs { LogSumExp = logSumExp });
        }
    }

    public static Cost CostOf(long tokens, long vocabulary, bool backward, bool isNarrow = false) =>
        Cost.Logits(tokens, vocabulary, backward, backward ? BackwardBytesPerToken : ForwardBytesPerToken, isNarrow ? sizeof(ushort) : sizeof(float));

    public override void Run()
    {
        if (backward)
            LogProbs.FromLogitsBackward(Device, Problem, new TokenSaved { LogSumExp = logSumExp }, new TokenUpstream { LogProb = upstream }, logits);
        else
            LogProbs.FromLogits(Device, Problem, new TokenOutputs { LogProb = logProb, LogSumExp = logSumExp, Entropy = entropy });
    }

    public override void Restore()
    {
        if (original is not null)
            original.AsSpan<float>().CopyTo(logits.AsSpan<float>());
    }

    public override double Check()
    {
        int first = tokens - CheckedRows;
        Grid<double> rows = isNarrow
            ? new(Array.ConvertAll(logits.AsSpan<BFloat16>()[(first * vocabulary)..].ToArray(), x => (double)x.ToSingle()), CheckedRows, vocabulary)
            : Grid.Of((original ?? logits).AsSpan<float>()[(first * vocabulary)..], CheckedRows, vocabulary);
        ReadOnlySpan<long> target = targets.AsSpan<long>()[first..];
        if (backward)
        {
            double[] arriving = Array.ConvertAll(upstream.AsSpan<float>()[first..].ToArray(), x => (double)x);
            return Contract.Check(logits.AsSpan<float>()[(first * vocabulary)..], LogProbsOracle.Backward<double>(rows, target, arriving, null, null).Data,
                LogProbsOracle.Backward<float>(rows, target, arriving, null, null).Data, Contract.Gradient, "gradient");
        }
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(rows, target);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(rows, target);
        return new[]
        {
            Contract.Check(logProb.AsSpan<float>()[first..], oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob"),
            Contract.Check(logSumExp.AsSpan<float>()[first..], oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp"),
            Contract.Check(entropy.AsSpan<float>()[first..], oracle.Entropy, naive.Entropy, Contract.Forward, "entropy"),
        }.Max();
    }

    public override IEnumerable<Peer> Peers()
    {
        Restore();
        Tensor z = TorchPeer.Copy(logits), y = TorchPeer.Copy(targets), column = y.unsqueeze(1);
        if (!backward)
        {
            yield return new("log_softmax + gather + entropy", () =>
            {
                Tensor logP = nn.functional.log_softmax(z, -1);
                logP.gather(-1, column);
                logP.exp().mul_(logP).sum(-1).neg_();
            });
            yield return new("cross_entropy, no entropy", () => nn.functional.cross_entropy(z, y, reduction: nn.Reduction.None));
            yield break;
        }
        z.requires_grad_(true);
        Tensor arriving = TorchPeer.Copy(upstream);
        Tensor gathered = nn.functional.log_softmax(z, -1).gather(-1, column).squeeze(1);
        yield return new("log_softmax + gather, backward", () => autograd.grad([gathered], [z], [arriving], retain_graph: true));
        Tensor losses = nn.functional.cross_entropy(z, y, reduction: nn.Reduction.None);
        yield return new("cross_entropy, backward", () => autograd.grad([losses], [z], [arriving], retain_graph: true));
    }

    private LogitsProblem Problem => new() { Logits = logits, Targets = targets };
}
