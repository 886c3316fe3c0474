using System.Diagnostics;
using TransformerKernels;
using Xunit;

namespace Alignment.Tests;

/// <summary>The report of this machine's GPUs, as a user gets it.</summary>
public class DevicesProgramTests
{
    [Fact]
    public async Task The_report_names_every_device_or_says_what_is_missing()
    {
        var start = new ProcessStartInfo(Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet",
            [Path.Combine(AppContext.BaseDirectory, "Devices.dll")])
        { RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        string told = await process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);

        Assert.Equal("", await errors);
        GpuListing[] devices = [.. GpuDevice.ListCuda(), .. GpuDevice.ListOpenCl()];
        foreach (GpuListing device in devices)
        {
            Assert.Contains($"{device.Kind} {device.Index}: {device.Name}", told);
            Assert.Contains(device.Driver, told);
        }
        bool usable = devices.Any(device => device.Refusal is null);
        Assert.Equal(usable ? 0 : 1, process.ExitCode);
        Assert.Contains(usable ? "GpuDevice.OpenBest() opens" : "No GPU can be used.", told);
    }
}
