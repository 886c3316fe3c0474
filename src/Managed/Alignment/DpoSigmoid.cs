using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>Direct preference optimisation: −(1 − ε) ln σ(β m) − ε ln σ(−β m), m the margin of the two log-ratios.</summary>
/// <remarks>
/// Rafailov et al. 2023, eq. 7; with label smoothing ε Mitchell 2023 ("conservative DPO"). ε as in the original code, TRL up to 0.24, OpenRLHF and HALOs;
/// TRL 1.x ignores label smoothing in this loss.
/// </remarks>
public readonly struct DpoSigmoid : IPairLoss
{
    private readonly float beta, labelSmoothing;

    /// <summary>β = 0.1, no label smoothing. (<c>default(DpoSigmoid)</c> has β = 0, which <see cref="PreferenceLoss"/> refuses.)</summary>
    public DpoSigmoid() : this(0.1f)
    {
    }

    /// <summary>The loss with its two constants.</summary>
    /// <param name="beta">How strongly the policy is tied to the reference; positive.</param>
    /// <param name="labelSmoothing">The probability that a preference is the wrong way round, from 0 to below ½.</param>
    public DpoSigmoid(float beta, float labelSmoothing = 0f)
    {
        if (!(beta > 0) || !float.IsFinite(beta))
            throw new ArgumentOutOfRangeException(nameof(beta), beta, "beta must be a positive number.");
        if (!(labelSmoothing >= 0 && labelSmoothing < 0.5f))
            throw new ArgumentOutOfRangeException(nameof(labelSmoothing), labelSmoothing, "labelSmoothing must be at least 0 and below 0.5.");
        this.beta = beta;
        this.labelSmoothing = labelSmoothing;
    }

    /// <inheritdoc/>
    public float RewardScale => beta;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T>
    {
        // −ln σ(−x) = x − ln σ(x): one softplus serves both terms.
        T scaled = beta * pair.Margin;
        return labelSmoothing * scaled + T.Softplus(-scaled);
    }
}
