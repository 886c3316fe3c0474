using System.Runtime.InteropServices;

namespace TransformerKernels.Tests;

/// <summary>Where the tensors of a call lie in a test: in arrays, or beside an inaccessible page.</summary>
public sealed unsafe class CallMemory(CallMemory.Place place) : IDisposable
{
    private readonly Dictionary<string, (Array Numbers, int Bytes)> arrays = [];
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
        if (!arrays.TryGetValue(name, out (Array Numbers, int Bytes) own))
        {
            arrays.Add(name, own = (new T[initial.Length], initial.Length * sizeof(T)));
            if (place != Place.Arrays)
                guarded.Add(name, new GuardedMemory((long)initial.Length * sizeof(T), place == Place.BeforeGuard));
        }
        if (place == Place.Arrays)
        {
            initial.CopyTo((T[])own.Numbers, 0);
            return TensorView.Of((T[])own.Numbers, shape);
        }
        nint address = guarded[name].Address;
        initial.CopyTo(new Span<T>((void*)address, initial.Length));
        return shape.IsEmpty
            ? TensorView.FromPointer(ComputeDevice.Cpu, address, ElementTypes.Of<T>(), initial.Length)
            : TensorView.FromPointer(ComputeDevice.Cpu, address, ElementTypes.Of<T>(), shape);
    }

    public Workspace Workspace(ComputeDevice device) => workspace ??= new Workspace(device);

    /// <summary>The bytes of all tensors as they are now, one after the other.</summary>
    public byte[] Bits()
    {
        var bits = new List<byte>();
        foreach ((string name, (Array numbers, int bytes)) in arrays.OrderBy(pair => pair.Key, StringComparer.Ordinal))
            bits.AddRange(place == Place.Arrays ? MemoryMarshal.CreateReadOnlySpan(ref MemoryMarshal.GetArrayDataReference(numbers), bytes) : new ReadOnlySpan<byte>((void*)guarded[name].Address, bytes));
        return [.. bits];
    }

    public void Dispose()
    {
        workspace?.Dispose();
        foreach (GuardedMemory memory in guarded.Values)
            memory.Dispose();
    }
}
