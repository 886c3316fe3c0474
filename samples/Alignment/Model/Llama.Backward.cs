using System.Numerics.Tensors;
using TransformerKernels;

namespace Alignment;

internal sealed partial class Llama
{
    private readonly Lazy<GradientScratch> scratch;

    /// <summary>Adds the gradients of all weights to <see cref="Parameters"/>, from the gradient of the logits that stands in <paramref name="run"/>.</summary>
    /// <param name="tokens">As in the forward pass, which had no cache.</param>
    /// <param name="picks">The rows whose logits were projected.</param>
    /// <param name="run">What the forward pass left; gates and ups are overwritten.</param>
    public void Backward(ReadOnlySpan<int> tokens, ReadOnlySpan<int> picks, Activations run)
    {
        if (!run.Keeps)
            throw new ArgumentException("These activations were not kept for a backward pass.", nameof(run));
        int batch = run.Batch, positions = run.Positions, hidden = Shape.Hidden;
        GradientScratch g = scratch.Value;
        g.Resize(batch * positions);

        MatrixProduct.WeightGradient(team, run.Logits.Span, run.Picked.Span, Parameters.Gradient(vocabulary), picks.Length, hidden, Shape.Vocabulary);
        g.Picked.Resize(picks.Length);
        MatrixProduct.InputGradient(team, run.Logits.Span, Parameters.Value(vocabulary), g.Picked.Span, picks.Length, hidden, Shape.Vocabulary);
        g.Normed.Span.Clear();
        for (int i = 0; i < picks.Length; i++)
            g.Picked.Span.Slice(i * hidden, hidden).CopyTo(g.Normed.Span[(picks[i] * hidden)..]);

        g.Stream.Span.Clear();
        RmsNorm.Backward(team, g.Normed.Span, run.Output.Span, Parameters.Value(lastNorm), run.InverseRms.Span, g.Stream.Span, Parameters.Gradient(lastNorm));
        for (int layer = layers.Length - 1; layer >= 0; layer--)
            Backward(layer, run.Layer(layer), g, batch, positions);

        Span<float> table = Parameters.Gradient(embedding), stream = g.Stream.Span;
        for (int i = 0; i < tokens.Length; i++)
        {
            Span<float> row = table.Slice(tokens[i] * hidden, hidden);
            TensorPrimitives.Add(row, stream.Slice(i * hidden, hidden), row);
        }
    }

    // g.Stream holds the gradient of the layer's output, and at the end that of its input: a branch adds its part to what passes by it.
    private void Backward(int number, LayerActivations a, GradientScratch g, int batch, int positions)
    {
        Layer layer = layers[number];
        int rows = batch * positions, hidden = Shape.Hidden, feed = Shape.Intermediate;
        Span<float> stream = g.Stream.Span, normed = g.Normed.Span;

        MatrixProduct.WeightGradient(team, stream, a.Product.Span, Parameters.Gradient(layer.Down), rows, feed, hidden);
        MatrixProduct.InputGradient(team, stream, Parameters.Value(layer.Down), g.Product.Span, rows, feed, hidden);
        SwiGlu.Backward(team, g.Product.Span, a.Gate.Span, a.Up.Span, a.Sigmoid.Span);
        MatrixProduct.WeightGradient(team, a.Gate.Span, a.FeedNormed.Span, Parameters.Gradient(layer.Gate), rows, hidden, feed);
        MatrixProduct.WeightGradient(team, a.Up.Span, a.FeedNormed.Span, Parameters.Gradient(layer.Up), rows, hidden, feed);
        MatrixProduct.InputGradient(team, a.Gate.Span, Parameters.Value(layer.Gate), normed, rows, hidden, feed);
        MatrixProduct.InputGradient(team, a.Up.Span, Parameters.Value(layer.Up), normed, rows, hidden, feed, accumulate: true);
        RmsNorm.Backward(team, normed, a.Middle.Span, Parameters.Value(layer.FeedNorm), a.FeedInverseRms.Span, stream, Parameters.Gradient(layer.FeedNorm));

        MatrixProduct.WeightGradient(team, stream, a.Attended.Span, Parameters.Gradient(layer.Output), rows, QueryWidth, hidden);
        MatrixProduct.InputGradient(team, stream, Parameters.Value(layer.Output), g.Attended.Span, rows, QueryWidth, hidden);
        var saved = new AttentionSaved { Output = a.Attended.Heads(batch, Shape.HeadSize), LogSumExp = LogSumExp(a, batch, positions) };
        var gradients = new AttentionGradients
        {
            Query = g.Query.Heads(batch, Shape.HeadSize),
            Key = g.Key.Heads(batch, Shape.HeadSize),
            Value = g.Value.Heads(batch, Shape.HeadSize),
        };
        Attention.Backward(device, Problem(number, a, batch, positions, null), saved, new() { Output = g.Attended.Heads(batch, Shape.HeadSize) }, gradients, workspace);
        RotaryEmbedding.Backward(device, gradients.Query, gradients.Key, rotary, new() { Pairing = Shape.Pairing });
        MatrixProduct.WeightGradient(team, g.Query.Span, a.AttentionNormed.Span, Parameters.Gradient(layer.Query), rows, hidden, QueryWidth);
        MatrixProduct.WeightGradient(team, g.Key.Span, a.AttentionNormed.Span, Parameters.Gradient(layer.Key), rows, hidden, KeyWidth);
        MatrixProduct.WeightGradient(team, g.Value.Span, a.AttentionNormed.Span, Parameters.Gradient(layer.Value), rows, hidden, KeyWidth);
        MatrixProduct.InputGradient(team, g.Query.Span, Parameters.Value(layer.Query), normed, rows, hidden, QueryWidth);
        MatrixProduct.InputGradient(team, g.Key.Span, Parameters.Value(layer.Key), normed, rows, hidden, KeyWidth, accumulate: true);
        MatrixProduct.InputGradient(team, g.Value.Span, Parameters.Value(layer.Value), normed, rows, hidden, KeyWidth, accumulate: true);
        RmsNorm.Backward(team, normed, a.Input.Span, Parameters.Value(layer.AttentionNorm), a.AttentionInverseRms.Span, stream, Parameters.Gradient(layer.AttentionNorm));
    }

    /// <summary>Gradients of activations, needed only while a backward pass runs.</summary>
    private sealed class GradientScratch : IDisposable
    {
        private readonly RowBuffer[] all;

        public GradientScratch(ComputeDevice device, LlamaShape shape)
        {
            int queries = shape.Heads * shape.HeadSize, keys = shape.KeyHeads * shape.HeadSize;
            Picked = new(device, shape.Hidden);
            all =
            [
                Stream = new(device, shape.Hidden), Normed = new(device, shape.Hidden), Product = new(device, shape.Intermediate),
                Attended = new(device, queries), Query = new(device, queries), Key = new(device, keys), Value = new(device, keys),
            ];
        }

        /// <summary>Of the residual stream.</summary>
        public RowBuffer Stream { get; }
        /// <summary>Of what the projections read.</summary>
        public RowBuffer Normed { get; }
        public RowBuffer Picked { get; }
        public RowBuffer Product { get; }
        public RowBuffer Attended { get; }
        public RowBuffer Query { get; }
        public RowBuffer Key { get; }
        public RowBuffer Value { get; }

        public void Resize(int rows)
        {
            foreach (RowBuffer buffer in all)
                buffer.Resize(rows);
        }

        public void Dispose()
        {
            Picked.Dispose();
            foreach (RowBuffer buffer in all)
                buffer.Dispose();
        }
    }
}
