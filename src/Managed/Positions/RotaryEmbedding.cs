using System.Runtime.CompilerServices;

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

internal sealed partial class CpuDevice
{
    protected internal override unsafe void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward)
    {
        fixed (byte* q = query, k = key, cosines = table.Cosines, sines = table.Sines, ids = options.PositionIds)
        {
            var work = new RotaryWork
            {
                Query = new(q, query),
                Key = new(k, key),
                Cosines = (float*)cosines,
                Sines = (float*)sines,
                Places = new(ids, options),
                Pairs = table.RotarySize / 2,
                Tokens = (nint)query.Length(2),
                Interleaved = options.Pairing == RotaryPairing.Interleaved,
                Backward = backward,
            };
            CheckPositions(work.Places, (nint)query.Length(0), work.Tokens, table.Positions);
            Run(work, (nint)query.Length(0) * work.Blocks);
        }
    }

    private static void CheckPositions(in RotaryPlaces places, nint batch, nint tokens, int positions)
    {
        if (!places.HasIds)
            return; // the verb compared the offset with the table
        for (nint sequence = 0; sequence < (places.OneRow ? 1 : batch); sequence++)
        {
            for (nint token = 0; token < tokens; token++)
            {
                Int128 position = (Int128)places.Id(sequence, token) + places.Offset;
                if (position < 0 || position >= positions)
                {
                    string index = places.OneRow ? $"{token}" : $"{sequence}, {token}";
                    throw new ArgumentOutOfRangeException("options.PositionIds", places.Id(sequence, token),
                        $"options.PositionIds[{index}] + {places.Offset} is position {position}; the table has 0 to {positions - 1}.");
                }
            }
        }
    }

    /// <summary>The heads of one tensor, [batch, head, position, feature]; no heads if it is absent.</summary>
    private readonly unsafe struct RotatedHeads
    {
        public readonly float* Data;
        public readonly nint Heads, BatchStride, HeadStride, TokenStride, FeatureStride;

        public RotatedHeads(byte* data, in TensorView view)
        {
            if (!view.IsPresent)
                return;
            Data = (float*)data;
            Heads = (nint)view.Length(1);
            BatchStride = (nint)view.Stride(0);
            HeadStride = (nint)view.Stride(1);
            TokenStride = (nint)view.Stride(2);
            FeatureStride = (nint)view.Stride(3);
        }
    }

    /// <summary>Where tokens stand in the table.</summary>
    private readonly unsafe struct RotaryPlaces
    {
        private readonly byte* ids;
        private readonly bool areLong;
        private readonly nint sequenceStride, tokenStride;

        public RotaryPlaces(byte* ids, in RotaryOptions options)
        {
            Offset = options.Offset;
            HasIds = options.PositionIds.IsPresent;
            if (!HasIds)
                return;
            this.ids = ids;
            areLong = options.PositionIds.Type == ElementType.Int64;
            OneRow = options.PositionIds.Rank == 1;
            sequenceStride = OneRow ? 0 : (nint)options.PositionIds.Stride(0);
            tokenStride = (nint)options.PositionIds.Stride(OneRow ? 0 : 1);
        }

        public readonly long Offset;
        public readonly bool HasIds, OneRow;

        public long Id(nint sequence, nint token)
        {
            nint at = sequence * sequenceStride + token * tokenStride;
            return areLong ? ((long*)ids)[at] : ((int*)ids)[at];
        }

        public nint Row(nint sequence, nint token) => (nint)(Offset + (HasIds ? Id(sequence, token) : token));
    }

    private unsafe struct RotaryWork : IWork
    {
        // Tokens of one item: enough that taking an item costs nothing beside it, few enough that a short batch keeps every thread busy.
        private const int BlockTokens = 32;

        public RotatedHeads Query, Key;
        public float* Cosines, Sines;
        public RotaryPlaces Places;
        public nint Pairs, Tokens;
        public bool Interleaved, Backward;

        public readonly nint Blocks => (Tokens + BlockTokens - 1) / BlockTokens;

        public readonly void Run<TLanes>(nint item, byte* scratch) where TLanes : struct, ILanes<TLanes>
        {
            nint sequence = item / Blocks, first = item % Blocks * BlockTokens, end = Math.Min(first + BlockTokens, Tokens);
            Turn<TLanes>(Query, sequence, first, end);
            Turn<TLanes>(Key, sequence, first, end);
        }

        // In the order in which the heads lie in memory.
        private readonly void Turn<TLanes>(in RotatedHeads heads, nint sequence, nint first, nint end) where TLanes : struct, ILanes<TLanes>
        {
            float* start = heads.Data + sequence * heads.BatchStride;
            if (Math.Abs(heads.HeadStride) <= Math.Abs(heads.TokenStride))
            {
                for (nint token = first; token < end; token++)
                {
                    nint row = Places.Row(sequence, token) * Pairs;
                    for (nint head = 0; head < heads.Heads; head++)
                        Turn<TLanes>(start + token * heads.TokenStride + head * heads.HeadStride, heads.FeatureStride, Cosines + row, Sines + row);
                }
            }
            else
            {
                for (nint head = 0; head < heads.Heads; head++)
                {
                    for (nint token = first; token < end; token++)
                    {
                        nint row = Places.Row(sequence, token) * Pairs;
                        Turn<TLanes>(start + token * heads.TokenStride + head * heads.HeadStride, heads.FeatureStride, Cosines + row, Sines + row);
                    }
                }
            }
        }

        // One head of one token. The rotation by −a is the rotation by a of the pair with its two members exchanged.
        private readonly void Turn<TLanes>(float* head, nint stride, float* cosines, float* sines) where TLanes : struct, ILanes<TLanes>
        {
            nint distance = Interleaved ? stride : Pairs * stride;
            float* x0 = Backward ? head + distance : head, x1 = Backward ? head : head + distance;
            nint pair = 0;
            if (stride == 1 && Interleaved)
            {
                for (; pair <= Pairs - TLanes.Count; pair += TLanes.Count)
                {
                    float* at = head + 2 * pair;
                    TLanes.Unzip(TLanes.Load(at), TLanes.Load(at + TLanes.Count), out TLanes even, out TLanes odd);
                    if (Backward)
                        Turn(ref odd, ref even, TLanes.Load(cosines + pair), TLanes.Load(sines + pair));
                    else
                        Turn(ref even, ref odd, TLanes.Load(cosines + pair), TLanes.Load(sines + pair));
                    TLanes.Zip(even, odd, out TLanes low, out TLanes high);
                    low.Store(at);
                    high.Store(at + TLanes.Count);
                }
            }
            else if (stride == 1)
            {
                for (; pair <= Pairs - TLanes.Count; pair += TLanes.Count)
                {
                    TLanes a = TLanes.Load(x0 + pair), b = TLanes.Load(x1 + pair);
                    Turn(ref a, ref b, TLanes.Load(cosines + pair), TLanes.Load(sines + pair));
                    a.Store(x0 + pair);
                    b.Store(x1 + pair);
                }
            }
            nint step = Interleaved ? 2 * stride : stride;
            for (; pair < Pairs; pair++)
            {
                var a = new Real32(x0[pair * step]);
                var b = new Real32(x1[pair * step]);
                Turn(ref a, ref b, new(cosines[pair]), new(sines[pair]));
                x0[pair * step] = a.Value;
                x1[pair * step] = b.Value;
            }
        }

        // No fused multiply-add: the same bits in every lane, tail and instruction set, and memory is the limit.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Turn<T>(ref T x0, ref T x1, T cosine, T sine) where T : struct, IReal<T> =>
            (x0, x1) = (x0 * cosine - x1 * sine, x0 * sine + x1 * cosine);
    }
}
