namespace TransformerKernels;

/// <summary>The type of a tensor's elements: a value, so that any type of the same bits can be viewed without copying.</summary>
public enum ElementType
{
    /// <summary>IEEE 754 binary32.</summary>
    Float32,
    /// <summary>IEEE 754 binary16.</summary>
    Float16,
    /// <summary>The upper half of a binary32: 8 exponent bits, 7 fraction bits.</summary>
    BFloat16,
    /// <summary>Signed 32-bit integer.</summary>
    Int32,
    /// <summary>Signed 64-bit integer.</summary>
    Int64,
    /// <summary>One byte; zero is false, anything else true.</summary>
    Bool,
}

/// <summary>Facts about element types.</summary>
public static class ElementTypes
{
    /// <summary>The number of bytes of one element.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It is no element type.</exception>
    public static int Size(this ElementType type) => type switch
    {
        ElementType.Float32 or ElementType.Int32 => 4,
        ElementType.Float16 or ElementType.BFloat16 => 2,
        ElementType.Int64 => 8,
        ElementType.Bool => 1,
        _ => throw new ArgumentOutOfRangeException(nameof(type), type, "Not an element type."),
    };

    /// <summary>The element type that a .NET type stands for. A two-byte type named BFloat16 of any library counts as bfloat16.</summary>
    /// <exception cref="ArgumentException">It stands for none: it is another than float, Half, BFloat16, int, long or bool.</exception>
    public static ElementType Of<T>() where T : unmanaged
    {
        if (typeof(T) == typeof(float)) return ElementType.Float32;
        if (typeof(T) == typeof(Half)) return ElementType.Float16;
        if (typeof(T) == typeof(int)) return ElementType.Int32;
        if (typeof(T) == typeof(long)) return ElementType.Int64;
        if (typeof(T) == typeof(bool)) return ElementType.Bool;
        if (typeof(T).Name == "BFloat16" && System.Runtime.CompilerServices.Unsafe.SizeOf<T>() == 2) return ElementType.BFloat16;
        throw new ArgumentException($"No element type for {typeof(T)}: a tensor holds float, Half, BFloat16, int, long or bool.", nameof(T));
    }
}
