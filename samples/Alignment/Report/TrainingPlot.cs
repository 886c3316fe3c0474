using ScottPlot;
using SkiaSharp;

namespace Alignment;

/// <summary>Draws the main job's curves as three panels over the training steps.</summary>
internal static class TrainingPlot
{
    private const int Width = 1000, PanelHeight = 280, Panels = 3;
    private const float LineWidth = 2, TitleSize = 15, LabelSize = 12;

    // Okabe and Ito's colours, told apart by colour-blind eyes too.
    private static readonly Color Imitation = Color.FromHex("#0072B2"), Preference = Color.FromHex("#D55E00"), Further = Color.FromHex("#56B4E9"), Boundary = Color.FromHex("#888888");

    /// <summary>Writes PNG and SVG.</summary>
    /// <param name="curves">What to draw.</param>
    /// <param name="switchStep">The step at which preference optimisation begins.</param>
    /// <param name="folder">Where to; it is made if it isn't there.</param>
    /// <param name="name">The files' name, without ending.</param>
    /// <returns>The two paths.</returns>
    public static (string Png, string Svg) Save(TrainingCurves curves, int switchStep, string folder, string name)
    {
        var all = new Multiplot();
        all.AddPlots(Panels);

        Plot loss = all.GetPlot(0);
        Add(loss, curves.SupervisedLoss, Imitation, "imitation: −ln p per answer token");
        Add(loss, curves.PreferenceLoss, Preference, "preferences: DPO loss per pair");
        Finish(loss, "Loss", "nats", switchStep);

        Plot margin = all.GetPlot(1);
        Add(margin, curves.Margin, Preference, "reward of the right answer less that of the wrong one");
        Finish(margin, "Reward margin on training pairs", "β · log-ratio, nats", switchStep);

        Plot accuracy = all.GetPlot(2);
        Add(accuracy, curves.ImitationAccuracy, Imitation, "imitating noisy demonstrations");
        Add(accuracy, curves.PreferenceAccuracy, Preference, "then preferences");
        Add(accuracy, curves.FurtherAccuracy, Further, "imitating further instead");
        accuracy.Axes.SetLimitsY(0, 1.05);
        Finish(accuracy, "Exact answers to unseen questions", "share", switchStep);
        accuracy.XLabel("training step", LabelSize);

        double last = switchStep + curves.PreferenceLoss.Steps.Count;
        foreach (Plot plot in all.GetPlots())
            plot.Axes.SetLimitsX(0, last);

        Directory.CreateDirectory(folder);
        string png = Path.Combine(folder, name + ".png"), svg = Path.Combine(folder, name + ".svg");
        all.SavePng(png, Width, Panels * PanelHeight);
        using (var stream = File.Create(svg))
        using (SKCanvas canvas = SKSvgCanvas.Create(SKRect.Create(Width, Panels * PanelHeight), stream))
            all.Render(canvas, new PixelRect(0, Width, Panels * PanelHeight, 0));
        return (png, svg);
    }

    private static void Add(Plot plot, Curve curve, Color color, string name)
    {
        var line = plot.Add.ScatterLine(curve.Steps.ToArray(), curve.Values.ToArray(), color);
        line.LineWidth = LineWidth;
        line.LegendText = name;
    }

    private static void Finish(Plot plot, string title, string unit, int switchStep)
    {
        plot.Title(title, TitleSize);
        plot.YLabel(unit, LabelSize);
        var boundary = plot.Add.VerticalLine(switchStep, width: 1, Boundary, LinePattern.Dashed);
        boundary.ExcludeFromLegend = true;
        plot.ShowLegend(ScottPlot.Alignment.UpperLeft);
    }
}
