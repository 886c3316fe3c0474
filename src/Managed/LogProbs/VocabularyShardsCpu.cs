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
            work.CheckOrder();
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

        /// <summary>Of slices in the order of the vocabulary the largest logits are, too.</summary>
        public readonly void CheckOrder()
        {
            for (nint shard = 1; shard < Shards; shard++)
            {
                for (nint token = 0; token < Tokens; token++)
                {
                    VocabularySums before = Parts.From((shard - 1) * ShardStep)[token], part = Parts.From(shard * ShardStep)[token];
                    if (part.Argmax > before.Argmax || (part.IsOfIgnored && before.IsOfIgnored))
                        continue;
                    throw new ArgumentException($"partials[{shard}, {token}] has its largest logit at {part.Argmax}, partials[{shard - 1}, {token}] at {before.Argmax}: "
                        + "the slices must stand in the order of the vocabulary, each of them once, and be of the same tokens.", "partials");
                }
            }
        }

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
