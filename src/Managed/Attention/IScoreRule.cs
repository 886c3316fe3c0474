using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A formula that changes attention's scores, written once and run fused on every device.</summary>
/// <remarks>
/// It is applied to scale · query · key, before biases and mask. Make it a small public struct whose fields are numbers of fixed size: the CPU takes any unmanaged struct, GPUs refuse one that has a
/// <see langword="bool"/> or <see langword="char"/>, or isn't public. What is learned comes in as captured tensors. A rule that returns −∞ hides the pair. It must be the same formula each time: a loop or an
/// <see langword="if"/> may ask its fields alone. Its derivatives with respect to the score and to every captured
/// value are taken by <see cref="Dual{T}"/>.
/// <code>
/// public readonly struct RelativeTemperature(float strength) : IScoreRule
/// {
///     [MethodImpl(MethodImplOptions.AggressiveInlining)]
///     public T Score&lt;T&gt;(T score, in ScorePlace&lt;T&gt; at) where T : struct, IReal&lt;T&gt;
///         => score / (1f + strength * T.Abs(at.Distance));
/// }
/// </code>
/// </remarks>
public interface IScoreRule
{
    /// <summary>The new score of a pair.</summary>
    /// <param name="score">scale · query · key.</param>
    /// <param name="at">Which pair it is, and the captured values there.</param>
    T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>;
}

/// <summary>Leaves scores as they are: the rule of attention without a rule, and the innermost one of a rule that wraps another.</summary>
public readonly struct PlainScore : IScoreRule
{
    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => score;
}

/// <summary>Where a score stands: positions as numbers (exact to 2^24), and the captured values of that place.</summary>
public readonly struct ScorePlace<T> where T : struct, IReal<T>
{
    /// <summary>The query's position p among the keys.</summary>
    public T QueryPosition { get; init; }
    /// <summary>The key's position.</summary>
    public T KeyPosition { get; init; }
    /// <summary>The query head.</summary>
    public T Head { get; init; }
    /// <summary>The sequence in the batch.</summary>
    public T Batch { get; init; }
    /// <summary>The value of <see cref="AttentionProblem.Captured0"/> here; 0 if absent.</summary>
    public T Captured0 { get; init; }
    /// <summary>The value of <see cref="AttentionProblem.Captured1"/> here; 0 if absent.</summary>
    public T Captured1 { get; init; }
    /// <summary>The value of <see cref="AttentionProblem.Captured2"/> here; 0 if absent.</summary>
    public T Captured2 { get; init; }
    /// <summary>The value of <see cref="AttentionProblem.Captured3"/> here; 0 if absent.</summary>
    public T Captured3 { get; init; }

    /// <summary>Key position − query position.</summary>
    public T Distance
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => KeyPosition - QueryPosition;
    }

    /// <summary>The same place for an inner rule of one that uses the first <paramref name="captures"/> captured tensors itself: the inner rule's first is the next one.</summary>
    /// <param name="captures">A constant from 0 to 4.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ScorePlace<T> Shift(int captures) => new()
    {
        QueryPosition = QueryPosition,
        KeyPosition = KeyPosition,
        Head = Head,
        Batch = Batch,
        Captured0 = captures == 0 ? Captured0 : captures == 1 ? Captured1 : captures == 2 ? Captured2 : captures == 3 ? Captured3 : T.Zero,
        Captured1 = captures == 0 ? Captured1 : captures == 1 ? Captured2 : captures == 2 ? Captured3 : T.Zero,
        Captured2 = captures == 0 ? Captured2 : captures == 1 ? Captured3 : T.Zero,
        Captured3 = captures == 0 ? Captured3 : T.Zero,
    };
}
