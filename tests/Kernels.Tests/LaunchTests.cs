using ILGPU;
using Xunit;

namespace TransformerKernels.Tests;

public readonly struct Scaling
{
    public GpuTensor<float> Values { get; init; }
    public float Factor { get; init; }
    public int Rows { get; init; }
    public int Columns { get; init; }
}

/// <summary>left + factor · right, which may be absent.</summary>
public readonly struct Adding
{
    public GpuTensor<float> Left { get; init; }
    public GpuTensor<float> Right { get; init; }
    public GpuTensor<float> Sum { get; init; }
    public GpuTensor<int> Order { get; init; }
    public int Count { get; init; }
}

/// <summary>What a user may write.</summary>
public static class UserKernels
{
    private const int GroupSize = 64;

    public static void Scale(Scaling a)
    {
        long place = (long)Grid.IdxX * Group.DimX + Group.IdxX;
        if (place < (long)a.Rows * a.Columns)
            a.Values[place / a.Columns, place % a.Columns] *= a.Factor;
    }

    /// <summary>Through shared memory: the order names places within the group.</summary>
    public static void Add(float factor, Adding a)
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(GroupSize);
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        tile[Group.IdxX] = i < a.Count ? a.Left[i] : 0f;
        Group.Barrier();
        if (i < a.Count)
            a.Sum[i] = tile[a.Order[i]] + (a.Right.IsPresent ? factor * a.Right[i] : 0f);
    }

    internal static void Hidden(Secret a)
    {
    }

    internal readonly struct Secret;
}

/// <summary>Kernels of the user's on the device's stream.</summary>
public class LaunchTests(GpuUnderTest gpu)
{
    [Fact]
    public void A_users_kernel_sees_strided_tensors_and_runs_in_order()
    {
        const int rows = 5, columns = 7, groupSize = 16;
        float[] data = Enumerable.Range(0, rows * columns).Select(i => (float)i).ToArray();
        using TensorBuffer buffer = gpu.Device.Upload<float>(data, rows, columns);
        TensorView transposed = buffer.View.Permute(1, 0).Slice(0, 1, columns - 1); // all but the first column
        for (int time = 0; time < 3; time++)
        {
            gpu.Device.Launch(UserKernels.Scale, (rows * (columns - 1) + groupSize - 1) / groupSize, groupSize,
                new Scaling { Values = gpu.Device.Tensor<float>(transposed), Factor = 2f, Rows = columns - 1, Columns = rows });
        }
        Assert.Equal(data.Select((x, i) => i % columns == 0 ? x : 8f * x), buffer.ToArray<float>());
    }

    [Fact]
    public void A_users_kernel_has_shared_memory_barriers_and_absent_tensors()
    {
        const int count = 100, groupSize = 64;
        float[] left = Enumerable.Range(0, count).Select(i => (float)i).ToArray();
        int[] order = Enumerable.Range(0, count).Select(i => i < groupSize ? groupSize - 1 - i : i - groupSize).ToArray();
        using TensorBuffer l = gpu.Device.Upload<float>(left), o = gpu.Device.Upload<int>(order), sum = gpu.Device.Allocate(ElementType.Float32, count);
        Run(default);
        Assert.Equal(order.Select((place, i) => left[i / groupSize * groupSize + place]), sum.ToArray<float>());
        Run(l);
        Assert.Equal(order.Select((place, i) => left[i / groupSize * groupSize + place] + 3f * left[i]), sum.ToArray<float>());

        void Run(TensorView right) => gpu.Device.Launch(UserKernels.Add, (count + groupSize - 1) / groupSize, groupSize, 3f, new Adding
        {
            Left = gpu.Device.Tensor<float>(l),
            Right = gpu.Device.Tensor<float>(right),
            Sum = gpu.Device.Tensor<float>(sum),
            Order = gpu.Device.Tensor<int>(o),
            Count = count,
        });
    }

    [Fact]
    public void A_tensor_that_is_none_for_the_kernel_is_refused_by_name()
    {
        using TensorBuffer floats = gpu.Device.Allocate(ElementType.Float32, 2), disposed = gpu.Device.Allocate(ElementType.Float32, 2);
        using TensorBuffer deep = gpu.Device.Allocate(ElementType.Float32, 1, 1, 1, 1, 1), host = ComputeDevice.Cpu.Allocate(ElementType.Float32, 2);
        Assert.Contains("floats holds Float32", Assert.Throws<ArgumentException>(() => gpu.Device.Tensor<int>(floats)).Message);
        Assert.Contains("System.Double", Assert.Throws<ArgumentException>(() => gpu.Device.Tensor<double>(floats)).Message);
        Assert.Contains("host lies in memory", Assert.Throws<ArgumentException>(() => gpu.Device.Tensor<float>(host)).Message);
        Assert.Contains("deep has 5 axes", Assert.Throws<ArgumentException>(() => gpu.Device.Tensor<float>(deep)).Message);
        Assert.Throws<ObjectDisposedException>(() =>
        {
            TensorView view = disposed;
            disposed.Dispose();
            gpu.Device.Tensor<float>(view);
        });
    }

    [Fact]
    public void A_launch_that_cannot_be_is_refused_before_it_is_queued()
    {
        using TensorBuffer values = gpu.Device.Upload<float>([1, 2]);
        var scaling = new Scaling { Values = gpu.Device.Tensor<float>(values), Factor = 2f, Rows = 1, Columns = 2 };
        var thrown = Assert.Throws<NotSupportedException>(() => gpu.Device.Launch(UserKernels.Scale, 1, 1 << 20, scaling));
        Assert.Contains("UserKernels.Scale wants groups of 1048576 threads", thrown.Message);
        Assert.Throws<ArgumentOutOfRangeException>(() => gpu.Device.Launch(UserKernels.Scale, -1, 1, scaling));
        Assert.Throws<ArgumentOutOfRangeException>(() => gpu.Device.Launch(UserKernels.Scale, 1, 0, scaling));
        Assert.Contains("Secret isn't public", Assert.Throws<NotSupportedException>(() => gpu.Device.Launch(UserKernels.Hidden, 1, 1, new UserKernels.Secret())).Message);
        gpu.Device.Launch(UserKernels.Scale, 0, 1, scaling);

        using var source = new CancellationTokenSource();
        source.Cancel();
        using GpuDevice cancelled = gpu.Device.With(source.Token);
        Assert.Throws<OperationCanceledException>(() => cancelled.Launch(UserKernels.Scale, 1, 2, scaling));
        Assert.Equal([1f, 2f], values.ToArray<float>());
    }
}
