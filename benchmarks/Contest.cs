namespace TransformerKernels.Benchmarks;

/// <summary>A case's data, made: what is timed, what it is checked against, and what it competes with.</summary>
internal abstract class Contest(ComputeDevice device) : IDisposable
{
    private readonly List<IDisposable> owned = [];

    protected ComputeDevice Device { get; } = device;

    protected Workspace Workspace { get; private set; } = new(device);

    /// <summary>Our operation, once.</summary>
    public abstract void Run();

    /// <summary>Puts back inputs that <see cref="Run"/> replaced, where it matters. Not timed.</summary>
    public virtual void Restore()
    {
    }

    /// <summary>Compares what the first <see cref="Run"/> left with the float64 definition, on a part of the data.</summary>
    /// <returns>The largest error as a share of what the numerical contract allows.</returns>
    /// <exception cref="Oracle.ContractException">The contract is broken.</exception>
    public abstract double Check();

    /// <summary>What <see cref="Run"/> leaves and a peer has to give too, in this order.</summary>
    public abstract IReadOnlyList<TensorBuffer> Results { get; }

    /// <summary>The peer's forms of the operation, ready to run. Called only where the peer's library is loaded.</summary>
    public abstract IEnumerable<Peer> Peers();

    /// <summary>Gives the workspace back, so that the next run takes what it needs anew.</summary>
    public void DropWorkspace()
    {
        Workspace.Dispose();
        Workspace = new(Device);
    }

    public void Dispose()
    {
        Workspace.Dispose();
        foreach (IDisposable one in owned)
            one.Dispose();
    }

    /// <summary>Keeps something until the contest is disposed.</summary>
    protected T Own<T>(T one) where T : IDisposable
    {
        owned.Add(one);
        return one;
    }

    /// <summary>The view of a tensor that may be absent.</summary>
    protected static TensorView View(TensorBuffer? buffer) => buffer is null ? default : buffer.View;

    /// <summary>A token of the vocabulary for every row.</summary>
    protected TensorBuffer Targets(int seed, int tokens, int vocabulary)
    {
        TensorBuffer targets = Own(Device.Allocate(ElementType.Int64, tokens));
        Span<long> target = targets.AsSpan<long>();
        for (int token = 0; token < tokens; token++)
            target[token] = (long)((Noise.At(seed, token) + 1) / 2 * vocabulary);
        return targets;
    }

    /// <summary>A float32 tensor of zeros.</summary>
    protected TensorBuffer Zeros(params ReadOnlySpan<long> shape) => Own(Device.Allocate(ElementType.Float32, shape));

    /// <summary>A tensor of noise in 32 or 16 bits, uniform between ±<paramref name="scale"/>.</summary>
    protected TensorBuffer Noisy(ElementType storage, int seed, float scale, params ReadOnlySpan<long> shape)
    {
        if (storage == ElementType.Float32)
            return Noisy(seed, scale, shape);
        TensorBuffer buffer = Own(Device.Allocate(storage, shape));
        for (int i = 0; i < buffer.ElementCount; i++)
        {
            float x = scale * Noise.At(seed, i);
            if (storage == ElementType.Float16)
                buffer.AsSpan<Half>()[i] = (Half)x;
            else
                buffer.AsSpan<BFloat16>()[i] = BFloat16.Truncate(x);
        }
        return buffer;
    }

    /// <summary>Some numbers of a tensor in 32 or 16 bits.</summary>
    protected static float[] Numbers(TensorBuffer buffer, int start, int count) => buffer.Type switch
    {
        ElementType.Float32 => buffer.AsSpan<float>().Slice(start, count).ToArray(),
        ElementType.Float16 => Array.ConvertAll(buffer.AsSpan<Half>().Slice(start, count).ToArray(), x => (float)x),
        _ => Array.ConvertAll(buffer.AsSpan<BFloat16>().Slice(start, count).ToArray(), x => x.ToSingle()),
    };

    /// <summary>A float32 tensor of noise, uniform between ±<paramref name="scale"/>.</summary>
    protected TensorBuffer Noisy(int seed, float scale, params ReadOnlySpan<long> shape)
    {
        TensorBuffer buffer = Zeros(shape);
        Noise.Fill(buffer, seed, scale);
        return buffer;
    }
}

/// <summary>One form of an operation in the peer's library.</summary>
/// <param name="Name">What it is made of.</param>
/// <param name="Run">Runs it once and gives the contest's results, null for one that this form leaves out; what it allocates is freed with the scope around the call.</param>
internal sealed record Peer(string Name, Func<TorchSharp.torch.Tensor?[]> Run);

/// <summary>A bfloat16: the library takes any two bytes of this name.</summary>
internal readonly record struct BFloat16(ushort Bits)
{
    public static BFloat16 Truncate(float x) => new((ushort)(BitConverter.SingleToUInt32Bits(x) >> 16));

    public float ToSingle() => BitConverter.UInt32BitsToSingle((uint)Bits << 16);
}
