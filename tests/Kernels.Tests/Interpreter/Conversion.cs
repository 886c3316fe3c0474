using System.Globalization;
using static TransformerKernels.Tests.Arithmetic;

namespace TransformerKernels.Tests;

/// <summary>The cvt instructions.</summary>
internal static class Conversion
{
    /// <summary>What an opcode such as cvt.rzi.s32.f32 does; null if it isn't known.</summary>
    public static Func<ulong, ulong>? Of(string opcode)
    {
        string[] parts = opcode.Split('.');
        if (parts.Length is < 3 or > 4)
            return null;
        string rounding = parts.Length == 4 ? parts[1] : "", to = parts[^2], from = parts[^1];
        return (to[0], from[0]) switch
        {
            ('f', 'f') => BetweenFloats(to, from, rounding),
            ('f', _) when rounding == "rn" && Integer(from) is { } integer => from[0] == 's' ? FromSigned(to, integer) : FromUnsigned(to, integer),
            (_, 'f') when Rounding(rounding) is { } round && WidenFloat(from) is { } wide => ToInteger(to, round, wide, from == "f64"),
            _ when rounding == "" && Integer(from) is { } source && Integer(to) is { } target => x => target(source(x)),
            _ => null,
        };
    }

    /// <summary>The number that a register holds as this integer type, extended to 64 bits.</summary>
    private static Func<ulong, ulong>? Integer(string type) => type switch
    {
        "s8" => x => (ulong)(sbyte)x,
        "s16" => x => (ulong)(short)x,
        "s32" => x => (ulong)(int)x,
        "s64" or "u64" => x => x,
        "u8" => x => (byte)x,
        "u16" => x => (ushort)x,
        "u32" => x => (uint)x,
        _ => null,
    };

    private static Func<ulong, double>? WidenFloat(string type) => type switch
    {
        "f16" => x => (double)Half(x),
        "f32" => x => Float(x),
        "f64" => Double,
        _ => null,
    };

    private static Func<double, double>? Rounding(string name) => name switch
    {
        "rni" => Math.Round,
        "rzi" => Math.Truncate,
        "rmi" => Math.Floor,
        "rpi" => Math.Ceiling,
        _ => null,
    };

    private static Func<ulong, ulong>? BetweenFloats(string to, string from, string rounding)
    {
        if (WidenFloat(from) is not { } wide)
            return null;
        if (to == from)
        {
            if (Rounding(rounding) is not { } round)
                return null;
            return to switch
            {
                "f16" => x => Bits((Half)round(wide(x))),
                "f32" => x => Bits((float)round(wide(x))),
                _ => x => Bits(round(wide(x))),
            };
        }
        // Widening is exact and names no rounding.
        return (to, from, rounding) switch
        {
            ("f16", _, "rn") => x => Bits((Half)wide(x)),
            ("f32", "f64", "rn") or ("f32", "f16", "") => x => Bits((float)wide(x)),
            ("f64", _, "") => x => Bits(wide(x)),
            _ => null,
        };
    }

    private static Func<ulong, ulong>? FromSigned(string to, Func<ulong, ulong> integer) => to switch
    {
        "f16" => x => Bits((Half)(long)integer(x)),
        "f32" => x => Bits((float)(long)integer(x)),
        "f64" => x => Bits((double)(long)integer(x)),
        _ => null,
    };

    private static Func<ulong, ulong>? FromUnsigned(string to, Func<ulong, ulong> integer) => to switch
    {
        "f16" => x => Bits((Half)integer(x)),
        "f32" => x => Bits((float)integer(x)),
        "f64" => x => Bits((double)integer(x)),
        _ => null,
    };

    // What doesn't fit becomes the nearest that does. NaN becomes 0, or the top bit alone if either type has 64 bits.
    private static Func<ulong, ulong>? ToInteger(string to, Func<double, double> round, Func<ulong, double> wide, bool fromDouble)
    {
        if (!int.TryParse(to.AsSpan(1), CultureInfo.InvariantCulture, out int bits) || bits is not (8 or 16 or 32 or 64) || to[0] is not ('s' or 'u'))
            return null;
        bool signed = to[0] == 's';
        double lowest = signed ? -Math.ScaleB(1, bits - 1) : 0, beyond = Math.ScaleB(1, signed ? bits - 1 : bits);
        ulong nan = fromDouble || bits == 64 ? 1ul << bits - 1 : 0, largest = signed ? (1ul << bits - 1) - 1 : ulong.MaxValue >> 64 - bits;
        return x =>
        {
            double rounded = round(wide(x));
            return double.IsNaN(rounded) ? nan : rounded >= beyond ? largest : signed ? (ulong)(long)Math.Max(rounded, lowest) : (ulong)Math.Max(rounded, lowest);
        };
    }
}
