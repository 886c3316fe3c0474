using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Benchmarks;

/// <summary>Attention forward, or forward and backward, with a bias and a user's rule.</summary>
internal sealed class AttentionContest<TRule> : Contest where TRule : unmanaged, IScoreRule
{
    // The forward check looks at the last queries of the last head, the backward check at the whole head.
    private const int CheckedQueries = 64;

    // T5's encoder.
    private const int Buckets = 32, MaximumDistance = 128;

    private readonly AttentionSetup setup;
    private readonly UserRule<TRule> rule;
    private readonly TensorBuffer query, key, value, bias, slopes, table, captured, output, logSumExp;
    private readonly TensorBuffer upstream, queryGradient, keyGradient, valueGradient, biasGradient, tableGradient, capturedGradient;
    private readonly bool captures;

    public AttentionContest(ComputeDevice device, AttentionSetup setup, UserRule<TRule> rule, bool captures) : base(device)
    {
        (this.setup, this.rule, this.captures) = (setup, rule, captures);
        (int batch, int heads, int length, int headSize) = (setup.Batch, setup.Heads, setup.Length, setup.HeadSize);
        query = Noisy(1, 2, batch, heads, length, headSize);
        key = Noisy(2, 2, batch, heads, length, headSize);
        value = Noisy(3, 1, batch, heads, length, headSize);
        bias = Noisy(4, 2, heads, 2 * length - 1);
        slopes = Zeros(heads);
        table = Noisy(7, 2, Buckets, heads);
        captured = Noisy(5, UserRules.CapturedScale, heads, 2 * length - 1);
        output = Zeros(batch, heads, length, headSize);
        // With what rounding took from it, as training code that calls the backward pass should keep it.
        logSumExp = setup.Train ? Zeros(batch, heads, length, 2) : Zeros(batch, heads, length);
        upstream = Noisy(6, 1, batch, heads, length, headSize);
        queryGradient = Zeros(batch, heads, length, headSize);
        keyGradient = Zeros(batch, heads, length, headSize);
        valueGradient = Zeros(batch, heads, length, headSize);
        biasGradient = Zeros(heads, 2 * length - 1);
        tableGradient = Zeros(Buckets, heads);
        capturedGradient = Zeros(heads, 2 * length - 1);
        // ALiBi's slopes 2^(−8/h), 2^(−16/h) ...
        for (int head = 0; head < heads; head++)
            slopes.AsSpan<float>()[head] = MathF.Pow(2, -8f * (head + 1) / heads);
    }

    private bool HasDistanceBias => setup.Bias == AttentionBias.Distance;

    private bool HasBuckets => setup.Bias == AttentionBias.Buckets;

    public override void Run()
    {
        var problem = new AttentionProblem
        {
            Query = query, Key = key, Value = value, Causal = setup.Causal,
            DistanceBias = HasDistanceBias ? bias : default(TensorView),
            Slopes = setup.Bias == AttentionBias.Slopes ? slopes : default(TensorView),
            BucketedBias = HasBuckets ? new(table, MaximumDistance, bidirectional: true) : default,
            Captured0 = captures ? CapturedTensor.PerHeadAndDistance(captured, setup.Length - 1) : default,
        };
        Attention.Forward(Device, problem, rule.Ours, output, logSumExp, Workspace);
        if (!setup.Train)
            return;
        var gradients = new AttentionGradients
        {
            Query = queryGradient, Key = keyGradient, Value = valueGradient,
            DistanceBias = HasDistanceBias ? biasGradient : default(TensorView),
            BucketedBias = HasBuckets ? tableGradient : default(TensorView),
            Captured0 = captures ? capturedGradient : default(TensorView),
        };
        Attention.Backward(Device, problem, rule.Ours, new AttentionSaved { Output = output, LogSumExp = logSumExp },
            new AttentionUpstream { Output = upstream }, gradients, Workspace);
    }

    public override double Check()
    {
        (int length, int headSize) = (setup.Length, setup.HeadSize);
        int first = length - CheckedQueries;
        AttentionInputs inputs = Head(first);
        AttentionResult<double> oracle = AttentionOracle.Forward<double>(inputs);
        AttentionResult<float> naive = AttentionOracle.Forward<float>(inputs);
        double share = Math.Max(
            Contract.Check(LastHead(output)[(first * headSize)..], oracle.Output.Data, naive.Output.Data, Contract.Forward, "output"),
            Contract.Check(LastLogSumExps()[first..], oracle.LogSumExp.Data, naive.LogSumExp.Data, Contract.Forward, "log-sum-exp"));
        return setup.Train ? Math.Max(share, CheckGradients()) : share;
    }

    private double CheckGradients()
    {
        AttentionInputs inputs = Head(0);
        Grid<double> arriving = Grid.Of(LastHead(upstream), 1, 1, setup.Length, setup.HeadSize);
        Task<AttentionGradient<float>> naiveTask = Task.Run(() => AttentionOracle.Backward<float>(inputs, arriving));
        AttentionGradient<double> oracle = AttentionOracle.Backward<double>(inputs, arriving);
        AttentionGradient<float> naive = naiveTask.Result;
        var shares = new List<double>
        {
            CheckGradient(queryGradient, oracle.Query, naive.Query, "gradient of query"),
            CheckGradient(keyGradient, oracle.Key, naive.Key, "gradient of key"),
            CheckGradient(valueGradient, oracle.Value, naive.Value, "gradient of value"),
        };
        if (HasDistanceBias)
            shares.Add(CheckGradient(biasGradient, oracle.DistanceBias!, naive.DistanceBias!, "gradient of the distance bias"));
        if (HasBuckets)
            shares.Add(Contract.Check(LastColumn(tableGradient), oracle.BucketTable!.Data, naive.BucketTable!.Data, Contract.Gradient, "gradient of the table",
                magnitude: oracle.BucketTableMagnitude!.Data.Max()));
        if (captures)
            shares.Add(CheckGradient(capturedGradient, oracle.Captured[0], naive.Captured[0], "gradient of the captured values"));
        return shares.Max();
    }

    private double CheckGradient(TensorBuffer ours, Grid<double> oracle, Grid<float> naive, string what) =>
        Contract.Check(LastHead(ours), oracle.Data, naive.Data, Contract.Gradient, what);

    // The last head of the last sequence as a problem of its own, from a query on.
    private AttentionInputs Head(int firstQuery)
    {
        (int length, int headSize) = (setup.Length, setup.HeadSize);
        return new()
        {
            Query = Grid.Of(LastHead(query)[(firstQuery * headSize)..], 1, 1, length - firstQuery, headSize),
            Key = Grid.Of(LastHead(key), 1, 1, length, headSize),
            Value = Grid.Of(LastHead(value), 1, 1, length, headSize),
            Causal = setup.Causal,
            QueryOffset = firstQuery,
            DistanceBias = HasDistanceBias ? Grid.Of(LastHead(bias), 1, 2 * length - 1) : null,
            DistanceCentre = length - 1,
            Slopes = setup.Bias == AttentionBias.Slopes ? Grid.Of(LastHead(slopes), 1) : null,
            BucketTable = HasBuckets ? Grid.Of(LastColumn(table), Buckets, 1) : null,
            MaximumDistance = MaximumDistance,
            IsBidirectional = true,
            Formula = rule.Formula,
            Captured = captures ? [new(Grid.Of(LastHead(captured), 1, 2 * length - 1), CapturedBy.HeadAndDistance, length - 1)] : [],
        };
    }

    private ReadOnlySpan<float> LastLogSumExps()
    {
        ReadOnlySpan<float> last = LastHead(logSumExp);
        var each = new float[setup.Length];
        for (int i = 0; i < each.Length; i++)
            each[i] = last[i * (last.Length / each.Length)];
        return each;
    }

    // The table of the last head.
    private ReadOnlySpan<float> LastColumn(TensorBuffer buffer)
    {
        var column = new float[Buckets];
        for (int bucket = 0; bucket < Buckets; bucket++)
            column[bucket] = buffer.AsSpan<float>()[(bucket + 1) * setup.Heads - 1];
        return column;
    }

    // What a tensor [batch, head, ...] or [head, ...] holds at its end.
    private ReadOnlySpan<float> LastHead(TensorBuffer buffer)
    {
        ReadOnlySpan<float> all = buffer.AsSpan<float>();
        bool perSequence = buffer.Shape.Length > 2;
        return all[^(all.Length / (setup.Heads * (perSequence ? setup.Batch : 1)))..];
    }

    // The table as the vector by distance that the peer makes its matrix of.
    private TorchSharp.torch.Tensor ByDistance()
    {
        using TensorBuffer vector = Zeros(setup.Heads, 2 * setup.Length - 1);
        for (int at = 0; at < 2 * setup.Length - 1; at++)
        {
            int bucket = BucketedBias.Bucket(at - (setup.Length - 1), Buckets, MaximumDistance, bidirectional: true);
            for (int head = 0; head < setup.Heads; head++)
                vector.AsSpan<float>()[head * (2 * setup.Length - 1) + at] = table.AsSpan<float>()[bucket * setup.Heads + head];
        }
        return TorchPeer.Copy(vector);
    }

    public override IEnumerable<Peer> Peers() => new AttentionPeers<TRule>(setup, rule,
        TorchPeer.Copy(query), TorchPeer.Copy(key), TorchPeer.Copy(value), TorchPeer.Copy(upstream), HasBuckets ? ByDistance() : TorchPeer.Copy(bias), TorchPeer.Copy(slopes),
        captures ? TorchPeer.Copy(captured) : null).Forms();
}
