namespace TransformerKernels;

/// <summary>
/// T5's relative position bias: distances fall into buckets, one each near by, ever wider ones up to a largest distance (Raffel et al. 2020; transformers'
/// <c>_relative_position_bucket</c>).
/// </summary>
/// <remarks>
/// With B buckets a direction, e = ⌊B/2⌋ and n = |distance|: bucket n if n &lt; e, else the lesser of B − 1 and e + ⌊ln(n/e) / ln(MaximumDistance/e) · (B − e)⌋, in float32 as the
/// reference computes it. Of two directions keys ahead use the second half of the table; of one, keys ahead share the bucket of distance 0. T5 doesn't scale its scores: set
/// <see cref="AttentionProblem.Scale"/> to 1.
/// </remarks>
public readonly ref struct BucketedBias
{
    /// <summary>A bias that reads a table at the bucket of the distance.</summary>
    /// <param name="table">[buckets, h], float32; an even number of buckets if bidirectional, at least 2 a direction.</param>
    /// <param name="maximumDistance">The distance from which on the last bucket is used; above half of the buckets of a direction. 128 in T5.</param>
    /// <param name="bidirectional">Whether keys behind and keys ahead have buckets of their own, half each: true in T5's encoder, false in its decoder.</param>
    /// <exception cref="ArgumentNullException">There is no table.</exception>
    public BucketedBias(TensorView table, int maximumDistance, bool bidirectional)
    {
        Require.Present(table, nameof(table));
        Table = table;
        MaximumDistance = maximumDistance;
        IsBidirectional = bidirectional;
    }

    /// <summary>[buckets, h].</summary>
    public TensorView Table { get; }

    /// <summary>The distance from which on the last bucket is used.</summary>
    public int MaximumDistance { get; }

    /// <summary>Whether keys behind and keys ahead have buckets of their own.</summary>
    public bool IsBidirectional { get; }

    /// <summary>Whether there is a table.</summary>
    public bool IsPresent => Table.IsPresent;

    /// <summary>The row of the table for a distance.</summary>
    /// <param name="distance">Key position − query position.</param>
    /// <param name="buckets">The rows of the table.</param>
    /// <param name="maximumDistance">See <see cref="MaximumDistance"/>.</param>
    /// <param name="bidirectional">See <see cref="IsBidirectional"/>.</param>
    /// <exception cref="ArgumentException">Too few buckets, or an odd number for two directions.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The largest distance lies within the buckets of one distance each.</exception>
    public static int Bucket(long distance, int buckets, int maximumDistance, bool bidirectional)
    {
        Check(buckets, maximumDistance, bidirectional, nameof(buckets), nameof(maximumDistance));
        int each = bidirectional ? buckets / 2 : buckets;
        return bidirectional && distance > 0 ? each + Of(distance, each, maximumDistance) : Of(Math.Max(-Math.Max(distance, -long.MaxValue), 0), each, maximumDistance);
    }

    internal static void Check(long buckets, int maximumDistance, bool bidirectional, string bucketsName, string distanceName)
    {
        long each = bidirectional ? buckets / 2 : buckets;
        if (each < 2 || (bidirectional && buckets % 2 != 0))
            throw new ArgumentException($"{buckets} buckets; {(bidirectional ? "two directions need an even number, at least 4" : "at least 2 are needed")}.", bucketsName);
        if (buckets > int.MaxValue)
            throw new ArgumentException($"{buckets} buckets; there can be at most {int.MaxValue}.", bucketsName);
        if (maximumDistance <= each / 2)
            throw new ArgumentOutOfRangeException(distanceName, maximumDistance, $"The largest distance must lie beyond the {each / 2} buckets of one distance each.");
    }

    // The bucket of n = |distance| among those of its direction.
    private static int Of(long n, int buckets, int maximumDistance)
    {
        int exact = buckets / 2;
        if (n < exact)
            return (int)n;
        float share = (float)Math.Log(n / (float)exact) / (float)Math.Log(maximumDistance / (double)exact) * (buckets - exact);
        return (int)Math.Min(exact + (long)share, buckets - 1);
    }

    /// <summary>starts[k] is the least |distance| in bucket k of a direction or in a later one, for every k.</summary>
    internal static unsafe void FillStarts(int* starts, int buckets, int maximumDistance)
    {
        int exact = buckets / 2;
        for (int bucket = 0; bucket < buckets; bucket++)
        {
            if (bucket <= exact)
            {
                starts[bucket] = bucket;
                continue;
            }
            // The formula solved for n is off by rounding alone.
            int n = (int)(exact * Math.Pow(maximumDistance / (double)exact, (bucket - exact) / (double)(buckets - exact)));
            while (Of(n - 1, buckets, maximumDistance) >= bucket)
                n--;
            while (Of(n, buckets, maximumDistance) < bucket)
                n++;
            starts[bucket] = n;
        }
    }
}
