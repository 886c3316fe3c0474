using System.Runtime.InteropServices;
using System.Text;

namespace Alignment;

/// <summary>A model in GGUF, version 3: named values and named tensors. Reads the element types F32, F16, Q4_1 and Q8_0.</summary>
/// <remarks>
/// Little endian: "GGUF", version, number of tensors, number of values; the values; the tensors' names, shapes, types and offsets; padding; the data.
/// A quantised row is made of blocks of 32 elements. Q4_1: half d, half m, 16 bytes whose low nibbles are elements 0 to 15 and whose high nibbles are 16 to
/// 31; an element is d·q + m. Q8_0: half d, 32 signed bytes; an element is d·q.
/// </remarks>
internal sealed class GgufFile : IDisposable
{
    private const uint Magic = 0x46554747, Version = 3, DefaultAlignment = 32;
    private const int BlockLength = 32, Q41Bytes = 20, Q80Bytes = 34;

    // More axes than any model has; a file that claims so is damaged.
    private const int LargestRank = 8;

    private readonly BinaryReader reader;
    private readonly string path;
    private readonly Dictionary<string, object> values = [];
    private readonly Dictionary<string, GgufTensor> tensors = [];
    private readonly long dataStart;

    public GgufFile(string path)
    {
        this.path = path;
        reader = new(File.OpenRead(path));
        try
        {
            if (reader.ReadUInt32() != Magic)
                throw new InvalidDataException($"{path} is not a GGUF file.");
            uint version = reader.ReadUInt32();
            if (version != Version)
                throw new InvalidDataException($"{path} has GGUF version {version}; this reads version {Version}.");
            ulong tensorCount = reader.ReadUInt64(), valueCount = reader.ReadUInt64();
            for (ulong i = 0; i < valueCount; i++)
                values.Add(ReadText(), ReadValue(reader.ReadUInt32()));
            for (ulong i = 0; i < tensorCount; i++)
            {
                GgufTensor tensor = ReadTensorInfo();
                tensors.Add(tensor.Name, tensor);
            }
            long alignment = Convert.ToInt64(values.GetValueOrDefault("general.alignment", DefaultAlignment));
            dataStart = (reader.BaseStream.Position + alignment - 1) / alignment * alignment;
        }
        catch (Exception exception) when (exception is EndOfStreamException or OverflowException)
        {
            reader.Dispose();
            throw new InvalidDataException($"{path} is damaged: it ends, or counts on, where the header should be.", exception);
        }
        catch
        {
            reader.Dispose();
            throw;
        }
    }

    public IReadOnlyCollection<GgufTensor> Tensors => tensors.Values;

    public bool Has(string key) => values.ContainsKey(key);

    /// <summary>A value; whole numbers of any size as int, numbers as float or double, text, bool, or an array of these.</summary>
    public T Value<T>(string key)
    {
        if (!values.TryGetValue(key, out object? value))
            throw new InvalidDataException($"{path} has no value {key}.");
        if (value is T exact)
            return exact;
        try
        {
            return (T)Convert.ChangeType(value, typeof(T));
        }
        catch (Exception exception) when (exception is InvalidCastException or OverflowException or FormatException)
        {
            throw new InvalidDataException($"{path}: the value {key} is {value}, not {typeof(T).Name}.", exception);
        }
    }

    public T Value<T>(string key, T absent) => Has(key) ? Value<T>(key) : absent;

    /// <summary>Reads a whole tensor, dequantised.</summary>
    public void Read(string name, Span<float> destination)
    {
        if (!tensors.TryGetValue(name, out GgufTensor? tensor))
            throw new InvalidDataException($"{path} has no tensor {name}.");
        if (tensor.Count != destination.Length)
            throw new InvalidDataException($"{path}: tensor {name} has {tensor.Count} elements; the model needs {destination.Length}.");
        reader.BaseStream.Position = dataStart + tensor.Offset;
        var bytes = new byte[tensor.ByteCount];
        try
        {
            reader.BaseStream.ReadExactly(bytes);
        }
        catch (EndOfStreamException exception)
        {
            throw new InvalidDataException($"{path} ends inside tensor {name}.", exception);
        }
        Dequantize(tensor.Type, bytes, destination);
    }

    /// <summary>Turns stored elements into floats.</summary>
    public static void Dequantize(GgufType type, ReadOnlySpan<byte> bytes, Span<float> destination)
    {
        switch (type)
        {
            case GgufType.F32:
                MemoryMarshal.Cast<byte, float>(bytes).CopyTo(destination);
                break;
            case GgufType.F16:
                ReadOnlySpan<Half> halves = MemoryMarshal.Cast<byte, Half>(bytes);
                for (int i = 0; i < halves.Length; i++)
                    destination[i] = (float)halves[i];
                break;
            case GgufType.Q4_1:
                for (int at = 0, to = 0; at < bytes.Length; at += Q41Bytes, to += BlockLength)
                {
                    float scale = (float)MemoryMarshal.Read<Half>(bytes[at..]), least = (float)MemoryMarshal.Read<Half>(bytes[(at + 2)..]);
                    for (int i = 0; i < BlockLength / 2; i++)
                    {
                        byte pair = bytes[at + 4 + i];
                        destination[to + i] = scale * (pair & 15) + least;
                        destination[to + i + BlockLength / 2] = scale * (pair >> 4) + least;
                    }
                }
                break;
            case GgufType.Q8_0:
                for (int at = 0, to = 0; at < bytes.Length; at += Q80Bytes, to += BlockLength)
                {
                    float scale = (float)MemoryMarshal.Read<Half>(bytes[at..]);
                    for (int i = 0; i < BlockLength; i++)
                        destination[to + i] = scale * (sbyte)bytes[at + 2 + i];
                }
                break;
            default:
                throw new NotSupportedException($"GGUF element type {type} is not read here; F32, F16, Q4_1 and Q8_0 are.");
        }
    }

    internal static long ByteCount(GgufType type, long elements) => type switch
    {
        GgufType.F32 => elements * 4,
        GgufType.F16 => elements * 2,
        GgufType.Q4_1 => Blocks(elements) * Q41Bytes,
        GgufType.Q8_0 => Blocks(elements) * Q80Bytes,
        _ => throw new NotSupportedException($"GGUF element type {type} is not read here; F32, F16, Q4_1 and Q8_0 are."),
    };

    private static long Blocks(long elements) => elements % BlockLength == 0 ? elements / BlockLength : throw new InvalidDataException($"{elements} quantised elements are not whole blocks of {BlockLength}.");

    private GgufTensor ReadTensorInfo()
    {
        string name = ReadText();
        uint rank = reader.ReadUInt32();
        if (rank > LargestRank)
            throw new InvalidDataException($"{path}: tensor {name} claims {rank} axes.");
        // The file names the fastest axis first.
        var shape = new long[rank];
        for (uint axis = 0; axis < rank; axis++)
            shape[rank - 1 - axis] = checked((long)reader.ReadUInt64());
        return new(name, shape, (GgufType)reader.ReadUInt32(), checked((long)reader.ReadUInt64()));
    }

    private object ReadValue(uint type) => type switch
    {
        0 => reader.ReadByte(),
        1 => reader.ReadSByte(),
        2 => reader.ReadUInt16(),
        3 => reader.ReadInt16(),
        4 => reader.ReadUInt32(),
        5 => reader.ReadInt32(),
        6 => reader.ReadSingle(),
        7 => reader.ReadByte() != 0,
        8 => ReadText(),
        9 => ReadArray(),
        10 => reader.ReadUInt64(),
        11 => reader.ReadInt64(),
        12 => reader.ReadDouble(),
        _ => throw new InvalidDataException($"{path} holds a value of the unknown type {type}."),
    };

    private Array ReadArray()
    {
        uint type = reader.ReadUInt32();
        var items = new object[Length(reader.ReadUInt64())];
        for (int i = 0; i < items.Length; i++)
            items[i] = ReadValue(type);
        if (items.Length == 0)
            return items;
        var array = Array.CreateInstance(items[0].GetType(), items.Length);
        Array.Copy(items, array, items.Length);
        return array;
    }

    private string ReadText() => Encoding.UTF8.GetString(ReadBytes(Length(reader.ReadUInt64())));

    private byte[] ReadBytes(int count)
    {
        byte[] bytes = reader.ReadBytes(count);
        return bytes.Length == count ? bytes : throw new EndOfStreamException();
    }

    // A count larger than the rest of the file is damage, found before memory is asked for.
    private int Length(ulong count) => count <= (ulong)(reader.BaseStream.Length - reader.BaseStream.Position) ? checked((int)count) : throw new EndOfStreamException();

    public void Dispose() => reader.Dispose();
}

/// <summary>GGUF's numbers of the element types that are read here.</summary>
internal enum GgufType : uint
{
    F32 = 0,
    F16 = 1,
    Q4_1 = 3,
    Q8_0 = 8,
}

/// <summary>A tensor of a GGUF file.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Shape">Slowest axis first.</param>
/// <param name="Type">How its elements are stored.</param>
/// <param name="Offset">In bytes, from the start of the data.</param>
internal sealed record GgufTensor(string Name, long[] Shape, GgufType Type, long Offset)
{
    public long Count => Shape.Aggregate(1L, (product, length) => checked(product * length));

    public long ByteCount => GgufFile.ByteCount(Type, Count);
}
