using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A loss of one preference pair, written once and run fused on every device; its gradients are taken by <see cref="Dual{T}"/>.</summary>
/// <remarks>Make it a small public struct whose fields are numbers of fixed size, as a rule is (<see cref="IScoreRule"/>). What couples a batch (sorting, means) is a stage before it.</remarks>
public interface IPairLoss
{
    /// <summary>The loss of a pair.</summary>
    T Loss<T>(in PairInputs<T> pair) where T : struct, IReal<T>;

    /// <summary>What a log-ratio is multiplied by to give the reward that metrics report: β in DPO. A positive number.</summary>
    float RewardScale { get; }
}

/// <summary>What a pair loss may read: sums of token log-probs of the two answers, under the policy and under the reference.</summary>
public readonly struct PairInputs<T> where T : struct, IReal<T>
{
    /// <summary>ln π(chosen).</summary>
    public T Chosen { get; init; }
    /// <summary>ln π(rejected).</summary>
    public T Rejected { get; init; }
    /// <summary>ln π_ref(chosen); 0 if there is no reference.</summary>
    public T ReferenceChosen { get; init; }
    /// <summary>ln π_ref(rejected); 0 if there is no reference.</summary>
    public T ReferenceRejected { get; init; }

    /// <summary>ln π(chosen)/π_ref(chosen) − ln π(rejected)/π_ref(rejected).</summary>
    public T Margin
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (Chosen - ReferenceChosen) - (Rejected - ReferenceRejected);
    }
}
