using Xunit;

namespace TransformerKernels.Tests;

public class PositionsCode
{
    [Fact]
    public void A_step_of_cached_decoding_turns_as_the_same_token_does_in_the_whole_sequence()
    {
        const int batch = 2, heads = 4, keyHeads = 2, tokens = 9, headSize = 8;
        ComputeDevice device = ComputeDevice.Cpu;
        float[] q = Seeded.Normal(batch * heads * tokens * headSize, 1), k = Seeded.Normal(batch * keyHeads * tokens * headSize, 2);
        float[] lastQ = Last(q, heads), lastK = Last(k, keyHeads);
        TensorView query = TensorView.Of(q, batch, heads, tokens, headSize), key = TensorView.Of(k, batch, keyHeads, tokens, headSize);
        TensorView newQuery = TensorView.Of(lastQ, batch, heads, 1, headSize), newKey = TensorView.Of(lastK, batch, keyHeads, 1, headSize);
        // snippet: rotary
        using RotaryTable rope = RotaryTable.Build(device, rotarySize: headSize, positions: 4096, theta: 500_000);
        RotaryEmbedding.Apply(device, query, key, rope);                                                        // a prompt
        RotaryEmbedding.Apply(device, newQuery, newKey, rope, new RotaryOptions { Offset = tokens - 1 });       // one more token
        // snippet ends

        Assert.Equal(Last(q, heads), lastQ);
        Assert.Equal(Last(k, keyHeads), lastK);

        float[] Last(float[] data, int headCount) => Enumerable.Range(0, batch * headCount)
            .SelectMany(row => data[((row + 1) * tokens * headSize - headSize)..((row + 1) * tokens * headSize)]).ToArray();
    }

    [Fact]
    public void Llama_3_frequencies_keep_short_waves_and_stretch_long_ones()
    {
        ComputeDevice device = ComputeDevice.Cpu;
        // snippet: rotary-llama3
        const double theta = 500_000, factor = 8, lowFactor = 1, highFactor = 4, originalPositions = 8192;
        var frequencies = new double[128 / 2];
        for (int m = 0; m < frequencies.Length; m++)
        {
            double plain = Math.Pow(theta, -2.0 * m / 128), waves = originalPositions * plain / (2 * Math.PI);
            double kept = Math.Clamp((waves - lowFactor) / (highFactor - lowFactor), 0, 1);
            frequencies[m] = kept * plain + (1 - kept) * plain / factor;
        }
        using RotaryTable rope = RotaryTable.Build(device, frequencies, positions: 2);
        // snippet ends

        // What transformers 5.23 resolves from the configuration of Llama 3.1 8B, in float64.
        (int, double)[] expected = [(0, 1), (28, 0.0032114459947525913), (29, 0.002166570763503359), (32, 0.0005248461609929547),
            (34, 0.00017850781276799638), (35, 9.556212353964683e-05), (63, 3.068925988914511e-07)];
        Assert.All(expected, pair => Assert.Equal(pair.Item2, frequencies[pair.Item1], 1e-12 * pair.Item2));
        Assert.Equal(128, rope.RotarySize);
    }
}
