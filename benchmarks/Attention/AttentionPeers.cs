using TorchSharp;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>The peer's attention: one call, and matmul + softmax + matmul. Biases and captured values are handed to it as the matrix of all pairs, made beforehand; their gradients stay that matrix.</summary>
internal sealed class AttentionPeers<TRule> where TRule : unmanaged, IScoreRule
{
    private readonly AttentionSetup setup;
    private readonly UserRule<TRule> rule;
    private readonly Tensor query, key, value, upstream, distances;
    private readonly Tensor? mask, hidden, captured;
    private readonly Tensor[] leaves;

    public AttentionPeers(AttentionSetup setup, UserRule<TRule> rule, Tensor query, Tensor key, Tensor value, Tensor upstream, Tensor? bias, Tensor? captured)
    {
        (this.setup, this.rule, this.query, this.key, this.value, this.upstream) = (setup, rule, query, key, value, upstream);
        int length = setup.Length;
        Tensor positions = arange(length);
        distances = positions.unsqueeze(0) - positions.unsqueeze(1);
        mask = setup.Bias switch
        {
            AttentionBias.Dense => bias,
            AttentionBias.Distance or AttentionBias.Buckets => OfPairs(bias!),
            AttentionBias.Slopes => (-bias!.reshape(1, setup.Heads, 1, 1) * distances.abs()).contiguous(),
            _ => null,
        };
        hidden = setup.Causal ? distances > 0 : null;
        this.captured = captured is null ? null : OfPairs(captured);
        distances = distances.to_type(ScalarType.Float32);
        leaves = [.. new[] { query, key, value, mask, this.captured }.OfType<Tensor>()];
        if (setup.Pass == Pass.Train)
        {
            foreach (Tensor leaf in leaves)
                leaf.requires_grad_(true);
        }
    }

    public IEnumerable<Peer> Forms()
    {
        if (rule.Torch is null)
        {
            if (setup.Causal)
                yield return Form("SDPA, is_causal", () => nn.functional.scaled_dot_product_attention(query, key, value, is_casual: true));
            if (setup.Causal || mask is not null)
            {
                Tensor all = mask ?? zeros(setup.Length, setup.Length).masked_fill_(hidden!, float.NegativeInfinity);
                yield return Form("SDPA, attn_mask", () => nn.functional.scaled_dot_product_attention(query, key, value, attn_mask: all));
            }
            else
            {
                yield return Form("SDPA", () => nn.functional.scaled_dot_product_attention(query, key, value));
            }
        }
        yield return Form("matmul + softmax + matmul", Composed);
    }

    // From one number a head and distance.
    private Tensor OfPairs(Tensor table) =>
        table.index_select(1, (distances + (setup.Length - 1)).flatten()).reshape(1, setup.Heads, setup.Length, setup.Length);

    private Tensor Composed()
    {
        Tensor scores = (query * (1 / Math.Sqrt(setup.HeadSize))).matmul(key.transpose(-2, -1));
        if (rule.Torch is not null)
            scores = rule.Torch(scores, distances, captured);
        if (mask is not null)
            scores = scores.add_(mask);
        if (hidden is not null)
            scores = scores.masked_fill_(hidden, float.NegativeInfinity);
        return scores.softmax(-1).matmul(value);
    }

    private Peer Form(string name, Func<Tensor> forward) => setup.Pass == Pass.Train
        ? new(name + ", autograd", () => autograd.grad([forward()], leaves, [upstream]))
        : new(name, () => forward());
}
