using System.Numerics;
using System.Text.Json;
using Alignment;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>model/: whole tiny Llamas, run by the model, the losses, the optimiser and the generation of samples/Alignment.</summary>
/// <remarks>There is no oracle of a whole model. The file tells how far a plain float32 computation was from its numbers, and the contract goes by that.</remarks>
public sealed class ModelReplay : IReplay
{
    // The files' README on training: another order of summation may differ by so much from the float64 run.
    private const double Drift = 1e-4;

    // What a weight may lose in a step of the optimiser: a unit in the last place near 1.
    private const double WeightErrorPerStep = 1.2e-7;

    // A digest is the sum, the sum of absolutes, the sum of squares, then elements at even distances.
    private const int DigestSums = 3, DigestElements = 8;

    private const int Unlabelled = -100;

    private static readonly string[] ConfigKeys =
        ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings", "num_hidden_layers",
         "max_position_embeddings", "rms_norm_eps", "rope_parameters", "model_type"];

    public bool Owns(VectorCase vector) => vector.Folder == "model";

    // Where the shipped float32 code was, how far off that is, and by how much greedy generation decides.
    public bool IsRemark(VectorCase vector, string output) => output.StartsWith("float32.", StringComparison.Ordinal) || output == "smallestMargin";

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => null;

    public Results<float> Library(VectorCase vector)
    {
        if (vector.Parameter("config") is not null)
            return Forward(vector);
        if (vector.Parameter("loss") is not null)
            return Dpo(vector);
        if (vector.Parameter("lr") is not null)
            return Training(vector);
        if (vector.Parameter("max_new_tokens") is not null)
            return Generated(vector);
        throw new NotReplayedException("packed documents or a soft prompt");
    }

    private static Results<float> Forward(VectorCase vector)
    {
        vector.KnowsOnly(["config"], [.. Names(vector), "input_ids", "attention_mask", "labels"]);
        using var loaded = new Loaded(vector);
        Llama model = loaded.Model;
        var results = new Results<float>();

        VectorTensor ids = vector.Need("input_ids");
        int[] tokens = Array.ConvertAll(ids.Integers, id => (int)id);
        bool[] real = vector.Need("attention_mask").Booleans;
        var logits = new float[tokens.Length * model.Shape.Vocabulary];
        using (var run = new Activations(model.Device, model.Shape, keep: false))
        using (var batch = new Alignment.TokenBatch(model.Device))
        {
            batch.Fill(tokens, ids.Shape[0]);
            model.Forward(batch, run);
            model.Project(run);
            float[] rows = run.Logits.ToArray();
            // The file has zeros at padding.
            for (int row = 0; row < tokens.Length; row++)
            {
                if (real[row])
                    rows.AsSpan(row * model.Shape.Vocabulary, model.Shape.Vocabulary).CopyTo(logits.AsSpan(row * model.Shape.Vocabulary));
            }
        }
        loaded.Output(results, vector, "logits", logits);

        using var logProbs = new AnswerLogProbs(model, trainable: true);
        List<Example> whole = Examples(vector, (row, at) => at >= 1), labelled = Examples(vector, Labelled(vector));
        logProbs.Forward(whole);
        loaded.Output(results, vector, "logprob", PerToken(logProbs, whole, ids.Shape[1]));
        using var loss = new SupervisedLoss(model, logProbs);
        loss.Step(labelled);
        loaded.Output(results, vector, "loss", [loss.Value]);
        float[] gradients = model.Parameters.Gradients.ToArray<float>();
        foreach (Parameter parameter in model.Parameters.All)
        {
            float[] gradient = parameter.Of(gradients).ToArray();
            if (vector.Gradients.TryGetValue(parameter.Name, out VectorTensor? theirs))
                results.Gradient(parameter.Name, gradient, within: [Contract.Allowed(theirs.Data, loaded.GradientError, Contract.Gradient)]);
            Digest(results, vector, "sft.digest." + parameter.Name, gradient, loaded.GradientError, Contract.Gradient);
        }

        // The table as the model makes it: the angle at position 1, and the length of (cos, sin).
        using RotaryTable table = RotaryTable.Build(model.Device, model.Shape.HeadSize, 2, model.Shape.RotaryBase);
        (float[] cosines, float[] sines) = (Row(table.Cosines.Slice(0, 1, 1)), Row(table.Sines.Slice(0, 1, 1)));
        float[] angles = [.. sines.Zip(cosines, MathF.Atan2)];
        foreach ((string name, float[] values) in new[] { ("rotary.inverseFrequencies", angles), ("rotary.attentionScaling", [MathF.Sqrt(cosines[0] * cosines[0] + sines[0] * sines[0])]) })
            results.Output(name, values, within: [Contract.Allowed(vector.Outputs[name].Data, 0, Contract.Forward)]);
        return results;
    }

    private static Results<float> Dpo(VectorCase vector)
    {
        vector.KnowsOnly(["weightsFrom", "loss", "beta"], ["input_ids", "attention_mask", "completion_mask", "referenceLogprob"]);
        vector.Requires("loss", "sigmoid");
        using var loaded = new Loaded(Weights(vector));
        Llama model = loaded.Model;
        VectorTensor ids = vector.Need("input_ids");
        bool[] completion = vector.Need("completion_mask").Booleans;
        List<Example> examples = Examples(vector, (row, at) => completion[row * ids.Shape[1] + at]);
        float[] reference = vector.Need("referenceLogprob").Floats;
        int count = examples.Count / 2;
        ScoredPair[] pairs = [.. Enumerable.Range(0, count).Select(i => new ScoredPair(new(examples[i], examples[count + i]), reference[i], reference[count + i]))];
        using var logProbs = new AnswerLogProbs(model, trainable: true);
        using var loss = new DirectPreferenceLoss(model, logProbs, new DpoSigmoid((float)vector.Number("beta")!.Value));
        var results = new Results<float>();

        logProbs.Forward(examples);
        logProbs.Add();
        loaded.Output(results, vector, "tokenLogprob", PerToken(logProbs, examples, ids.Shape[1]));
        loaded.Output(results, vector, "sequenceLogprob", logProbs.Sums.ToArray());
        float[] losses = new float[count], chosen = new float[count], rejected = new float[count];
        for (int i = 0; i < count; i++)
        {
            loss.Step([pairs[i]]);
            float[] metrics = loss.Metrics;
            (losses[i], chosen[i], rejected[i]) = (metrics[PreferenceMetrics.Loss], metrics[PreferenceMetrics.ChosenReward], metrics[PreferenceMetrics.RejectedReward]);
        }
        loaded.Output(results, vector, "losses", losses);
        loaded.Output(results, vector, "rewardsChosen", chosen);
        loaded.Output(results, vector, "rewardsRejected", rejected);

        model.Parameters.Gradients.Clear();
        loss.Step(pairs);
        loaded.Output(results, vector, "loss", [loss.Metrics[PreferenceMetrics.Loss]]);
        results.Gradient("logprob", PerToken(logProbs, examples, ids.Shape[1]),
            within: [Contract.Allowed(vector.Gradients["logprob"].Data, loaded.GradientError, Contract.Gradient)]);
        float[] gradients = model.Parameters.Gradients.ToArray<float>();
        foreach (Parameter parameter in model.Parameters.All)
        {
            float[] gradient = parameter.Of(gradients).ToArray();
            if (vector.Gradients.TryGetValue(parameter.Name, out VectorTensor? theirs))
                results.Gradient(parameter.Name, gradient, within: [Contract.Allowed(theirs.Data, loaded.GradientError, Contract.Gradient)]);
            Digest(results, vector, "digest." + parameter.Name, gradient, loaded.GradientError, Contract.Gradient);
        }
        return results;
    }

    private static Results<float> Training(VectorCase vector)
    {
        vector.KnowsOnly(["weightsFrom", "lr", "betas", "eps", "weight_decay", "steps", "warmupSteps"], ["input_ids", "attention_mask", "labels"]);
        vector.Requires("warmupSteps", 0.0);
        using var loaded = new Loaded(Weights(vector));
        ParameterSet parameters = loaded.Model.Parameters;
        using var logProbs = new AnswerLogProbs(loaded.Model, trainable: true);
        using var loss = new SupervisedLoss(loaded.Model, logProbs);
        double[] betas = [.. vector.Parameter("betas")!.Value.EnumerateArray().Select(beta => beta.GetDouble())];
        using var optimizer = new AdamW(loaded.Maths, parameters)
        {
            Beta1 = betas[0],
            Beta2 = betas[1],
            Epsilon = vector.Number("eps")!.Value,
            WeightDecay = vector.Number("weight_decay")!.Value,
        };
        List<Example> examples = Examples(vector, Labelled(vector));
        var results = new Results<float>();
        List<float> losses = [], norms = [];
        int steps = (int)vector.Number("steps")!.Value;
        for (int step = 1; step <= steps; step++)
        {
            parameters.Gradients.Clear();
            loss.Step(examples);
            optimizer.Step(vector.Number("lr")!.Value);
            losses.Add(loss.Value);
            norms.Add((float)optimizer.GradientNorm);
            float[] weights = parameters.Values.ToArray<float>();
            foreach (Parameter parameter in parameters.All)
            {
                float[] weight = parameter.Of(weights).ToArray();
                string full = $"step{step}.{parameter.Name}";
                if (vector.Outputs.TryGetValue(full, out VectorTensor? theirs))
                    results.Output(full, weight, within: [Contract.Allowed(theirs.Data, step * WeightErrorPerStep, factor: 1)]);
                Digest(results, vector, $"step{step}.digest.{parameter.Name}", weight, step * WeightErrorPerStep, factor: 1);
                if (step == steps)
                    Digest(results, vector, $"final.digest.{parameter.Name}", weight, step * WeightErrorPerStep, factor: 1);
            }
        }
        loss.Step(examples);
        losses.Add(loss.Value);
        results.Output("losses", [.. losses.Take(vector.Outputs["losses"].Count)], within: [Drift]);
        results.Output("gradientNorms", [.. norms], within: [Drift]);
        return results;
    }

    private static Results<float> Generated(VectorCase vector)
    {
        vector.KnowsOnly(["weightsFrom", "max_new_tokens", "do_sample"], ["prompt"]);
        vector.Requires("do_sample", false);
        using var loaded = new Loaded(Weights(vector));
        Llama model = loaded.Model;
        int[] prompt = Array.ConvertAll(vector.Need("prompt").Integers, id => (int)id);
        int limit = (int)vector.Number("max_new_tokens")!.Value;
        using var generation = new Generation(model);
        List<int> tokens = generation.Continue([prompt], limit)[0], uncached = generation.Continue([prompt], limit, cached: false)[0];
        if (!tokens.SequenceEqual(uncached))
            throw new ContractException($"with the cache came {string.Join(' ', tokens)}, without {string.Join(' ', uncached)}");
        var results = new Results<float>();
        results.Output("tokens", [.. tokens.Select(token => (float)token)], within: [0]);

        using var logProbs = new AnswerLogProbs(model, trainable: false);
        logProbs.Forward([new([.. prompt, .. tokens], prompt.Length)]);
        loaded.Output(results, vector, "logprob", logProbs.PerToken.ToArray());
        // The cache's numbers too: what the last token was chosen by.
        using var cache = new KeyValueCache(model.Maths, model.Shape, 1, prompt.Length + limit);
        using var run = new Activations(model.Device, model.Shape, keep: false);
        using var batch = new Alignment.TokenBatch(model.Device);
        foreach (int[] part in (int[][])[prompt, .. tokens.SkipLast(1).Select(token => (int[])[token])])
        {
            batch.Fill(part, 1);
            model.Forward(batch, run, cache);
        }
        model.Project(run);
        loaded.Output(results, vector, "lastLogits", run.Logits.ToArray());
        return results;
    }

    /// <summary>The case that holds the weights: the names of its inputs are Hugging Face's.</summary>
    private static VectorCase Weights(VectorCase vector) =>
        vector.Set.Cases.Single(other => other.Folder == vector.Folder && other.Name == vector.Text("weightsFrom"));

    private static IEnumerable<string> Names(VectorCase weights)
    {
        using var maths = new CpuMaths(ComputeDevice.Cpu, threads: 1);
        using var model = new Llama(maths, ShapeOf(weights));
        return [.. model.Parameters.All.Select(parameter => parameter.Name)];
    }

    private static LlamaShape ShapeOf(VectorCase weights)
    {
        JsonElement config = weights.Parameter("config")!.Value;
        if (config.GetProperty("model_type").GetString() is not "llama" and var type)
            throw new NotReplayedException($"model_type {type}");
        foreach (JsonProperty property in config.EnumerateObject())
        {
            if (!ConfigKeys.Contains(property.Name))
                throw new NotReplayedException(property.Name);
        }
        JsonElement rotary = config.GetProperty("rope_parameters");
        if (rotary.GetProperty("rope_type").GetString() is not "default" and var scaling)
            throw new NotReplayedException($"rope_type {scaling}");
        int Size(string name) => config.GetProperty(name).GetInt32();
        return new()
        {
            Vocabulary = Size("vocab_size"),
            Hidden = Size("hidden_size"),
            Intermediate = Size("intermediate_size"),
            Layers = Size("num_hidden_layers"),
            Heads = Size("num_attention_heads"),
            KeyHeads = Size("num_key_value_heads"),
            HeadSize = Size("head_dim"),
            Context = Size("max_position_embeddings"),
            NormEpsilon = config.GetProperty("rms_norm_eps").GetSingle(),
            RotaryBase = rotary.GetProperty("rope_theta").GetDouble(),
            Pairing = RotaryPairing.HalfSplit,
            TiedEmbedding = config.GetProperty("tie_word_embeddings").GetBoolean(),
        };
    }

    private static Func<int, int, bool> Labelled(VectorCase vector)
    {
        VectorTensor labels = vector.Need("labels");
        long[] values = labels.Integers;
        return (row, at) => at >= 1 && values[row * labels.Shape[1] + at] != Unlabelled;
    }

    /// <summary>The rows of a batch without their padding, each cut in a prompt and an answer, which is what counts.</summary>
    private static List<Example> Examples(VectorCase vector, Func<int, int, bool> counts)
    {
        VectorTensor ids = vector.Need("input_ids");
        int columns = ids.Shape[1];
        bool[] real = vector.Need("attention_mask").Booleans;
        var examples = new List<Example>();
        for (int row = 0; row < ids.Shape[0]; row++)
        {
            int[] tokens = [.. Enumerable.Range(row * columns, columns).Where(at => real[at]).Select(at => (int)ids.Data[at])];
            int prompt = Enumerable.Range(0, tokens.Length).First(at => counts(row, at));
            if (Enumerable.Range(prompt, tokens.Length - prompt).Any(at => !counts(row, at)))
                throw new NotReplayedException("an answer with gaps");
            examples.Add(new(tokens, prompt));
        }
        return examples;
    }

    // [row, columns − 1], as the files have it: 0 where no token counts.
    private static float[] PerToken(AnswerLogProbs logProbs, List<Example> examples, int columns)
    {
        var values = new float[examples.Count * (columns - 1)];
        Span<float> perToken = logProbs.PerToken.ToArray();
        for (int row = 0; row < examples.Count; row++)
            perToken[logProbs.Batch.PicksOf(row)].CopyTo(values.AsSpan(row * (columns - 1) + examples[row].PromptLength - 1));
        return values;
    }

    private static void Digest(Results<float> results, VectorCase vector, string name, float[] values, double naiveError, double factor)
    {
        if (!vector.Outputs.ContainsKey(name))
            return;
        double[] exact = Array.ConvertAll(values, x => (double)x);
        double each = Contract.Allowed(exact, naiveError, factor), absolute = exact.Sum(Math.Abs);
        IEnumerable<double> elements = Enumerable.Range(0, DigestElements).Select(i => exact[(int)((long)i * (values.Length - 1) / (DigestElements - 1))]);
        double[] digest = [exact.Sum(), absolute, exact.Sum(x => x * x), .. elements];
        double[] within = [values.Length * each, values.Length * each, 2 * absolute * each, .. Enumerable.Repeat(each, digest.Length - DigestSums)];
        results.Output(name, Array.ConvertAll(digest, x => (float)x), within: within);
    }

    private static unsafe float[] Row(TensorView view)
    {
        fixed (byte* start = view)
            return new ReadOnlySpan<float>(start, checked((int)view.ElementCount)).ToArray();
    }

    /// <summary>The model of a case that has weights.</summary>
    private sealed class Loaded : IDisposable
    {
        public Loaded(VectorCase weights)
        {
            Model = new(Maths, ShapeOf(weights));
            float[] all = Model.Parameters.Values.ToArray<float>();
            foreach (Parameter parameter in Model.Parameters.All)
                weights.Need(parameter.Name).Floats.CopyTo(parameter.Of(all));
            Model.Parameters.Values.CopyFrom<float>(all);
            LogitError = weights.Outputs["float32.maxLogitError"].Data[0];
            GradientError = weights.Outputs["float32.maxGradientError"].Data[0];
        }

        public CpuMaths Maths { get; } = new(ComputeDevice.Cpu, threads: 2);

        public Llama Model { get; }

        public double LogitError { get; }

        public double GradientError { get; }

        public void Output(Results<float> results, VectorCase vector, string name, float[] values) =>
            results.Output(name, values, within: [Contract.Allowed(vector.Outputs[name].Data, LogitError, Contract.Forward)]);

        public void Dispose()
        {
            Model.Dispose();
            Maths.Dispose();
        }
    }
}
