namespace TransformerKernels;

/// <summary>Rewards and values of generated tokens. All [sequence, token], float32, any strides.</summary>
public ref struct AdvantageProblem
{
    /// <summary>γ and λ are 1 unless set.</summary>
    public AdvantageProblem()
    {
    }

    /// <summary>The reward given at each token. Required.</summary>
    public TensorView Rewards { get; set; }
    /// <summary>The value estimate at each token. Required.</summary>
    public TensorView Values { get; set; }
    /// <summary>Which tokens count, bool; all if absent. The others are stepped over: value and accumulator of the next token that counts are carried.</summary>
    public TensorView Mask { get; set; }
    /// <summary>The discount γ of the next token's value, from 0 to 1.</summary>
    public float Gamma { get; set; } = 1f;
    /// <summary>The decay λ of later errors, from 0 to 1.</summary>
    public float Lambda { get; set; } = 1f;
}

/// <summary>Generalized advantage estimation (GAE).</summary>
/// <remarks>
/// From the last token back: δₜ = rₜ + γ Vₜ₊₁ − Vₜ, Aₜ = δₜ + γ λ Aₜ₊₁, with V and A zero after the end; the return is Aₜ + Vₜ.
/// Schulman et al. 2016, eq. 16. Masked tokens are skipped as in verl (OpenRLHF lets each cost γλ); their outputs are 0.
/// </remarks>
public static class GeneralizedAdvantage
{
    /// <summary>Computes advantages and returns; not whitened.</summary>
    /// <param name="device">Where to run.</param>
    /// <param name="problem">Rewards, values, mask, γ and λ.</param>
    /// <param name="advantages">[sequence, token], overwritten; 0 where the mask is false.</param>
    /// <param name="returns">[sequence, token], overwritten; 0 where the mask is false. May be absent (default).</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape, on another device, or overlaps another; the message names it.</exception>
    public static void Estimate(ComputeDevice device, in AdvantageProblem problem, TensorView advantages, TensorView returns = default)
    {
        Require.Device(device);
        Require.Input(device, problem.Rewards, "problem.Rewards", -1, -1);
        long sequences = problem.Rewards.Length(0), tokens = problem.Rewards.Length(1);
        Require.Input(device, problem.Values, "problem.Values", sequences, tokens);
        if (problem.Mask.IsPresent)
            Require.Input(device, problem.Mask, "problem.Mask", [ElementType.Bool], sequences, tokens);
        CheckFactor(problem.Gamma, "problem.Gamma");
        CheckFactor(problem.Lambda, "problem.Lambda");
        Require.Output(device, advantages, nameof(advantages), sequences, tokens);
        Require.OptionalOutput(device, returns, nameof(returns), sequences, tokens);
        Require.Disjoint(advantages, nameof(advantages), returns, nameof(returns));
        CheckApart(problem, advantages, nameof(advantages));
        CheckApart(problem, returns, nameof(returns));
        device.EstimateAdvantages(problem, advantages, returns);
    }

    /// <summary>Shifts and scales the kept values to mean 0 and variance 1, in place: (x − mean) / √(variance + 1e-8), unbiased variance.</summary>
    /// <remarks>The convention of TRL and verl. The others become 0.</remarks>
    /// <param name="device">Where to run.</param>
    /// <param name="values">[sequence, token], float32, replaced.</param>
    /// <param name="mask">[sequence, token], bool; all if absent (default). It must keep at least two values: the variance of one is not defined.</param>
    /// <param name="keepMean">Whether the mean is added back afterwards.</param>
    /// <exception cref="ArgumentException">A tensor is absent, of the wrong type or shape or on another device, or the mask keeps fewer than two values.</exception>
    public static void Whiten(ComputeDevice device, TensorView values, TensorView mask = default, bool keepMean = false)
    {
        Require.Device(device);
        Require.Output(device, values, nameof(values), -1, -1);
        if (mask.IsPresent)
            Require.Input(device, mask, nameof(mask), [ElementType.Bool], values.Length(0), values.Length(1));
        Require.Disjoint(values, nameof(values), mask, nameof(mask));
        device.Whiten(values, mask, keepMean);
    }

    private static void CheckFactor(float factor, string name)
    {
        if (!(factor >= 0 && factor <= 1))
            throw new ArgumentOutOfRangeException(name, factor, $"{name} must lie between 0 and 1.");
    }

    private static void CheckApart(in AdvantageProblem problem, in TensorView written, string name)
    {
        Require.Disjoint(written, name, problem.Rewards, "problem.Rewards");
        Require.Disjoint(written, name, problem.Values, "problem.Values");
        Require.Disjoint(written, name, problem.Mask, "problem.Mask");
    }
}
