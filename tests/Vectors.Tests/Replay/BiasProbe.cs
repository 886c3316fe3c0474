using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>Tells what is added to every pair: a query of zeros that sees one key has that pair's bias as its log-sum-exp, and what arrives there arrives at the bias. Keys are shown one by one.</summary>
public static class BiasProbe
{
    /// <summary>Queries, keys and values of zeros.</summary>
    public static AttentionInputs Blank(int batch, int heads, int queries, int keys) => new()
    {
        Query = Grid.Zeros<double>(batch, heads, queries, 1),
        Key = Grid.Zeros<double>(batch, heads, keys, 1),
        Value = Grid.Zeros<double>(batch, heads, keys, 1),
    };

    /// <summary>The output "bias" [b, h, Sq, Sk], and the gradients of what makes it if its upstream gradient is the case's of the log-sum-exp, [b, h, Sq, Sk] too.</summary>
    internal static Results<T> Run<T>(AttentionReplay.Case read, Func<AttentionReplay.Case, Results<T>> run) where T : unmanaged, INumberBase<T>
    {
        (int batch, int heads, int queries, int keys) = (read.Inputs.Query.Shape[0], read.Inputs.Query.Shape[1], read.Inputs.Query.Shape[2], read.Inputs.Key.Shape[2]);
        int rows = batch * heads * queries;
        var bias = new T[rows * keys];
        var sums = new Dictionary<string, (T[] Values, double Magnitude)>();
        for (int key = 0; key < keys; key++)
        {
            Grid<double> mask = Grid.Zeros<double>(1, 1, 1, keys), upstream = Grid.Zeros<double>(batch, heads, queries);
            mask.Data[key] = 1;
            for (int row = 0; row < rows && read.LogSumExpUpstream is not null; row++)
                upstream.Data[row] = read.LogSumExpUpstream.Data[row * keys + key];
            Results<T> one = run(read with
            {
                Inputs = read.Inputs with { Mask = mask },
                Upstream = read.LogSumExpUpstream is null ? null : Grid.Zeros<double>(batch, heads, queries, 1),
                LogSumExpUpstream = upstream,
                Chains = [],
            });
            for (int row = 0; row < rows; row++)
                bias[row * keys + key] = one.Outputs["lse"].Values[row];
            foreach ((string name, Result<T> gradient) in one.Gradients)
            {
                (T[] sum, double magnitude) = sums.GetValueOrDefault(name, (new T[gradient.Values.Length], 0));
                for (int at = 0; at < sum.Length; at++)
                    sum[at] += gradient.Values[at];
                sums[name] = (sum, magnitude + gradient.Magnitude);
            }
        }
        var results = new Results<T>();
        results.Output("bias", bias, batch, heads);
        foreach ((string name, (T[] values, double magnitude)) in sums)
            results.Gradient(name, values, magnitude: magnitude);
        return Chain.Apply(results, read.Chains);
    }
}
