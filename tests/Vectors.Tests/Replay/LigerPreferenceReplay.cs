using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>liger/preference.json: DPO fused with the last linear layer, that is log-probs of answers from hidden states, the loss, and back; plus α times the cross-entropy of the chosen answers.</summary>
public sealed class LigerPreferenceReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "liger" && vector.File == "preference.json";

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        // Chunks change nothing; discopop_tau is another loss's, and the sigmoid loss passes over label_smoothing.
        vector.KnowsOnly(["loss", "loss_type", "beta", "alpha", "label_smoothing", "discopop_tau", "compute_nll_loss", "use_ref_model", "average_log_prob", "chunk_size", "ignore_index"],
            ["input", "weight", "bias", "target", "ref_input", "ref_weight", "ref_bias"]);
        vector.Requires("loss", "dpo");
        vector.Requires("loss_type", "sigmoid");
        vector.Requires("use_ref_model", true);
        VectorTensor target = vector.Need("target");
        int answers = target.Shape[0], pairs = answers / 2, length = target.Shape[1];
        TokenHidden Model(string prefix)
        {
            VectorTensor input = vector.Need(prefix + "input");
            return new(new(input.Data, target.Count, input.Shape[^1]), vector.Need(prefix + "weight").Grid, target.Integers) { Shaping = new(vector.Input(prefix + "bias")?.Data) };
        }
        TokenHidden policy = Model(""), reference = Model("ref_");
        bool mean = vector.Flag("average_log_prob");
        T[] ofPolicy = policy.Answers<T>(library, answers, mean), ofReference = reference.Answers<T>(library, answers, mean);
        PreferenceResult<T> loss = Loss<T>(library, [.. ofPolicy, .. ofReference], pairs, vector.Number("beta")!.Value);

        bool withNll = vector.Parameter("compute_nll_loss") is not null && vector.Flag("compute_nll_loss");
        double chosenTokens = target.Integers.Take(pairs * length).Count(token => token != -100), alpha = withNll ? vector.Number("alpha")!.Value : 0;
        double nll = withNll ? -policy.Answers<T>(library, answers, mean: false).Take(pairs).Sum(double.CreateTruncating) / chosenTokens : 0;

        var results = new Results<T>();
        results.Output("loss", [T.CreateTruncating(double.CreateTruncating(loss.Loss) + alpha * nll)]);
        results.Output("policy_chosen_logps", ofPolicy[..pairs]);
        results.Output("policy_rejected_logps", ofPolicy[pairs..]);
        results.Output("policy_nll_loss", [T.CreateTruncating(nll)]);
        results.Output("chosen_rewards", loss.ChosenReward);
        results.Output("rejected_rewards", loss.RejectedReward);
        // Over all positions, ignored ones too. Sums of everything: as large as their terms, of about 1.
        T[] means = (policy with { Targets = new long[target.Count] }).MeanLogit<T>(library);
        results.Output("policy_chosen_logits_mean", [T.CreateTruncating(means.Take(pairs * length).Average(double.CreateTruncating))], magnitude: 1);
        results.Output("policy_rejected_logits_mean", [T.CreateTruncating(means.Skip(pairs * length).Average(double.CreateTruncating))], magnitude: 1);

        HiddenGradient<T> gradient = policy.AnswersBackward<T>(library, answers, mean, [.. loss.Chosen.Concat(loss.Rejected).Select(double.CreateTruncating)]);
        HiddenGradient<T> ofNll = policy.AnswersBackward<T>(library, answers, mean: false, [.. Enumerable.Range(0, answers).Select(answer => answer < pairs ? -alpha / chosenTokens : 0)]);
        results.Gradient("input", [.. gradient.Hidden.Data.Zip(ofNll.Hidden.Data, (a, b) => a + b)]);
        results.Gradient("weight", [.. gradient.Vocabulary.Data.Zip(ofNll.Vocabulary.Data, (a, b) => a + b)]);
        results.Gradient("bias", [.. gradient.Bias.Zip(ofNll.Bias, (a, b) => a + b)]);
        return results;
    }

    // Chosen, rejected, and the same of the reference.
    private static PreferenceResult<T> Loss<T>(bool library, T[] logProbs, int pairs, double beta) where T : unmanaged, IFloatingPointIeee754<T>
    {
        double[][] batch = [.. logProbs.Chunk(pairs).Select(part => Array.ConvertAll(part, double.CreateTruncating))];
        if (!library)
            return PreferenceOracle.DpoSigmoid<T>(batch[0], batch[1], batch[2], batch[3], beta);
        float[][] inputs = [.. batch.Select(part => Array.ConvertAll(part, x => (float)x))], outputs = [.. Enumerable.Range(0, 5).Select(_ => new float[pairs])];
        var metrics = new float[PreferenceMetrics.Count];
        using var workspace = new Workspace(ComputeDevice.Cpu);
        PreferenceLoss.Evaluate(ComputeDevice.Cpu,
            new() { Chosen = TensorView.Of(inputs[0]), Rejected = TensorView.Of(inputs[1]), ReferenceChosen = TensorView.Of(inputs[2]), ReferenceRejected = TensorView.Of(inputs[3]) }, new DpoSigmoid((float)beta),
            new() { Loss = TensorView.Of(outputs[0]), ChosenGradient = TensorView.Of(outputs[1]), RejectedGradient = TensorView.Of(outputs[2]), ChosenReward = TensorView.Of(outputs[3]), RejectedReward = TensorView.Of(outputs[4]) },
            TensorView.Of(metrics), workspace);
        T[] Typed(float[] values) => (T[])(object)values;
        return new(Typed(outputs[0]), T.CreateTruncating(metrics[PreferenceMetrics.Loss]), Typed(outputs[1]), Typed(outputs[2]), [], [], Typed(outputs[3]), Typed(outputs[4]), null!);
    }
}
