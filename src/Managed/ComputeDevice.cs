namespace TransformerKernels;

/// <summary>Where and how to run: so many CPU threads, or a GPU and a stream. The first argument of every operation.</summary>
/// <remarks>
/// An operation checks shapes, types and devices, then makes one virtual call on its device. What a device doesn't offer throws
/// <see cref="NotSupportedException"/> naming the operation: nothing runs elsewhere silently. CPU calls return when the work is done; GPU calls are
/// queued, see <see cref="Synchronize"/>. A device may be used from several threads at once.
/// </remarks>
public abstract class ComputeDevice : IDisposable
{
    /// <summary>All processors of this machine. Shared: disposing it does nothing.</summary>
    public static ComputeDevice Cpu => CpuDevice.Shared;

    /// <summary>A CPU device with its own threads.</summary>
    /// <param name="threads">How many threads work on a call, the calling one included; at least 1. Results don't depend on it, not in one bit.</param>
    /// <exception cref="ArgumentOutOfRangeException">That is less than 1.</exception>
    public static ComputeDevice OpenCpu(int threads)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threads, 1);
        return new CpuDevice(threads);
    }

    /// <summary>What the device is, for people: "CPU, 2 threads, 512-bit vectors".</summary>
    public abstract string Name { get; }

    /// <summary>The same device (same threads, same stream) whose calls stop between two pieces of work when the token is cancelled.</summary>
    /// <remarks>
    /// On the CPU a piece is what a thread is given: of attention a block of queries, in its backward pass a chunk of a head's keys with all queries. A GPU looks at the token before a call begins.
    /// A cancelled call throws <see cref="OperationCanceledException"/>; its outputs are undefined, device and workspace stay usable.
    /// </remarks>
    public abstract ComputeDevice With(CancellationToken cancellation);

    /// <summary>Waits for everything queued, then throws what went wrong in it, for instance an index out of range that lay in device memory.</summary>
    /// <exception cref="ObjectDisposedException">The device was disposed.</exception>
    public abstract void Synchronize();

    /// <summary>Allocates a row-major tensor in the device's memory, filled with zeros.</summary>
    /// <param name="type">The type of the elements.</param>
    /// <param name="shape">The lengths of the axes, at most <see cref="TensorView.MaximumRank"/>.</param>
    /// <exception cref="ArgumentException">The shape has a negative length, more than <see cref="TensorView.MaximumRank"/> axes or more than 2⁶⁰ bytes, or the type is none.</exception>
    /// <exception cref="OutOfMemoryException">The device has too little memory.</exception>
    /// <exception cref="ObjectDisposedException">The device was disposed.</exception>
    public abstract TensorBuffer Allocate(ElementType type, params ReadOnlySpan<long> shape);

    /// <summary>Allocates a tensor of the elements' type and copies <paramref name="data"/> into it.</summary>
    /// <param name="data">As many elements as the shape has, row-major.</param>
    /// <param name="shape">The lengths of the axes; none means one axis of the span's length.</param>
    /// <exception cref="ArgumentException">As in <see cref="Allocate"/>; or the shape has another number of elements, or they are of no <see cref="ElementType"/>.</exception>
    /// <exception cref="OutOfMemoryException">The device has too little memory.</exception>
    /// <exception cref="ObjectDisposedException">The device was disposed.</exception>
    public TensorBuffer Upload<T>(ReadOnlySpan<T> data, params ReadOnlySpan<long> shape) where T : unmanaged
    {
        TensorBuffer buffer = Allocate(ElementTypes.Of<T>(), shape.IsEmpty ? [data.Length] : shape);
        try
        {
            buffer.CopyFrom(data);
            return buffer;
        }
        catch
        {
            buffer.Dispose();
            throw;
        }
    }

    /// <summary>Throws <see cref="ObjectDisposedException"/> if the device was disposed and wouldn't say so itself.</summary>
    internal virtual void RequireOpen()
    {
    }

    /// <summary>Identifies the memory that the device can address; all CPU devices share one.</summary>
    protected internal abstract object MemorySpace { get; }

    /// <summary>Closes what was opened: threads, stream, context. Calls on the device, or on a handle of it, throw <see cref="ObjectDisposedException"/> from then on.</summary>
    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Closes what was opened.</summary>
    protected abstract void Dispose(bool disposing);

    /// <summary>
    /// Whether attention takes every property of <see cref="AttentionProblem"/>. A device that says no gets causality, offset, slopes, distance bias and
    /// captured tensors only; the others are refused by name before it is called.
    /// </summary>
    protected internal virtual bool OffersAllOfAttention => false;

    /// <summary>The bytes of workspace that <see cref="AttentionForward"/> needs for this problem.</summary>
    protected internal abstract long AttentionForwardWorkspaceBytes(in AttentionProblem problem);

    /// <summary>The bytes of workspace that <see cref="AttentionBackward"/> needs for this problem.</summary>
    protected internal abstract long AttentionBackwardWorkspaceBytes(in AttentionProblem problem, in AttentionGradients gradients);

    /// <summary>Implements <see cref="Attention.Forward{TRule}"/>; the arguments are checked.</summary>
    protected internal abstract void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp,
        Workspace workspace) where TRule : unmanaged, IScoreRule;

    /// <summary>Implements <see cref="Attention.Backward{TRule}"/>; the arguments are checked.</summary>
    protected internal abstract void AttentionBackward<TRule>(in AttentionProblem problem, TRule rule, in AttentionSaved saved,
        in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace) where TRule : unmanaged, IScoreRule;

    /// <summary>Implements <see cref="RotaryEmbedding"/>; <paramref name="backward"/> turns the other way. The arguments are checked.</summary>
    protected internal abstract void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward);

    /// <summary>Throws <see cref="NotSupportedException"/> naming what the device lacks of these inputs and outputs; a device that lacks nothing leaves it as it is.</summary>
    protected internal virtual void RequireOffered(in LogitsProblem problem, in TokenOutputs outputs)
    {
    }

    /// <summary>Implements <see cref="LogProbs.FromLogits(ComputeDevice, in LogitsProblem, in TokenOutputs)"/>; the arguments are checked.</summary>
    protected internal abstract void LogProbsFromLogits(in LogitsProblem problem, in TokenOutputs outputs);

    /// <summary>Implements <see cref="LogProbs.FromLogitsBackward"/>; the arguments are checked.</summary>
    protected internal abstract void LogProbsFromLogitsBackward(in LogitsProblem problem, in TokenSaved saved, in TokenUpstream upstream,
        TensorView logitsGradient);

    /// <summary>The bytes of workspace that <see cref="LogProbsFromHidden"/> takes, within the budget if that suffices at all.</summary>
    protected internal abstract long LogProbsFromHiddenWorkspaceBytes(in HiddenProblem problem, bool backward, bool topTokens, long budget);

    /// <summary>Implements <see cref="LogProbs.FromHidden"/>, <see cref="LogProbs.FromHiddenBackward"/> and <see cref="LogProbs.TrainFromHidden"/>; the arguments are checked. Absent outputs and gradients aren't wanted.</summary>
    protected internal abstract void LogProbsFromHidden(in HiddenProblem problem, in TokenUpstream upstream, in TokenOutputs outputs, in HiddenGradients gradients,
        bool backward, Workspace workspace);

    /// <summary>Implements <see cref="VocabularyShards.FromLogits"/>; the arguments are checked.</summary>
    protected internal virtual void LogProbsShard(in LogitsProblem problem, VocabularyShard shard, TensorView partials) => throw Lacks("shards of a vocabulary");

    /// <summary>Implements <see cref="VocabularyShards.FromHidden"/>; the arguments are checked.</summary>
    protected internal virtual void LogProbsShard(in HiddenProblem problem, VocabularyShard shard, TensorView partials, Workspace workspace) => throw Lacks("shards of a vocabulary");

    /// <summary>Implements <see cref="VocabularyShards.Merge"/>; the arguments are checked.</summary>
    protected internal virtual void MergeShards(TensorView partials, in TokenOutputs outputs, TensorView merged) => throw Lacks("shards of a vocabulary");

    /// <summary>Implements <see cref="VocabularyShards.FromLogitsBackward"/>; the arguments are checked.</summary>
    protected internal virtual void LogProbsShardBackward(in LogitsProblem problem, VocabularyShard shard, TensorView merged, in TokenUpstream upstream, TensorView logitsGradient) =>
        throw Lacks("shards of a vocabulary");

    /// <summary>Implements <see cref="VocabularyShards.FromHiddenBackward"/>; the arguments are checked.</summary>
    protected internal virtual void LogProbsShardBackward(in HiddenProblem problem, VocabularyShard shard, TensorView merged, in TokenUpstream upstream, in HiddenGradients gradients,
        Workspace workspace) => throw Lacks("shards of a vocabulary");

    /// <summary>The bytes of workspace that <see cref="PreferenceLogProbs"/> and <see cref="PreferenceLogProbsBackward"/> take, within the budget if that suffices at all.</summary>
    protected internal virtual long PreferenceLogProbsWorkspaceBytes(in PreferenceProblem problem, bool backward, long budget) => throw Lacks("log-probs of answers from hidden states");

    /// <summary>Implements <see cref="TransformerKernels.PreferenceLogProbs.FromHidden"/>; the arguments are checked.</summary>
    protected internal virtual void PreferenceLogProbs(in PreferenceProblem problem, in PreferenceOutputs outputs, Workspace workspace) => throw Lacks("log-probs of answers from hidden states");

    /// <summary>Implements <see cref="TransformerKernels.PreferenceLogProbs.FromHiddenBackward"/>; the arguments are checked.</summary>
    protected internal virtual void PreferenceLogProbsBackward(in PreferenceProblem problem, in PreferenceUpstream upstream, in HiddenGradients gradients, Workspace workspace) =>
        throw Lacks("log-probs of answers from hidden states");

    /// <summary>Implements <see cref="SequenceLogProbs.Reduce"/>; the arguments are checked.</summary>
    protected internal virtual void ReduceSequences(TensorView values, in SequenceLayout layout, in SequenceOutputs outputs) => throw Lacks("sums of log-probs by sequence");

    /// <summary>Implements <see cref="SequenceLogProbs.Backward"/>; the arguments are checked.</summary>
    protected internal virtual void SpreadSequences(in SequenceLayout layout, in SequenceUpstream upstream, TensorView gradient) => throw Lacks("gradients of sums by sequence");

    /// <summary>The bytes of workspace that <see cref="PairLoss"/> and <see cref="TokenLoss"/> need for so many pairs, or sequences of so many tokens.</summary>
    protected internal abstract long LossWorkspaceBytes(long rows, long columns);

    /// <summary>Implements <see cref="PreferenceLoss.Evaluate"/>; the arguments are checked.</summary>
    protected internal abstract void PairLoss<TLoss>(in PairBatch batch, TLoss loss, in PairOutputs outputs, TensorView metrics, Workspace workspace)
        where TLoss : unmanaged, IPairLoss;

    /// <summary>Implements <see cref="PolicyLoss.Evaluate"/>; the arguments are checked.</summary>
    protected internal abstract void TokenLoss<TLoss>(in TokenBatch batch, TLoss loss, in TokenLossOutputs outputs, TensorView metrics,
        Workspace workspace) where TLoss : unmanaged, ITokenLoss;

    /// <summary>Implements <see cref="GeneralizedAdvantage.Estimate"/>; the arguments are checked.</summary>
    protected internal abstract void EstimateAdvantages(in AdvantageProblem problem, TensorView advantages, TensorView returns);

    /// <summary>Implements <see cref="GeneralizedAdvantage.Whiten"/>; the arguments are checked.</summary>
    protected internal abstract void Whiten(TensorView values, TensorView mask, bool keepMean);

    /// <summary>What a device throws that doesn't offer something.</summary>
    internal NotSupportedException Lacks(string what) => new($"The device {Name} doesn't offer {what} yet; use ComputeDevice.Cpu.");
}
