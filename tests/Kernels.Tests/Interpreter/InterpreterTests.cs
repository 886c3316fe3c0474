using System.Runtime.InteropServices;
using Xunit;
using static TransformerKernels.Tests.Arithmetic;

namespace TransformerKernels.Tests;

/// <summary>The interpreter itself: what instructions compute, how threads part and meet, what is checked.</summary>
public class InterpreterTests
{
    private const ulong One = 0x3F80_0000, Nan = 0x7FC0_0000, NegativeZero = 0x8000_0000;

    public static TheoryData<string, ulong[], ulong> Instructions => new()
    {
        { "add.s32", [0x7FFF_FFFF, 1], 0x8000_0000 },
        { "add.u64", [ulong.MaxValue, 2], 1 },
        { "sub.s16", [0, 1], 0xFFFF },
        { "mul.lo.s32", [0x1_0001, 0x1_0001], 0x2_0001 },
        { "mul.wide.u32", [uint.MaxValue, uint.MaxValue], 0xFFFF_FFFE_0000_0001 },
        { "mul.wide.s32", [uint.MaxValue, 2], unchecked((ulong)-2) },
        { "mul.hi.u32", [0x8000_0000, 4], 2 },
        { "mul.hi.s64", [unchecked((ulong)-1), 4], ulong.MaxValue },
        { "mad.lo.u64", [5, 4, 100], 120 },
        { "mad.lo.s32", [unchecked((uint)-5), 4, 10], unchecked((uint)-10) },
        { "div.s32", [unchecked((uint)-7), 2], unchecked((uint)-3) },
        { "rem.s32", [unchecked((uint)-7), 2], unchecked((uint)-1) },
        { "div.s32", [0x8000_0000, uint.MaxValue], 0x8000_0000 },
        { "div.u32", [0xFFFF_FFFF, 16], 0x0FFF_FFFF },
        { "div.s64", [0x8000_0000_0000_0000, ulong.MaxValue], 0x8000_0000_0000_0000 },
        { "shl.b32", [1, 31], 0x8000_0000 },
        { "shl.b32", [1, 32], 0 },
        { "shr.s32", [0x8000_0000, 40], uint.MaxValue },
        { "shr.u32", [0x8000_0000, 31], 1 },
        { "shr.s64", [0x8000_0000_0000_0000, 63], ulong.MaxValue },
        { "not.b32", [0], uint.MaxValue },
        { "popc.b32", [0xF0F0], 8 },
        { "clz.b32", [1], 31 },
        { "brev.b32", [1], 0x8000_0000 },
        { "bfe.u32", [0xABCD, 4, 8], 0xBC },
        { "bfe.s32", [0xABCD, 4, 8], 0xFFFF_FFBC },
        { "bfi.b32", [0xF, 0, 8, 4], 0xF00 },
        { "min.s32", [uint.MaxValue, 1], uint.MaxValue },
        { "max.u32", [uint.MaxValue, 1], uint.MaxValue },
        { "min.f32", [Nan, One], One },
        { "max.f32", [NegativeZero, 0], 0 },
        { "neg.f32", [0], NegativeZero },
        { "abs.f32", [0xBF80_0000], One },
        { "copysign.f32", [NegativeZero, One], 0xBF80_0000 },
        { "selp.b32", [3, 4, 1], 3 },
        { "selp.b32", [3, 4, 0], 4 },
        { "slct.b32.s32", [3, 4, uint.MaxValue], 4 },
        { "cvt.s64.s32", [uint.MaxValue], ulong.MaxValue },
        { "cvt.u64.u32", [uint.MaxValue], uint.MaxValue },
        { "cvt.s32.s8", [0x1FF], ulong.MaxValue },
        { "cvt.rn.f32.s32", [uint.MaxValue], 0xBF80_0000 },
        // Halfway between two floats and a bit more, which a double would lose.
        { "cvt.rn.f32.u64", [0x8000_0080_0000_0001], 0x5F00_0001 },
        { "cvt.rn.f32.u64", [0x8000_0080_0000_0000], 0x5F00_0000 },
        { "cvt.rzi.s32.f32", [0xBFF0_0000], unchecked((ulong)-1) },
        { "cvt.rni.s32.f32", [0x4020_0000], 2 },
        { "cvt.rni.s32.f32", [0x4060_0000], 4 },
        { "cvt.rmi.s32.f32", [0xBFC0_0000], unchecked((ulong)-2) },
        { "cvt.rpi.f32.f32", [0x3FC0_0000], 0x4000_0000 },
        { "cvt.rzi.s32.f32", [0x7F80_0000], 0x7FFF_FFFF },
        { "cvt.rzi.s32.f32", [Nan], 0 },
        { "cvt.rzi.u32.f32", [0xBF80_0000], 0 },
        { "cvt.rn.f16.f32", [0x3F80_1000], 0x3C00 },
        { "cvt.f32.f16", [0x3C00], One },
        { "cvt.rn.f32.f64", [0x3FF0_0000_1000_0000], One },
        // (1 + 2^-12)^2 − (1 + 2^-11) is 2^-24, and 0 if the product is rounded.
        { "fma.rn.f32", [0x3F80_0800, 0x3F80_0800, 0xBF80_1000], 0x3380_0000 },
        { "testp.notanumber.f32", [Nan], 1 },
    };

    [Theory]
    [MemberData(nameof(Instructions))]
    public void Instructions_compute_what_PTX_says(string opcode, ulong[] operands, ulong expected) => Assert.Equal(expected, Compute(opcode, operands));

    [Theory]
    [InlineData("eq", false, false, true, false)]
    [InlineData("ne", true, true, false, false)]
    [InlineData("lt", true, false, false, false)]
    [InlineData("le", true, false, true, false)]
    [InlineData("gt", false, true, false, false)]
    [InlineData("ge", false, true, true, false)]
    [InlineData("equ", false, false, true, true)]
    [InlineData("neu", true, true, false, true)]
    [InlineData("ltu", true, false, false, true)]
    [InlineData("leu", true, false, true, true)]
    [InlineData("gtu", false, true, false, true)]
    [InlineData("geu", false, true, true, true)]
    [InlineData("num", true, true, true, false)]
    [InlineData("nan", false, false, false, true)]
    public void Comparisons_of_floats_know_NaN(string name, bool ofLess, bool ofGreater, bool ofEqual, bool ofNan)
    {
        Func<ulong, ulong, bool> compare = Comparison(name, "f32")!;
        Assert.Equal((ofLess, ofGreater, ofEqual, ofNan, ofNan),
            (compare(0, One), compare(One, 0), compare(NegativeZero, 0), compare(Nan, 0), compare(0, Nan)));
    }

    [Fact]
    public void Quotients_roots_and_reciprocals_are_the_nearest_floats()
    {
        var random = new Random(3);
        for (int i = 0; i < 10_000; i++)
        {
            // A double's quotient or root of floats, rounded once more, is the nearest float.
            float x = BitConverter.UInt32BitsToSingle((uint)random.NextInt64(0x0080_0000, 0x7F80_0000)), y = BitConverter.UInt32BitsToSingle((uint)random.NextInt64(0x3000_0000, 0x5000_0000));
            Assert.Equal(Bits((float)((double)x / y)), Compute("div.rn.f32", [Bits(x), Bits(y)]));
            Assert.Equal(Bits((float)(1 / (double)y)), Compute("rcp.rn.f32", [Bits(y)]));
            Assert.Equal(Bits((float)Math.Sqrt(x)), Compute("sqrt.rn.f32", [Bits(x)]));
        }
    }

    [Fact]
    public void Threads_that_part_meet_again_where_the_ways_do()
    {
        // A loop of as many rounds as the thread has a number, with a branch in it; then a barrier, which all must reach together.
        uint[] sums = Run(threads: 64, """
            mov.u32 %r1, %tid.x;
            mov.u32 %r2, 0;
            mov.u32 %r3, 0;
            LOOP:
            setp.ge.u32 %p1, %r2, %r1;
            @%p1 bra DONE;
            and.b32 %r4, %r2, 1;
            setp.eq.u32 %p2, %r4, 0;
            @!%p2 bra ODD;
            add.u32 %r3, %r3, 1;
            bra NEXT;
            ODD:
            add.u32 %r3, %r3, 100;
            NEXT:
            add.u32 %r2, %r2, 1;
            bra LOOP;
            DONE:
            bar.sync 0;
            st.global.u32 [%rd2], %r3;
            ret;
            """);
        Assert.Equal(Enumerable.Range(0, 64).Select(n => (uint)((n + 1) / 2 + 100 * (n / 2))), sums);
    }

    [Fact]
    public void A_branch_by_index_goes_where_its_table_says()
    {
        uint[] values = Run(threads: 32, """
            mov.u32 %r1, %tid.x;
            and.b32 %r1, %r1, 3;
            setp.lt.s32 %p1, %r1, 0;
            setp.ge.or.s32 %p2, %r1, 3, %p1;
            @%p2 bra OTHER;
            TABLE: .branchtargets A, B, C;
            brx.idx %r1, TABLE;
            A: mov.u32 %r2, 10; bra END;
            B: mov.u32 %r2, 20; bra END;
            C: mov.u32 %r2, 30; bra END;
            OTHER: mov.u32 %r2, 40;
            END:
            st.global.u32 [%rd2], %r2;
            """);
        Assert.Equal(Enumerable.Range(0, 32).Select(n => 10u * (uint)(n % 4 + 1)), values);
    }

    [Fact]
    public void Shuffles_give_the_number_of_another_thread_of_the_warp()
    {
        uint[] values = Run(threads: 64, """
            mov.u32 %r1, %tid.x;
            shfl.sync.bfly.b32 %r2, %r1, 1, 31, 0xffffffff;
            shfl.sync.down.b32 %r3|%p1, %r2, 16, 31, 0xffffffff;
            selp.b32 %r3, %r3, 0, %p1;
            st.global.u32 [%rd2], %r3;
            """);
        Assert.Equal(Enumerable.Range(0, 64).Select(n => n % 32 < 16 ? (uint)(n + 16 ^ 1) : 0), values);
    }

    [Fact]
    public void Atomics_of_integers_are_no_race()
    {
        uint[] values = Run(threads: 64, """
            mov.u32 %r1, %tid.x;
            atom.global.add.u32 %r2, [%rd1], 1;
            red.max.u32 [%rd1+4], %r1;
            atom.cas.b32 %r2, [%rd1+8], 0, %r1;
            """);
        Assert.Equal((64u, 63u, 1u), (values[0], values[1], values[2]));
    }

    [Theory]
    [InlineData("st.global.u32 [%rd2+4], 1;", "out of bounds: 4 bytes at", "offset 256 of out, which has 256 bytes")]
    [InlineData("st.u32 [%rd1+-4], 1;", "out of bounds", "offset -4 of out")]
    [InlineData("mov.u64 %rd3, 64; ld.u32 %r1, [%rd3];", "no address of any argument")]
    [InlineData("ld.global.u32 %r1, [%rd1+2];", "isn't aligned", "offset 2 of out")]
    [InlineData("ld.global.v4.f32 {%f1,%f2,%f3,%f4}, [%rd1+8];", "isn't aligned", "16 bytes")]
    [InlineData("mov.u64 %rd3, tile; ld.shared.u32 %r1, [%rd3];", "which the group hasn't written", "offset 0 of tile")]
    [InlineData("mov.u64 %rd3, tile; st.shared.u32 [%rd3+64], 1;", "out of bounds", "offset 64 of tile, which has 64 bytes")]
    [InlineData("mov.u64 %rd3, tile; ld.u32 %r1, [%rd3];", "no address of any argument")] // not a generic address
    [InlineData("mov.u64 %rd3, tile; st.shared.u32 [%rd3], %r9;", "race", "another value than thread (0, 0, 0)", "offset 0 of tile")]
    [InlineData("""
        setp.lt.u32 %p1, %r9, 16;
        mov.u64 %rd3, tile;
        mad.lo.u64 %rd4, %rd9, 4, %rd3;
        xor.b64 %rd5, %rd9, 1;
        mad.lo.u64 %rd5, %rd5, 4, %rd3;
        @%p1 st.shared.u32 [%rd4], 1;
        bar.sync 0;
        @%p1 ld.shared.u32 %r1, [%rd4];
        @%p1 st.shared.u32 [%rd5], 1;
        """, "race", "writes what thread (1, 0, 0) read at line")]
    [InlineData("@%p9 bar.sync 0;", "only 16 of the 32 threads of its warp reach this barrier")]
    [InlineData("@%p9 bra A; bar.sync 0; bra B; A: bar.sync 0; B: ret;", "only 16 of the 32")]
    [InlineData("setp.lt.u32 %p1, %r9, 32; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B: ret;", "waits at this barrier while thread (0, 0, 0) waits at the one in line")]
    [InlineData("@%p9 bra.uni A; add.u32 %r1, %r9, 1; A: ret;", "marked uniform")]
    [InlineData("@%p9 shfl.sync.idx.b32 %r1, %r9, 0, 31, 0xffffffff;", "have to be here")]
    [InlineData("mov.u32 %r1, 0; div.s32 %r2, %r9, %r1;", "divides by zero")]
    [InlineData("A: bra A;", "still runs")]
    public void Faults_are_named_with_line_thread_and_address(string body, params string[] parts)
    {
        var fault = Assert.Throws<PtxFault>(() => Run(threads: 64, body));
        Assert.StartsWith("line ", fault.Message);
        Assert.All(parts, part => Assert.Contains(part, fault.Message));
    }

    [Theory]
    [InlineData("frobnicate.s32 %r1, %r2;")]
    [InlineData("ex2.approx.ftz.f32 %f1, %f2;")]
    [InlineData("add.sat.s32 %r1, %r2, %r3;")]
    [InlineData("red.global.add.f32 [%rd1], %f1;")]
    [InlineData("bar.sync 1;")]
    public void An_instruction_that_is_not_known_is_named(string instruction)
    {
        var fault = Assert.Throws<PtxFault>(() => Run(threads: 32, instruction));
        Assert.Contains($"\"{instruction.TrimEnd(';')}\"", fault.Message);
        Assert.Contains($"doesn't know {instruction.Split(' ')[0]}", fault.Message);
    }

    [Fact]
    public void Groups_that_touch_the_same_word_race_and_those_that_only_read_it_do_not()
    {
        const string write = "st.global.u32 [%rd1], 7;", read = "ld.global.u32 %r1, [%rd1];", readThenWrite = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 ld.global.u32 %r2, [%rd1]; @!%p1 st.global.u32 [%rd1], 1;";
        Run(threads: 1, read, groups: 2);
        Assert.Contains("writes what group (0, 0, 0) wrote", Assert.Throws<PtxFault>(() => Run(threads: 1, write, groups: 2)).Message);
        Assert.Contains("writes what group (0, 0, 0) read", Assert.Throws<PtxFault>(() => Run(threads: 1, readThenWrite, groups: 2)).Message);
    }

    [Fact]
    public void Traffic_counts_bytes_and_the_lines_that_a_warp_touches()
    {
        // 64 threads, one float each: two warps, a line each.
        Traffic dense = Measure("ld.global.u32 %r1, [%rd2]; st.global.u32 [%rd2], %r1;", elements: 64);
        Assert.Equal((256, 256, 2, 2, 256, 256), (dense.BytesRead, dense.BytesWritten, dense.ReadTransactions, dense.WriteTransactions, dense.DistinctRead, dense.DistinctWritten));
        // 128 bytes apart: a line for each thread.
        Traffic scattered = Measure("mad.lo.u64 %rd3, %rd9, 128, %rd1; ld.global.u32 %r1, [%rd3];", elements: 64 * 32);
        Assert.Equal((256, 64, 256), (scattered.BytesRead, scattered.ReadTransactions, scattered.DistinctRead));
        // All the same: asked for by every thread, moved once a warp.
        Traffic same = Measure("ld.global.u32 %r1, [%rd1];", elements: 64);
        Assert.Equal((256, 2, 4), (same.BytesRead, same.ReadTransactions, same.DistinctRead));

        static Traffic Measure(string body, int elements)
        {
            Execute(64, body, 1, elements, out Traffic traffic);
            return traffic;
        }
    }

    private static ulong Compute(string opcode, ulong[] operands) => operands.Length switch
    {
        1 => Unary(opcode)!(operands[0]),
        2 => Binary(opcode)!(operands[0], operands[1]),
        3 => Ternary(opcode)!(operands[0], operands[1], operands[2]),
        _ => Insert(operands[0], operands[1], operands[2], operands[3]),
    };

    private static uint[] Run(int threads, string body, int groups = 1) => Execute(threads, body, groups, threads, out _);

    // %rd1 is an array's address, %rd2 that of the thread's element, %r9 and %rd9 the thread's number, %p9 is true for the first half of each warp.
    private static uint[] Execute(int threads, string body, int groups, int elements, out Traffic traffic)
    {
        var program = new PtxProgram($$"""
            .version 8.0
            .target sm_80
            .visible .entry Kernel(.param .align 8 .b8 _out[16])
            {
                .shared .align 4 .b8 tile[64];
                .reg .b32 %r<10>;
                ld.param.b64 %rd1, [_out];
                mov.u32 %r9, %tid.x;
                cvt.u64.u32 %rd9, %r9;
                mad.lo.u64 %rd2, %rd9, 4, %rd1;
                and.b32 %r8, %r9, 31;
                setp.lt.u32 %p9, %r8, 16;
                {{body}}
            }
            """);
        var decoded = new DecodedProgram(program);
        var memory = new MemoryMap(decoded.WordShift);
        uint[] data = GC.AllocateArray<uint>(elements, pinned: true);
        nint address = Marshal.UnsafeAddrOfPinnedArrayElement(data, 0);
        byte[] parameters = new byte[program.ParameterBytes];
        MemoryMarshal.Write(parameters, memory.AddView("out", address, data.Length * sizeof(uint), 0, data.Length * sizeof(uint)));
        traffic = new Traffic("Kernel", maximumInstructions: 100_000);
        PtxMachine.Run(traffic, program, decoded, new(groups), new(threads), memory, parameters);
        return data;
    }
}
