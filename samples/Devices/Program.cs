// Lists the GPUs of this machine: what they have, and why one can't be used if it can't. Exit code 1 if none can.
// usage: dotnet run --project samples/Devices

using Devices;
using Spectre.Console;
using TransformerKernels;

bool plain = Console.IsOutputRedirected;
foreach (GpuListing device in GpuDevice.ListCuda().Concat(GpuDevice.ListOpenCl()))
{
    if (plain)
    {
        Console.WriteLine(DeviceReport.Title(device));
        foreach ((string name, string value) in DeviceReport.Rows(device))
            Console.WriteLine($"  {name}: {value}");
        continue;
    }
    Table table = new Table().Title(Markup.Escape(DeviceReport.Title(device))).HideHeaders().AddColumn("").AddColumn("");
    foreach ((string name, string value) in DeviceReport.Rows(device))
        table.AddRow(Markup.Escape(name), Markup.Escape(value));
    AnsiConsole.Write(table);
}
try
{
    using GpuDevice best = GpuDevice.OpenBest();
    Console.WriteLine($"GpuDevice.OpenBest() opens {best.Name}.");
    return 0;
}
catch (NotSupportedException refusal)
{
    Console.WriteLine(refusal.Message);
    return 1;
}
