namespace Alignment;

/// <summary>What a GPU was asked for so far; nothing on the processor.</summary>
/// <param name="Launches">Kernels.</param>
/// <param name="BytesToDevice">Copied from the host's memory to the device's.</param>
/// <param name="BytesToHost">Copied back.</param>
internal readonly record struct DeviceTraffic(long Launches, long BytesToDevice, long BytesToHost)
{
    public static DeviceTraffic operator +(DeviceTraffic a, DeviceTraffic b) => new(a.Launches + b.Launches, a.BytesToDevice + b.BytesToDevice, a.BytesToHost + b.BytesToHost);

    public static DeviceTraffic operator -(DeviceTraffic a, DeviceTraffic b) => new(a.Launches - b.Launches, a.BytesToDevice - b.BytesToDevice, a.BytesToHost - b.BytesToHost);
}
