using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>DPO with the sigmoid loss: trl/dpo-*, openrlhf/preference, openrlhf/torchtune.</summary>
public sealed class PreferenceReplay : IReplay
{
    // Within this of 1, TRL 1.x takes the α-divergence to be the reverse KL.
    private const double AlphaIsOne = 1e-6;

    private static readonly string[] Parameters =
        ["function", "loss_type", "loss_weights", "beta", "label_smoothing", "reference_free", "f_divergence_type", "f_alpha_divergence_coef", "discopop_tau", "use_weighting", "ld_alpha", "ipo"];

    private static readonly string[] Inputs =
        ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "chosen_lengths", "rejected_lengths",
         "policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps"];

    public bool Owns(VectorCase vector) => vector.Folder == "trl" && vector.File is "dpo-0.24.0.json" or "dpo-1.16.0.json"
        || vector.Folder == "openrlhf" && vector.File is "preference.json" or "torchtune.json" && vector.Parameter("beta") is not null;

    public Results<float> Library(VectorCase vector)
    {
        Case read = Read(vector);
        var loss = new DpoSigmoid((float)read.Beta, (float)read.LabelSmoothing);
        Evaluated losses = Evaluate(read, loss, read.LossUsesReference), rewards = read.LossUsesReference ? losses : Evaluate(read, loss, true);
        return Named(read, losses, rewards);
    }

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        Case read = Read(vector);
        PreferenceResult<T> Evaluate(bool reference) => PreferenceOracle.DpoSigmoid<T>(read.Chosen, read.Rejected,
            reference ? read.ReferenceChosen : null, reference ? read.ReferenceRejected : null, read.Beta, read.LabelSmoothing, read.Sum);
        PreferenceResult<T> losses = Evaluate(read.LossUsesReference), rewards = Evaluate(true);
        T[] zeros = new T[read.Chosen.Length];
        return Named(read, losses.Losses, [losses.Loss], losses.Chosen, losses.Rejected, read.LossUsesReference ? losses.ReferenceChosen : zeros,
            read.LossUsesReference ? losses.ReferenceRejected : zeros, rewards.ChosenReward, rewards.RejectedReward,
            [losses.Loss, rewards.Metrics.ChosenReward, rewards.Metrics.RejectedReward, rewards.Metrics.RewardMargin, rewards.Metrics.RewardAccuracy, losses.Metrics.ChosenLogProb, losses.Metrics.RejectedLogProb]);
    }

    private static Results<float> Named(Case read, Evaluated losses, Evaluated rewards) =>
        Named(read, losses.Losses, [losses.Metrics[PreferenceMetrics.Loss]], losses.Chosen, losses.Rejected, losses.ReferenceChosen, losses.ReferenceRejected,
            rewards.ChosenReward, rewards.RejectedReward, rewards.Metrics);

    private static Results<T> Named<T>(Case read, T[] losses, T[] loss, T[] chosen, T[] rejected, T[] referenceChosen, T[] referenceRejected,
        T[] chosenReward, T[] rejectedReward, T[] metrics) where T : unmanaged
    {
        var results = new Results<T>();
        results.Output("losses", losses);
        results.Output("loss", loss);
        results.Output("chosen_rewards", chosenReward);
        results.Output("rejected_rewards", rejectedReward);
        results.Output("rewards/chosen", [metrics[PreferenceMetrics.ChosenReward]]);
        results.Output("rewards/rejected", [metrics[PreferenceMetrics.RejectedReward]]);
        results.Output("rewards/margins", [metrics[PreferenceMetrics.RewardMargin]]);
        results.Output("rewards/accuracies", [metrics[PreferenceMetrics.RewardAccuracy]]);
        results.Output("logps/chosen", [metrics[PreferenceMetrics.ChosenLogProb]]);
        results.Output("logps/rejected", [metrics[PreferenceMetrics.RejectedLogProb]]);
        results.Gradient(read.Prefix + "chosen_logps", chosen);
        results.Gradient(read.Prefix + "rejected_logps", rejected);
        results.Gradient(read.ReferencePrefix + "chosen_logps", referenceChosen);
        results.Gradient(read.ReferencePrefix + "rejected_logps", referenceRejected);
        return results;
    }

    private static Evaluated Evaluate(Case read, DpoSigmoid loss, bool withReference)
    {
        ComputeDevice device = DeviceUnderTest.Device;
        using var workspace = new Workspace(device);
        int pairs = read.Chosen.Length;
        var result = new Evaluated(new float[pairs], new float[pairs], new float[pairs], new float[pairs], new float[pairs], new float[pairs], new float[pairs], new float[PreferenceMetrics.Count]);
        var batch = new PairBatch { Chosen = View(read.Chosen), Rejected = View(read.Rejected), Reduction = read.Sum ? LossReduction.Sum : LossReduction.Mean };
        var outputs = new PairOutputs
        {
            Loss = TensorView.Of(result.Losses, pairs),
            ChosenGradient = TensorView.Of(result.Chosen, pairs),
            RejectedGradient = TensorView.Of(result.Rejected, pairs),
            ChosenReward = TensorView.Of(result.ChosenReward, pairs),
            RejectedReward = TensorView.Of(result.RejectedReward, pairs),
        };
        if (withReference)
        {
            batch.ReferenceChosen = View(read.ReferenceChosen);
            batch.ReferenceRejected = View(read.ReferenceRejected);
            outputs.ReferenceChosenGradient = TensorView.Of(result.ReferenceChosen, pairs);
            outputs.ReferenceRejectedGradient = TensorView.Of(result.ReferenceRejected, pairs);
        }
        PreferenceLoss.Evaluate(device, batch, loss, outputs, TensorView.Of(result.Metrics, PreferenceMetrics.Count), workspace);
        return result;
    }

    private static TensorView View(double[] values) => TensorView.Of(Array.ConvertAll(values, x => (float)x), values.Length);

    private static Case Read(VectorCase vector)
    {
        vector.KnowsOnly(Parameters, Inputs);
        vector.Requires("ipo", false);
        vector.Requires("use_weighting", false);
        vector.Requires("ld_alpha", "nothing");
        string type = vector.Parameter("loss_type") is { } loss ? loss.ToString() : "sigmoid";
        bool list = type == "[\"sigmoid\"]";
        if (!list && type != "sigmoid")
            throw new NotReplayedException($"loss_type {type}");
        string? divergence = vector.Text("f_divergence_type");
        bool reverse = divergence is null or "reverse_kl" || list && divergence == "alpha_divergence" && Math.Abs(vector.Number("f_alpha_divergence_coef")!.Value - 1) < AlphaIsOne;
        if (!reverse)
            throw new NotReplayedException($"f_divergence_type {divergence}");
        bool openRlhf = vector.Folder == "openrlhf";
        string prefix = openRlhf ? "policy_" : "", referencePrefix = openRlhf ? "reference_" : "ref_";
        return new(vector.Need(prefix + "chosen_logps").Data, vector.Need(prefix + "rejected_logps").Data, vector.Need(referencePrefix + "chosen_logps").Data,
            vector.Need(referencePrefix + "rejected_logps").Data, vector.Number("beta")!.Value,
            // TRL 1.x doesn't read it in this loss.
            list ? 0 : vector.Number("label_smoothing") ?? 0,
            !vector.Flag("reference_free"), vector.File == "torchtune.json", prefix, referencePrefix);
    }

    private sealed record Case(double[] Chosen, double[] Rejected, double[] ReferenceChosen, double[] ReferenceRejected, double Beta, double LabelSmoothing,
        bool LossUsesReference, bool Sum, string Prefix, string ReferencePrefix);

    private sealed record Evaluated(float[] Losses, float[] Chosen, float[] Rejected, float[] ReferenceChosen, float[] ReferenceRejected,
        float[] ChosenReward, float[] RejectedReward, float[] Metrics);
}
