namespace TransformerKernels.Benchmarks;

/// <summary>The biases that attention adds to its scores.</summary>
[Flags]
internal enum AttentionBias
{
    None = 0,
    /// <summary>One learned number a head and distance.</summary>
    Distance = 1,
    /// <summary>One slope a head.</summary>
    Slopes = 2,
    /// <summary>T5's table: one learned number a head and bucket of distances.</summary>
    Buckets = 4,
    /// <summary>One learned number a pair, or less along shared axes.</summary>
    Dense = 8,
    /// <summary>One learned number a query.</summary>
    Row = 16,
    /// <summary>One learned number a key.</summary>
    Column = 32,
}

/// <summary>The axes along which a tensor of pairs has values of its own; it is shared along the others.</summary>
[Flags]
internal enum PairAxes
{
    None = 0,
    Batch = 1,
    Head = 2,
    Query = 4,
    Key = 8,
    All = Batch | Head | Query | Key,
}

/// <summary>How query, key, value and output lie in memory.</summary>
internal enum AttentionLayout
{
    /// <summary>[batch, head, position, headSize].</summary>
    HeadsFirst,
    /// <summary>[batch, position, head, headSize].</summary>
    PositionsFirst,
    /// <summary>Query, key and value side by side, [batch, position, heads of all three, headSize].</summary>
    Packed,
}

/// <summary>Where query 0 stands among the keys.</summary>
internal enum QueryPlace
{
    /// <summary>So that the last query meets the last key.</summary>
    BottomRight,
    /// <summary>At a quarter of the keys.</summary>
    Quarter,
    /// <summary>At a place of every sequence's own.</summary>
    PerSequence,
}

/// <summary>Which attention a case is about, float32.</summary>
internal sealed record AttentionSetup
{
    // T5's encoder.
    public const int Buckets = 32, MaximumDistance = 128;

    // Sequences, and heads, differ in lengths and masks in turns of so many.
    private const int Turn = 4;

    public int Batch { get; init; } = 1;
    public int Heads { get; init; } = 8;

    /// <summary>Query heads to a key head.</summary>
    public int Group { get; init; } = 1;

    /// <summary>Queries.</summary>
    public int Length { get; init; } = 2048;

    /// <summary>Keys beyond as many as there are queries.</summary>
    public int MoreKeys { get; init; }

    public int HeadSize { get; init; } = 64;

    /// <summary>The head size if null.</summary>
    public int? OtherValueSize { get; init; }

    public AttentionLayout Layout { get; init; }
    public AttentionBias Bias { get; init; }

    /// <summary>Of the dense bias.</summary>
    public PairAxes BiasAxes { get; init; } = PairAxes.Head | PairAxes.Query | PairAxes.Key;

    /// <summary>Of the boolean mask: documents in a row where it has queries and keys, padding at the end otherwise; no mask if none.</summary>
    public PairAxes MaskAxes { get; init; }

    public bool HasKeyLengths { get; init; }
    public bool Causal { get; init; }
    public QueryPlace QueryPlace { get; init; }
    public float? Softcap { get; init; }
    public bool HasSinks { get; init; }
    public AttentionRule Rule { get; init; }

    /// <summary>What the rule reads; null if it reads nothing.</summary>
    public CapturedStructure? Captured { get; init; }

    /// <summary>The backward pass comes with the gradients of biases, sinks and captured values.</summary>
    public Pass Pass { get; init; }

    /// <summary>Whether the log-sum-exp is kept with what rounding took from it, as training code that calls the backward pass should keep it.</summary>
    public bool KeepsRemainder { get; init; } = true;

    public int Keys => Length + MoreKeys;

    public int KeyHeads => Heads / Group;

    public int ValueSize => OtherValueSize ?? HeadSize;

    /// <summary>The distances that occur.</summary>
    public int Distances => LargestOffset + Length + Keys - 1 - SmallestOffset;

    /// <summary>The index of distance 0 among them.</summary>
    public int DistanceCentre => LargestOffset + Length - 1;

    public PairAxes CapturedAxes => Captured switch
    {
        CapturedStructure.PerQuery => PairAxes.All & ~PairAxes.Key,
        CapturedStructure.PerKey => PairAxes.All & ~PairAxes.Query,
        CapturedStructure.Dense => PairAxes.Head | PairAxes.Query | PairAxes.Key,
        _ => PairAxes.None,
    };

    /// <summary>For people: everything that isn't as usual.</summary>
    public string Text => string.Join(", ", new[]
    {
        MoreKeys == 0 && Group == 1 && ValueSize == HeadSize ? $"[{Batch}, {Heads}, {Length}, {HeadSize}]" : $"q [{Batch}, {Heads}, {Length}, {HeadSize}], k [{Batch}, {KeyHeads}, {Keys}, {HeadSize}]",
        ValueSize == HeadSize ? "" : $"values of {ValueSize}",
        Layout switch { AttentionLayout.HeadsFirst => "", AttentionLayout.PositionsFirst => "[b, s, h, d]", _ => "packed" },
        Bias == AttentionBias.None ? "" : Bias.ToString().ToLowerInvariant().Replace(", ", " and "),
        Bias.HasFlag(AttentionBias.Dense) ? AxesText(BiasAxes) : "",
        MaskAxes == PairAxes.None ? "" : $"mask {AxesText(MaskAxes)}",
        HasKeyLengths ? "key lengths" : "",
        Causal ? "causal" : "",
        QueryPlace switch { QueryPlace.BottomRight => "", QueryPlace.Quarter => "query offset", _ => "query offsets" },
        Softcap is null ? "" : "softcap",
        HasSinks ? "sinks" : "",
        Rule == AttentionRule.None ? "" : $"{Rule.ToString().ToLowerInvariant()} rule",
        Captured is { } structure ? $"captured {structure}" : "",
        Pass == Pass.Forward || KeepsRemainder ? "" : "rounded log-sum-exp",
    }.Where(part => part != ""));

    public Cost Cost
    {
        get
        {
            double tokens = (double)Batch * Heads * Length, keys = (double)Batch * KeyHeads * Keys;
            double inputs = tokens * HeadSize + keys * (HeadSize + ValueSize), outputs = tokens * ValueSize;
            double learned = Has(AttentionBias.Distance, (double)Heads * Distances) + Has(AttentionBias.Slopes, Heads) + Has(AttentionBias.Buckets, (double)Heads * Buckets)
                + Has(AttentionBias.Dense, Count(BiasAxes)) + Has(AttentionBias.Row, tokens) + Has(AttentionBias.Column, (double)Batch * Heads * Keys) + (HasSinks ? Heads : 0)
                + (Captured is null ? 0 : CapturedAxes != PairAxes.None ? Count(CapturedAxes) : Captured == CapturedStructure.PerHead ? Heads : (double)Heads * Distances);
            double mask = MaskAxes == PairAxes.None ? 0 : Count(MaskAxes);
            // Forward inputs, output and log-sum-exp; with the backward pass the output's gradient too, and a gradient of every input.
            double floats = (Pass == Pass.Forward ? 1 : 2) * (inputs + outputs + learned) + tokens;
            return Cost.Attention(VisiblePairs, HeadSize, ValueSize, Pass, sizeof(float) * floats + mask);

            double Has(AttentionBias bias, double count) => Bias.HasFlag(bias) ? count : 0;
        }
    }

    /// <summary>The pairs of query and key that are seen, over all heads and sequences.</summary>
    public double VisiblePairs
    {
        get
        {
            double pairs = 0;
            for (int batch = 0; batch < Math.Min(Batch, Turn); batch++)
            {
                for (int head = 0; head < Math.Min(Heads, Turn); head++)
                {
                    double alike = (double)((Batch - batch + Turn - 1) / Turn) * ((Heads - head + Turn - 1) / Turn);
                    for (int query = 0; query < Length; query++)
                        pairs += alike * VisibleKeys(batch, head, query);
                }
            }
            return pairs;
        }
    }

    /// <summary>The position of query 0 among the keys of a sequence.</summary>
    public int QueryOffset(int batch) => QueryPlace switch
    {
        QueryPlace.BottomRight => MoreKeys,
        QueryPlace.Quarter => Keys / 4,
        _ => batch % Turn * Keys / 8,
    };

    /// <summary>The keys of a sequence.</summary>
    public int KeyLength(int batch) => HasKeyLengths ? Keys - batch % Turn * Keys / 8 : Keys;

    /// <summary>What the mask says of a pair.</summary>
    public bool MaskShows(int batch, int head, int query, int key)
    {
        int turn = (MaskAxes.HasFlag(PairAxes.Batch) ? batch % Turn : 0) + (MaskAxes.HasFlag(PairAxes.Head) ? head % Turn : 0);
        if (MaskAxes.HasFlag(PairAxes.Query | PairAxes.Key))
        {
            int document = Keys / 3 + turn * Keys / 16;
            return (query + MoreKeys) / document == key / document;
        }
        int shown = 16 - 1 - turn;
        return MaskAxes.HasFlag(PairAxes.Key) ? key < Keys * shown / 16 : query < Length * shown / 16;
    }

    private int LargestOffset => Enumerable.Range(0, Math.Min(Batch, Turn)).Max(QueryOffset);

    private int SmallestOffset => Enumerable.Range(0, Math.Min(Batch, Turn)).Min(QueryOffset);

    private int VisibleKeys(int batch, int head, int query)
    {
        int end = Math.Min(KeyLength(batch), Causal ? query + QueryOffset(batch) + 1 : Keys);
        if (MaskAxes == PairAxes.None)
            return end;
        int count = 0;
        for (int key = 0; key < end; key++)
            count += MaskShows(batch, head, query, key) ? 1 : 0;
        return count;
    }

    private double Count(PairAxes axes) =>
        (double)(axes.HasFlag(PairAxes.Batch) ? Batch : 1) * (axes.HasFlag(PairAxes.Head) ? Heads : 1) * (axes.HasFlag(PairAxes.Query) ? Length : 1) * (axes.HasFlag(PairAxes.Key) ? Keys : 1);

    private static string AxesText(PairAxes axes) =>
        $"[{(axes.HasFlag(PairAxes.Batch) ? "b" : "1")}, {(axes.HasFlag(PairAxes.Head) ? "h" : "1")}, {(axes.HasFlag(PairAxes.Query) ? "q" : "1")}, {(axes.HasFlag(PairAxes.Key) ? "k" : "1")}]";
}
