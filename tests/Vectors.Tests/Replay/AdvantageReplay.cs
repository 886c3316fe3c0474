using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>GAE: verl/advantages, where the advantages are whitened too, and openrlhf/advantages, where they aren't.</summary>
public sealed class AdvantageReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "verl" && vector.File == "advantages.json"
        || vector.Folder == "openrlhf" && vector.File == "advantages.json" && vector.Name.StartsWith("gae-", StringComparison.Ordinal);

    // verl divides by the count + 1e-8.
    public double OracleTolerance => 2e-8;

    public Results<float> Library(VectorCase vector)
    {
        Case read = Read(vector);
        ComputeDevice device = DeviceUnderTest.Device;
        long sequences = read.Rewards.Shape[0], tokens = read.Rewards.Shape[1];
        float[] advantages = new float[read.Rewards.Data.Length], returns = new float[read.Rewards.Data.Length];
        TensorView mask = read.Mask is null ? default : TensorView.Of(read.Mask, sequences, tokens);
        var problem = new AdvantageProblem
        {
            Rewards = View(read.Rewards),
            Values = View(read.Values),
            Mask = mask,
            Gamma = (float)read.Gamma,
            Lambda = (float)read.Lambda,
        };
        GeneralizedAdvantage.Estimate(device, problem, TensorView.Of(advantages, sequences, tokens), TensorView.Of(returns, sequences, tokens));
        if (read.Whitened)
            GeneralizedAdvantage.Whiten(device, TensorView.Of(advantages, sequences, tokens), mask);
        var results = new Results<float>();
        results.Output("advantages", advantages);
        results.Output("returns", returns);
        return results;
    }

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        Case read = Read(vector);
        (Grid<T> advantages, Grid<T> returns) = AdvantageOracle.Estimate<T>(read.Rewards, read.Values, read.Mask, read.Gamma, read.Lambda);
        var results = new Results<T>();
        results.Output("advantages", read.Whitened ? AdvantageOracle.Whiten<T>(advantages.To<double>(), read.Mask).Data : advantages.Data);
        results.Output("returns", returns.Data);
        return results;
    }

    private static Case Read(VectorCase vector)
    {
        if (vector.Folder == "verl")
        {
            vector.Requires("adv_estimator", "gae");
            vector.KnowsOnly(["adv_estimator", "gamma", "lam"], ["token_level_rewards", "values", "response_mask"]);
            return new(vector.Need("token_level_rewards").Grid, vector.Need("values").Grid, vector.Need("response_mask").Booleans, vector.Number("gamma")!.Value, vector.Number("lam")!.Value, true);
        }
        vector.KnowsOnly(["gamma", "lambd"], ["rewards", "values", "action_mask"]);
        // OpenRLHF runs over masked tokens as if their rewards and values were 0.
        bool[] mask = vector.Need("action_mask").Booleans;
        Grid<double> Kept(string name)
        {
            VectorTensor tensor = vector.Need(name);
            return new([.. tensor.Data.Select((x, i) => mask[i] ? x : 0)], tensor.Shape);
        }
        return new(Kept("rewards"), Kept("values"), null, vector.Number("gamma")!.Value, vector.Number("lambd")!.Value, false);
    }

    private static TensorView View(Grid<double> grid) => TensorView.Of(Array.ConvertAll(grid.Data, x => (float)x), grid.Shape[0], grid.Shape[1]);

    private sealed record Case(Grid<double> Rewards, Grid<double> Values, bool[]? Mask, double Gamma, double Lambda, bool Whitened);
}
