using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>Rows that move by a list of places.</summary>
public readonly struct RowArguments
{
    /// <summary>[any, width].</summary>
    public GpuTensor<float> From { get; init; }

    /// <summary>[any, width].</summary>
    public GpuTensor<float> To { get; init; }

    /// <summary>[count].</summary>
    public GpuTensor<int> Places { get; init; }

    public int Count { get; init; }
    public int Width { get; init; }
}

/// <summary>Rows that are added up by token.</summary>
public readonly struct TokenSumArguments
{
    /// <summary>[rows, width].</summary>
    public GpuTensor<float> Values { get; init; }

    /// <summary>[vocabulary, width], added to.</summary>
    public GpuTensor<float> Table { get; init; }

    /// <summary>As <see cref="TokenBatch.OrderView"/>.</summary>
    public GpuTensor<int> Order { get; init; }

    /// <summary>As <see cref="TokenBatch.DistinctView"/>.</summary>
    public GpuTensor<int> Distinct { get; init; }

    /// <summary>As <see cref="TokenBatch.GroupView"/>.</summary>
    public GpuTensor<int> Groups { get; init; }

    public int Width { get; init; }
}

/// <summary>A tensor of three axes and its copy.</summary>
public readonly struct CopyArguments
{
    public GpuTensor<float> From { get; init; }
    public GpuTensor<float> To { get; init; }

    /// <summary>The product of the lengths.</summary>
    public long Count { get; init; }

    /// <summary>The length of the second axis.</summary>
    public long Rows { get; init; }

    /// <summary>The length of the last axis.</summary>
    public long Width { get; init; }
}

/// <summary>A vector and the number that fills it.</summary>
public readonly struct FillArguments
{
    public GpuTensor<float> Vector { get; init; }
    public float Value { get; init; }
    public int Count { get; init; }
}

/// <summary>Moves rows and copies of tensors; adds rows up by token, without atomics: the host has sorted them.</summary>
internal static class RowKernels
{
    public const int GroupSize = 64;

    /// <summary>to[i] = from[places[i]]: a thread an element.</summary>
    public static void Gather(RowArguments a)
    {
        int element = Grid.IdxX * GroupSize + Group.IdxX, row = element / a.Width, column = element % a.Width;
        if (row < a.Count)
            a.To[row, column] = a.From[a.Places[row], column];
    }

    /// <summary>to[places[i]] = from[i]: a thread an element.</summary>
    public static void Scatter(RowArguments a)
    {
        int element = Grid.IdxX * GroupSize + Group.IdxX, row = element / a.Width, column = element % a.Width;
        if (row < a.Count)
            a.To[a.Places[row], column] = a.From[row, column];
    }

    /// <summary>A thread adds one column of all rows of one token, in their order.</summary>
    public static void AddByToken(TokenSumArguments a)
    {
        int tiles = (a.Width + GroupSize - 1) / GroupSize, group = Grid.IdxX / tiles;
        int column = Grid.IdxX % tiles * GroupSize + Group.IdxX;
        if (column >= a.Width)
            return;
        int end = a.Groups[group + 1];
        float sum = 0f;
        for (int i = a.Groups[group]; i < end; i++)
            sum += a.Values[a.Order[i], column];
        a.Table[a.Distinct[group], column] += sum;
    }

    /// <summary>A thread an element.</summary>
    public static void Copy(CopyArguments a)
    {
        long element = (long)Grid.IdxX * GroupSize + Group.IdxX;
        if (element >= a.Count)
            return;
        long column = element % a.Width, rest = element / a.Width, row = rest % a.Rows, outer = rest / a.Rows;
        a.To[outer, row, column] = a.From[outer, row, column];
    }

    /// <summary>A thread an element.</summary>
    public static void Fill(FillArguments a)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i < a.Count)
            a.Vector[i] = a.Value;
    }
}
