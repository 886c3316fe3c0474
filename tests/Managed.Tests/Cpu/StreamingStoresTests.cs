using Xunit;

namespace TransformerKernels.Tests;

public class StreamingStoresTests
{
    [Fact]
    public unsafe void Rows_are_scaled_wherever_they_begin_and_nothing_beyond_is_written()
    {
        const int rows = 3, most = 70, fromRow = most + 3, line = 64, bytes = (rows * fromRow + line) * sizeof(float);
        const float factor = 0.3f;
        float[] numbers = Enumerable.Range(1, rows * fromRow).Select(n => n / 7f).ToArray();
        var memory = new byte[bytes + line];
        fixed (float* from = numbers)
        fixed (byte* start = memory)
        {
            byte* firstLine = start + (line - (nint)start % line) % line;
            foreach (int offset in (int[])[0, 4, 8, 20, 32, 36, 60, 1, 30])
            {
                for (int columns = 0; columns <= most; columns++)
                {
                    int toRow = columns + columns % 3;
                    Array.Fill(memory, (byte)0xa5);
                    byte[] expected = new ReadOnlySpan<byte>(firstLine, bytes).ToArray();
                    for (int at = 0; at < rows * columns; at++)
                        BitConverter.TryWriteBytes(expected.AsSpan(offset + (at / columns * toRow + at % columns) * sizeof(float)), numbers[at / columns * fromRow + at % columns] * factor);
                    StreamingStores.Multiply(from, fromRow, (float*)(firstLine + offset), toRow, rows, columns, factor);
                    StreamingStores.Complete();
                    Assert.True(new ReadOnlySpan<byte>(firstLine, bytes).SequenceEqual(expected), $"{columns} columns from byte {offset} on");
                }
            }
        }
    }
}
