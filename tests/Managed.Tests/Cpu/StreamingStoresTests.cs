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
}
