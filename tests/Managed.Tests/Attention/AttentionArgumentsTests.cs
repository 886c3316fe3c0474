using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Bad input throws, names the argument and what would be right, and writes nothing.</summary>
public class AttentionArgumentsTests
{
    private const int Batch = 2, Heads = 4, KeyHeads = 2, Queries = 3, Keys = 5, Size = 4, ValueSize = 6;

    private static ComputeDevice Device => DeviceUnderTest.Device;

    private readonly float[] output = new float[Batch * Heads * Queries * ValueSize], logSumExp = new float[Batch * Heads * Queries];

    public AttentionArgumentsTests()
    {
        Array.Fill(output, 7);
        Array.Fill(logSumExp, 7);
    }

    private delegate void Change(ref AttentionProblem problem);

    private static AttentionProblem Good() => new()
    {
        Query = Tensor(Batch, Heads, Queries, Size),
        Key = Tensor(Batch, KeyHeads, Keys, Size),
        Value = Tensor(Batch, KeyHeads, Keys, ValueSize),
    };

    private static TensorView Tensor(params long[] shape) => TensorView.Of(new float[shape.Aggregate(1L, (a, b) => a * b)], shape);

    private void Refuses<TException>(string name, string says, Change change, bool withRule = true) where TException : Exception
    {
        AttentionProblem problem = Good();
        change(ref problem);
        using var workspace = new Workspace(Device);
        TException? thrown = null;
        try
        {
            TensorView o = TensorView.Of(output, Batch, Heads, Queries, ValueSize), l = TensorView.Of(logSumExp, Batch, Heads, Queries);
            if (withRule)
                TransformerKernels.Attention.Forward(Device, problem, default(PlainScore), o, l, workspace);
            else
                TransformerKernels.Attention.Forward(Device, problem, o, l, workspace);
        }
        catch (TException exception)
        {
            thrown = exception;
        }
        Assert.NotNull(thrown);
        if (thrown is ArgumentException argument)
            Assert.Equal(name, argument.ParamName);
        Assert.Contains(says, thrown.Message);
        Assert.All(output, x => Assert.Equal(7, x));
        Assert.All(logSumExp, x => Assert.Equal(7, x));
    }

    [Fact]
    public void Missing_tensors_are_named()
    {
        Refuses<ArgumentNullException>("problem.Query", "required", (ref p) => p.Query = default);
        Refuses<ArgumentNullException>("problem.Key", "required", (ref p) => p.Key = default);
        Refuses<ArgumentNullException>("problem.Value", "required", (ref p) => p.Value = default);
    }

    [Fact]
    public void Captured_tensors_and_tables_are_there_if_they_are_made()
    {
        Action[] captured =
        [
            () => CapturedTensor.PerHead(default), () => CapturedTensor.PerHeadAndDistance(default, 1), () => CapturedTensor.PerHeadAndAbsoluteDistance(default),
            () => CapturedTensor.PerQuery(default), () => CapturedTensor.PerKey(default), () => CapturedTensor.Dense(default),
        ];
        Assert.All(captured, make => Assert.Throws<ArgumentNullException>("values", make));
        Assert.All((Action[])[() => _ = new BucketedBias(default, 128, bidirectional: true), () => _ = new GridBias(default, 3, 3)], make => Assert.Throws<ArgumentNullException>("table", make));
    }

    [Fact]
    public void Wrong_ranks_and_shapes_are_named_with_what_would_be_right()
    {
        Refuses<ArgumentException>("problem.Query", "[2, 4, 12]", (ref p) => p.Query = Tensor(Batch, Heads, Queries * Size));
        Refuses<ArgumentException>("problem.Key", "[2, any, any, 4]", (ref p) => p.Key = Tensor(Batch, KeyHeads, Keys, Size + 1));
        Refuses<ArgumentException>("problem.Key", "[2, any, any, 4]", (ref p) => p.Key = Tensor(Batch + 1, KeyHeads, Keys, Size));
        Refuses<ArgumentException>("problem.Value", "[2, 2, 5, any]", (ref p) => p.Value = Tensor(Batch, KeyHeads, Keys + 1, ValueSize));
        Refuses<ArgumentException>("problem.Key", "4 query heads can't share 3 key heads", (ref p) =>
        {
            p.Key = Tensor(Batch, 3, Keys, Size);
            p.Value = Tensor(Batch, 3, Keys, ValueSize);
        });
        Refuses<ArgumentException>("problem.Query", "head size 0", (ref p) =>
        {
            p.Query = Tensor(Batch, Heads, Queries, 0);
            p.Key = Tensor(Batch, KeyHeads, Keys, 0);
        });
        Refuses<ArgumentException>("problem.Slopes", "[4]", (ref p) => p.Slopes = Tensor(Heads + 1));
        Refuses<ArgumentException>("problem.Slopes", "[2, 4]", (ref p) => p.Slopes = Tensor(Heads, Batch));
        Refuses<ArgumentException>("problem.DistanceBias", "entries 0 to 6", (ref p) => p.DistanceBias = Tensor(Heads, 6));
        Refuses<ArgumentException>("problem.DistanceBias", "entries 1 to 7", (ref p) =>
        {
            p.DistanceBias = Tensor(1, 7);
            p.DistanceCentre = 5;
        });
        Refuses<ArgumentException>("problem.Captured0", "[4]", (ref p) => p.Captured0 = CapturedTensor.PerHead(Tensor(3)));
        Refuses<ArgumentException>("problem.Captured2", "[2, 4, 3, 5]", (ref p) => p.Captured2 = CapturedTensor.Dense(Tensor(Batch, Heads, Keys, Queries)));
    }

#if !GPU // views that repeat are copied there
    [Fact]
    public void Sizes_that_no_memory_holds_are_refused_though_one_number_is_repeated()
    {
        TensorView Repeated(int axis, params ReadOnlySpan<long> shape) => TensorView.Of(new float[1], 1, 1, 1, 1).Expand(axis, shape[axis]);
        void Refused(string says, long keys, long size)
        {
            using var workspace = new Workspace(Device);
            AttentionProblem problem = keys > 1
                ? new() { Query = Tensor(1, 1, 1, 1), Key = Repeated(2, 1, 1, keys, 1), Value = Repeated(2, 1, 1, keys, 1) }
                : new() { Query = Repeated(3, 1, 1, 1, size), Key = Repeated(3, 1, 1, 1, size), Value = Tensor(1, 1, 1, 1) };
            ArgumentException? thrown = null;
            try
            {
                TransformerKernels.Attention.ForwardWorkspaceBytes(Device, problem);
            }
            catch (ArgumentException exception)
            {
                thrown = exception;
            }
            Assert.Equal("problem", thrown?.ParamName);
            Assert.Contains(says, thrown!.Message);
        }
        Refused("(head size + value size + 1) of problem is 864691128455135238; it must be at most 2^48.", keys: 1L << 58, size: 1);
        Refused("must be at most 2^48", keys: 1, size: 1L << 57); // of which the workspace would have too few bytes
        Refuses<ArgumentException>("problem.BucketedBias", "at most 2147483647", (ref p) => p.BucketedBias = new(TensorView.Of(new float[Heads], 1, Heads).Expand(0, 1L << 31), int.MaxValue, bidirectional: false));
    }
#endif

#if !GPU // the values are looked at by a device that takes the property; GPUs don't yet
    [Fact]
    public void Wrong_offsets_of_sequences_are_named_with_what_would_be_right()
    {
        Refuses<ArgumentException>("problem.GridBias", "queries stand at -1 to 1", (ref p) =>
        {
            p.QueryOffsets = TensorView.Of((int[])[0, -1], Batch);
            p.GridBias = new(Tensor(15, Heads), 2, 3);
        });
        foreach (long far in (long[])[long.MaxValue, long.MinValue, (1L << 40) + 1])
            Refuses<ArgumentOutOfRangeException>("problem.QueryOffsets", "between −2^40 and 2^40", (ref p) => p.QueryOffsets = TensorView.Of((long[])[0, far], Batch));
    }
#endif

    [Fact]
    public void Wrong_biases_and_softcaps_are_named_with_what_would_be_right()
    {
        Refuses<ArgumentException>("problem.DenseBias", "[2, 4, 3, 5]", (ref p) => p.DenseBias = Tensor(Batch, Heads, Keys, Queries));
        Refuses<ArgumentException>("problem.DenseBias", "it should be [2, 4, 3, 5], where any axis may have length 1", (ref p) => p.DenseBias = Tensor(1, KeyHeads, Queries, 1));
        Refuses<ArgumentException>("problem.RowBias", "[2, 4, 3]", (ref p) => p.RowBias = Tensor(Batch, Heads, Keys));
        Refuses<ArgumentException>("problem.ColumnBias", "[2, 4, 5], where any axis may have length 1", (ref p) => p.ColumnBias = Tensor(1, Heads, Queries));
        Refuses<ArgumentException>("problem.BucketedBias", "[any, 4]", (ref p) => p.BucketedBias = new(Tensor(32, 3), 128, bidirectional: false));
        Refuses<ArgumentException>("problem.BucketedBias", "even number", (ref p) => p.BucketedBias = new(Tensor(7, Heads), 128, bidirectional: true));
        Refuses<ArgumentException>("problem.BucketedBias", "at least 2", (ref p) => p.BucketedBias = new(Tensor(1, Heads), 128, bidirectional: false));
        Refuses<ArgumentOutOfRangeException>("problem.BucketedBias", "beyond the 16 buckets", (ref p) => p.BucketedBias = new(Tensor(32, Heads), 16, bidirectional: false));
        Refuses<ArgumentException>("problem.GridBias", "[15, 4]", (ref p) => p.GridBias = new(Tensor(16, Heads), 2, 3));
        Refuses<ArgumentException>("problem.GridBias", "both must be 1 to 1048576", (ref p) => p.GridBias = new(Tensor(1, Heads), 0, 1));
        Refuses<ArgumentException>("problem.GridBias", "both must be 1 to 1048576", (ref p) => p.GridBias = new(Tensor(9, 1), int.MaxValue, int.MaxValue)); // its table would have a negative length
        Refuses<ArgumentException>("problem.GridBias", "2 x 2 = 4 positions; there are 5 keys", (ref p) => p.GridBias = new(Tensor(9, Heads), 2, 2));
        Refuses<ArgumentException>("problem.GridBias", "queries stand at 4 to 6", (ref p) =>
        {
            p.QueryOffset = 4;
            p.GridBias = new(Tensor(15, Heads), 2, 3);
        });
        Refuses<ArgumentException>("problem.Sinks", "[4]", (ref p) => p.Sinks = Tensor(KeyHeads));
        Refuses<ArgumentException>("problem.Mask", "Bool", (ref p) => p.Mask = Tensor(Batch, Heads, Queries, Keys));
        Refuses<ArgumentException>("problem.Mask", "it should be [2, 4, 3, 5], where any axis may have length 1", (ref p) => p.Mask = TensorView.Of(new bool[Queries * KeyHeads * Keys], 1, KeyHeads, Queries, Keys));
        foreach (long far in (long[])[long.MaxValue, long.MinValue, (1L << 40) + 1])
        {
            Refuses<ArgumentOutOfRangeException>("problem.QueryOffset", "between −2^40 and 2^40", (ref p) => p.QueryOffset = far);
            Refuses<ArgumentOutOfRangeException>("problem.DistanceCentre", "between −2^40 and 2^40", (ref p) => p.DistanceCentre = far);
            Refuses<ArgumentOutOfRangeException>("problem.Captured0", "between −2^40 and 2^40", (ref p) => p.Captured0 = CapturedTensor.PerHeadAndDistance(Tensor(Heads, 7), far));
        }
        Refuses<ArgumentException>("problem.QueryOffsets", "Int32 or Int64", (ref p) => p.QueryOffsets = Tensor(Batch));
        Refuses<ArgumentException>("problem.QueryOffsets", "[2]", (ref p) => p.QueryOffsets = TensorView.Of(new int[Queries], Queries));
        Refuses<ArgumentException>("problem.QueryOffsets", "both set", (ref p) =>
        {
            p.QueryOffset = 0;
            p.QueryOffsets = TensorView.Of(new int[Batch], Batch);
        });
        Refuses<ArgumentException>("problem.KeyLengths", "Int32", (ref p) => p.KeyLengths = Tensor(Batch));
        Refuses<ArgumentOutOfRangeException>("problem.Softcap", "above 0", (ref p) => p.Softcap = 0);
        Refuses<ArgumentOutOfRangeException>("problem.Softcap", "finite", (ref p) => p.Softcap = float.PositiveInfinity);
        Refuses<ArgumentOutOfRangeException>("problem.Softcap", "at least", (ref p) => p.Softcap = float.Epsilon);
    }

    [Fact]
    public void Settings_without_an_effect_are_refused()
    {
        Refuses<ArgumentException>("problem.DistanceCentre", "problem.DistanceBias isn't", (ref p) => p.DistanceCentre = 4);
        Refuses<ArgumentException>("problem.Captured1", "no rule that reads it", (ref p) => p.Captured1 = CapturedTensor.PerHead(Tensor(Heads)), withRule: false);
    }

    [Fact]
    public void A_device_with_the_basics_only_refuses_everything_else_by_name()
    {
        using var device = new ForeignDevice();
        static TensorView At(ComputeDevice device, params long[] shape) => ((ForeignDevice)device).View(shape);
        void Refused(string property, Change change)
        {
            var problem = new AttentionProblem { Query = At(device, Batch, Heads, Queries, Size), Key = At(device, Batch, KeyHeads, Keys, Size), Value = At(device, Batch, KeyHeads, Keys, Size) };
            change(ref problem);
            string message = "";
            try
            {
                TransformerKernels.Attention.ForwardWorkspaceBytes(device, problem);
            }
            catch (NotSupportedException exception)
            {
                message = exception.Message;
            }
            Assert.Contains($"a foreign device doesn't offer attention with problem.{property} yet", message);
        }
        Refused("BucketedBias", (ref p) => p.BucketedBias = new(At(device, 32, Heads), 128, bidirectional: false));
        Refused("GridBias", (ref p) => p.GridBias = new(At(device, 15, Heads), 2, 3));
        Refused("DenseBias", (ref p) => p.DenseBias = At(device, 1, 1, Queries, Keys));
        Refused("RowBias", (ref p) => p.RowBias = At(device, 1, Heads, Queries));
        Refused("ColumnBias", (ref p) => p.ColumnBias = At(device, 1, Heads, Keys));
        Refused("Sinks", (ref p) => p.Sinks = At(device, Heads));
        Refused("Mask", (ref p) => p.Mask = device.View(ElementType.Bool, 1, 1, Queries, Keys));
        Refused("QueryOffsets", (ref p) => p.QueryOffsets = device.View(ElementType.Int32, Batch));
        Refused("KeyLengths", (ref p) => p.KeyLengths = device.View(ElementType.Int64, Batch));
        Refused("Softcap", (ref p) => p.Softcap = 30);
    }

    [Fact]
    public void Wrong_types_are_named()
    {
        Refuses<ArgumentException>("problem.Value", "Int32", (ref p) => p.Value = TensorView.Of(new int[Batch * KeyHeads * Keys * ValueSize], Batch, KeyHeads, Keys, ValueSize));
        Refuses<ArgumentOutOfRangeException>("problem.Scale", "finite", (ref p) => p.Scale = float.NaN);
    }

    [Fact]
    public void A_disposed_owner_is_refused()
    {
        TensorBuffer buffer = Device.Allocate(ElementType.Float32, Batch, Heads, Queries, Size);
        TensorView view = buffer.View;
        buffer.Dispose();
        AttentionProblem problem = Good();
        problem.Query = view;
        using var workspace = new Workspace(Device);
        bool refused = false;
        try
        {
            TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(output, Batch, Heads, Queries, ValueSize), default, workspace);
        }
        catch (ObjectDisposedException)
        {
            refused = true;
        }
        Assert.True(refused);
        Assert.Throws<ObjectDisposedException>(() => { _ = buffer.View; });
    }

    [Fact]
    public void Outputs_must_be_writable_and_apart_from_the_inputs_and_from_each_other()
    {
        void Refused(string name, string says, Func<AttentionProblemHolder, TensorView> makeOutput)
        {
            var holder = new AttentionProblemHolder();
            using var workspace = new Workspace(Device);
            ArgumentException? thrown = null;
            try
            {
                TransformerKernels.Attention.Forward(Device, holder.Problem, makeOutput(holder), default, workspace);
            }
            catch (ArgumentException exception)
            {
                thrown = exception;
            }
            Assert.NotNull(thrown);
            Assert.Equal(name, thrown.ParamName);
            Assert.Contains(says, thrown.Message);
        }
        Refused("output", "read-only", _ => TensorView.Of((ReadOnlySpan<float>)output, Batch, Heads, Queries, ValueSize));
        Refused("output", "one address", _ => TensorView.FromPointer(Device, 64, ElementType.Float32, [Batch, Heads, Queries, ValueSize], [Heads * Queries * ValueSize, Queries * ValueSize, 1, 1]));
        Refused("output", "problem.Value", holder => TensorView.Of(holder.Value, Batch, Heads, Queries, ValueSize));
    }

    private sealed class AttentionProblemHolder
    {
        public float[] Value { get; } = new float[Batch * Heads * Queries * ValueSize + Batch * KeyHeads * Keys * ValueSize];

        public AttentionProblem Problem
        {
            get
            {
                AttentionProblem problem = Good();
                problem.Value = TensorView.Of(Value, Batch, KeyHeads, Keys, ValueSize);
                return problem;
            }
        }
    }

    [Fact]
    public void Gradients_without_a_tensor_and_gradients_that_overlap_are_refused()
    {
        AttentionProblem problem = Good();
        using var workspace = new Workspace(Device);
        TensorView o = TensorView.Of(output, Batch, Heads, Queries, ValueSize), l = TensorView.Of(logSumExp, Batch, Heads, Queries);
        var saved = new AttentionSaved { Output = o, LogSumExp = l };
        var upstream = new AttentionUpstream { Output = Tensor(Batch, Heads, Queries, ValueSize) };
        ArgumentException? thrown = null;
        try
        {
            TransformerKernels.Attention.Backward(Device, problem, saved, upstream, new AttentionGradients { Slopes = Tensor(Heads) }, workspace);
        }
        catch (ArgumentException exception)
        {
            thrown = exception;
        }
        Assert.Equal("gradients.Slopes", thrown!.ParamName);
        Assert.Contains("problem.Slopes isn't", thrown.Message);
        thrown = null;
        TensorView gradient = Tensor(Batch, KeyHeads, Keys, Size);
        problem.Query = Tensor(Batch, KeyHeads, Queries, Size);
        try
        {
            TransformerKernels.Attention.Backward(Device, problem, new AttentionSaved { Output = o.Slice(1, 0, 2), LogSumExp = l.Slice(1, 0, 2) },
                new AttentionUpstream { Output = Tensor(Batch, KeyHeads, Queries, ValueSize) }, new AttentionGradients { Key = gradient, Query = gradient.Reshape(80).Slice(0, 0, 80).Reshape(2, 2, 5, 4).Slice(2, 0, 3) }, workspace);
        }
        catch (ArgumentException exception)
        {
            thrown = exception;
        }
        Assert.Equal("gradients.Key", thrown!.ParamName);
        Assert.Contains("gradients.Query", thrown.Message);
    }

    [Fact]
    public void A_backward_pass_that_nothing_arrives_at_or_that_nothing_is_asked_of_is_refused()
    {
        using var workspace = new Workspace(Device);
        string Message(bool arrives, bool asked)
        {
            TensorView o = TensorView.Of(output, Batch, Heads, Queries, ValueSize), l = TensorView.Of(logSumExp, Batch, Heads, Queries);
            try
            {
                TransformerKernels.Attention.Backward(Device, Good(), new AttentionSaved { Output = o, LogSumExp = l }, new AttentionUpstream { Output = arrives ? o : default },
                    new AttentionGradients { Query = asked ? Tensor(Batch, Heads, Queries, Size) : default }, workspace);
                return "";
            }
            catch (ArgumentException thrown)
            {
                return $"{thrown.ParamName}: {thrown.Message}";
            }
        }
        Assert.Equal("", Message(arrives: true, asked: true));
        Assert.StartsWith("upstream: upstream holds nothing; set at least one of Output, LogSumExp.", Message(arrives: false, asked: true));
        Assert.StartsWith("gradients: gradients asks for nothing; set at least one of Query, Key, Value,", Message(arrives: true, asked: false));
    }

#if !GPU // GPUs don't yet take a backward pass without upstream.Output
    [Fact]
    public void The_output_need_not_be_kept_where_nothing_arrives_at_it()
    {
        using var workspace = new Workspace(Device);
        var l = new float[logSumExp.Length];
        float[] upstream = Seeded.Normal(logSumExp.Length, 1), zeros = new float[output.Length];
        TransformerKernels.Attention.Forward(Device, Good(), TensorView.Of(output, Batch, Heads, Queries, ValueSize), TensorView.Of(l, Batch, Heads, Queries), workspace);
        float[] Gradient(bool kept, float[]? arriving)
        {
            var gradient = new float[Batch * Heads * Queries * Size];
            TransformerKernels.Attention.Backward(Device, Good(),
                new AttentionSaved { Output = kept ? TensorView.Of(output, Batch, Heads, Queries, ValueSize) : default, LogSumExp = TensorView.Of(l, Batch, Heads, Queries) },
                new AttentionUpstream { Output = arriving is null ? default : TensorView.Of(arriving, Batch, Heads, Queries, ValueSize), LogSumExp = TensorView.Of(upstream, Batch, Heads, Queries) },
                new AttentionGradients { Query = TensorView.Of(gradient, Batch, Heads, Queries, Size) }, workspace);
            return gradient;
        }
        float[] gradient = Gradient(kept: true, zeros);
        Assert.Equal(gradient, Gradient(kept: true, null));
        Assert.Equal(gradient, Gradient(kept: false, null));
        Assert.StartsWith("saved.Output is required.", Assert.ThrowsAny<ArgumentException>(() => Gradient(kept: false, zeros)).Message);
    }
#endif

    [Fact]
    public void Workspace_bytes_of_gradients_that_do_not_fit_are_refused()
    {
        ArgumentException? thrown = null;
        try
        {
            TransformerKernels.Attention.BackwardWorkspaceBytes(Device, Good(), new AttentionGradients { Query = Tensor(Batch, Heads, Queries, Size + 1) });
        }
        catch (ArgumentException exception)
        {
            thrown = exception;
        }
        Assert.Equal("gradients.Query", thrown?.ParamName);
    }

    [Fact]
    public void A_null_device_and_a_null_workspace_are_refused()
    {
        static string? Name(ComputeDevice? device, Workspace? workspace)
        {
            AttentionProblem problem = Good();
            try
            {
                TransformerKernels.Attention.Forward(device!, problem, Tensor(Batch, Heads, Queries, ValueSize), default, workspace!);
                return null;
            }
            catch (ArgumentNullException exception)
            {
                return exception.ParamName;
            }
        }
        using var workspace = new Workspace(Device);
        Assert.Equal("device", Name(null, workspace));
        Assert.Equal("workspace", Name(Device, null));
    }

    [Fact]
    public void A_workspace_with_too_low_a_limit_says_what_is_needed()
    {
        AttentionProblem problem = Good();
        long needed = TransformerKernels.Attention.ForwardWorkspaceBytes(Device, problem);
        using var workspace = new Workspace(Device, limit: Math.Max(0, needed - 1));
        ArgumentException? thrown = null;
        try
        {
            TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(output, Batch, Heads, Queries, ValueSize), default, workspace);
        }
        catch (ArgumentException exception)
        {
            thrown = exception;
        }
        Assert.Equal(needed > 0, thrown is not null); // GPUs need none in a forward pass
        if (thrown is not null)
            Assert.Contains(needed.ToString(), thrown.Message);
        using var enough = new Workspace(Device, needed);
        TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(output, Batch, Heads, Queries, ValueSize), default, enough);
        Assert.Equal(needed, enough.Bytes);
    }

    [Fact]
    public void A_cancelled_call_throws_and_leaves_device_and_workspace_usable()
    {
        using var source = new CancellationTokenSource();
        using var workspace = new Workspace(Device);
        ComputeDevice cancellable = Device.With(source.Token);
        source.Cancel();
        bool cancelled = false;
        try
        {
            TransformerKernels.Attention.Forward(cancellable, Good(), TensorView.Of(output, Batch, Heads, Queries, ValueSize), default, workspace);
        }
        catch (OperationCanceledException)
        {
            cancelled = true;
        }
        Assert.True(cancelled);
        TransformerKernels.Attention.Forward(Device, Good(), TensorView.Of(output, Batch, Heads, Queries, ValueSize), default, workspace);
        Assert.All(output, x => Assert.Equal(0, x));
    }

    [Fact]
    public void Queries_keys_and_values_packed_side_by_side_are_read_and_their_gradients_written_in_place()
    {
        const int heads = 2, tokens = 5, size = 4;
        float[] packed = Seeded.Normal(tokens * 3 * heads * size, 1), gradients = new float[packed.Length];
        static TensorView Part(float[] data, int part) =>
            TensorView.Of(data, 1, tokens, 3, heads, size).Select(2, part).Permute(0, 2, 1, 3);
        float[] o = new float[heads * tokens * size], l = new float[heads * tokens], dO = Seeded.Normal(o.Length, 2);
        var problem = new AttentionProblem { Query = Part(packed, 0), Key = Part(packed, 1), Value = Part(packed, 2), Causal = true };
        using var workspace = new Workspace(Device);
        TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(o, 1, heads, tokens, size), TensorView.Of(l, 1, heads, tokens), workspace);
        TransformerKernels.Attention.Backward(Device, problem, new AttentionSaved { Output = TensorView.Of(o, 1, heads, tokens, size), LogSumExp = TensorView.Of(l, 1, heads, tokens) },
            new AttentionUpstream { Output = TensorView.Of(dO, 1, heads, tokens, size) },
            new AttentionGradients { Query = Part(gradients, 0), Key = Part(gradients, 1), Value = Part(gradients, 2) }, workspace);

        // As of copies [head, token, size] of the three.
        static float[] Copy(float[] data, int part) =>
            [.. Enumerable.Range(0, heads * tokens * size).Select(n => data[((n / size % tokens * 3 + part) * heads + n / size / tokens) * size + n % size])];
        float[][] parts = [Copy(packed, 0), Copy(packed, 1), Copy(packed, 2)], expected = [new float[o.Length], new float[o.Length], new float[o.Length]];
        float[] output = new float[o.Length];
        static TensorView Of(float[] data) => TensorView.Of(data, 1, heads, tokens, size);
        problem = new() { Query = Of(parts[0]), Key = Of(parts[1]), Value = Of(parts[2]), Causal = true };
        TransformerKernels.Attention.Forward(Device, problem, Of(output), TensorView.Of(l, 1, heads, tokens), workspace);
        TransformerKernels.Attention.Backward(Device, problem, new AttentionSaved { Output = Of(output), LogSumExp = TensorView.Of(l, 1, heads, tokens) }, new AttentionUpstream { Output = Of(dO) },
            new AttentionGradients { Query = Of(expected[0]), Key = Of(expected[1]), Value = Of(expected[2]) }, workspace);
        Assert.Equal(output, o);
        for (int part = 0; part < 3; part++)
            Assert.Equal(expected[part], Copy(gradients, part));
    }
}
