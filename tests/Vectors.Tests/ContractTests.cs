using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

public class ContractTests
{
    private static readonly double[] Truth = [1, 2, 3, 400];

    [Fact]
    public void Twice_the_naive_error_passes_and_more_fails()
    {
        float[] naive = [1, 2, 3, 400.01f];
        Contract.Check([1, 2, 3, 400.0199f], Truth, naive, Contract.Forward, "x");
        Assert.Throws<ContractException>(() => Contract.Check([1, 2, 3, 400.0202f], Truth, naive, Contract.Forward, "x"));
        Contract.Check([1, 2, 3, 400.0298f], Truth, naive, Contract.Gradient, "x");
    }

    [Fact]
    public void Two_ulps_of_the_largest_number_always_pass()
    {
        float[] naive = [1, 2, 3, 400];
        float twoMore = MathF.BitIncrement(MathF.BitIncrement(400));
        Contract.Check([1, 2, 3, twoMore], Truth, naive, Contract.Forward, "x");
        Assert.Throws<ContractException>(() => Contract.Check([1, 2, 3, MathF.BitIncrement(twoMore)], Truth, naive, Contract.Forward, "x"));
    }

    [Fact]
    public void A_large_head_does_not_hide_an_error_in_a_small_one()
    {
        float[] naive = [1, 2, 3, 400], ours = [1, 2.00001f, 3, 400];
        Contract.Check(ours, Truth, naive, Contract.Forward, "x");
        ContractException error = Assert.Throws<ContractException>(() => Contract.Check(ours, Truth, naive, Contract.Forward, "x", heads: 2));
        Assert.Contains("head 0: [1]", error.Message);
    }

    [Fact]
    public void A_head_is_judged_over_the_whole_batch()
    {
        // [batch 2, head 2]: head 0 is elements 0 and 2.
        Contract.Check([1, 2.00001f, 3, 400], Truth, [1, 2, 3, 400], Contract.Forward, "x", heads: 2, batch: 2);
        Assert.Throws<ContractException>(() => Contract.Check([1.00001f, 2, 3, 400], Truth, [1, 2, 3, 400], Contract.Forward, "x", heads: 2, batch: 2));
    }

    [Theory]
    [InlineData(double.NaN, float.NaN, true)]
    [InlineData(double.NaN, 1f, false)]
    [InlineData(1, float.NaN, false)]
    [InlineData(double.PositiveInfinity, float.PositiveInfinity, true)]
    [InlineData(double.PositiveInfinity, float.NegativeInfinity, false)]
    [InlineData(double.NegativeInfinity, float.NaN, false)]
    [InlineData(1, float.PositiveInfinity, false)]
    [InlineData(1e39, float.PositiveInfinity, true)]
    public void What_is_not_finite_must_be_of_the_same_kind(double oracle, float ours, bool passes)
    {
        void Check() => Contract.Check([ours, 1], [oracle, 1], [0, 1], Contract.Forward, "x");
        if (passes)
            Check();
        else
            Assert.Throws<ContractException>(Check);
    }

    [Fact]
    public void A_sum_counts_as_large_as_its_terms()
    {
        float[] ours = [1e-7f], lucky = [0f];
        Assert.Throws<ContractException>(() => Contract.Check(ours, [0], lucky, Contract.Forward, "sum"));
        Contract.Check(ours, [0], lucky, Contract.Forward, "sum", magnitude: 1);
        Assert.Throws<ContractException>(() => Contract.Check(ours, [0], lucky, Contract.Forward, "sum", magnitude: 0.25));
    }
}
