namespace Alignment;

/// <summary>A learning rate that rises for some steps and then falls to a share of its top along half a cosine.</summary>
internal sealed record LearningRate(double Top, int Steps, int WarmUp, double FinalShare)
{
    public double At(int step)
    {
        double fall = FinalShare + (1 - FinalShare) * 0.5 * (1 + Math.Cos(Math.PI * Math.Min(1.0, (double)step / Steps)));
        return Top * Math.Min(1.0, (step + 1.0) / WarmUp) * fall;
    }

    /// <summary>Where it ends.</summary>
    public double Final => Top * FinalShare;
}
