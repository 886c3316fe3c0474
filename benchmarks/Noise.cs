namespace TransformerKernels.Benchmarks;

/// <summary>Reproducible noise whose every value can be told from its index, so that a check needn't keep what an operation replaced.</summary>
internal static class Noise
{
    /// <summary>A value from −1 to below 1.</summary>
    public static float At(int seed, long index)
    {
        // The finaliser of SplitMix64, over a Weyl sequence (Steele et al. 2014).
        ulong x = ((ulong)index + ((ulong)seed << 40)) * 0x9E3779B97F4A7C15;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        return (int)(x >> 40) * (1f / (1 << 23)) - 1f;
    }

    /// <summary>Fills a float32 tensor: element i becomes scale · noise(seed, i).</summary>
    public static unsafe void Fill(TensorBuffer buffer, int seed, float scale)
    {
        const int Piece = 1 << 16;
        Span<float> values = buffer.AsSpan<float>();
        int length = values.Length;
        fixed (float* first = values)
        {
            float* data = first;
            Parallel.For(0, (length + Piece - 1) / Piece, piece =>
            {
                int end = Math.Min(length, (piece + 1) * Piece);
                for (int i = piece * Piece; i < end; i++)
                    data[i] = scale * At(seed, i);
            });
        }
    }
}
