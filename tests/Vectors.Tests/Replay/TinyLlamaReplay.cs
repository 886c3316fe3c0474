using System.Globalization;
using System.Numerics;
using Alignment;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>tiny-llama.json: what llama2.c computes with a trained model, by the model code of samples/Alignment from the same model's GGUF.</summary>
public sealed class TinyLlamaReplay : IReplay
{
    // Their arithmetic is float32, in another order, and their numbers are printed with seven digits.
    private const double Within = 1e-4;

    public bool Owns(VectorCase vector) => vector.Folder == "." && vector.File == "tiny-llama.json";

    // Text isn't a tensor; it is compared below.
    public bool IsRemark(VectorCase vector, string output) => output == "text";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => null;

    public Results<float> Library(VectorCase vector)
    {
        using var file = new GgufFile(Path.Combine(AppContext.BaseDirectory, "data", "tiny-llama-f32.gguf"));
        using var maths = new CpuMaths(ComputeDevice.Cpu, threads: 2);
        using Llama model = LlamaCheckpoint.Load(file, maths);
        var tokenizer = new SentencePieceTokenizer(file);
        int[] theirs = Array.ConvertAll(vector.Outputs["tokens"].Integers, token => (int)token);
        string text = vector.Json.GetProperty("text").GetString()!;

        int[] prompt = [tokenizer.Begin, .. tokenizer.Encode(vector.Name == "prompted" ? text[..(text.IndexOf('?') + 1)] : "")];
        using var generation = new Generation(model);
        // Their program prints the token that follows the last one fed, too, and a line break.
        int[] printed = [.. prompt, .. generation.Continue([prompt], theirs.Length + 1 - prompt.Length)[0]], tokens = printed[..^1];
        if (tokenizer.Decode(printed) is var ours && ours + "\n" != text)
            throw new ContractException($"the text is {ours}");

        var results = new Results<float>();
        results.Output("tokens", Array.ConvertAll(tokens, token => (float)token), within: [0]);
        using var logProbs = new AnswerLogProbs(model, trainable: false);
        logProbs.Forward([new(tokens, 1)]);
        results.Output("next_token_logprob", logProbs.PerToken.ToArray(), within: [Within]);
        using var run = new Activations(model.Device, model.Shape, keep: false);
        using var batch = new Alignment.TokenBatch(model.Device);
        batch.Fill(tokens, 1);
        model.Forward(batch, run);
        model.Project(run);
        float[] logits = run.Logits.ToArray();
        for (int position = 0; position < tokens.Length; position++)
        {
            string name = string.Create(CultureInfo.InvariantCulture, $"logits/{position}");
            if (vector.Outputs.ContainsKey(name))
                results.Output(name, logits[(position * model.Shape.Vocabulary)..((position + 1) * model.Shape.Vocabulary)], within: [Within]);
        }
        return results;
    }
}
