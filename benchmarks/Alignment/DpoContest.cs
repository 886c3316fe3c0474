using System.Numerics;
using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>The DPO loss of many pairs: losses, both gradients and the metrics in one pass.</summary>
internal sealed class DpoContest : Contest
{
    private const float Beta = 0.1f;

    // Sums of log-probs lie so far apart.
    private const float Scale = 30;

    // The check looks at the last pairs.
    private const int CheckedPairs = 4000;

    private readonly int pairs;
    private readonly TensorBuffer chosen, rejected, referenceChosen, referenceRejected, losses, chosenGradient, rejectedGradient, metrics;

    public DpoContest(ComputeDevice device, int pairs) : base(device)
    {
        this.pairs = pairs;
        chosen = Noisy(1, Scale, pairs);
        rejected = Noisy(2, Scale, pairs);
        referenceChosen = Noisy(3, Scale, pairs);
        referenceRejected = Noisy(4, Scale, pairs);
        losses = Zeros(pairs);
        chosenGradient = Zeros(pairs);
        rejectedGradient = Zeros(pairs);
        metrics = Zeros(PreferenceMetrics.Count);
    }

    /// <summary>Reads 4 arrays, writes 3.</summary>
    public static Cost CostOf(long pairs) => Cost.Elementwise((4 + 3) * pairs * sizeof(float), Traffic.Copy);

    public override void Run() => PreferenceLoss.Evaluate(Device,
        new PairBatch { Chosen = chosen, Rejected = rejected, ReferenceChosen = referenceChosen, ReferenceRejected = referenceRejected },
        new DpoSigmoid(Beta), new PairOutputs { Loss = losses, ChosenGradient = chosenGradient, RejectedGradient = rejectedGradient }, metrics, Workspace);

    public override double Check()
    {
        PreferenceResult<double> oracle = Define<double>();
        PreferenceResult<float> naive = Define<float>();
        return new[]
        {
            Contract.Check(Last(losses), oracle.Losses, naive.Losses, Contract.Forward, "loss"),
            Contract.Check(Last(chosenGradient), Mean(oracle.Chosen), Mean(naive.Chosen), Contract.Gradient, "gradient of chosen"),
            Contract.Check(Last(rejectedGradient), Mean(oracle.Rejected), Mean(naive.Rejected), Contract.Gradient, "gradient of rejected"),
        }.Max();
    }

    public override IReadOnlyList<TensorBuffer> Results => [losses, chosenGradient, rejectedGradient];

    public override IEnumerable<Peer> Peers()
    {
        Tensor c = TorchPeer.Copy(chosen), r = TorchPeer.Copy(rejected), rc = TorchPeer.Copy(referenceChosen), rr = TorchPeer.Copy(referenceRejected);
        yield return new("composed, gradient by hand", () =>
        {
            Tensor scaled = (c - rc).sub_(r - rr).mul_(-Beta);
            Tensor loss = nn.functional.softplus(scaled), gradient = scaled.sigmoid_().mul_(-Beta / pairs);
            return [loss, gradient, gradient.neg()];
        });
        Tensor leafC = c.clone().requires_grad_(true), leafR = r.clone().requires_grad_(true);
        yield return new("composed, autograd", () =>
        {
            Tensor loss = -nn.functional.logsigmoid(Beta * ((leafC - rc) - (leafR - rr)));
            return [loss, .. autograd.grad([loss.mean()], [leafC, leafR])];
        });
    }

    private PreferenceResult<T> Define<T>() where T : IFloatingPointIeee754<T> =>
        PreferenceOracle.DpoSigmoid<T>(Doubles(chosen), Doubles(rejected), Doubles(referenceChosen), Doubles(referenceRejected), Beta, sum: true);

    // The definition sums what it is given, a few of the pairs; ours averages over all of them.
    private T[] Mean<T>(T[] gradient) where T : IFloatingPointIeee754<T> => Array.ConvertAll(gradient, x => x / T.CreateTruncating(pairs));

    private ReadOnlySpan<float> Last(TensorBuffer buffer) => buffer.AsSpan<float>()[(pairs - CheckedPairs)..];

    private double[] Doubles(TensorBuffer buffer) => Array.ConvertAll(Last(buffer).ToArray(), x => (double)x);
}
