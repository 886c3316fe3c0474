using System.Globalization;
using TransformerKernels;

namespace Devices;

/// <summary>What there is to say about a device, as rows of a name and a value.</summary>
internal static class DeviceReport
{
    private const long MiB = 1 << 20, KiB = 1 << 10;

    public static IEnumerable<(string Name, string Value)> Rows(GpuListing device)
    {
        yield return ("driver", device.Driver);
        yield return ("memory", string.Create(CultureInfo.InvariantCulture, $"{device.MemoryBytes / MiB} MiB, a tensor at most {device.LargestTensorBytes / MiB} MiB"));
        yield return (device.IsCpu ? "cores" : "compute units", Number(device.ComputeUnits));
        yield return ("threads of a group", $"at most {Number(device.MaximumGroupSize)}{(device.WarpSize > 0 ? $", {Number(device.WarpSize)} in step" : "")}");
        yield return ("memory of a group", string.Create(CultureInfo.InvariantCulture, $"{device.SharedBytesPerGroup / KiB} KiB"));
        yield return (device.Kind == "CUDA" ? "compute capability" : "OpenCL C", device.Version);
        yield return ("float16, float64, sub-groups", $"{YesNo(device.Float16)}, {YesNo(device.Float64)}, {YesNo(device.SubGroups)}");
        yield return ("generic address space", YesNo(device.GenericAddressSpace));
        yield return ("usable", device.Refusal is { } refusal ? $"no: {refusal}" : $"yes: GpuDevice.{(device.Kind == "CUDA" ? "OpenCuda" : "OpenOpenCl")}({Number(device.Index)})");
    }

    public static string Title(GpuListing device) => $"{device.Kind} {Number(device.Index)}: {device.Name}";

    private static string Number(int number) => number.ToString(CultureInfo.InvariantCulture);

    private static string YesNo(bool fact) => fact ? "yes" : "no";
}
