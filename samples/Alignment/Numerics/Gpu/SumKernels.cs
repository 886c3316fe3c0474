using System.Runtime.CompilerServices;
using ILGPU;
using TransformerKernels;

namespace Alignment;

/// <summary>Sums over pieces, and what they are added to.</summary>
public readonly struct PieceArguments
{
    /// <summary>[pieces, count].</summary>
    public GpuTensor<float> Sums { get; init; }

    /// <summary>[count]; absent: nothing is added. May be the result.</summary>
    public GpuTensor<float> Addend { get; init; }

    /// <summary>[count].</summary>
    public GpuTensor<float> Result { get; init; }

    public int Pieces { get; init; }
    public int Count { get; init; }
}

/// <summary>A vector and its sums.</summary>
public readonly struct SumArguments
{
    /// <summary>[count].</summary>
    public GpuTensor<float> Values { get; init; }

    /// <summary>[sums + 1]: where each sum's values begin; of one kernel only.</summary>
    public GpuTensor<int> Starts { get; init; }

    /// <summary>[sums].</summary>
    public GpuTensor<float> Result { get; init; }

    public int Count { get; init; }
    public int Sums { get; init; }
}

/// <summary>Sums in an order that the shapes fix.</summary>
internal static class SumKernels
{
    public const int GroupSize = 256;

    // More values give each thread more of them, not the last group more sums.
    private const int MostGroups = 256;

    /// <summary>How many groups share the squares of so many values.</summary>
    public static int SquareGroups(long count) => (int)Math.Min(MostGroups, (count + GroupSize - 1) / GroupSize);

    /// <summary>addend + the pieces' sums in order: a thread an element.</summary>
    public static void AddPieces(PieceArguments a)
    {
        int i = Grid.IdxX * GroupSize + Group.IdxX;
        if (i >= a.Count)
            return;
        float sum = 0f;
        for (int piece = 0; piece < a.Pieces; piece++)
            sum += a.Sums[piece, i];
        if (a.Addend.IsPresent)
            sum += a.Addend[i];
        a.Result[i] = sum;
    }

    /// <summary>result[0] = Σ values / count, by one group.</summary>
    public static void Mean(SumArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        float sum = 0f;
        for (int i = Group.IdxX; i < a.Count; i += GroupSize)
            sum += a.Values[i];
        sum = SumOfGroup(shared, sum);
        if (Group.IdxX == 0)
            a.Result[0] = sum / a.Count;
    }

    /// <summary>result[i] = Σ values[starts[i] .. starts[i + 1]]: a thread a sum.</summary>
    public static void Segments(SumArguments a)
    {
        int segment = Grid.IdxX * GroupSize + Group.IdxX;
        if (segment >= a.Sums)
            return;
        int end = a.Starts[segment + 1];
        float sum = 0f;
        for (int i = a.Starts[segment]; i < end; i++)
            sum += a.Values[i];
        a.Result[segment] = sum;
    }

    /// <summary>result[group] = Σ values², over the values of each group.</summary>
    public static void Squares(SumArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        float sum = 0f;
        for (int i = Grid.IdxX * GroupSize + Group.IdxX; i < a.Count; i += Grid.DimX * GroupSize)
            sum += a.Values[i] * a.Values[i];
        sum = SumOfGroup(shared, sum);
        if (Group.IdxX == 0)
            a.Result[Grid.IdxX] = sum;
    }

    /// <summary>result[0] = √Σ values, by one group.</summary>
    public static void Norm(SumArguments a)
    {
        ArrayView<float> shared = SharedMemory.Allocate<float>(GroupSize);
        float sum = 0f;
        for (int i = Group.IdxX; i < a.Count; i += GroupSize)
            sum += a.Values[i];
        sum = SumOfGroup(shared, sum);
        if (Group.IdxX == 0)
            a.Result[0] = MathF.Sqrt(sum);
    }

    // The sum over the group's threads, in thread 0: halves are added to halves.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float SumOfGroup(ArrayView<float> shared, float value)
    {
        int thread = Group.IdxX;
        shared[thread] = value;
        for (int half = GroupSize / 2; half > 0; half /= 2)
        {
            Group.Barrier();
            if (thread < half)
                shared[thread] += shared[thread + half];
        }
        return shared[thread];
    }
}
