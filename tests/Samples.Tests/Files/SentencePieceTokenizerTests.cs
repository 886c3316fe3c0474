using Xunit;

namespace Alignment.Tests;

public class SentencePieceTokenizerTests
{
    private static readonly Lazy<SentencePieceTokenizer> Tokenizer = new(() =>
    {
        using var file = new GgufFile(Path.Combine(AppContext.BaseDirectory, "data", "tiny-llama-f32.gguf"));
        return new(file);
    });

    [Fact]
    public void Tokens_are_those_of_the_original_program()
    {
        // llama2.c with this model's vocabulary.
        int[] tokens = [429, 466, 439, 268, 281, 437, 429, 451, 437, 444, 266, 430, 430, 272, 439, 267, 312, 308, 305, 434, 279, 336, 260, 66];
        Assert.Equal(tokens, Tokenizer.Value.Encode("What do you see when the light fades?"));
        Assert.Equal(1, Tokenizer.Value.Begin);
        Assert.Equal(2, Tokenizer.Value.End);
    }

    [Theory]
    [InlineData("")]
    [InlineData("a")]
    [InlineData(" leading, trailing and  double  spaces ")]
    [InlineData("line\nbreaks\tand tabs")]
    [InlineData("é, ß, 語 and 😀 become bytes")]
    public void Text_survives_the_round_trip(string text) => Assert.Equal(text, Tokenizer.Value.Decode(Tokenizer.Value.Encode(text)));

    [Fact]
    public void Control_tokens_have_no_text() =>
        Assert.Equal("node", Tokenizer.Value.Decode([Tokenizer.Value.Begin, .. Tokenizer.Value.Encode("node"), Tokenizer.Value.End]));
}
