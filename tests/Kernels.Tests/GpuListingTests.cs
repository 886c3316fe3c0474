using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What is told about devices, which is taken, and why others aren't.</summary>
public class GpuListingTests(GpuUnderTest gpu, ITestOutputHelper output)
{
    private static readonly GpuListing Good = new()
    {
        Kind = "OpenCL",
        Index = 7,
        Name = "a card",
        Driver = "Portable Computing Language, PoCL 6.0",
        IsCpu = false,
        MemoryBytes = 1L << 33,
        LargestTensorBytes = 1L << 31,
        ComputeUnits = 4,
        MaximumGroupSize = 256,
        SharedBytesPerGroup = 1 << 15,
        WarpSize = 0,
        Version = "3.0",
        Float16 = false,
        Float64 = false,
        SubGroups = false,
        GenericAddressSpace = true,
        DriverIsNewEnough = true,
    };

    [Fact]
    public void What_a_device_has_is_told()
    {
        gpu.NeedsOpenCl();
        Assert.NotEmpty(GpuDevice.ListOpenCl());
        foreach (GpuListing listing in GpuDevice.ListOpenCl().Concat(GpuDevice.ListCuda()))
        {
            output.WriteLine($"{listing}: {listing.MemoryBytes >> 20} MiB, tensors up to {listing.LargestTensorBytes >> 20} MiB, {listing.ComputeUnits} units, groups of {listing.MaximumGroupSize}, "
                + $"{listing.SharedBytesPerGroup} bytes shared, version {listing.Version}, float16 {listing.Float16}, float64 {listing.Float64}, sub-groups {listing.SubGroups}");
            Assert.NotEqual("", listing.Name);
            Assert.NotEqual("", listing.Driver);
            Assert.InRange(listing.MemoryBytes, 1L << 20, long.MaxValue);
            Assert.InRange(listing.LargestTensorBytes, 1L << 20, listing.MemoryBytes);
            Assert.InRange(listing.ComputeUnits, 1, 1 << 20);
            Assert.InRange(listing.MaximumGroupSize, 1, 1 << 20);
            Assert.InRange(listing.SharedBytesPerGroup, 1 << 10, 1 << 24);
            Assert.Matches(@"^\d+\.\d+$", listing.Version);
        }
    }

    [Fact]
    public void The_report_tells_it_all()
    {
        Assert.Equal("OpenCL 7: a card", Devices.DeviceReport.Title(Good));
        Assert.Equal(
        [
            ("driver", "Portable Computing Language, PoCL 6.0"), ("memory", "8192 MiB, a tensor at most 2048 MiB"), ("compute units", "4"),
            ("threads of a group", "at most 256"), ("memory of a group", "32 KiB"), ("OpenCL C", "3.0"), ("float16, float64, sub-groups", "no, no, no"),
            ("generic address space", "yes"), ("usable", "yes: GpuDevice.OpenOpenCl(7)"),
        ], Devices.DeviceReport.Rows(Good));
        var cuda = Devices.DeviceReport.Rows(Good with { Kind = "CUDA", Version = "9.0", WarpSize = 32, DriverIsNewEnough = false }).ToDictionary();
        Assert.Equal("9.0", cuda["compute capability"]);
        Assert.Equal("at most 256, 32 in step", cuda["threads of a group"]);
        Assert.Equal("no: the driver is too old for compute capability 9.0", cuda["usable"]);
    }

    [Fact]
    public void A_device_that_lacks_something_is_refused_with_what_it_lacks()
    {
        Assert.Null(Good.Refusal);
        Assert.Contains("no generic address space", (Good with { GenericAddressSpace = false }).Refusal);
        Assert.Contains("OpenCL C 1.2; 2.0 is needed", (Good with { Version = "1.2" }).Refusal);
        Assert.Contains("at most 64 threads", (Good with { MaximumGroupSize = 64 }).Refusal);
        Assert.Contains("too old for compute capability 12.0", (Good with { Kind = "CUDA", Version = "12.0", DriverIsNewEnough = false }).Refusal);
    }

    [Fact]
    public void The_best_device_is_opened_and_named()
    {
        gpu.NeedsOpenCl();
        using GpuDevice best = GpuDevice.OpenBest();
        GpuListing expected = GpuDevice.ListCuda().Concat(GpuDevice.ListOpenCl().OrderBy(listing => listing.IsCpu)).First(listing => listing.Refusal is null);
        Assert.StartsWith(expected.Kind, best.Name);
        Assert.Contains(expected.Name, best.Name);
        Assert.Equal(expected.IsCpu, best.Name.Contains("on a processor"));
    }

    [Fact]
    public void Without_a_usable_device_every_refusal_is_told()
    {
        GpuListing old = Good with { Name = "cpu-zen", Driver = "Portable Computing Language, PoCL 3.1", GenericAddressSpace = false };
        var thrown = Assert.Throws<NotSupportedException>(() => GpuDevice.OpenBest([old]));
        Assert.Contains("OpenCL 7, cpu-zen (Portable Computing Language, PoCL 3.1): it has no generic address space", thrown.Message);
        Assert.Contains("CUDA: no device; CUDA needs NVIDIA's driver", thrown.Message);
        Assert.DoesNotContain("OpenCL: no device", thrown.Message);

        thrown = Assert.Throws<NotSupportedException>(() => GpuDevice.OpenBest([]));
        Assert.Contains("OpenCL: no device; OpenCL needs a driver", thrown.Message);
        thrown = Assert.Throws<NotSupportedException>(() => GpuDevice.OpenBest([Good with { Index = 1000, Name = "gone since" }]));
        Assert.Contains($"has {GpuDevice.ListOpenCl().Count} OpenCL devices", thrown.Message);
    }
}
