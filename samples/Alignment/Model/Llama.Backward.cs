using TransformerKernels;

namespace Alignment;

internal sealed partial class Llama
{
    private readonly Lazy<GradientScratch> scratch;

    /// <summary>Adds the gradients of all weights to <see cref="Parameters"/>, from the gradient of the logits that stands in <paramref name="run"/>.</summary>
    /// <param name="batch">As in the forward pass, which had no cache: examples.</param>
    /// <param name="run">What the forward pass left; gates and ups are overwritten.</param>
    public void Backward(TokenBatch batch, Activations run)
    {
        if (!run.Keeps)
            throw new ArgumentException("These activations were not kept for a backward pass.", nameof(run));
        GradientScratch g = scratch.Value;
        g.Resize(run.Batch * run.Positions);

        maths.ProductWeightGradient(run.Logits.View, run.Picked.View, Parameters.Gradient(vocabulary));
        g.Picked.Resize(batch.Picks.Length);
        maths.ProductInputGradient(run.Logits.View, Parameters.Value(vocabulary), g.Picked.View);
        g.Normed.Clear();
        maths.Scatter(g.Picked.View, batch.PickView, g.Normed.View);

        g.Stream.Clear();
        maths.NormBackward(g.Normed.View, run.Output.View, Parameters.Value(lastNorm), run.InverseRms.Vector, g.Stream.View, Parameters.Gradient(lastNorm));
        for (int layer = layers.Length - 1; layer >= 0; layer--)
            Backward(layer, run.Layer(layer), g, run.Batch, run.Positions);
        maths.AddByToken(g.Stream.View, batch, Parameters.Gradient(embedding));
    }

    // g.Stream holds the gradient of the layer's output, and at the end that of its input: a branch adds its part to what passes by it.
    private void Backward(int number, LayerActivations a, GradientScratch g, int batch, int positions)
    {
        Layer layer = layers[number];
        TensorView stream = g.Stream.View, normed = g.Normed.View;

        maths.ProductWeightGradient(stream, a.Product.View, Parameters.Gradient(layer.Down));
        maths.ProductInputGradient(stream, Parameters.Value(layer.Down), g.Product.View);
        maths.GateBackward(g.Product.View, a.Gate.View, a.Up.View, a.Sigmoid.View);
        maths.ProductWeightGradient(a.Gate.View, a.FeedNormed.View, Parameters.Gradient(layer.Gate));
        maths.ProductWeightGradient(a.Up.View, a.FeedNormed.View, Parameters.Gradient(layer.Up));
        maths.ProductInputGradient(a.Gate.View, Parameters.Value(layer.Gate), normed);
        maths.ProductInputGradient(a.Up.View, Parameters.Value(layer.Up), normed, addend: normed);
        maths.NormBackward(normed, a.Middle.View, Parameters.Value(layer.FeedNorm), a.FeedInverseRms.Vector, stream, Parameters.Gradient(layer.FeedNorm));

        maths.ProductWeightGradient(stream, a.Attended.View, Parameters.Gradient(layer.Output));
        maths.ProductInputGradient(stream, Parameters.Value(layer.Output), g.Attended.View);
        var saved = new AttentionSaved { Output = a.Attended.Heads(batch, Shape.HeadSize), LogSumExp = LogSumExp(a, batch, positions) };
        var gradients = new AttentionGradients
        {
            Query = g.Query.Heads(batch, Shape.HeadSize),
            Key = g.Key.Heads(batch, Shape.HeadSize),
            Value = g.Value.Heads(batch, Shape.HeadSize),
        };
        Attention.Backward(device, Problem(number, a, batch, positions, null), saved, new() { Output = g.Attended.Heads(batch, Shape.HeadSize) }, gradients, workspace);
        RotaryEmbedding.Backward(device, gradients.Query, gradients.Key, rotary, new() { Pairing = Shape.Pairing });
        maths.ProductWeightGradient(g.Query.View, a.AttentionNormed.View, Parameters.Gradient(layer.Query));
        maths.ProductWeightGradient(g.Key.View, a.AttentionNormed.View, Parameters.Gradient(layer.Key));
        maths.ProductWeightGradient(g.Value.View, a.AttentionNormed.View, Parameters.Gradient(layer.Value));
        maths.ProductInputGradient(g.Query.View, Parameters.Value(layer.Query), normed);
        maths.ProductInputGradient(g.Key.View, Parameters.Value(layer.Key), normed, addend: normed);
        maths.ProductInputGradient(g.Value.View, Parameters.Value(layer.Value), normed, addend: normed);
        maths.NormBackward(normed, a.Input.View, Parameters.Value(layer.AttentionNorm), a.AttentionInverseRms.Vector, stream, Parameters.Gradient(layer.AttentionNorm));
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
