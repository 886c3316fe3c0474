namespace TransformerKernels;

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

    /// <summary>Makes log-probs of the logits that a list has left in a row.</summary>
    public void Finish(nint row, float shift, double logSum)
    {
        if (Count > 0)
            Begin(row).Finish(shift, logSum);
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
