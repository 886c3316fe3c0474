using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A thread takes one pair of one token and turns it in several heads: neighbouring threads read neighbouring features, and cosine and sine, read once for
// all of those heads, stay in registers. Queries and keys share one launch; their heads are numbered through, the key's behind the query's.
public sealed partial class GpuDevice
{
    /// <inheritdoc/>
    protected internal override void Rotate(TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward)
    {
        RotaryArguments arguments = new(this, query, key, table, options, backward);
        cancellation.ThrowIfCancellationRequested();
        if (arguments.Items > 0)
            Queue.Launch(RotaryKernels.Turn, (int)Math.Min(arguments.Items, RotaryKernels.MaximumGroups), RotaryKernels.GroupSize, arguments, Queue.Faults);
    }
}

/// <summary>What the rotary kernel reads and writes, and how its work is cut.</summary>
internal readonly struct RotaryArguments
{
    public readonly GpuTensor<float> Query, Key, Cosines, Sines;
    public readonly GpuIntegers Ids;
    public readonly int IdsPerSequence, Interleaved, Backward;

    public readonly int Pairs, QueryHeads, Heads, HeadSize;
    public readonly long Tokens, Positions, Offset;

    /// <summary>So many threads take the pairs of one token, and a group so many tokens.</summary>
    public readonly int Width, GroupTokens;

    /// <summary>An item is the work of a group: some tokens of one sequence and some heads; the numbers of both, and of all items.</summary>
    public readonly long TokenBlocks, HeadBlocks, Items;

    public RotaryArguments(GpuDevice device, TensorView query, TensorView key, RotaryTable table, in RotaryOptions options, bool backward)
    {
        Query = new(device, query, "query");
        Key = new(device, key, "key");
        Cosines = new(device, table.Cosines, "table");
        Sines = new(device, table.Sines, "table");
        Ids = new(device, options.PositionIds, "options.PositionIds");
        IdsPerSequence = options.PositionIds.IsPresent && options.PositionIds.Rank == 2 ? 1 : 0;
        Interleaved = options.Pairing == RotaryPairing.Interleaved ? 1 : 0;
        Backward = backward ? 1 : 0;
        Pairs = table.RotarySize / 2;
        QueryHeads = checked((int)query.Length(1));
        Heads = checked(QueryHeads + (key.IsPresent ? (int)key.Length(1) : 0));
        HeadSize = checked((int)query.Length(3));
        Tokens = query.Length(2);
        Positions = table.Positions;
        Offset = options.Offset;
        Width = Math.Min(Pairs, RotaryKernels.GroupSize);
        GroupTokens = RotaryKernels.GroupSize / Width;
        TokenBlocks = (Tokens + GroupTokens - 1) / GroupTokens;
        HeadBlocks = (Heads + RotaryKernels.BlockHeads - 1) / RotaryKernels.BlockHeads;
        Items = checked(query.Length(0) * TokenBlocks * HeadBlocks);
    }
}

internal static class RotaryKernels
{
    public const int GroupSize = 256;

    /// <summary>Heads that share a reading of cosine and sine: 1 byte of them a pair, beside the 16 that it moves; and threads enough in a short batch.</summary>
    public const int BlockHeads = 8;

    /// <summary>Beyond so many, a group takes several items.</summary>
    public const int MaximumGroups = 1 << 20;

    /// <summary>Turns the pairs of a few tokens in a few heads.</summary>
    public static void Turn(RotaryArguments a, GpuFaults faults)
    {
        int local = Group.IdxX / a.Width, lane = Group.IdxX % a.Width;
        for (long item = Grid.IdxX; item < a.Items; item += Grid.DimX)
        {
            long rest = item / a.HeadBlocks, sequence = rest / a.TokenBlocks;
            long token = (rest - sequence * a.TokenBlocks) * a.GroupTokens + local;
            int firstHead = (int)(item - rest * a.HeadBlocks) * BlockHeads;
            int endHead = firstHead + BlockHeads < a.Heads ? firstHead + BlockHeads : a.Heads;
            if (local >= a.GroupTokens || token >= a.Tokens)
                continue;

            long id = Id(a, sequence, token), position = id + a.Offset;
            // A sum that wrapped around has another sign than both of its terms.
            bool wrapped = ((id ^ position) & (a.Offset ^ position)) < 0;
            if (wrapped)
                position = id;
            if (wrapped || position < 0 || position >= a.Positions)
            {
                if (lane == 0)
                    faults.Report(GpuFaultSource.PositionIds, position, a.Positions);
                Spoil(a, sequence, token, firstHead, endHead, lane);
                continue;
            }

            for (int pair = lane; pair < a.Pairs; pair += a.Width)
            {
                float cosine = a.Cosines[position, pair], sine = a.Sines[position, pair];
                if (a.Backward != 0)
                    sine = -sine;
                int first = a.Interleaved != 0 ? 2 * pair : pair, second = a.Interleaved != 0 ? first + 1 : pair + a.Pairs;
                for (int head = firstHead; head < endHead; head++)
                {
                    if (head < a.QueryHeads)
                        Turn(a.Query, sequence, head, token, first, second, cosine, sine);
                    else
                        Turn(a.Key, sequence, head - a.QueryHeads, token, first, second, cosine, sine);
                }
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static long Id(in RotaryArguments a, long sequence, long token)
    {
        if (a.IdsPerSequence != 0)
            return a.Ids[sequence, token];
        return a.Ids.IsPresent ? a.Ids[token] : token;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Turn(in GpuTensor<float> heads, long sequence, int head, long token, int first, int second, float cosine, float sine)
    {
        ArrayView<float> memory = heads.Memory;
        long row = heads.At(sequence, head, token), at0 = row + first * heads.Stride3, at1 = row + second * heads.Stride3;
        float x0 = memory[at0], x1 = memory[at1];
        memory[at0] = x0 * cosine - x1 * sine;
        memory[at1] = x0 * sine + x1 * cosine;
    }

    // A token whose position isn't in the table: all of its features become NaN.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Spoil(in RotaryArguments a, long sequence, long token, int firstHead, int endHead, int lane)
    {
        for (int head = firstHead; head < endHead; head++)
        {
            for (int feature = lane; feature < a.HeadSize; feature += a.Width)
            {
                if (head < a.QueryHeads)
                    a.Query.Memory[a.Query.At(sequence, head, token) + feature * a.Query.Stride3] = float.NaN;
                else
                    a.Key.Memory[a.Key.At(sequence, head - a.QueryHeads, token) + feature * a.Key.Stride3] = float.NaN;
            }
        }
    }
}
