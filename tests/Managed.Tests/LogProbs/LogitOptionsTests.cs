using System.Runtime.InteropServices;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What a logits problem may have besides float32 logits: storage of 16 bits, bias, softcap, temperature, padding; and the outputs besides log-prob, log-sum-exp and entropy.</summary>
public class LogitOptionsTests
{
    private const int Tokens = 5;

    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<ElementType, int, string> Grid()
    {
        var rows = new TheoryData<ElementType, int, string>();
#if GPU // which takes a logit at a time: the lengths of vectors are nothing to it
        foreach (ElementType type in (ElementType[])[ElementType.Float32, ElementType.Float16, ElementType.BFloat16])
        {
            foreach (int vocabulary in (int[])[1, 33, 300, 4100])
            {
                foreach (string options in (string[])["", "softcap", "bias softcap temperature padded weights"])
                    rows.Add(type, vocabulary, options);
            }
        }
        foreach (string options in (string[])["bias", "temperature", "padded", "weights"])
            rows.Add(ElementType.Float32, 1030, options);
#else
        foreach (ElementType type in (ElementType[])[ElementType.Float32, ElementType.Float16, ElementType.BFloat16])
        {
            foreach (int vocabulary in (int[])[1, 2, 15, 16, 17, 33, 64, 127, 300, 2047, 2049, 4100])
            {
                foreach (string options in (string[])["", "bias", "softcap", "temperature", "padded", "weights", "bias softcap temperature padded weights"])
                    rows.Add(type, vocabulary, options);
            }
            // Longer than what is kept of a row whose gradient has 16 bits.
            foreach (string options in (string[])["", "softcap padded"])
                rows.Add(type, 20_001, options);
        }
#endif
        return rows;
    }

    // The third row is ignored and full of NaN, as is the padding.
    private sealed class Example
    {
        public Example(ElementType type, int vocabulary, string options)
        {
            Type = type;
            Vocabulary = vocabulary;
            int valid = options.Contains("padded") ? Math.Max(1, vocabulary - 3) : vocabulary;
            var random = new Random(vocabulary);
            Values = [.. Seeded.Normal(Tokens * vocabulary, vocabulary, 3).Select(Round)];
            Targets = [.. Enumerable.Range(0, Tokens).Select(_ => (long)random.Next(valid))];
            Targets[2] = -100;
            for (int i = 0; i < Values.Length; i++)
            {
                if (i / vocabulary == 2 || i % vocabulary >= valid)
                    Values[i] = float.NaN;
            }
            if (vocabulary > 20)
            {
                Values[5] = float.NegativeInfinity;
                Values[vocabulary + 1] = Round(15);
            }
            Bias = options.Contains("bias") ? [.. Seeded.Normal(vocabulary, 2).Select((x, j) => j >= valid ? float.NaN : x)] : null;
            Shaping = new(Bias is null ? null : Array.ConvertAll(Bias, x => (double)x), options.Contains("softcap") ? 5 : 0, options.Contains("temperature") ? 0.75 : 1, options.Contains("padded") ? valid : null)
            {
                MeanWeights = options.Contains("weights") ? [.. Seeded.Normal(vocabulary, 11).Select((x, j) => j % 7 == 5 ? 0.0 : x)] : null,
            };
            Bits = Array.ConvertAll(Values, x => type == ElementType.BFloat16 ? (ushort)(BitConverter.SingleToUInt32Bits(x) >> 16) : BitConverter.HalfToUInt16Bits((Half)x));
        }

        public ElementType Type { get; }
        public int Vocabulary { get; }
        public float[] Values { get; }
        public ushort[] Bits { get; }
        public long[] Targets { get; }
        public float[]? Bias { get; }
        public LogitShaping Shaping { get; }

        public Grid<double> Logits => TransformerKernels.Oracle.Grid.Of(Values, Tokens, Vocabulary);

        public float Round(float x) => Type switch
        {
            ElementType.Float32 => x,
            ElementType.Float16 => (float)(Half)x,
            _ => RoundBFloat16(x),
        };

        public LogitsProblem Problem(bool copyFloats = false) => new()
        {
            Logits = Type == ElementType.Float32 ? TensorView.Of(copyFloats ? [.. Values] : Values, Tokens, Vocabulary) : Stored(copyFloats ? [.. Bits] : Bits),
            Targets = TensorView.Of(Targets),
            Bias = Bias is null ? default : TensorView.Of(Bias),
            Softcap = Shaping.Softcap == 0 ? null : (float)Shaping.Softcap,
            Temperature = (float)Shaping.Temperature,
            ValidVocabulary = Shaping.Valid,
            MeanWeights = Shaping.MeanWeights is null ? default : TensorView.Of(Array.ConvertAll(Shaping.MeanWeights, x => (float)x)),
        };

        public TensorView Stored(ushort[] bits) => Type == ElementType.BFloat16
            ? TensorView.Of(MemoryMarshal.Cast<ushort, BFloat16>(bits.AsSpan()), Tokens, Vocabulary) : TensorView.Of(MemoryMarshal.Cast<ushort, Half>(bits.AsSpan()), Tokens, Vocabulary);

        public float[] Read(ushort[] bits) => Array.ConvertAll(bits, x => Type == ElementType.BFloat16 ? BitConverter.Int32BitsToSingle(x << 16) : (float)BitConverter.UInt16BitsToHalf(x));
    }

    // Any two bytes of this name will do.
    private readonly record struct BFloat16(ushort Bits);

    private static float RoundBFloat16(float x)
    {
        if (!float.IsFinite(x))
            return x;
        uint bits = BitConverter.SingleToUInt32Bits(x);
        return BitConverter.UInt32BitsToSingle((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
    }

    [Theory]
    [MemberData(nameof(Grid))]
    public void Every_output_keeps_the_contract(ElementType type, int vocabulary, string options)
    {
        var example = new Example(type, vocabulary, options);
        float[] logProb = new float[Tokens], logSumExp = new float[Tokens], entropy = new float[Tokens], squares = new float[Tokens], mean = new float[Tokens];
        int[] argmax = new int[Tokens];
        LogProbs.FromLogits(Device, example.Problem(), new()
        {
            LogProb = TensorView.Of(logProb),
            LogSumExp = TensorView.Of(logSumExp),
            Entropy = TensorView.Of(entropy),
            SumOfSquares = TensorView.Of(squares),
            Argmax = TensorView.Of(argmax),
            MeanLogit = TensorView.Of(mean),
        });
        TokenResult<double> oracle = LogProbsOracle.Forward<double>(example.Logits, example.Targets, shaping: example.Shaping);
        TokenResult<float> naive = LogProbsOracle.Forward<float>(example.Logits, example.Targets, shaping: example.Shaping);
        Contract.Check(logProb, oracle.LogProb, naive.LogProb, Contract.Forward, "log-prob");
        Contract.Check(logSumExp, oracle.LogSumExp, naive.LogSumExp, Contract.Forward, "log-sum-exp");
        Contract.Check(entropy, oracle.Entropy, naive.Entropy, Contract.Forward, "entropy");
        Contract.Check(squares, oracle.SumOfSquares, naive.SumOfSquares, Contract.Forward, "Σp²");
        // A sum of everything is as large as its terms.
        double magnitude = example.Shaping.Apply<double>(example.Logits).Data.Where(double.IsFinite).Sum(Math.Abs) / Tokens / (example.Shaping.Valid ?? vocabulary);
        Contract.Check(mean, oracle.MeanLogit, naive.MeanLogit, Contract.Forward, "mean logit", magnitude: magnitude);
        if (!options.Contains("softcap")) // which makes equals of what differs in double only
            Assert.Equal(LogProbsOracle.Top(example.Logits, example.Targets, 1, shaping: example.Shaping), argmax.Select(token => (long)token));

        // Nobody's presence changes the others.
        float[] alone = new float[Tokens];
        LogProbs.FromLogits(Device, example.Problem(), new() { LogProb = TensorView.Of(alone) });
        Assert.Equal(logProb, alone);
        LogProbs.FromLogits(Device, example.Problem(), new() { Entropy = TensorView.Of(alone) });
        Assert.Equal(entropy, alone);
        LogProbs.FromLogits(Device, example.Problem(), new() { SumOfSquares = TensorView.Of(alone) });
        Assert.Equal(squares, alone);
        LogProbs.FromLogits(Device, example.Problem(), new() { MeanLogit = TensorView.Of(alone) });
        Assert.Equal(mean, alone);
    }

    [Theory]
    [MemberData(nameof(Grid))]
    public void Gradient_keeps_the_contract_in_place_and_elsewhere(ElementType type, int vocabulary, string options)
    {
        var example = new Example(type, vocabulary, options);
        float[] a = Seeded.Normal(Tokens, 1), b = Seeded.Normal(Tokens, 2), c = Seeded.Normal(Tokens, 3), d = Seeded.Normal(Tokens, 4), e = Seeded.Normal(Tokens, 5), saved = new float[Tokens], pairs = new float[2 * Tokens], entropy = new float[Tokens];
        LogProbs.FromLogits(Device, example.Problem(), new() { LogSumExp = TensorView.Of(saved), Entropy = TensorView.Of(entropy) });
        LogProbs.FromLogits(Device, example.Problem(), new() { LogSumExp = TensorView.Of(pairs, Tokens, 2) });
        for (int which = 0; which < 8; which++)
        {
            (bool withEntropy, bool withOthers, bool keepsRemainder) = ((which & 1) != 0, (which & 2) != 0, (which & 4) != 0);
            var upstream = new TokenUpstream
            {
                LogProb = TensorView.Of(a),
                LogSumExp = TensorView.Of(b),
                Entropy = withEntropy ? TensorView.Of(c) : default,
                SumOfSquares = withOthers ? TensorView.Of(d) : default,
                MeanLogit = withOthers ? TensorView.Of(e) : default,
            };
            var state = new TokenSaved { LogSumExp = keepsRemainder ? TensorView.Of(pairs, Tokens, 2) : TensorView.Of(saved), Entropy = TensorView.Of(entropy) };
            double[] A = Array.ConvertAll(a, x => (double)x), B = Array.ConvertAll(b, x => (double)x), C = Array.ConvertAll(c, x => (double)x);
            double[] D = Array.ConvertAll(d, x => (double)x), E = Array.ConvertAll(e, x => (double)x), oracle = Backward<double>();
            float[] naive = Backward<float>();
            T[] Backward<T>() where T : System.Numerics.IFloatingPointIeee754<T> => LogProbsOracle.Backward<T>(example.Logits, example.Targets, A, B, withEntropy ? C : null, shaping: example.Shaping,
                squaresUpstream: withOthers ? D : null, meanUpstream: withOthers ? E : null).Data;

            float[] wide = new float[Tokens * vocabulary];
            Array.Fill(wide, 7f);
            LogProbs.FromLogitsBackward(Device, example.Problem(), state, upstream, TensorView.Of(wide, Tokens, vocabulary));
            Contract.Check(wide, oracle, naive, Contract.Gradient, "gradient");

            LogitsProblem copy = example.Problem(copyFloats: true);
            LogProbs.FromLogitsBackward(Device, copy, state, upstream, copy.Logits);
            float[] inPlace = type == ElementType.Float32 ? MemoryMarshal.Cast<byte, float>(Bytes(copy.Logits)).ToArray() : example.Read(MemoryMarshal.Cast<byte, ushort>(Bytes(copy.Logits)).ToArray());
            Assert.Equal(wide.Select(example.Round), inPlace);
        }
    }

    [Fact]
    public void Gradients_of_squares_and_mean_match_finite_differences_of_the_oracle()
    {
        var example = new Example(ElementType.Float32, 9, "bias softcap temperature padded weights");
        Grid<double> z = example.Logits;
        for (int i = 0; i < z.Data.Length; i++)
            z.Data[i] = double.IsNaN(z.Data[i]) ? 0.5 : z.Data[i];
        float[] a = Seeded.Normal(Tokens, 1), b = Seeded.Normal(Tokens, 2), saved = new float[Tokens], gradient = new float[Tokens * 9];
        double[] expected = FiniteDifferences.Gradient(z.Data, () =>
        {
            TokenResult<double> result = LogProbsOracle.Forward<double>(z, example.Targets, shaping: example.Shaping);
            return Enumerable.Range(0, Tokens).Sum(row => a[row] * result.SumOfSquares[row] + b[row] * result.MeanLogit[row]);
        });
        LogProbs.FromLogitsBackward(Device, example.Problem(), new() { LogSumExp = TensorView.Of(saved) }, new() { SumOfSquares = TensorView.Of(a), MeanLogit = TensorView.Of(b) }, TensorView.Of(gradient, Tokens, 9));
        for (int i = 0; i < gradient.Length; i++)
            Assert.Equal(expected[i], gradient[i], 2e-6);
    }

    [Fact]
    public void A_softcap_bends_to_within_its_bound()
    {
        // The mean of a single logit is the logit.
        float[] numbers = [.. Enumerable.Range(-13_000, 26_001).Select(i => i / 1000f), 1e-30f, -3e-5f, float.MaxValue, float.NegativeInfinity], mean = new float[numbers.Length];
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(numbers, numbers.Length, 1), Targets = TensorView.Of(new int[numbers.Length]), Softcap = 1 }, new() { MeanLogit = TensorView.Of(mean) });
        for (int i = 0; i < numbers.Length; i++)
        {
            double tanh = Math.Tanh(numbers[i]);
            Assert.True(Math.Abs(tanh - mean[i]) <= 4e-7 * Math.Abs(tanh), $"{numbers[i]}: {mean[i]} for {tanh}");
        }
    }

#if !GPU // which have no other way for small float16 logits
    [Theory]
    [InlineData(1e-30f)]
    [InlineData(1e-3f)]
    [InlineData(5f)]
    [InlineData(1e4f)]
    public void Capped_logits_in_float16_count_as_the_same_ones_in_float32(float softcap)
    {
        // Each row but the first has one logit that a softcap of 5 doesn't take without bounds, or none does.
        Half[] special = [(Half)0, (Half)217, (Half)(-400), Half.MaxValue, Half.MinValue, Half.PositiveInfinity, Half.NegativeInfinity, Half.NaN, Half.Epsilon];
        int rows = special.Length, vocabulary = 4500;
        Half[] stored = Array.ConvertAll(Seeded.Normal(rows * vocabulary, 7, 4), x => (Half)x);
        for (int row = 0; row < rows; row++)
            stored[row * vocabulary + row * 540] = special[row];
        float[] floats = Array.ConvertAll(stored, x => (float)x);
        Assert.Equal(Results(TensorView.Of(floats, rows, vocabulary)), Results(TensorView.Of(stored, rows, vocabulary)));

        uint[] Results(TensorView logits)
        {
            float[] all = new float[5 * rows], top = new float[8 * rows];
            TensorView Part(int i) => TensorView.Of(all.AsSpan(i * rows, rows));
            LogProbs.FromLogits(Device, new() { Logits = logits, Targets = TensorView.Of(new int[rows]), Softcap = softcap },
                new() { LogProb = Part(0), LogSumExp = Part(1), Entropy = Part(2), SumOfSquares = Part(3), MeanLogit = Part(4), TopLogProbs = TensorView.Of(top, rows, 8) });
            return [.. all.Concat(top).Select(x => float.IsNaN(x) ? 0x7fc00000 : BitConverter.SingleToUInt32Bits(x))];
        }
    }
#endif

    [Theory]
    [InlineData(1e-38f)]
    [InlineData(3e-39f)]
    [InlineData(3e38f)]
    public void Extreme_temperatures_leave_the_largest_or_make_all_alike(float temperature)
    {
        foreach (int vocabulary in (int[])[5, 300])
        {
            float[] logits = Seeded.Normal(vocabulary, 1, 2), entropy = new float[1], saved = new float[2], logProb = new float[1], gradient = new float[vocabulary];
            logits[3] = 9;
            logits[4] = float.NegativeInfinity;
            LogitsProblem problem = new() { Logits = TensorView.Of(logits, 1, vocabulary), Targets = TensorView.Of((int[])[3]), Temperature = temperature };
            LogProbs.FromLogits(Device, problem, new() { LogProb = TensorView.Of(logProb), Entropy = TensorView.Of(entropy), LogSumExp = TensorView.Of(saved, 1, 2) });
            double count = temperature < 1 ? 1 : vocabulary - 1;
            Assert.Equal(-Math.Log(count), logProb[0], 1e-6);
            Assert.Equal(Math.Log(count), entropy[0], 1e-6);
            LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = TensorView.Of(saved, 1, 2) }, new() { LogSumExp = TensorView.Of((float[])[temperature]) }, TensorView.Of(gradient, 1, vocabulary));
            Assert.All(gradient.Select((x, j) => (x, j)), each => Assert.Equal((temperature < 1 ? each.j != 3 : each.j == 4) ? 0 : 1 / count, each.x, 1e-6));
        }
    }

    // x is in ±10 times the factor; |z| goes from 10 to 1e51, beyond what a log-sum-exp can be in float32. Beyond 2²⁴ neighbouring float32s are so far apart that one e^z is nothing beside the other.
    public static TheoryData<float, float> Sizes => new() { { 1, 1 }, { 1, 1e-6f }, { 1, 3e-7f }, { 1, 1e-8f }, { 1, 1e-9f }, { 1, 3e-10f }, { 1e7f, 1e-6f }, { 1e21f, 0.7f }, { 1e30f, 1 }, { 1e20f, 1e-30f } };

    [Theory]
    [MemberData(nameof(Sizes))]
    public void The_gradient_is_as_exact_however_large_the_logits_are(float factor, float temperature)
    {
        const int rows = 16, vocabulary = 300;
        var random = new Random(1);
        float[] logits = [.. Enumerable.Range(0, rows * vocabulary).Select(_ => (20 * random.NextSingle() - 10) * factor)];
        long[] targets = [.. Enumerable.Range(0, rows).Select(_ => (long)random.Next(vocabulary))];
        for (int row = 0; row < rows; row++)
        {
            Span<float> x = logits.AsSpan(row * vocabulary, vocabulary);
            int largest = x.IndexOf(x.ToArray().Max()), other = (largest + 7) % vocabulary;
            x[other] = (row % 4) switch { 0 => x[largest], 1 => float.BitDecrement(x[largest]), _ => x[other] };
            targets[row] = row % 3 == 0 ? largest : row % 3 == 1 ? other : targets[row];
        }
        double[] a = [.. Seeded.Normal(rows, 1).Select(u => (double)(u * temperature))], b = [.. Seeded.Normal(rows, 2).Select(u => (double)(u * temperature))], c = [.. Seeded.Normal(rows, 3).Select(u => (double)(u * temperature))];
        foreach (bool keepsRemainder in (bool[])[false, true])
        {
            foreach (bool withEntropy in (bool[])[false, true])
            {
                float[] saved = new float[keepsRemainder ? 2 * rows : rows], entropy = new float[rows], gradient = new float[rows * vocabulary];
                TensorView logSumExp = keepsRemainder ? TensorView.Of(saved, rows, 2) : TensorView.Of(saved);
                LogitsProblem problem = new() { Logits = TensorView.Of(logits, rows, vocabulary), Targets = TensorView.Of(targets), Temperature = temperature };
                LogProbs.FromLogits(Device, problem, new() { LogSumExp = logSumExp, Entropy = TensorView.Of(entropy) });
                LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = logSumExp, Entropy = TensorView.Of(entropy) }, new()
                {
                    LogProb = TensorView.Of(Array.ConvertAll(a, u => (float)u)),
                    LogSumExp = TensorView.Of(Array.ConvertAll(b, u => (float)u)),
                    Entropy = withEntropy ? TensorView.Of(Array.ConvertAll(c, u => (float)u)) : default,
                }, TensorView.Of(gradient, rows, vocabulary));
                double[] expected = LogProbsOracle.Backward<double>(TransformerKernels.Oracle.Grid.Of(logits, rows, vocabulary), targets, a, b, withEntropy ? c : null, shaping: new(Temperature: temperature)).Data;
                for (int i = 0; i < gradient.Length; i++)
                    Assert.Equal(expected[i], gradient[i], 2e-6);
            }
        }
    }

    [Fact]
    public void A_peaked_row_keeps_the_gradient_of_its_squares()
    {
        // p − Σp² of the peak is 2e-9: in float32 both are 1.
        float[] logits = [.. Enumerable.Repeat(0f, 40)], saved = new float[1], gradient = new float[40];
        logits[3] = 20;
        LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(logits, 1, 40), Targets = TensorView.Of((int[])[5]) }, new() { LogSumExp = TensorView.Of(saved) },
            new() { SumOfSquares = TensorView.Of((float[])[1]) }, TensorView.Of(gradient, 1, 40));
        double[] expected = LogProbsOracle.Backward<double>(TransformerKernels.Oracle.Grid.Of(logits, 1, 40), [5], null, null, null, squaresUpstream: [1]).Data;
        for (int i = 0; i < 40; i++)
            Assert.Equal(expected[i], gradient[i], 1e-5 * Math.Abs(expected[i]));
    }

    [Fact]
    public void Label_smoothing_is_a_gradient_at_the_mean_logit()
    {
        const float smoothing = 0.1f;
        const int vocabulary = 12;
        float[] logits = Seeded.Normal(vocabulary, 1), logProb = new float[1], mean = new float[1], logSumExp = new float[1], gradient = new float[vocabulary];
        LogitsProblem problem = new() { Logits = TensorView.Of(logits, 1, vocabulary), Targets = TensorView.Of((int[])[4]) };
        LogProbs.FromLogits(Device, problem, new() { LogProb = TensorView.Of(logProb), LogSumExp = TensorView.Of(logSumExp), MeanLogit = TensorView.Of(mean) });
        LogProbs.FromLogitsBackward(Device, problem, new() { LogSumExp = TensorView.Of(logSumExp) },
            new() { LogProb = TensorView.Of((float[])[smoothing - 1]), LogSumExp = TensorView.Of((float[])[smoothing]), MeanLogit = TensorView.Of((float[])[-smoothing]) }, TensorView.Of(gradient, 1, vocabulary));
        double loss = 0;
        double[] all = [.. Enumerable.Range(0, vocabulary).Select(j => LogProbsOracle.Forward<double>(TransformerKernels.Oracle.Grid.Of(logits, 1, vocabulary), [j]).LogProb[0])];
        for (int j = 0; j < vocabulary; j++)
        {
            double share = smoothing / vocabulary + (j == 4 ? 1 - smoothing : 0);
            loss -= share * all[j];
            Assert.Equal(Math.Exp(all[j]) - share, gradient[j], 1e-6);
        }
        Assert.Equal(loss, -(1 - smoothing) * logProb[0] - smoothing * (mean[0] - logSumExp[0]), 1e-6);
    }

    private static unsafe ReadOnlySpan<byte> Bytes(TensorView view)
    {
        fixed (byte* data = view)
            return new ReadOnlySpan<byte>(data, (int)view.ElementCount * view.Type.Size()).ToArray();
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(7, 3)]
    [InlineData(16, 16)]
    [InlineData(33, 5)]
    [InlineData(3000, 40)]
    public void Top_tokens_are_the_likeliest_ones_in_order(int vocabulary, int count)
    {
        foreach (ElementType type in (ElementType[])[ElementType.Float32, ElementType.BFloat16])
        {
            var example = new Example(type, vocabulary, "temperature");
            float[] logProbs = new float[Tokens * count], ours = new float[Tokens], lse = new float[Tokens];
            long[] tokens = new long[Tokens * count];
            LogProbs.FromLogits(Device, example.Problem(), new() { TopLogProbs = TensorView.Of(logProbs, Tokens, count), TopTokens = TensorView.Of(tokens, Tokens, count) });
            Assert.Equal(LogProbsOracle.Top(example.Logits, example.Targets, count, shaping: example.Shaping), tokens);
            for (int rank = 0; rank < count; rank++)
            {
                long[] targets = [.. Enumerable.Range(0, Tokens).Select(row => row == 2 ? -100 : tokens[row * count + rank])];
                LogitsProblem problem = example.Problem();
                problem.Targets = TensorView.Of(targets);
                LogProbs.FromLogits(Device, problem, new() { LogProb = TensorView.Of(ours) });
                Assert.Equal(ours, Enumerable.Range(0, Tokens).Select(row => logProbs[row * count + rank]));
            }
        }
    }

    [Fact]
    public void Of_equal_logits_the_first_are_the_likeliest()
    {
        foreach (int vocabulary in (int[])[3, 40, 5000])
        {
            float[] logits = new float[vocabulary], top = new float[2];
            logits.AsSpan(vocabulary / 3, vocabulary / 2).Fill(2);
            int[] tokens = new int[2];
            LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 1, vocabulary), Targets = TensorView.Of(new int[1]) }, new() { TopLogProbs = TensorView.Of(top, 1, 2), TopTokens = TensorView.Of(tokens, 1, 2) });
            Assert.Equal([vocabulary / 3, vocabulary == 3 ? 0 : vocabulary / 3 + 1], tokens);
        }
    }

    [Fact]
    public void Of_equal_logits_the_first_counts_as_the_largest()
    {
        foreach (int vocabulary in (int[])[3, 40, 5000])
        {
            float[] logits = new float[2 * vocabulary];
            logits.AsSpan(vocabulary / 3, vocabulary / 2).Fill(2);
            logits.AsSpan(vocabulary).Fill(float.NegativeInfinity);
            int[] argmax = new int[2];
            var problem = new LogitsProblem { Logits = TensorView.Of(logits, 2, vocabulary), Targets = TensorView.Of(new int[2]) };
            LogProbs.FromLogits(Device, problem, new() { Argmax = TensorView.Of(argmax) });
            Assert.Equal([vocabulary / 3, 0], argmax);
            argmax.AsSpan().Fill(-1);
            LogProbs.FromLogits(Device, problem, new() { Argmax = TensorView.Of(argmax), TopLogProbs = TensorView.Of(new float[4], 2, 2) });
            Assert.Equal([vocabulary / 3, 0], argmax);
        }
    }

    [Fact]
    public void A_NaN_or_an_infinity_is_the_largest_wherever_it_stands()
    {
        foreach (int at in (int[])[0, 17, 2500, 4999])
        {
            foreach (float value in (float[])[float.NaN, float.PositiveInfinity])
            {
                float[] logits = Seeded.Normal(5000, at + 1), squares = new float[1];
                logits[at] = value;
                long[] argmax = new long[1];
                LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 1, 5000), Targets = TensorView.Of(new int[1]) }, new() { Argmax = TensorView.Of(argmax), SumOfSquares = TensorView.Of(squares) });
                Assert.Equal(at, argmax[0]);
                Assert.True(float.IsNaN(squares[0]));
            }
        }
    }

#if !GPU // arrays go to the CPU
    [Fact]
    public void Arrays_give_what_tensors_give()
    {
        float[] logits = Seeded.Normal(30, 1), logProbs = new float[3], entropies = new float[3], expected = new float[3], expectedEntropies = new float[3];
        int[] targets = [4, -100, 0];
        LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(logits, 3, 10), Targets = TensorView.Of(targets) }, new() { LogProb = TensorView.Of(expected), Entropy = TensorView.Of(expectedEntropies) });
        LogProbs.FromLogits(logits, targets, logProbs, entropies);
        Assert.Equal(expected, logProbs);
        Assert.Equal(expectedEntropies, entropies);
        LogProbs.FromLogits(logits, targets, logProbs);
        LogProbs.FromLogits([], [], []);
        Assert.Equal("29 logits aren't 3 rows of a vocabulary. (Parameter 'logits')", Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits.AsSpan(1), targets, logProbs)).Message);
        Assert.Equal("logProbs has the length 2; there are 3 targets. (Parameter 'logProbs')", Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits, targets, logProbs.AsSpan(1))).Message);
        Assert.Equal("entropies has the length 2; there are 3 targets. (Parameter 'entropies')", Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits, targets, logProbs, entropies.AsSpan(1))).Message);
        Assert.Equal("logProbs and logits share memory. (Parameter 'logProbs')", Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits, targets, logits.AsSpan(0, 3))).Message);
        Assert.Equal("entropies and logits share memory. (Parameter 'entropies')", Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits, targets, logProbs, logits.AsSpan(0, 3))).Message);
        Assert.Equal("logProbs and entropies share memory. (Parameter 'logProbs')", Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits, targets, logProbs, logProbs)).Message);
        Assert.Equal("logProbs and targets share memory. (Parameter 'logProbs')",
            Assert.Throws<ArgumentException>(() => LogProbs.FromLogits(logits, targets, MemoryMarshal.Cast<int, float>(targets.AsSpan()))).Message);
        targets[1] = 10;
        Assert.StartsWith("targets[1] is 10; it must lie between 0 and 9, or be -100 to ignore the token. (Parameter 'targets')",
            Assert.Throws<ArgumentOutOfRangeException>(() => LogProbs.FromLogits(logits, targets, logProbs)).Message);
        Assert.Equal(expected, logProbs);
    }

#endif

    [Fact]
    public void A_problem_that_nobody_constructed_ignores_minus_100_at_temperature_1()
    {
        Assert.Equal((-100, 1), (default(LogitsProblem).IgnoreTarget, default(LogitsProblem).Temperature));
        Assert.Equal((-100, 1), (default(HiddenProblem).IgnoreTarget, default(HiddenProblem).Temperature));
        Assert.Equal((0, 0), (new LogitsProblem { IgnoreTarget = 0 }.IgnoreTarget, new LogitsProblem { Temperature = 0 }.Temperature));
        Assert.Equal((0, 0), (new HiddenProblem { IgnoreTarget = 0 }.IgnoreTarget, new HiddenProblem { Temperature = 0 }.Temperature));
    }

    [Fact]
    public void Bad_options_throw_naming_them()
    {
        float[] z = new float[12], out1 = new float[4], wide = new float[8];
        int[] t = new int[4];
        Throws("problem.Bias has the shape [4]; it should be [3]. (Parameter 'problem.Bias')", problem => { problem.Bias = TensorView.Of(out1); return problem; });
        Throws("problem.Bias has the stride 2; it must be 1. (Parameter 'problem.Bias')", problem => { problem.Bias = TensorView.Of(wide, 4, 2).Select(1, 0).Slice(0, 0, 3); return problem; });
        Throws("problem.MeanWeights has the shape [4]; it should be [3].", problem => { problem.MeanWeights = TensorView.Of(out1); return problem; });
        Throws("problem.MeanWeights has the stride 2; it must be 1.", problem => { problem.MeanWeights = TensorView.Of(wide, 4, 2).Select(1, 0).Slice(0, 0, 3); return problem; });
        Throws("problem.Softcap is -1; it must be a positive number, or absent.", problem => { problem.Softcap = -1; return problem; });
        Throws("problem.Softcap is 0; it must be a positive number, or absent.", problem => { problem.Softcap = 0; return problem; });
        Throws("problem.Softcap is NaN; it must be a positive number, or absent.", problem => { problem.Softcap = float.NaN; return problem; });
        Throws("problem.Softcap is 1E-40; it must be at least 2⁻¹²⁶, for logits are multiplied by its reciprocal.", problem => { problem.Softcap = 1e-40f; return problem; });
        Throws("problem.Temperature is 1E-44; it must be above 2⁻¹²⁸, for logits are multiplied by its reciprocal.", problem => { problem.Temperature = 1e-44f; return problem; });
        Throws("problem.Temperature is 1E+38; problem.Softcap, 1E-10, divided by it is 0: logits need a bound that is a positive number.", problem => { (problem.Softcap, problem.Temperature) = (1e-10f, 1e38f); return problem; });
        Throws("problem.Temperature is 1E-10; problem.Softcap, 1E+30, divided by it is ", problem => { (problem.Softcap, problem.Temperature) = (1e30f, 1e-10f); return problem; });
        Throws("problem.Temperature is 0; it must be a positive number.", problem => { problem.Temperature = 0; return problem; });
        Throws("problem.ValidVocabulary is 4; it must lie between 1 and the vocabulary, 3.", problem => { problem.ValidVocabulary = 4; return problem; });
        Throws("problem.ValidVocabulary is 0; it must lie between 1 and the vocabulary, 3.", problem => { problem.ValidVocabulary = 0; return problem; });
#if !GPU // whose kernel finds out
        Throws("problem.Targets[0] is 2; it must lie between 0 and 1, or be -100 to ignore the token.", problem => { problem.ValidVocabulary = 2; t[0] = 2; return problem; });
        t[0] = 0;
#endif
        LogitsProblem plain = new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) };
        Assert.Throws<ArgumentException>("problem.Logits", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(new int[12], 4, 3), Targets = TensorView.Of(t) }, new() { LogProb = TensorView.Of(out1) }));
        Assert.Throws<ArgumentException>("outputs.Argmax", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { Argmax = TensorView.Of(out1) }));
        Assert.Throws<ArgumentException>("outputs.TopLogProbs", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { TopLogProbs = TensorView.Of(new float[16], 4, 4) }));
        Assert.Throws<ArgumentNullException>("outputs.TopLogProbs", () => LogProbs.FromLogits(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { TopTokens = TensorView.Of(new int[4], 4, 1) }));
        Assert.Throws<ArgumentException>("logitsGradient", () => LogProbs.FromLogitsBackward(Device, new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }, new() { LogSumExp = TensorView.Of(out1) }, default, TensorView.Of(new Half[12], 4, 3)));

        void Throws(string message, Change change)
        {
            ArgumentException thrown = Assert.ThrowsAny<ArgumentException>(() => LogProbs.FromLogits(Device, change(new() { Logits = TensorView.Of(z, 4, 3), Targets = TensorView.Of(t) }), new() { LogProb = TensorView.Of(out1) }));
            Assert.StartsWith(message, thrown.Message);
        }
    }

    private delegate LogitsProblem Change(LogitsProblem problem);
}
