using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>CPU devices compute the parts of a tile that some query sees: masks of every shape, and how a tile is cut by them.</summary>
public unsafe class AttentionVisibilityTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    /// <summary>The pairs that a mask shows, by what they are of.</summary>
    private static readonly Dictionary<string, Func<int, int, bool>> Shown = new()
    {
        ["documents"] = (query, key) => query / 27 == key / 27,
        ["documents of a vector's length"] = (query, key) => query / 32 == key / 32,
        ["band"] = (query, key) => Math.Abs(query - key) < 19,
        ["far band"] = (query, key) => key - query is > 20 and < 64,
        ["checkerboard"] = (query, key) => (query / 16 + key / 16) % 2 == 0,
        ["first and last queries"] = (query, key) => query is < 3 or > 50 || key % 64 < 5,
        ["single pairs"] = (query, key) => query == key * 7 % 71,
        ["columns"] = (query, key) => key % 23 == 5,
        ["random"] = (query, key) => (query * 131 + key * 71 + query * key) % 97 < 40,
        ["nothing"] = (query, key) => false,
    };

    public static TheoryData<string> Kinds => [.. Shown.Keys];

    private static Grid<double> Mask(string kind, int queries, int keys)
    {
        Grid<double> mask = Grid.Zeros<double>(1, 1, queries, keys);
        for (int i = 0; i < queries; i++)
        {
            for (int j = 0; j < keys; j++)
                mask[0, 0, i, j] = Shown[kind](i, j) ? 1 : 0;
        }
        return mask;
    }

    [Theory]
    [MemberData(nameof(Kinds))]
    public void A_mask_of_any_shape_agrees_with_the_definition(string kind)
    {
        foreach ((int queries, int keys, bool causal) in ((int, int, bool)[])[(3, 9, false), (65, 61, true), (130, 131, false), (130, 150, true)])
        {
            foreach (bool biased in (bool[])[false, true])
            {
                new AttentionCase
                {
                    Queries = queries, Keys = keys, HeadSize = 17, ValueSize = 6, Causal = causal, HasLogSumExpUpstream = true, Mask = Mask(kind, queries, keys),
                    Slopes = biased ? AttentionCase.Numbers(1, 0.2f, 2) : null, DenseBias = biased ? AttentionCase.Numbers(4, 1, 1, 2, queries, keys) : null,
                }.Check(Device, default(PlainScore));
            }
            new AttentionCase
            {
                Queries = queries, Keys = keys, HeadSize = 3, ValueSize = 2, Causal = causal, Mask = Mask(kind, queries, keys), DenseBias = AttentionCase.Numbers(4, 1, 1, 2, queries, keys), Softcap = queries > 65 ? 2 : null,
            }.Check(Device, default(PlainScore));
        }
        new AttentionCase
        {
            Queries = 67, Keys = 131, HeadSize = 6, ValueSize = 6, Mask = Mask(kind, 67, 131), DistanceBias = AttentionCase.Numbers(8, 1, 2, 197),
            Captured = [new(AttentionCase.Numbers(20, 0.3f, 2), CapturedBy.Head), new(AttentionCase.Numbers(21, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
        }.Check(Device, new Gained<Temperature>(new Temperature(0.25f, 20)), new GainedTemperatureFormula(0.25f, 20));
    }

    // Sums over queries keep the queries in the lanes where features are few or few are left, else the features: both leave out what is hidden.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(6)]
    [InlineData(8)]
    [InlineData(17)]
    [InlineData(18)]
    [InlineData(20)]
    [InlineData(23)]
    public void A_query_of_NaN_reaches_the_gradients_of_the_keys_that_it_sees_only(int headSize)
    {
        const int queries = 70, keys = 133, poisoned = 40;
        foreach (string kind in Shown.Keys)
        {
            Grid<double> mask = Mask(kind, queries, keys);
            AttentionCase.Results results = new AttentionCase { Queries = queries, Keys = keys, HeadSize = headSize, Mask = mask, Prepare = (q, _, _) => q[0, 0, poisoned, 0] = float.NaN }.Run(Device, default(PlainScore));
            AttentionCase.Results ofUpstream = new AttentionCase { Queries = queries, Keys = keys, HeadSize = headSize, Mask = mask, HasLogSumExpUpstream = true, PrepareUpstream = l => l[poisoned] = float.NaN }.Run(Device, default(PlainScore));
            for (int j = 0; j < keys; j++)
            {
                Assert.All(results.Key.Skip(j * headSize).Take(headSize), gradient => Assert.Equal(mask[0, 0, poisoned, j] == 1, float.IsNaN(gradient)));
                Assert.All(ofUpstream.Key.Skip(j * headSize).Take(headSize), gradient => Assert.Equal(mask[0, 0, poisoned, j] == 1, float.IsNaN(gradient)));
            }
        }
    }

    [Theory]
    [MemberData(nameof(Kinds))]
    public void What_a_mask_of_any_shape_hides_contributes_nothing_whatever_it_holds(string kind)
    {
        const int queries = 70, keys = 133;
        // Keys that few queries see hold NaN: exactly those queries' outputs do.
        Grid<double> mask = Mask(kind, queries, keys);
        int[] poisoned = [0, 37, 64, 100, 132];
        for (int i = 0; i < queries; i++)
        {
            foreach (int j in poisoned)
                mask[0, 0, i, j] = i == 40 && j == 37 ? 1 : 0;
        }
        var hidden = new AttentionCase { Queries = queries, Keys = keys, Mask = mask, Prepare = (_, k, v) => Array.ForEach(poisoned, j => k[0, 0, j, 1] = v[0, 1, j, 2] = float.NaN) };
        AttentionCase.Results results = hidden.Run(Device, default(PlainScore)), clean = new AttentionCase { Queries = queries, Keys = keys, Mask = mask }.Run(Device, default(PlainScore));
        for (int i = 0; i < queries; i++)
        {
            for (int e = 0; e < 4; e++)
            {
                foreach (int head in (int[])[0, 1])
                {
                    int at = (head * queries + i) * 4 + e;
                    bool isPoisoned = i == 40 && (head == 0 || e == 2);
                    Assert.Equal(isPoisoned, float.IsNaN(results.Output[at]));
                    if (i != 40)
                        Assert.Equal(clean.Output[at], results.Output[at]);
                    Assert.True(i == 40 || float.IsFinite(results.Query[at]));
                }
            }
        }
        for (int j = 0; j < keys; j++)
        {
            for (int e = 0; e < 4; e++)
            {
                foreach (int head in (int[])[0, 1])
                {
                    int at = (head * keys + j) * 4 + e;
                    Assert.True(mask[0, 0, 40, j] == 1 || (float.IsFinite(results.Key[at]) && float.IsFinite(results.Value[at])));
                }
            }
        }
    }

    [Theory]
    [InlineData("documents")]
    [InlineData("band")]
    [InlineData("random")]
    public void Hidden_tiles_and_parts_leave_no_trace_in_the_bits(string kind)
    {
        // A key that nobody sees may be there or not.
        const int queries = 90, keys = 140, more = 64;
        Grid<double> mask = Mask(kind, queries, keys), wider = Grid.Zeros<double>(1, 1, queries, keys + more);
        for (int i = 0; i < queries; i++)
        {
            for (int j = 0; j < keys; j++)
                wider[0, 0, i, j + more] = mask[0, 0, i, j];
        }
        void Copy(Strided k, Strided v)
        {
            Strided shortK = new Strided([1, 2, keys, 4], [0, 1, 2, 3]).Fill(2), shortV = new Strided([1, 2, keys, 4], [0, 1, 2, 3]).Fill(3);
            for (int head = 0; head < 2; head++)
            {
                for (int j = 0; j < keys; j++)
                {
                    for (int e = 0; e < 4; e++)
                        (k[0, head, j + more, e], v[0, head, j + more, e]) = (shortK[0, head, j, e], shortV[0, head, j, e]);
                }
            }
        }
        AttentionCase.Results narrow = new AttentionCase { Queries = queries, Keys = keys, Mask = mask }.Run(Device, default(PlainScore));
        AttentionCase.Results wide = new AttentionCase { Queries = queries, Keys = keys + more, Mask = wider, Prepare = (_, k, v) => Copy(k, v) }.Run(Device, default(PlainScore));
        Assert.Equal(narrow.Output, wide.Output);
        Assert.Equal(narrow.LogSumExp, wide.LogSumExp);
        Assert.Equal(narrow.Query, wide.Query);
    }

    // Written past the caches, or added to zeros.
    [Fact]
    public void Gradients_of_pairs_too_many_for_the_caches_are_those_that_are_added_to_zeros_and_0_where_hidden()
    {
        const int queries = 750, keys = 751, size = 2, document = 300, ahead = 40;
        Assert.True(StreamingStores.Suit(queries * keys));
        float[] q = Seeded.Normal(queries * size, 1), k = Seeded.Normal(keys * size, 2), v = Seeded.Normal(keys * size, 3), o = new float[q.Length], l = new float[queries], written = new float[queries * keys], added = new float[queries * keys];
        Array.Fill(written, float.NaN);
        bool[] mask = new bool[queries * keys];
        for (int at = 0; at < mask.Length; at++)
            mask[at] = at / keys / document == at % keys / document;
        var problem = new AttentionProblem
        {
            Query = TensorView.Of(q, 1, 1, queries, size), Key = TensorView.Of(k, 1, 1, keys, size), Value = TensorView.Of(v, 1, 1, keys, size),
            Mask = TensorView.Of(mask, 1, 1, queries, keys), DenseBias = TensorView.Of(new float[queries * keys], 1, 1, queries, keys), Causal = true, QueryOffset = ahead,
        };
        using var workspace = new Workspace(Device);
        TensorView output = TensorView.Of(o, 1, 1, queries, size), sums = TensorView.Of(l, 1, 1, queries);
        TransformerKernels.Attention.Forward(Device, problem, output, sums, workspace);
        var saved = new AttentionSaved { Output = output, LogSumExp = sums };
        var upstream = new AttentionUpstream { Output = problem.Query };
        TransformerKernels.Attention.Backward(Device, problem, saved, upstream, new AttentionGradients { DenseBias = TensorView.Of(written, 1, 1, queries, keys) }, workspace);
        TransformerKernels.Attention.Backward(Device, problem, saved, upstream, new AttentionGradients { DenseBias = TensorView.Of(added, 1, 1, queries, keys), Accumulate = true }, workspace);
        Assert.True(written.AsSpan().SequenceEqual(added));
        for (int at = 0; at < mask.Length; at++)
            Assert.True(written[at] == 0 || (mask[at] && at % keys <= at / keys + ahead));
        Assert.True(written.Count(gradient => gradient != 0) > queries * document / 4);
    }

    [Fact]
    public void Bits_are_transposed()
    {
        ulong* bits = stackalloc ulong[64];
        var random = new Random(1);
        ulong[] given = [.. Enumerable.Range(0, 64).Select(_ => (ulong)random.NextInt64(long.MinValue, long.MaxValue))];
        given.CopyTo(new Span<ulong>(bits, 64));
        TileVisibility.Transpose(bits);
        for (int row = 0; row < 64; row++)
        {
            for (int column = 0; column < 64; column++)
                Assert.Equal((given[column] >> row) & 1, (bits[row] >> column) & 1);
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_mask_that_heads_share_has_the_bits_of_one_each(bool causal)
    {
        const int batch = 2, heads = 4, queries = 150, keys = 600;
        foreach (string kind in Shown.Keys)
        {
            AttentionCase.Results[] results = [.. new[] { 1, heads }.Select(masks =>
            {
                Grid<double> mask = Grid.Zeros<double>(batch, masks, queries, keys);
                for (int n = 0; n < mask.Data.Length; n++)
                    mask.Data[n] = Shown[kind](n / keys % queries, n % keys + n / (masks * queries * keys)) ? 1 : 0;
                return new AttentionCase
                {
                    Batch = batch, Heads = heads, KeyHeads = 2, Queries = queries, Keys = keys, Causal = causal, Mask = mask, QueryOffsets = [keys - queries, 11], KeyLengths = [keys, 77], HasLogSumExpUpstream = true,
                }.Run(Device, default(PlainScore));
            })];
            Assert.Equal(results[0].All, results[1].All);
        }
    }

    [Fact]
    public void The_keys_that_a_mask_shows_are_counted_however_it_lies()
    {
        bool[] mask = Seeded.Mask(2 * 7 * 90, 5);
        TensorView rows = TensorView.Of(mask, 2, 1, 7, 90), columns = TensorView.Of(mask, 2, 1, 90, 7).Permute(0, 1, 3, 2), keys = TensorView.Of(mask, 2, 1, 1, 90), queries = TensorView.Of(mask, 2, 1, 7, 1);
        fixed (bool* data = mask)
        {
            foreach (int count in (int[])[0, 1, 63, 64, 90])
            {
                for (int query = 0; query < 7; query++)
                {
                    Assert.Equal(Enumerable.Range(0, count).Count(key => mask[(7 + query) * 90 + key]), new BooleanMask((byte*)data, rows, default, null).Count(1, 0, query, count));
                    Assert.Equal(Enumerable.Range(0, count).Count(key => mask[(90 + key) * 7 + query]), new BooleanMask((byte*)data, columns, default, null).Count(1, 0, query, count));
                    Assert.Equal(mask.AsSpan(90, count).Count(true), new BooleanMask((byte*)data, keys, default, null).Count(1, 0, query, count));
                    Assert.Equal(mask[7 + query] ? count : 0, new BooleanMask((byte*)data, queries, default, null).Count(1, 0, query, count));
                }
            }
        }
    }

    [Fact]
    public void First_bits_are_set_however_many()
    {
        Assert.Equal(0ul, TileVisibility.First(-5));
        Assert.Equal(0ul, TileVisibility.First(0));
        Assert.Equal(0x1ffful, TileVisibility.First(13));
        Assert.Equal(ulong.MaxValue, TileVisibility.First(64));
        Assert.Equal(ulong.MaxValue, TileVisibility.First(1000));
    }

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Parts_hold_all_that_is_seen_in_order_and_begin_and_end_with_something_seen(string kind)
    {
        foreach (int keys in (int[])[64, 61, 6, 1])
        {
            Check<Real32>(kind, keys);
            Check<Lanes128>(kind, keys);
            Check<Lanes256>(kind, keys);
            Check<Lanes512>(kind, keys);
        }

        static void Check<V>(string kind, int keys) where V : struct, ILanes<V>
        {
            float* memory = stackalloc float[TileVisibility.Floats];
            int block = (int)AttentionTiles.Block<V>();
            var seen = new bool[block, keys];
            for (int i = 0; i < block; i++)
            {
                ulong word = 0;
                for (int j = 0; j < keys; j++)
                {
                    seen[i, j] = Shown[kind](i, j);
                    word |= seen[i, j] ? 1ul << j : 0;
                }
                ((ulong*)memory)[i] = word;
            }
            TileVisibility visible = TileVisibility.Cut<V>(memory, keys);
            Assert.Equal(seen.Cast<bool>().Any(shown => !shown), visible.HidesPairs);
            nint before = 0;
            var held = new bool[block, keys];
            foreach (TilePart part in visible.Parts)
            {
                Assert.True(part.FirstKey >= before && part.EndKey > part.FirstKey && part.EndKey <= keys && part.FirstKey % Product.Rows == 0);
                Assert.True(part.FirstVector >= 0 && part.EndVector > part.FirstVector && part.EndVector <= AttentionTiles.Vectors);
                before = part.EndKey;
                for (nint key = part.FirstKey; key < part.EndKey; key += Product.Rows)
                {
                    Assert.True(Sees(part.FirstVector, key) && Sees(part.EndVector - 1, key));
                    for (nint j = key; j < Math.Min(key + Product.Rows, part.EndKey); j++)
                    {
                        for (nint i = part.Lane<V>(); i < part.EndVector * V.Count; i++)
                            held[i, j] = true;
                    }
                }
            }
            for (int i = 0; i < block; i++)
            {
                for (int j = 0; j < keys; j++)
                    Assert.True(held[i, j] || !seen[i, j]);
            }

            bool Sees(nint vector, nint key)
            {
                for (nint i = vector * V.Count; i < (vector + 1) * V.Count; i++)
                {
                    for (nint j = key; j < Math.Min(key + Product.Rows, keys); j++)
                    {
                        if (seen[i, j])
                            return true;
                    }
                }
                return false;
            }
        }
    }

    [Fact]
    public void A_tile_that_is_seen_whole_is_one_part()
    {
        float* memory = stackalloc float[TileVisibility.Floats];
        new Span<ulong>(memory, 64).Fill(TileVisibility.First(41));
        foreach (TileVisibility visible in (TileVisibility[])[new(memory, 41), TileVisibility.Cut<Lanes256>(memory, 41)])
        {
            Assert.False(visible.HidesPairs || visible.LeavesOut(41));
            Assert.Equal((0, 41, 0, AttentionTiles.Vectors), (visible.Parts[0].FirstKey, visible.Parts[0].EndKey, visible.Parts[0].FirstVector, visible.Parts[0].EndVector));
            new Span<ulong>(memory, 64).Fill(TileVisibility.First(41));
        }
    }
}
