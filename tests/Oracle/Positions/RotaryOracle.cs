using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Rotary embedding: pairs of features turned by position · frequency.</summary>
/// <remarks>
/// y0 = x0 cos a − x1 sin a, y1 = x0 sin a + x1 cos a. Cosines and sines are taken in float64 and rounded to the type of the loops: that is how
/// the table is defined. The gradient turns the other way.
/// </remarks>
public static class RotaryOracle
{
    /// <summary>θ^(−2m/rotarySize).</summary>
    public static double[] Frequencies(int rotarySize, double theta = 10000)
    {
        var frequencies = new double[rotarySize / 2];
        for (int m = 0; m < frequencies.Length; m++)
            frequencies[m] = Math.Pow(theta, -2.0 * m / rotarySize);
        return frequencies;
    }

    /// <summary>Positions offset, offset + 1, ... of every sequence: [1, tokens].</summary>
    public static Grid<double> Positions(int tokens, long offset = 0)
    {
        var positions = Grid.Zeros<double>(1, tokens);
        for (int t = 0; t < tokens; t++)
            positions[0, t] = t + offset;
        return positions;
    }

    /// <summary>Cosines and sines of the angles, times a factor: [batch or 1, token, pair].</summary>
    public static (Grid<T> Cosines, Grid<T> Sines) Table<T>(Grid<double> positions, double[] frequencies, double attentionFactor = 1) where T : IFloatingPointIeee754<T>
    {
        var cosines = Grid.Zeros<T>(positions.Shape[0], positions.Shape[1], frequencies.Length);
        var sines = Grid.Zeros<T>(cosines.Shape);
        for (int b = 0; b < cosines.Shape[0]; b++)
        {
            for (int t = 0; t < cosines.Shape[1]; t++)
            {
                for (int m = 0; m < frequencies.Length; m++)
                {
                    double angle = positions[b, t] * frequencies[m];
                    cosines[b, t, m] = T.CreateTruncating(attentionFactor * Math.Cos(angle));
                    sines[b, t, m] = T.CreateTruncating(attentionFactor * Math.Sin(angle));
                }
            }
        }
        return (cosines, sines);
    }

    /// <param name="x">[batch, head, token, headSize]; features beyond the frequencies stay as they are.</param>
    /// <param name="positions">[batch or 1, token].</param>
    /// <param name="frequencies">The angle of every pair at position 1.</param>
    /// <param name="interleaved">Pairs (2m, 2m + 1) instead of (m, m + pairs).</param>
    /// <param name="backward">Turns by the negative angles.</param>
    /// <param name="attentionFactor">What cosines and sines are multiplied by.</param>
    public static Grid<T> Rotate<T>(Grid<double> x, Grid<double> positions, double[] frequencies, bool interleaved, bool backward = false,
        double attentionFactor = 1) where T : IFloatingPointIeee754<T>
    {
        Grid<T> rotated = x.To<T>();
        (Grid<T> cosines, Grid<T> sines) = Table<T>(positions, frequencies, attentionFactor);
        int pairs = frequencies.Length;
        for (int b = 0; b < x.Shape[0]; b++)
        {
            for (int h = 0; h < x.Shape[1]; h++)
            {
                for (int t = 0; t < x.Shape[2]; t++)
                {
                    Span<T> features = rotated.Row(b, h, t);
                    for (int m = 0; m < pairs; m++)
                    {
                        T cos = cosines[b, t, m], sin = backward ? -sines[b, t, m] : sines[b, t, m];
                        int first = interleaved ? 2 * m : m, second = interleaved ? 2 * m + 1 : m + pairs;
                        (T x0, T x1) = (features[first], features[second]);
                        features[first] = x0 * cos - x1 * sin;
                        features[second] = x0 * sin + x1 * cos;
                    }
                }
            }
        }
        return rotated;
    }
}
