using TransformerKernels;

namespace Alignment;

/// <summary>The sizes and constants of a Llama-style model; see <see cref="Llama"/>.</summary>
internal sealed record LlamaShape
{
    public required int Vocabulary { get; init; }
    public required int Hidden { get; init; }
    public required int Intermediate { get; init; }
    public required int Layers { get; init; }
    public required int Heads { get; init; }

    /// <summary>A divisor of <see cref="Heads"/>: query head i reads key head i / (heads / keyHeads).</summary>
    public required int KeyHeads { get; init; }

    /// <summary>heads · headSize need not equal the hidden size.</summary>
    public required int HeadSize { get; init; }

    /// <summary>The longest sequence.</summary>
    public required int Context { get; init; }
    public float NormEpsilon { get; init; } = 1e-5f;
    public double RotaryBase { get; init; } = 10000;

    /// <summary>Half-split with weights as Hugging Face stores them, interleaved with the original ones and those of GGUF.</summary>
    public RotaryPairing Pairing { get; init; }

    /// <summary>Whether the embedding is the output matrix too.</summary>
    public bool TiedEmbedding { get; init; }
}
