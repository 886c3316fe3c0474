using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using CsCheck;
using Xunit;

namespace TransformerKernels.Tests;

public class TensorViewTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    [Fact]
    public unsafe void Spans_arrays_tensor_spans_pinned_memory_owners_and_pointers_are_viewed_where_they_lie()
    {
        float[] array = [0, 1, 2, 3, 4, 5];
        fixed (float* first = array)
        {
            Is(TensorView.Of(array, 2, 3), first, writable: true);
            Is(TensorView.Of(array.AsSpan(), 2, 3), first, writable: true);
            Is(TensorView.Of((ReadOnlySpan<float>)array, 2, 3), first, writable: false);
            Is(TensorView.Of(new TensorSpan<float>(array, [2, 3])), first, writable: true);
            Is(TensorView.Of(new ReadOnlyTensorSpan<float>(array, [2, 3])), first, writable: false);
            Is(TensorView.FromPointer(Device, (nint)first, ElementType.Float32, 2, 3), first, writable: true);
        }
        using TensorBuffer buffer = Device.Upload<float>(array, 2, 3);
        Is(buffer, (float*)buffer.View.Address, writable: true);
        float[] pinned = GC.AllocateArray<float>(6, pinned: true);
        array.CopyTo(pinned, 0);
        Is(TensorView.FromPointer(Device, (nint)Unsafe.AsPointer(ref pinned[0]), ElementType.Float32, 2, 3), (float*)Unsafe.AsPointer(ref pinned[0]), writable: true);

        static void Is(TensorView view, float* first, bool writable)
        {
            Assert.True(view.IsPresent);
            Assert.Equal((2, 6L, 2L, 3L, 3L, 1L), (view.Rank, view.ElementCount, view.Length(0), view.Length(1), view.Stride(0), view.Stride(1)));
            Assert.Equal((ElementType.Float32, !writable, true, "[2, 3]"), (view.Type, view.IsReadOnly, view.IsContiguous, view.ShapeText));
            fixed (byte* pinned = view)
            {
                Assert.True((float*)pinned == first);
                Assert.Equal(4f, ((float*)pinned)[1 * view.Stride(0) + 1 * view.Stride(1)]);
            }
        }
    }

    [Fact]
    public unsafe void A_tensor_span_with_strides_keeps_them()
    {
        float[] array = [.. Enumerable.Range(0, 40).Select(i => (float)i)];
        TensorView view = TensorView.Of(new TensorSpan<float>(array, [3, 4], [10, 2]));
        Assert.Equal((10, 2, false), (view.Stride(0), view.Stride(1), view.IsContiguous));
        fixed (byte* first = view)
            Assert.Equal(26f, ((float*)first)[2 * view.Stride(0) + 3 * view.Stride(1)]);
    }

    [Fact]
    public unsafe void An_absent_view_is_null_and_views_of_nothing_are_present()
    {
        TensorView absent = default;
        Assert.False(absent.IsPresent);
        fixed (byte* first = absent)
            Assert.True(first is null);
        TensorView empty = TensorView.Of(Array.Empty<float>(), 0, 5);
        Assert.True(empty.IsPresent && empty.IsContiguous && !empty.AliasesItself);
        Assert.Equal(0, empty.ElementCount);
        Assert.Equal(1, TensorView.Of((float[])[7]).Select(0, 0).ElementCount);
    }

    [Theory]
    [InlineData(typeof(float), ElementType.Float32, 4)]
    [InlineData(typeof(Half), ElementType.Float16, 2)]
    [InlineData(typeof(BFloat16), ElementType.BFloat16, 2)]
    [InlineData(typeof(int), ElementType.Int32, 4)]
    [InlineData(typeof(long), ElementType.Int64, 8)]
    [InlineData(typeof(bool), ElementType.Bool, 1)]
    public void Element_types_stand_for_types_of_their_bits(Type type, ElementType expected, int size)
    {
        Assert.Equal(expected, typeof(ElementTypes).GetMethod(nameof(ElementTypes.Of))!.MakeGenericMethod(type).Invoke(null, null));
        Assert.Equal(size, expected.Size());
    }

    // As other libraries have one.
    private readonly record struct BFloat16(ushort Bits);

    [Fact]
    public void Other_types_are_refused()
    {
        Assert.Throws<ArgumentException>("T", () => TensorView.Of(new double[3]).Rank);
        Assert.Throws<ArgumentException>("T", () => TensorView.Of(new short[3]).Rank);
        Assert.Throws<ArgumentException>("T", () => TensorView.Of(new TensorSpan<double>(new double[3])).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("type", () => ((ElementType)17).Size());
        Assert.Throws<ArgumentOutOfRangeException>("type", () => TensorView.FromPointer(Device, 64, (ElementType)17, 1).Rank);
    }

    [Fact]
    public unsafe void Wrong_shapes_strides_and_addresses_throw()
    {
        Assert.Throws<ArgumentNullException>("data", () => TensorView.Of((float[])null!).Rank);
        Assert.Throws<ArgumentException>("data", () => TensorView.Of(new float[5], 2, 3).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("shape", () => TensorView.Of(new float[5], -1).Rank);
        Assert.Throws<ArgumentException>("shape", () => TensorView.Of(new float[1], 1, 1, 1, 1, 1, 1, 1).Rank);
        Assert.Throws<ArgumentException>("shape", () => TensorView.Of(new float[1], long.MaxValue, 2).Rank);
        Assert.Throws<ArgumentException>("shape", () => TensorView.FromPointer(Device, 64, ElementType.Float32, 1L << 59).Rank);
        Assert.Throws<ArgumentException>("data", () => TensorView.Of(new TensorSpan<float>(new float[1], [1, 1, 1, 1, 1, 1, 1])).Rank);
        Assert.Throws<ArgumentNullException>("pointer", () => TensorView.FromPointer(Device, 0, ElementType.Float32, 1).Rank);
        Assert.Throws<ArgumentNullException>("device", () => TensorView.FromPointer(null!, 64, ElementType.Float32, 1).Rank);
        Assert.Throws<ArgumentException>("pointer", () => TensorView.FromPointer(Device, 66, ElementType.Float32, 1).Rank);
        Assert.Throws<ArgumentException>("strides", () => TensorView.FromPointer(Device, 64, ElementType.Float32, [1, 2], [1]).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("axis", () => TensorView.Of(new float[6], 2, 3).Length(2));
        Assert.Throws<ArgumentOutOfRangeException>("axis", () => TensorView.Of(new float[6], 2, 3).Stride(-1));
        Assert.Throws<ArgumentException>("axes", () => TensorView.Of(new float[6], 2, 3).Permute(0).Rank);
        Assert.Throws<ArgumentException>("axes", () => TensorView.Of(new float[6], 2, 3).Permute(0, 0).Rank);
        Assert.Throws<ArgumentException>("axes", () => TensorView.Of(new float[6], 2, 3).Permute(0, 2).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("start", () => TensorView.Of(new float[6], 2, 3).Slice(1, 2, 2).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("start", () => TensorView.Of(new float[6], 2, 3).Slice(1, -1, 2).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("start", () => TensorView.Of(new float[6], 2, 3).Slice(1, 1, -1).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("start", () => TensorView.Of(new float[6], 2, 3).Slice(1, long.MaxValue, 2).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("axis", () => TensorView.Of(new float[6], 2, 3).Slice(2, 0, 1).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("index", () => TensorView.Of(new float[6], 2, 3).Select(1, 3).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("axis", () => TensorView.Of(new float[6], 2, 3).Select(2, 0).Rank);
        Assert.Throws<ArgumentException>("axis", () => TensorView.Of(new float[6], 2, 3).Expand(1, 3).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("length", () => TensorView.Of(new float[6], 6, 1).Expand(1, -1).Rank);
        Assert.Throws<ArgumentOutOfRangeException>("length", () => TensorView.Of(new float[6], 6, 1).Expand(1, long.MaxValue).Rank);
        Assert.Throws<ArgumentException>("shape", () => TensorView.Of(new float[6], 2, 3).Reshape(5).Rank);
        Assert.Throws<ArgumentException>("shape", () => TensorView.Of(new float[6], 2, 3).Reshape(long.MaxValue, 6).Rank);
        Assert.Throws<InvalidOperationException>(() => TensorView.Of(new float[6], 2, 3).Permute(1, 0).Reshape(6).Rank);
    }

    // In bytes they would wrap around, and two heads lie in one place.
    [Theory]
    [InlineData(1L << 62)]
    [InlineData(-(1L << 62))]
    [InlineData(1L << 59)]
    [InlineData(long.MinValue)]
    [InlineData(long.MaxValue)]
    public void Strides_that_lead_out_of_every_memory_are_refused(long stride)
    {
        Assert.Throws<ArgumentException>("strides", () => TensorView.FromPointer(Device, 64, ElementType.Float32, [1, 2, 3, 4], [24, stride, 4, 1]).Rank);
        Assert.Throws<ArgumentException>("strides", () => TensorView.FromPointer(Device, 64, ElementType.Float32, [3, 2], [1L << 57, stride / 8]).Rank);
    }

    [Fact]
    public void Strides_of_one_element_or_none_lead_nowhere()
    {
        foreach (long stride in (long[])[long.MinValue, -7, 1L << 62, long.MaxValue])
        {
            TensorView one = TensorView.FromPointer(Device, 64, ElementType.Float32, [1, 3], [stride, 1]), none = TensorView.FromPointer(Device, 64, ElementType.Float32, [0, 3], [stride, stride]);
            Assert.Equal((stride == -7 ? -7 : 0, 1L), (one.Stride(0), one.Stride(1)));
            Assert.True(one.IsContiguous && !one.AliasesItself && !none.AliasesItself && !none.Overlaps(one));
            Assert.True(one.Overlaps(TensorView.FromPointer(Device, 72, ElementType.Float32, [1, 3], [stride, 1])));
            Assert.False(one.Overlaps(TensorView.FromPointer(Device, 76, ElementType.Float32, [1, 3], [stride, 1])));
            Assert.Equal(64, none.Slice(1, 2, 1).Address);
            Assert.Equal(64, none.Select(1, 2).Address);
        }
        Assert.Equal(0, TensorView.FromPointer(Device, 64, ElementType.Float32, 0, 1L << 40, 1L << 40).ElementCount);
    }

    [Fact]
    public void Device_memory_cannot_be_pinned() => Assert.Throws<InvalidOperationException>(() =>
    {
        var foreign = new ForeignDevice();
        TensorView view = foreign.View(3);
        _ = view.GetPinnableReference();
    });

    // Every element is followed through a random walk of permutations, slices, selections and reshapes.
    [Fact]
    public unsafe void Permuted_sliced_selected_and_reshaped_views_still_point_at_their_elements() => Gen.Int[0, 1_000_000].Sample(seed =>
    {
        var random = new Random(seed);
        int[] lengths = [.. Enumerable.Range(0, random.Next(1, 5)).Select(_ => random.Next(1, 5))];
        int[] data = [.. Enumerable.Range(0, lengths.Aggregate(1, (a, b) => a * b))];
        TensorView view = TensorView.Of(data, [.. lengths.Select(l => (long)l)]);
        var expected = new Dictionary<string, int>(); // index → number
        Visit(view, (index, number) => expected.Add(index, number));
        Assert.Equal(data, expected.Values);
        for (int step = 0; step < 4 && view.Rank > 0; step++)
        {
            var before = new Dictionary<string, int>(expected);
            expected.Clear();
            int axis = random.Next(view.Rank);
            switch (random.Next(3))
            {
                case 0:
                    int[] order = [.. Enumerable.Range(0, view.Rank).OrderBy(_ => random.Next())];
                    view = view.Permute(order);
                    Visit(view, (index, number) => expected.Add(index, number));
                    foreach ((string index, int number) in expected)
                    {
                        string[] parts = index.Split(','), old = new string[parts.Length];
                        for (int i = 0; i < parts.Length; i++)
                            old[order[i]] = parts[i];
                        Assert.Equal(before[string.Join(',', old)], number);
                    }
                    break;
                case 1:
                    int start = random.Next((int)view.Length(axis)), length = random.Next((int)view.Length(axis) - start + 1);
                    view = view.Slice(axis, start, length);
                    Visit(view, (index, number) => expected.Add(index, number));
                    foreach ((string index, int number) in expected)
                    {
                        string[] parts = index.Split(',');
                        parts[axis] = (int.Parse(parts[axis]) + start).ToString();
                        Assert.Equal(before[string.Join(',', parts)], number);
                    }
                    break;
                default:
                    if (view.Length(axis) == 0)
                        return;
                    int at = random.Next((int)view.Length(axis));
                    view = view.Select(axis, at);
                    Visit(view, (index, number) => expected.Add(index, number));
                    foreach ((string index, int number) in expected)
                    {
                        List<string> parts = index.Length == 0 ? [] : [.. index.Split(',')];
                        parts.Insert(axis, at.ToString());
                        Assert.Equal(before[string.Join(',', parts)], number);
                    }
                    break;
            }
        }
    }, iter: 500);

    private static unsafe void Visit(TensorView view, Action<string, int> action)
    {
        fixed (byte* first = view)
        {
            for (long element = 0; element < view.ElementCount; element++)
            {
                long rest = element, offset = 0;
                var index = new long[view.Rank];
                for (int axis = view.Rank - 1; axis >= 0; axis--)
                {
                    index[axis] = rest % view.Length(axis);
                    rest /= view.Length(axis);
                    offset += index[axis] * view.Stride(axis);
                }
                action(string.Join(',', index), ((int*)first)[offset]);
            }
        }
    }

    [Fact]
    public void Contiguity_is_that_of_row_major_order_whatever_the_strides_of_axes_of_length_1()
    {
        float[] data = new float[24];
        Assert.True(TensorView.Of(data, 2, 3, 4).IsContiguous);
        Assert.True(TensorView.Of(data, 2, 3, 4).Slice(0, 1, 1).IsContiguous);
        Assert.True(TensorView.Of(data, 2, 1, 12).Permute(1, 0, 2).IsContiguous);
        Assert.True(TensorView.Of(data, 2, 3, 4).Slice(1, 0, 1).Slice(0, 0, 1).Permute(2, 0, 1).IsContiguous);
        Assert.False(TensorView.Of(data, 2, 3, 4).Slice(1, 0, 2).IsContiguous);
        Assert.False(TensorView.Of(data, 2, 3, 4).Permute(0, 2, 1).IsContiguous);
    }

    // Truth by marking bytes.
    [Fact]
    public unsafe void Views_that_share_an_element_overlap_and_views_that_alias_are_seen() => Gen.Int[0, 10_000_000].Sample(seed =>
    {
        var random = new Random(seed);
        float[] memory = new float[400];
        fixed (float* first = memory)
        {
            TensorView a = RandomView(random, (nint)(first + 200)), b = RandomView(random, (nint)(first + 200 + random.Next(-8, 9)));
            HashSet<nint> ofA = Addresses(a), ofB = Addresses(b);
            bool share = ofA.Overlaps(ofB);
            Assert.Equal(a.Overlaps(b), b.Overlaps(a));
            if (share)
                Assert.True(a.Overlaps(b), $"missed: {Describe(a)} and {Describe(b)}");
            if (ofA.Count < a.ElementCount)
                Assert.True(a.AliasesItself, $"aliases: {Describe(a)}");
        }
    }, iter: 20_000);

    private static TensorView RandomView(Random random, nint address)
    {
        int rank = random.Next(1, 4);
        long[] shape = [.. Enumerable.Range(0, rank).Select(_ => (long)random.Next(0, 4))], strides = [.. Enumerable.Range(0, rank).Select(_ => (long)random.Next(-12, 13))];
        return TensorView.FromPointer(Device, address, ElementType.Float32, shape, strides);
    }

    private static string Describe(TensorView view) =>
        $"{view.ShapeText} strides {string.Join(' ', Strides(view))} at {view.Address}";

    private static long[] Strides(TensorView view)
    {
        var strides = new long[view.Rank];
        for (int axis = 0; axis < view.Rank; axis++)
            strides[axis] = view.Stride(axis);
        return strides;
    }

    private static HashSet<nint> Addresses(TensorView view)
    {
        var addresses = new HashSet<nint>();
        for (long element = 0; element < view.ElementCount; element++)
        {
            long rest = element;
            nint address = view.Address;
            for (int axis = view.Rank - 1; axis >= 0; axis--)
            {
                address += (nint)(rest % view.Length(axis) * view.Stride(axis) * sizeof(float));
                rest /= view.Length(axis);
            }
            addresses.Add(address);
        }
        return addresses;
    }

    [Fact]
    public void What_is_packed_side_by_side_does_not_overlap()
    {
        float[] packed = new float[2 * 5 * 12 * 8];
        foreach (int[] order in (int[][])[[0, 1, 2, 3], [0, 2, 1, 3]])
        {
            TensorView all = TensorView.Of(packed, 2, 5, 12, 8); // [batch, position, query heads + key heads + value heads, headSize]
            TensorView query = all.Slice(2, 0, 6).Permute(order), key = all.Slice(2, 6, 3).Permute(order), value = all.Slice(2, 9, 3).Permute(order);
            Assert.False(query.Overlaps(key) || key.Overlaps(value) || query.Overlaps(value) || value.Overlaps(query));
            Assert.True(query.Overlaps(all) && all.Slice(2, 0, 7).Permute(order).Overlaps(key) && query.Overlaps(query));
            Assert.False(query.AliasesItself || all.AliasesItself);
        }
        TensorView columns = TensorView.Of(packed, 480, 2);
        Assert.False(columns.Select(1, 0).Overlaps(columns.Select(1, 1)));
        Assert.True(columns.Select(1, 0).Overlaps(columns.Select(0, 7)));
        Assert.False(TensorView.Of(packed).Slice(0, 0, 480).Overlaps(TensorView.Of(packed).Slice(0, 480, 480)));
        Assert.True(TensorView.Of(packed).Slice(0, 0, 481).Overlaps(TensorView.Of(packed).Slice(0, 480, 480)));
        Assert.False(TensorView.Of(packed).Slice(0, 3, 0).Overlaps(TensorView.Of(packed)));
    }

    [Fact]
    public void Views_of_different_element_sizes_over_one_memory_overlap()
    {
        byte[] memory = new byte[64];
        TensorView floats = TensorView.Of(MemoryMarshal.Cast<byte, float>(memory), 8), bytes = TensorView.Of(MemoryMarshal.Cast<byte, bool>(memory.AsSpan(31)), 1);
        Assert.True(floats.Overlaps(bytes) && bytes.Overlaps(floats));
        Assert.False(floats.Overlaps(TensorView.Of(MemoryMarshal.Cast<byte, bool>(memory.AsSpan(32)), 1)));
    }
}
