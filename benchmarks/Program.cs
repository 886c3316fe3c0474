using BenchmarkDotNet.Running;
using TransformerKernels.Benchmarks;

if (args is ["compare", ..])
    return CompareCommand.Run(args[1..]);

if (args is ["growth", ..])
    return GrowthCommand.Run(args[1..]);

if (args.Length == 0)
{
    BenchmarkSwitcher.FromAssembly(typeof(Suite).Assembly).Run(["--list", "tree"]);
    Console.WriteLine("""

        -- --filter "*Attention*"     runs suites with BenchmarkDotNet; --help tells its options
        -- compare [--filter text]    measures every case beside the machine's limits and TorchSharp; compare --help tells its options
        -- compare --sweep            the same of problems drawn from everything that is offered; compare --scaling sets one thread against two
        -- growth [--filter text]     how time and memory grow with the size of a problem, as a table
        """);
    return 0;
}

BenchmarkSwitcher.FromAssembly(typeof(Suite).Assembly).Run(args);
return 0;
