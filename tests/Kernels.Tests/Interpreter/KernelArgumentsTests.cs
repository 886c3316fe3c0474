using ILGPU;
using ILGPU.Runtime;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>C# arguments arrive in a kernel's text as they were given.</summary>
public class KernelArgumentsTests
{
    public readonly struct Empty;

    public enum Colour : short
    {
        Green = -7,
    }

    public readonly struct Inner
    {
        public byte Small { get; init; }
        public ArrayView<short> Numbers { get; init; }
        public Colour Colour { get; init; }
    }

    public readonly struct Outer
    {
        public Empty Nothing { get; init; }
        public sbyte First { get; init; }
        public double Wide { get; init; }
        public Inner Inner { get; init; }
        public float Single { get; init; }
        public ArrayView1D<long, Stride1D.Dense> Results { get; init; }
        public long Last { get; init; }
    }

    [Fact]
    public void Nested_structs_views_and_numbers_arrive_as_they_were_given()
    {
        using InterpretedDevice interpreted = InterpretedDevice.Open();
        using TensorBuffer numbers = interpreted.Device.Upload<long>([0x0004_0003_0002_0001, 5]), results = interpreted.Device.Allocate(ElementType.Int64, 10);
        interpreted.Device.Queue.Launch(EchoKernels.Echo, 1, 32, new Outer
        {
            First = -3,
            Wide = 1e6,
            Inner = new() { Small = 200, Numbers = ((GpuBuffer)numbers).Use<short>().SubView(1, 3), Colour = Colour.Green },
            Single = 2.5f,
            Results = new(((GpuBuffer)results).Use<long>(), 10, default),
            Last = long.MinValue,
        }, 42);
        Assert.Equal([-3, 1_000_000, 200, 4, -7, 2, long.MinValue, 42, 3, 10], results.ToArray<long>());
    }

    [Fact]
    public void What_lies_behind_a_view_is_out_of_bounds_even_if_its_buffer_goes_on()
    {
        using InterpretedDevice interpreted = InterpretedDevice.Open();
        using TensorBuffer numbers = interpreted.Device.Allocate(ElementType.Int64, 2), results = interpreted.Device.Allocate(ElementType.Int64, 10);
        var fault = Assert.Throws<PtxFault>(() => interpreted.Device.Queue.Launch(EchoKernels.Echo, 1, 32, new Outer
        {
            Inner = new() { Numbers = ((GpuBuffer)numbers).Use<short>().SubView(0, 2) },
            Results = new(((GpuBuffer)results).Use<long>(), 10, default),
        }, 0));
        Assert.Contains("offset 4 of outer.Inner.Numbers, which has 4 bytes", fault.Message);
    }

    private static class EchoKernels
    {
        public static void Echo(Outer outer, int scalar)
        {
            if (Grid.IdxX + Group.IdxX != 0)
                return;
            outer.Results[0] = outer.First;
            outer.Results[1] = (long)outer.Wide;
            outer.Results[2] = outer.Inner.Small;
            outer.Results[3] = outer.Inner.Numbers[2];
            outer.Results[4] = (long)outer.Inner.Colour;
            outer.Results[5] = (long)outer.Single;
            outer.Results[6] = outer.Last;
            outer.Results[7] = scalar;
            outer.Results[8] = outer.Inner.Numbers.Length;
            outer.Results[9] = outer.Results.Length;
        }
    }
}
