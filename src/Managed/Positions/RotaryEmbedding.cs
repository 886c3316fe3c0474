namespace TransformerKernels;

/// <summary>Which features of a head form a pair.</summary>
public enum RotaryPairing
{
    /// <summary>(m, m + rotarySize/2): GPT-NeoX, Llama in Hugging Face's layout, ONNX interleaved = 0.</summary>
    HalfSplit,
    /// <summary>(2m, 2m + 1): the paper, GPT-J, Llama in its original layout and in GGUF, ONNX interleaved = 1.</summary>
    Interleaved,
}

/// <summary>How a rotary table is applied. The default is: half-split pairs, position = index.</summary>
public readonly ref struct RotaryOptions
{
    /// <summary>Which features form a pair.</summary>
    public RotaryPairing Pairing { get; init; }

    /// <summary>Added to every position; the position of token i is i + offset, or its position id + offset.</summary>
    public long Offset { get; init; }

    /// <summary>Positions of the tokens, int32 or int64, [position] or [batch, position]; the tokens' indices if absent.</summary>
    public TensorView PositionIds { get; init; }
}

/// <summary>Rotates pairs of features by an angle proportional to position (RoPE), in place.</summary>
/// <remarks>
/// For a pair (x0, x1) at angle a: y0 = x0 cos a − x1 sin a, y1 = x0 sin a + x1 cos a. The first <see cref="RotaryTable.RotarySize"/> features of a head
/// are rotated, the others stay. Su et al. 2021, "RoFormer", eq. 34. The gradient is the rotation by −a, of the gradients.
/// </remarks>
public static class RotaryEmbedding
{
    /// <summary>Rotates queries and keys in one pass.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="query">[batch, head, position, headSize], float32, any strides, rotated in place.</param>
    /// <param name="key">[batch, keyHead, position, headSize], rotated in place; may be absent (default).</param>
    /// <param name="table">The angles; its rotary size is at most the head size.</param>
    /// <param name="options">Pairs and positions.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device or aliases itself; the message names it.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A position lies outside the table; on a GPU such a row becomes NaN and the next <see cref="ComputeDevice.Synchronize"/> throws.</exception>
    public static void Apply(ComputeDevice device, TensorView query, TensorView key, RotaryTable table, in RotaryOptions options = default)
    {
        Check(device, query, key, table, options);
        device.Rotate(query, key, table, options, backward: false);
    }

    /// <summary>Turns the gradients of rotated queries and keys into those of the unrotated ones, in place: the rotation by the negative angles.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="queryGradient">[batch, head, position, headSize], rotated back in place.</param>
    /// <param name="keyGradient">[batch, keyHead, position, headSize], rotated back in place; may be absent (default).</param>
    /// <param name="table">As in the forward pass.</param>
    /// <param name="options">As in the forward pass.</param>
    /// <exception cref="ArgumentException">As <see cref="Apply"/>.</exception>
    public static void Backward(ComputeDevice device, TensorView queryGradient, TensorView keyGradient, RotaryTable table, in RotaryOptions options = default)
    {
        Check(device, queryGradient, keyGradient, table, options);
        device.Rotate(queryGradient, keyGradient, table, options, backward: true);
    }

    private static void Check(ComputeDevice device, in TensorView query, in TensorView key, RotaryTable table, in RotaryOptions options)
    {
        Require.Device(device);
        ArgumentNullException.ThrowIfNull(table);
        Require.Output(device, query, nameof(query), -1, -1, -1, -1);
        long batch = query.Length(0), positions = query.Length(2), headSize = query.Length(3);
        Require.OptionalOutput(device, key, nameof(key), batch, -1, positions, headSize);
        Require.Disjoint(query, nameof(query), key, nameof(key));
        Require.Input(device, table.Cosines, nameof(table), -1, -1);
        if (table.RotarySize > headSize)
            throw new ArgumentException($"The table rotates {table.RotarySize} features; a head has {headSize}.", nameof(table));
        if (!Enum.IsDefined(options.Pairing))
            throw new ArgumentOutOfRangeException(nameof(options), options.Pairing, "Not a pairing.");
        if (options.PositionIds.IsPresent)
        {
            ReadOnlySpan<ElementType> integers = [ElementType.Int32, ElementType.Int64];
            if (options.PositionIds.Rank == 1)
                Require.Input(device, options.PositionIds, "options.PositionIds", integers, positions);
            else
                Require.Input(device, options.PositionIds, "options.PositionIds", integers, batch, positions);
        }
        else if (positions > 0 && (options.Offset < 0 || options.Offset > table.Positions - positions))
            throw new ArgumentOutOfRangeException(nameof(options), options.Offset, $"Positions {options.Offset} to {options.Offset + positions - 1} are rotated; the table has 0 to {table.Positions - 1}.");
    }
}
