using ILGPU.Backends.OpenCL;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace TransformerKernels;

/// <summary>A GPU, or a processor that its OpenCL driver offers as one: what it has, what it supports, and why it can't be used if it can't.</summary>
public sealed record GpuListing
{
    /// <summary>"OpenCL" or "CUDA": which of <see cref="GpuDevice.OpenOpenCl"/> and <see cref="GpuDevice.OpenCuda"/> opens it.</summary>
    public required string Kind { get; init; }

    /// <summary>What <see cref="GpuDevice.OpenOpenCl"/> or <see cref="GpuDevice.OpenCuda"/> takes.</summary>
    public required int Index { get; init; }

    /// <summary>The device's name, as its driver tells it.</summary>
    public required string Name { get; init; }

    /// <summary>The driver and its version, "Portable Computing Language, PoCL 6.0+debian" or "NVIDIA driver for CUDA 12.4".</summary>
    public required string Driver { get; init; }

    /// <summary>Whether it is a processor, not a GPU.</summary>
    public required bool IsCpu { get; init; }

    /// <summary>The memory, in bytes.</summary>
    public required long MemoryBytes { get; init; }

    /// <summary>The most bytes of one tensor; OpenCL drivers often allow a quarter of the memory.</summary>
    public required long LargestTensorBytes { get; init; }

    /// <summary>Streaming multiprocessors, compute units or cores.</summary>
    public required int ComputeUnits { get; init; }

    /// <summary>The most threads of one group.</summary>
    public required int MaximumGroupSize { get; init; }

    /// <summary>The memory that the threads of a group share, in bytes.</summary>
    public required int SharedBytesPerGroup { get; init; }

    /// <summary>The threads that run in step, if the driver tells before a kernel is there; 0 if not.</summary>
    public required int WarpSize { get; init; }

    /// <summary>OpenCL C's version, "3.0", or CUDA's compute capability, "9.0".</summary>
    public required string Version { get; init; }

    /// <summary>Whether kernels can calculate in float16. The library's own don't: they calculate in float32, of 16-bit logits too.</summary>
    public required bool Float16 { get; init; }

    /// <summary>Whether kernels can calculate in float64. The library's own don't.</summary>
    public required bool Float64 { get; init; }

    /// <summary>Whether threads of a sub-group (a warp) can exchange values without shared memory. Every kernel of the library has a form without.</summary>
    public required bool SubGroups { get; init; }

    /// <summary>Whether a pointer may point to any kind of memory, which ILGPU needs. Always so on CUDA.</summary>
    public required bool GenericAddressSpace { get; init; }

    /// <summary>Whether the driver is new enough for the compute capability. Always so on OpenCL.</summary>
    public required bool DriverIsNewEnough { get; init; }

    /// <summary>Why it can't be opened; null if it can.</summary>
    public string? Refusal =>
        Kind == OpenCl && (!System.Version.TryParse(Version, out Version? version) || version < OldestOpenCl) ? $"it speaks OpenCL C {Version}; {OldestOpenCl} is needed" :
        !GenericAddressSpace ? "it has no generic address space, an optional part of OpenCL 3 (PoCL has it from version 4 on)" :
        !DriverIsNewEnough ? $"the driver is too old for compute capability {Version}" :
        MaximumGroupSize < PairLossKernels.GroupSize ? $"its groups have at most {MaximumGroupSize} threads; {PairLossKernels.GroupSize} are needed" :
        null;

    /// <summary>"OpenCL 0, cpu-haswell (PoCL 6.0)": kind, index, name and driver.</summary>
    public override string ToString() => $"{Kind} {Index}, {Name} ({Driver})";

    internal const string OpenCl = "OpenCL", Cuda = "CUDA";

    private static readonly Version OldestOpenCl = new(CLBackend.MinimumVersion.Major, CLBackend.MinimumVersion.Minor);

    internal static GpuListing Of(CLDevice device, int index)
    {
        // "OpenCL 3.0 PoCL 6.0+debian Linux ...": the rest is the driver's own.
        string[] platform = CLAPI.CurrentAPI.GetPlatformInfo(device.PlatformId, CLPlatformInfoType.CL_PLATFORM_VERSION).TrimEnd('\0', ' ').Split(' ', 4);
        string version = platform.Length > 3 ? $"{platform[2]} {platform[3].Split(' ')[0]}" : string.Join(' ', platform.Skip(2));
        return new GpuListing
        {
            Kind = OpenCl,
            Index = index,
            Name = device.Name,
            Driver = version.Length > 0 ? $"{device.PlatformName}, {version}" : device.PlatformName,
            IsCpu = device.DeviceType.HasFlag(CLDeviceType.CL_DEVICE_TYPE_CPU),
            MemoryBytes = device.MemorySize,
            LargestTensorBytes = device.GetDeviceInfo<long>(CLDeviceInfoType.CL_DEVICE_MAX_MEM_ALLOC_SIZE),
            ComputeUnits = device.NumMultiprocessors,
            MaximumGroupSize = device.MaxNumThreadsPerGroup,
            SharedBytesPerGroup = device.MaxSharedMemoryPerGroup,
            WarpSize = device.WarpSize,
            Version = $"{device.CLStdVersion.Major}.{device.CLStdVersion.Minor}",
            Float16 = device.Capabilities.Float16,
            Float64 = device.Capabilities.Float64,
            SubGroups = device.HasExtension("cl_khr_subgroups") || device.HasExtension("cl_intel_subgroups"),
            GenericAddressSpace = device.Capabilities.GenericAddressSpace,
            DriverIsNewEnough = true,
        };
    }

    internal static GpuListing Of(CudaDevice device, int index) => new()
    {
        Kind = Cuda,
        Index = index,
        Name = device.Name,
        Driver = $"NVIDIA driver for CUDA {device.DriverVersion.Major}.{device.DriverVersion.Minor}",
        IsCpu = false,
        MemoryBytes = device.MemorySize,
        LargestTensorBytes = device.MemorySize,
        ComputeUnits = device.NumMultiprocessors,
        MaximumGroupSize = device.MaxNumThreadsPerGroup,
        SharedBytesPerGroup = device.MaxSharedMemoryPerGroup,
        WarpSize = device.WarpSize,
        Version = device.Architecture is { } architecture ? $"{architecture.Major}.{architecture.Minor}" : "?",
        Float16 = true,
        Float64 = true,
        SubGroups = true,
        GenericAddressSpace = true,
        DriverIsNewEnough = device.Architecture is not null && device.InstructionSet is not null,
    };
}
