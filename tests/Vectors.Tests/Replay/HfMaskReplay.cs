using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>hf/bias-masks: the masks that transformers makes for whole, chunked and prefix attention and for images, as the pairs that attention sees.</summary>
/// <remarks>
/// The library hides by causality, by a mask of padding, and by rules that compare a number of the query's with one of the key's: its chunk, its image, whether it is in the prefix. Values that
/// are the rows of the identity tell what is seen. Windows and packed documents wait for their own properties.
/// </remarks>
public sealed class HfMaskReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "hf" && vector.File == "bias-masks.json";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        Case read = Read(vector);
        Grid<double> mask = Grid.Zeros<double>(read.Batch, 1, read.Queries, read.Keys);
        for (int b = 0; b < read.Batch; b++)
        {
            for (int i = 0; i < read.Queries; i++)
            {
                for (int j = 0; j < read.Keys; j++)
                {
                    bool isOwn = read.QueryGroups is null || read.QueryGroups[b, 0, i] == read.KeyGroups![b, 0, j], isEarlier = j <= i + read.Offset;
                    mask[b, 0, i, j] = (read.OrEarlier ? isOwn || isEarlier : isOwn && isEarlier) && (read.Padding is null || read.Padding[b, 0, 0, j] != 0) ? 1 : 0;
                }
            }
        }
        var results = new Results<T>();
        results.Output("mask", Seen(AttentionOracle.Forward<T>(Inputs(read, mask, captured: false)).Output.Data));
        return results;
    }

    public Results<float> Library(VectorCase vector)
    {
        Case read = Read(vector);
        AttentionReplay.Case problem = new(Inputs(read, read.Padding, captured: true));
        Results<float> seen = read.QueryGroups is null ? AttentionReplay.Run(problem, new PlainScore())
            : read.OrEarlier ? AttentionReplay.Run(problem, new EarlierOrOwnGroup()) : AttentionReplay.Run(problem, new OwnGroup());
        var results = new Results<float>();
        results.Output("mask", Seen(seen.Outputs["output"].Values));
        return results;
    }

    private static T[] Seen<T>(T[] weights) where T : INumber<T> => Array.ConvertAll(weights, weight => weight > T.Zero ? T.One : T.Zero);

    private static AttentionInputs Inputs(Case read, Grid<double>? mask, bool captured)
    {
        Grid<double> identity = Grid.Zeros<double>(read.Batch, 1, read.Keys, read.Keys);
        for (int b = 0; b < read.Batch; b++)
        {
            for (int j = 0; j < read.Keys; j++)
                identity[b, 0, j, j] = 1;
        }
        return new()
        {
            Query = Grid.Zeros<double>(read.Batch, 1, read.Queries, 1), Key = Grid.Zeros<double>(read.Batch, 1, read.Keys, 1), Value = identity,
            QueryOffset = read.Offset, Causal = captured && !read.OrEarlier, Mask = mask,
            Captured = captured && read.QueryGroups is not null ? [new(read.QueryGroups, CapturedBy.Query), new(read.KeyGroups!, CapturedBy.Key)] : [],
        };
    }

    private static Case Read(VectorCase vector)
    {
        vector.KnowsOnly(["kind", "query_offset", "key_offset", "sliding_window", "attention_chunk_size", "query_length", "key_length"], ["attention_mask", "token_type_ids", "block_sequence_ids"]);
        int[] shape = vector.Outputs["mask"].Shape;
        int batch = shape[0], queries = shape[2], keys = shape[3], offset = (int)((vector.Number("query_offset") ?? 0) - (vector.Number("key_offset") ?? 0));
        Grid<double>? padding = vector.Input("attention_mask") is { } visible ? new(visible.Data, batch, 1, 1, keys) : null;
        Case Of(Func<int, int, double>? ofQuery, Func<int, int, double>? ofKey, bool orEarlier) =>
            new(batch, queries, keys, offset, padding, ofQuery is null ? null : Groups(queries, ofQuery), ofKey is null ? null : Groups(keys, ofKey), orEarlier);
        switch (vector.Text("kind"))
        {
            case "full":
                return Of(null, null, orEarlier: false);
            case "chunked":
                // Chunks begin at a sequence's first visible token.
                int size = (int)vector.Number("attention_chunk_size")!, begin = (int)vector.Number("key_offset")!;
                double Chunk(int b, int key) => Math.Floor((begin + key - First(b)) / (double)size);
                return Of((b, i) => Chunk(b, i + offset), Chunk, orEarlier: false);
            case "gemma3-vision-full_attention":
                // No query is text's −1.
                double[] image = vector.Need("block_sequence_ids").Data;
                return Of((b, i) => image[b * keys + i] < 0 ? -2 : image[b * keys + i], (b, j) => image[b * keys + j], orEarlier: true);
            case "prefix":
                double[] type = vector.Need("token_type_ids").Data;
                return Of((_, _) => 0, (b, j) => type[b * keys + j], orEarlier: true);
            case { } kind:
                throw new NotReplayedException(kind);
            default:
                throw new NotReplayedException("no kind");
        }

        Grid<double> Groups(int count, Func<int, int, double> of)
        {
            Grid<double> groups = Grid.Zeros<double>(batch, 1, count);
            for (int b = 0; b < batch; b++)
            {
                for (int n = 0; n < count; n++)
                    groups[b, 0, n] = of(b, n);
            }
            return groups;
        }

        int First(int b) => padding is null ? 0 : Array.IndexOf(padding.Row(b, 0, 0).ToArray(), 1);
    }

    /// <summary>[b, 1, n] groups; with OrEarlier a query sees its own group and what is earlier, else what is both.</summary>
    private sealed record Case(int Batch, int Queries, int Keys, int Offset, Grid<double>? Padding, Grid<double>? QueryGroups, Grid<double>? KeyGroups, bool OrEarlier);
}
