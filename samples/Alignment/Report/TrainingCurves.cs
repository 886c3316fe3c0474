namespace Alignment;

/// <summary>A quantity over training steps.</summary>
internal sealed class Curve
{
    public List<double> Steps { get; } = [];

    public List<double> Values { get; } = [];

    public void Add(double step, double value)
    {
        Steps.Add(step);
        Values.Add(value);
    }
}

/// <summary>What the main job plots.</summary>
internal sealed class TrainingCurves
{
    public Curve SupervisedLoss { get; } = new();
    public Curve PreferenceLoss { get; } = new();
    public Curve Margin { get; } = new();
    public Curve ImitationAccuracy { get; } = new();
    public Curve PreferenceAccuracy { get; } = new();
    public Curve FurtherAccuracy { get; } = new();
}
