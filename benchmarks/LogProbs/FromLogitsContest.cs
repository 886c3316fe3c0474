using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Log-prob of the target, log-sum-exp and what else a setup asks for, of every row of logits; or, backward, the gradient of the logits: in place of them if they are float32.</summary>
internal sealed class FromLogitsContest : Contest
{
    // Noise of ±8 makes some tokens a million times likelier than others, as a language model does.
    private const float LogitScale = 8;

    // The check looks at the last rows.
    private const int CheckedRows = 4;

    private readonly LogProbsSetup setup;
    private readonly TensorBuffer logits, targets, logProb, logSumExp, entropy, squares, argmax, upstream, entropyUpstream;
    private readonly TensorBuffer? bias, top, gradient, original;

    public FromLogitsContest(ComputeDevice device, LogProbsSetup setup) : base(device)
    {
        this.setup = setup;
        (int tokens, int vocabulary) = (setup.Tokens, setup.Vocabulary);
        logits = Noisy(setup.Storage, 1, LogitScale, tokens, vocabulary);
        targets = Targets(2, tokens, setup.Valid);
        bias = setup.HasBias ? Noisy(4, 1, vocabulary) : null;
        logProb = Zeros(tokens);
        logSumExp = setup.KeepsRemainder ? Zeros(tokens, 2) : Zeros(tokens);
        entropy = Zeros(tokens);
        squares = Zeros(tokens);
        argmax = Own(device.Allocate(ElementType.Int64, tokens));
        top = setup.HasTop ? Zeros(tokens, setup.Top) : null;
        upstream = Noisy(3, 1, tokens);
        entropyUpstream = Noisy(5, 1, tokens);
        if (setup.Pass == Pass.Forward)
            return;
        if (setup.Storage == ElementType.Float32)
            (gradient, original) = (logits, Noisy(1, LogitScale, tokens, vocabulary));
        else
            gradient = Zeros(tokens, vocabulary);
        LogProbs.FromLogits(device, Problem, new TokenOutputs { LogSumExp = logSumExp, Entropy = entropy });
    }

    public override void Run()
    {
        if (gradient is not null)
        {
            var arriving = new TokenUpstream { LogProb = upstream };
            if (setup.HasEntropy)
                arriving.Entropy = entropyUpstream;
            LogProbs.FromLogitsBackward(Device, Problem, new TokenSaved { LogSumExp = logSumExp, Entropy = entropy }, arriving, gradient);
            return;
        }
        var outputs = new TokenOutputs { LogProb = logProb, LogSumExp = logSumExp };
        if (setup.HasEntropy)
            outputs.Entropy = entropy;
        if (setup.HasMore)
        {
            outputs.SumOfSquares = squares;
            outputs.Argmax = argmax;
        }
        if (top is not null)
            outputs.TopLogProbs = top;
        LogProbs.FromLogits(Device, Problem, outputs);
    }

    public override void Restore()
    {
        if (original is not null)
            original.AsSpan<float>().CopyTo(logits.AsSpan<float>());
    }

    public override double Check()
    {
        (int first, int vocabulary) = (setup.Tokens - CheckedRows, setup.Vocabulary);
        Grid<double> rows = Grid.Of(Numbers(original ?? logits, first * vocabulary, CheckedRows * vocabulary), CheckedRows, vocabulary);
        ReadOnlySpan<long> target = targets.AsSpan<long>()[first..];
        LogitShaping shaping = Shaping(setup, bias);
        if (gradient is not null)
        {
            double[] arriving = Last(upstream);
            double[]? atEntropy = setup.HasEntropy ? Last(entropyUpstream) : null;
            return Contract.Check(gradient.AsSpan<float>()[(first * vocabulary)..], LogProbsOracle.Backward<double>(rows, target, arriving, null, atEntropy, shaping: shaping).Data,
                LogProbsOracle.Backward<float>(rows, target, arriving, null, atEntropy, shaping: shaping).Data, Contract.Gradient, "gradient");
        }
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(rows, target, shaping: shaping);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(rows, target, shaping: shaping);
        int columns = logSumExp.Shape.Length;
        var shares = new List<double>
        {
            Contract.Check(logProb.AsSpan<float>()[first..], oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob"),
            Contract.Check([.. Enumerable.Range(first, CheckedRows).Select(row => logSumExp.AsSpan<float>()[row * columns])], oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp"),
        };
        if (setup.HasEntropy)
            shares.Add(Contract.Check(entropy.AsSpan<float>()[first..], oracle.Entropy, naive.Entropy, Contract.Forward, "entropy"));
        if (setup.HasMore)
            shares.Add(Contract.Check(squares.AsSpan<float>()[first..], oracle.SumOfSquares, naive.SumOfSquares, Contract.Forward, "sum of squares"));
        long[] likeliest = LogProbsOracle.Top(rows, target, Math.Max(1, setup.Top), shaping: shaping);
        if (setup.HasMore && !argmax.AsSpan<long>()[first..].SequenceEqual(likeliest.Where((_, index) => index % Math.Max(1, setup.Top) == 0).ToArray()))
            throw new ContractException("The likeliest token is another one.");
        if (top is not null)
            shares.Add(CheckTop(rows, likeliest, oracle, naive, shaping));
        return shares.Max();

        double[] Last(TensorBuffer numbers) => Array.ConvertAll(numbers.AsSpan<float>()[first..].ToArray(), x => (double)x);
    }

    private double CheckTop(Grid<double> rows, long[] likeliest, TokenResult<double> oracle, TokenResult<float> naive, LogitShaping shaping)
    {
        Grid<double> exact = shaping.Apply<double>(rows);
        Grid<float> rough = shaping.Apply<float>(rows);
        var expected = new double[likeliest.Length];
        var naively = new float[likeliest.Length];
        for (int index = 0; index < likeliest.Length; index++)
        {
            (int row, int token) = (index / setup.Top, (int)likeliest[index]);
            expected[index] = exact[row, token] - oracle.LogSumExp[row];
            naively[index] = rough[row, token] - naive.LogSumExp[row];
        }
        return Contract.Check(top!.AsSpan<float>()[^likeliest.Length..], expected, naively, Contract.Forward, "log-probs of the likeliest");
    }

    public override IReadOnlyList<TensorBuffer> Results => gradient is null ? [logProb, entropy] : [gradient];

    public override IEnumerable<Peer> Peers()
    {
        Restore();
        Tensor z = TorchPeer.Copy(logits), y = TorchPeer.Copy(targets), column = y.unsqueeze(1);
        if (setup.Pass == Pass.Forward)
        {
            yield return new("log_softmax + gather + entropy", () =>
            {
                Tensor logP = nn.functional.log_softmax(z, -1);
                return [logP.gather(-1, column), logP.exp().mul_(logP).sum(-1).neg_()];
            });
            yield return new("cross_entropy, no entropy", () => [nn.functional.cross_entropy(z, y, reduction: nn.Reduction.None).neg_(), null]);
            yield break;
        }
        z.requires_grad_(true);
        Tensor arriving = TorchPeer.Copy(upstream), arrivingAtLoss = -arriving;
        Tensor gathered = nn.functional.log_softmax(z, -1).gather(-1, column).squeeze(1);
        yield return new("log_softmax + gather, backward", () => [.. autograd.grad([gathered], [z], [arriving], retain_graph: true)]);
        Tensor losses = nn.functional.cross_entropy(z, y, reduction: nn.Reduction.None);
        yield return new("cross_entropy, backward", () => [.. autograd.grad([losses], [z], [arrivingAtLoss], retain_graph: true)]);
    }

    /// <summary>What becomes of a setup's logits, for the oracle.</summary>
    public static LogitShaping Shaping(LogProbsSetup setup, TensorBuffer? bias) =>
        new(bias is null ? null : Array.ConvertAll(bias.AsSpan<float>().ToArray(), x => (double)x), setup.Softcap ?? 0, setup.Temperature, setup.Valid);

    private LogitsProblem Problem => new()
    {
        Logits = logits, Targets = targets, Bias = View(bias), Softcap = setup.Softcap, Temperature = setup.Temperature,
        ValidVocabulary = setup.Padding > 0 ? setup.Valid : null,
    };
}
