namespace TransformerKernels;

internal sealed partial class CpuDevice
{
    protected internal override unsafe void MergeShards(TensorView partials, in TokenOutputs outputs, TensorView merged)
    {
        fixed (byte* parts = partials, logProb = outputs.LogProb, logSumExp = outputs.LogSumExp, entropy = outputs.Entropy, squares = outputs.SumOfSquares, argmax = outputs.Argmax,
            mean = outputs.MeanLogit, whole = merged)
        {
            var work = new ShardMergeWork
            {
                Parts = new(parts, partials),
                Shards = (nint)partials.Length(0),
                ShardStep = (nint)partials.Stride(0),
                Tokens = (nint)partials.Length(1),
                Results = new(logProb, logSumExp, entropy, squares, argmax, mean, outputs),
                Merged = new(whole, merged),
            };
            Run(work, (work.Tokens + ShardMergeWork.TokensPerItem - 1) / ShardMergeWork.TokensPerItem);
        }
    }

    private struct ShardMergeWork : IWork
    {
        // Enough that handing out an item is nothing.
        public const int TokensPerItem = 64;

        public PartialRows Parts, Merged;
        public TokenResults Results;
        public nint Shards, ShardStep, Tokens;

        public readonly unsafe void Run<V>(nint item, byte* scratch) where V : struct, ILanes<V>
        {
            for (nint token = item * TokensPerItem; token < Math.Min((item + 1) * TokensPerItem, Tokens); token++)
            {
                var merge = new VocabularyMerge();
                for (nint shard = 0; shard < Shards; shard++)
                {
                    VocabularySums part = Parts.From(shard * ShardStep)[token];
                    merge.Look(part.Max, part.Argmax);
                }
                for (nint shard = 0; shard < Shards; shard++)
                    merge.Add(Parts.From(shard * ShardStep)[token]);
                VocabularySums whole = merge.Whole;
                if (whole.IsOfIgnored)
                    whole = default;
                if (Merged.IsPresent)
                    Merged[token] = whole;
                if (whole.IsOfIgnored)
                    Results.Clear(token);
                else
                    Results.Set(token, whole);
            }
        }
    }
}
