using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Kernels turn numbers of 16 bits to float32 and back in integers: as .NET does.</summary>
public class GpuStorageTests
{
    [Fact]
    public void Every_float16_and_every_bfloat16_is_read_as_it_is()
    {
        for (int bits = 0; bits <= ushort.MaxValue; bits++)
        {
            Assert.Equal((float)BitConverter.UInt16BitsToHalf((ushort)bits), GpuStorage.OfFloat16(bits));
            Assert.Equal(BitConverter.UInt32BitsToSingle((uint)bits << 16), GpuStorage.OfBFloat16(bits));
        }
    }

    [Fact]
    public void Every_float16_its_neighbours_and_what_lies_between_two_are_rounded_to_even()
    {
        for (int bits = 0; bits <= ushort.MaxValue; bits++)
        {
            float x = (float)BitConverter.UInt16BitsToHalf((ushort)bits), next = (float)BitConverter.UInt16BitsToHalf((ushort)(bits + 1)), between = x + (next - x) / 2;
            foreach (float value in (float[])[x, MathF.BitIncrement(x), MathF.BitDecrement(x), between, MathF.BitIncrement(between), MathF.BitDecrement(between)])
                AssertRounds(value);
        }
        foreach (float value in (float[])[65519.99f, 65520, 65536, 1e10f, float.MaxValue, float.PositiveInfinity, float.Epsilon, 2.9802322e-8f, 2.9802326e-8f, 1e-10f, 0, -0f, float.NaN])
        {
            AssertRounds(value);
            AssertRounds(-value);
        }
    }

    [Fact]
    public void Any_float32_is_rounded_to_the_nearest()
    {
        const uint prime = 4093; // every so manieth of all
        for (ulong bits = 0; bits <= uint.MaxValue; bits += prime)
            AssertRounds(BitConverter.UInt32BitsToSingle((uint)bits));
    }

    private static void AssertRounds(float x)
    {
        int float16 = GpuStorage.ToFloat16(x), bfloat16 = GpuStorage.ToBFloat16(x);
        Assert.Equal(float16, (ushort)float16);
        Assert.Equal(bfloat16, (ushort)bfloat16);
        float read = GpuStorage.OfBFloat16(bfloat16);
        if (float.IsNaN(x))
        {
            Assert.True(Half.IsNaN(BitConverter.UInt16BitsToHalf((ushort)float16)) && float.IsNaN(read), $"{x}");
            return;
        }
        Assert.Equal(BitConverter.HalfToUInt16Bits((Half)x), float16);
        // A neighbour is no nearer; of two as near this one is even.
        foreach (int neighbour in (int[])[bfloat16 - 1, bfloat16 + 1])
        {
            float other = GpuStorage.OfBFloat16(neighbour);
            double ours = Math.Abs((double)read - x), theirs = Math.Abs((double)other - x);
            Assert.False(float.IsFinite(read) && float.IsFinite(other) && (theirs < ours || (theirs == ours && (bfloat16 & 1) != 0)), $"{x} became {read}");
        }
        Assert.True(!float.IsInfinity(read) || Math.Abs(x) >= 3.3961776e38f, $"{x} became {read}");
    }
}
