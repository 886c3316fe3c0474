using TransformerKernels;

namespace Alignment;

/// <summary>Lists of whole numbers that the host writes anew for each batch and the device reads: one copy for all of them.</summary>
internal sealed class IndexLists(ComputeDevice device) : IDisposable
{
    private TensorBuffer? buffer;
    private int[] numbers = [];
    private int count;

    /// <summary>Forgets all lists.</summary>
    public void Clear() => count = 0;

    /// <summary>Makes room for a list. What was taken from <see cref="this[Range]"/> before is no longer this one's memory.</summary>
    public Range Add(int length)
    {
        int start = count;
        count = checked(count + length);
        if (count > numbers.Length)
            Array.Resize(ref numbers, Math.Max(count, 2 * numbers.Length));
        return start..count;
    }

    /// <summary>A list, on the host.</summary>
    public Span<int> this[Range list] => numbers.AsSpan(list);

    /// <summary>A list on the device, as it was sent.</summary>
    public TensorView View(Range list)
    {
        (int start, int length) = list.GetOffsetAndLength(numbers.Length);
        return buffer!.View.Slice(0, start, length);
    }

    /// <summary>Copies all lists to the device.</summary>
    public void Send()
    {
        if (buffer?.ElementCount != numbers.Length)
        {
            Dispose();
            buffer = device.Allocate(ElementType.Int32, numbers.Length);
        }
        buffer.CopyFrom<int>(numbers);
    }

    public void Dispose()
    {
        device.Synchronize();
        buffer?.Dispose();
        buffer = null;
    }
}
