namespace TransformerKernels;

/// <summary>What was done on a device since it was opened. The difference of two tells what a piece of code did, and that it did nothing else.</summary>
/// <param name="Launches">Kernels queued.</param>
/// <param name="BytesUploaded">Bytes of tensors copied from the host to the device.</param>
/// <param name="BytesDownloaded">
/// Bytes of tensors copied from the device to the host. The few bytes by which <see cref="GpuDevice.Synchronize"/> learns of faults aren't counted.
/// </param>
public readonly record struct GpuCounts(long Launches, long BytesUploaded, long BytesDownloaded)
{
    /// <summary>What was done between two counts.</summary>
    public static GpuCounts operator -(GpuCounts later, GpuCounts earlier) => later.Subtract(earlier);

    /// <summary>What was done since an earlier count.</summary>
    public GpuCounts Subtract(GpuCounts earlier) =>
        new(Launches - earlier.Launches, BytesUploaded - earlier.BytesUploaded, BytesDownloaded - earlier.BytesDownloaded);
}

/// <summary>The memory that an opened device holds.</summary>
/// <param name="Tensors">Tensors that live, workspaces included.</param>
/// <param name="TensorBytes">Their bytes, rounded up as the allocator does.</param>
/// <param name="CachedBytes">Bytes of disposed tensors, kept for the next ones; <see cref="GpuDevice.Trim"/> gives them back.</param>
/// <param name="PeakBytes">The most that <paramref name="TensorBytes"/> has been since the last <see cref="GpuDevice.Trim"/>.</param>
public readonly record struct GpuMemory(int Tensors, long TensorBytes, long CachedBytes, long PeakBytes);
