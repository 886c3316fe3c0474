namespace TransformerKernels.Tests;

/// <summary>A device that no other test class uses: for tests that count launches or expect faults, which are thrown to whoever synchronizes next.</summary>
public sealed class OwnGpu(GpuUnderTest shared) : IDisposable
{
    private readonly Lazy<GpuDevice> device = new(shared.OpenAnother);

    public GpuDevice Device => device.Value;

    public void NeedsOpenCl() => shared.NeedsOpenCl();

    public void Dispose()
    {
        if (device.IsValueCreated)
            device.Value.Dispose();
    }
}
