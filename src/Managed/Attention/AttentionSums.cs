namespace TransformerKernels;

/// <summary>dQ of a head: the partial gradients of its chunks of keys, added in order.</summary>
internal unsafe struct SumQueryGradients : IWork
{
    public AttentionShape Shape;
    public AttentionBackwardPlan Plan;
    public float* Partials;
    public Strided Gradient;
    public bool Accumulate;

    public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        nint head = item % (nint)Shape.Heads, batch = item / (nint)Shape.Heads, d = (nint)Shape.HeadSize, queries = (nint)Shape.Queries, block = AttentionTiles.Block<V>();
        float* partial = Partials + Plan.QueryPartial(Shape, batch, head, 0), to = Gradient.Matrix(batch, head), sums = (float*)scratch;
        nint row = (nint)AttentionBackwardPlan.QueryRow(Shape), each = (nint)(Plan.QueryPartial(Shape, batch, head, 1) - Plan.QueryPartial(Shape, batch, head, 0));
        for (nint i0 = 0; i0 < queries; i0 += block)
        {
            for (nint at = 0; at < d * block; at += V.Count)
            {
                float* from = partial + i0 * row + at;
                V sum = V.Load(from);
                for (nint chunk = 1; chunk < (nint)Plan.Chunks; chunk++)
                    sum += V.Load(from + chunk * each);
                (sum * Shape.Scale).Store(sums + at);
            }
            AttentionTiles.WriteRows<V>(sums, sums + d * block, Math.Min(block, queries - i0), d, to + i0 * Gradient.Row, Gradient, Accumulate, Shape.Batch * Shape.Heads * Shape.Queries);
        }
        StreamingStores.Complete();
    }
}

/// <summary>dK and dV of a tile of keys: the partial gradients of the parts of its query heads, added in order.</summary>
internal unsafe struct SumKeyGradients : IWork
{
    public AttentionShape Shape;
    public AttentionBackwardPlan Plan;
    public float* Partials;
    public Strided KeyGradient, ValueGradient;
    public bool Accumulate;

    public static long Items(in AttentionShape shape) => shape.Batch * shape.KeyHeads * Tiles(shape);

    private static long Tiles(in AttentionShape shape) => (shape.Keys + AttentionTiles.Keys - 1) / AttentionTiles.Keys;

    public readonly void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
    {
        (nint rest, nint tile) = Math.DivRem(item, (nint)Tiles(Shape));
        (nint batch, nint keyHead) = Math.DivRem(rest, (nint)Shape.KeyHeads);
        nint each = (nint)(Plan.KeyPartial(Shape, batch, keyHead, 1) - Plan.KeyPartial(Shape, batch, keyHead, 0));
        Sum<V>(Partials + Plan.KeyPartial(Shape, batch, keyHead, 0), each, (nint)Shape.HeadSize, Shape.Scale, KeyGradient, batch, keyHead, tile * AttentionTiles.Keys, (float*)scratch);
        Sum<V>(Partials + Plan.ValuePartial(Shape, batch, keyHead, 0), each, (nint)Shape.ValueSize, 1, ValueGradient, batch, keyHead, tile * AttentionTiles.Keys, (float*)scratch);
    }

    private readonly void Sum<V>(float* partial, nint each, nint columns, float scale, in Strided gradient, nint batch, nint keyHead, nint first, float* sums) where V : struct, ILanes<V>
    {
        if (!gradient.IsPresent)
            return;
        nint row = (nint)AttentionTiles.RoundUp(columns, V.Count), rows = Math.Min(AttentionTiles.Keys, (nint)Shape.Keys - first);
        for (nint at = 0; at < rows * row; at += V.Count)
        {
            float* from = partial + first * row + at;
            V sum = V.Load(from);
            for (nint part = 1; part < (nint)Plan.Parts; part++)
                sum += V.Load(from + part * each);
            (sum * scale).Store(sums + at);
        }
        MatrixCopy.Run(sums, row, 1, gradient.Matrix(batch, keyHead) + first * gradient.Row, gradient.Row, gradient.Column, rows, columns, Accumulate);
    }
}

/// <summary>Sums the partial gradients of heads and chunks into the gradients of biases and captured tensors: in double, sequence by sequence, chunk by chunk.</summary>
internal readonly unsafe ref struct BiasGradients(AttentionShape shape, AttentionBackwardPlan plan, AttentionScoring scoring, float* partials, bool accumulate)
{
    // A distance beyond all that occur.
    private const long Beyond = long.MaxValue / 2;

    // The distances that occur in a sequence.
    private long Least(long batch) => shape.LeastDistanceFrom(scoring.QueryOffset((nint)batch));

    private long Greatest(long batch) => shape.GreatestDistanceFrom(scoring.QueryOffset((nint)batch));

    /// <summary>The gradient of the distance vector.</summary>
    public void Distance(float* gradient, in TensorView view)
    {
        bool shared = view.Length(0) == 1;
        for (long row = 0; row < view.Length(0); row++)
        {
            for (long index = 0; index < view.Length(1); index++)
            {
                double sum = 0;
                for (long head = shared ? 0 : row; head < (shared ? shape.Heads : row + 1); head++)
                {
                    for (long batch = 0; batch < shape.Batch; batch++)
                        sum += AtDistance(-1, batch, head, index - shape.DistanceCentre); // 0 beyond what occurs
                }
                Store(gradient + row * view.Stride(0) + index * view.Stride(1), sum);
            }
        }
    }

    /// <summary>The gradient of the slopes: −Σ |distance| · the gradient at that distance.</summary>
    public void Slopes(float* gradient, in TensorView view)
    {
        bool perSequence = view.Rank == 2;
        for (long row = 0; row < (perSequence ? shape.Batch : 1); row++)
        {
            for (long head = 0; head < shape.Heads; head++)
            {
                double sum = 0;
                for (long batch = perSequence ? row : 0; batch < (perSequence ? row + 1 : shape.Batch); batch++)
                {
                    for (long distance = Least(batch); distance <= Greatest(batch); distance++)
                        sum -= Math.Abs(distance) * AtDistance(-1, batch, head, distance);
                }
                Store(gradient + (perSequence ? row * view.Stride(0) : 0) + head * view.Stride(view.Rank - 1), sum);
            }
        }
    }

    /// <summary>The gradient of the bucketed table: for every bucket the distances that fall into it.</summary>
    public void Buckets(float* gradient, in TensorView view)
    {
        for (int bucket = 0; bucket < scoring.Buckets; bucket++)
        {
            (long first, long last) = scoring.DistancesOf(bucket, -Beyond, Beyond);
            for (long head = 0; head < shape.Heads; head++)
                Store(gradient + bucket * view.Stride(0) + head * view.Stride(1), OverDistances(-1, head, first, last));
        }
    }

    /// <summary>The gradient of the table by two coordinates.</summary>
    public void Grid(float* gradient, in TensorView view)
    {
        for (long head = 0; head < shape.Heads; head++)
        {
            for (long cell = 0; cell < shape.GridCells; cell++)
            {
                double sum = 0;
                for (long batch = 0; batch < shape.Batch; batch++)
                {
                    for (long chunk = 0; chunk < plan.Chunks; chunk++)
                        sum += partials[plan.GridPartial(shape, batch, head, chunk) + cell];
                }
                Store(gradient + cell * view.Stride(0) + head * view.Stride(1), sum);
            }
        }
    }

    /// <summary>The gradient of the sinks.</summary>
    public void Sinks(float* gradient, in TensorView view)
    {
        for (long head = 0; head < shape.Heads; head++)
        {
            double sum = 0;
            for (long batch = 0; batch < shape.Batch; batch++)
                sum += *plan.SinkPartial(partials, shape, batch, head);
            Store(gradient + head * view.Stride(0), sum);
        }
    }

    /// <summary>The gradient of a tensor with a value a head, a distance, a query or a key; nothing for one with a value a pair, which was written straight to its place.</summary>
    public void Tensor(int tensor, in Captured gradient)
    {
        if (!gradient.IsPresent)
            return;
        switch (gradient.Structure)
        {
            case CapturedStructure.PerHead:
                for (long row = 0; row < gradient.Heads; row++)
                    Store(gradient.At(0, (nint)row, 0, 0, 0), SumShared(tensor, gradient.Structure, -1, gradient.Heads == shape.Heads ? row : -1, 0, 1));
                break;
            case CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance:
                ByDistance(tensor, gradient);
                break;
            case CapturedStructure.PerQuery or CapturedStructure.PerKey:
                long length = gradient.Structure == CapturedStructure.PerKey ? shape.Keys : shape.Queries;
                for (nint b = 0; b < gradient.Batches; b++)
                {
                    for (nint h = 0; h < gradient.Heads; h++)
                    {
                        for (nint x = 0; x < gradient.Places; x++)
                        {
                            bool each = gradient.Places == length;
                            double sum = SumShared(tensor, gradient.Structure, gradient.Batches == shape.Batch ? b : -1, gradient.Heads == shape.Heads ? h : -1, each ? x : 0, each ? x + 1 : length);
                            Store(gradient.At(b, h, x, x, 0), sum);
                        }
                    }
                }
                break;
            case CapturedStructure.Dense when shape.Batch * shape.Heads == 0 && !accumulate:
                // Nobody had a turn.
                for (nint b = 0; b < gradient.Batches; b++)
                {
                    for (nint h = 0; h < gradient.Heads; h++)
                    {
                        for (nint i = 0; i < (nint)shape.Queries; i++)
                        {
                            for (nint j = 0; j < (nint)shape.Keys; j++)
                                *gradient.At(b, h, i, j, 0) = 0;
                        }
                    }
                }
                break;
        }
    }

    // The sum over one sequence or all (−1), one head or all, and places from .. to−1 of the partials of a captured tensor.
    private double SumShared(int capture, CapturedStructure structure, long batch, long head, long from, long to)
    {
        double sum = 0;
        for (long b = Math.Max(batch, 0); b < (batch < 0 ? shape.Batch : batch + 1); b++)
        {
            for (long h = Math.Max(head, 0); h < (head < 0 ? shape.Heads : head + 1); h++)
            {
                for (long chunk = 0; chunk < plan.Chunks; chunk++)
                {
                    // A chunk has sums of all queries, but only of its own keys.
                    bool perKey = structure == CapturedStructure.PerKey;
                    long first = perKey ? chunk * plan.Chunk : 0, end = perKey ? Math.Min(first + plan.Chunk, shape.Keys) : to;
                    float* partial = partials + plan.CapturedPartial(shape, capture, b, h, chunk);
                    for (long x = Math.Max(from, first); x < Math.Min(to, end); x++)
                        sum += partial[x - first];
                }
            }
        }
        return sum;
    }

    private void ByDistance(int capture, in Captured gradient)
    {
        bool shared = gradient.Heads == 1;
        long last = gradient.Entries - 1;
        for (long row = 0; row < gradient.Heads; row++)
        {
            for (long index = 0; index <= last; index++)
            {
                double sum = 0;
                for (long head = shared ? 0 : row; head < (shared ? shape.Heads : row + 1); head++)
                {
                    if (gradient.Structure == CapturedStructure.PerHeadAndDistance)
                    {
                        // The ends take what lies beyond them.
                        long distance = index - gradient.Centre;
                        sum += OverDistances(capture, head, index == 0 ? -Beyond : distance, index == last ? Beyond : distance);
                    }
                    else
                    {
                        long far = index == last ? Beyond : index;
                        sum += OverDistances(capture, head, index, far) + OverDistances(capture, head, -far, index == 0 ? -1 : -index);
                    }
                }
                Store(gradient.Entry((nint)row, (nint)index), sum);
            }
        }
    }

    private double OverDistances(int capture, long head, long from, long to)
    {
        double sum = 0;
        for (long batch = 0; batch < shape.Batch; batch++)
        {
            for (long distance = Math.Max(from, Least(batch)); distance <= Math.Min(to, Greatest(batch)); distance++)
                sum += AtDistance(capture, batch, head, distance);
        }
        return sum;
    }

    // The gradient of a head's line (capture −1), or of a captured line, at a distance: over the chunks that it occurs in.
    private double AtDistance(int capture, long batch, long head, long distance)
    {
        double sum = 0;
        for (long chunk = 0; chunk < plan.Chunks; chunk++)
        {
            long first = chunk * plan.Chunk, count = Math.Min(plan.Chunk, shape.Keys - first);
            long u = -distance - scoring.QueryOffset((nint)batch) + first + count - 1; // i − j, counted from the last key of the chunk and the first query
            if (u >= 0 && u < shape.Queries + count - 1)
                sum += partials[(capture < 0 ? plan.LinePartial(shape, batch, head, chunk) : plan.CapturedPartial(shape, capture, batch, head, chunk)) + u];
        }
        return sum;
    }

    private void Store(float* to, double sum) => *to = accumulate ? (float)(*to + sum) : (float)sum;
}
