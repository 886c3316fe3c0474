namespace TransformerKernels.Tests;

/// <summary>An operation whose traffic is on record, at two sizes or more.</summary>
/// <param name="Name">As in the record.</param>
/// <param name="Limit">How many times its inputs and outputs it may move.</param>
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
            new() { Loss = t.Out(pairs), Chosen = t.Out(pairs), Rejected = t.Out(pairs) }, t.Out(PreferenceMetrics.Count), t.Workspace)),
        new("rotary", Once, [64, 256], (t, tokens) => RotaryEmbedding.Apply(t.Device, t.InOut(1, 8, tokens, 64), t.InOut(1, 2, tokens, 64), t.RotaryTable(64, tokens))),
        new("log-probs", Once, [4096, 32_000], (t, vocabulary) => LogProbs.FromLogits(t.Device, new() { Logits = t.In(4, vocabulary), Targets = t.Targets(4, vocabulary) },
            new() { LogProb = t.Out(4), LogSumExp = t.Out(4), Entropy = t.Out(4) })),
        // What is kept of a row between its two readings.
        new("log-probs backward", Once, [2048, 7168], LogProbsBackward),
        // What isn't kept is read once more.
        new("log-probs backward of long rows", 1.5, [16_384, 32_000], LogProbsBackward),
    ];

    private static void LogProbsBackward(TrafficTensors t, int vocabulary)
    {
        var logits = t.InOut(4, vocabulary);
        LogProbs.FromLogitsBackward(t.Device, new() { Logits = logits, Targets = t.Targets(4, vocabulary) }, new() { LogSumExp = t.In(4), Entropy = t.In(4) }, new() { LogProb = t.In(4) }, logits);
    }
}

/// <summary>Tensors for one call, counted: how many bytes it has to move at least.</summary>
internal sealed class TrafficTensors(GpuDevice device) : IDisposable
{
    private readonly List<IDisposable> owned = [];
    private Workspace? workspace;

    public GpuDevice Device => device;

    /// <summary>Inputs and outputs, what is both counted twice.</summary>
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

    public TensorView Targets(int rows, int vocabulary)
    {
        TensorBuffer buffer = Own(device.Upload<int>(Enumerable.Range(0, rows).Select(row => row * 1009 % vocabulary).ToArray()));
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
