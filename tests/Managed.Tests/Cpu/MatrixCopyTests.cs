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

    [Fact]
    public unsafe void Squares_are_transposed_and_minus_infinity_is_found_at_every_place_even_beside_NaN()
    {
        const int rows = 32, columns = 48, line = 50, lanes = 40;
        Assert.SkipUnless(MatrixCopy.IsOfSquares(1, rows, columns), "squares need AVX-512");
        float[] numbers = Enumerable.Range(0, rows * line).Select(n => n % 5 == 0 ? float.NaN : -n).ToArray(), to = new float[columns * lanes];
        fixed (float* from = numbers, target = to)
        {
            Assert.False(MatrixCopy.TransposeSquares(from, line, target, lanes, rows, columns));
            for (int at = 0; at < rows * columns; at++)
                Assert.Equal(numbers[at / columns * line + at % columns], to[at % columns * lanes + at / columns]);
            for (int place = 0; place < rows * columns; place++)
            {
                ref float value = ref numbers[place / columns * line + place % columns];
                float kept = value;
                value = float.NegativeInfinity;
                Assert.True(MatrixCopy.TransposeSquares(from, line, target, lanes, rows, columns), $"{place}");
                Assert.True(float.IsNegativeInfinity(to[place % columns * lanes + place / columns]));
                value = kept;
            }
        }
    }
}
