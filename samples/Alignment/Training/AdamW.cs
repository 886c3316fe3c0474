using System.Numerics;

namespace Alignment;

/// <summary>Adam with decoupled weight decay, step for step as torch.optim.AdamW; every weight decays. Loshchilov and Hutter 2019.</summary>
internal sealed unsafe class AdamW(Team team, ParameterSet parameters)
{
    // Weights of one work item; partial sums of the gradient's norm belong to items, so the cut must not depend on the number of threads.
    private const int WeightsPerItem = 16384;

    private readonly float[] first = new float[parameters.Values.Length], second = new float[parameters.Values.Length];
    private readonly double[] squares = new double[Items(parameters.Values.Length)];
    private int step;

    public double Beta1 { get; init; } = 0.9;

    public double Beta2 { get; init; } = 0.999;

    public double Epsilon { get; init; } = 1e-8;

    public double WeightDecay { get; init; } = 0.01;

    /// <summary>The gradient's norm is scaled down to this before it is used; unlimited by default.</summary>
    public double LargestNorm { get; init; } = double.PositiveInfinity;

    /// <summary>Moves the weights against their gradients.</summary>
    /// <returns>The gradient's norm as it came.</returns>
    public double Step(double learningRate)
    {
        step++;
        double norm = Norm();
        double correction1 = 1 - Math.Pow(Beta1, step), correction2 = 1 - Math.Pow(Beta2, step);
        fixed (float* values = parameters.Values, gradients = parameters.Gradients, first = this.first, second = this.second)
        {
            var work = new UpdateWork
            {
                Values = values, Gradients = gradients, First = first, Second = second, Count = parameters.Values.Length,
                GradientScale = norm > LargestNorm ? (float)(LargestNorm / norm) : 1,
                Beta1 = (float)Beta1, OneMinusBeta1 = (float)(1 - Beta1), Beta2 = (float)Beta2, OneMinusBeta2 = (float)(1 - Beta2), Epsilon = (float)Epsilon,
                Keep = (float)(1 - learningRate * WeightDecay), StepSize = (float)(learningRate / correction1), RootCorrection2 = (float)Math.Sqrt(correction2),
            };
            team.Run(ref work, Items(work.Count));
        }
        return norm;
    }

    private double Norm()
    {
        fixed (float* gradients = parameters.Gradients)
        fixed (double* sums = squares)
        {
            var work = new NormWork { Gradients = gradients, Sums = sums, Count = parameters.Gradients.Length };
            team.Run(ref work, squares.Length);
        }
        double total = 0;
        foreach (double square in squares)
            total += square;
        return Math.Sqrt(total);
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
        public float GradientScale, Beta1, OneMinusBeta1, Beta2, OneMinusBeta2, Epsilon, Keep, StepSize, RootCorrection2;

        public readonly void Run(int item)
        {
            int i = item * WeightsPerItem, end = Math.Min(i + WeightsPerItem, Count);
            for (; i <= end - Vector<float>.Count; i += Vector<float>.Count)
            {
                Vector<float> gradient = Vector.Load(Gradients + i) * GradientScale;
                Vector<float> first = Vector.Load(First + i) * Beta1 + gradient * OneMinusBeta1;
                Vector<float> second = Vector.Load(Second + i) * Beta2 + gradient * gradient * OneMinusBeta2;
                first.Store(First + i);
                second.Store(Second + i);
                Vector<float> root = Vector.SquareRoot(second) / RootCorrection2 + new Vector<float>(Epsilon);
                (Vector.Load(Values + i) * Keep - first / root * StepSize).Store(Values + i);
            }
            for (; i < end; i++)
            {
                float gradient = Gradients[i] * GradientScale;
                First[i] = First[i] * Beta1 + gradient * OneMinusBeta1;
                Second[i] = Second[i] * Beta2 + gradient * gradient * OneMinusBeta2;
                Values[i] = Values[i] * Keep - First[i] / (MathF.Sqrt(Second[i]) / RootCorrection2 + Epsilon) * StepSize;
            }
        }
    }
}
