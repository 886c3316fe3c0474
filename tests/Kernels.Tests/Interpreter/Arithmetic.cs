using System.Numerics;

namespace TransformerKernels.Tests;

/// <summary>The instructions that make one number of up to three. A register holds 64 bits; each instruction looks at as many as its type has.</summary>
/// <remarks>
/// Floats are rounded to nearest even, as .NET's operators do, and subnormal numbers are kept. Nothing is approximated and nothing fused that the text doesn't
/// fuse; an instruction that isn't here (all that are .approx, .ftz or .sat, for example) is unknown.
/// </remarks>
internal static class Arithmetic
{
    public static Func<ulong, ulong>? Unary(string opcode) => opcode switch
    {
        "mov.pred" or "mov.b64" or "mov.u64" or "mov.s64" or "mov.f64" => x => x,
        "mov.b32" or "mov.u32" or "mov.s32" or "mov.f32" => x => (uint)x,
        "mov.b16" or "mov.u16" or "mov.s16" or "mov.b8" => x => (ushort)x,
        // Addresses of global memory are generic addresses.
        "cvta.global.u64" or "cvta.to.global.u64" => x => x,
        "cvta.shared.u64" => x => x + MemoryMap.SharedWindow,
        "cvta.to.shared.u64" => x => x - MemoryMap.SharedWindow,

        "neg.s16" => x => (ushort)-(short)x,
        "neg.s32" => x => (uint)-(int)x,
        "neg.s64" => x => 0 - x,
        "neg.f16" => x => x ^ 0x8000,
        "neg.f32" => x => x ^ 0x8000_0000,
        "neg.f64" => x => x ^ 0x8000_0000_0000_0000,
        "abs.s16" => x => (ushort)((short)x < 0 ? -(short)x : (short)x),
        "abs.s32" => x => (uint)((int)x < 0 ? -(int)x : (int)x),
        "abs.s64" => x => (long)x < 0 ? 0 - x : x,
        "abs.f16" => x => x & 0x7FFF,
        "abs.f32" => x => x & 0x7FFF_FFFF,
        "abs.f64" => x => x & 0x7FFF_FFFF_FFFF_FFFF,
        "not.pred" => x => x ^ 1,
        "not.b16" => x => (ushort)~x,
        "not.b32" => x => (uint)~x,
        "not.b64" => x => ~x,
        "cnot.b32" => x => (uint)x == 0 ? 1u : 0u,
        "popc.b32" => x => (ulong)BitOperations.PopCount((uint)x),
        "popc.b64" => x => (ulong)BitOperations.PopCount(x),
        "clz.b32" => x => (ulong)BitOperations.LeadingZeroCount((uint)x),
        "clz.b64" => x => (ulong)BitOperations.LeadingZeroCount(x),
        "brev.b32" => x => Reverse(x, 32),
        "brev.b64" => x => Reverse(x, 64),

        "sqrt.rn.f32" => x => Bits(MathF.Sqrt(Float(x))),
        "sqrt.rn.f64" => x => Bits(Math.Sqrt(Double(x))),
        "rcp.rn.f32" => x => Bits(1f / Float(x)),
        "rcp.rn.f64" => x => Bits(1.0 / Double(x)),
        "testp.notanumber.f32" => x => Truth(float.IsNaN(Float(x))),
        "testp.notanumber.f64" => x => Truth(double.IsNaN(Double(x))),
        "testp.infinite.f32" => x => Truth(float.IsInfinity(Float(x))),
        "testp.infinite.f64" => x => Truth(double.IsInfinity(Double(x))),
        "testp.finite.f32" => x => Truth(float.IsFinite(Float(x))),
        "testp.finite.f64" => x => Truth(double.IsFinite(Double(x))),
        _ when opcode.StartsWith("cvt.", StringComparison.Ordinal) => Conversion.Of(opcode),
        _ => null,
    };

    public static Func<ulong, ulong, ulong>? Binary(string opcode) => opcode switch
    {
        "add.s16" or "add.u16" => (x, y) => (ushort)(x + y),
        "add.s32" or "add.u32" => (x, y) => (uint)(x + y),
        "add.s64" or "add.u64" => (x, y) => x + y,
        "add.f16" => (x, y) => Bits((Half)((float)Half(x) + (float)Half(y))),
        "add.f32" or "add.rn.f32" => (x, y) => Bits(Float(x) + Float(y)),
        "add.f64" or "add.rn.f64" => (x, y) => Bits(Double(x) + Double(y)),
        "sub.s16" or "sub.u16" => (x, y) => (ushort)(x - y),
        "sub.s32" or "sub.u32" => (x, y) => (uint)(x - y),
        "sub.s64" or "sub.u64" => (x, y) => x - y,
        "sub.f16" => (x, y) => Bits((Half)((float)Half(x) - (float)Half(y))),
        "sub.f32" or "sub.rn.f32" => (x, y) => Bits(Float(x) - Float(y)),
        "sub.f64" or "sub.rn.f64" => (x, y) => Bits(Double(x) - Double(y)),
        "mul.lo.s16" or "mul.lo.u16" => (x, y) => (ushort)(x * y),
        "mul.lo.s32" or "mul.lo.u32" => (x, y) => (uint)(x * y),
        "mul.lo.s64" or "mul.lo.u64" => (x, y) => x * y,
        "mul.hi.s32" => (x, y) => (uint)((long)(int)x * (int)y >> 32),
        "mul.hi.u32" => (x, y) => (ulong)(uint)x * (uint)y >> 32,
        "mul.hi.s64" => (x, y) => (ulong)Math.BigMul((long)x, (long)y, out _),
        "mul.hi.u64" => (x, y) => Math.BigMul(x, y, out _),
        "mul.wide.s16" => (x, y) => (uint)((short)x * (short)y),
        "mul.wide.u16" => (x, y) => (uint)((ushort)x * (ushort)y),
        "mul.wide.s32" => (x, y) => (ulong)((long)(int)x * (int)y),
        "mul.wide.u32" => (x, y) => (ulong)(uint)x * (uint)y,
        "mul.f16" => (x, y) => Bits((Half)((float)Half(x) * (float)Half(y))),
        "mul.f32" or "mul.rn.f32" => (x, y) => Bits(Float(x) * Float(y)),
        "mul.f64" or "mul.rn.f64" => (x, y) => Bits(Double(x) * Double(y)),
        // −1 apart: .NET throws where the quotient doesn't fit.
        "div.s16" => (x, y) => (ushort)((short)x / (short)y),
        "div.u16" => (x, y) => (uint)(ushort)x / (ushort)y,
        "div.s32" => (x, y) => (uint)((long)(int)x / (int)y),
        "div.u32" => (x, y) => (uint)x / (uint)y,
        "div.s64" => (x, y) => (long)y == -1 ? 0 - x : (ulong)((long)x / (long)y),
        "div.u64" => (x, y) => x / y,
        "div.rn.f32" => (x, y) => Bits(Float(x) / Float(y)),
        "div.rn.f64" => (x, y) => Bits(Double(x) / Double(y)),
        "rem.s16" => (x, y) => (ushort)((short)x % (short)y),
        "rem.u16" => (x, y) => (uint)(ushort)x % (ushort)y,
        "rem.s32" => (x, y) => (uint)((long)(int)x % (int)y),
        "rem.u32" => (x, y) => (uint)x % (uint)y,
        "rem.s64" => (x, y) => (long)y == -1 ? 0 : (ulong)((long)x % (long)y),
        "rem.u64" => (x, y) => x % y,

        "and.pred" or "and.b16" or "and.b32" or "and.b64" => (x, y) => x & y,
        "or.pred" or "or.b16" or "or.b32" or "or.b64" => (x, y) => x | y,
        "xor.pred" or "xor.b16" or "xor.b32" or "xor.b64" => (x, y) => x ^ y,
        // Too far a shift is one by the width, not, as in C#, by the rest.
        "shl.b16" => (x, y) => (uint)y > 15 ? 0ul : (ushort)(x << (int)y),
        "shl.b32" => (x, y) => (uint)y > 31 ? 0 : (uint)x << (int)y,
        "shl.b64" => (x, y) => (uint)y > 63 ? 0 : x << (int)y,
        "shr.b16" or "shr.u16" => (x, y) => (uint)y > 15 ? 0 : (uint)(ushort)x >> (int)y,
        "shr.b32" or "shr.u32" => (x, y) => (uint)y > 31 ? 0 : (uint)x >> (int)y,
        "shr.b64" or "shr.u64" => (x, y) => (uint)y > 63 ? 0 : x >> (int)y,
        "shr.s16" => (x, y) => (ushort)((short)x >> (int)Math.Min((uint)y, 15)),
        "shr.s32" => (x, y) => (uint)((int)x >> (int)Math.Min((uint)y, 31)),
        "shr.s64" => (x, y) => (ulong)((long)x >> (int)Math.Min((uint)y, 63)),

        // Of a number and a NaN, the number.
        "min.s16" => (x, y) => (ushort)Math.Min((short)x, (short)y),
        "min.u16" => (x, y) => Math.Min((ushort)x, (ushort)y),
        "min.s32" => (x, y) => (uint)Math.Min((int)x, (int)y),
        "min.u32" => (x, y) => Math.Min((uint)x, (uint)y),
        "min.s64" => (x, y) => (ulong)Math.Min((long)x, (long)y),
        "min.u64" => (x, y) => Math.Min(x, y),
        "min.f16" => (x, y) => Bits(System.Half.MinNumber(Half(x), Half(y))),
        "min.f32" => (x, y) => Bits(float.MinNumber(Float(x), Float(y))),
        "min.f64" => (x, y) => Bits(double.MinNumber(Double(x), Double(y))),
        "max.s16" => (x, y) => (ushort)Math.Max((short)x, (short)y),
        "max.u16" => (x, y) => Math.Max((ushort)x, (ushort)y),
        "max.s32" => (x, y) => (uint)Math.Max((int)x, (int)y),
        "max.u32" => (x, y) => Math.Max((uint)x, (uint)y),
        "max.s64" => (x, y) => (ulong)Math.Max((long)x, (long)y),
        "max.u64" => (x, y) => Math.Max(x, y),
        "max.f16" => (x, y) => Bits(System.Half.MaxNumber(Half(x), Half(y))),
        "max.f32" => (x, y) => Bits(float.MaxNumber(Float(x), Float(y))),
        "max.f64" => (x, y) => Bits(double.MaxNumber(Double(x), Double(y))),
        // The sign of the first with the size of the second.
        "copysign.f32" => (x, y) => (x & 0x8000_0000) | (y & 0x7FFF_FFFF),
        "copysign.f64" => (x, y) => (x & 0x8000_0000_0000_0000) | (y & 0x7FFF_FFFF_FFFF_FFFF),
        _ => null,
    };

    public static Func<ulong, ulong, ulong, ulong>? Ternary(string opcode) => opcode switch
    {
        "mad.lo.s16" or "mad.lo.u16" => (x, y, z) => (ushort)(x * y + z),
        "mad.lo.s32" or "mad.lo.u32" => (x, y, z) => (uint)(x * y + z),
        "mad.lo.s64" or "mad.lo.u64" => (x, y, z) => x * y + z,
        "mad.wide.s32" => (x, y, z) => (ulong)((long)(int)x * (int)y) + z,
        "mad.wide.u32" => (x, y, z) => (ulong)(uint)x * (uint)y + z,
        "fma.rn.f16" => (x, y, z) => Bits((Half)Math.FusedMultiplyAdd((double)Half(x), (double)Half(y), (double)Half(z))),
        "fma.rn.f32" => (x, y, z) => Bits(MathF.FusedMultiplyAdd(Float(x), Float(y), Float(z))),
        "fma.rn.f64" => (x, y, z) => Bits(Math.FusedMultiplyAdd(Double(x), Double(y), Double(z))),
        "selp.b16" or "selp.b32" or "selp.b64" or "selp.s32" or "selp.u32" or "selp.s64" or "selp.u64" or "selp.f32" or "selp.f64" => (x, y, z) => z != 0 ? x : y,
        "slct.b32.s32" or "slct.f32.s32" or "slct.b64.s32" or "slct.s32.s32" or "slct.u32.s32" => (x, y, z) => (int)z >= 0 ? x : y,
        "slct.b32.f32" or "slct.f32.f32" or "slct.b64.f32" => (x, y, z) => Float(z) >= 0 ? x : y,
        "bfe.u32" => (x, y, z) => Field((uint)x, (uint)y, (uint)z),
        "bfe.s32" => (x, y, z) => SignedField((uint)x, (uint)y, (uint)z),
        _ => null,
    };

    /// <summary>bfi: the bits of x, as many as length says, put into y from a position on.</summary>
    public static ulong Insert(ulong x, ulong y, ulong position, ulong length)
    {
        int from = (int)(position & 0xFF), count = (int)Math.Min(length & 0xFF, 32);
        ulong mask = from > 31 ? 0 : (1ul << count) - 1 << from & uint.MaxValue;
        return from > 31 ? (uint)y : (uint)y & ~mask | x << from & mask;
    }

    /// <summary>The comparison of a setp, by name and type.</summary>
    public static Func<ulong, ulong, bool>? Comparison(string name, string type) => (name, type) switch
    {
        ("eq", "s16" or "u16" or "b16") => (x, y) => (ushort)x == (ushort)y,
        ("ne", "s16" or "u16" or "b16") => (x, y) => (ushort)x != (ushort)y,
        ("eq", "s32" or "u32" or "b32") => (x, y) => (uint)x == (uint)y,
        ("ne", "s32" or "u32" or "b32") => (x, y) => (uint)x != (uint)y,
        ("eq", "s64" or "u64" or "b64") => (x, y) => x == y,
        ("ne", "s64" or "u64" or "b64") => (x, y) => x != y,
        (_, "s16") => Ordered(name, (x, y) => ((short)x).CompareTo((short)y)),
        (_, "u16") => Ordered(name, (x, y) => ((ushort)x).CompareTo((ushort)y)),
        ("lt", "s32") => (x, y) => (int)x < (int)y,
        ("le", "s32") => (x, y) => (int)x <= (int)y,
        ("gt", "s32") => (x, y) => (int)x > (int)y,
        ("ge", "s32") => (x, y) => (int)x >= (int)y,
        (_, "u32") => Ordered(name, (x, y) => ((uint)x).CompareTo((uint)y)),
        ("lt", "s64") => (x, y) => (long)x < (long)y,
        ("le", "s64") => (x, y) => (long)x <= (long)y,
        ("gt", "s64") => (x, y) => (long)x > (long)y,
        ("ge", "s64") => (x, y) => (long)x >= (long)y,
        (_, "u64") => Ordered(name, (x, y) => x.CompareTo(y)),
        (_, "f16") => OfFloats(name) is { } compare ? (x, y) => compare((double)Half(x), (double)Half(y)) : null,
        (_, "f32") => OfFloats(name) is { } compare ? (x, y) => compare(Float(x), Float(y)) : null,
        (_, "f64") => OfFloats(name) is { } compare ? (x, y) => compare(Double(x), Double(y)) : null,
        _ => null,
    };

    private static Func<ulong, ulong, bool>? Ordered(string name, Func<ulong, ulong, int> order) => name switch
    {
        "lt" or "lo" => (x, y) => order(x, y) < 0,
        "le" or "ls" => (x, y) => order(x, y) <= 0,
        "gt" or "hi" => (x, y) => order(x, y) > 0,
        "ge" or "hs" => (x, y) => order(x, y) >= 0,
        _ => null,
    };

    // With a NaN the plain names are false and those that end in u are true.
    private static Func<double, double, bool>? OfFloats(string name) => name switch
    {
        "eq" => (x, y) => x == y,
        "ne" => (x, y) => x < y || x > y,
        "lt" => (x, y) => x < y,
        "le" => (x, y) => x <= y,
        "gt" => (x, y) => x > y,
        "ge" => (x, y) => x >= y,
        "equ" => (x, y) => !(x < y || x > y),
        "neu" => (x, y) => x != y,
        "ltu" => (x, y) => !(x >= y),
        "leu" => (x, y) => !(x > y),
        "gtu" => (x, y) => !(x <= y),
        "geu" => (x, y) => !(x < y),
        "num" => (x, y) => !double.IsNaN(x) && !double.IsNaN(y),
        "nan" => (x, y) => double.IsNaN(x) || double.IsNaN(y),
        _ => null,
    };

    private static ulong Reverse(ulong x, int bits)
    {
        ulong reversed = 0;
        for (int i = 0; i < bits; i++)
            reversed |= (x >> i & 1) << bits - 1 - i;
        return reversed;
    }

    private static uint Field(uint x, uint position, uint length)
    {
        position &= 0xFF;
        length &= 0xFF;
        return position > 31 ? 0 : (uint)(x >> (int)position & (1ul << (int)Math.Min(length, 32)) - 1);
    }

    private static uint SignedField(uint x, uint position, uint length)
    {
        position &= 0xFF;
        length &= 0xFF;
        if (length == 0)
            return 0;
        // Beyond the top stand copies of the sign.
        long extended = (int)x;
        int count = (int)Math.Min(length, 32);
        return (uint)(int)(extended >> (int)Math.Min(position, 63) << 64 - count >> 64 - count);
    }

    public static ulong Truth(bool x) => x ? 1u : 0u;

    public static Half Half(ulong x) => BitConverter.UInt16BitsToHalf((ushort)x);

    public static float Float(ulong x) => BitConverter.UInt32BitsToSingle((uint)x);

    public static double Double(ulong x) => BitConverter.UInt64BitsToDouble(x);

    public static ulong Bits(Half x) => BitConverter.HalfToUInt16Bits(x);

    public static ulong Bits(float x) => BitConverter.SingleToUInt32Bits(x);

    public static ulong Bits(double x) => BitConverter.DoubleToUInt64Bits(x);
}
