using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>PPO's clipped loss: verl/policy-losses (vanilla), openrlhf/policy-loss and -earlier (ppo).</summary>
public sealed class PolicyReplay : IReplay
{
    // Both projects clamp the log-ratio here; the earliest release of OpenRLHF does not.
    private const double LogRatioBound = 20;

    private static readonly string[] VerlParameters =
        ["loss_mode", "loss_agg_mode", "clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor"];

    private static readonly string[] OpenRlhfParameters =
        ["version", "clip_eps", "clip_eps_low", "clip_eps_high", "dual_clip", "token_level_loss", "policy_loss_type", "is_correction_level", "is_correction_mode",
         "is_correction_gating", "is_correction_threshold", "dp_size", "batch_num_tokens", "global_batch_size"];

    public bool Owns(VectorCase vector) => vector.Folder == "verl" && vector.File == "policy-losses.json"
        || vector.Folder == "openrlhf" && vector.File is "policy-loss.json" or "policy-loss-earlier.json";

    // verl's masked means divide by the count + 1e-8, sometimes of one.
    public double OracleTolerance => 2e-8;

    public Results<float> Library(VectorCase vector)
    {
        Case read = Read(vector);
        ComputeDevice device = DeviceUnderTest.Device;
        using var workspace = new Workspace(device);
        long sequences = read.LogProb.Shape[0], tokens = read.LogProb.Shape[1];
        float[] gradient = new float[read.LogProb.Count], metrics = new float[PolicyMetrics.Count];
        var batch = new TokenBatch
        {
            LogProb = TensorView.Of(read.LogProb.Floats, sequences, tokens),
            OldLogProb = TensorView.Of(read.OldLogProb.Floats, sequences, tokens),
            Advantage = TensorView.Of(read.Advantage.Floats, sequences, tokens),
            Mask = TensorView.Of(read.Mask.Booleans, sequences, tokens),
            Reduction = read.Reduction switch
            {
                Reduction.TokenMean => TokenReduction.TokenMean,
                Reduction.TokenSum => TokenReduction.TokenSum,
                Reduction.SequenceMeanTokenSum => TokenReduction.SequenceMeanTokenSum,
                _ => TokenReduction.SequenceMeanTokenMean,
            },
            Divisor = (float?)read.Divisor,
        };
        PolicyLoss.Evaluate(device, batch, new PpoClip((float)read.Lower, (float)read.Upper, (float)read.DualClip, (float)read.Bound),
            new TokenLossOutputs { LogProbGradient = TensorView.Of(gradient, sequences, tokens) }, TensorView.Of(metrics, PolicyMetrics.Count), workspace);
        return Named(vector, gradient, metrics[PolicyMetrics.Loss], metrics[PolicyMetrics.ClipFraction], metrics[PolicyMetrics.DualClipFraction], metrics[PolicyMetrics.OldKl]);
    }

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        Case read = Read(vector);
        PolicyResult<T> result = PolicyOracle.PpoClip<T>(read.LogProb.Grid, read.OldLogProb.Grid, read.Advantage.Grid, read.Mask.Booleans, read.Lower, read.Upper,
            read.DualClip, read.Bound, read.Reduction, read.Divisor);
        return Named(vector, result.LogProb.Data, result.Loss, result.ClipFraction, result.DualClipFraction, result.OldKl,
            double.CreateTruncating(result.LossMagnitude));
    }

    private static Results<T> Named<T>(VectorCase vector, T[] gradient, T loss, T clipFraction, T dualClipFraction, T oldKl, double lossMagnitude = 0) where T : unmanaged
    {
        bool verl = vector.Folder == "verl";
        var results = new Results<T>();
        results.Output("loss", [loss], magnitude: lossMagnitude);
        results.Output(verl ? "pg_clipfrac" : "clip_ratio", [clipFraction]);
        results.Output("pg_clipfrac_lower", [dualClipFraction]);
        results.Output("ppo_kl", [oldKl]);
        results.Gradient(verl ? "log_prob" : "log_probs", gradient);
        return results;
    }

    private static Case Read(VectorCase vector) => vector.Folder == "verl" ? ReadVerl(vector) : ReadOpenRlhf(vector);

    private static Case ReadVerl(VectorCase vector)
    {
        vector.Requires("loss_mode", "vanilla");
        vector.KnowsOnly(VerlParameters, ["old_log_prob", "log_prob", "advantages", "response_mask"]);
        VectorTensor logProb = vector.Need("log_prob"), mask = vector.Need("response_mask");
        double both = vector.Number("clip_ratio")!.Value, ranks = vector.Number("dp_size") ?? 1;
        // Normalisers of the whole step are counted over all ranks, whose losses are averaged.
        double? tokens = vector.Number("batch_num_tokens") / ranks, sequences = vector.Number("global_batch_size") / ranks;
        (Reduction reduction, double? divisor) = vector.Text("loss_agg_mode") switch
        {
            "token-mean" => (Reduction.TokenMean, tokens),
            "token-sum" => (Reduction.TokenSum, ranks == 1 ? null : (double?)(1 / ranks)),
            "seq-mean-token-sum" => (Reduction.SequenceMeanTokenSum, sequences),
            "seq-mean-token-mean" => (Reduction.SequenceMeanTokenMean, sequences),
            "seq-mean-token-sum-norm" => (Reduction.SequenceMeanTokenSum, (sequences ?? Filled(mask)) * (vector.Number("loss_scale_factor") ?? logProb.Shape[1])),
            { } mode => throw new NotReplayedException($"loss_agg_mode {mode}"),
            null => throw new NotReplayedException("no loss_agg_mode"),
        };
        return new(logProb, vector.Need("old_log_prob"), vector.Need("advantages"), mask, vector.Number("clip_ratio_low") ?? both, vector.Number("clip_ratio_high") ?? both,
            vector.Number("clip_ratio_c")!.Value, LogRatioBound, reduction, divisor);
    }

    private static Case ReadOpenRlhf(VectorCase vector)
    {
        vector.Requires("policy_loss_type", "ppo");
        vector.Requires("is_correction_level", "off");
        vector.KnowsOnly(OpenRlhfParameters, ["log_probs", "old_log_probs", "advantages", "action_mask"]);
        double? both = vector.Number("clip_eps"), ranks = vector.Number("dp_size") ?? 1;
        bool earliest = vector.Text("version") == "0.6.4", perToken = !earliest && (vector.Parameter("token_level_loss") is null || vector.Flag("token_level_loss"));
        return new(vector.Need("log_probs"), vector.Need("old_log_probs"), vector.Need("advantages"), vector.Need("action_mask"),
            both ?? vector.Number("clip_eps_low")!.Value, both ?? vector.Number("clip_eps_high")!.Value, vector.Number("dual_clip") ?? double.PositiveInfinity,
            earliest ? double.PositiveInfinity : LogRatioBound, perToken ? Reduction.TokenMean : Reduction.SequenceMeanTokenMean,
            (perToken ? vector.Number("batch_num_tokens") : vector.Number("global_batch_size")) / ranks);
    }

    private static int Filled(VectorTensor mask) => mask.Data.Chunk(mask.Shape[1]).Count(row => row.Any(x => x != 0));

    private sealed record Case(VectorTensor LogProb, VectorTensor OldLogProb, VectorTensor Advantage, VectorTensor Mask, double Lower, double Upper, double DualClip, double Bound,
        Reduction Reduction, double? Divisor);
}
