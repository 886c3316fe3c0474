using Xunit;

namespace TransformerKernels.Tests;

public class TensorBufferTests
{
    private static readonly ComputeDevice Device = ComputeDevice.Cpu;

    [Fact]
    public void A_new_buffer_holds_zeros_in_its_shape()
    {
        using TensorBuffer buffer = Device.Allocate(ElementType.Int64, 2, 3);
        Assert.Equal((ElementType.Int64, 6L, 48L, Device, false), (buffer.Type, buffer.ElementCount, buffer.ByteCount, buffer.Device, buffer.IsDisposed));
        Assert.Equal([2L, 3L], buffer.Shape.ToArray());
        Assert.Equal(new long[6], buffer.ToArray<long>());
        Assert.Same(buffer, buffer.View.Owner);
        Assert.Equal(0, buffer.View.Address % 64);
    }

    [Fact]
    public void What_is_copied_in_comes_out_and_is_seen_through_the_span()
    {
        using TensorBuffer buffer = Device.Upload<float>([1, 2, 3]);
        Assert.Equal([3L], buffer.Shape.ToArray());
        buffer.AsSpan<float>()[1] = 7;
        float[] copy = new float[3];
        buffer.CopyTo(copy.AsSpan());
        Assert.Equal([1f, 7f, 3f], copy);
        buffer.CopyFrom<float>([4, 5, 6]);
        Assert.Equal([4f, 5f, 6f], buffer.ToArray<float>());
        buffer.Clear();
        Assert.Equal(new float[3], buffer.ToArray<float>());
    }

    [Fact]
    public void Buffers_of_nothing_and_of_one_number_work()
    {
        using TensorBuffer nothing = Device.Allocate(ElementType.Float32, 3, 0), one = Device.Allocate(ElementType.Float32);
        Assert.Empty(nothing.ToArray<float>());
        Assert.Equal((0, 1L), (one.View.Rank, one.ElementCount));
        nothing.Clear();
    }

    [Fact]
    public void Wrong_types_counts_and_shapes_throw()
    {
        using TensorBuffer buffer = Device.Allocate(ElementType.Float32, 3);
        Assert.Throws<ArgumentException>("source", () => buffer.CopyFrom<int>([1, 2, 3]));
        Assert.Throws<ArgumentException>("source", () => buffer.CopyFrom<float>([1, 2]));
        Assert.Throws<ArgumentException>("destination", () => buffer.CopyTo(new float[4].AsSpan()));
        Assert.Throws<ArgumentException>(() => buffer.AsSpan<long>().Length);
        Assert.Throws<ArgumentOutOfRangeException>("shape", () => Device.Allocate(ElementType.Float32, 2, -1));
        Assert.Throws<ArgumentException>("shape", () => Device.Allocate(ElementType.Float32, long.MaxValue, 3));
        Assert.Throws<ArgumentException>("shape", () => Device.Allocate(ElementType.Float32, long.MaxValue / 2));
        Assert.Throws<ArgumentException>("shape", () => Device.Allocate(ElementType.Float32, 1, 1, 1, 1, 1, 1, 1));
        Assert.Throws<ArgumentOutOfRangeException>("type", () => Device.Allocate((ElementType)17, 1));
        Assert.Throws<ArgumentException>("T", () => Device.Upload<double>([1]));
        Assert.Throws<ArgumentException>("source", () => Device.Upload<float>([1, 2], 3));
        Assert.Throws<ArgumentNullException>(() => ((TensorView)(TensorBuffer)null!).Rank);
    }

    [Fact]
    public void A_disposed_buffer_throws_and_disposing_it_again_does_nothing()
    {
        TensorBuffer buffer = Device.Allocate(ElementType.Float32, 3);
        buffer.Dispose();
        buffer.Dispose();
        Assert.True(buffer.IsDisposed);
        Assert.Throws<ObjectDisposedException>(() => buffer.View.Rank);
        Assert.Throws<ObjectDisposedException>(() => ((TensorView)buffer).Rank);
        Assert.Throws<ObjectDisposedException>(() => buffer.CopyFrom<float>([1, 2, 3]));
        Assert.Throws<ObjectDisposedException>(() => buffer.ToArray<float>());
        Assert.Throws<ObjectDisposedException>(() => buffer.AsSpan<float>().Length);
        Assert.Throws<ObjectDisposedException>(buffer.Clear);
    }

    [Fact]
    public void A_view_taken_before_its_owner_was_disposed_is_refused_by_operations()
    {
        using RotaryTable table = RotaryTable.Build(Device, 2, 1);
        Assert.Throws<ObjectDisposedException>(() =>
        {
            TensorBuffer buffer = Device.Allocate(ElementType.Float32, 1, 1, 1, 2);
            TensorView view = buffer.View.Slice(1, 0, 1).Permute(1, 0, 2, 3);
            buffer.Dispose();
            RotaryEmbedding.Apply(Device, view, default, table);
        });
    }

    [Fact]
    public void Memory_that_only_a_view_knows_survives_a_collection()
    {
        TensorView view = Forgotten();
        for (int i = 0; i < 3; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }
        float[] gradient = new float[5];
        LogProbs.FromLogits(Device, new() { Logits = view, Targets = TensorView.Of(new long[5]) }, new() { LogProb = TensorView.Of(gradient) });
        Assert.All(gradient, value => Assert.Equal(-MathF.Log(1000), value, 1e-5f));

        static TensorView Forgotten()
        {
            TensorBuffer buffer = Device.Allocate(ElementType.Float32, 5, 1000);
            buffer.AsSpan<float>().Fill(3);
            return buffer;
        }
    }

    [Fact]
    public unsafe void A_copy_of_more_bytes_than_a_span_can_have_is_made_in_parts()
    {
        const int elements = int.MaxValue / 4 + 1000;
        using var buffer = new Recorder(ElementType.Float32, elements);
        // No such memory is needed: nothing touches it.
        buffer.CopyFrom(new ReadOnlySpan<float>((void*)Recorder.Nowhere, elements));
        buffer.CopyTo(new Span<float>((void*)Recorder.Nowhere, elements));
        (long, long)[] parts = [(0L, 1L << 30), (1L << 30, 1L << 30), (1L << 31, 4L * elements - (1L << 31))];
        Assert.Equal([.. parts, .. parts], buffer.Parts);
    }

    [Fact]
    public void More_elements_than_an_array_or_a_span_can_have_are_refused_with_the_way_to_read_them()
    {
        using var buffer = new Recorder(ElementType.Bool, 1L << 32);
        Assert.Contains("CopyTo(span, start)", Assert.Throws<InvalidOperationException>(() => buffer.ToArray<bool>()).Message);
        Assert.Contains("CopyTo(span, start)", Assert.Throws<InvalidOperationException>(() => buffer.AsSpan<bool>()).Message);
    }

    [Fact]
    public void Parts_are_copied_to_and_from()
    {
        using TensorBuffer buffer = ComputeDevice.Cpu.Allocate(ElementType.Int32, 2, 3);
        buffer.CopyFrom<int>([7, 8], start: 2);
        Assert.Equal([0, 0, 7, 8, 0, 0], buffer.ToArray<int>());
        int[] part = new int[3];
        buffer.CopyTo(part.AsSpan(), start: 3);
        Assert.Equal([8, 0, 0], part);
        Assert.Throws<ArgumentOutOfRangeException>("start", () => buffer.CopyTo(part.AsSpan(), start: 4));
        Assert.Throws<ArgumentOutOfRangeException>("start", () => buffer.CopyFrom<int>(part, start: -1));
        Assert.Throws<ArgumentException>("source", () => buffer.CopyFrom<float>([1], start: 0));
    }

    /// <summary>Writes down which bytes are copied, and copies none.</summary>
    private sealed class Recorder(ElementType type, long elements) : TensorBuffer(ComputeDevice.Cpu, type, [elements])
    {
        public static readonly nint Nowhere = 4096;

        public List<(long Offset, long Bytes)> Parts { get; } = [];

        protected override nint BaseAddress => Nowhere;

        protected override nint HostAddress => Nowhere;

        public override void Clear()
        {
        }

        protected override void Upload(ReadOnlySpan<byte> source, long offset) => Parts.Add((offset, source.Length));

        protected override void Download(Span<byte> destination, long offset) => Parts.Add((offset, destination.Length));

        protected override void Free()
        {
        }
    }
}
