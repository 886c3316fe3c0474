using TransformerKernels;

namespace Alignment;

/// <summary>What a forward pass computes and a backward pass reads, one row a token. Reused from batch to batch.</summary>
internal sealed class Activations : IDisposable
{
    private readonly LayerActivations[] layers;
    private readonly RowBuffer[] own;

    /// <param name="keep">Whether every layer's values are kept for a backward pass; without, the layers share memory.</param>
    public Activations(ComputeDevice device, LlamaShape shape, bool keep)
    {
        Keeps = keep;
        var shared = new LayerActivations(device, shape);
        layers = [.. Enumerable.Range(0, shape.Layers).Select(layer => keep && layer > 0 ? new LayerActivations(device, shape) : shared)];
        Output = new(device, shape.Hidden);
        Normed = new(device, shape.Hidden);
        InverseRms = new(device, 1);
        Picked = new(device, shape.Hidden);
        Logits = new(device, shape.Vocabulary);
        own = [Output, Normed, InverseRms, Picked, Logits];
    }

    public bool Keeps { get; }

    /// <summary>How many sequences, and positions of each, the last pass had.</summary>
    public int Batch { get; private set; }

    public int Positions { get; private set; }

    /// <summary>The last layer's output.</summary>
    public RowBuffer Output { get; }

    /// <summary>The same after the last norm.</summary>
    public RowBuffer Normed { get; }

    public RowBuffer InverseRms { get; }

    /// <summary>The rows of <see cref="Normed"/> whose logits are wanted, where not all are.</summary>
    public RowBuffer Picked { get; }

    /// <summary>[row, vocabulary]; the backward pass replaces them by their gradient.</summary>
    public RowBuffer Logits { get; }

    public LayerActivations Layer(int layer) => layers[layer];

    public void Resize(int batch, int positions)
    {
        (Batch, Positions) = (batch, positions);
        int rows = batch * positions;
        foreach (LayerActivations layer in layers)
            layer.Resize(rows);
        Output.Resize(rows);
        Normed.Resize(rows);
        InverseRms.Resize(rows);
    }

    public void Dispose()
    {
        foreach (LayerActivations layer in layers)
            layer.Dispose();
        foreach (RowBuffer buffer in own)
            buffer.Dispose();
    }
}

/// <summary>One layer's part of <see cref="Activations"/>.</summary>
internal sealed class LayerActivations : IDisposable
{
    private readonly RowBuffer[] all;

    public LayerActivations(ComputeDevice device, LlamaShape shape)
    {
        int queries = shape.Heads * shape.HeadSize, keys = shape.KeyHeads * shape.HeadSize;
        all =
        [
            Input = new(device, shape.Hidden), AttentionInverseRms = new(device, 1), AttentionNormed = new(device, shape.Hidden),
            Query = new(device, queries), Key = new(device, keys), Value = new(device, keys),
            Attended = new(device, queries), LogSumExp = new(device, 2 * shape.Heads),
            Middle = new(device, shape.Hidden), FeedInverseRms = new(device, 1), FeedNormed = new(device, shape.Hidden),
            Gate = new(device, shape.Intermediate), Sigmoid = new(device, shape.Intermediate), Up = new(device, shape.Intermediate),
            Product = new(device, shape.Intermediate),
        ];
    }

    /// <summary>The residual stream before the layer.</summary>
    public RowBuffer Input { get; }
    public RowBuffer AttentionInverseRms { get; }
    public RowBuffer AttentionNormed { get; }
    /// <summary>Rotated.</summary>
    public RowBuffer Query { get; }
    /// <summary>Rotated.</summary>
    public RowBuffer Key { get; }
    public RowBuffer Value { get; }
    /// <summary>The heads' outputs side by side.</summary>
    public RowBuffer Attended { get; }
    /// <summary>[batch, head, position, 2], whatever the buffer calls its axes: log-sum-exp and what rounding took from it.</summary>
    public RowBuffer LogSumExp { get; }
    /// <summary>The residual stream between attention and feed-forward.</summary>
    public RowBuffer Middle { get; }
    public RowBuffer FeedInverseRms { get; }
    public RowBuffer FeedNormed { get; }
    public RowBuffer Gate { get; }
    /// <summary>σ(gate).</summary>
    public RowBuffer Sigmoid { get; }
    public RowBuffer Up { get; }
    /// <summary>gate · σ(gate) · up.</summary>
    public RowBuffer Product { get; }

    public void Resize(int rows)
    {
        foreach (RowBuffer buffer in all)
            buffer.Resize(rows);
    }

    public void Dispose()
    {
        foreach (RowBuffer buffer in all)
            buffer.Dispose();
    }
}
