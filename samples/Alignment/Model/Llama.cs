using TransformerKernels;

namespace Alignment;

/// <summary>A Llama-style language model: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.</summary>
/// <remarks>
/// A layer is x += attention(norm(x)); x += down(silu(gate(h)) · up(h)), h = norm(x). Weights carry Hugging Face's names and [outputs, inputs] shapes.
/// Rotation, attention, log-probs and losses are the library's work; all else is that of <see cref="ModelMaths"/>.
/// Sequences of a batch are padded on the right: causality hides the padding from every token before it.
/// </remarks>
internal sealed partial class Llama : IDisposable
{
    private readonly ModelMaths maths;
    private readonly ComputeDevice device;
    private readonly Layer[] layers;
    private readonly Parameter embedding, lastNorm, vocabulary;
    private readonly RotaryTable rotary;
    private readonly Workspace workspace;

    /// <param name="maths">What the model is computed with, and where.</param>
    /// <param name="shape">The sizes. All weights are 0 until they are set.</param>
    public Llama(ModelMaths maths, LlamaShape shape)
    {
        this.maths = maths;
        device = maths.Device;
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

    public ModelMaths Maths => maths;

    public ComputeDevice Device => device;

    /// <summary>Scratch memory that the losses may share with the model.</summary>
    public Workspace Workspace => workspace;

    private int QueryWidth => Shape.Heads * Shape.HeadSize;

    private int KeyWidth => Shape.KeyHeads * Shape.HeadSize;

    /// <summary>Draws weights from a normal distribution; what is added to the residual stream starts smaller, by the root of the number of additions (GPT-2).</summary>
    public void Initialize(Random random, float deviation = 0.05f)
    {
        float residual = deviation / MathF.Sqrt(2 * Shape.Layers);
        float[] all = Parameters.Values.ToArray<float>();
        foreach (Parameter parameter in Parameters.All)
        {
            Span<float> values = parameter.Of(all);
            if (parameter.Shape.Length == 1)
            {
                values.Fill(1);
                continue;
            }
            float scale = layers.Any(layer => layer.Output == parameter || layer.Down == parameter) ? residual : deviation;
            for (int i = 0; i < values.Length; i++)
                values[i] = scale * Normal(random);
        }
        Parameters.Values.CopyFrom<float>(all);
    }

    /// <summary>Runs all layers; leaves the normed last hidden states in <paramref name="run"/>.</summary>
    /// <param name="batch">The tokens.</param>
    /// <param name="run">Where everything computed goes.</param>
    /// <param name="cache">Keys and values of the positions before these; the new ones are added. No padding then.</param>
    public void Forward(TokenBatch batch, Activations run, KeyValueCache? cache = null)
    {
        int positions = batch.Positions, past = cache?.Length ?? 0;
        if (past + positions > Shape.Context)
            throw new ArgumentException($"The sequence has {past + positions} tokens; the model's context is {Shape.Context}.", nameof(batch));
        foreach (int token in batch.Tokens)
        {
            if ((uint)token >= (uint)Shape.Vocabulary)
                throw new ArgumentOutOfRangeException(nameof(batch), token, $"A token lies outside the vocabulary of {Shape.Vocabulary}.");
        }
        run.Resize(batch.Batch, positions);
        maths.Gather(Parameters.Value(embedding), batch.TokenView, run.Layer(0).Input.View);
        for (int layer = 0; layer < layers.Length; layer++)
        {
            RowBuffer output = layer + 1 < layers.Length ? run.Layer(layer + 1).Input : run.Output;
            Forward(layer, run.Layer(layer), batch.Batch, past, positions, output, cache);
        }
        cache?.Advance(positions);
        maths.Norm(run.Output.View, Parameters.Value(lastNorm), Shape.NormEpsilon, run.Normed.View, run.InverseRms.Vector);
    }

    private void Forward(int number, LayerActivations a, int batch, int past, int positions, RowBuffer output, KeyValueCache? cache)
    {
        Layer layer = layers[number];
        maths.Norm(a.Input.View, Parameters.Value(layer.AttentionNorm), Shape.NormEpsilon, a.AttentionNormed.View, a.AttentionInverseRms.Vector);
        maths.Product(a.AttentionNormed.View, Parameters.Value(layer.Query), a.Query.View);
        maths.Product(a.AttentionNormed.View, Parameters.Value(layer.Key), a.Key.View);
        maths.Product(a.AttentionNormed.View, Parameters.Value(layer.Value), a.Value.View);
        RotaryEmbedding.Apply(device, a.Query.Heads(batch, Shape.HeadSize), a.Key.Heads(batch, Shape.HeadSize), rotary, new() { Pairing = Shape.Pairing, Offset = past });
        cache?.Append(number, a.Key, a.Value);
        Attention.Forward(device, Problem(number, a, batch, past + positions, cache), a.Attended.Heads(batch, Shape.HeadSize), LogSumExp(a, batch, positions), workspace);

        maths.Product(a.Attended.View, Parameters.Value(layer.Output), a.Middle.View, addend: a.Input.View);

        maths.Norm(a.Middle.View, Parameters.Value(layer.FeedNorm), Shape.NormEpsilon, a.FeedNormed.View, a.FeedInverseRms.Vector);
        maths.Product(a.FeedNormed.View, Parameters.Value(layer.Gate), a.Gate.View);
        maths.Product(a.FeedNormed.View, Parameters.Value(layer.Up), a.Up.View);
        maths.Gate(a.Gate.View, a.Up.View, a.Sigmoid.View, a.Product.View);
        maths.Product(a.Product.View, Parameters.Value(layer.Down), output.View, addend: a.Middle.View);
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
        run.Logits.Resize(run.Batch * run.Positions);
        maths.Product(run.Normed.View, Parameters.Value(vocabulary), run.Logits.View);
    }

    /// <summary>The logits of the rows of the last pass that its batch picks, in that order.</summary>
    public void Project(TokenBatch batch, Activations run)
    {
        run.Picked.Resize(batch.Picks.Length);
        run.Logits.Resize(batch.Picks.Length);
        maths.Gather(run.Normed.View, batch.PickView, run.Picked.View);
        maths.Product(run.Picked.View, Parameters.Value(vocabulary), run.Logits.View);
    }

    private static float Normal(Random random) =>
        (float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));

    public void Dispose()
    {
        device.Synchronize();
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
