namespace TransformerKernels;

/// <summary>Reusable scratch memory of one device. Operations that need some take one as their last argument; nothing is allocated in a call once it is large enough.</summary>
/// <remarks>
/// It grows to what an operation asks for, up to <see cref="Limit"/>; <c>WorkspaceBytes</c> of each operation says how much that is. Results don't depend
/// on its size. One call at a time may use it: a second one at the same moment throws <see cref="InvalidOperationException"/>.
/// </remarks>
public sealed class Workspace : IDisposable
{
    private TensorBuffer? buffer;

    // What came last, and what has the memory now; 0 if nothing has.
    private long lastUse, inUse;
    private bool disposed;

    /// <summary>An empty workspace.</summary>
    /// <param name="device">Whose memory it is.</param>
    /// <param name="limit">The most bytes it may grow to; an operation that needs more throws. Unlimited if absent: an operation that is faster with more than it needs then chooses by itself, and otherwise takes what it has use for.</param>
    public Workspace(ComputeDevice device, long limit = long.MaxValue)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentOutOfRangeException.ThrowIfNegative(limit);
        Device = device;
        Limit = limit;
    }

    /// <summary>The device whose memory it is.</summary>
    public ComputeDevice Device { get; }

    /// <summary>The most bytes it may grow to.</summary>
    public long Limit { get; }

    /// <summary>The bytes it holds now.</summary>
    public long Bytes => buffer?.ByteCount ?? 0;

    /// <summary>Grows to at least so many bytes, so that a later call needn't.</summary>
    /// <exception cref="ArgumentException">That is more than <see cref="Limit"/>.</exception>
    /// <exception cref="InvalidOperationException">A call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The workspace was disposed; or it has to grow, and its device was.</exception>
    /// <exception cref="OutOfMemoryException">The device has too little memory.</exception>
    public void Reserve(long bytes) => Rent(bytes).Dispose();

    /// <summary>Frees the memory.</summary>
    /// <exception cref="InvalidOperationException">A call is using the workspace at the moment.</exception>
    public void Dispose()
    {
        Take();
        disposed = true;
        buffer?.Dispose();
        buffer = null;
        Volatile.Write(ref inUse, 0);
    }

    /// <summary>For devices: at least so many bytes, until the lease is disposed.</summary>
    /// <exception cref="ArgumentException">That is more than <see cref="Limit"/>.</exception>
    /// <exception cref="InvalidOperationException">A call is using the workspace at the moment.</exception>
    /// <exception cref="ObjectDisposedException">The workspace was disposed; or it has to grow, and its device was.</exception>
    /// <exception cref="OutOfMemoryException">The device has too little memory.</exception>
    public Lease Rent(long bytes)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        long use = Take();
        try
        {
            Grow(bytes);
            return new Lease(this, use);
        }
        catch
        {
            Volatile.Write(ref inUse, 0);
            throw;
        }
    }

    private long Take()
    {
        long use = Interlocked.Increment(ref lastUse);
        if (Interlocked.CompareExchange(ref inUse, use, 0) != 0)
            throw new InvalidOperationException("Another call is using this workspace at the moment; give each thread its own.");
        return use;
    }

    private void Grow(long bytes)
    {
        ObjectDisposedException.ThrowIf(disposed, this);
        if (bytes <= Bytes)
            return;
        if (bytes > Limit)
            throw new ArgumentException($"This needs {bytes} bytes of workspace; the workspace's limit is {Limit}.", "workspace");
        buffer?.Dispose(); // queued work may still use it: it's handed to what is queued later
        buffer = null;
        try
        {
            buffer = Device.Allocate(ElementType.Bool, bytes);
        }
        catch (ObjectDisposedException)
        {
            throw new ObjectDisposedException(nameof(Workspace), $"The workspace can't grow to {bytes} bytes: the device that it was made for was disposed.");
        }
    }

    /// <summary>The use of a workspace by one call.</summary>
    public readonly ref struct Lease
    {
        private readonly Workspace workspace;
        private readonly long use;

        internal Lease(Workspace workspace, long use) => (this.workspace, this.use) = (workspace, use);

        /// <summary>The memory; null if nothing was asked for yet.</summary>
        public TensorBuffer? Buffer => workspace.buffer;

        /// <summary>The memory as a tensor of bytes; absent if nothing was asked for yet.</summary>
        public TensorView View => Buffer is { } buffer ? buffer.View : default;

        /// <summary>Ends the use; once it has ended, nothing.</summary>
        public void Dispose() => Interlocked.CompareExchange(ref workspace.inUse, 0, use);
    }
}
