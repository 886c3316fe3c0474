using System.Runtime.Intrinsics;

namespace TransformerKernels;

/// <summary>A mask [sequence, token] in pinned host memory; an absent one keeps every token.</summary>
internal readonly unsafe struct MaskStream
{
    // A span's length is an int, a sequence's needn't be.
    private const int SpanLength = 1 << 30;

    private readonly byte* data;
    private readonly nint tokens, rowStride, stride;

    public MaskStream(byte* data, in TensorView view, nint tokens)
    {
        this.tokens = tokens;
        if (!view.IsPresent)
            return;
        this.data = data;
        rowStride = (nint)view.Stride(0);
        stride = (nint)view.Stride(1);
    }

    /// <summary>Whether the mask is absent.</summary>
    public bool KeepsAll => data is null;

    /// <summary>How many tokens of a sequence are kept.</summary>
    public long Length(nint sequence)
    {
        if (KeepsAll)
            return tokens;
        byte* row = data + sequence * rowStride;
        long length = 0;
        if (stride == 1)
        {
            for (nint start = 0; start < tokens; start += SpanLength)
            {
                var part = new ReadOnlySpan<byte>(row + start, (int)Math.Min(SpanLength, tokens - start));
                length += part.Length - part.Count((byte)0);
            }
            return length;
        }
        for (nint token = 0; token < tokens; token++)
            length += row[token * stride] != 0 ? 1 : 0;
        return length;
    }

    /// <summary>Writes a number for every token of a part of one sequence that is kept, 0 for the others.</summary>
    public void CopyTo(float* destination, nint sequence, nint token, nint count, float kept)
    {
        if (KeepsAll)
        {
            new Span<float>(destination, (int)count).Fill(kept);
            return;
        }
        byte* source = data + sequence * rowStride + token * stride;
        nint i = 0;
        if (stride == 1)
        {
            Vector128<float> value = Vector128.Create(kept);
            for (; i <= count - Vector128<byte>.Count; i += Vector128<byte>.Count)
            {
                // All ones where the mask is false, a byte first, then a float.
                (Vector128<short> low, Vector128<short> high) = Vector128.Widen(Vector128.Equals(Vector128.Load(source + i), Vector128<byte>.Zero).AsSByte());
                (Vector128<int> a, Vector128<int> b) = Vector128.Widen(low);
                (Vector128<int> c, Vector128<int> d) = Vector128.Widen(high);
                Vector128.AndNot(value, a.AsSingle()).Store(destination + i);
                Vector128.AndNot(value, b.AsSingle()).Store(destination + i + Vector128<float>.Count);
                Vector128.AndNot(value, c.AsSingle()).Store(destination + i + 2 * Vector128<float>.Count);
                Vector128.AndNot(value, d.AsSingle()).Store(destination + i + 3 * Vector128<float>.Count);
            }
        }
        for (; i < count; i++)
            destination[i] = source[i * stride] != 0 ? kept : 0f;
    }

    /// <summary>As <see cref="CopyTo(float*, nint, nint, nint, float)"/>, over the end of a sequence into the next one.</summary>
    public void CopyTo(float* destination, nint element, nint count, float kept)
    {
        for (nint done = 0; done < count;)
        {
            (nint sequence, nint token) = Math.DivRem(element + done, tokens);
            nint length = Math.Min(count - done, tokens - token);
            CopyTo(destination + done, sequence, token, length, kept);
            done += length;
        }
    }
}
