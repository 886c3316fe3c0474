using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>The clipped policy loss of PPO: max(−A r, −A clip(r, 1 − lower, 1 + upper)), r = e^(ln π − ln π_old).</summary>
/// <remarks>
/// Schulman et al. 2017, eq. 7. With a dual clip c, min(that, −A c) where A &lt; 0 (Ye et al. 2020). The log-ratio is clamped to ±<c>logRatioBound</c> before the
/// exponential, beyond which no gradient flows. The defaults are verl's; TRL and the paper have no dual clip and no bound.
/// </remarks>
public readonly struct PpoClip : ITokenLoss
{
    private readonly float lower, upper, dualClip, logRatioBound;

    /// <summary>The defaults. (<c>default(PpoClip)</c> has zeros, which <see cref="PolicyLoss"/> refuses.)</summary>
    public PpoClip() : this(lower: 0.2f)
    {
    }

    /// <summary>The loss with its constants.</summary>
    /// <param name="lower">r counts as at least 1 − lower; from 0 to 1.</param>
    /// <param name="upper">r counts as at most 1 + upper; at least 0.</param>
    /// <param name="dualClip">c, above 1; ∞ switches the dual clip off.</param>
    /// <param name="logRatioBound">The largest |ln r|; ∞ switches the bound off.</param>
    public PpoClip(float lower = 0.2f, float upper = 0.2f, float dualClip = 3f, float logRatioBound = 20f)
    {
        if (!(lower >= 0 && lower <= 1))
            throw new ArgumentOutOfRangeException(nameof(lower), lower, "lower must lie between 0 and 1.");
        if (!(upper >= 0) || !float.IsFinite(upper))
            throw new ArgumentOutOfRangeException(nameof(upper), upper, "upper must be at least 0.");
        if (!(dualClip > 1))
            throw new ArgumentOutOfRangeException(nameof(dualClip), dualClip, "dualClip must be above 1; infinity switches it off.");
        if (!(logRatioBound > 0))
            throw new ArgumentOutOfRangeException(nameof(logRatioBound), logRatioBound, "logRatioBound must be positive; infinity switches it off.");
        this.lower = lower;
        this.upper = upper;
        this.dualClip = dualClip;
        this.logRatioBound = logRatioBound;
    }

    /// <summary>The constructor's bounds hold of everything but <c>default(PpoClip)</c>.</summary>
    internal void Check()
    {
        if (!(logRatioBound > 0))
            throw new ArgumentException($"loss is default({nameof(PpoClip)}), whose clips and bound are 0; new {nameof(PpoClip)}() has the usual ones.", "loss");
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TokenTerms<T> Loss<T>(in TokenInputs<T> token) where T : struct, IReal<T>
    {
        T ratio = T.Exp(T.Clamp(token.LogProb - token.OldLogProb, T.From(-logRatioBound), T.From(logRatioBound)));
        T plain = -token.Advantage * ratio;
        T clipped = -token.Advantage * T.Clamp(ratio, T.From(1f - lower), T.From(1f + upper));
        T larger = T.Max(plain, clipped);
        T bound = -token.Advantage * dualClip; // ∞·0 is NaN, which the comparisons below leave alone
        T bounded = T.SelectLess(token.Advantage, T.Zero, T.SelectLess(bound, larger, bound, larger), larger);
        return new()
        {
            Loss = bounded,
            Clipped = T.SelectLess(plain, clipped, T.One, T.Zero),
            DualClipped = T.SelectLess(token.Advantage, T.Zero, T.SelectLess(bound, larger, T.One, T.Zero), T.Zero),
        };
    }
}
