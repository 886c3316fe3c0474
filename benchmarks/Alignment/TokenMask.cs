namespace TransformerKernels.Benchmarks;

/// <summary>Which tokens of generated answers count: sequences end between three quarters and the whole of the longest.</summary>
internal static class TokenMask
{
    private const int Seed = 9;
    private const float Shortest = 0.75f;

    public static TensorBuffer Make(ComputeDevice device, int sequences, int tokens)
    {
        TensorBuffer mask = device.Allocate(ElementType.Bool, sequences, tokens);
        Span<bool> counts = mask.AsSpan<bool>();
        for (int sequence = 0; sequence < sequences; sequence++)
        {
            float share = Shortest + (1 - Shortest) * (Noise.At(Seed, sequence) + 1) / 2;
            counts.Slice(sequence * tokens, (int)(share * tokens)).Fill(true);
        }
        return mask;
    }
}
