using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>One attention problem: its inputs, what we compute of them, and what the oracle says.</summary>
public sealed class AttentionCase
{
    public int Batch { get; init; } = 1;
    public int Heads { get; init; } = 2;
    public int KeyHeads { get; init; } = 2;
    public int Queries { get; init; } = 5;
    public int Keys { get; init; } = 5;
    public int HeadSize { get; init; } = 4;
    public int ValueSize { get; init; } = 4;
    public float? Scale { get; init; }
    public bool Causal { get; init; }
    public int? QueryOffset { get; init; }
    public int[]? QueryOffsets { get; init; }
    public bool HasLogSumExpUpstream { get; init; }

    /// <summary>Whether the log-sum-exp is kept with what rounding took from it.</summary>
    public bool KeepsRemainder { get; init; }

    /// <summary>How much of the contract's factors is allowed: less where more is promised.</summary>
    public double Share { get; init; } = 1;

    /// <summary>The axes batch, head, position, feature from the outermost to the innermost in memory.</summary>
    public int[] Order { get; init; } = [0, 1, 2, 3];

    /// <summary>Unused floats around every run of every axis.</summary>
    public int Gap { get; init; }

    public Grid<double>? Slopes { get; init; }
    public Grid<double>? DistanceBias { get; init; }
    public int? DistanceCentre { get; init; }
    public Grid<double>? BucketTable { get; init; }
    public int MaximumDistance { get; init; } = 128;
    public bool IsBidirectional { get; init; }
    public Grid<double>? CellTable { get; init; }
    public int WindowHeight { get; init; }
    public int WindowWidth { get; init; }
    public Grid<double>? DenseBias { get; init; }
    public Grid<double>? RowBias { get; init; }
    public Grid<double>? ColumnBias { get; init; }
    public Grid<double>? Sinks { get; init; }
    public Grid<double>? Mask { get; init; }
    public float? Softcap { get; init; }
    public int[]? KeyLengths { get; init; }
    public IReadOnlyList<CapturedValues> Captured { get; init; } = [];

    /// <summary>Which captured tensor's gradient is wanted, if not every one's.</summary>
    public int? WantedCapture { get; init; }

    /// <summary>Changes query, key and value before anything is computed.</summary>
    public Action<Strided, Strided, Strided>? Prepare { get; init; }

    /// <summary>Changes the gradient that arrives for the log-sum-exp.</summary>
    public Action<float[]>? PrepareUpstream { get; init; }

    public string Text => $"b{Batch} h{Heads}/{KeyHeads} {Queries}x{Keys} d{HeadSize}/{ValueSize}{(Causal ? " causal" : "")}{(QueryOffset is { } o ? $" offset {o}" : "")}{(Slopes is null ? "" : " slopes")}{(DistanceBias is null ? "" : " distance")}{Shapes("buckets", BucketTable)}{Shapes("cells", CellTable)}{Shapes("dense", DenseBias)}{Shapes("row", RowBias)}{Shapes("column", ColumnBias)}{Shapes("sinks", Sinks)}{Shapes("mask", Mask)}{(QueryOffsets is null ? "" : $" offsets {string.Join(',', QueryOffsets)}")}{(KeyLengths is null ? "" : $" lengths {string.Join(',', KeyLengths)}")}{(Softcap is { } c ? $" softcap {c}" : "")} order {string.Join("", Order)} gap {Gap}";

    private static string Shapes(string name, Grid<double>? grid) => grid is null ? "" : $" {name} [{string.Join(',', grid.Shape)}]";

    public static AttentionCase Of(int batch, int heads, int keyHeads, int queries, int keys, int headSize, int valueSize, bool causal) =>
        new() { Batch = batch, Heads = heads, KeyHeads = keyHeads, Queries = queries, Keys = keys, HeadSize = headSize, ValueSize = valueSize, Causal = causal };

    public static Grid<double> Numbers(int seed, float scale, params int[] shape) =>
        Grid.Of(Seeded.Normal(shape.Aggregate(1, (a, b) => a * b), seed, scale), shape);

    // The contract compares the largest errors of two float32 evaluations. In a tensor of few numbers the naive one can be right by luck, so several
    // problems of the same kind are judged together, as if they were one batch.
    private int Draws => Math.Clamp(3000 / Math.Max(1, Batch * Queries * Keys), Captured.Count > 0 ? 8 : 3, 20);

    /// <summary>Runs forward and backward and holds everything to the contract.</summary>
    public void Check<TRule>(ComputeDevice device, TRule rule, IScoreFormula? formula = null) where TRule : unmanaged, IScoreRule
    {
        var tensors = new Dictionary<string, (List<float> Ours, List<double> Oracle, List<float> Naive, double Factor, int Heads, int Batch)>();
        var magnitudes = new Dictionary<string, double>();
        void Add(string name, float[] ours, double[] oracle, float[] naive, double factor, int heads, int batch)
        {
            tensors.TryAdd(name, ([], [], [], factor, Math.Max(heads, 1), Draws * Math.Max(batch, 1)));
            tensors[name].Ours.AddRange(ours);
            tensors[name].Oracle.AddRange(oracle);
            tensors[name].Naive.AddRange(naive);
        }
        for (int draw = 0; draw < Draws; draw++)
        {
            Results ours = Run(device, rule, seed: 100 * draw);
            var inputs = new AttentionInputs
            {
                Query = ours.Inputs[0], Key = ours.Inputs[1], Value = ours.Inputs[2], Scale = Scale ?? (float)(1 / Math.Sqrt(HeadSize)), Causal = Causal, QueryOffset = QueryOffset,
                Slopes = Slopes, DistanceBias = DistanceBias, DistanceCentre = DistanceCentre, Formula = formula, Captured = Captured,
                BucketTable = BucketTable, MaximumDistance = MaximumDistance, IsBidirectional = IsBidirectional,
                CellTable = CellTable, WindowHeight = WindowHeight, WindowWidth = WindowWidth,
                DenseBias = DenseBias, RowBias = RowBias, ColumnBias = ColumnBias, Sinks = Sinks, Mask = Mask, QueryOffsets = QueryOffsets, Softcap = Softcap, KeyLengths = KeyLengths,
            };
            AttentionResult<double> forward = AttentionOracle.Forward<double>(inputs);
            AttentionResult<float> naive = AttentionOracle.Forward<float>(inputs);
            Grid<double>? upstreamL = HasLogSumExpUpstream ? ours.Inputs[4] : null;
            AttentionGradient<double> backward = AttentionOracle.Backward<double>(inputs, ours.Inputs[3], upstreamL);
            AttentionGradient<float> naiveBackward = AttentionOracle.Backward<float>(inputs, ours.Inputs[3], upstreamL);
            Add("output", ours.Output, forward.Output.Data, naive.Output.Data, Contract.Forward, Heads, Batch);
            Add("log-sum-exp", ours.LogSumExp, forward.LogSumExp.Data, naive.LogSumExp.Data, Contract.Forward, Heads, Batch);
            Add("dQuery", ours.Query, backward.Query.Data, naiveBackward.Query.Data, Contract.Gradient, Heads, Batch);
            Add("dKey", ours.Key, backward.Key.Data, naiveBackward.Key.Data, Contract.Gradient, KeyHeads, Batch);
            Add("dValue", ours.Value, backward.Value.Data, naiveBackward.Value.Data, Contract.Gradient, KeyHeads, Batch);
            if (Slopes is not null)
                Add("dSlopes", ours.Slopes, backward.Slopes!.Data, naiveBackward.Slopes!.Data, Contract.Gradient, 1, 1); // one number a head: no tensor of its own
            if (DistanceBias is not null)
                Add("dDistance", ours.DistanceBias, backward.DistanceBias!.Data, naiveBackward.DistanceBias!.Data, Contract.Gradient, DistanceBias.Shape[0], 1);
            // A gradient that sums over more than its own axes is judged by the size of its terms.
            AddBias("dBuckets", BucketTable, ours.BucketTable, backward.BucketTable, naiveBackward.BucketTable, backward.BucketTableMagnitude);
            AddBias("dCells", CellTable, ours.CellTable, backward.CellTable, naiveBackward.CellTable, backward.CellTableMagnitude);
            AddBias("dDense", DenseBias, ours.DenseBias, backward.DenseBias, naiveBackward.DenseBias, backward.DenseBiasMagnitude);
            AddBias("dRow", RowBias, ours.RowBias, backward.RowBias, naiveBackward.RowBias, backward.RowBiasMagnitude);
            AddBias("dColumn", ColumnBias, ours.ColumnBias, backward.ColumnBias, naiveBackward.ColumnBias, backward.ColumnBiasMagnitude);
            AddBias("dSinks", Sinks, ours.Sinks, backward.Sinks, naiveBackward.Sinks, backward.SinksMagnitude);
            void AddBias(string name, Grid<double>? bias, float[] ours, Grid<double>? oracle, Grid<float>? naive, Grid<double>? magnitude)
            {
                if (bias is null)
                    return;
                Add(name, ours, oracle!.Data, naive!.Data, Contract.Gradient, 1, 1);
                magnitudes[name] = Math.Max(magnitudes.GetValueOrDefault(name), magnitude!.Data.Append(0).Max());
            }
            for (int c = 0; c < Captured.Count; c++)
            {
                if (WantedCapture is { } wanted && wanted != c)
                    continue;
                Add($"dCaptured{c} by {Captured[c].By}", ours.Captured[c], backward.Captured[c].Data, naiveBackward.Captured[c].Data, Contract.Gradient, 1, 1);
            }
        }
        foreach ((string name, (List<float> ours, List<double> oracle, List<float> naive, double factor, int heads, int batch)) in tensors)
            Contract.Check(ours.ToArray(), oracle.ToArray(), naive.ToArray(), Share * factor, $"{Text}: {name}", heads, batch, magnitudes.GetValueOrDefault(name));
    }

    /// <summary>Runs forward and backward; the results row-major.</summary>
    public Results Run<TRule>(ComputeDevice device, TRule rule, bool accumulate = false, int seed = 0, Workspace? workspace = null) where TRule : unmanaged, IScoreRule
    {
        Strided query = Tensor(Heads, Queries, HeadSize).Fill(seed + 1), key = Tensor(KeyHeads, Keys, HeadSize).Fill(seed + 2), value = Tensor(KeyHeads, Keys, ValueSize).Fill(seed + 3);
        Prepare?.Invoke(query, key, value);
        Strided output = Tensor(Heads, Queries, ValueSize), upstream = Tensor(Heads, Queries, ValueSize).Fill(seed + 4);
        var logSumExp = new float[Batch * Heads * Queries];
        float[] upstreamL = Seeded.Normal(logSumExp.Length, seed + 5);
        PrepareUpstream?.Invoke(upstreamL);
        Strided dQuery = Tensor(Heads, Queries, HeadSize), dKey = Tensor(KeyHeads, Keys, HeadSize), dValue = Tensor(KeyHeads, Keys, ValueSize);
        float start = accumulate ? 1 : float.NaN;
        foreach (Strided gradient in (Strided[])[dQuery, dKey, dValue])
            gradient.Data.AsSpan().Fill(start);
        float[] dSlopes = Fresh(Slopes, start), dDistance = Fresh(DistanceBias, start);
        float[][] dCaptured = [.. Captured.Select(c => Fresh(c.Values, start))];
        var problem = new AttentionProblem { Query = query.View, Key = key.View, Value = value.View, Scale = Scale, Causal = Causal, QueryOffset = QueryOffset, DistanceCentre = DistanceCentre };
        var gradients = new AttentionGradients { Query = dQuery.View, Key = dKey.View, Value = dValue.View, Accumulate = accumulate };
        if (Slopes is not null)
        {
            problem.Slopes = View(Slopes);
            gradients.Slopes = TensorView.Of(dSlopes, Shape(Slopes));
        }
        if (DistanceBias is not null)
        {
            problem.DistanceBias = View(DistanceBias);
            gradients.DistanceBias = TensorView.Of(dDistance, Shape(DistanceBias));
        }
        float[] dTable = Fresh(BucketTable, start);
        if (BucketTable is not null)
        {
            problem.BucketedBias = new(View(BucketTable), MaximumDistance, IsBidirectional);
            gradients.BucketedBias = TensorView.Of(dTable, Shape(BucketTable));
        }
        float[] dCells = Fresh(CellTable, start);
        if (CellTable is not null)
        {
            problem.GridBias = new(View(CellTable), WindowHeight, WindowWidth);
            gradients.GridBias = TensorView.Of(dCells, Shape(CellTable));
        }
        float[] dDense = Fresh(DenseBias, start), dRow = Fresh(RowBias, start), dColumn = Fresh(ColumnBias, start);
        float[] dSinks = Fresh(Sinks, start);
        if (Sinks is not null)
        {
            problem.Sinks = View(Sinks);
            gradients.Sinks = TensorView.Of(dSinks, Shape(Sinks));
        }
        if (Mask is not null)
            problem.Mask = TensorView.Of(Array.ConvertAll(Mask.Data, x => x != 0), Shape(Mask));
        if (QueryOffsets is not null)
            problem.QueryOffsets = TensorView.Of(QueryOffsets, Batch);
        problem.Softcap = Softcap;
        if (KeyLengths is not null)
            problem.KeyLengths = TensorView.Of(KeyLengths, Batch);
        if (DenseBias is not null)
        {
            problem.DenseBias = View(DenseBias);
            gradients.DenseBias = TensorView.Of(dDense, Shape(DenseBias));
        }
        if (RowBias is not null)
        {
            problem.RowBias = View(RowBias);
            gradients.RowBias = TensorView.Of(dRow, Shape(RowBias));
        }
        if (ColumnBias is not null)
        {
            problem.ColumnBias = View(ColumnBias);
            gradients.ColumnBias = TensorView.Of(dColumn, Shape(ColumnBias));
        }
        for (int c = 0; c < Captured.Count; c++)
        {
            CapturedTensor captured = Of(Captured[c]);
            TensorView gradient = WantedCapture is { } wanted && wanted != c ? default : TensorView.Of(dCaptured[c], Shape(Captured[c].Values));
            switch (c)
            {
                case 0: problem.Captured0 = captured; gradients.Captured0 = gradient; break;
                case 1: problem.Captured1 = captured; gradients.Captured1 = gradient; break;
                case 2: problem.Captured2 = captured; gradients.Captured2 = gradient; break;
                default: problem.Captured3 = captured; gradients.Captured3 = gradient; break;
            }
        }
        using Workspace? own = workspace is null ? new Workspace(device) : null;
        workspace ??= own!;
        var pairs = new float[2 * logSumExp.Length];
        TensorView l = KeepsRemainder ? TensorView.Of(pairs, Batch, Heads, Queries, 2) : TensorView.Of(logSumExp, Batch, Heads, Queries);
        TransformerKernels.Attention.Forward(device, problem, rule, output.View, l, workspace);
        var upstreams = new AttentionUpstream { Output = upstream.View };
        if (HasLogSumExpUpstream)
            upstreams.LogSumExp = TensorView.Of(upstreamL, Batch, Heads, Queries);
        TransformerKernels.Attention.Backward(device, problem, rule, new AttentionSaved { Output = output.View, LogSumExp = l }, upstreams, gradients, workspace);
        for (int i = 0; i < logSumExp.Length && KeepsRemainder; i++)
            logSumExp[i] = pairs[2 * i];
        return new(RowMajor(output), logSumExp, RowMajor(dQuery), RowMajor(dKey), RowMajor(dValue), dSlopes, dDistance, dCaptured,
            [Dense(query), Dense(key), Dense(value), Dense(upstream), Grid.Of(upstreamL, Batch, Heads, Queries)])
        { BucketTable = dTable, CellTable = dCells, DenseBias = dDense, RowBias = dRow, ColumnBias = dColumn, Sinks = dSinks };
    }

    private Strided Tensor(int heads, int positions, int size) => new([Batch, heads, positions, size], Order, Gap);

    private static float[] Fresh(Grid<double>? like, float start)
    {
        var fresh = new float[like?.Data.Length ?? 0];
        Array.Fill(fresh, start);
        return fresh;
    }

    private static TensorView View(Grid<double> grid) => TensorView.Of(Array.ConvertAll(grid.Data, x => (float)x), Shape(grid));

    private static long[] Shape(Grid<double> grid) => Array.ConvertAll(grid.Shape, x => (long)x);

    private static CapturedTensor Of(CapturedValues captured) => captured.By switch
    {
        CapturedBy.Head => CapturedTensor.PerHead(View(captured.Values)),
        CapturedBy.HeadAndDistance => CapturedTensor.PerHeadAndDistance(View(captured.Values), captured.Centre),
        CapturedBy.HeadAndAbsoluteDistance => CapturedTensor.PerHeadAndAbsoluteDistance(View(captured.Values)),
        CapturedBy.Query => CapturedTensor.PerQuery(View(captured.Values)),
        CapturedBy.Key => CapturedTensor.PerKey(View(captured.Values)),
        _ => CapturedTensor.Dense(View(captured.Values)),
    };

    private static float[] RowMajor(Strided tensor)
    {
        var flat = new float[tensor.Lengths.Aggregate(1L, (a, b) => a * b)];
        int at = 0;
        for (long b = 0; b < tensor.Lengths[0]; b++)
        {
            for (long h = 0; h < tensor.Lengths[1]; h++)
            {
                for (long s = 0; s < tensor.Lengths[2]; s++)
                {
                    for (long e = 0; e < tensor.Lengths[3]; e++)
                        flat[at++] = tensor[b, h, s, e];
                }
            }
        }
        return flat;
    }

    private static Grid<double> Dense(Strided tensor) => Grid.Of(RowMajor(tensor), Array.ConvertAll(tensor.Lengths, x => (int)x));

    public sealed record Results(float[] Output, float[] LogSumExp, float[] Query, float[] Key, float[] Value, float[] Slopes, float[] DistanceBias, float[][] Captured, Grid<double>[] Inputs)
    {
        public float[] BucketTable { get; init; } = [];
        public float[] CellTable { get; init; } = [];
        public float[] DenseBias { get; init; } = [];
        public float[] RowBias { get; init; } = [];
        public float[] ColumnBias { get; init; } = [];
        public float[] Sinks { get; init; } = [];
        public IEnumerable<float[]> All => [Output, LogSumExp, Query, Key, Value, Slopes, DistanceBias, BucketTable, CellTable, DenseBias, RowBias, ColumnBias, Sinks, .. Captured];
    }
}
