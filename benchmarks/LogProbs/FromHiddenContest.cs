using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Log-prob of the target and entropy from hidden states and vocabulary; or training: log-prob, and the gradients of both in the same call.</summary>
internal sealed class FromHiddenContest : Contest
{
    // Hidden states of ±1 and this give logits of about ±5.
    private const float VocabularyScale = 0.25f;

    // The check looks at the last tokens.
    private const int CheckedTokens = 2;

    private readonly int tokens, width, vocabulary;
    private readonly bool train;
    private readonly TensorBuffer hidden, entries, targets, logProb, entropy, upstream;
    private readonly TensorBuffer? ofHidden, ofEntries;

    public FromHiddenContest(ComputeDevice device, int tokens, int width, int vocabulary, bool train) : base(device)
    {
        (this.tokens, this.width, this.vocabulary, this.train) = (tokens, width, vocabulary, train);
        hidden = Noisy(1, 1, tokens, width);
        entries = Noisy(2, VocabularyScale, vocabulary, width);
        targets = Own(device.Allocate(ElementType.Int64, tokens));
        Span<long> target = targets.AsSpan<long>();
        for (int token = 0; token < tokens; token++)
            target[token] = (long)((Noise.At(3, token) + 1) / 2 * vocabulary);
        logProb = Zeros(tokens);
        entropy = Zeros(tokens);
        upstream = Zeros(tokens);
        upstream.AsSpan<float>().Fill(-1f / tokens);
        if (!train)
            return;
        ofHidden = Zeros(tokens, width);
        ofEntries = Zeros(vocabulary, width);
        // Memory that nobody has touched yet would count as ours.
        ofHidden.AsSpan<float>().Fill(1);
        ofEntries.AsSpan<float>().Fill(1);
    }

    public override void Run()
    {
        if (train)
            LogProbs.TrainFromHidden(Device, Problem, new TokenUpstream { LogProb = upstream }, new TokenOutputs { LogProb = logProb }, new HiddenGradients { Hidden = ofHidden!, Vocabulary = ofEntries! }, Workspace);
        else
            LogProbs.FromHidden(Device, Problem, new TokenOutputs { LogProb = logProb, Entropy = entropy }, Workspace);
    }

    // The oracle's loops, over the last tokens only: a vocabulary in double would fill the memory.
    public override double Check()
    {
        int first = tokens - CheckedTokens;
        ReadOnlySpan<long> target = targets.AsSpan<long>()[first..];
        Grid<double> exact = Grid.Zeros<double>(CheckedTokens, vocabulary), rough = Grid.Zeros<double>(CheckedTokens, vocabulary);
        ReadOnlySpan<float> h = hidden.AsSpan<float>()[(first * width)..];
        for (int i = 0; i < CheckedTokens; i++)
        {
            for (int j = 0; j < vocabulary; j++)
            {
                ReadOnlySpan<float> entry = entries.AsSpan<float>().Slice(j * width, width);
                double sum = 0;
                float single = 0;
                for (int w = 0; w < width; w++)
                {
                    sum += (double)h[i * width + w] * entry[w];
                    single += h[i * width + w] * entry[w];
                }
                (exact[i, j], rough[i, j]) = (sum, single);
            }
        }
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(exact, target);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(rough, target);
        double share = Contract.Check(logProb.AsSpan<float>()[first..], oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
        if (!train)
            return Math.Max(share, Contract.Check(entropy.AsSpan<float>()[first..], oracle.Entropy, naive.Entropy, Contract.Forward, "entropy"));

        double[] arriving = [.. Enumerable.Repeat((double)(-1f / tokens), CheckedTokens)];
        Grid<double> slopes = LogProbsOracle.Backward<double>(exact, target, arriving, null, null), gradient = Grid.Zeros<double>(CheckedTokens, width);
        Grid<float> roughSlopes = LogProbsOracle.Backward<float>(rough, target, arriving, null, null), roughGradient = Grid.Zeros<float>(CheckedTokens, width);
        for (int j = 0; j < vocabulary; j++)
        {
            ReadOnlySpan<float> entry = entries.AsSpan<float>().Slice(j * width, width);
            for (int i = 0; i < CheckedTokens; i++)
            {
                double slope = slopes[i, j];
                float roughSlope = roughSlopes[i, j];
                for (int w = 0; w < width; w++)
                {
                    gradient.Data[i * width + w] += slope * entry[w];
                    roughGradient.Data[i * width + w] += roughSlope * entry[w];
                }
            }
        }
        return Math.Max(share, Contract.Check(ofHidden!.AsSpan<float>()[(first * width)..], gradient.Data, roughGradient.Data, Contract.Gradient, "gradient of the hidden states"));
    }

    public override IEnumerable<Peer> Peers()
    {
        Tensor h = TorchPeer.Copy(hidden), v = TorchPeer.Copy(entries), y = TorchPeer.Copy(targets);
        if (!train)
        {
            yield return new("matmul + cross_entropy, no entropy", () => nn.functional.cross_entropy(h.matmul(v.t()), y, reduction: nn.Reduction.None));
            yield break;
        }
        h.requires_grad_(true);
        v.requires_grad_(true);
        yield return new("matmul + cross_entropy, backward", () =>
        {
            Tensor loss = nn.functional.cross_entropy(h.matmul(v.t()), y);
            autograd.grad([loss], [h, v]);
        });
    }

    private HiddenProblem Problem => new() { Hidden = hidden, Vocabulary = entries, Targets = targets };
}
