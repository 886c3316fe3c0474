using TransformerKernels.Oracle;

namespace TransformerKernels.Benchmarks;

/// <summary>Makes the contest of a setup.</summary>
internal static class AttentionContest
{
    public static Contest Of(ComputeDevice device, AttentionSetup setup) => setup.Rule switch
    {
        AttentionRule.None => Of(device, setup, UserRules.None),
        AttentionRule.Bent => Of(device, setup, UserRules.Bent),
        AttentionRule.LearnedBent => Of(device, setup, UserRules.LearnedBent),
        AttentionRule.Cooling => Of(device, setup, UserRules.Cooling),
        _ => Of(device, setup, UserRules.Long),
    };

    private static AttentionContest<TRule> Of<TRule>(ComputeDevice device, AttentionSetup setup, UserRule<TRule> rule) where TRule : unmanaged, IScoreRule => new(device, setup, rule);
}

/// <summary>Attention forward, backward, or both, with everything that a setup asks for.</summary>
internal sealed class AttentionContest<TRule> : Contest where TRule : unmanaged, IScoreRule
{
    // The check looks at so many queries, spread over the last sequence, of the heads that share its last key head.
    private const int CheckedQueries = 64;

    private const int UpstreamSeed = 6;
    private const float UpstreamScale = 1;

    private readonly AttentionSetup setup;
    private readonly UserRule<TRule> rule;
    private readonly HeadTensor query, key, value, output, upstream, queryGradient, keyGradient, valueGradient;
    private readonly TensorBuffer logSumExp;
    private readonly TensorBuffer? distances, slopes, table, sinks, captured, queryOffsets, keyLengths;
    private readonly TensorBuffer? distancesGradient, slopesGradient, tableGradient, sinksGradient, capturedGradient;
    private readonly PairTensor? dense, row, column, mask;
    private readonly PairTensor? denseGradient, rowGradient, columnGradient;

    public AttentionContest(ComputeDevice device, AttentionSetup setup, UserRule<TRule> rule) : base(device)
    {
        (this.setup, this.rule) = (setup, rule);
        (int heads, int keyHeads) = (setup.Heads, setup.KeyHeads);
        if (setup.Layout == AttentionLayout.Packed)
        {
            (query, key, value) = Packed(Noisy(1, 2, setup.Batch, setup.Length, heads + 2 * keyHeads, setup.HeadSize));
            (queryGradient, keyGradient, valueGradient) = Packed(Zeros(setup.Batch, setup.Length, heads + 2 * keyHeads, setup.HeadSize));
        }
        else
        {
            query = Tensor(1, 2, heads, setup.Length, setup.HeadSize);
            key = Tensor(2, 2, keyHeads, setup.Keys, setup.HeadSize);
            value = Tensor(3, 1, keyHeads, setup.Keys, setup.ValueSize);
            queryGradient = Tensor(0, 0, heads, setup.Length, setup.HeadSize);
            keyGradient = Tensor(0, 0, keyHeads, setup.Keys, setup.HeadSize);
            valueGradient = Tensor(0, 0, keyHeads, setup.Keys, setup.ValueSize);
        }
        output = Tensor(0, 0, heads, setup.Length, setup.ValueSize);
        upstream = Tensor(UpstreamSeed, UpstreamScale, heads, setup.Length, setup.ValueSize);
        logSumExp = setup.KeepsRemainder && setup.Pass != Pass.Forward ? Zeros(setup.Batch, heads, setup.Length, 2) : Zeros(setup.Batch, heads, setup.Length);

        if (Has(AttentionBias.Distance))
            (distances, distancesGradient) = (Noisy(4, 2, heads, setup.Distances), Zeros(heads, setup.Distances));
        if (Has(AttentionBias.Slopes))
        {
            (slopes, slopesGradient) = (Zeros(heads), Zeros(heads));
            Alibi.Slopes(heads).CopyTo(slopes.AsSpan<float>());
        }
        if (Has(AttentionBias.Buckets))
            (table, tableGradient) = (Noisy(7, 2, AttentionSetup.Buckets, heads), Zeros(AttentionSetup.Buckets, heads));
        if (Has(AttentionBias.Dense))
            (dense, denseGradient) = Pairs(8, 2, setup.BiasAxes, rank: 4);
        if (Has(AttentionBias.Row))
            (row, rowGradient) = Pairs(9, 2, PairAxes.All & ~PairAxes.Key, rank: 3);
        if (Has(AttentionBias.Column))
            (column, columnGradient) = Pairs(10, 2, PairAxes.All & ~PairAxes.Query, rank: 3);
        if (setup.HasSinks)
            (sinks, sinksGradient) = (Noisy(11, 2, heads), Zeros(heads));
        if (setup.Captured is { } structure)
        {
            long[] shape = structure switch
            {
                CapturedStructure.PerHead => [heads],
                CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance => [heads, setup.Distances],
                _ => Shape(setup.CapturedAxes, structure == CapturedStructure.Dense ? 4 : 3),
            };
            (captured, capturedGradient) = (Noisy(5, UserRules.CapturedScale, shape), Zeros(shape));
        }
        if (setup.MaskAxes != PairAxes.None)
            mask = Mask();
        if (setup.QueryPlace == QueryPlace.PerSequence)
            queryOffsets = PerSequence(setup.QueryOffset);
        if (setup.HasKeyLengths)
            keyLengths = PerSequence(setup.KeyLength);
        if (setup.Pass == Pass.Backward)
            Forward();
    }

    public override void Run()
    {
        if (setup.Pass != Pass.Backward)
            Forward();
        if (setup.Pass != Pass.Forward)
            Backward();
    }

    /// <remarks>The gradients are those of a run to whose checked queries alone a gradient arrives: then what sums over queries, heads and sequences sums over them alone.</remarks>
    public override double Check()
    {
        AttentionInputs inputs = Part();
        AttentionResult<double> oracle = AttentionOracle.Forward<double>(inputs);
        AttentionResult<float> naive = AttentionOracle.Forward<float>(inputs);
        int columns = logSumExp.Shape.Length == 4 ? 2 : 1;
        double share = Math.Max(
            Contract.Check(Rows(output).Data.Select(x => (float)x).ToArray(), oracle.Output.Data, naive.Output.Data, Contract.Forward, "output"),
            Contract.Check(Queries((head, at) => logSumExp.AsSpan<float>()[((LastSequence * setup.Heads + head) * setup.Length + at) * columns]), oracle.LogSumExp.Data, naive.LogSumExp.Data, Contract.Forward, "log-sum-exp"));
        return setup.Pass == Pass.Forward ? share : Math.Max(share, CheckGradients(inputs));
    }

    public override IReadOnlyList<TensorBuffer> Results => setup.Pass == Pass.Forward
        ? [output.Buffer]
        : [.. new[] { output.Buffer, queryGradient.Buffer, keyGradient.Buffer, valueGradient.Buffer, distancesGradient ?? slopesGradient ?? tableGradient ?? denseGradient?.Buffer, capturedGradient }.OfType<TensorBuffer>()];

    public override IEnumerable<Peer> Peers() => new AttentionPeers<TRule>(setup, rule,
        TorchPeer.Copy(query.Buffer), TorchPeer.Copy(key.Buffer), TorchPeer.Copy(value.Buffer), TorchPeer.Copy(upstream.Buffer),
        (distances ?? slopes ?? table ?? dense?.Buffer) is { } bias ? TorchPeer.Copy(bias) : null, captured is null ? null : TorchPeer.Copy(captured)).Forms();

    private int LastSequence => setup.Batch - 1;

    private int FirstHead => setup.Heads - setup.Group;

    private static int Checked(int index, int length) => (2 * index + 1) * length / (2 * CheckedQueries);

    private bool Has(AttentionBias bias) => setup.Bias.HasFlag(bias);

    private AttentionProblem Problem
    {
        get
        {
            var problem = new AttentionProblem
            {
                Query = query.View, Key = key.View, Value = value.View, Causal = setup.Causal, Softcap = setup.Softcap,
                DistanceBias = View(distances), Slopes = View(slopes), Sinks = View(sinks), QueryOffsets = View(queryOffsets), KeyLengths = View(keyLengths),
                DenseBias = View(dense?.Buffer), RowBias = View(row?.Buffer), ColumnBias = View(column?.Buffer), Mask = View(mask?.Buffer),
            };
            if (distances is not null)
                problem.DistanceCentre = setup.DistanceCentre;
            if (setup.QueryPlace == QueryPlace.Quarter)
                problem.QueryOffset = setup.QueryOffset(0);
            if (table is not null)
                problem.BucketedBias = new(table, AttentionSetup.MaximumDistance, bidirectional: true);
            if (captured is not null)
                problem.Captured0 = setup.Captured switch
                {
                    CapturedStructure.PerHead => CapturedTensor.PerHead(captured),
                    CapturedStructure.PerHeadAndDistance => CapturedTensor.PerHeadAndDistance(captured, setup.DistanceCentre),
                    CapturedStructure.PerHeadAndAbsoluteDistance => CapturedTensor.PerHeadAndAbsoluteDistance(captured),
                    CapturedStructure.PerQuery => CapturedTensor.PerQuery(captured),
                    CapturedStructure.PerKey => CapturedTensor.PerKey(captured),
                    _ => CapturedTensor.Dense(captured),
                };
            return problem;
        }
    }

    private void Forward() => Attention.Forward(Device, Problem, rule.Ours, output.View, logSumExp, Workspace);

    private void Backward()
    {
        var gradients = new AttentionGradients
        {
            Query = queryGradient.View, Key = keyGradient.View, Value = valueGradient.View,
            DistanceBias = View(distancesGradient), Slopes = View(slopesGradient), BucketedBias = View(tableGradient), Sinks = View(sinksGradient), Captured0 = View(capturedGradient),
            DenseBias = View(denseGradient?.Buffer), RowBias = View(rowGradient?.Buffer), ColumnBias = View(columnGradient?.Buffer),
        };
        Attention.Backward(Device, Problem, rule.Ours, new AttentionSaved { Output = output.View, LogSumExp = logSumExp }, new AttentionUpstream { Output = upstream.View }, gradients, Workspace);
    }

    private double CheckGradients(AttentionInputs inputs)
    {
        upstream.Buffer.Clear();
        for (int head = FirstHead; head < setup.Heads; head++)
        {
            for (int index = 0; index < CheckedQueries; index++)
            {
                Span<float> arriving = upstream.Row(LastSequence, head, Checked(index, setup.Length));
                for (int e = 0; e < arriving.Length; e++)
                    arriving[e] = UpstreamScale * Noise.At(UpstreamSeed, (head * CheckedQueries + index) * arriving.Length + e);
            }
        }
        Backward();
        AttentionGradient<double> oracle = AttentionOracle.Backward<double>(inputs, Rows(upstream));
        AttentionGradient<float> naive = AttentionOracle.Backward<float>(inputs, Rows(upstream));
        Noise.Fill(upstream.Buffer, UpstreamSeed, UpstreamScale);

        double share = 0;
        Check(Rows(queryGradient), oracle.Query, naive.Query, null, "query");
        Check(LastHead(keyGradient), oracle.Key, naive.Key, null, "key");
        Check(LastHead(valueGradient), oracle.Value, naive.Value, null, "value");
        Check(OfHeads(distancesGradient), oracle.DistanceBias, naive.DistanceBias, null, "the distance bias");
        Check(OfHeads(slopesGradient), oracle.Slopes, naive.Slopes, oracle.SlopesMagnitude, "the slopes");
        Check(Table(tableGradient), oracle.BucketTable, naive.BucketTable, oracle.BucketTableMagnitude, "the table");
        Check(OfHeads(sinksGradient), oracle.Sinks, naive.Sinks, oracle.SinksMagnitude, "the sinks");
        Check(Pairs(denseGradient), oracle.DenseBias, naive.DenseBias, oracle.DenseBiasMagnitude, "the dense bias");
        Check(Pairs(rowGradient, hasKeys: false), oracle.RowBias, naive.RowBias, oracle.RowBiasMagnitude, "the row bias");
        Check(Pairs(columnGradient, hasQueries: false), oracle.ColumnBias, naive.ColumnBias, oracle.ColumnBiasMagnitude, "the column bias");
        if (capturedGradient is not null)
            Check(Captured(capturedGradient), oracle.Captured[0], naive.Captured[0], oracle.CapturedMagnitude[0], "the captured values");
        return share;

        void Check(Grid<double>? ours, Grid<double>? exact, Grid<float>? rough, Grid<double>? magnitude, string what)
        {
            if (ours is not null)
                share = Math.Max(share, Contract.Check([.. ours.Data.Select(x => (float)x)], exact!.Data, rough!.Data, Contract.Gradient, $"gradient of {what}", magnitude: magnitude?.Data.Max() ?? 0));
        }
    }

    // Every checked query is a sequence of one query to the oracle, and all of them share keys and values.
    private AttentionInputs Part() => new()
    {
        Query = Rows(query),
        Key = LastHead(key),
        Value = LastHead(value),
        Causal = setup.Causal,
        QueryOffsets = [.. Enumerable.Range(0, CheckedQueries).Select(index => setup.QueryOffset(LastSequence) + Checked(index, setup.Length))],
        KeyLengths = setup.HasKeyLengths ? [.. Enumerable.Repeat(setup.KeyLength(LastSequence), CheckedQueries)] : null,
        Softcap = setup.Softcap,
        DistanceBias = OfHeads(distances),
        DistanceCentre = setup.DistanceCentre,
        Slopes = OfHeads(slopes),
        BucketTable = Table(table),
        MaximumDistance = AttentionSetup.MaximumDistance,
        IsBidirectional = true,
        DenseBias = Pairs(dense),
        RowBias = Pairs(row, hasKeys: false),
        ColumnBias = Pairs(column, hasQueries: false),
        Mask = Pairs(mask),
        Sinks = OfHeads(sinks),
        Formula = rule.Formula,
        Captured = captured is null ? [] : [new(Captured(captured), setup.Captured switch
        {
            CapturedStructure.PerHead => CapturedBy.Head,
            CapturedStructure.PerHeadAndDistance => CapturedBy.HeadAndDistance,
            CapturedStructure.PerHeadAndAbsoluteDistance => CapturedBy.HeadAndAbsoluteDistance,
            CapturedStructure.PerQuery => CapturedBy.Query,
            CapturedStructure.PerKey => CapturedBy.Key,
            _ => CapturedBy.Pair,
        }, setup.DistanceCentre)],
    };

    // One number of every checked query and head.
    private float[] Queries(Func<int, int, float> at)
    {
        var numbers = new List<float>();
        for (int index = 0; index < CheckedQueries; index++)
        {
            for (int head = FirstHead; head < setup.Heads; head++)
                numbers.Add(at(head, Checked(index, setup.Length)));
        }
        return [.. numbers];
    }

    // [checked query, head, 1, size]
    private Grid<double> Rows(HeadTensor tensor)
    {
        var numbers = new List<double>();
        for (int index = 0; index < CheckedQueries; index++)
        {
            for (int head = FirstHead; head < setup.Heads; head++)
            {
                foreach (float number in tensor.Row(LastSequence, head, Checked(index, setup.Length)))
                    numbers.Add(number);
            }
        }
        return new([.. numbers], CheckedQueries, setup.Group, 1, numbers.Count / (CheckedQueries * setup.Group));
    }

    // [1, 1, key, size] of the last key head
    private Grid<double> LastHead(HeadTensor tensor)
    {
        var numbers = new List<double>();
        for (int at = 0; at < setup.Keys; at++)
        {
            foreach (float number in tensor.Row(LastSequence, setup.KeyHeads - 1, at))
                numbers.Add(number);
        }
        return new([.. numbers], 1, 1, setup.Keys, numbers.Count / setup.Keys);
    }

    // [head] or [head, ...]
    private Grid<double>? OfHeads(TensorBuffer? buffer)
    {
        if (buffer is null)
            return null;
        ReadOnlySpan<float> all = buffer.AsSpan<float>();
        int each = all.Length / setup.Heads;
        ReadOnlySpan<float> last = all[(FirstHead * each)..];
        return buffer.Shape.Length == 1 ? Grid.Of(last, setup.Group) : Grid.Of(last, setup.Group, each);
    }

    // [bucket, head]
    private Grid<double>? Table(TensorBuffer? buffer)
    {
        if (buffer is null)
            return null;
        var columns = Grid.Zeros<double>(AttentionSetup.Buckets, setup.Group);
        for (int bucket = 0; bucket < AttentionSetup.Buckets; bucket++)
        {
            for (int head = 0; head < setup.Group; head++)
                columns[bucket, head] = buffer.AsSpan<float>()[bucket * setup.Heads + FirstHead + head];
        }
        return columns;
    }

    // [checked query, head, 1, key], without the axes that it hasn't
    private Grid<double>? Pairs(PairTensor? tensor, bool hasQueries = true, bool hasKeys = true)
    {
        if (tensor is not { } pairs)
            return null;
        int queries = pairs.Has(PairAxes.Query) ? CheckedQueries : 1, heads = pairs.Has(PairAxes.Head) ? setup.Group : 1, keys = pairs.Has(PairAxes.Key) ? setup.Keys : 1;
        var numbers = new double[queries * heads * keys];
        for (int index = 0; index < queries; index++)
        {
            for (int head = 0; head < heads; head++)
            {
                for (int at = 0; at < keys; at++)
                    numbers[(index * heads + head) * keys + at] = pairs.At(LastSequence, FirstHead + head, Checked(index, setup.Length), at);
            }
        }
        int[] shape = (hasQueries, hasKeys) switch { (true, true) => [queries, heads, 1, keys], (true, false) => [queries, heads, 1], _ => [queries, heads, keys] };
        return new(numbers, shape);
    }

    private Grid<double> Captured(TensorBuffer buffer) => setup.CapturedAxes == PairAxes.None
        ? OfHeads(buffer)!
        : Pairs(new PairTensor(buffer, setup.CapturedAxes, setup), hasQueries: setup.Captured != CapturedStructure.PerKey, hasKeys: setup.Captured != CapturedStructure.PerQuery)!;

    private (HeadTensor Query, HeadTensor Key, HeadTensor Value) Packed(TensorBuffer all) =>
        (new(all, true, 0, setup.Heads), new(all, true, setup.Heads, setup.KeyHeads), new(all, true, setup.Heads + setup.KeyHeads, setup.KeyHeads));

    private HeadTensor Tensor(int seed, float scale, int heads, int positions, int size)
    {
        bool positionsFirst = setup.Layout != AttentionLayout.HeadsFirst;
        (long outer, long inner) = positionsFirst ? (positions, (long)heads) : (heads, positions);
        return new(Noisy(seed, scale, setup.Batch, outer, inner, size), positionsFirst, 0, heads);
    }

    private (PairTensor Values, PairTensor Gradient) Pairs(int seed, float scale, PairAxes axes, int rank)
    {
        long[] shape = Shape(axes, rank);
        return (new(Noisy(seed, scale, shape), axes, setup), new(Zeros(shape), axes, setup));
    }

    // [b, h, q, k], or [b, h, q] or [b, h, k] of what has no keys or no queries.
    private long[] Shape(PairAxes axes, int rank)
    {
        (long batch, long heads) = (axes.HasFlag(PairAxes.Batch) ? setup.Batch : 1, axes.HasFlag(PairAxes.Head) ? setup.Heads : 1);
        (long queries, long keys) = (axes.HasFlag(PairAxes.Query) ? setup.Length : 1, axes.HasFlag(PairAxes.Key) ? setup.Keys : 1);
        return rank == 4 ? [batch, heads, queries, keys] : [batch, heads, queries * keys];
    }

    private PairTensor Mask()
    {
        TensorBuffer buffer = Own(Device.Allocate(ElementType.Bool, Shape(setup.MaskAxes, rank: 4)));
        ReadOnlySpan<long> shape = buffer.Shape;
        Span<bool> shown = buffer.AsSpan<bool>();
        int next = 0;
        for (int batch = 0; batch < shape[0]; batch++)
        {
            for (int head = 0; head < shape[1]; head++)
            {
                for (int query = 0; query < shape[2]; query++)
                {
                    for (int key = 0; key < shape[3]; key++)
                        shown[next++] = setup.MaskShows(batch, head, query, key);
                }
            }
        }
        return new(buffer, setup.MaskAxes, setup);
    }

    private TensorBuffer PerSequence(Func<int, int> of)
    {
        TensorBuffer buffer = Own(Device.Allocate(ElementType.Int32, setup.Batch));
        for (int batch = 0; batch < setup.Batch; batch++)
            buffer.AsSpan<int>()[batch] = of(batch);
        return buffer;
    }
}
