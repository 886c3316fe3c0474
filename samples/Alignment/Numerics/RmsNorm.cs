using System.Numerics;
using System.Numerics.Tensors;

namespace Alignment;

/// <summary>y = w ∘ x / √(mean x² + ε), row by row, and its gradients.</summary>
internal static unsafe class RmsNorm
{
    // Rows of one work item. Partial sums of the weight's gradient belong to items, so the cut must not depend on the number of threads.
    private const int RowsPerItem = 64;

    [ThreadStatic]
    private static float[]? partials;

    /// <param name="x">[rows, width].</param>
    /// <param name="weight">[width].</param>
    /// <param name="y">[rows, width].</param>
    /// <param name="inverseRms">[rows]: 1 / √(mean x² + ε), for the backward pass.</param>
    public static void Forward(Team team, ReadOnlySpan<float> x, ReadOnlySpan<float> weight, float epsilon, Span<float> y, Span<float> inverseRms)
    {
        fixed (float* px = x, pw = weight, py = y, pr = inverseRms)
        {
            var work = new ForwardWork { X = px, Weight = pw, Y = py, InverseRms = pr, Rows = inverseRms.Length, Width = weight.Length, Epsilon = epsilon };
            team.Run(ref work, Items(inverseRms.Length));
        }
    }

    /// <summary>dx += the gradient of x, dw += the gradient of w.</summary>
    public static void Backward(Team team, ReadOnlySpan<float> dy, ReadOnlySpan<float> x, ReadOnlySpan<float> weight, ReadOnlySpan<float> inverseRms, Span<float> dx, Span<float> dw)
    {
        int items = Items(inverseRms.Length), width = weight.Length;
        if (partials is null || partials.Length < items * width)
            partials = new float[items * width];
        Span<float> sums = partials.AsSpan(0, items * width);
        sums.Clear();
        fixed (float* pdy = dy, px = x, pw = weight, pr = inverseRms, pdx = dx, ps = sums)
        {
            var work = new BackwardWork { Dy = pdy, X = px, Weight = pw, InverseRms = pr, Dx = pdx, Partials = ps, Rows = inverseRms.Length, Width = width };
            team.Run(ref work, items);
        }
        for (int item = 0; item < items; item++)
            TensorPrimitives.Add(dw, sums.Slice(item * width, width), dw);
    }

    private static int Items(int rows) => (rows + RowsPerItem - 1) / RowsPerItem;

    private struct ForwardWork : IWork
    {
        public float* X, Weight, Y, InverseRms;
        public int Rows, Width;
        public float Epsilon;

        public readonly void Run(int item)
        {
            for (int row = item * RowsPerItem; row < Math.Min((item + 1) * RowsPerItem, Rows); row++)
            {
                var x = new ReadOnlySpan<float>(X + (nint)row * Width, Width);
                float inverse = 1 / MathF.Sqrt(TensorPrimitives.SumOfSquares(x) / Width + Epsilon);
                InverseRms[row] = inverse;
                float* from = X + (nint)row * Width, to = Y + (nint)row * Width;
                int i = 0;
                for (; i <= Width - Vector<float>.Count; i += Vector<float>.Count)
                    (Vector.Load(from + i) * inverse * Vector.Load(Weight + i)).Store(to + i);
                for (; i < Width; i++)
                    to[i] = from[i] * inverse * Weight[i];
            }
        }
    }

    private struct BackwardWork : IWork
    {
        public float* Dy, X, Weight, InverseRms, Dx, Partials;
        public int Rows, Width;

        // With g = dy ∘ w and x̂ = x / rms: dx = (g − x̂ mean(g ∘ x̂)) / rms, dw = Σ dy ∘ x̂.
        public readonly void Run(int item)
        {
            float* sums = Partials + (nint)item * Width;
            for (int row = item * RowsPerItem; row < Math.Min((item + 1) * RowsPerItem, Rows); row++)
            {
                float* dy = Dy + (nint)row * Width, x = X + (nint)row * Width, dx = Dx + (nint)row * Width;
                float inverse = InverseRms[row], dot = 0;
                Vector<float> dots = Vector<float>.Zero;
                int i = 0;
                for (; i <= Width - Vector<float>.Count; i += Vector<float>.Count)
                {
                    Vector<float> term = Vector.Load(dy + i) * (Vector.Load(x + i) * inverse);
                    (Vector.Load(sums + i) + term).Store(sums + i);
                    dots += term * Vector.Load(Weight + i);
                }
                for (; i < Width; i++)
                {
                    float term = dy[i] * (x[i] * inverse);
                    sums[i] += term;
                    dot += term * Weight[i];
                }
                float mean = (dot + Vector.Sum(dots)) / Width;
                for (i = 0; i <= Width - Vector<float>.Count; i += Vector<float>.Count)
                    (Vector.Load(dx + i) + (Vector.Load(dy + i) * Vector.Load(Weight + i) - Vector.Load(x + i) * inverse * mean) * inverse).Store(dx + i);
                for (; i < Width; i++)
                    dx[i] += (dy[i] * Weight[i] - x[i] * inverse * mean) * inverse;
            }
        }
    }
}
