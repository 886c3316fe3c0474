using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>Reductions over the threads of a group through shared memory and barriers, in an order that the group's size fixes.</summary>
internal static class GroupSums
{
    /// <summary>The sum of every thread's value, in every thread: halves are added to halves.</summary>
    /// <param name="shared">As many floats as the group has threads, a power of two.</param>
    /// <param name="groupSize">The threads of the group.</param>
    /// <param name="value">This thread's value.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(ArrayView<float> shared, int groupSize, float value)
    {
        int thread = Group.IdxX;
        shared[thread] = value;
        for (int half = groupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
                shared[thread] += shared[thread + half];
        }
        Group.Barrier();
        float sum = shared[0];
        Group.Barrier();
        return sum;
    }

    /// <summary>The same of whole numbers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Sum(ArrayView<long> shared, int groupSize, long value)
    {
        shared[Group.IdxX] = value;
        SumParts(shared, groupSize);
        long sum = shared[0];
        Group.Barrier();
        return sum;
    }

    /// <summary>Adds up each part of the group by itself, into the part's first place. Begin another use of the memory with a barrier.</summary>
    /// <param name="shared">What the threads have put there.</param>
    /// <param name="width">The threads of a part, a power of two.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SumParts(ArrayView<long> shared, int width)
    {
        int thread = Group.IdxX;
        for (int half = width / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread % width < half)
                shared[thread] += shared[thread + half];
        }
        Group.Barrier();
    }

    /// <summary>The first thread's value, in every thread: what one thread alone needs to read.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float First(ArrayView<float> shared, float value)
    {
        if (Group.IdxX == 0)
            shared[0] = value;
        Group.Barrier();
        float first = shared[0];
        Group.Barrier();
        return first;
    }
}
