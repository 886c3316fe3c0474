using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>Logits, and the tokens chosen from them.</summary>
public readonly struct ChoiceArguments
{
    /// <summary>[rows, vocabulary].</summary>
    public GpuTensor<float> Logits { get; init; }

    /// <summary>[rows], from 0 up to 1; absent: the likeliest tokens are chosen.</summary>
    public GpuTensor<float> Draws { get; init; }

    /// <summary>[rows].</summary>
    public GpuTensor<int> Tokens { get; init; }

    public int Vocabulary { get; init; }
}

/// <summary>Chooses a token from each row of logits; a group a row.</summary>
internal static class ChoiceKernels
{
    public const int GroupSize = 64;

    /// <summary>The likeliest token; of equals the first.</summary>
    public static void Likeliest(ChoiceArguments a)
    {
        ArrayView<float> values = SharedMemory.Allocate<float>(GroupSize);
        ArrayView<int> places = SharedMemory.Allocate<int>(GroupSize);
        int row = Grid.IdxX, thread = Group.IdxX, best = Math.Min(thread, a.Vocabulary - 1);
        float value = a.Logits[row, best];
        for (int i = thread + GroupSize; i < a.Vocabulary; i += GroupSize)
        {
            float other = a.Logits[row, i];
            if (other > value)
            {
                value = other;
                best = i;
            }
        }
        values[thread] = value;
        places[thread] = best;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
            {
                float other = values[thread + half];
                int place = places[thread + half];
                if (other > values[thread] || other == values[thread] && place < places[thread])
                {
                    values[thread] = other;
                    places[thread] = place;
                }
            }
        }
        if (thread == 0)
            a.Tokens[row] = places[0];
    }

    /// <summary>A token drawn from softmax(logits): the first at which the probabilities up to it exceed the row's draw.</summary>
    public static void Drawn(ChoiceArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        int row = Grid.IdxX, thread = Group.IdxX;
        // A thread has a stretch of the vocabulary, so that the stretches' sums are in its order.
        int stretch = (a.Vocabulary + GroupSize - 1) / GroupSize, begin = Math.Min(thread * stretch, a.Vocabulary), end = Math.Min(begin + stretch, a.Vocabulary);
        float greatest = float.NegativeInfinity;
        for (int i = begin; i < end; i++)
            greatest = Math.Max(greatest, a.Logits[row, i]);
        shared[thread] = greatest;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
                shared[thread] = Math.Max(shared[thread], shared[thread + half]);
        }
        Group.Barrier();
        greatest = shared[0];
        Group.Barrier();
        float sum = 0f;
        for (int i = begin; i < end; i++)
            sum += Weight(a, row, i, greatest);
        shared[thread] = sum;
        Group.Barrier();
        if (thread != 0)
            return;

        float left = 0f;
        for (int other = 0; other < GroupSize; other++)
            left += shared[other];
        left *= a.Draws[row];
        int chosen = 0;
        while (chosen < GroupSize - 1 && left >= shared[chosen])
        {
            left -= shared[chosen];
            chosen++;
        }
        int token = Math.Min(chosen * stretch, a.Vocabulary - 1), last = Math.Min((chosen + 1) * stretch, a.Vocabulary) - 1;
        while (token < last)
        {
            float weight = Weight(a, row, token, greatest);
            if (left < weight)
                break;
            left -= weight;
            token++;
        }
        a.Tokens[row] = token;
    }

    private static float Weight(in ChoiceArguments a, int row, int token, float greatest) => Real32.Exp(new(a.Logits[row, token] - greatest)).Value;
}
