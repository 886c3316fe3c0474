using TorchSharp;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>The peer's attention: one call, and matmul + softmax + matmul.</summary>
/// <remarks>
/// What is learned it has as the matrix of all pairs: made beforehand where nothing is trained; otherwise made in every run, because the gradient has to arrive at what is learned.
/// Positions, distances, masks and what of a rule depends on them alone are always made beforehand.
/// </remarks>
internal sealed class AttentionPeers<TRule> where TRule : unmanaged, IScoreRule
{
    private readonly AttentionSetup setup;
    private readonly TorchRule? rule;
    private readonly Tensor query, key, value, upstream, places;
    private readonly Tensor? hidden;
    private readonly Func<Tensor>? bias, captured;
    private readonly Tensor[] leaves;

    public AttentionPeers(AttentionSetup setup, UserRule<TRule> rule, Tensor query, Tensor key, Tensor value, Tensor upstream, Tensor? bias, Tensor? captured)
    {
        (this.setup, this.query, this.key, this.value, this.upstream) = (setup, query, key, value, upstream);
        leaves = [.. new[] { query, key, value, bias, captured }.OfType<Tensor>()];
        if (setup.Pass == Pass.Train)
        {
            foreach (Tensor leaf in leaves)
                leaf.requires_grad_(true);
        }
        Tensor positions = arange(setup.Length), distances = positions.unsqueeze(0) - positions.unsqueeze(1), buckets = Buckets();
        places = (distances + setup.DistanceCentre).flatten();
        hidden = setup.Causal ? distances > 0 : null;
        this.rule = rule.Torch?.Invoke(distances.to_type(ScalarType.Float32));
        this.bias = setup.Bias switch
        {
            AttentionBias.None => null,
            AttentionBias.Dense => () => bias!,
            AttentionBias.Slopes => Made(() => -bias!.reshape(1, setup.Heads, 1, 1) * distances.abs()),
            AttentionBias.Distance => Made(() => OfPairs(bias!)),
            AttentionBias.Buckets => Made(() => OfPairs(bias!.index_select(0, buckets).t())),
            _ => throw new NotSupportedException($"The peer has no bias {setup.Bias}."),
        };
        this.captured = setup.Captured switch
        {
            null => null,
            CapturedStructure.PerHeadAndDistance => Made(() => OfPairs(captured!)),
            _ => throw new NotSupportedException($"The peer captures nothing {setup.Captured}."),
        };
    }

    public IEnumerable<Peer> Forms()
    {
        if (rule is null)
        {
            if (hidden is not null && bias is null)
            {
                Tensor mask = zeros(setup.Length, setup.Length).masked_fill_(hidden, float.NegativeInfinity);
                yield return Form("SDPA, is_causal", () => nn.functional.scaled_dot_product_attention(query, key, value, is_casual: true));
                yield return Form("SDPA, attn_mask", () => nn.functional.scaled_dot_product_attention(query, key, value, attn_mask: mask));
            }
            else if (hidden is null)
            {
                yield return Form(bias is null ? "SDPA" : "SDPA, attn_mask", () => nn.functional.scaled_dot_product_attention(query, key, value, attn_mask: bias?.Invoke()));
            }
        }
        yield return Form("matmul + softmax + matmul", Composed);
    }

    private Func<Tensor> Made(Func<Tensor> pairs)
    {
        if (setup.Pass == Pass.Train)
            return pairs;
        Tensor made = pairs();
        return () => made;
    }

    // From one number a head and distance.
    private Tensor OfPairs(Tensor line) => line.index_select(1, places).reshape(1, setup.Heads, setup.Length, setup.Keys);

    // The table's row for every distance.
    private Tensor Buckets() => tensor([.. Enumerable.Range(0, setup.Distances).Select(at =>
        (long)BucketedBias.Bucket(at - setup.DistanceCentre, AttentionSetup.Buckets, AttentionSetup.MaximumDistance, bidirectional: true))], ScalarType.Int64);

    private Tensor Composed()
    {
        Tensor scores = (query * (1 / Math.Sqrt(setup.HeadSize))).matmul(key.transpose(-2, -1));
        if (rule is not null)
            scores = rule(scores, captured?.Invoke());
        if (bias is not null)
            scores.add_(bias());
        if (hidden is not null)
            scores.masked_fill_(hidden, float.NegativeInfinity);
        return scores.softmax(-1).matmul(value);
    }

    private Peer Form(string name, Func<Tensor> forward) => setup.Pass == Pass.Train
        ? new(name + ", autograd", () =>
        {
            Tensor output = forward();
            return [output, .. autograd.grad([output], leaves, [upstream])];
        })
        : new(name, () => [forward()]);
}
