namespace TransformerKernels.Benchmarks;

/// <summary>Repeated measurements of one thing: the median counts, the quartiles tell the spread.</summary>
internal sealed class Samples
{
    private readonly List<double> values = [];

    public void Add(double value) => values.Add(value);

    public double Median => Quantile(0.5);

    /// <summary>The distance of the quartiles, as a share of the median.</summary>
    public double Spread => (Quantile(0.75) - Quantile(0.25)) / Median;

    // Between two samples the quantile lies on the line that joins them.
    private double Quantile(double share)
    {
        double[] sorted = [.. values.Order()];
        double at = share * (sorted.Length - 1);
        int below = (int)at, above = Math.Min(below + 1, sorted.Length - 1);
        return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
    }
}
