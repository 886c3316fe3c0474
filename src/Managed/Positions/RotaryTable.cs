namespace TransformerKernels;

/// <summary>Cosines and sines of the rotary angles, for positions 0, 1, 2 ...: angles and their cosines computed in double on the host, stored as float32.</summary>
/// <remarks>Angle of pair m at position p: p·θ^(−2m/rotarySize), m = 0 .. rotarySize/2 − 1. Su et al. 2021, "RoFormer", §3.2.2. Dispose it when no call uses it any more.</remarks>
public sealed class RotaryTable : IDisposable
{
    private readonly TensorBuffer cosines, sines;

    /// <summary>A table of cosines and sines that are there, which it owns from now on; both [position, pair], float32, in this device's memory.</summary>
    internal RotaryTable(ComputeDevice device, TensorBuffer cosines, TensorBuffer sines)
    {
        Device = device;
        Positions = (int)cosines.Shape[0];
        RotarySize = 2 * (int)cosines.Shape[1];
        this.cosines = cosines;
        this.sines = sines;
    }

    /// <summary>The table of the original recipe, θ^(−2m/rotarySize).</summary>
    /// <param name="device">The device whose memory holds it.</param>
    /// <param name="rotarySize">How many features of a head are rotated: even, at least 2.</param>
    /// <param name="positions">How many positions, at least 1.</param>
    /// <param name="theta">The base of the frequencies.</param>
    public static RotaryTable Build(ComputeDevice device, int rotarySize, int positions, double theta = 10000)
    {
        Require.Device(device);
        if (rotarySize < 2 || rotarySize % 2 != 0)
            throw new ArgumentOutOfRangeException(nameof(rotarySize), rotarySize, $"rotarySize {rotarySize} is {(rotarySize < 2 ? "too small" : "odd")}; rotary embedding needs pairs.");
        if (!(theta > 0) || !double.IsFinite(theta))
            throw new ArgumentOutOfRangeException(nameof(theta), theta, "The base of the frequencies must be a positive number.");
        var frequencies = new double[rotarySize / 2];
        for (int pair = 0; pair < frequencies.Length; pair++)
            frequencies[pair] = Math.Pow(theta, -2.0 * pair / rotarySize);
        return Build(device, frequencies, positions);
    }

    /// <summary>The table of any recipe that is given by its frequencies.</summary>
    /// <param name="device">The device whose memory holds it.</param>
    /// <param name="inverseFrequencies">The angle of each pair at position 1, in radians.</param>
    /// <param name="positions">How many positions, at least 1.</param>
    /// <param name="attentionFactor">What cosines and sines are multiplied by (YaRN, LongRoPE).</param>
    public static RotaryTable Build(ComputeDevice device, ReadOnlySpan<double> inverseFrequencies, int positions, double attentionFactor = 1)
    {
        Require.Device(device);
        if (inverseFrequencies.IsEmpty)
            throw new ArgumentException("There must be at least one frequency.", nameof(inverseFrequencies));
        foreach (double frequency in inverseFrequencies)
            Require.Finite(frequency, nameof(inverseFrequencies));
        ArgumentOutOfRangeException.ThrowIfLessThan(positions, 1);
        Require.Finite(attentionFactor);
        return Compute(device, inverseFrequencies, positions, attentionFactor);
    }

    /// <summary>The device whose memory holds it.</summary>
    public ComputeDevice Device { get; }

    /// <summary>How many features of a head are rotated.</summary>
    public int RotarySize { get; }

    /// <summary>How many positions there are.</summary>
    public int Positions { get; }

    /// <summary>[position, pair].</summary>
    public TensorView Cosines => cosines.View;

    /// <summary>[position, pair].</summary>
    public TensorView Sines => sines.View;

    /// <summary>Frees the table.</summary>
    public void Dispose()
    {
        cosines.Dispose();
        sines.Dispose();
    }

    private static RotaryTable Compute(ComputeDevice device, ReadOnlySpan<double> inverseFrequencies, int positions, double attentionFactor)
    {
        int pairs = inverseFrequencies.Length;
        var cos = new float[(long)positions * pairs];
        var sin = new float[(long)positions * pairs];
        for (int position = 0; position < positions; position++)
        {
            for (int pair = 0; pair < pairs; pair++)
            {
                (double sine, double cosine) = Math.SinCos(position * inverseFrequencies[pair]);
                long at = (long)position * pairs + pair;
                cos[at] = (float)(attentionFactor * cosine);
                sin[at] = (float)(attentionFactor * sine);
            }
        }
        return new(device, device.Upload<float>(cos, positions, pairs), device.Upload<float>(sin, positions, pairs));
    }
}
