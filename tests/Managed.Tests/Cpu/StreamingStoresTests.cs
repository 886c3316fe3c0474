using Xunit;

namespace TransformerKernels.Tests;

public class StreamingStoresTests
{
    [Fact]
    public unsafe void Every_shape_is_cleared_wherever_its_rows_begin_and_nothing_beyond()
    {
        const int mostColumns = 70, places = 16, rows = 19;
        foreach (int step in (int[])[mostColumns, mostColumns + 10])
        {
            for (int columns = 0; columns <= mostColumns; columns++)
            {
                for (int place = 0; place < places; place++)
                {
                    float[] cleared = new float[(rows + 2) * step + places];
                    Array.Fill(cleared, 1);
                    fixed (float* to = cleared)
                        StreamingStores.Clear(to + step + place, step, rows, columns);
                    StreamingStores.Complete();
                    for (int at = 0; at < cleared.Length; at++)
                    {
                        int row = (at - place) / step - 1, column = (at - place) % step;
                        Assert.Equal(at >= step + place && row < rows && column < columns ? 0 : 1, cleared[at]);
                    }
                }
            }
        }
    }

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
