using Xunit;

namespace TransformerKernels.Tests;

public class MatrixCopyTests
{
    [Theory]
    [InlineData(1, false)]
    [InlineData(1, true)]
    [InlineData(2, false)]
    public unsafe void Every_shape_is_copied_or_added_whichever_side_has_its_columns_side_by_side_and_nothing_beyond(int step, bool add)
    {
        const int most = 35, gap = 2, line = (most + gap) * 2;
        for (int rows = 0; rows <= most; rows++)
        {
            for (int columns = 0; columns <= most; columns++)
            {
                float[] rowsFirst = Numbers(1), columnsFirst = Numbers(2), rowsTo = Numbers(3), columnsTo = Numbers(4);
                float[] expectedRows = [.. rowsTo], expectedColumns = [.. columnsTo];
                fixed (float* from = rowsFirst, fromColumns = columnsFirst, to = columnsTo, toRows = rowsTo)
                {
                    MatrixCopy.Run(from, line, step, to, 1, line, rows, columns, add);
                    MatrixCopy.Run(fromColumns, 1, line, toRows, line, step, rows, columns, add);
                }
                for (int row = 0; row < rows; row++)
                {
                    for (int column = 0; column < columns; column++)
                    {
                        ref float ofColumns = ref expectedColumns[column * line + row], ofRows = ref expectedRows[row * line + column * step];
                        ofColumns = rowsFirst[row * line + column * step] + (add ? ofColumns : 0);
                        ofRows = columnsFirst[column * line + row] + (add ? ofRows : 0);
                    }
                }
                Assert.True(columnsTo.AsSpan().SequenceEqual(expectedColumns) && rowsTo.AsSpan().SequenceEqual(expectedRows), $"{rows} x {columns}");
            }
        }

        static float[] Numbers(int seed)
        {
            var random = new Random(seed);
            return Enumerable.Range(0, line * line).Select(_ => random.NextSingle()).ToArray();
        }
    }
}
