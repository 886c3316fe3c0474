using ScottPlot;
using SkiaSharp;

namespace Alignment;

/// <summary>Draws the main job's curves: above while it imitates, below while it learns from preferences; losses on the left, accuracies on the right.</summary>
internal static class TrainingPlot
{
    private const int Width = 1200, Height = 760, Rows = 2, Columns = 2;
    private const float LineWidth = 2, TitleSize = 16, LabelSize = 13, TickSize = 12;

    // Without serifs, the first that the machine has.
    private static readonly string[] Families = ["Segoe UI", "Helvetica Neue", "Open Sans", "DejaVu Sans", "Liberation Sans", "Arial"];

    // A little above 1, so that a line at 1 doesn't lie on the frame.
    private const double AccuracyTop = 1.05;

    // Okabe and Ito's colours, told apart by colour-blind eyes too.
    private static readonly Color Imitation = Color.FromHex("#0072B2"), Preference = Color.FromHex("#D55E00"), Reward = Color.FromHex("#009E73"), Further = Color.FromHex("#56B4E9");

    /// <summary>Writes PNG and SVG.</summary>
    /// <param name="curves">What to draw.</param>
    /// <param name="folder">Where to; it is made if it isn't there.</param>
    /// <param name="name">The files' name, without ending.</param>
    /// <returns>The two paths.</returns>
    public static (string Png, string Svg) Save(TrainingCurves curves, string folder, string name)
    {
        var all = new Multiplot { Layout = new ScottPlot.MultiplotLayouts.Grid(Rows, Columns) };
        all.AddPlots(Rows * Columns);

        Plot imitation = all.GetPlot(0);
        Add(imitation, curves.SupervisedLoss, Imitation, "−ln p per answer token");
        Finish(imitation, "Imitating noisy demonstrations", "loss (nats)", ScottPlot.Alignment.UpperRight);

        Plot before = all.GetPlot(1);
        Add(before, curves.ImitationAccuracy, Imitation, "imitating");
        Finish(before, "Accuracy while imitating", "exact answers (share)", ScottPlot.Alignment.LowerRight);

        Plot preference = all.GetPlot(2);
        Add(preference, curves.PreferenceLoss, Preference, "DPO loss per pair");
        Add(preference, curves.Margin, Reward, "reward margin");
        Finish(preference, "Learning from preferences", "loss, margin (nats)", ScottPlot.Alignment.UpperLeft);

        Plot after = all.GetPlot(3);
        Add(after, curves.PreferenceAccuracy, Preference, "preferences");
        Add(after, curves.FurtherAccuracy, Further, "further imitation instead");
        Finish(after, "Accuracy afterwards", "exact answers (share)", ScottPlot.Alignment.LowerRight);
        before.Axes.SetLimitsY(0, AccuracyTop);
        after.Axes.SetLimitsY(0, AccuracyTop);

        Directory.CreateDirectory(folder);
        string png = Path.Combine(folder, name + ".png"), svg = Path.Combine(folder, name + ".svg");
        all.SavePng(png, Width, Height);
        using (FileStream stream = File.Create(svg))
        using (SKCanvas canvas = SKSvgCanvas.Create(SKRect.Create(Width, Height), stream))
        {
            canvas.Clear(SKColors.White);
            all.Render(canvas, new PixelRect(0, Width, Height, 0));
        }
        return (png, svg);
    }

    private static void Add(Plot plot, Curve curve, Color color, string name)
    {
        var line = plot.Add.ScatterLine(curve.Steps.ToArray(), curve.Values.ToArray(), color);
        line.LineWidth = LineWidth;
        line.LegendText = name;
    }

    private static void Finish(Plot plot, string title, string unit, ScottPlot.Alignment legend)
    {
        plot.Font.Set(Array.Find(Families, family => Fonts.GetTypeface(family, bold: false, italic: false) is { } face && face.FamilyName == family) ?? Fonts.Default);
        plot.Title(title, TitleSize);
        plot.XLabel("training step", LabelSize);
        plot.YLabel(unit, LabelSize);
        plot.Axes.Bottom.TickLabelStyle.FontSize = TickSize;
        plot.Axes.Left.TickLabelStyle.FontSize = TickSize;
        plot.Legend.FontSize = LabelSize;
        plot.ShowLegend(legend);
    }
}
