using System.Reflection;
using System.Runtime.InteropServices;
using ILGPU;

namespace TransformerKernels.Tests;

/// <summary>The block of parameters that a kernel gets on CUDA for its C# arguments, laid out as ILGPU does.</summary>
/// <remarks>
/// A struct is its fields in their order, each aligned to itself; one without fields takes a byte. An <see cref="ArrayView{T}"/> is an address and a length, 8 bytes each. Each
/// view becomes a region of its own of the memory map.
/// </remarks>
internal sealed class KernelArguments
{
    private const int ViewBytes = 16, ViewAlignment = 8;

    private readonly MemoryMap memory;
    private readonly byte[] bytes;

    private KernelArguments(MemoryMap memory, int length)
    {
        this.memory = memory;
        bytes = new byte[length];
    }

    public static byte[] LayOut(PtxProgram program, MethodInfo kernel, ReadOnlySpan<object> values, MemoryMap memory)
    {
        ParameterInfo[] parameters = kernel.GetParameters();
        var arguments = new KernelArguments(memory, program.ParameterBytes);
        for (int i = 0; i < parameters.Length; i++)
        {
            PtxParameter parameter = program.Parameters[i];
            (int size, _) = Layout(parameters[i].ParameterType);
            if (size != parameter.Size)
                throw new NotSupportedException($"{kernel.Name}'s parameter {parameters[i].Name} has {parameter.Size} bytes in the text; laid out here it has {size}.");
            arguments.Write(parameters[i].Name!, values[i], parameter.Offset);
        }
        return arguments.bytes;
    }

    private void Write(string path, object value, int offset)
    {
        Type type = value.GetType();
        if (value is IContiguousArrayView view)
        {
            // The view of nothing has no buffer.
            ulong address = view.Buffer is { } buffer ? memory.AddView(path, buffer.NativePtr, buffer.LengthInBytes, view.IndexInBytes, view.LengthInBytes) : 0;
            MemoryMarshal.Write(bytes.AsSpan(offset), address);
            MemoryMarshal.Write(bytes.AsSpan(offset + sizeof(ulong)), view.Length);
            return;
        }
        if (IsPrimitive(type))
        {
            byte[] number = new byte[Marshal.SizeOf(type.IsEnum ? type.GetEnumUnderlyingType() : type)];
            GCHandle pinned = GCHandle.Alloc(value, GCHandleType.Pinned);
            Marshal.Copy(pinned.AddrOfPinnedObject(), number, 0, number.Length);
            pinned.Free();
            number.CopyTo(bytes, offset);
            return;
        }
        int end = 0;
        foreach (FieldInfo field in Fields(type))
        {
            (int size, int alignment) = Layout(field.FieldType);
            end = Align(end, alignment);
            Write($"{path}.{Name(field)}", field.GetValue(value)!, offset + end);
            end += size;
        }
    }

    private static (int Size, int Alignment) Layout(Type type)
    {
        if (type.IsAssignableTo(typeof(IContiguousArrayView)))
            return (ViewBytes, ViewAlignment);
        if (IsPrimitive(type))
        {
            int width = Marshal.SizeOf(type.IsEnum ? type.GetEnumUnderlyingType() : type);
            return (width, width);
        }
        int end = 0, widest = 1;
        foreach (FieldInfo field in Fields(type))
        {
            (int size, int alignment) = Layout(field.FieldType);
            end = Align(end, alignment) + size;
            widest = Math.Max(widest, alignment);
        }
        return (Align(Math.Max(end, 1), widest), widest);
    }

    private static int Align(int offset, int alignment) => (offset + alignment - 1) / alignment * alignment;

    private static bool IsPrimitive(Type type) => type.IsPrimitive || type.IsEnum;

    private static IEnumerable<FieldInfo> Fields(Type type) =>
        type.GetFields(BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic).OrderBy(field => field.MetadataToken);

    // "<Score>k__BackingField" is the property Score.
    private static string Name(FieldInfo field) => field.Name is ['<', ..] ? field.Name[1..field.Name.IndexOf('>')] : field.Name;
}
