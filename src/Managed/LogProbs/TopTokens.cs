namespace TransformerKernels;

/// <summary>Token indices of either type at equal distances in pinned host memory. The default value is an absent tensor.</summary>
internal readonly unsafe struct TokenVector
{
    private readonly byte* data;
    private readonly nint stride;
    private readonly bool isLong;

    public TokenVector(byte* data, in TensorView view)
    {
        if (!view.IsPresent)
            return;
        this.data = data;
        stride = (nint)view.Stride(view.Rank - 1);
        isLong = view.Type == ElementType.Int64;
        IsPresent = true;
    }

    private TokenVector(byte* data, nint stride, bool isLong)
    {
        this.data = data;
        this.stride = stride;
        this.isLong = isLong;
        IsPresent = true;
    }

    public readonly bool IsPresent;

    public long this[nint index] => isLong ? ((long*)data)[index * stride] : ((int*)data)[index * stride];

    /// <summary>Writes an index unless the tensor is absent.</summary>
    public void Set(nint index, long token)
    {
        if (!IsPresent)
            return;
        if (isLong)
            ((long*)data)[index * stride] = token;
        else
            ((int*)data)[index * stride] = (int)token;
    }

    /// <summary>The vector that begins so many elements later; absent stays absent.</summary>
    public TokenVector From(nint elements) => IsPresent ? new(data + elements * (isLong ? sizeof(long) : sizeof(int)), stride, isLong) : default;
}

/// <summary>Where the likeliest tokens of each row go: [n, k] log-probs and, optionally, tokens.</summary>
internal readonly unsafe struct TopRows
{
    private readonly HostVector logProbs;
    private readonly TokenVector tokens;
    private readonly nint logProbStride, tokenStride;

    public TopRows(byte* logProbs, byte* tokens, in TokenOutputs outputs)
    {
        if (!outputs.TopLogProbs.IsPresent)
            return;
        Count = (nint)outputs.TopLogProbs.Length(1);
        this.logProbs = new(logProbs, outputs.TopLogProbs);
        logProbStride = (nint)outputs.TopLogProbs.Stride(0);
        if (!outputs.TopTokens.IsPresent)
            return;
        this.tokens = new(tokens, outputs.TopTokens);
        tokenStride = (nint)outputs.TopTokens.Stride(0);
    }

    /// <summary>k; 0 if nobody asks.</summary>
    public readonly nint Count;

    public void Clear(nint row)
    {
        for (nint i = 0; i < Count; i++)
        {
            logProbs.From(row * logProbStride)[i] = 0;
            tokens.From(row * tokenStride).Set(i, 0);
        }
    }

    public List Begin(nint row) => new(logProbs.From(row * logProbStride), tokens.From(row * tokenStride), Count);

    /// <summary>The largest logits of a row so far, in place of the log-probs that they become; of equal ones the first comes first.</summary>
    public struct List(HostVector logits, TokenVector tokens, nint capacity)
    {
        private nint count;

        /// <summary>What a logit must exceed to be among them.</summary>
        public readonly float Threshold => logits[capacity - 1];

        public readonly bool IsFull => count == capacity;

        public void Offer(nint token, float logit)
        {
            if (IsFull && !(logit > Threshold))
                return;
            nint at = IsFull ? capacity - 1 : count++;
            for (; at > 0 && logits[at - 1] < logit; at--)
            {
                logits[at] = logits[at - 1];
                if (tokens.IsPresent)
                    tokens.Set(at, tokens[at - 1]);
            }
            logits[at] = logit;
            tokens.Set(at, token);
        }

        public readonly void Finish(float shift, double logSum)
        {
            for (nint i = 0; i < capacity; i++)
                logits[i] = (float)((double)logits[i] - shift - logSum);
        }
    }
}
