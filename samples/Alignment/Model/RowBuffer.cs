using TransformerKernels;

namespace Alignment;

/// <summary>A matrix whose number of rows changes from batch to batch. The memory stays, and grows when it must.</summary>
internal sealed class RowBuffer(ComputeDevice device, int columns) : IDisposable
{
    private TensorBuffer? buffer;
    private int rows;

    public int Columns => columns;

    /// <summary>Sets the number of rows; what they hold is undefined.</summary>
    public RowBuffer Resize(int count)
    {
        if (buffer is null || (long)count * columns > buffer.ElementCount)
        {
            Dispose();
            buffer = device.Allocate(ElementType.Float32, count, columns);
        }
        rows = count;
        return this;
    }

    /// <summary>[row, column].</summary>
    public TensorView View => buffer!.View.Slice(0, 0, rows);

    /// <summary>[row]: of a buffer with one column.</summary>
    public TensorView Vector => View.Reshape(rows);

    /// <summary>[batch, head, position, headSize]: rows are the positions of all sequences, columns the heads side by side.</summary>
    public TensorView Heads(int batch, int headSize) => View.Reshape(batch, rows / batch, columns / headSize, headSize).Permute(0, 2, 1, 3);

    /// <summary>All rows, copied to the host.</summary>
    public float[] ToArray() => buffer!.ToArray<float>()[..(rows * columns)];

    /// <summary>Sets everything to zero.</summary>
    public void Clear() => buffer!.Clear();

    public void Dispose()
    {
        if (buffer is null)
            return;
        device.Synchronize();
        buffer.Dispose();
        buffer = null;
    }
}
