namespace TransformerKernels;

/// <summary>How a captured tensor is indexed by a pair of query i and key j of head h in sequence b.</summary>
public enum CapturedStructure
{
    /// <summary>[h]: one value a head.</summary>
    PerHead,
    /// <summary>[h, n]: value (distance + centre); an index beyond an end takes the end.</summary>
    PerHeadAndDistance,
    /// <summary>[h, n]: value |distance|; an index beyond the end takes the end.</summary>
    PerHeadAndAbsoluteDistance,
    /// <summary>[b, h, Sq]: one value a query.</summary>
    PerQuery,
    /// <summary>[b, h, Sk]: one value a key.</summary>
    PerKey,
    /// <summary>[b, h, Sq, Sk]: one value a pair.</summary>
    Dense,
}

/// <summary>A learned tensor that a score rule reads: the library looks its values up, and sums its gradient in a fixed order.</summary>
/// <remarks>
/// Every axis but the distance may have length 1, which shares the values along it; h counts query heads. Of values that are absent none is made
/// (<see cref="ArgumentNullException"/>): no tensor is <see langword="default"/>.
/// </remarks>
public readonly ref struct CapturedTensor
{
    private CapturedTensor(TensorView values, CapturedStructure structure, long centre = 0)
    {
        Require.Present(values, nameof(values));
        Values = values;
        Structure = structure;
        Centre = centre;
    }

    /// <summary>The values, float32.</summary>
    public TensorView Values { get; }

    /// <summary>How they are indexed.</summary>
    public CapturedStructure Structure { get; }

    /// <summary>The index of distance 0, for <see cref="CapturedStructure.PerHeadAndDistance"/>.</summary>
    public long Centre { get; }

    /// <summary>Whether there is a tensor.</summary>
    public bool IsPresent => Values.IsPresent;

    /// <summary>[h]: one value a head.</summary>
    public static CapturedTensor PerHead(TensorView values) => new(values, CapturedStructure.PerHead);

    /// <summary>[h, n], read at distance + <paramref name="centre"/>; beyond the ends the end.</summary>
    public static CapturedTensor PerHeadAndDistance(TensorView values, long centre) => new(values, CapturedStructure.PerHeadAndDistance, centre);

    /// <summary>[h, n], read at |distance|; beyond the end the end.</summary>
    public static CapturedTensor PerHeadAndAbsoluteDistance(TensorView values) => new(values, CapturedStructure.PerHeadAndAbsoluteDistance);

    /// <summary>[b, h, Sq]: one value a query.</summary>
    public static CapturedTensor PerQuery(TensorView values) => new(values, CapturedStructure.PerQuery);

    /// <summary>[b, h, Sk]: one value a key.</summary>
    public static CapturedTensor PerKey(TensorView values) => new(values, CapturedStructure.PerKey);

    /// <summary>[b, h, Sq, Sk]: one value a pair. Reads as many values as there are pairs.</summary>
    public static CapturedTensor Dense(TensorView values) => new(values, CapturedStructure.Dense);
}
