using System.Runtime.InteropServices;

namespace TransformerKernels.Tests;

/// <summary>Where the tensors of a call lie in a test: in arrays, or beside an inaccessible page.</summary>
public sealed unsafe class CallMemory(CallMemory.Place place) : IDisposable
{
    private readonly Dictionary<string, Array> arrays = [];
    private readonly Dictionary<string, GuardedMemory> guarded = [];
    private Workspace? workspace;

    public enum Place
    {
        Arrays,
        BeforeGuard,
        AfterGuard,
    }

    /// <summary>A tensor that begins with these numbers. The second time the same name gets the same memory, filled again.</summary>
    public TensorView Put<T>(string name, T[] initial, params ReadOnlySpan<long> shape) where T : unmanaged
    {
        if (!arrays.TryGetValue(name, out Array? array))
        {
            arrays.Add(name, array = new T[initial.Length]);
            if (place != Place.Arrays)
                guarded.Add(name, new GuardedMemory((long)initial.Length * sizeof(T), place == Place.BeforeGuard));
        }
        if (place == Place.Arrays)
        {
            initial.CopyTo((T[])array, 0);
            return TensorView.Of((T[])array, shape);
        }
        nint address = guarded[name].Address;
        initial.CopyTo(new Span<T>((void*)address, initial.Length));
        return shape.IsEmpty
            ? TensorView.FromPointer(ComputeDevice.Cpu, address, ElementTypes.Of<T>(), initial.Length)
            : TensorView.FromPointer(ComputeDevice.Cpu, address, ElementTypes.Of<T>(), shape);
    }

    public Workspace Workspace(ComputeDevice device) => workspace ??= new Workspace(device);

    /// <summary>All float tensors as they are now, one after the other.</summary>
    public uint[] Bits()
    {
        var bits = new List<uint>();
        foreach ((string name, Array array) in arrays.OrderBy(pair => pair.Key, StringComparer.Ordinal))
        {
            if (array is not float[] floats)
                continue;
            ReadOnlySpan<float> now = place == Place.Arrays ? floats : new ReadOnlySpan<float>((void*)guarded[name].Address, floats.Length);
            bits.AddRange(MemoryMarshal.Cast<float, uint>(now));
        }
        return [.. bits];
    }

    public void Dispose()
    {
        workspace?.Dispose();
        foreach (GuardedMemory memory in guarded.Values)
            memory.Dispose();
    }
}
