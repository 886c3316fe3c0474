using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class AlibiTests
{
    [Fact]
    public void Slopes_of_any_number_of_heads_are_those_of_the_papers_code()
    {
        for (int heads = 1; heads <= 130; heads++)
        {
            foreach (double biasMax in (double[])[8, 16, 2.5])
            {
                double[] expected = AlibiOracle.Slopes(heads, biasMax);
                float[] slopes = Alibi.Slopes(heads, biasMax);
                Assert.Equal(heads, slopes.Length);
                Assert.All(expected.Zip(slopes), pair => Assert.Equal(pair.First, pair.Second, 1e-7 * pair.First));
            }
        }
    }

    // Printed in the projects' own tests and code: fairseq's get_slopes, and keras-hub's AlibiBias, whose bias at distance −1 is minus the slope.
    [Theory]
    [InlineData(1, 8, new[] { 0.00390625f })]
    [InlineData(6, 8, new[] { 0.25f, 0.0625f, 0.015625f, 0.00390625f, 0.5f, 0.125f })]
    [InlineData(12, 8, new[] { 0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f, 0.00390625f, 0.707106781f, 0.353553391f, 0.176776695f, 0.0883883476f })]
    [InlineData(8, 8, new[] { 0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f, 0.00390625f })]
    [InlineData(14, 8, new[] { 0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f, 0.00390625f, 0.70710677f, 0.35355338f, 0.17677669f, 0.08838835f, 0.04419417f, 0.02209709f })]
    [InlineData(2, 12, new[] { 0.015625f, 0.00024414f })]
    [InlineData(3, 6, new[] { 0.125f, 0.015625f, 0.35355338f })]
    public void Slopes_are_those_that_others_print(int heads, double biasMax, float[] published) =>
        Assert.All(published.Zip(Alibi.Slopes(heads, biasMax)), pair => Assert.Equal(pair.First, pair.Second, 5e-9f + 1e-7f * pair.First));

    [Theory]
    [InlineData(0, 8, "heads")]
    [InlineData(-1, 8, "heads")]
    [InlineData(4, 0, "biasMax")]
    [InlineData(4, -8, "biasMax")]
    [InlineData(4, double.NaN, "biasMax")]
    [InlineData(4, double.PositiveInfinity, "biasMax")]
    public void Bad_input_names_the_argument(int heads, double biasMax, string name) =>
        Assert.Equal(name, Assert.Throws<ArgumentOutOfRangeException>(() => Alibi.Slopes(heads, biasMax)).ParamName);
}
