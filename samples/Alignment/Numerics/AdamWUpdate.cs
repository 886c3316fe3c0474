using System.Numerics;

namespace Alignment;

/// <summary>The norm of a gradient, and a step of <see cref="AdamW"/> over one long vector of weights.</summary>
internal static unsafe class AdamWUpdate
{
    // Weights of one work item; partial sums of the gradient's norm belong to items, so the cut must not depend on the number of threads.
    private const int WeightsPerItem = 16384;

    [ThreadStatic]
    private static double[]? squares;

    /// <summary>√Σ g², summed in double.</summary>
    public static double Norm(Team team, ReadOnlySpan<float> gradients)
    {
        int items = Items(gradients.Length);
        if (squares is null || squares.Length < items)
            squares = new double[items];
        fixed (float* from = gradients)
        fixed (double* sums = squares)
        {
            var work = new NormWork { Gradients = from, Sums = sums, Count = gradients.Length };
            team.Run(ref work, items);
        }
        double total = 0;
        foreach (double square in squares.AsSpan(0, items))
            total += square;
        return Math.Sqrt(total);
    }

    /// <param name="gradientScale">What every gradient is multiplied by first.</param>
    public static void Run(Team team, Span<float> values, ReadOnlySpan<float> gradients, Span<float> first, Span<float> second, float gradientScale, in AdamWStep step)
    {
        fixed (float* v = values, g = gradients, f = first, s = second)
        {
            var work = new UpdateWork { Values = v, Gradients = g, First = f, Second = s, Count = values.Length, GradientScale = gradientScale, Step = step };
            team.Run(ref work, Items(work.Count));
        }
    }

    private static int Items(int weights) => (weights + WeightsPerItem - 1) / WeightsPerItem;

    private struct NormWork : IWork
    {
        public float* Gradients;
        public double* Sums;
        public int Count;

        public readonly void Run(int item)
        {
            double sum = 0;
            for (int i = item * WeightsPerItem; i < Math.Min((item + 1) * WeightsPerItem, Count); i++)
                sum += (double)Gradients[i] * Gradients[i];
            Sums[item] = sum;
        }
    }

    private struct UpdateWork : IWork
    {
        public float* Values, Gradients, First, Second;
        public int Count;
        public float GradientScale;
        public AdamWStep Step;

        public readonly void Run(int item)
        {
            AdamWStep step = Step;
            int i = item * WeightsPerItem, end = Math.Min(i + WeightsPerItem, Count);
            for (; i <= end - Vector<float>.Count; i += Vector<float>.Count)
            {
                Vector<float> gradient = Vector.Load(Gradients + i) * GradientScale;
                Vector<float> first = Vector.Load(First + i) * step.Beta1 + gradient * step.OneMinusBeta1;
                Vector<float> second = Vector.Load(Second + i) * step.Beta2 + gradient * gradient * step.OneMinusBeta2;
                first.Store(First + i);
                second.Store(Second + i);
                Vector<float> root = Vector.SquareRoot(second) / step.RootCorrection2 + new Vector<float>(step.Epsilon);
                (Vector.Load(Values + i) * step.Keep - first / root * step.StepSize).Store(Values + i);
            }
            for (; i < end; i++)
            {
                float gradient = Gradients[i] * GradientScale;
                First[i] = First[i] * step.Beta1 + gradient * step.OneMinusBeta1;
                Second[i] = Second[i] * step.Beta2 + gradient * gradient * step.OneMinusBeta2;
                Values[i] = Values[i] * step.Keep - First[i] / (MathF.Sqrt(Second[i]) / step.RootCorrection2 + step.Epsilon) * step.StepSize;
            }
        }
    }
}
