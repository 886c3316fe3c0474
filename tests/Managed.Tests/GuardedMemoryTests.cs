using System.Globalization;
using Xunit;

namespace TransformerKernels.Tests;

public class GuardedMemoryTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public unsafe void All_of_it_can_be_written(bool guardBehind)
    {
        using var memory = new GuardedMemory(10_001, guardBehind);
        new Span<byte>((void*)memory.Address, 10_001).Fill(1);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void The_next_byte_is_inaccessible(bool guardBehind)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "Only Linux lists its pages in /proc/self/maps.");
        using var memory = new GuardedMemory(10_001, guardBehind);
        Assert.Equal("rw-p", Protection(memory.Address));
        Assert.Equal("rw-p", Protection(memory.Address + 10_000));
        Assert.Equal("---p", Protection(guardBehind ? memory.Address + 10_001 : memory.Address - 1));
    }

    private static string Protection(nint address)
    {
        foreach (string line in File.ReadLines("/proc/self/maps"))
        {
            string[] words = line.Split(' ', '-');
            nint first = nint.Parse(words[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture), end = nint.Parse(words[1], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            if (address >= first && address < end)
                return line.Split(' ')[1];
        }
        return "unmapped";
    }
}
