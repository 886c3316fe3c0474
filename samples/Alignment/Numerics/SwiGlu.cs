using System.Numerics;

namespace Alignment;

/// <summary>y = gate · σ(gate) · up, element by element, and its gradients.</summary>
internal static unsafe class SwiGlu
{
    private const int ElementsPerItem = 8192;

    /// <param name="sigmoid">σ(gate), for the backward pass.</param>
    public static void Forward(Team team, ReadOnlySpan<float> gate, ReadOnlySpan<float> up, Span<float> sigmoid, Span<float> y)
    {
        fixed (float* pg = gate, pu = up, ps = sigmoid, py = y)
        {
            var work = new ForwardWork { Gate = pg, Up = pu, Sigmoid = ps, Y = py, Count = y.Length };
            team.Run(ref work, (y.Length + ElementsPerItem - 1) / ElementsPerItem);
        }
    }

    /// <summary>Puts the gradients of gate and up where <paramref name="gate"/> and <paramref name="up"/> stood.</summary>
    public static void Backward(Team team, ReadOnlySpan<float> dy, Span<float> gate, Span<float> up, ReadOnlySpan<float> sigmoid)
    {
        fixed (float* pd = dy, pg = gate, pu = up, ps = sigmoid)
        {
            var work = new BackwardWork { Dy = pd, Gate = pg, Up = pu, Sigmoid = ps, Count = dy.Length };
            team.Run(ref work, (dy.Length + ElementsPerItem - 1) / ElementsPerItem);
        }
    }

    private struct ForwardWork : IWork
    {
        public float* Gate, Up, Sigmoid, Y;
        public int Count;

        public readonly void Run(int item)
        {
            int i = item * ElementsPerItem, end = Math.Min(i + ElementsPerItem, Count);
            for (; i <= end - Vector<float>.Count; i += Vector<float>.Count)
            {
                Vector<float> gate = Vector.Load(Gate + i), sigmoid = Vector<float>.One / (Vector<float>.One + Vector.Exp(-gate));
                sigmoid.Store(Sigmoid + i);
                (gate * sigmoid * Vector.Load(Up + i)).Store(Y + i);
            }
            for (; i < end; i++)
            {
                Sigmoid[i] = 1 / (1 + MathF.Exp(-Gate[i]));
                Y[i] = Gate[i] * Sigmoid[i] * Up[i];
            }
        }
    }

    private struct BackwardWork : IWork
    {
        public float* Dy, Gate, Up, Sigmoid;
        public int Count;

        // d(g σ)/dg = σ (1 + g (1 − σ)).
        public readonly void Run(int item)
        {
            int i = item * ElementsPerItem, end = Math.Min(i + ElementsPerItem, Count);
            for (; i <= end - Vector<float>.Count; i += Vector<float>.Count)
            {
                Vector<float> gate = Vector.Load(Gate + i), up = Vector.Load(Up + i), sigmoid = Vector.Load(Sigmoid + i), dy = Vector.Load(Dy + i);
                (dy * up * sigmoid * (Vector<float>.One + gate * (Vector<float>.One - sigmoid))).Store(Gate + i);
                (dy * gate * sigmoid).Store(Up + i);
            }
            for (; i < end; i++)
            {
                float gate = Gate[i], sigmoid = Sigmoid[i];
                Gate[i] = Dy[i] * Up[i] * sigmoid * (1 + gate * (1 - sigmoid));
                Up[i] = Dy[i] * gate * sigmoid;
            }
        }
    }
}
