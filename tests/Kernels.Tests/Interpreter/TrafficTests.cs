using System.Globalization;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>How much memory kernels move, counted on their PTX, is on record in traffic.txt and doesn't grow.</summary>
public class TrafficTests(ITestOutputHelper output)
{
    public static TheoryData<string, int> Cases
    {
        get
        {
            var cases = new TheoryData<string, int>();
            foreach (TrafficCase operation in TrafficCase.All)
            {
                foreach (int size in operation.Sizes)
                    cases.Add(operation.Name, size);
            }
            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Kernels_move_little_more_than_inputs_and_outputs_and_no_more_than_is_on_record(string name, int size)
    {
        TrafficCase operation = TrafficCase.All.Single(candidate => candidate.Name == name);
        using InterpretedDevice interpreted = InterpretedDevice.Open();
        using var tensors = new TrafficTensors(interpreted.Device);
        operation.Run(tensors, size);
        interpreted.Device.Synchronize();

        Line[] lines = [.. interpreted.Launches.GroupBy(launch => launch.Kernel).Select(launches => Line.Of(name, size, launches, tensors.Bytes))];
        Assert.All(lines, line => output.WriteLine(line.ToString()));
        double ratio = lines.Sum(line => line.Lines) / (double)tensors.Bytes;
        Assert.True(ratio <= operation.Limit, $"{name} {size} moves {ratio:F2} times its inputs and outputs; {operation.Limit} are allowed.");

        Line[] onRecord = [.. Record().Where(line => line.Case == name && line.Size == size)];
        string wanted = string.Join('\n', lines.Select(line => line.ToString()));
        Assert.True(lines.Select(line => line.Kernel).Order().SequenceEqual(onRecord.Select(line => line.Kernel).Order()), $"traffic.txt should have for {name} {size}:\n{wanted}");
        Assert.All(lines, line =>
        {
            Line before = onRecord.Single(other => other.Kernel == line.Kernel);
            Assert.True(line.Asked <= before.Asked && line.Lines <= before.Lines && line.Minimum == before.Minimum, $"{line}\nis more than what is on record,\n{before}");
        });
    }

    // What keys and values cost is what fusing is for: with a tile four times as high they are read a quarter as often.
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_key_costs_a_quarter_of_the_traffic_in_tiles_four_times_as_high(bool backward)
    {
        const int length = 128, headSize = 32;
        const double Within = 0.1;
        double small = BytesOfKey(Side16.Length), large = BytesOfKey(Side64.Length);
        Assert.InRange(small / large, (1 - Within) * Side64.Length / Side16.Length, (1 + Within) * Side64.Length / Side16.Length);

        double BytesOfKey(int side)
        {
            using InterpretedDevice interpreted = InterpretedDevice.Open();
            using var tensors = new TrafficTensors(interpreted.Device);
            GpuDevice device = interpreted.Device.WithTiles(side);
            long tiles = backward ? TrafficCase.AttentionBackward(tensors, device, length, headSize, side) : TrafficCase.AttentionForward(tensors, device, length, headSize, side);
            interpreted.Device.Synchronize();
            Assert.All(interpreted.Launches, launch => Assert.Contains($"<Side{side}>", launch.Kernel, StringComparison.Ordinal));
            long moved = interpreted.Launches.Sum(launch => launch.TransactionBytes), others = tensors.Bytes - tiles;
            Assert.InRange(moved / (double)tensors.Bytes, 1 - Within, 1 + Within);
            output.WriteLine($"tiles of {side}: {moved} bytes, {tensors.Bytes} predicted; a key of a head costs {(moved - others) / (2.0 * length):F0}");
            return moved - others;
        }
    }

    [Fact]
    public void Every_line_of_the_record_is_a_case_and_every_kernel_of_the_library_has_one()
    {
        Assert.All(Record(), line => Assert.Contains(TrafficCase.All, operation => operation.Name == line.Case && operation.Sizes.Contains(line.Size)));
        string[] onRecord = [.. Record().Select(line => line.Kernel).Distinct()];
        Assert.All(PtxTests.All().Where(kernel => kernel.Method.DeclaringType!.Assembly == typeof(GpuDevice).Assembly),
            kernel => Assert.True(onRecord.Contains(kernel.Name) || kernel.Method.IsGenericMethod && onRecord.Any(name => WithoutRule(name) == WithoutRule(kernel.Name)),
                $"{kernel.Name} has no line in traffic.txt; add its operation to TrafficCase.All."));
    }

    // CLASS.KERNEL<RULE>: one rule will do, but every tile, which the class has.
    private static string WithoutRule(string kernel)
    {
        int rule = kernel.IndexOf('<', kernel.IndexOf('.', StringComparison.Ordinal));
        return rule < 0 ? kernel : kernel[..rule];
    }

    private static IEnumerable<Line> Record() => File.ReadLines(Path.Combine(AppContext.BaseDirectory, "traffic.txt")).Where(line => line.Length > 0 && line[0] != '#').Select(Line.Parse);

    /// <summary>A kernel's line in the record.</summary>
    /// <param name="Asked">The bytes that its threads asked for.</param>
    /// <param name="Lines">128 bytes for each line that a warp's instruction touches.</param>
    /// <param name="Minimum">The operation's inputs and outputs.</param>
    private sealed record Line(string Case, int Size, string Kernel, long Asked, long Lines, long Minimum)
    {
        private const char Separator = '|';

        public static Line Of(string operation, int size, IGrouping<string, Traffic> launches, long minimum) =>
            new(operation, size, launches.Key, launches.Sum(launch => launch.Bytes), launches.Sum(launch => launch.TransactionBytes), minimum);

        public static Line Parse(string text)
        {
            string[] parts = text.Split(Separator, StringSplitOptions.TrimEntries);
            return new(parts[0], (int)Number(parts[1]), parts[2], Number(parts[3]), Number(parts[4]), Number(parts[5]));
        }

        public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Case} | {Size} | {Kernel} | {Asked} | {Lines} | {Minimum} | {Lines / (double)Minimum:F3}");

        private static long Number(string text) => long.Parse(text, CultureInfo.InvariantCulture);
    }
}
