using TransformerKernels;

namespace Alignment;

/// <summary>Llama models in GGUF.</summary>
internal static class LlamaCheckpoint
{
    /// <summary>Builds the model that a file describes, with its weights.</summary>
    public static Llama Load(GgufFile file, ModelMaths maths)
    {
        string architecture = file.Value<string>("general.architecture");
        if (architecture != "llama")
            throw new NotSupportedException($"The file holds a model of the architecture {architecture}; this program runs llama.");
        if (file.Value("llama.rope.scaling.type", "none") != "none")
            throw new NotSupportedException($"The model scales its rotary frequencies ({file.Value<string>("llama.rope.scaling.type")}); this program doesn't.");
        LlamaShape shape = ShapeOf(file);
        var model = new Llama(maths, shape);
        try
        {
            float[] all = model.Parameters.Values.ToArray<float>();
            foreach (Parameter parameter in model.Parameters.All)
                file.Read(GgufName(parameter.Name), parameter.Of(all));
            model.Parameters.Values.CopyFrom<float>(all);
        }
        catch
        {
            model.Dispose();
            throw;
        }
        return model;
    }

    private static LlamaShape ShapeOf(GgufFile file)
    {
        int hidden = file.Value<int>("llama.embedding_length"), heads = file.Value<int>("llama.attention.head_count");
        int headSize = file.Value("llama.attention.key_length", hidden / heads), rotarySize = file.Value("llama.rope.dimension_count", headSize);
        if (rotarySize != headSize)
            throw new NotSupportedException($"The model rotates {rotarySize} of {headSize} features; this program rotates whole heads.");
        GgufTensor embedding = file.Tensors.Single(tensor => tensor.Name == GgufName("model.embed_tokens.weight"));
        return new()
        {
            Vocabulary = checked((int)embedding.Shape[0]),
            Hidden = hidden,
            Intermediate = file.Value<int>("llama.feed_forward_length"),
            Layers = file.Value<int>("llama.block_count"),
            Heads = heads,
            KeyHeads = file.Value("llama.attention.head_count_kv", heads),
            HeadSize = headSize,
            Context = file.Value<int>("llama.context_length"),
            NormEpsilon = file.Value<float>("llama.attention.layer_norm_rms_epsilon"),
            RotaryBase = file.Value("llama.rope.freq_base", 10000.0),
            // The rows of query and key lie in GGUF as the original checkpoints have them.
            Pairing = RotaryPairing.Interleaved,
            TiedEmbedding = file.Tensors.All(tensor => tensor.Name != GgufName("lm_head.weight")),
        };
    }

    /// <summary>GGUF's name of a weight that Hugging Face calls so.</summary>
    private static string GgufName(string name)
    {
        const string layerPrefix = "model.layers.";
        if (!name.StartsWith(layerPrefix, StringComparison.Ordinal))
        {
            return name switch
            {
                "model.embed_tokens.weight" => "token_embd.weight",
                "model.norm.weight" => "output_norm.weight",
                "lm_head.weight" => "output.weight",
                _ => throw new ArgumentException($"GGUF has no name for {name}.", nameof(name)),
            };
        }
        int dot = name.IndexOf('.', layerPrefix.Length);
        string part = name[(dot + 1)..] switch
        {
            "input_layernorm.weight" => "attn_norm",
            "self_attn.q_proj.weight" => "attn_q",
            "self_attn.k_proj.weight" => "attn_k",
            "self_attn.v_proj.weight" => "attn_v",
            "self_attn.o_proj.weight" => "attn_output",
            "post_attention_layernorm.weight" => "ffn_norm",
            "mlp.gate_proj.weight" => "ffn_gate",
            "mlp.up_proj.weight" => "ffn_up",
            "mlp.down_proj.weight" => "ffn_down",
            _ => throw new ArgumentException($"GGUF has no name for {name}.", nameof(name)),
        };
        return $"blk.{name[layerPrefix.Length..dot]}.{part}.weight";
    }
}
