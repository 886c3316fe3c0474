using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>A problem of log-probs from hidden states with its oracle. Ignored tokens and padding hold NaN.</summary>
internal sealed class HiddenExample
{
    public HiddenExample(int tokens, int width, int vocabulary, string options)
    {
        (Tokens, Width, Vocabulary) = (tokens, width, vocabulary);
        HiddenType = options.Contains("float16") && !options.Contains("bfloat16") ? ElementType.Float16 : options.Contains("bfloat16") ? ElementType.BFloat16 : ElementType.Float32;
        VocabularyType = options.Contains("hidden in") ? ElementType.Float32 : HiddenType;
        int valid = options.Contains("padded") ? Math.Max(1, vocabulary - 3) : vocabulary;
        Shaping = new(options.Contains("bias") ? Array.ConvertAll(Seeded.Normal(vocabulary, 3), x => (double)x) : null,
            options.Contains("softcap") ? 3 : 0, options.Contains("temperature") ? 0.75 : 1, options.Contains("padded") ? valid : null)
        {
            MeanWeights = options.Contains("weights") ? [.. Seeded.Normal(vocabulary, 11).Select((x, j) => j % 7 == 3 ? 0.0 : x)] : null,
        };
        Hidden = [.. Seeded.Normal(tokens * width, 1).Select(x => Round(x, HiddenType))];
        Entries = [.. Seeded.Normal(vocabulary * width, 2, 2 / MathF.Sqrt(width)).Select(x => Round(x, VocabularyType))];
        var random = new Random(tokens);
        Targets = [.. Enumerable.Range(0, tokens).Select(i => options.Contains("ignored") && i % 3 == 1 ? -100L : random.Next(valid))];
        for (int i = 0; i < Hidden.Length; i++)
            Hidden[i] = Targets[i / width] == -100 ? float.NaN : Hidden[i];
        for (int i = valid * width; i < Entries.Length; i++)
            Entries[i] = float.NaN;
    }

    public int Tokens { get; }
    public int Width { get; }
    public int Vocabulary { get; }
    public ElementType HiddenType { get; }
    public ElementType VocabularyType { get; }
    public float[] Hidden { get; }
    public float[] Entries { get; }
    public long[] Targets { get; }
    public LogitShaping Shaping { get; }
    public float[] Upstream1 => Seeded.Normal(Tokens, 5);
    public float[] Upstream2 => Seeded.Normal(Tokens, 6);
    public float[] Upstream3 => Seeded.Normal(Tokens, 7);
    public float[] Upstream4 => Seeded.Normal(Tokens, 8);
    public float[] Upstream5 => Seeded.Normal(Tokens, 9);

    public HiddenProblem Problem => new()
    {
        Hidden = Stored(Hidden, HiddenType, Tokens, Width),
        Vocabulary = Stored(Entries, VocabularyType, Vocabulary, Width),
        Targets = TensorView.Of(Targets),
        Bias = Shaping.Bias is null ? default : TensorView.Of(Array.ConvertAll(Shaping.Bias, x => (float)x)),
        Softcap = Shaping.Softcap == 0 ? null : (float)Shaping.Softcap,
        Temperature = (float)Shaping.Temperature,
        ValidVocabulary = Shaping.Valid,
        MeanWeights = Shaping.MeanWeights is null ? default : TensorView.Of(Array.ConvertAll(Shaping.MeanWeights, x => (float)x)),
    };

    public TokenUpstream Upstream => new() { LogProb = TensorView.Of(Upstream1), LogSumExp = TensorView.Of(Upstream2), Entropy = TensorView.Of(Upstream3), SumOfSquares = TensorView.Of(Upstream4), MeanLogit = TensorView.Of(Upstream5) };

    public TokenResult<T> Forward<T>() where T : System.Numerics.IFloatingPointIeee754<T> =>
        HiddenLogProbsOracle.Forward<T>(Grid.Of(Hidden, Tokens, Width), Grid.Of(Entries, Vocabulary, Width), Targets, shaping: Shaping);

    public HiddenGradient<T> Backward<T>() where T : System.Numerics.IFloatingPointIeee754<T> =>
        HiddenLogProbsOracle.Backward<T>(Grid.Of(Hidden, Tokens, Width), Grid.Of(Entries, Vocabulary, Width), Targets,
            Array.ConvertAll(Upstream1, x => (double)x), Array.ConvertAll(Upstream2, x => (double)x), Array.ConvertAll(Upstream3, x => (double)x), shaping: Shaping,
            squaresUpstream: Array.ConvertAll(Upstream4, x => (double)x), meanUpstream: Array.ConvertAll(Upstream5, x => (double)x));

    private static float Round(float x, ElementType type) => type switch
    {
        ElementType.Float16 => (float)(Half)x,
        ElementType.BFloat16 => BitConverter.UInt32BitsToSingle(BitConverter.SingleToUInt32Bits(x) & 0xffff0000),
        _ => x,
    };

    private static TensorView Stored(float[] values, ElementType type, int rows, int columns) => type switch
    {
        ElementType.Float16 => TensorView.Of(Array.ConvertAll(values, x => (Half)x), rows, columns),
        ElementType.BFloat16 => TensorView.Of(Array.ConvertAll(values, x => new BFloat16((ushort)(BitConverter.SingleToUInt32Bits(x) >> 16))), rows, columns),
        _ => TensorView.Of(values, rows, columns),
    };

    // Any two bytes of this name will do.
    private readonly record struct BFloat16(ushort Bits);
}
