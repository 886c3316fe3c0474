namespace TransformerKernels;

/// <summary>Exact fused attention with relative bias, forward and backward. Memory beyond inputs and outputs is proportional to the lengths, not to their product.</summary>
/// <remarks>
/// For a pair of query i and key j of a head: s = scale · qᵢ·kⱼ, then the score rule, then the softcap, then every bias is added, then hidden pairs are left out;
/// pᵢⱼ = e^(sᵢⱼ − Lᵢ) with Lᵢ = ln Σⱼ e^sᵢⱼ with e^sink in the sum if there is one, outputᵢ = Σⱼ pᵢⱼ vⱼ.
/// <para>
/// A query that sees no key has output 0, gradients 0 and log-sum-exp −∞, or its sink. A pair hidden by causality, a mask, its sequence's length or a score of −∞ contributes nothing,
/// even if its key or value is NaN. Dropout on the weights is not offered. Dao et al. 2022, "FlashAttention"; Rabe and Staats 2021.
/// </para>
/// <para>Results have the same bits for any number of threads and any batch around a sequence.</para>
/// </remarks>
public static class Attention
{
    /// <summary>Attention without a score rule; see <see cref="Forward{TRule}"/>.</summary>
    /// <exception cref="ArgumentException">As there; or captured tensors are set, which nothing reads without a rule.</exception>
    public static void Forward(ComputeDevice device, in AttentionProblem problem, TensorView output, TensorView logSumExp, Workspace workspace)
    {
        CheckWithoutRule(problem);
        Forward(device, problem, default(PlainScore), output, logSumExp, workspace);
    }

    /// <summary>Computes output and log-sum-exp.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Query, key, value and what else there is.</param>
    /// <param name="rule">A formula applied to every score; see <see cref="IScoreRule"/>.</param>
    /// <param name="output">[b, h, Sq, dv], overwritten.</param>
    /// <param name="logSumExp">
    /// [b, h, Sq], overwritten: natural, biases and sink included. Or [b, h, Sq, 2]: the log-sum-exp and what rounding it to float32 took, for a faster
    /// backward pass. May be absent (default).
    /// </param>
    /// <param name="workspace">Scratch memory of the device; <see cref="ForwardWorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps an output, or the workspace's limit is too low; the message names it.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment; or the rule isn't the same formula each time, and a call of it took more steps than there is memory for: outputs are undefined.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled: outputs are undefined.</exception>
    public static void Forward<TRule>(ComputeDevice device, in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp,
        Workspace workspace) where TRule : unmanaged, IScoreRule
    {
        Check(device, problem);
        Require.Workspace(device, workspace);
        CheckForward(device, problem, output, logSumExp);
        device.AttentionForward(problem, rule, output, logSumExp, workspace);
    }

    /// <summary>Gradients of attention without a score rule; see <see cref="Backward{TRule}"/>.</summary>
    /// <exception cref="ArgumentException">As there; or captured tensors are set, which nothing reads without a rule.</exception>
    public static void Backward(ComputeDevice device, in AttentionProblem problem, in AttentionSaved saved, in AttentionUpstream upstream,
        in AttentionGradients gradients, Workspace workspace)
    {
        CheckWithoutRule(problem);
        Backward(device, problem, default(PlainScore), saved, upstream, gradients, workspace);
    }

    /// <summary>Computes the gradients of Σ output · upstream.Output + Σ logSumExp · upstream.LogSumExp.</summary>
    /// <remarks>
    /// With D = Σ outputᵢ · upstreamᵢ − upstream.LogSumExpᵢ, the gradient at a final score is dzᵢⱼ = pᵢⱼ (upstreamᵢ · vⱼ − D): what biases receive. A rule's
    /// score and captured values receive it times the rule's derivative.
    /// </remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">As in the forward pass.</param>
    /// <param name="rule">As in the forward pass.</param>
    /// <param name="saved">What the forward pass wrote.</param>
    /// <param name="upstream">The gradients that arrive at the outputs.</param>
    /// <param name="gradients">Where to put the gradients, and whether to add them.</param>
    /// <param name="workspace">Scratch memory of the device; <see cref="BackwardWorkspaceBytes"/>.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps an output, or the workspace's limit is too low; the message names it.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device, a tensor's buffer or the workspace was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another call is using the workspace at the moment; or the rule isn't the same formula each time, and a call of it took more steps than there is memory for: outputs are undefined.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled: outputs are undefined.</exception>
    public static void Backward<TRule>(ComputeDevice device, in AttentionProblem problem, TRule rule, in AttentionSaved saved,
        in AttentionUpstream upstream, in AttentionGradients gradients, Workspace workspace) where TRule : unmanaged, IScoreRule
    {
        Check(device, problem);
        Require.Workspace(device, workspace);
        CheckBackward(device, problem, saved, upstream, gradients);
        device.AttentionBackward(problem, rule, saved, upstream, gradients, workspace);
    }

    /// <summary>The bytes of workspace that <see cref="Forward{TRule}"/> needs. On the CPU they grow with its threads and the lengths, not with batch and heads, but for the bits of a
    /// mask that several heads or sequences share, 1 MB at most; GPUs need none.</summary>
    /// <param name="device">Where it is going to run.</param>
    /// <param name="problem">The problem: of its tensors only types, shapes and strides are looked at.</param>
    /// <returns>What a <see cref="Workspace"/> grows to, so that <see cref="Workspace.Reserve"/> of as many lets the call allocate nothing.</returns>
    /// <exception cref="ArgumentException">As in the call: a tensor is absent, of the wrong type or shape, or on another device; the message names it.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    public static long ForwardWorkspaceBytes(ComputeDevice device, in AttentionProblem problem)
    {
        Check(device, problem);
        return device.AttentionForwardWorkspaceBytes(problem);
    }

    /// <summary>The bytes of workspace that <see cref="Backward{TRule}"/> needs for these gradients. Up to 16 chunks of the keys of a sequence have gradients of all queries of their own: proportional to the lengths,
    /// once they are long enough for as many chunks as there are ever.</summary>
    /// <param name="device">Where it is going to run.</param>
    /// <param name="problem">As in the forward pass: of its tensors only types, shapes and strides are looked at.</param>
    /// <param name="gradients">Those that are wanted; of these too.</param>
    /// <returns>What a <see cref="Workspace"/> grows to, so that <see cref="Workspace.Reserve"/> of as many lets the call allocate nothing.</returns>
    /// <exception cref="ArgumentException">As in the call: a tensor is absent, of the wrong type or shape, on another device, or overlaps a gradient, or no gradient is wanted; the message names it.</exception>
    /// <exception cref="NotSupportedException">The device doesn't offer this.</exception>
    /// <exception cref="ObjectDisposedException">The device or a tensor's buffer was disposed.</exception>
    public static long BackwardWorkspaceBytes(ComputeDevice device, in AttentionProblem problem, in AttentionGradients gradients)
    {
        Check(device, problem);
        CheckGradients(device, problem, gradients);
        return device.AttentionBackwardWorkspaceBytes(problem, gradients);
    }

    private static void CheckWithoutRule(in AttentionProblem problem)
    {
        string? captured = problem.Captured0.IsPresent ? "problem.Captured0" : problem.Captured1.IsPresent ? "problem.Captured1" : problem.Captured2.IsPresent ? "problem.Captured2"
            : problem.Captured3.IsPresent ? "problem.Captured3" : null;
        if (captured is not null)
            throw new ArgumentException($"{captured} is set, but there is no rule that reads it; pass the rule after the problem.", captured);
    }

    private static void Check(ComputeDevice device, in AttentionProblem problem)
    {
        Require.Device(device);
        Require.Input(device, problem.Query, "problem.Query", -1, -1, -1, -1);
        long batch = problem.Query.Length(0), heads = problem.Query.Length(1), queries = problem.Query.Length(2), headSize = problem.Query.Length(3);
        Require.Input(device, problem.Key, "problem.Key", batch, -1, -1, headSize);
        long keyHeads = problem.Key.Length(1), keys = problem.Key.Length(2);
        Require.Input(device, problem.Value, "problem.Value", batch, keyHeads, keys, -1);
        if (headSize == 0)
            throw new ArgumentException("problem.Query has head size 0; it must be at least 1.", "problem.Query");
        if (keyHeads == 0 ? heads != 0 : heads % keyHeads != 0)
            throw new ArgumentException($"{heads} query heads can't share {keyHeads} key heads evenly; problem.Key needs a divisor of {heads}.", "problem.Key");
        // Queries or keys that are one number again and again may be more than memory holds.
        Require.Size((Int128)Math.Max(batch, 1) * Math.Max(Math.Max(heads, keyHeads), 1) * ((Int128)queries + keys + 1) * ((Int128)headSize + problem.Value.Length(3) + 1),
            "batch · heads · (queries + keys + 1) · (head size + value size + 1)", nameof(problem));
        if (problem.Scale is { } scale)
            Require.Finite(scale, "problem.Scale");
        Require.Position(problem.QueryOffset ?? 0, "problem.QueryOffset");
        Require.Position(problem.DistanceCentre ?? 0, "problem.DistanceCentre");
        if (problem.DistanceCentre is not null && !problem.DistanceBias.IsPresent)
            throw new ArgumentException("problem.DistanceCentre is set, but problem.DistanceBias isn't.", "problem.DistanceCentre");
        if (problem.Slopes.IsPresent)
        {
            if (problem.Slopes.Rank == 2)
                Require.Input(device, problem.Slopes, "problem.Slopes", batch, heads);
            else
                Require.Input(device, problem.Slopes, "problem.Slopes", heads);
        }
        if (problem.DistanceBias.IsPresent)
        {
            Require.Input(device, problem.DistanceBias, "problem.DistanceBias", problem.DistanceBias.Rank == 2 && problem.DistanceBias.Length(0) == 1 ? 1 : heads, -1);
            AttentionShape shape = AttentionShape.Of(problem);
            if (queries > 0 && keys > 0 && !problem.QueryOffsets.IsPresent) // which a device looks at
                CheckDistances(problem.DistanceBias, shape, shape.QueryOffset);
        }
        if (problem.BucketedBias.IsPresent)
        {
            Require.Input(device, problem.BucketedBias.Table, "problem.BucketedBias", -1, heads);
            BucketedBias.Check(problem.BucketedBias.Table.Length(0), problem.BucketedBias.MaximumDistance, problem.BucketedBias.IsBidirectional, "problem.BucketedBias", "problem.BucketedBias");
        }
        if (problem.GridBias.IsPresent)
        {
            if (problem.GridBias.Height is < 1 or > GridBias.LargestSide || problem.GridBias.Width is < 1 or > GridBias.LargestSide)
                throw new ArgumentException($"problem.GridBias has a window of {problem.GridBias.Height} x {problem.GridBias.Width} positions; both must be 1 to {GridBias.LargestSide}.", "problem.GridBias");
            Require.Input(device, problem.GridBias.Table, "problem.GridBias", problem.GridBias.Cells, heads);
            Require.Size((Int128)Math.Max(batch, 1) * Math.Max(heads, 1) * problem.GridBias.Cells, "batch · heads · entries", "problem.GridBias");
            if (!problem.QueryOffsets.IsPresent)
                problem.GridBias.CheckPositions(queries, keys, AttentionShape.Of(problem).QueryOffset);
        }
        CheckShared(device, problem.DenseBias, "problem.DenseBias", ElementType.Float32, batch, heads, queries, keys);
        CheckShared(device, problem.RowBias, "problem.RowBias", ElementType.Float32, batch, heads, queries);
        CheckShared(device, problem.ColumnBias, "problem.ColumnBias", ElementType.Float32, batch, heads, keys);
        CheckShared(device, problem.Mask, "problem.Mask", ElementType.Bool, batch, heads, queries, keys);
        if (problem.QueryOffsets.IsPresent)
        {
            Require.Input(device, problem.QueryOffsets, "problem.QueryOffsets", [ElementType.Int32, ElementType.Int64], batch);
            if (problem.QueryOffset is not null)
                throw new ArgumentException("problem.QueryOffset and problem.QueryOffsets are both set; one of them says where queries stand.", "problem.QueryOffsets");
        }
        Require.OptionalInput(device, problem.Sinks, "problem.Sinks", heads);
        if (problem.KeyLengths.IsPresent)
            Require.Input(device, problem.KeyLengths, "problem.KeyLengths", [ElementType.Int32, ElementType.Int64], batch);
        if (problem.Softcap is { } cap)
        {
            Require.Finite(cap, "problem.Softcap");
            if (cap <= 0)
                throw new ArgumentOutOfRangeException("problem.Softcap", cap, "The bound of scores must be above 0; leave it away for none.");
            if (!float.IsNormal(cap))
                throw new ArgumentOutOfRangeException("problem.Softcap", cap, "The bound of scores must be at least 2⁻¹²⁶, for scores are multiplied by its reciprocal.");
        }
        CheckCaptured(device, problem, problem.Captured0, "problem.Captured0");
        CheckCaptured(device, problem, problem.Captured1, "problem.Captured1");
        CheckCaptured(device, problem, problem.Captured2, "problem.Captured2");
        CheckCaptured(device, problem, problem.Captured3, "problem.Captured3");
        if (!device.OffersAllOfAttention && problem.FirstBeyondTheBasics is { } lacking)
            throw new NotSupportedException($"The device {device.Name} doesn't offer attention with problem.{lacking} yet; use ComputeDevice.Cpu.");
    }

    /// <summary>A distance vector has an entry for every distance of queries that begin at an offset.</summary>
    internal static void CheckDistances(in TensorView distanceBias, in AttentionShape shape, long offset)
    {
        long least = shape.LeastDistanceFrom(offset), greatest = shape.GreatestDistanceFrom(offset), first = least + shape.DistanceCentre, last = greatest + shape.DistanceCentre, length = distanceBias.Length(1);
        if (first < 0 || last >= length)
            throw new ArgumentException($"problem.DistanceBias has {length} entries a head and centre {shape.DistanceCentre}; distances {least} to {greatest} need entries {first} to {last}.", "problem.DistanceBias");
    }

    private static void CheckShared(ComputeDevice device, in TensorView tensor, string name, ElementType type, params ReadOnlySpan<long> full)
    {
        if (tensor.IsPresent)
            Require.Shared(device, tensor, name, [type], full);
    }

    private static void CheckCaptured(ComputeDevice device, in AttentionProblem problem, in CapturedTensor captured, string name)
    {
        if (!captured.IsPresent)
            return;
        Require.Position(captured.Centre, name);
        long batch = problem.Query.Length(0), heads = problem.Query.Length(1), queries = problem.Query.Length(2), keys = problem.Key.Length(2);
        ReadOnlySpan<long> full = captured.Structure switch
        {
            CapturedStructure.PerHead => [heads],
            CapturedStructure.PerHeadAndDistance or CapturedStructure.PerHeadAndAbsoluteDistance => [heads, -1],
            CapturedStructure.PerQuery => [batch, heads, queries],
            CapturedStructure.PerKey => [batch, heads, keys],
            _ => [batch, heads, queries, keys],
        };
        Require.Shared(device, captured.Values, name, [ElementType.Float32], full);
        if (captured.Values.Rank == 2 && captured.Values.Length(1) == 0)
            throw new ArgumentException($"{name} has no entries; it needs at least one a head.", name);
    }

    private static void CheckForward(ComputeDevice device, in AttentionProblem problem, in TensorView output, in TensorView logSumExp)
    {
        long batch = problem.Query.Length(0), heads = problem.Query.Length(1), queries = problem.Query.Length(2);
        Require.Output(device, output, nameof(output), batch, heads, queries, problem.Value.Length(3));
        if (logSumExp.Rank == 4)
            Require.Output(device, logSumExp, nameof(logSumExp), batch, heads, queries, 2);
        else
            Require.OptionalOutput(device, logSumExp, nameof(logSumExp), batch, heads, queries);
        Require.Disjoint(output, nameof(output), logSumExp, nameof(logSumExp));
        CheckApart(problem, output, nameof(output));
        CheckApart(problem, logSumExp, nameof(logSumExp));
    }

    private static void CheckBackward(ComputeDevice device, in AttentionProblem problem, in AttentionSaved saved, in AttentionUpstream upstream,
        in AttentionGradients gradients)
    {
        long batch = problem.Query.Length(0), heads = problem.Query.Length(1), queries = problem.Query.Length(2), valueSize = problem.Value.Length(3);
        if (upstream.Output.IsPresent)
            Require.Input(device, saved.Output, "saved.Output", batch, heads, queries, valueSize);
        else
            Require.OptionalInput(device, saved.Output, "saved.Output", batch, heads, queries, valueSize);
        if (saved.LogSumExp.Rank == 4)
            Require.Input(device, saved.LogSumExp, "saved.LogSumExp", batch, heads, queries, 2);
        else
            Require.Input(device, saved.LogSumExp, "saved.LogSumExp", batch, heads, queries);
        Require.OptionalInput(device, upstream.Output, "upstream.Output", batch, heads, queries, valueSize);
        Require.OptionalInput(device, upstream.LogSumExp, "upstream.LogSumExp", batch, heads, queries);
        Require.Any(upstream.Output.IsPresent || upstream.LogSumExp.IsPresent, nameof(upstream), "Output, LogSumExp", verb: "holds");
        if (!upstream.Output.IsPresent && !device.OffersAllOfAttention)
            throw new NotSupportedException($"The device {device.Name} doesn't offer attention's gradients without upstream.Output yet; use ComputeDevice.Cpu.");
        CheckGradients(device, problem, gradients);
        for (int i = 0; i < GradientCount; i++)
        {
            TensorView gradient = Gradient(gradients, i, out string name);
            Require.Disjoint(gradient, name, saved.Output, "saved.Output");
            Require.Disjoint(gradient, name, saved.LogSumExp, "saved.LogSumExp");
            Require.Disjoint(gradient, name, upstream.Output, "upstream.Output");
            Require.Disjoint(gradient, name, upstream.LogSumExp, "upstream.LogSumExp");
        }
    }

    private static void CheckGradients(ComputeDevice device, in AttentionProblem problem, in AttentionGradients gradients)
    {
        long batch = problem.Query.Length(0), heads = problem.Query.Length(1), queries = problem.Query.Length(2), headSize = problem.Query.Length(3);
        long keyHeads = problem.Key.Length(1), keys = problem.Key.Length(2), valueSize = problem.Value.Length(3);
        Require.OptionalOutput(device, gradients.Query, "gradients.Query", batch, heads, queries, headSize);
        Require.OptionalOutput(device, gradients.Key, "gradients.Key", batch, keyHeads, keys, headSize);
        Require.OptionalOutput(device, gradients.Value, "gradients.Value", batch, keyHeads, keys, valueSize);
        CheckLike(device, gradients.Slopes, "gradients.Slopes", problem.Slopes, "problem.Slopes");
        CheckLike(device, gradients.DistanceBias, "gradients.DistanceBias", problem.DistanceBias, "problem.DistanceBias");
        CheckLike(device, gradients.BucketedBias, "gradients.BucketedBias", problem.BucketedBias.Table, "problem.BucketedBias");
        CheckLike(device, gradients.GridBias, "gradients.GridBias", problem.GridBias.Table, "problem.GridBias");
        CheckLike(device, gradients.DenseBias, "gradients.DenseBias", problem.DenseBias, "problem.DenseBias");
        CheckLike(device, gradients.RowBias, "gradients.RowBias", problem.RowBias, "problem.RowBias");
        CheckLike(device, gradients.ColumnBias, "gradients.ColumnBias", problem.ColumnBias, "problem.ColumnBias");
        CheckLike(device, gradients.Sinks, "gradients.Sinks", problem.Sinks, "problem.Sinks");
        CheckLike(device, gradients.Captured0, "gradients.Captured0", problem.Captured0.Values, "problem.Captured0");
        CheckLike(device, gradients.Captured1, "gradients.Captured1", problem.Captured1.Values, "problem.Captured1");
        CheckLike(device, gradients.Captured2, "gradients.Captured2", problem.Captured2.Values, "problem.Captured2");
        CheckLike(device, gradients.Captured3, "gradients.Captured3", problem.Captured3.Values, "problem.Captured3");
        bool any = false;
        for (int i = 0; i < GradientCount; i++)
        {
            TensorView gradient = Gradient(gradients, i, out string name);
            if (!gradient.IsPresent)
                continue;
            any = true;
            CheckApart(problem, gradient, name);
            for (int j = 0; j < i; j++)
            {
                TensorView other = Gradient(gradients, j, out string otherName);
                Require.Disjoint(gradient, name, other, otherName);
            }
        }
        Require.Any(any, nameof(gradients), "Query, Key, Value, those of the biases, Sinks, Captured0 to Captured3");
    }

    private const int GradientCount = 15;

    private static TensorView Gradient(in AttentionGradients gradients, int index, out string name)
    {
        switch (index)
        {
            case 0: name = "gradients.Query"; return gradients.Query;
            case 1: name = "gradients.Key"; return gradients.Key;
            case 2: name = "gradients.Value"; return gradients.Value;
            case 3: name = "gradients.Slopes"; return gradients.Slopes;
            case 4: name = "gradients.DistanceBias"; return gradients.DistanceBias;
            case 5: name = "gradients.BucketedBias"; return gradients.BucketedBias;
            case 6: name = "gradients.GridBias"; return gradients.GridBias;
            case 7: name = "gradients.DenseBias"; return gradients.DenseBias;
            case 8: name = "gradients.RowBias"; return gradients.RowBias;
            case 9: name = "gradients.ColumnBias"; return gradients.ColumnBias;
            case 10: name = "gradients.Sinks"; return gradients.Sinks;
            case 11: name = "gradients.Captured0"; return gradients.Captured0;
            case 12: name = "gradients.Captured1"; return gradients.Captured1;
            case 13: name = "gradients.Captured2"; return gradients.Captured2;
            default: name = "gradients.Captured3"; return gradients.Captured3;
        }
    }

    // A gradient has the shape of its tensor, which must be there.
    private static void CheckLike(ComputeDevice device, in TensorView gradient, string name, in TensorView tensor, string tensorName)
    {
        if (!gradient.IsPresent)
            return;
        if (!tensor.IsPresent)
            throw new ArgumentException($"{name} is set, but {tensorName} isn't.", name);
        Span<long> shape = stackalloc long[tensor.Rank];
        for (int axis = 0; axis < shape.Length; axis++)
            shape[axis] = tensor.Length(axis);
        Require.Output(device, gradient, name, shape);
    }

    private static void CheckApart(in AttentionProblem problem, in TensorView written, string name)
    {
        Require.Disjoint(written, name, problem.Query, "problem.Query");
        Require.Disjoint(written, name, problem.Key, "problem.Key");
        Require.Disjoint(written, name, problem.Value, "problem.Value");
        Require.Disjoint(written, name, problem.Slopes, "problem.Slopes");
        Require.Disjoint(written, name, problem.DistanceBias, "problem.DistanceBias");
        Require.Disjoint(written, name, problem.BucketedBias.Table, "problem.BucketedBias");
        Require.Disjoint(written, name, problem.GridBias.Table, "problem.GridBias");
        Require.Disjoint(written, name, problem.DenseBias, "problem.DenseBias");
        Require.Disjoint(written, name, problem.RowBias, "problem.RowBias");
        Require.Disjoint(written, name, problem.ColumnBias, "problem.ColumnBias");
        Require.Disjoint(written, name, problem.Sinks, "problem.Sinks");
        Require.Disjoint(written, name, problem.Mask, "problem.Mask");
        Require.Disjoint(written, name, problem.QueryOffsets, "problem.QueryOffsets");
        Require.Disjoint(written, name, problem.KeyLengths, "problem.KeyLengths");
        Require.Disjoint(written, name, problem.Captured0.Values, "problem.Captured0");
        Require.Disjoint(written, name, problem.Captured1.Values, "problem.Captured1");
        Require.Disjoint(written, name, problem.Captured2.Values, "problem.Captured2");
        Require.Disjoint(written, name, problem.Captured3.Values, "problem.Captured3");
    }
}
