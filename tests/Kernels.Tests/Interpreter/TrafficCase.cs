namespace TransformerKernels.Tests;

/// <summary>An operation whose traffic is on record, at two sizes or more.</summary>
/// <param name="Name">As in the record.</param>
/// <param name="Limit">How many times its inputs and outputs, or what it predicts, all of its kernels together may move; so none of them moves more.</param>
/// <param name="Sizes">What <paramref name="Run"/> is given.</param>
/// <param name="Run">Calls the operation once on tensors that it asks the first argument for.</param>
internal sealed record TrafficCase(string Name, double Limit, int[] Sizes, Action<TrafficTensors, int> Run)
{
    // What reads and writes each number once, with room for sums between two passes and for the ends of rows.
    private const double Once = 1.25;

    /// <summary>To put a kernel on record, add its operation here, run the test, and copy the lines it asks for into traffic.txt.</summary>
    public static TrafficCase[] All { get; } =
    [
        new("dpo", Once, [4096, 65_536], (t, pairs) => PreferenceLoss.Evaluate(t.Device,
            new() { Chosen = t.In(pairs), Rejected = t.In(pairs), ReferenceChosen = t.In(pairs), ReferenceRejected = t.In(pairs) }, new DpoSigmoid(0.1f),
            new() { Loss = t.Out(pairs), ChosenGradient = t.Out(pairs), RejectedGradient = t.Out(pairs) }, t.Out(PreferenceMetrics.Count), t.Workspace)),
        new("ppo", Once, [256, 4096], (t, tokens) => PolicyLoss.Evaluate(t.Device, Tokens(t, tokens), new PpoClip(0.2f), new() { LogProbGradient = t.Out(16, tokens) },
            t.Out(PolicyMetrics.Count), t.Workspace)),
        new("ppo with a mask", Once, [256, 4096], (t, tokens) => PolicyLoss.Evaluate(t.Device, Masked(t, tokens, TokenReduction.TokenMean), new PpoClip(0.2f),
            new() { LogProbGradient = t.Out(16, tokens) }, t.Out(PolicyMetrics.Count), t.Workspace)),
        new("ppo with a mask, by sequence", Once, [256, 4096], (t, tokens) => PolicyLoss.Evaluate(t.Device, Masked(t, tokens, TokenReduction.SequenceMeanTokenMean), new PpoClip(0.2f),
            new() { LogProbGradient = t.Out(16, tokens) }, t.Out(PolicyMetrics.Count), t.Workspace)),
        new("gae", Once, [256, 4096], (t, tokens) => GeneralizedAdvantage.Estimate(t.Device, new() { Rewards = t.In(16, tokens), Values = t.In(16, tokens), Gamma = 0.99f, Lambda = 0.95f },
            t.Out(16, tokens), t.Out(16, tokens))),
        new("gae with a mask", Once, [256, 4096], (t, tokens) => GeneralizedAdvantage.Estimate(t.Device,
            new() { Rewards = t.In(16, tokens), Values = t.In(16, tokens), Mask = t.Mask(16, tokens), Gamma = 0.99f, Lambda = 0.95f }, t.Out(16, tokens), t.Out(16, tokens))),
        // A reduction, then an element-wise kernel: no number can be written before all have been read, for their mean and variance. Each has its inputs and outputs.
        new("whitening", Once, [256, 4096], (t, tokens) => GeneralizedAdvantage.Whiten(t.Device, t.Again(t.InOut(16, tokens)))),
        new("whitening with a mask", Once, [256, 4096], (t, tokens) => GeneralizedAdvantage.Whiten(t.Device, t.Again(t.InOut(16, tokens)), t.Again(t.Mask(16, tokens)))),
        new("rotary", Once, [64, 256], (t, tokens) => RotaryEmbedding.Apply(t.Device, t.InOut(1, 8, tokens, 64), t.InOut(1, 2, tokens, 64), t.RotaryTable(64, tokens))),
        new("log-probs", Once, [4096, 32_000], (t, vocabulary) => LogProbs.FromLogits(t.Device, new() { Logits = t.In(4, vocabulary), Targets = t.Targets(4, vocabulary) },
            new() { LogProb = t.Out(4), LogSumExp = t.Out(4), Entropy = t.Out(4) })),
        new("log-probs backward", Once, [2048, 11_264], (t, vocabulary) => LogProbsBackward(t, vocabulary, t.In(4))), // the longest row that is taken so
        new("log-probs backward with what rounding took", Once, [2048, 32_000], (t, vocabulary) => LogProbsBackward(t, vocabulary, t.In(4, 2))),
        new("log-probs and all else with a softcap and a temperature", Once, [4096], (t, vocabulary) => LogProbs.FromLogits(t.Device, Shaped(t.In(4, vocabulary), t.Targets(4, vocabulary)),
            new() { LogProb = t.Out(4), LogSumExp = t.Out(4), Entropy = t.Out(4), SumOfSquares = t.Out(4), MeanLogit = t.Out(4) })),
        new("log-probs backward with a softcap and a temperature", Once, [2048], (t, vocabulary) => ShapedLogProbsBackward(t, vocabulary, t.In(4))),
        new("log-probs backward with a softcap and a temperature and what rounding took", Once, [4096], (t, vocabulary) => ShapedLogProbsBackward(t, vocabulary, t.In(4, 2))),
        // Once for the sums, once to count by the first bits, once to collect.
        new("likeliest tokens", Once, [4096, 32_000], (t, vocabulary) => LogProbs.FromLogits(t.Device,
            new() { Logits = t.Again(t.Again(t.In(4, vocabulary))), Targets = t.Targets(4, vocabulary) }, new() { TopLogProbs = t.Out(4, Math.Min(20, vocabulary)) })),
        new("likeliest tokens with a temperature", Once, [2048, 4096], (t, vocabulary) => LogProbs.FromLogits(t.Device,
            new() { Logits = vocabulary > 2048 ? t.Again(t.Again(t.In(4, vocabulary))) : t.Again(t.In(4, vocabulary)), Targets = t.Targets(4, vocabulary), Temperature = 0.5f },
            new() { TopLogProbs = t.Out(4, Math.Min(20, vocabulary)) })),
        new("sums by sequence", Once, [1024, 4096], (t, tokens) => SequenceLogProbs.Reduce(t.Device, t.In(16 * tokens), Answers(t, tokens, t.Targets(16 * tokens, tokens)),
            new() { Sum = t.Out(16), Mean = t.Out(16) })),
        // The tokens that count are counted before a share can be written.
        new("gradients of sums by sequence", Once, [1024, 4096], (t, tokens) => SequenceLogProbs.Backward(t.Device, Answers(t, tokens, t.Again(t.Targets(16 * tokens, tokens))),
            new() { Sum = t.In(16), Mean = t.In(16) }, t.Out(16 * tokens))),
        new("attention forward", OfTile, [128, 256], (t, length) => AttentionForward(t, t.Device, length, HeadSize, Side64.Length)),
        new("attention backward", OfTile, [128, 256], (t, length) => AttentionBackward(t, t.Device, length, HeadSize, Side64.Length)),
        new("attention forward of short sequences", OfTile, [16, 32], (t, length) => AttentionForward(t, t.Device, length, SmallHeadSize, Side16.Length)),
        new("attention backward of short sequences", OfTile, [16, 32], (t, length) => AttentionBackward(t, t.Device, length, SmallHeadSize, Side16.Length)),
        new("attention backward with a distance bias", OfTile, [128, 256], (t, length) =>
        {
            AttentionProblem problem = Heads(t, length, HeadSize);
            problem.DistanceBias = t.In(2, 2 * length - 1);
            AttentionGradients gradients = new() { Query = t.Out(1, 2, length, HeadSize), DistanceBias = t.Out(2, 2 * length - 1) };
            Attention.Backward(t.Device, problem, new() { Output = t.In(1, 2, length, HeadSize), LogSumExp = t.In(1, 2, length, 2) },
                new() { Output = t.In(1, 2, length, HeadSize) }, gradients, t.Workspace);
            t.Predict(Tiles(length, Side64.Length) * (TileBytes(3 + 2, HeadSize, Side64.Length) + DiagonalBytes) + 3 * HeadsBytes(length, HeadSize));
        }),
        new("attention backward of a rule with two tables", OfTile, [128, 256], (t, length) =>
        {
            AttentionProblem problem = Heads(t, length, HeadSize);
            problem.Captured0 = CapturedTensor.PerHead(t.In(2));
            problem.Captured1 = CapturedTensor.PerHeadAndDistance(t.In(2, 2 * length - 1), length - 1);
            AttentionGradients gradients = new()
            {
                Query = t.Out(1, 2, length, HeadSize), Key = t.Out(1, 2, length, HeadSize), Value = t.Out(1, 2, length, HeadSize),
                Captured0 = t.Out(2), Captured1 = t.Out(2, 2 * length - 1),
            };
            Attention.Backward(t.Device, problem, new Gated<OffsetTemperature>(new OffsetTemperature(0.25f), length), new() { Output = t.In(1, 2, length, HeadSize),
                LogSumExp = t.In(1, 2, length, 2) }, new() { Output = t.In(1, 2, length, HeadSize) }, gradients, t.Workspace);
            // A pass for the queries more for each table.
            t.Predict(Tiles(length, Side64.Length) * (TileBytes(3 + 3, HeadSize, Side64.Length) + 3 * TileBytes(3 + 2, HeadSize, Side64.Length)) + 5 * HeadsBytes(length, HeadSize));
        }),
    ];

    // What the files of the kernels say that a tile moves.
    private const double OfTile = 1.5;

    // Groups of either tile sum up all columns of the small one.
    private const int HeadSize = 64, SmallHeadSize = 32, DiagonalBytes = 1024;

    /// <summary>Two heads forward, in tiles of a side.</summary>
    /// <returns>How many bytes the tiles are to move, of all that is predicted.</returns>
    public static long AttentionForward(TrafficTensors t, GpuDevice device, int length, int headSize, int side)
    {
        Attention.Forward(device, Heads(t, length, headSize), t.Out(1, 2, length, headSize), t.Out(1, 2, length), t.Workspace);
        long tiles = Tiles(length, side) * TileBytes(2 + 1, headSize, side);
        t.Predict(tiles + HeadsBytes(length, headSize) + HeadsBytes(length, 1));
        return tiles;
    }

    /// <summary>The gradients of queries, keys and values.</summary>
    /// <inheritdoc cref="AttentionForward"/>
    public static long AttentionBackward(TrafficTensors t, GpuDevice device, int length, int headSize, int side)
    {
        AttentionGradients gradients = new() { Query = t.Out(1, 2, length, headSize), Key = t.Out(1, 2, length, headSize), Value = t.Out(1, 2, length, headSize) };
        Attention.Backward(device, Heads(t, length, headSize), new() { Output = t.In(1, 2, length, headSize), LogSumExp = t.In(1, 2, length, 2) },
            new() { Output = t.In(1, 2, length, headSize) }, gradients, t.Workspace);
        // A pass over the tiles for keys and values and one for queries; before them output and its gradient once; behind them the three gradients.
        long tiles = Tiles(length, side) * (TileBytes(3 + 3, headSize, side) + TileBytes(3 + 2, headSize, side));
        t.Predict(tiles + 5 * HeadsBytes(length, headSize));
        return tiles;
    }

    private static long Tiles(int length, int side) => 2L * (length / side) * (length / side);

    private static long TileBytes(int stagings, int headSize, int side) => (long)side * stagings * headSize * sizeof(float);

    private static long HeadsBytes(int length, int size) => 2L * length * size * sizeof(float);

    private static AttentionProblem Heads(TrafficTensors t, int length, int headSize) =>
        new() { Query = t.In(1, 2, length, headSize), Key = t.In(1, 2, length, headSize), Value = t.In(1, 2, length, headSize) };

    private static TokenBatch Tokens(TrafficTensors t, int tokens) => new() { LogProb = t.In(16, tokens), OldLogProb = t.In(16, tokens), Advantage = t.In(16, tokens) };

    private static TokenBatch Masked(TrafficTensors t, int tokens, TokenReduction reduction)
    {
        TokenBatch batch = Tokens(t, tokens);
        batch.Mask = t.Mask(16, tokens);
        batch.Reduction = reduction;
        return batch;
    }

    private static SequenceLayout Answers(TrafficTensors t, int tokens, in TensorView targets) => new() { CumulativeLengths = t.Indices([.. Enumerable.Range(0, 17).Select(i => i * tokens)]), Targets = targets };

    private static LogitsProblem Shaped(in TensorView logits, in TensorView targets) => new() { Logits = logits, Targets = targets, Softcap = 30, Temperature = 0.7f };

    private static void ShapedLogProbsBackward(TrafficTensors t, int vocabulary, in TensorView logSumExp)
    {
        var logits = t.InOut(4, vocabulary);
        LogProbs.FromLogitsBackward(t.Device, Shaped(logits, t.Targets(4, vocabulary)), new() { LogSumExp = logSumExp, Entropy = t.In(4) }, new() { LogProb = t.In(4) }, logits);
    }

    private static void LogProbsBackward(TrafficTensors t, int vocabulary, in TensorView logSumExp)
    {
        var logits = t.InOut(4, vocabulary);
        LogProbs.FromLogitsBackward(t.Device, new() { Logits = logits, Targets = t.Targets(4, vocabulary) }, new() { LogSumExp = logSumExp, Entropy = t.In(4) }, new() { LogProb = t.In(4) }, logits);
    }
}

/// <summary>Tensors for one call, counted: how many bytes it has to move at least.</summary>
internal sealed class TrafficTensors(GpuDevice device) : IDisposable
{
    private readonly List<IDisposable> owned = [];
    private Workspace? workspace;

    public GpuDevice Device => device;

    /// <summary>Inputs and outputs, what is both counted twice; or what was predicted.</summary>
    public long Bytes { get; private set; }

    public Workspace Workspace => workspace ??= Own(new Workspace(device));

    /// <summary>A float tensor that is read.</summary>
    public TensorView In(params ReadOnlySpan<long> shape)
    {
        long count = 1;
        foreach (long length in shape)
            count *= length;
        TensorBuffer buffer = Own(device.Upload<float>(Seeded.Normal((int)count, owned.Count), shape));
        Bytes += buffer.ByteCount;
        return buffer;
    }

    /// <summary>A float tensor that is written.</summary>
    public TensorView Out(params ReadOnlySpan<long> shape)
    {
        TensorBuffer buffer = Own(device.Allocate(ElementType.Float32, shape));
        Bytes += buffer.ByteCount;
        return buffer;
    }

    /// <summary>A float tensor that is read and written.</summary>
    public TensorView InOut(params ReadOnlySpan<long> shape)
    {
        TensorView view = In(shape);
        Bytes += view.ElementCount * sizeof(float);
        return view;
    }

    /// <summary>A tensor that a second kernel of the operation reads too.</summary>
    public TensorView Again(TensorView view)
    {
        Bytes += view.ElementCount * view.Type.Size();
        return view;
    }

    /// <summary>What a tiled operation moves, in place of its inputs and outputs.</summary>
    public void Predict(long bytes) => Bytes = bytes;

    /// <summary>A mask that keeps everything.</summary>
    public TensorView Mask(int rows, int columns)
    {
        TensorBuffer buffer = Own(device.Upload<bool>(Enumerable.Repeat(true, rows * columns).ToArray(), rows, columns));
        Bytes += buffer.ByteCount;
        return buffer;
    }

    public TensorView Targets(int rows, int vocabulary) => Indices([.. Enumerable.Range(0, rows).Select(row => row * 1009 % vocabulary)]);

    /// <summary>Whole numbers that are read.</summary>
    public TensorView Indices(int[] values)
    {
        TensorBuffer buffer = Own(device.Upload<int>(values));
        Bytes += buffer.ByteCount;
        return buffer;
    }

    public RotaryTable RotaryTable(int headSize, int positions)
    {
        Bytes += (long)headSize * positions * sizeof(float); // a cosine and a sine for each pair
        return Own(TransformerKernels.RotaryTable.Build(device, headSize, positions));
    }

    public void Dispose()
    {
        foreach (IDisposable disposable in owned)
            disposable.Dispose();
    }

    private T Own<T>(T disposable) where T : IDisposable
    {
        owned.Add(disposable);
        return disposable;
    }
}
