using System.Numerics;
using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>The clipped policy loss of many tokens, dual clip and bound included: losses, gradient and metrics.</summary>
internal sealed class PpoContest : Contest
{
    private const float Clip = 0.2f, DualClip = 3, LogRatioBound = 20;

    // Log-probs of the two policies differ by up to twice this: about a third of the ratios is clipped.
    private const float Scale = 0.2f;

    // The check looks at the last sequences.
    private const int CheckedSequences = 4;

    private readonly int sequences, tokens;
    private readonly TensorBuffer logProb, oldLogProb, advantage, mask, losses, gradient, metrics;

    public PpoContest(ComputeDevice device, int sequences, int tokens) : base(device)
    {
        (this.sequences, this.tokens) = (sequences, tokens);
        logProb = Noisy(1, Scale, sequences, tokens);
        oldLogProb = Noisy(2, Scale, sequences, tokens);
        advantage = Noisy(3, 2, sequences, tokens);
        mask = Own(TokenMask.Make(device, sequences, tokens));
        losses = Zeros(sequences, tokens);
        gradient = Zeros(sequences, tokens);
        metrics = Zeros(PolicyMetrics.Count);
    }

    /// <summary>Reads 3 arrays and a mask of bytes, writes 2.</summary>
    public static Cost CostOf(long elements) => Cost.Elementwise(elements * (3 * sizeof(float) + sizeof(bool) + 2 * sizeof(float)), Traffic.Copy);

    public override void Run() => PolicyLoss.Evaluate(Device,
        new TokenBatch { LogProb = logProb, OldLogProb = oldLogProb, Advantage = advantage, Mask = mask },
        new PpoClip(Clip, Clip, DualClip, LogRatioBound), new TokenLossOutputs { Loss = losses, LogProbGradient = gradient }, metrics, Workspace);

    public override double Check()
    {
        int counted = mask.AsSpan<bool>().Count(true);
        PolicyResult<double> oracle = Define<double>(counted);
        PolicyResult<float> naive = Define<float>(counted);
        return Math.Max(Contract.Check(Last(losses), oracle.Losses.Data, naive.Losses.Data, Contract.Forward, "loss"),
            Contract.Check(Last(gradient), oracle.LogProb.Data, naive.LogProb.Data, Contract.Gradient, "gradient"));
    }

    public override IReadOnlyList<TensorBuffer> Results => [losses, gradient];

    public override IEnumerable<Peer> Peers()
    {
        Tensor current = TorchPeer.Copy(logProb), old = TorchPeer.Copy(oldLogProb), a = TorchPeer.Copy(advantage);
        Tensor counts = TorchPeer.Copy(mask).to_type(ScalarType.Float32), count = counts.sum(), weight = counts / count;
        yield return new("composed, gradient by hand", () =>
        {
            // The bound, which no log-ratio here reaches, is left out of the gradient.
            Tensor ratio = (current - old).clamp_(-LogRatioBound, LogRatioBound).exp_(), negated = -a;
            Tensor plain = negated * ratio, clipped = ratio.clamp_(1 - Clip, 1 + Clip).mul_(negated), bound = negated * DualClip;
            Tensor loss = maximum(plain, clipped);
            Tensor bounded = (a < 0).logical_and_(bound < loss);
            Tensor stopped = (clipped > plain).logical_or_(bounded);
            return [where(bounded, bound, loss).mul_(counts), plain.masked_fill_(stopped, 0).mul_(weight)];
        });
        Tensor leaf = current.clone().requires_grad_(true);
        yield return new("composed, autograd", () =>
        {
            Tensor ratio = (leaf - old).clamp(-LogRatioBound, LogRatioBound).exp();
            Tensor larger = maximum(-a * ratio, -a * ratio.clamp(1 - Clip, 1 + Clip));
            Tensor loss = where(a < 0, minimum(larger, -a * DualClip), larger) * counts;
            return [loss, .. autograd.grad([loss.sum() / count], [leaf])];
        });
    }

    private PolicyResult<T> Define<T>(int counted) where T : IFloatingPointIeee754<T> =>
        PolicyOracle.PpoClip<T>(Rows(logProb), Rows(oldLogProb), Rows(advantage), mask.AsSpan<bool>()[((sequences - CheckedSequences) * tokens)..].ToArray(),
            Clip, Clip, DualClip, LogRatioBound, divisor: counted);

    private ReadOnlySpan<float> Last(TensorBuffer buffer) => buffer.AsSpan<float>()[((sequences - CheckedSequences) * tokens)..];

    private Grid<double> Rows(TensorBuffer buffer) => Grid.Of(Last(buffer), CheckedSequences, tokens);
}
