using System.Numerics;

namespace TransformerKernels.Tests;

/// <summary>A gradient that belongs to what a bias was made of: sums of the bias's gradient, each times the derivative of the making.</summary>
/// <param name="Name">The file's name of it.</param>
/// <param name="Count">How many numbers.</param>
/// <param name="Terms">Number Target receives Factor times number At of the gradient Source.</param>
public sealed record Chain(string Name, int Count, IReadOnlyList<(int Target, string Source, int At, double Factor)> Terms)
{
    /// <summary>The gradient under another name, times a factor.</summary>
    public static Chain Of(string name, string source, int count, double factor = 1) => new(name, count, [.. Enumerable.Range(0, count).Select(i => (i, source, i, factor))]);

    /// <summary>The results with the chained gradients among them, in place of those of the same name.</summary>
    public static Results<T> Apply<T>(Results<T> results, IReadOnlyList<Chain> chains) where T : unmanaged, INumberBase<T>
    {
        if (chains.Count == 0 || results.Gradients.Count == 0)
            return results;
        var chained = new Results<T>();
        foreach ((string name, Result<T> output) in results.Outputs)
            chained.Output(name, output.Values, output.Batch, output.Heads, output.Within, output.Magnitude);
        foreach ((string name, Result<T> gradient) in results.Gradients)
        {
            if (chains.All(chain => chain.Name != name))
                chained.Gradient(name, gradient.Values, gradient.Batch, gradient.Heads, gradient.Within, gradient.Magnitude);
        }
        foreach (Chain chain in chains)
        {
            double[] sums = new double[chain.Count], magnitudes = new double[chain.Count];
            foreach ((int target, string source, int at, double factor) in chain.Terms)
            {
                double term = factor * double.CreateTruncating(results.Gradients[source].Values[at]);
                sums[target] += term;
                magnitudes[target] += Math.Abs(term);
            }
            // One term a number is the bias's gradient by another name.
            double magnitude = chain.Terms.Count > chain.Count ? magnitudes.Max() : chain.Terms.Select(term => Math.Abs(term.Factor) * results.Gradients[term.Source].Magnitude).Append(0).Max();
            chained.Gradient(chain.Name, Array.ConvertAll(sums, T.CreateTruncating), magnitude: magnitude);
        }
        return chained;
    }
}
