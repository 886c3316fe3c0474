namespace Alignment;

/// <summary>The numbers of one step of <see cref="AdamW"/>.</summary>
/// <remarks>
/// With g the gradient, scaled down so that the norm of all is at most <see cref="LargestNorm"/>: m = β₁ m + (1 − β₁) g; v = β₂ v + (1 − β₂) g²;
/// w = keep · w − stepSize · m / (√v / rootCorrection2 + ε).
/// </remarks>
internal readonly record struct AdamWStep(double LargestNorm, float Beta1, float OneMinusBeta1, float Beta2, float OneMinusBeta2, float Epsilon, float Keep, float StepSize, float RootCorrection2);
