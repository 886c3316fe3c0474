using System.Text;
using Xunit;

namespace Alignment.Tests;

public sealed class GgufFileTests : IDisposable
{
    private const uint UInt32 = 4, Single = 6, Text = 8, List = 9;

    private readonly string path = Path.GetTempFileName();

    public void Dispose() => File.Delete(path);

    [Fact]
    public void A_block_of_Q4_1_is_scale_times_nibble_plus_least()
    {
        // The first block of blk.0.attn_q.weight of SmolLM2-135M-Instruct, and what the gguf package makes of it.
        byte[] block = [15, 48, 216, 185, 69, 135, 101, 64, 111, 101, 22, 75, 103, 118, 100, 80, 34, 103, 101, 90];
        float[] expected =
        [
            -0.0963134765625f, 0.1573486328125f, -0.0963134765625f, -0.73046875f, 1.1719970703125f, -0.0963134765625f, 0.030517578125f, 0.6646728515625f,
            0.1573486328125f, 0.030517578125f, -0.22314453125f, -0.73046875f, -0.476806640625f, 0.1573486328125f, -0.0963134765625f, 0.537841796875f,
            -0.22314453125f, 0.2841796875f, 0.030517578125f, -0.22314453125f, 0.030517578125f, 0.030517578125f, -0.6036376953125f, -0.22314453125f,
            0.030517578125f, 0.1573486328125f, 0.030517578125f, -0.0963134765625f, -0.476806640625f, 0.030517578125f, 0.030517578125f, -0.0963134765625f,
        ];
        Assert.Equal(expected, Dequantize(GgufType.Q4_1, block, 32));
    }

    [Fact]
    public void A_block_of_Q8_0_is_scale_times_signed_byte()
    {
        // The first block of the same model's token_embd.weight, and what the gguf package makes of it.
        byte[] block = [50, 25, 214, 13, 19, 247, 229, 238, 8, 208, 42, 168, 1, 222, 86, 129, 134, 8, 253, 33, 219, 238, 16, 79, 232, 30, 250, 249, 226, 17, 40, 57, 31, 177];
        float[] expected =
        [
            -0.10654449462890625f, 0.032978057861328125f, 0.048198699951171875f, -0.022830963134765625f, -0.06849288940429688f, -0.04566192626953125f,
            0.020294189453125f, -0.12176513671875f, 0.10654449462890625f, -0.223236083984375f, 0.002536773681640625f, -0.08625030517578125f,
            0.21816253662109375f, -0.3221702575683594f, -0.30948638916015625f, 0.020294189453125f, -0.007610321044921875f, 0.08371353149414062f,
            -0.09386062622070312f, -0.04566192626953125f, 0.04058837890625f, 0.20040512084960938f, -0.060882568359375f, 0.07610321044921875f,
            -0.01522064208984375f, -0.017757415771484375f, -0.07610321044921875f, 0.043125152587890625f, 0.101470947265625f, 0.14459609985351562f,
            0.07863998413085938f, -0.20040512084960938f,
        ];
        Assert.Equal(expected, Dequantize(GgufType.Q8_0, block, 32));
    }

    [Fact]
    public void Blocks_follow_each_other()
    {
        // Scale 1 and 2, least 0 and −1; all nibbles 3 and 5.
        byte[] blocks = [0, 0x3c, 0, 0, .. Enumerable.Repeat((byte)0x33, 16), 0, 0x40, 0, 0xbc, .. Enumerable.Repeat((byte)0x55, 16)];
        Assert.Equal([.. Enumerable.Repeat(3f, 32), .. Enumerable.Repeat(9f, 32)], Dequantize(GgufType.Q4_1, blocks, 64));
    }

    [Fact]
    public void Floats_and_halves_are_read_as_they_are()
    {
        Assert.Equal([1.5f, -0.1f], Dequantize(GgufType.F32, [.. BitConverter.GetBytes(1.5f), .. BitConverter.GetBytes(-0.1f)], 2));
        Assert.Equal([1f, -2f, 65504f, 5.9604645e-8f], Dequantize(GgufType.F16, [0, 0x3c, 0, 0xc0, 0xff, 0x7b, 1, 0], 4));
    }

    [Fact]
    public void Values_and_tensors_are_found_by_name()
    {
        Write();
        using var file = new GgufFile(path);
        Assert.Equal("llama", file.Value<string>("general.architecture"));
        Assert.Equal(7, file.Value<int>("count"));
        Assert.Equal(0.5, file.Value<double>("share"));
        Assert.Equal(["a", "▁b"], file.Value<string[]>("pieces"));
        Assert.Equal(3, file.Value("absent", 3));
        GgufTensor matrix = file.Tensors.Single(tensor => tensor.Name == "matrix");
        // The file names the fastest axis first.
        Assert.Equal([2L, 3L], matrix.Shape);
        var numbers = new float[6];
        file.Read("matrix", numbers);
        Assert.Equal([1f, 2, 3, 4, 5, 6], numbers);
        var halves = new float[2];
        file.Read("halves", halves);
        Assert.Equal([1f, -2], halves);
    }

    [Fact]
    public void What_is_missing_or_of_another_size_is_named()
    {
        Write();
        using var file = new GgufFile(path);
        Assert.Contains("nothing", Assert.Throws<InvalidDataException>(() => file.Value<int>("nothing")).Message);
        Assert.Contains("general.architecture", Assert.Throws<InvalidDataException>(() => file.Value<int>("general.architecture")).Message);
        Assert.Contains("nothing", Assert.Throws<InvalidDataException>(() => file.Read("nothing", new float[1])).Message);
        Assert.Contains("6", Assert.Throws<InvalidDataException>(() => file.Read("matrix", new float[5])).Message);
    }

    [Fact]
    public void Other_files_and_versions_are_refused()
    {
        File.WriteAllText(path, "This is no model, only text.");
        Assert.Throws<InvalidDataException>(() => new GgufFile(path));
        Write(version: 2);
        Assert.Contains("2", Assert.Throws<InvalidDataException>(() => new GgufFile(path)).Message);
        Write(halvesType: 2);
        Assert.Throws<NotSupportedException>(() =>
        {
            using var file = new GgufFile(path);
            file.Read("halves", new float[2]);
        });
    }

    [Fact]
    public void A_file_cut_anywhere_is_refused()
    {
        Write();
        byte[] whole = File.ReadAllBytes(path);
        for (int length = 0; length < whole.Length; length++)
        {
            File.WriteAllBytes(path, whole[..length]);
            Assert.Throws<InvalidDataException>(() =>
            {
                using var file = new GgufFile(path);
                file.Read("matrix", new float[6]);
                file.Read("halves", new float[2]);
            });
        }
    }

    private static float[] Dequantize(GgufType type, byte[] bytes, int count)
    {
        Assert.Equal(bytes.Length, GgufFile.ByteCount(type, count));
        var numbers = new float[count];
        GgufFile.Dequantize(type, bytes, numbers);
        return numbers;
    }

    // Four values, a 2 x 3 matrix of floats, and two halves 32 bytes behind it.
    private void Write(uint version = 3, uint halvesType = 1)
    {
        using var writer = new BinaryWriter(File.Create(path));
        void WriteText(string text)
        {
            byte[] bytes = Encoding.UTF8.GetBytes(text);
            writer.Write((ulong)bytes.Length);
            writer.Write(bytes);
        }
        writer.Write("GGUF"u8);
        writer.Write(version);
        writer.Write(2ul);
        writer.Write(4ul);
        WriteText("general.architecture");
        writer.Write(Text);
        WriteText("llama");
        WriteText("count");
        writer.Write(UInt32);
        writer.Write(7u);
        WriteText("share");
        writer.Write(Single);
        writer.Write(0.5f);
        WriteText("pieces");
        writer.Write(List);
        writer.Write(Text);
        writer.Write(2ul);
        WriteText("a");
        WriteText("▁b");
        WriteText("matrix");
        writer.Write(2u);
        writer.Write(3ul);
        writer.Write(2ul);
        writer.Write((uint)GgufType.F32);
        writer.Write(0ul);
        WriteText("halves");
        writer.Write(1u);
        writer.Write(2ul);
        writer.Write(halvesType);
        writer.Write(32ul);
        while (writer.BaseStream.Position % 32 != 0)
            writer.Write((byte)0);
        foreach (float number in new[] { 1f, 2, 3, 4, 5, 6, 0, 0 })
            writer.Write(number);
        writer.Write((Half)1);
        writer.Write((Half)(-2));
    }
}
