using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Log-prob of the target and what else a setup asks for, from hidden states and vocabulary; or the gradients of both; or log-prob and gradients in the same call.</summary>
internal sealed class FromHiddenContest : Contest
{
    // Hidden states of ±1 and this give logits of about ±5 at a width of 1024.
    private const float VocabularyScale = 0.25f;
    private const double ScaledWidth = 1024;

    // The check looks at the last tokens, and at so many entries of the vocabulary's gradient, which then comes from these tokens alone.
    private const int CheckedTokens = 2, CheckedEntries = 64;

    private readonly LogProbsSetup setup;
    private readonly TensorBuffer hidden, entries, targets, logProb, entropy, squares, argmax, upstream, entropyUpstream;
    private readonly TensorBuffer? bias, ofHidden, ofEntries, ofBias;

    public FromHiddenContest(ComputeDevice device, LogProbsSetup setup) : base(device)
    {
        this.setup = setup;
        (int tokens, int vocabulary, int width) = (setup.Tokens, setup.Vocabulary, setup.Width);
        hidden = Noisy(setup.Storage, 1, 1, tokens, width);
        entries = Noisy(setup.Storage, 2, VocabularyScale * (float)Math.Sqrt(ScaledWidth / Math.Min(width, ScaledWidth)), vocabulary, width);
        targets = Targets(3, tokens, setup.Valid);
        bias = setup.HasBias ? Noisy(4, 1, vocabulary) : null;
        logProb = Zeros(tokens);
        entropy = Zeros(tokens);
        squares = Zeros(tokens);
        argmax = Own(device.Allocate(ElementType.Int64, tokens));
        (upstream, entropyUpstream) = (Zeros(tokens), Zeros(tokens));
        Arrive(first: 0);
        if (setup.Pass == Pass.Forward)
            return;
        ofHidden = Zeros(tokens, width);
        ofEntries = Zeros(vocabulary, width);
        ofBias = setup.HasBias ? Zeros(vocabulary) : null;
        // Memory that nobody has touched yet would count as ours.
        ofHidden.AsSpan<float>().Fill(1);
        ofEntries.AsSpan<float>().Fill(1);
    }

    public override void Run()
    {
        if (setup.Pass == Pass.Forward)
            LogProbs.FromHidden(Device, Problem, Outputs, Workspace);
        else if (setup.Pass == Pass.Backward)
            LogProbs.FromHiddenBackward(Device, Problem, Upstream, Gradients, Workspace);
        else
            LogProbs.TrainFromHidden(Device, Problem, Upstream, Outputs, Gradients, Workspace);
    }

    // The oracle's loops, over the last tokens only: a vocabulary in double would fill the memory.
    public override double Check()
    {
        (int width, int vocabulary, int first) = (setup.Width, setup.Vocabulary, setup.Tokens - CheckedTokens);
        ReadOnlySpan<long> target = targets.AsSpan<long>()[first..];
        Grid<double> exact = Grid.Zeros<double>(CheckedTokens, vocabulary), rough = Grid.Zeros<double>(CheckedTokens, vocabulary);
        float[] h = Numbers(hidden, first * width, CheckedTokens * width);
        for (int j = 0; j < vocabulary; j++)
        {
            float[] entry = Numbers(entries, j * width, width);
            for (int i = 0; i < CheckedTokens; i++)
            {
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
        LogitShaping shaping = FromLogitsContest.Shaping(setup, bias);
        double share = setup.Pass == Pass.Backward ? 0 : CheckOutputs(exact, rough, target, shaping);
        return setup.Pass == Pass.Forward ? share : Math.Max(share, CheckGradients(exact, rough, h, target, shaping));
    }

    public override IReadOnlyList<TensorBuffer> Results => setup.Pass == Pass.Forward ? [logProb] : [ofHidden!, ofEntries!];

    public override IEnumerable<Peer> Peers()
    {
        Tensor h = TorchPeer.Copy(hidden), v = TorchPeer.Copy(entries), y = TorchPeer.Copy(targets);
        if (setup.Pass == Pass.Forward)
        {
            yield return new("matmul + cross_entropy, no entropy", () => [nn.functional.cross_entropy(h.matmul(v.t()), y, reduction: nn.Reduction.None).neg_()]);
            yield break;
        }
        h.requires_grad_(true);
        v.requires_grad_(true);
        yield return new("matmul + cross_entropy, backward", () =>
        {
            Tensor loss = nn.functional.cross_entropy(h.matmul(v.t()), y);
            return [.. autograd.grad([loss], [h, v])];
        });
    }

    private double CheckOutputs(Grid<double> exact, Grid<double> rough, ReadOnlySpan<long> target, LogitShaping shaping)
    {
        int first = setup.Tokens - CheckedTokens;
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(exact, target, shaping: shaping);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(rough, target, shaping: shaping);
        double share = Contract.Check(logProb.AsSpan<float>()[first..], oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
        if (setup.HasEntropy)
            share = Math.Max(share, Contract.Check(entropy.AsSpan<float>()[first..], oracle.Entropy, naive.Entropy, Contract.Forward, "entropy"));
        if (setup.HasMore)
            share = Math.Max(share, Contract.Check(squares.AsSpan<float>()[first..], oracle.SumOfSquares, naive.SumOfSquares, Contract.Forward, "sum of squares"));
        return share;
    }

    private double CheckGradients(Grid<double> exact, Grid<double> rough, float[] h, ReadOnlySpan<long> target, LogitShaping shaping)
    {
        (int width, int vocabulary, int first) = (setup.Width, setup.Vocabulary, setup.Tokens - CheckedTokens);
        Arrive(first);
        Run();
        double[] arriving = Last(upstream);
        double[]? atEntropy = setup.HasEntropy ? Last(entropyUpstream) : null;
        Arrive(first: 0);

        Grid<double> slopes = LogProbsOracle.Backward<double>(exact, target, arriving, null, atEntropy, shaping: shaping), gradient = Grid.Zeros<double>(CheckedTokens, width);
        Grid<float> roughSlopes = LogProbsOracle.Backward<float>(rough, target, arriving, null, atEntropy, shaping: shaping), roughGradient = Grid.Zeros<float>(CheckedTokens, width);
        for (int j = 0; j < setup.Valid; j++)
        {
            float[] entry = Numbers(entries, j * width, width);
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
        double share = Contract.Check(ofHidden!.AsSpan<float>()[(first * width)..], gradient.Data, roughGradient.Data, Contract.Gradient, "gradient of the hidden states");

        var ours = new List<float>();
        var ofEntry = new List<double>();
        var roughOfEntry = new List<float>();
        for (int index = 0; index < CheckedEntries; index++)
        {
            int j = (int)((long)index * vocabulary / CheckedEntries);
            ours.AddRange(ofEntries!.AsSpan<float>().Slice(j * width, width));
            for (int w = 0; w < width; w++)
            {
                (double sum, float single) = (0, 0);
                for (int i = 0; i < CheckedTokens; i++)
                {
                    sum += slopes[i, j] * h[i * width + w];
                    single += roughSlopes[i, j] * h[i * width + w];
                }
                ofEntry.Add(sum);
                roughOfEntry.Add(single);
            }
        }
        share = Math.Max(share, Contract.Check([.. ours], [.. ofEntry], [.. roughOfEntry], Contract.Gradient, "gradient of the vocabulary"));
        if (ofBias is null)
            return share;
        double[] ofColumns = [.. Enumerable.Range(0, vocabulary).Select(j => slopes[0, j] + slopes[1, j])];
        float[] roughOfColumns = [.. Enumerable.Range(0, vocabulary).Select(j => roughSlopes[0, j] + roughSlopes[1, j])];
        return Math.Max(share, Contract.Check(ofBias.AsSpan<float>(), ofColumns, roughOfColumns, Contract.Gradient, "gradient of the bias"));

        double[] Last(TensorBuffer numbers) => Array.ConvertAll(numbers.AsSpan<float>()[first..].ToArray(), x => (double)x);
    }

    // The gradients of the mean cross entropy, at a token and those after it; a small one at their entropies.
    private void Arrive(int first)
    {
        upstream.Clear();
        entropyUpstream.Clear();
        upstream.AsSpan<float>()[first..].Fill(-1f / setup.Tokens);
        entropyUpstream.AsSpan<float>()[first..].Fill(0.1f / setup.Tokens);
    }

    private HiddenProblem Problem => new()
    {
        Hidden = hidden, Vocabulary = entries, Targets = targets, Bias = View(bias), Softcap = setup.Softcap, Temperature = setup.Temperature,
        ValidVocabulary = setup.Padding > 0 ? setup.Valid : null,
    };

    private TokenOutputs Outputs => new()
    {
        LogProb = logProb, Entropy = setup.HasEntropy ? entropy : default(TensorView), SumOfSquares = setup.HasMore ? squares : default(TensorView), Argmax = setup.HasMore ? argmax : default(TensorView),
    };

    private TokenUpstream Upstream => new() { LogProb = upstream, Entropy = setup.HasEntropy ? entropyUpstream : default(TensorView) };

    private HiddenGradients Gradients => new() { Hidden = ofHidden!, Vocabulary = ofEntries!, Bias = View(ofBias) };
}
