namespace TransformerKernels;

/// <summary>The arithmetic in which score rules and losses are written, once for every device and for values and derivatives alike.</summary>
/// <remarks>
/// A formula is a generic method over <c>T : struct, IReal&lt;T&gt;</c>. The library runs it with T a number (<see cref="Real32"/>, on GPUs and in tails), a SIMD
/// vector of numbers, a double (<see cref="Real64"/>, for tests), or a <see cref="Dual{T}"/> over one of these, which carries a derivative along: nobody writes
/// derivatives by hand. There are no comparisons and no integers; <see cref="SelectLess"/> and <see cref="SelectEqual"/> choose between two values that are both
/// computed. Where a function has a kink its derivative is the one PyTorch's autograd takes; each member says which.
/// The library alone implements it, since some of its members are internal; rules and losses needn't, they are written over any T.
/// <para>Mark the generic method <c>[MethodImpl(MethodImplOptions.AggressiveInlining)]</c>: it then becomes straight-line code inside the kernel's loop.</para>
/// </remarks>
/// <typeparam name="TSelf">The type itself.</typeparam>
public interface IReal<TSelf> where TSelf : struct, IReal<TSelf>
{
    /// <summary>0.</summary>
    static abstract TSelf Zero { get; }
    /// <summary>1.</summary>
    static abstract TSelf One { get; }
    /// <summary>A constant; its derivative is 0.</summary>
    static abstract TSelf From(float value);

    /// <summary>−x.</summary>
    static abstract TSelf operator -(TSelf x);
    /// <summary>a + b.</summary>
    static abstract TSelf operator +(TSelf a, TSelf b);
    /// <summary>a + b.</summary>
    static abstract TSelf operator +(TSelf a, float b);
    /// <summary>a + b.</summary>
    static abstract TSelf operator +(float a, TSelf b);
    /// <summary>a − b.</summary>
    static abstract TSelf operator -(TSelf a, TSelf b);
    /// <summary>a − b.</summary>
    static abstract TSelf operator -(TSelf a, float b);
    /// <summary>a − b.</summary>
    static abstract TSelf operator -(float a, TSelf b);
    /// <summary>a · b.</summary>
    static abstract TSelf operator *(TSelf a, TSelf b);
    /// <summary>a · b.</summary>
    static abstract TSelf operator *(TSelf a, float b);
    /// <summary>a · b.</summary>
    static abstract TSelf operator *(float a, TSelf b);
    /// <summary>a / b.</summary>
    static abstract TSelf operator /(TSelf a, TSelf b);
    /// <summary>a / b.</summary>
    static abstract TSelf operator /(TSelf a, float b);
    /// <summary>a / b.</summary>
    static abstract TSelf operator /(float a, TSelf b);

    /// <summary>|x|; derivative 0 at 0.</summary>
    static abstract TSelf Abs(TSelf x);
    /// <summary>√x; NaN below 0. Largest error in float32: 0.5 ulp.</summary>
    static abstract TSelf Sqrt(TSelf x);
    /// <summary>e^x. Largest error in float32: 1.5 ulp.</summary>
    static abstract TSelf Exp(TSelf x);
    /// <summary>e^x − 1, accurate near 0. Largest error in float32: 2 ulp.</summary>
    static abstract TSelf Expm1(TSelf x);
    /// <summary>ln x; −∞ at 0, NaN below. Largest error in float32: 1.5 ulp.</summary>
    static abstract TSelf Log(TSelf x);
    /// <summary>ln(1 + x), accurate near 0. Largest error in float32: 2.5 ulp.</summary>
    static abstract TSelf Log1p(TSelf x);
    /// <summary>tanh x. Largest error in float32: 3 ulp.</summary>
    static abstract TSelf Tanh(TSelf x);
    /// <summary>1 / (1 + e^−x). Largest error in float32: 3 ulp.</summary>
    static abstract TSelf Sigmoid(TSelf x);
    /// <summary>ln(1 / (1 + e^−x)) = −softplus(−x), accurate for large |x|. Largest error in float32: 2.5 ulp.</summary>
    static abstract TSelf LogSigmoid(TSelf x);
    /// <summary>ln(1 + e^x), accurate for large |x|. Largest error in float32: 2.5 ulp.</summary>
    static abstract TSelf Softplus(TSelf x);
    /// <summary>max(x, 0); derivative 0 at 0.</summary>
    static abstract TSelf Relu(TSelf x);
    /// <summary>The smaller one, NaN if either is; equals share the derivative, half each.</summary>
    static abstract TSelf Min(TSelf a, TSelf b);
    /// <summary>The larger one, NaN if either is; equals share the derivative, half each.</summary>
    static abstract TSelf Max(TSelf a, TSelf b);
    /// <summary>x, or the bound that it lies beyond; a derivative passes between and on the bounds. The bounds count as constants.</summary>
    static abstract TSelf Clamp(TSelf x, TSelf low, TSelf high);
    /// <summary>The largest integer not above x; derivative 0.</summary>
    static abstract TSelf Floor(TSelf x);
    /// <summary>x as a constant: the derivative stops here.</summary>
    static abstract TSelf Detach(TSelf x);
    /// <summary>a &lt; b ? then : otherwise, value and derivative. Both sides are computed; a NaN in a or b takes <paramref name="otherwise"/>.</summary>
    static abstract TSelf SelectLess(TSelf a, TSelf b, TSelf then, TSelf otherwise);
    /// <summary>a = b ? then : otherwise, value and derivative. Both sides are computed; a NaN in a or b takes <paramref name="otherwise"/>.</summary>
    static abstract TSelf SelectEqual(TSelf a, TSelf b, TSelf then, TSelf otherwise);

    /// <summary>tanh x and its derivative there: together they cost little more than one of them.</summary>
    internal static abstract TSelf Tanh(TSelf x, out TSelf slope);
    /// <summary>1 / (1 + e^−x) and its derivative.</summary>
    internal static abstract TSelf Sigmoid(TSelf x, out TSelf slope);
    /// <summary>ln(1 + e^x) and its derivative.</summary>
    internal static abstract TSelf Softplus(TSelf x, out TSelf slope);
}
