using TransformerKernels;

namespace Alignment;

/// <summary>Opens devices by the names that the program's user types.</summary>
internal static class Devices
{
    public const string Cpu = "cpu", OpenCl = "opencl", Cuda = "cuda";

    /// <summary>Opens a device: with several of a kind the first GPU that can be used, or a processor that its OpenCL driver offers.</summary>
    /// <exception cref="NotSupportedException">There is none; the message tells why each was refused.</exception>
    public static ComputeDevice Open(string name) => name switch
    {
        Cpu => ComputeDevice.Cpu,
        OpenCl => GpuDevice.OpenOpenCl(Pick(name, GpuDevice.ListOpenCl())),
        Cuda => GpuDevice.OpenCuda(Pick(name, GpuDevice.ListCuda())),
        _ => throw new ArgumentException($"{name} is none of {Cpu}, {OpenCl} and {Cuda}.", nameof(name)),
    };

    /// <summary>The model's mathematics on a device.</summary>
    public static ModelMaths MathsOf(ComputeDevice device) => device is GpuDevice gpu ? new GpuMaths(gpu) : new CpuMaths(device, Environment.ProcessorCount);

    private static int Pick(string name, IReadOnlyList<GpuListing> listings)
    {
        if (listings.Where(listing => listing.Refusal is null).OrderBy(listing => listing.IsCpu).FirstOrDefault() is { } usable)
            return usable.Index;
        string why = listings.Count == 0 ? "this machine has no driver that offers one" : string.Join("; ", listings.Select(listing => $"{listing.Name}: {listing.Refusal}"));
        throw new NotSupportedException($"--device {name}: no such device can be used: {why}.");
    }
}
