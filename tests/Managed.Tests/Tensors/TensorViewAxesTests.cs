using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Views with an axis less, and with an axis repeated.</summary>
public class TensorViewAxesTests
{
    private readonly float[] data = [0, 1, 2, 3, 4, 5];

    [Fact]
    public void Selecting_an_index_removes_the_axis()
    {
        TensorView matrix = TensorView.Of(data, 2, 3), column = matrix.Select(1, 2), row = matrix.Select(0, 1);
        Assert.Equal("[2]", column.ShapeText);
        Assert.Equal(3, column.Stride(0));
        Assert.Equal(2f, First(column));
        Assert.Equal("[3]", row.ShapeText);
        Assert.Equal(1, row.Stride(0));
        Assert.Equal(3f, First(row));
        Assert.Equal(0, row.Select(0, 0).Rank);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(-1)]
    public void Selecting_outside_the_axis_throws(int index) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => TensorView.Of(data, 2, 3).Select(0, index).Rank);

    [Fact]
    public void An_expanded_axis_has_stride_zero_and_counts_as_aliasing()
    {
        TensorView repeated = TensorView.Of(data, 6, 1).Expand(1, 4);
        Assert.Equal("[6, 4]", repeated.ShapeText);
        Assert.Equal((1, 0), (repeated.Stride(0), repeated.Stride(1)));
        Assert.True(repeated.AliasesItself);
        Assert.Throws<ArgumentException>(() => TensorView.Of(data, 6, 1).Expand(0, 12).Rank);
    }

    private static unsafe float First(TensorView view)
    {
        fixed (byte* first = view)
            return *(float*)first;
    }
}
