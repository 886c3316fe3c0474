using TransformerKernels;

namespace Alignment;

/// <summary>Rotated keys, and values, of the positions that a model has seen, for a batch of sequences of equal length.</summary>
internal sealed class KeyValueCache : IDisposable
{
    private readonly ModelMaths maths;
    private readonly TensorBuffer[] keys, values;
    private readonly int batch, capacity, width, headSize;

    public KeyValueCache(ModelMaths maths, LlamaShape shape, int batch, int capacity)
    {
        this.maths = maths;
        (this.batch, this.capacity) = (batch, capacity);
        width = shape.KeyHeads * shape.HeadSize;
        headSize = shape.HeadSize;
        keys = [.. Enumerable.Range(0, shape.Layers).Select(_ => maths.Device.Allocate(ElementType.Float32, batch, capacity, width))];
        values = [.. Enumerable.Range(0, shape.Layers).Select(_ => maths.Device.Allocate(ElementType.Float32, batch, capacity, width))];
    }

    /// <summary>How many positions are held.</summary>
    public int Length { get; private set; }

    /// <summary>Puts the keys and values of new positions behind those that are held.</summary>
    public void Append(int layer, RowBuffer key, RowBuffer value)
    {
        long added = key.View.Length(0) / batch;
        if (Length + added > capacity)
            throw new InvalidOperationException($"The cache holds {capacity} positions; this would be {Length + added}.");
        maths.Copy(key.View.Reshape(batch, added, width), keys[layer].View.Slice(1, Length, added));
        maths.Copy(value.View.Reshape(batch, added, width), values[layer].View.Slice(1, Length, added));
    }

    /// <summary>After the last layer: the new positions count as held.</summary>
    public void Advance(int added) => Length += added;

    /// <summary>[batch, head, position, headSize], so many positions.</summary>
    public TensorView Keys(int layer, int positions) => Heads(keys[layer], positions);

    /// <summary>[batch, head, position, headSize], so many positions.</summary>
    public TensorView Values(int layer, int positions) => Heads(values[layer], positions);

    private TensorView Heads(TensorBuffer buffer, int positions) =>
        buffer.View.Reshape(batch, capacity, width / headSize, headSize).Slice(1, 0, positions).Permute(0, 2, 1, 3);

    public void Dispose()
    {
        maths.Device.Synchronize();
        foreach (TensorBuffer buffer in keys)
            buffer.Dispose();
        foreach (TensorBuffer buffer in values)
            buffer.Dispose();
    }
}
