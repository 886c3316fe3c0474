using Xunit;

namespace TransformerKernels.Tests;

public class PairStreamTests
{
    // Tiles (positive) and runs of zeros (negative) that rows are made of.
    private static readonly int[][] Pieces =
    [
        [64, 64, -100, 64, 9, -3, -20], [-7, 64, -1, 64], [5, -2, -3, 30, -17], [64], [3], [-3], [-64, -64], [1, -1, 1, -1, 64, 64, 16], [-200, 33], [16, -16, 32, -32, 48],
    ];

    [Fact]
    public unsafe void Tiles_and_zeros_follow_each_other_wherever_rows_begin_and_nothing_beyond_is_written()
    {
        const int rows = 19, line = 16, beyond = 3;
        float* memory = stackalloc float[(int)PairStream.Floats(rows)];
        var stream = new PairStream(memory);
        foreach (int[] pieces in Pieces)
        {
            int length = pieces.Sum(Math.Abs);
            foreach (int step in (int[])[length, length + beyond, length + line])
            {
                for (int place = 0; place < line; place++)
                {
                    float[] written = new float[(rows + 2) * step + 2 * line], expected = new float[written.Length];
                    fixed (float* start = written)
                    {
                        int first = (int)((line - (nint)start / sizeof(float) % line) % line) + place + step;
                        Array.Fill(written, -1);
                        Array.Fill(expected, -1);
                        int before = 0;
                        foreach (int piece in pieces)
                        {
                            int columns = Math.Abs(piece);
                            float* to = start + first + before;
                            for (int row = 0; row < rows; row++)
                            {
                                for (int column = 0; column < columns; column++)
                                {
                                    expected[first + row * step + before + column] = piece < 0 ? 0 : row * step + before + column + 1;
                                    if (piece > 0)
                                        stream.Tile[row * PairStream.Step + column] = row * step + before + column + 1;
                                }
                            }
                            if (piece > 0)
                                stream.Write(to, step, rows, columns, before, ends: before + columns == length);
                            else
                                stream.Clear(to, step, rows, columns, before, ends: before + columns == length);
                            before += columns;
                        }
                    }
                    StreamingStores.Complete();
                    Assert.True(expected.AsSpan().SequenceEqual(written), $"{string.Join(", ", pieces)} in rows {step} apart from place {place} on");
                }
            }
        }
    }
}
