using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A loss of one generated token, written once and run fused on every device; its gradient is taken by <see cref="Dual{T}"/>.</summary>
/// <remarks>Make it a small public struct whose fields are numbers of fixed size, as a rule is (<see cref="IScoreRule"/>).</remarks>
public interface ITokenLoss
{
    /// <summary>The loss of a token, and what the metrics count.</summary>
    TokenTerms<T> Loss<T>(in TokenInputs<T> token) where T : struct, IReal<T>;
}

/// <summary>What a token loss may read.</summary>
public readonly struct TokenInputs<T> where T : struct, IReal<T>
{
    /// <summary>ln π(token).</summary>
    public T LogProb { get; init; }
    /// <summary>ln π_old(token): under the policy that generated it.</summary>
    public T OldLogProb { get; init; }
    /// <summary>The advantage.</summary>
    public T Advantage { get; init; }
}

/// <summary>What a token loss returns.</summary>
public readonly struct TokenTerms<T> where T : struct, IReal<T>
{
    /// <summary>The loss.</summary>
    public T Loss { get; init; }
    /// <summary>1 where the clipped form was the larger one, else 0. For metrics only.</summary>
    public T Clipped { get; init; }
    /// <summary>1 where the second clip (dual clip) took effect, else 0. For metrics only.</summary>
    public T DualClipped { get; init; }
}
