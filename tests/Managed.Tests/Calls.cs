using System.Collections.Concurrent;

namespace TransformerKernels.Tests;

/// <summary>One call of every operation, for what is promised of all of them: same bits on any number of threads, nothing touched outside, nothing allocated.</summary>
public static class Calls
{
    public delegate void Call(ComputeDevice device, CallMemory memory);

    private static readonly Dictionary<string, Func<bool, Call>> All = new()
    {
        ["rotary, half split"] = large => Rotary(large, RotaryPairing.HalfSplit, backward: false),
        ["rotary, interleaved, backward"] = large => Rotary(large, RotaryPairing.Interleaved, backward: true),
        ["attention, every bias"] = large => Attention(large, hasRule: false),
        ["attention, every bias, a rule with captured tensors"] = large => Attention(large, hasRule: true),
        ["attention, documents in a row"] = large => AttentionOfDocuments(large),
        ["attention, packed queries, keys and values alone"] = large => AttentionOfPacked(large),
        ["log-probs"] = large => FromLogits(large),
        ["log-probs, backward"] = large => FromLogitsBackward(large, keepsRemainder: false),
        ["log-probs, backward with what rounding took"] = large => FromLogitsBackward(large, keepsRemainder: true),
        ["log-probs, backward, all options, bfloat16"] = large => FromStoredLogits(large, x => new BFloat16((ushort)(BitConverter.SingleToUInt32Bits(x) >> 16)), inPlace: false),
        ["log-probs, backward in place, all options, bfloat16"] = large => FromStoredLogits(large, x => new BFloat16((ushort)(BitConverter.SingleToUInt32Bits(x) >> 16)), inPlace: true),
        ["log-probs, backward in place, all options, float16"] = large => FromStoredLogits(large, x => (Half)x, inPlace: true),
        ["log-probs from hidden states"] = large => FromHidden(large),
        ["log-probs from hidden states, training"] = large => TrainFromHidden(large),
        ["log-probs from hidden states, training, float16 and bfloat16"] = large => TrainFromStoredHidden(large),
        ["likeliest tokens from hidden states"] = large => TopFromHidden(large),
        ["vocabulary shards from logits"] = large => ShardsFromLogits(large),
        ["vocabulary shards from hidden states"] = large => ShardsFromHidden(large),
        ["log-probs of preference pairs from hidden states"] = large => Answers(large),
        ["log-probs by sequence"] = large => BySequence(large),
        ["preference loss"] = large => Preference(large, withGradients: true),
        ["preference loss without gradients"] = large => Preference(large, withGradients: false),
        ["policy loss"] = large => Policy(large, TokenReduction.TokenMean),
        ["policy loss, sequence means"] = large => Policy(large, TokenReduction.SequenceMeanTokenMean),
        ["advantages"] = large => Advantages(large, masked: false),
        ["advantages, masked"] = large => Advantages(large, masked: true),
        ["whitening"] = large => Whitening(large),
    };

    public static IEnumerable<string> Names => All.Keys;

    /// <param name="name">One of <see cref="Names"/>.</param>
    /// <param name="large">Many items of work, and not a multiple of anything; else few.</param>
    public static Call Of(string name, bool large) => All[name](large);

    private static Call Rotary(bool large, RotaryPairing pairing, bool backward)
    {
        (int batch, int tokens, int heads, int keyHeads, int size, int rotary) = large ? (3, 333, 5, 2, 70, 66) : (2, 5, 3, 1, 37, 34);
        float[] query = Seeded.Normal((long)batch * tokens * heads * size, 1), key = Seeded.Normal((long)batch * tokens * keyHeads * size, 2);
        RotaryTable table = RotaryTable.Build(ComputeDevice.Cpu, rotary, tokens + 3);
        int[] ids = [.. Enumerable.Range(0, batch * tokens).Select(i => i * 7 % tokens)];
        return (device, memory) =>
        {
            TensorView q = memory.Put("query", query, batch, tokens, heads, size).Permute(0, 2, 1, 3), k = memory.Put("key", key, batch, tokens, keyHeads, size).Permute(0, 2, 1, 3);
            var options = new RotaryOptions { Pairing = pairing, PositionIds = memory.Put("ids", ids, batch, tokens), Offset = 3 };
            if (backward)
                RotaryEmbedding.Backward(device, q, k, table, options);
            else
                RotaryEmbedding.Apply(device, q, k, table, options);
        };
    }

    // Forward and backward, with all that a problem can have.
    private static Call Attention(bool large, bool hasRule)
    {
        (int batch, int heads, int keyHeads, int queries, int keys, int size, int valueSize) = large ? (2, 4, 2, 100, 530, 20, 12) : (2, 2, 1, 5, 7, 3, 5);
        const int buckets = 12;
        (int height, int width) = large ? (20, 27) : (2, 4);
        int cells = (2 * height - 1) * (2 * width - 1);
        int[] lengths = [keys, keys / 2];
        long[] offsets = [keys - queries, keys - queries - 1];
        bool[] mask = [.. Enumerable.Range(0, batch * queries * keys).Select(n => n * 7 % 11 != 0 || n % keys < 64)];
        var made = new ConcurrentDictionary<string, float[]>();
        float[] Made(string name, int seed, ReadOnlySpan<long> shape)
        {
            if (!made.TryGetValue(name, out float[]? numbers))
                made[name] = numbers = seed == 0 ? new float[Count(shape)] : Seeded.Normal(Count(shape), seed);
            return numbers;
        }
        return (device, memory) =>
        {
            TensorView Input(string name, int seed, params ReadOnlySpan<long> shape) => memory.Put(name, Made(name, seed, shape), shape);
            TensorView Output(string name, params ReadOnlySpan<long> shape) => memory.Put(name, Made(name, 0, shape), shape);
            var problem = new AttentionProblem
            {
                Query = Input("query", 1, batch, heads, queries, size), Key = Input("key", 2, batch, keyHeads, keys, size), Value = Input("value", 3, batch, keyHeads, keys, valueSize),
                Causal = true, Softcap = 5, Sinks = Input("sinks", 13, heads), KeyLengths = memory.Put("lengths", lengths),
                QueryOffsets = memory.Put("offsets", offsets), Mask = memory.Put("mask", mask, batch, 1, queries, keys),
                Slopes = Input("slopes", 4, heads), DistanceBias = Input("distance", 5, heads, queries + keys + 2), BucketedBias = new(Input("table", 6, buckets, heads), 40, bidirectional: false),
                GridBias = new(Input("cells", 14, cells, heads), height, width),
                DenseBias = Input("dense", 7, 1, heads, queries, keys), RowBias = Input("row", 8, batch, heads, queries), ColumnBias = Input("column", 9, batch, 1, keys),
            };
            var gradients = new AttentionGradients
            {
                Query = Output("of query", batch, heads, queries, size), Key = Output("of key", batch, keyHeads, keys, size), Value = Output("of value", batch, keyHeads, keys, valueSize),
                Slopes = Output("of slopes", heads), DistanceBias = Output("of distance", heads, queries + keys + 2), BucketedBias = Output("of table", buckets, heads), GridBias = Output("of cells", cells, heads),
                DenseBias = Output("of dense", 1, heads, queries, keys), RowBias = Output("of row", batch, heads, queries), ColumnBias = Output("of column", batch, 1, keys), Sinks = Output("of sinks", heads),
            };
            if (hasRule)
            {
                problem.Captured0 = CapturedTensor.PerHead(Input("gains", 10, heads));
                gradients.Captured0 = Output("of gains", heads);
            }
            TensorView output = Output("output", batch, heads, queries, valueSize), logSumExp = Output("log-sum-exp", batch, heads, queries);
            var saved = new AttentionSaved { Output = output, LogSumExp = logSumExp };
            var upstream = new AttentionUpstream { Output = Input("upstream", 11, batch, heads, queries, valueSize), LogSumExp = Input("of log-sum-exp", 12, batch, heads, queries) };
            if (hasRule)
            {
                TransformerKernels.Attention.Forward(device, problem, new Temperature(0.1f, 400), output, logSumExp, memory.Workspace(device));
                TransformerKernels.Attention.Backward(device, problem, new Temperature(0.1f, 400), saved, upstream, gradients, memory.Workspace(device));
            }
            else
            {
                TransformerKernels.Attention.Forward(device, problem, output, logSumExp, memory.Workspace(device));
                TransformerKernels.Attention.Backward(device, problem, saved, upstream, gradients, memory.Workspace(device));
            }
        };
    }

    // Tiles of which a part is computed, and nothing written out but what hides: no bias, documents of 37 and 3.
    private static Call AttentionOfDocuments(bool large)
    {
        (int positions, int size, int document) = large ? (301, 18, 37) : (7, 3, 3);
        float[] q = Seeded.Normal(positions * size, 1), k = Seeded.Normal(positions * size, 2), v = Seeded.Normal(positions * size, 3), upstream = Seeded.Normal(positions * size, 4);
        float[] o = new float[q.Length], l = new float[2 * positions], dq = new float[q.Length], dk = new float[q.Length], dv = new float[q.Length];
        bool[] mask = [.. Enumerable.Range(0, positions * positions).Select(n => n / positions / document == n % positions / document)];
        return (device, memory) =>
        {
            TensorView Put(string name, float[] numbers) => memory.Put(name, numbers, 1, 1, positions, size);
            var problem = new AttentionProblem { Query = Put("query", q), Key = Put("key", k), Value = Put("value", v), Causal = true, Mask = memory.Put("mask", mask, 1, 1, positions, positions) };
            TensorView output = Put("output", o), logSumExp = memory.Put("log-sum-exp", l, 1, 1, positions, 2);
            TransformerKernels.Attention.Forward(device, problem, output, logSumExp, memory.Workspace(device));
            TransformerKernels.Attention.Backward(device, problem, new AttentionSaved { Output = output, LogSumExp = logSumExp }, new AttentionUpstream { Output = Put("upstream", upstream) },
                new AttentionGradients { Query = Put("of query", dq), Key = Put("of key", dk), Value = Put("of value", dv) }, memory.Workspace(device));
        };
    }

    // Nothing beside the three, which lie side by side, and so do their gradients: rows end at a guarded page with nothing behind them.
    private static Call AttentionOfPacked(bool large)
    {
        (int tokens, int heads, int size) = large ? (301, 3, 21) : (7, 2, 3);
        float[] packed = Seeded.Normal((long)tokens * 3 * heads * size, 1), zeros = new float[packed.Length], upstream = Seeded.Normal((long)tokens * heads * size, 2), o = new float[upstream.Length], l = new float[heads * tokens];
        return (device, memory) =>
        {
            TensorView Part(string name, float[] numbers, int part) => memory.Put(name, numbers, 1, tokens, 3, heads, size).Select(2, part).Permute(0, 2, 1, 3);
            TensorView Own(string name, float[] numbers) => memory.Put(name, numbers, 1, tokens, heads, size).Permute(0, 2, 1, 3);
            var problem = new AttentionProblem { Query = Part("packed", packed, 0), Key = Part("packed", packed, 1), Value = Part("packed", packed, 2) };
            TensorView output = Own("output", o), logSumExp = memory.Put("log-sum-exp", l, 1, heads, tokens);
            TransformerKernels.Attention.Forward(device, problem, output, logSumExp, memory.Workspace(device));
            TransformerKernels.Attention.Backward(device, problem, new AttentionSaved { Output = output, LogSumExp = logSumExp }, new AttentionUpstream { Output = Own("upstream", upstream) },
                new AttentionGradients { Query = Part("of packed", zeros, 0), Key = Part("of packed", zeros, 1), Value = Part("of packed", zeros, 2) }, memory.Workspace(device));
        };
    }

    private static long Count(ReadOnlySpan<long> shape)
    {
        long count = 1;
        foreach (long length in shape)
            count *= length;
        return count;
    }

    private static (float[] Logits, long[] Targets, int Rows, int Vocabulary) Logits(bool large)
    {
        (int rows, int vocabulary) = large ? (97, 5003) : (3, 37);
        var targets = new long[rows];
        for (int row = 0; row < rows; row++)
            targets[row] = row % 5 == 4 ? -100 : row * 31 % vocabulary;
        return (Seeded.Normal((long)rows * vocabulary, 1, 3), targets, rows, vocabulary);
    }

    private static Call FromLogits(bool large)
    {
        (float[] logits, long[] targets, int rows, int vocabulary) = Logits(large);
        var zeros = new float[rows];
        return (device, memory) => LogProbs.FromLogits(device,
            new() { Logits = memory.Put("logits", logits, rows, vocabulary), Targets = memory.Put("targets", targets) },
            new() { LogProb = memory.Put("log-prob", zeros), LogSumExp = memory.Put("log-sum-exp", zeros), Entropy = memory.Put("entropy", zeros) });
    }

    private static Call FromLogitsBackward(bool large, bool keepsRemainder)
    {
        (float[] logits, long[] targets, int rows, int vocabulary) = Logits(large);
        float[] zeros = new float[rows], pairs = new float[2 * rows], a = Seeded.Normal(rows, 2), b = Seeded.Normal(rows, 3), c = Seeded.Normal(rows, 4);
        return (device, memory) =>
        {
            TensorView z = memory.Put("logits", logits, rows, vocabulary), entropy = memory.Put("entropy", zeros);
            TensorView logSumExp = keepsRemainder ? memory.Put("log-sum-exp", pairs, rows, 2) : memory.Put("log-sum-exp", zeros);
            LogitsProblem problem = new() { Logits = z, Targets = memory.Put("targets", targets) };
            LogProbs.FromLogits(device, problem, new() { LogSumExp = logSumExp, Entropy = entropy });
            LogProbs.FromLogitsBackward(device, problem, new() { LogSumExp = logSumExp, Entropy = entropy },
                new() { LogProb = memory.Put("of log-prob", a), LogSumExp = memory.Put("of log-sum-exp", b), Entropy = memory.Put("of entropy", c) }, z);
        };
    }

    // Elements of any two-byte type of this name are bfloat16.
    private readonly record struct BFloat16(ushort Bits);

    private static Call FromStoredLogits<T>(bool large, Converter<float, T> store, bool inPlace) where T : unmanaged
    {
        (float[] logits, long[] targets, int rows, int vocabulary) = Logits(large);
        T[] stored = Array.ConvertAll(logits, store);
        int[] likeliest = new int[rows];
        long[] tokens = new long[3 * rows];
        float[] zeros = new float[rows], top = new float[3 * rows], a = Seeded.Normal(rows, 2), gradient = new float[logits.Length], bias = Seeded.Normal(vocabulary, 3);
        return (device, memory) =>
        {
            TensorView logSumExp = memory.Put("log-sum-exp", zeros), upstream = memory.Put("of log-prob", a);
            LogitsProblem problem = new()
            {
                Logits = memory.Put("logits", stored, rows, vocabulary),
                Targets = memory.Put("targets", targets),
                Bias = memory.Put("bias", bias),
                MeanWeights = memory.Put("weights", bias),
                Softcap = 20,
                Temperature = 1.5f,
                ValidVocabulary = vocabulary - 2,
            };
            LogProbs.FromLogits(device, problem, new() { LogSumExp = logSumExp, SumOfSquares = memory.Put("squares", zeros), TopLogProbs = memory.Put("top", top, rows, 3), TopTokens = memory.Put("top tokens", tokens, rows, 3), Argmax = memory.Put("argmax", likeliest), MeanLogit = memory.Put("mean", zeros) });
            LogProbs.FromLogitsBackward(device, problem, new() { LogSumExp = logSumExp }, new() { LogProb = upstream, SumOfSquares = upstream, MeanLogit = upstream },
                inPlace ? problem.Logits : memory.Put("gradient", gradient, rows, vocabulary));
        };
    }

    private static (float[] Hidden, float[] Entries, long[] Targets, int Tokens, int Width, int Vocabulary) Hidden(bool large)
    {
        (int tokens, int width, int vocabulary) = large ? (83, 37, 2111) : (5, 19, 67);
        var targets = new long[tokens];
        for (int i = 0; i < tokens; i++)
            targets[i] = i % 5 == 4 ? -100 : i * 31 % vocabulary;
        return (Seeded.Normal(tokens * width, 1), Seeded.Normal(vocabulary * width, 2, 0.3f), targets, tokens, width, vocabulary);
    }

    private static Call FromHidden(bool large)
    {
        (float[] hidden, float[] entries, long[] targets, int tokens, int width, int vocabulary) = Hidden(large);
        var zeros = new float[tokens];
        return (device, memory) => LogProbs.FromHidden(device,
            new() { Hidden = memory.Put("hidden", hidden, tokens, width), Vocabulary = memory.Put("vocabulary", entries, vocabulary, width), Targets = memory.Put("targets", targets) },
            new() { LogProb = memory.Put("log-prob", zeros), Entropy = memory.Put("entropy", zeros), SumOfSquares = memory.Put("squares", zeros) }, memory.Workspace(device));
    }

    private static Call TrainFromHidden(bool large)
    {
        (float[] hidden, float[] entries, long[] targets, int tokens, int width, int vocabulary) = Hidden(large);
        float[] zeros = new float[tokens], a = Seeded.Normal(tokens, 3), bias = Seeded.Normal(vocabulary, 4), ofHidden = new float[hidden.Length], ofVocabulary = new float[entries.Length], ofBias = new float[vocabulary];
        return (device, memory) => LogProbs.TrainFromHidden(device,
            new() { Hidden = memory.Put("hidden", hidden, tokens, width), Vocabulary = memory.Put("vocabulary", entries, vocabulary, width), Targets = memory.Put("targets", targets), Bias = memory.Put("bias", bias), MeanWeights = memory.Put("weights", bias) },
            new() { LogProb = memory.Put("of log-prob", a), Entropy = memory.Put("of entropy", a), SumOfSquares = memory.Put("of squares", a), MeanLogit = memory.Put("of mean", a) },
            new() { LogProb = memory.Put("log-prob", zeros), MeanLogit = memory.Put("mean", zeros) },
            new() { Hidden = memory.Put("of hidden", ofHidden, tokens, width), Vocabulary = memory.Put("of vocabulary", ofVocabulary, vocabulary, width), Bias = memory.Put("of bias", ofBias) },
            memory.Workspace(device));
    }

    private static Call TrainFromStoredHidden(bool large)
    {
        (float[] hidden, float[] entries, long[] targets, int tokens, int width, int vocabulary) = Hidden(large);
        Half[] storedHidden = Array.ConvertAll(hidden, x => (Half)x);
        BFloat16[] storedEntries = Array.ConvertAll(entries, x => new BFloat16((ushort)(BitConverter.SingleToUInt32Bits(x) >> 16)));
        float[] zeros = new float[tokens], a = Seeded.Normal(tokens, 3), ofHidden = new float[hidden.Length], ofVocabulary = new float[entries.Length];
        int[] likeliest = new int[tokens];
        return (device, memory) => LogProbs.TrainFromHidden(device,
            new() { Hidden = memory.Put("hidden", storedHidden, tokens, width), Vocabulary = memory.Put("vocabulary", storedEntries, vocabulary, width), Targets = memory.Put("targets", targets), Softcap = 20 },
            new() { LogProb = memory.Put("of log-prob", a) }, new() { LogProb = memory.Put("log-prob", zeros), Argmax = memory.Put("argmax", likeliest) },
            new() { Hidden = memory.Put("of hidden", ofHidden, tokens, width), Vocabulary = memory.Put("of vocabulary", ofVocabulary, vocabulary, width) }, memory.Workspace(device));
    }

    private static Call TopFromHidden(bool large)
    {
        (float[] hidden, float[] entries, long[] targets, int tokens, int width, int vocabulary) = Hidden(large);
        float[] top = new float[5 * tokens];
        long[] ids = new long[5 * tokens];
        return (device, memory) => LogProbs.FromHidden(device,
            new() { Hidden = memory.Put("hidden", hidden, tokens, width), Vocabulary = memory.Put("vocabulary", entries, vocabulary, width), Targets = memory.Put("targets", targets) },
            new() { TopLogProbs = memory.Put("top", top, tokens, 5), TopTokens = memory.Put("top tokens", ids, tokens, 5) }, memory.Workspace(device));
    }

    private static Call ShardsFromLogits(bool large)
    {
        (float[] logits, long[] targets, int rows, int vocabulary) = Logits(large);
        float[] partials = new float[2 * rows * ShardPartials.Count], whole = new float[rows * ShardPartials.Count], zeros = new float[rows], a = Seeded.Normal(rows, 2);
        int first = vocabulary / 3;
        return (device, memory) =>
        {
            TensorView z = memory.Put("logits", logits, rows, vocabulary), y = memory.Put("targets", targets), parts = memory.Put("partials", partials, 2, rows, ShardPartials.Count);
            TensorView merged = memory.Put("merged", whole, rows, ShardPartials.Count), upstream = memory.Put("upstream", a);
            LogitsProblem one = new() { Logits = z.Slice(1, 0, first), Targets = y }, two = new() { Logits = z.Slice(1, first, vocabulary - first), Targets = y };
            VocabularyShards.FromLogits(device, one, new(0, vocabulary), parts.Select(0, 0));
            VocabularyShards.FromLogits(device, two, new(first, vocabulary), parts.Select(0, 1));
            VocabularyShards.Merge(device, parts, new() { LogProb = memory.Put("log-prob", zeros), Entropy = memory.Put("entropy", zeros) }, merged);
            VocabularyShards.FromLogitsBackward(device, one, new(0, vocabulary), merged, new() { LogProb = upstream, Entropy = upstream }, one.Logits);
            VocabularyShards.FromLogitsBackward(device, two, new(first, vocabulary), merged, new() { LogProb = upstream, Entropy = upstream }, two.Logits);
        };
    }

    private static Call ShardsFromHidden(bool large)
    {
        (float[] hidden, float[] entries, long[] targets, int tokens, int width, int vocabulary) = Hidden(large);
        float[] partials = new float[tokens * ShardPartials.Count], a = Seeded.Normal(tokens, 3), ofHidden = new float[hidden.Length], ofVocabulary = new float[entries.Length];
        return (device, memory) =>
        {
            // The first slice of two; the other one says nothing.
            HiddenProblem problem = new() { Hidden = memory.Put("hidden", hidden, tokens, width), Vocabulary = memory.Put("vocabulary", entries, vocabulary, width), Targets = memory.Put("targets", targets) };
            TensorView parts = memory.Put("partials", partials, tokens, ShardPartials.Count), upstream = memory.Put("upstream", a);
            VocabularyShards.FromHidden(device, problem, new(7, 2 * vocabulary), parts, memory.Workspace(device));
            VocabularyShards.FromHiddenBackward(device, problem, new(7, 2 * vocabulary), parts, new() { LogProb = upstream, Entropy = upstream },
                new() { Hidden = memory.Put("of hidden", ofHidden, tokens, width), Vocabulary = memory.Put("of vocabulary", ofVocabulary, vocabulary, width) }, memory.Workspace(device));
        };
    }

    private static Call Answers(bool large)
    {
        (float[] hidden, float[] entries, long[] targets, int tokens, int width, int vocabulary) = Hidden(large);
        bool[] mask = Seeded.Mask(tokens, 5);
        int[] bounds = [0, 1, tokens / 3, tokens / 2, tokens - 1];
        float[] zeros = new float[2], ofHidden = new float[hidden.Length], ofVocabulary = new float[entries.Length];
        return (device, memory) =>
        {
            HiddenProblem policy = new() { Hidden = memory.Put("hidden", hidden, tokens, width), Vocabulary = memory.Put("vocabulary", entries, vocabulary, width), Targets = memory.Put("targets", targets) };
            PreferenceProblem problem = new() { Policy = policy, Reference = policy, CumulativeLengths = memory.Put("bounds", bounds), Mask = memory.Put("mask", mask), Reduction = SequenceReduction.Mean };
            TensorView chosen = memory.Put("chosen", zeros), rejected = memory.Put("rejected", zeros);
            PreferenceLogProbs.FromHidden(device, problem, new() { Chosen = chosen, Rejected = rejected, ReferenceChosen = memory.Put("reference chosen", zeros) }, memory.Workspace(device));
            PreferenceLogProbs.FromHiddenBackward(device, problem, new() { Chosen = chosen, Rejected = rejected },
                new() { Hidden = memory.Put("of hidden", ofHidden, tokens, width), Vocabulary = memory.Put("of vocabulary", ofVocabulary, vocabulary, width) }, memory.Workspace(device));
        };
    }

    private static Call BySequence(bool large)
    {
        (int sequences, int tokens) = large ? (301, 9001) : (3, 19);
        float[] values = Seeded.Normal(tokens, 1), zeros = new float[sequences], gradient = new float[tokens];
        bool[] mask = Seeded.Mask(tokens, 2);
        int[] bounds = [.. Enumerable.Range(0, sequences + 1).Select(s => (int)((long)s * s * tokens / ((long)sequences * sequences)))];
        return (device, memory) =>
        {
            SequenceLayout layout = new() { CumulativeLengths = memory.Put("bounds", bounds), Mask = memory.Put("mask", mask) };
            TensorView mean = memory.Put("mean", zeros);
            SequenceLogProbs.Reduce(device, memory.Put("values", values), layout, new() { Sum = memory.Put("sum", zeros), Mean = mean });
            SequenceLogProbs.Backward(device, layout, new() { Mean = mean }, memory.Put("gradient", gradient));
        };
    }

    private static Call Preference(bool large, bool withGradients)
    {
        int pairs = large ? 50_021 : 37;
        float[][] inputs = [.. Enumerable.Range(0, 4).Select(i => Seeded.Normal(pairs, i, 20))];
        float[] zeros = new float[pairs], metrics = new float[PreferenceMetrics.Count];
        return (device, memory) => PreferenceLoss.Evaluate(device, new()
        {
            Chosen = memory.Put("chosen", inputs[0]),
            Rejected = memory.Put("rejected", inputs[1]),
            ReferenceChosen = memory.Put("reference chosen", inputs[2]),
            ReferenceRejected = memory.Put("reference rejected", inputs[3]),
        }, new DpoSigmoid(0.1f, 0.1f), new()
        {
            Loss = memory.Put("loss", zeros),
            ChosenGradient = withGradients ? memory.Put("of chosen", zeros) : default,
            RejectedGradient = withGradients ? memory.Put("of rejected", zeros) : default,
            ReferenceChosenGradient = withGradients ? memory.Put("of reference chosen", zeros) : default,
            ChosenReward = memory.Put("chosen reward", zeros),
        }, memory.Put("metrics", metrics), memory.Workspace(device));
    }

    private static Call Policy(bool large, TokenReduction reduction)
    {
        (int sequences, int tokens) = large ? (301, 173) : (3, 19);
        int count = sequences * tokens;
        float[] now = Seeded.Normal(count, 1), old = Seeded.Normal(count, 2), advantage = Seeded.Normal(sequences, 3), zeros = new float[count], metrics = new float[PolicyMetrics.Count];
        bool[] mask = Seeded.Mask(count, 4);
        return (device, memory) => PolicyLoss.Evaluate(device, new()
        {
            LogProb = memory.Put("log-prob", now, sequences, tokens),
            OldLogProb = memory.Put("old log-prob", old, sequences, tokens),
            Advantage = memory.Put("advantage", advantage, sequences, 1).Expand(1, tokens),
            Mask = memory.Put("mask", mask, sequences, tokens),
            Reduction = reduction,
        }, new PpoClip(), new() { Loss = memory.Put("loss", zeros, sequences, tokens), LogProbGradient = memory.Put("of log-prob", zeros, sequences, tokens) },
            memory.Put("metrics", metrics), memory.Workspace(device));
    }

    private static Call Advantages(bool large, bool masked)
    {
        (int sequences, int tokens) = large ? (301, 173) : (19, 21);
        float[] rewards = Seeded.Normal(sequences * tokens, 1), values = Seeded.Normal(sequences * tokens, 2), zeros = new float[sequences * tokens];
        bool[] mask = Seeded.Mask(sequences * tokens, 3);
        return (device, memory) => GeneralizedAdvantage.Estimate(device, new()
        {
            Rewards = memory.Put("rewards", rewards, sequences, tokens),
            Values = memory.Put("values", values, sequences, tokens),
            Mask = masked ? memory.Put("mask", mask, sequences, tokens) : default,
            Gamma = 0.99f,
            Lambda = 0.95f,
        }, memory.Put("advantages", zeros, sequences, tokens), memory.Put("returns", zeros, sequences, tokens));
    }

    private static Call Whitening(bool large)
    {
        (int sequences, int tokens) = large ? (301, 173) : (3, 19);
        float[] values = Seeded.Normal(sequences * tokens, 1);
        bool[] mask = Seeded.Mask(sequences * tokens, 3);
        return (device, memory) => GeneralizedAdvantage.Whiten(device, memory.Put("values", values, sequences, tokens), memory.Put("mask", mask, sequences, tokens));
    }
}
