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
