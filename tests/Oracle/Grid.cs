using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Numbers in row-major order with a shape. An axis of length 1 is shared: any index along it means 0.</summary>
/// <remarks>So a broadcast tensor is read, and its gradient summed, by the indices of the whole problem.</remarks>
public sealed class Grid<T> where T : INumberBase<T>
{
    public Grid(T[] data, params int[] shape)
    {
        int count = 1;
        foreach (int length in shape)
            count = checked(count * length);
        if (count != data.Length)
            throw new ArgumentException($"{data.Length} numbers don't fill [{string.Join(", ", shape)}].", nameof(data));
        Data = data;
        Shape = shape;
    }

    public T[] Data { get; }

    public int[] Shape { get; }

    public ref T this[params ReadOnlySpan<int> index] => ref Data[Offset(index)];

    /// <summary>The numbers along the last axis, at the indices of the axes before it.</summary>
    public Span<T> Row(params ReadOnlySpan<int> index)
    {
        int length = Shape[^1];
        return Data.AsSpan(Offset(index) * length, length);
    }

    /// <summary>The same numbers, rounded to another type.</summary>
    public Grid<TOther> To<TOther>() where TOther : INumberBase<TOther> => new(Array.ConvertAll(Data, TOther.CreateTruncating), Shape);

    private int Offset(ReadOnlySpan<int> index)
    {
        int offset = 0;
        for (int axis = 0; axis < index.Length; axis++)
        {
            int at = Shape[axis] == 1 ? 0 : index[axis];
            if ((uint)at >= (uint)Shape[axis])
                throw new ArgumentOutOfRangeException(nameof(index), $"Index {at} of axis {axis} is outside [{string.Join(", ", Shape)}].");
            offset = offset * Shape[axis] + at;
        }
        return offset;
    }
}

/// <summary>Makes grids.</summary>
public static class Grid
{
    public static Grid<double> Of(ReadOnlySpan<double> data, params int[] shape) => new(data.ToArray(), shape);

    /// <summary>Every float is a double: nothing is rounded.</summary>
    public static Grid<double> Of(ReadOnlySpan<float> data, params int[] shape) => new(Array.ConvertAll(data.ToArray(), x => (double)x), shape);

    public static Grid<T> Zeros<T>(params int[] shape) where T : INumberBase<T>
    {
        int count = 1;
        foreach (int length in shape)
            count = checked(count * length);
        return new(new T[count], shape);
    }
}
