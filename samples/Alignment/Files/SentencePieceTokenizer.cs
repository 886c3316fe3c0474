using System.Globalization;
using System.Text;

namespace Alignment;

/// <summary>The byte-pair encoding of SentencePiece, as Llama 1 and 2 use it, from the vocabulary in a GGUF file.</summary>
/// <remarks>
/// Text is cut into characters, a space being ▁; as long as two neighbours together are a piece, the pair whose piece has the highest score is joined, the
/// leftmost of equals. Characters that are no piece become their UTF-8 bytes.
/// </remarks>
internal sealed class SentencePieceTokenizer
{
    private const char Space = '▁';
    private const int ControlType = 3, ByteType = 6;

    private readonly string[] pieces;
    private readonly float[] scores;
    private readonly int[] types;
    private readonly int unknown;
    private readonly bool addsSpace;
    private readonly Dictionary<string, int> ids = new(StringComparer.Ordinal);
    private readonly int[] bytes = new int[256];

    public SentencePieceTokenizer(GgufFile file)
    {
        string kind = file.Value<string>("tokenizer.ggml.model");
        if (kind != "llama")
            throw new NotSupportedException($"The file's tokenizer is of the kind {kind}; this program reads llama (SentencePiece BPE).");
        pieces = file.Value<string[]>("tokenizer.ggml.tokens");
        scores = file.Value<float[]>("tokenizer.ggml.scores");
        types = file.Has("tokenizer.ggml.token_type") ? file.Value<int[]>("tokenizer.ggml.token_type") : new int[pieces.Length];
        if (scores.Length != pieces.Length || types.Length != pieces.Length)
            throw new InvalidDataException($"The tokenizer has {pieces.Length} pieces, {scores.Length} scores and {types.Length} types.");
        unknown = file.Value("tokenizer.ggml.unknown_token_id", 0);
        Begin = file.Value("tokenizer.ggml.bos_token_id", 1);
        End = file.Value("tokenizer.ggml.eos_token_id", 2);
        addsSpace = file.Value("tokenizer.ggml.add_space_prefix", true);
        bytes.AsSpan().Fill(-1);
        for (int id = 0; id < pieces.Length; id++)
        {
            if (types[id] == ByteType)
                bytes[int.Parse(pieces[id].AsSpan(3, 2), NumberStyles.HexNumber, CultureInfo.InvariantCulture)] = id;
            else if (types[id] != ControlType)
                ids.TryAdd(pieces[id], id);
        }
    }

    /// <summary>The token that begins every sequence.</summary>
    public int Begin { get; }

    /// <summary>The token that ends a sequence.</summary>
    public int End { get; }

    /// <summary>The tokens of a text, without begin and end.</summary>
    public List<int> Encode(string text)
    {
        if (text.Length == 0)
            return [];
        string marked = (addsSpace ? Space.ToString() : "") + text.Replace(' ', Space);
        List<string> parts = [.. marked.EnumerateRunes().Select(rune => rune.ToString())];
        while (true)
        {
            int best = -1;
            float bestScore = float.NegativeInfinity;
            for (int i = 0; i + 1 < parts.Count; i++)
            {
                if (ids.TryGetValue(parts[i] + parts[i + 1], out int id) && scores[id] > bestScore)
                    (best, bestScore) = (i, scores[id]);
            }
            if (best < 0)
                break;
            parts[best] += parts[best + 1];
            parts.RemoveAt(best + 1);
        }
        var tokens = new List<int>(parts.Count);
        foreach (string part in parts)
        {
            if (ids.TryGetValue(part, out int id))
                tokens.Add(id);
            else
                tokens.AddRange(Encoding.UTF8.GetBytes(part).Select(value => bytes[value] >= 0 ? bytes[value] : unknown));
        }
        return tokens;
    }

    /// <summary>The text of tokens; control tokens have none.</summary>
    public string Decode(IEnumerable<int> tokens)
    {
        var buffer = new List<byte>();
        foreach (int token in tokens)
        {
            if (types[token] == ByteType)
                buffer.Add((byte)Array.IndexOf(bytes, token));
            else if (types[token] != ControlType)
                buffer.AddRange(Encoding.UTF8.GetBytes(pieces[token].Replace(Space, ' ')));
        }
        string text = Encoding.UTF8.GetString([.. buffer]);
        return addsSpace && text.StartsWith(' ') ? text[1..] : text;
    }
}
