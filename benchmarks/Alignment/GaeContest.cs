using System.Numerics;
using TorchSharp;
using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Generalized advantage estimation: advantages and returns.</summary>
internal sealed class GaeContest : Contest
{
    private const float Gamma = 0.99f, Lambda = 0.95f;

    // The check looks at the last sequences.
    private const int CheckedSequences = 16;

    private readonly int sequences, tokens;
    private readonly TensorBuffer rewards, values, mask, advantages, returns;

    public GaeContest(ComputeDevice device, int sequences, int tokens) : base(device)
    {
        (this.sequences, this.tokens) = (sequences, tokens);
        rewards = Noisy(1, 1, sequences, tokens);
        values = Noisy(2, 1, sequences, tokens);
        mask = Own(TokenMask.Make(device, sequences, tokens));
        advantages = Zeros(sequences, tokens);
        returns = Zeros(sequences, tokens);
    }

    /// <summary>Reads 2 arrays and a mask of bytes, writes 2.</summary>
    public static Cost CostOf(long elements) => Cost.Elementwise(elements * (2 * sizeof(float) + sizeof(bool) + 2 * sizeof(float)), Traffic.Copy);

    public override void Run() => GeneralizedAdvantage.Estimate(Device,
        new AdvantageProblem { Rewards = rewards, Values = values, Mask = mask, Gamma = Gamma, Lambda = Lambda }, advantages, returns);

    public override double Check()
    {
        (Grid<double> advantagesOracle, Grid<double> returnsOracle) = Define<double>();
        (Grid<float> advantagesNaive, Grid<float> returnsNaive) = Define<float>();
        return Math.Max(Contract.Check(Last(advantages), advantagesOracle.Data, advantagesNaive.Data, Contract.Forward, "advantages"),
            Contract.Check(Last(returns), returnsOracle.Data, returnsNaive.Data, Contract.Forward, "returns"));
    }

    public override IReadOnlyList<TensorBuffer> Results => [advantages, returns];

    public override IEnumerable<Peer> Peers()
    {
        Tensor r = TorchPeer.Copy(rewards), v = TorchPeer.Copy(values), m = TorchPeer.Copy(mask).to_type(ScalarType.Float32);
        yield return new("loop over columns", () =>
        {
            (Tensor a, Tensor q) = Loop(r, v, m, tokenAxis: 1);
            return [a, q];
        });
        yield return new("transposed, loop over rows", () =>
        {
            (Tensor a, Tensor q) = Loop(r.t().contiguous(), v.t().contiguous(), m.t().contiguous(), tokenAxis: 0);
            return [a.t().contiguous(), q.t().contiguous()];
        });
    }

    // The usual loop from the last token back; a masked token hands on the value and the advantage behind it.
    private (Tensor Advantages, Tensor Returns) Loop(Tensor r, Tensor v, Tensor m, int tokenAxis)
    {
        Tensor next = zeros(sequences), nextValue = zeros(sequences);
        var columns = new Tensor[tokens];
        for (int t = tokens - 1; t >= 0; t--)
        {
            using DisposeScope step = NewDisposeScope();
            Tensor value = v.select(tokenAxis, t), counts = m.select(tokenAxis, t), left = 1 - counts;
            Tensor advantage = r.select(tokenAxis, t) + Gamma * nextValue - value + Gamma * Lambda * next;
            nextValue = (value * counts + left * nextValue).MoveToOuterDisposeScope();
            next = (advantage * counts + left * next).MoveToOuterDisposeScope();
            columns[t] = next;
        }
        Tensor advantages = stack(columns, tokenAxis).mul_(m);
        return (advantages, (advantages + v).mul_(m));
    }

    private (Grid<T> Advantages, Grid<T> Returns) Define<T>() where T : IFloatingPointIeee754<T> =>
        AdvantageOracle.Estimate<T>(Rows(rewards), Rows(values), mask.AsSpan<bool>()[((sequences - CheckedSequences) * tokens)..].ToArray(), Gamma, Lambda);

    private ReadOnlySpan<float> Last(TensorBuffer buffer) => buffer.AsSpan<float>()[((sequences - CheckedSequences) * tokens)..];

    private Grid<double> Rows(TensorBuffer buffer) => Grid.Of(Last(buffer), CheckedSequences, tokens);
}
