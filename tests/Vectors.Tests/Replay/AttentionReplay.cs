using System.Numerics;
using System.Text.Json;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>attention/: output, log-sum-exp and every gradient.</summary>
public sealed class AttentionReplay : IReplay
{
    private static readonly string[] Parameters =
        ["source", "checked", "naive_error", "scale", "query_offset", "is_causal", "alibi_form", "distance_centre", "score_rule", "visible_nan", "softcap", "seqused_k", "full_case", "t5_bidirectional", "t5_max_distance", "t5_num_buckets", "table_2d_height", "table_2d_width",
            "kerple_form", "prefix_length", "leftpad_k", "chunk_size", "dilation", "natten_size", "natten_kernel"];

    private static readonly string[] Inputs =
        ["query", "key", "value", "upstream_output", "upstream_lse", "alibi_slopes", "distance_vector", "t5_table", "table_2d", "dense_bias", "row_bias", "column_bias", "sinks", "mask", "temperature", "length_gain",
            "dense_bias_2", "forget_logits", "lookup_table", "lookup_index", "kerple_p", "kerple_a", "document_ids", "gate"];

    public bool Owns(VectorCase vector) => vector.Folder == "attention";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Oracle<T>(Read(vector));

    /// <summary>Forward, and backward if there is an upstream gradient, by the oracle.</summary>
    internal static Results<T> Oracle<T>(Case read) where T : unmanaged, IFloatingPointIeee754<T>
    {
        var results = new Results<T>();
        AttentionResult<T> forward = AttentionOracle.Forward<T>(read.Inputs);
        results.Output("output", forward.Output.Data);
        results.Output("lse", forward.LogSumExp.Data);
        if (read.Upstream is null)
            return results;
        AttentionGradient<T> backward = AttentionOracle.Backward<T>(read.Inputs, read.Upstream, read.LogSumExpUpstream);
        results.Gradient("query", backward.Query.Data);
        results.Gradient("key", backward.Key.Data);
        results.Gradient("value", backward.Value.Data);
        if (backward.Slopes is not null)
            results.Gradient("alibi_slopes", backward.Slopes.Data, magnitude: Largest(backward.SlopesMagnitude!));
        if (backward.DistanceBias is not null)
            results.Gradient("distance_vector", backward.DistanceBias.Data);
        if (backward.BucketTable is not null)
            results.Gradient("t5_table", backward.BucketTable.Data, magnitude: Largest(backward.BucketTableMagnitude!));
        if (backward.CellTable is not null)
            results.Gradient("table_2d", backward.CellTable.Data, magnitude: Largest(backward.CellTableMagnitude!));
        if (backward.DenseBias is not null)
            results.Gradient("dense_bias", backward.DenseBias.Data, magnitude: Largest(backward.DenseBiasMagnitude!));
        if (backward.RowBias is not null)
            results.Gradient("row_bias", backward.RowBias.Data, magnitude: Largest(backward.RowBiasMagnitude!));
        if (backward.ColumnBias is not null)
            results.Gradient("column_bias", backward.ColumnBias.Data, magnitude: Largest(backward.ColumnBiasMagnitude!));
        if (backward.Sinks is not null)
            results.Gradient("sinks", backward.Sinks.Data, magnitude: Largest(backward.SinksMagnitude!));
        for (int c = 0; c < read.Captured.Count; c++)
            results.Gradient(read.Captured[c], backward.Captured[c].Data, magnitude: IsByDistance(read.Inputs.Captured[c]) ? 0 : Largest(backward.CapturedMagnitude[c]));
        return Chain.Apply(results, read.Chains);
    }

    public Results<float> Library(VectorCase vector)
    {
        Case read = Read(vector);
        return vector.Text("score_rule") switch
        {
            "checkerboard" => Run(read, new Checkerboard()),
            "squared" => Run(read, new SquaredScore()),
            "leaky" => Run(read, new LeakyScore()),
            "relative_temperature" => Run(read, new LearnedTemperature()),
            "log_length" => Run(read, new LogLength()),
            _ => vector.Input("gate") is null ? Run(read, new PlainScore()) : Run(read, new GatedBias()),
        };
    }

    /// <summary>Forward, and backward if there is an upstream gradient, by the library.</summary>
    internal static Results<float> Run<TRule>(Case read, TRule rule) where TRule : unmanaged, IScoreRule
    {
        ComputeDevice device = DeviceUnderTest.Device;
        using var workspace = new Workspace(device);
        AttentionInputs inputs = read.Inputs;
        int batch = inputs.Query.Shape[0], heads = inputs.Query.Shape[1], keyHeads = inputs.Key.Shape[1], queries = inputs.Query.Shape[2];
        var problem = new AttentionProblem
        {
            Query = View(inputs.Query),
            Key = View(inputs.Key),
            Value = View(inputs.Value),
            Scale = (float?)inputs.Scale,
            Causal = inputs.Causal,
            QueryOffset = inputs.QueryOffset,
            Slopes = View(inputs.Slopes),
            DistanceBias = View(inputs.DistanceBias),
            DistanceCentre = inputs.DistanceBias is null ? null : inputs.DistanceCentre,
            BucketedBias = inputs.BucketTable is null ? default : new(View(inputs.BucketTable), inputs.MaximumDistance, inputs.IsBidirectional),
            GridBias = inputs.CellTable is null ? default : new(View(inputs.CellTable), inputs.WindowHeight, inputs.WindowWidth),
            DenseBias = View(inputs.DenseBias),
            RowBias = View(inputs.RowBias),
            ColumnBias = View(inputs.ColumnBias),
            Sinks = View(inputs.Sinks),
            Mask = inputs.Mask is null ? default : TensorView.Of(Array.ConvertAll(inputs.Mask.Data, x => x != 0), Array.ConvertAll(inputs.Mask.Shape, x => (long)x)),
            QueryOffsets = inputs.QueryOffsets is null ? default : TensorView.Of(inputs.QueryOffsets, batch),
            Softcap = (float?)inputs.Softcap,
            KeyLengths = inputs.KeyLengths is null ? default : TensorView.Of(inputs.KeyLengths, batch),
            Captured0 = Captured(inputs, 0),
            Captured1 = Captured(inputs, 1),
            Captured2 = Captured(inputs, 2),
            Captured3 = Captured(inputs, 3),
        };
        int[] outputShape = [batch, heads, queries, inputs.Value.Shape[3]];
        float[] output = New(outputShape), logSumExp = New(batch, heads, queries);
        Attention.Forward(device, problem, rule, View(output, outputShape), View(logSumExp, batch, heads, queries), workspace);
        var results = new Results<float>();
        results.Output("output", output, batch, heads);
        results.Output("lse", logSumExp, batch, heads);
        if (read.Upstream is null)
            return results;

        float[] query = New(inputs.Query.Shape), key = New(inputs.Key.Shape), value = New(inputs.Value.Shape);
        float[] slopes = New(inputs.Slopes?.Shape ?? [0]), bias = New(inputs.DistanceBias?.Shape ?? [0]);
        float[] table = New(inputs.BucketTable?.Shape ?? [0]), cells = New(inputs.CellTable?.Shape ?? [0]), dense = New(inputs.DenseBias?.Shape ?? [0]), rows = New(inputs.RowBias?.Shape ?? [0]), columns = New(inputs.ColumnBias?.Shape ?? [0]), sinks = New(inputs.Sinks?.Shape ?? [0]);
        float[][] captured = [.. inputs.Captured.Select(values => New(values.Values.Shape))];
        var gradients = new AttentionGradients
        {
            Query = View(query, inputs.Query.Shape),
            Key = View(key, inputs.Key.Shape),
            Value = View(value, inputs.Value.Shape),
            Slopes = inputs.Slopes is null ? default : View(slopes, inputs.Slopes.Shape),
            DistanceBias = inputs.DistanceBias is null ? default : View(bias, inputs.DistanceBias.Shape),
            BucketedBias = inputs.BucketTable is null ? default : View(table, inputs.BucketTable.Shape),
            GridBias = inputs.CellTable is null ? default : View(cells, inputs.CellTable.Shape),
            DenseBias = inputs.DenseBias is null ? default : View(dense, inputs.DenseBias.Shape),
            RowBias = inputs.RowBias is null ? default : View(rows, inputs.RowBias.Shape),
            ColumnBias = inputs.ColumnBias is null ? default : View(columns, inputs.ColumnBias.Shape),
            Sinks = inputs.Sinks is null ? default : View(sinks, inputs.Sinks.Shape),
            Captured0 = Gradient(0),
            Captured1 = Gradient(1),
            Captured2 = Gradient(2),
            Captured3 = Gradient(3),
        };
        Attention.Backward(device, problem, rule, new AttentionSaved { Output = View(output, outputShape), LogSumExp = View(logSumExp, batch, heads, queries) },
            new AttentionUpstream { Output = View(read.Upstream), LogSumExp = View(read.LogSumExpUpstream) }, gradients, workspace);
        results.Gradient("query", query, batch, heads);
        results.Gradient("key", key, batch, keyHeads);
        results.Gradient("value", value, batch, keyHeads);
        // One number a head has no other to be hidden by.
        results.Gradient("alibi_slopes", slopes);
        if (inputs.DistanceBias is not null)
            results.Gradient("distance_vector", bias, 1, inputs.DistanceBias.Shape[0]);
        results.Gradient("t5_table", table);
        results.Gradient("table_2d", cells);
        results.Gradient("dense_bias", dense);
        results.Gradient("row_bias", rows);
        results.Gradient("column_bias", columns);
        results.Gradient("sinks", sinks);
        for (int c = 0; c < read.Captured.Count; c++)
            results.Gradient(read.Captured[c], captured[c], 1, IsByDistance(inputs.Captured[c]) ? inputs.Captured[c].Values.Shape[0] : 1);
        return Chain.Apply(results, read.Chains);

        TensorView Gradient(int c) => c < read.Captured.Count ? View(captured[c], inputs.Captured[c].Values.Shape) : default;
    }

    // One line a head; anything else is a sum over pairs that may cancel.
    private static bool IsByDistance(CapturedValues captured) => captured.By is CapturedBy.HeadAndDistance or CapturedBy.HeadAndAbsoluteDistance;

    private static CapturedTensor Captured(AttentionInputs inputs, int c)
    {
        if (c >= inputs.Captured.Count)
            return default;
        TensorView values = View(inputs.Captured[c].Values);
        return inputs.Captured[c].By switch
        {
            CapturedBy.Head => CapturedTensor.PerHead(values),
            CapturedBy.HeadAndDistance => CapturedTensor.PerHeadAndDistance(values, inputs.Captured[c].Centre),
            CapturedBy.HeadAndAbsoluteDistance => CapturedTensor.PerHeadAndAbsoluteDistance(values),
            CapturedBy.Query => CapturedTensor.PerQuery(values),
            CapturedBy.Key => CapturedTensor.PerKey(values),
            _ => CapturedTensor.Dense(values),
        };
    }

    private static Case Read(VectorCase vector)
    {
        vector.KnowsOnly(Parameters, Inputs);
        // Without a prefix, which is seen ahead too.
        bool causal = vector.Flag("is_causal"), isCausal = causal && vector.Parameter("prefix_length") is null;
        var made = new AttentionRecipes(vector);
        // Causal attention sees no distance above 0, where alone the forms differ.
        bool hasSlopes = vector.Text("alibi_form") is null or "symmetric" || (vector.Text("alibi_form") == "one_sided" && causal && isCausal);
        int[]? offsets = vector.Parameter("query_offset") is { ValueKind: JsonValueKind.Array } list ? [.. list.EnumerateArray().Select(offset => offset.GetInt32())] : null;
        bool isGated = vector.Input("gate") is not null;
        (string Name, CapturedBy By)[] captured = isGated ? [("gate", CapturedBy.Query), ("distance_vector", CapturedBy.HeadAndDistance)] : vector.Text("score_rule") switch
        {
            "relative_temperature" => [("temperature", CapturedBy.HeadAndAbsoluteDistance)],
            "log_length" => [("length_gain", CapturedBy.Head)],
            _ => [],
        };
        return new(new AttentionInputs
        {
            Query = vector.Need("query").Grid,
            Key = vector.Need("key").Grid,
            Value = vector.Need("value").Grid,
            Scale = vector.Number("scale"),
            Causal = isCausal,
            QueryOffset = offsets is null ? (int?)vector.Number("query_offset") : null,
            QueryOffsets = offsets,
            Slopes = hasSlopes ? vector.Input("alibi_slopes")?.Grid : null,
            DistanceBias = made.DistanceBias ?? (!isGated && vector.Input("distance_vector") is { Shape.Length: 2 } line ? line.Grid : null),
            DistanceCentre = made.DistanceBias is null ? (int?)vector.Number("distance_centre") : made.DistanceCentre,
            BucketTable = vector.Input("t5_table")?.Grid,
            MaximumDistance = (int)(vector.Number("t5_max_distance") ?? 128),
            IsBidirectional = vector.Flag("t5_bidirectional"),
            CellTable = vector.Input("table_2d")?.Grid,
            WindowHeight = (int)(vector.Number("table_2d_height") ?? 0),
            WindowWidth = (int)(vector.Number("table_2d_width") ?? 0),
            DenseBias = made.DenseBias ?? vector.Input("dense_bias")?.Grid,
            RowBias = made.RowBias ?? PerHead(vector.Input("row_bias")?.Grid),
            ColumnBias = made.ColumnBias ?? PerHead(vector.Input("column_bias")?.Grid),
            Sinks = vector.Input("sinks")?.Grid,
            Mask = made.Mask ?? vector.Input("mask")?.Grid,
            Softcap = vector.Number("softcap"),
            KeyLengths = vector.Parameter("seqused_k") is { } lengths ? [.. lengths.EnumerateArray().Select(length => length.GetInt32())] : null,
            Formula = vector.Text("score_rule") switch
            {
                null => isGated ? new GatedBiasFormula() : null,
                "checkerboard" => new CheckerboardFormula(),
                "squared" => new SquaredFormula(),
                "leaky" => new LeakyFormula(0.125),
                "relative_temperature" => new CapturedFactorFormula(),
                "log_length" => new LogLengthFormula(),
                { } rule => throw new NotReplayedException($"score_rule {rule}"),
            },
            Captured = [.. captured.Select(one => new CapturedValues(vector.Need(one.Name).Grid, one.By, (int)(vector.Number("distance_centre") ?? 0)))],
        }, vector.Input("upstream_output")?.Grid, vector.Input("upstream_lse")?.Grid)
        { Captured = [.. captured.Select(one => one.Name)], Chains = made.Chains };
    }

    // [h, s] counts for every sequence.
    private static Grid<double>? PerHead(Grid<double>? bias) => bias is { Shape.Length: 2 } ? new(bias.Data, [1, .. bias.Shape]) : bias;

    private static double Largest<T>(Grid<T> grid) where T : INumberBase<T> => grid.Data.Select(double.CreateTruncating).Append(0).Max();

    private static float[] New(params int[] shape) => new float[shape.Aggregate(1, (product, length) => product * length)];

    private static TensorView View(float[] data, params int[] shape) => TensorView.Of(data, Array.ConvertAll(shape, length => (long)length));

    private static TensorView View(Grid<double>? grid) => grid is null ? default : View(Array.ConvertAll(grid.Data, x => (float)x), grid.Shape);

    /// <summary>A problem, what arrives at its outputs, and how the gradients of captured tensors (those of the first so many) and of what biases were made of are called.</summary>
    internal sealed record Case(AttentionInputs Inputs, Grid<double>? Upstream = null, Grid<double>? LogSumExpUpstream = null)
    {
        public IReadOnlyList<string> Captured { get; init; } = [];

        public IReadOnlyList<Chain> Chains { get; init; } = [];
    }
}
