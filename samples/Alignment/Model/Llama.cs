using System.Numerics.Tensors;
using TransformerKernels;

namespace Alignment;

/// <summary>A Llama-style language model: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.</summary>
/// <remarks>
/// A layer is x += attention(norm(x)); x += down(silu(gate(h)) · up(h)), h = norm(x). Weights carry Hugging Face's names and [outputs, inputs] shapes.
/// Rotation, attention, log-probs and losses are the library's work; matrix products, norms and SwiGLU are this sample's.
/// Sequences of a batch are padded on the right: causality hides the padding from every token before it.
/// </remarks>
internal sealed partial class Llama : IDisposable
{
    private readonly ComputeDevice device;
    private readonly Team team;
    private readonly Layer[] layers;
    private readonly Parameter embedding, lastNorm, vocabulary;
    private readonly RotaryTable rotary;
    private readonly Workspace workspace;

    /// <param name="device">Where the library's operations run; its memory must be the host's.</param>
    /// <param name="team">The threads of the sample's own operations.</param>
    /// <param name="shape">The sizes. All weights are 0 until they are set.</param>
    public Llama(ComputeDevice device, Team team, LlamaShape shape)
    {
        this.device = device;
        this.team = team;
        Shape = shape;
        Parameters = new(device);
        embedding = Parameters.Add("model.embed_tokens.weight", shape.Vocabulary, shape.Hidden);
        layers = [.. Enumerable.Range(0, shape.Layers).Select(layer => new Layer(Parameters, shape, $"model.layers.{layer}."))];
        lastNorm = Parameters.Add("model.norm.weight", shape.Hidden);
        vocabulary = shape.TiedEmbedding ? embedding : Parameters.Add("lm_head.weight", shape.Vocabulary, shape.Hidden);
        rotary = RotaryTable.Build(device, shape.HeadSize, shape.Context, shape.RotaryBase);
        workspace = new(device);
        scratch = new(() => new GradientScratch(device, shape));
    }

    public LlamaShape Shape { get; }

    public ParameterSet Parameters { get; }

    public ComputeDevice Device => device;

    /// <summary>Scratch memory that the losses may share with the model.</summary>
    public Workspace Workspace => workspace;

    private int QueryWidth => Shape.Heads * Shape.HeadSize;

    private int KeyWidth => Shape.KeyHeads * Shape.HeadSize;

    /// <summary>Draws weights from a normal distribution; what is added to the residual stream starts smaller, by the root of the number of additions (GPT-2).</summary>
    public void Initialize(Random random, float deviation = 0.05f)
    {
        float residual = deviation / MathF.Sqrt(2 * Shape.Layers);
        foreach (Parameter parameter in Parameters.All)
        {
            Span<float> values = Parameters.Value(parameter);
            if (parameter.Shape.Length == 1)
            {
                values.Fill(1);
                continue;
            }
            float scale = layers.Any(layer => layer.Output == parameter || layer.Down == parameter) ? residual : deviation;
            for (int i = 0; i < values.Length; i++)
                values[i] = scale * Normal(random);
        }
    }

    /// <summary>Runs all layers; leaves the normed last hidden states in <paramref name="run"/>.</summary>
    /// <param name="tokens">[batch, positions], padded on the right.</param>
    /// <param name="batch">How many sequences.</param>
    /// <param name="run">Where everything computed goes.</param>
    /// <param name="cache">Keys and values of the positions before these; the new ones are added. No padding then.</param>
    public void Forward(ReadOnlySpan<int> tokens, int batch, Activations run, KeyValueCache? cache = null)
    {
        int positions = tokens.Length / batch, past = cache?.Length ?? 0;
        if (past + positions > Shape.Context)
            throw new ArgumentException($"The sequence has {past + positions} tokens; the model's context is {Shape.Context}.", nameof(tokens));
        run.Resize(batch, positions);
        Embed(tokens, run.Layer(0).Input.Span);
        for (int layer = 0; layer < layers.Length; layer++)
        {
            RowBuffer output = layer + 1 < layers.Length ? run.Layer(layer + 1).Input : run.Output;
            Forward(layer, run.Layer(layer), batch, past, positions, output, cache);
        }
        cache?.Advance(positions);
        RmsNorm.Forward(team, run.Output.Span, Parameters.Value(lastNorm), Shape.NormEpsilon, run.Normed.Span, run.InverseRms.Span);
    }

    private void Forward(int number, LayerActivations a, int batch, int past, int positions, RowBuffer output, KeyValueCache? cache)
    {
        Layer layer = layers[number];
        int rows = batch * positions, hidden = Shape.Hidden;
        RmsNorm.Forward(team, a.Input.Span, Parameters.Value(layer.AttentionNorm), Shape.NormEpsilon, a.AttentionNormed.Span, a.AttentionInverseRms.Span);
        MatrixProduct.Forward(team, a.AttentionNormed.Span, Parameters.Value(layer.Query), a.Query.Span, rows, hidden, QueryWidth);
        MatrixProduct.Forward(team, a.AttentionNormed.Span, Parameters.Value(layer.Key), a.Key.Span, rows, hidden, KeyWidth);
        MatrixProduct.Forward(team, a.AttentionNormed.Span, Parameters.Value(layer.Value), a.Value.Span, rows, hidden, KeyWidth);
        RotaryEmbedding.Apply(device, a.Query.Heads(batch, Shape.HeadSize), a.Key.Heads(batch, Shape.HeadSize), rotary, new() { Pairing = Shape.Pairing, Offset = past });
        cache?.Append(number, a.Key, a.Value);
        Attention.Forward(device, Problem(number, a, batch, past + positions, cache), a.Attended.Heads(batch, Shape.HeadSize), LogSumExp(a, batch, positions), workspace);

        a.Input.Span.CopyTo(a.Middle.Span);
        MatrixProduct.Forward(team, a.Attended.Span, Parameters.Value(layer.Output), a.Middle.Span, rows, QueryWidth, hidden, accumulate: true);

        RmsNorm.Forward(team, a.Middle.Span, Parameters.Value(layer.FeedNorm), Shape.NormEpsilon, a.FeedNormed.Span, a.FeedInverseRms.Span);
        MatrixProduct.Forward(team, a.FeedNormed.Span, Parameters.Value(layer.Gate), a.Gate.Span, rows, hidden, Shape.Intermediate);
        MatrixProduct.Forward(team, a.FeedNormed.Span, Parameters.Value(layer.Up), a.Up.Span, rows, hidden, Shape.Intermediate);
        SwiGlu.Forward(team, a.Gate.Span, a.Up.Span, a.Sigmoid.Span, a.Product.Span);
        a.Middle.Span.CopyTo(output.Span);
        MatrixProduct.Forward(team, a.Product.Span, Parameters.Value(layer.Down), output.Span, rows, Shape.Intermediate, hidden, accumulate: true);
    }

    private AttentionProblem Problem(int layer, LayerActivations a, int batch, int keys, KeyValueCache? cache) => new()
    {
        Query = a.Query.Heads(batch, Shape.HeadSize),
        Key = cache is null ? a.Key.Heads(batch, Shape.HeadSize) : cache.Keys(layer, keys),
        Value = cache is null ? a.Value.Heads(batch, Shape.HeadSize) : cache.Values(layer, keys),
        Causal = true,
    };

    private TensorView LogSumExp(LayerActivations a, int batch, int positions) => a.LogSumExp.View.Reshape(batch, Shape.Heads, positions, 2);

    /// <summary>The logits of every row of the last pass.</summary>
    public void Project(Activations run)
    {
        int rows = run.Batch * run.Positions;
        run.Logits.Resize(rows);
        MatrixProduct.Forward(team, run.Normed.Span, Parameters.Value(vocabulary), run.Logits.Span, rows, Shape.Hidden, Shape.Vocabulary);
    }

    /// <summary>The logits of some rows of the last pass, in the order given.</summary>
    public void Project(Activations run, ReadOnlySpan<int> picks)
    {
        int hidden = Shape.Hidden;
        run.Picked.Resize(picks.Length);
        run.Logits.Resize(picks.Length);
        Span<float> normed = run.Normed.Span, picked = run.Picked.Span;
        for (int i = 0; i < picks.Length; i++)
            normed.Slice(picks[i] * hidden, hidden).CopyTo(picked[(i * hidden)..]);
        MatrixProduct.Forward(team, picked, Parameters.Value(vocabulary), run.Logits.Span, picks.Length, hidden, Shape.Vocabulary);
    }

    private void Embed(ReadOnlySpan<int> tokens, Span<float> rows)
    {
        int hidden = Shape.Hidden;
        ReadOnlySpan<float> table = Parameters.Value(embedding);
        for (int i = 0; i < tokens.Length; i++)
        {
            if ((uint)tokens[i] >= (uint)Shape.Vocabulary)
                throw new ArgumentOutOfRangeException(nameof(tokens), tokens[i], $"A token lies outside the vocabulary of {Shape.Vocabulary}.");
            table.Slice(tokens[i] * hidden, hidden).CopyTo(rows[(i * hidden)..]);
        }
    }

    private static float Normal(Random random) =>
        (float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));

    public void Dispose()
    {
        Parameters.Dispose();
        rotary.Dispose();
        workspace.Dispose();
        if (scratch.IsValueCreated)
            scratch.Value.Dispose();
    }

    private sealed class Layer(ParameterSet set, LlamaShape shape, string prefix)
    {
        public Parameter AttentionNorm { get; } = set.Add(prefix + "input_layernorm.weight", shape.Hidden);
        public Parameter Query { get; } = set.Add(prefix + "self_attn.q_proj.weight", shape.Heads * shape.HeadSize, shape.Hidden);
        public Parameter Key { get; } = set.Add(prefix + "self_attn.k_proj.weight", shape.KeyHeads * shape.HeadSize, shape.Hidden);
        public Parameter Value { get; } = set.Add(prefix + "self_attn.v_proj.weight", shape.KeyHeads * shape.HeadSize, shape.Hidden);
        public Parameter Output { get; } = set.Add(prefix + "self_attn.o_proj.weight", shape.Hidden, shape.Heads * shape.HeadSize);
        public Parameter FeedNorm { get; } = set.Add(prefix + "post_attention_layernorm.weight", shape.Hidden);
        public Parameter Gate { get; } = set.Add(prefix + "mlp.gate_proj.weight", shape.Intermediate, shape.Hidden);
        public Parameter Up { get; } = set.Add(prefix + "mlp.up_proj.weight", shape.Intermediate, shape.Hidden);
        public Parameter Down { get; } = set.Add(prefix + "mlp.down_proj.weight", shape.Hidden, shape.Intermediate);
    }
}
