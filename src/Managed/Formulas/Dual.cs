using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A value and its derivative along one direction: arithmetic on it is forward-mode differentiation.</summary>
/// <remarks>Seed the input to differentiate by with <c>new Dual&lt;T&gt;(x, T.One)</c> and every other one with <c>new Dual&lt;T&gt;(x, T.Zero)</c>.</remarks>
/// <typeparam name="T">The arithmetic of the value and of the derivative.</typeparam>
public readonly struct Dual<T> : IReal<Dual<T>> where T : struct, IReal<T>
{
    /// <summary>The value.</summary>
    public readonly T Value;

    /// <summary>The derivative.</summary>
    public readonly T Derivative;

    /// <summary>A value with a derivative.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Dual(T value, T derivative)
    {
        Value = value;
        Derivative = derivative;
    }

    /// <inheritdoc/>
    public static Dual<T> Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(T.Zero, T.Zero);
    }

    /// <inheritdoc/>
    public static Dual<T> One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(T.One, T.Zero);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> From(float value) => new(T.From(value), T.Zero);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator -(Dual<T> x) => new(-x.Value, -x.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator +(Dual<T> a, Dual<T> b) => new(a.Value + b.Value, a.Derivative + b.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator +(Dual<T> a, float b) => new(a.Value + b, a.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator +(float a, Dual<T> b) => new(a + b.Value, b.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator -(Dual<T> a, Dual<T> b) => new(a.Value - b.Value, a.Derivative - b.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator -(Dual<T> a, float b) => new(a.Value - b, a.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator -(float a, Dual<T> b) => new(a - b.Value, -b.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator *(Dual<T> a, Dual<T> b) => new(a.Value * b.Value, a.Value * b.Derivative + a.Derivative * b.Value);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator *(Dual<T> a, float b) => new(a.Value * b, a.Derivative * b);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator *(float a, Dual<T> b) => new(a * b.Value, a * b.Derivative);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator /(Dual<T> a, Dual<T> b)
    {
        T quotient = a.Value / b.Value;
        return new(quotient, (a.Derivative - quotient * b.Derivative) / b.Value);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator /(Dual<T> a, float b) => new(a.Value / b, a.Derivative / b);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> operator /(float a, Dual<T> b)
    {
        T quotient = a / b.Value;
        return new(quotient, -(quotient * b.Derivative) / b.Value);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Abs(Dual<T> x) => new(T.Abs(x.Value), T.SelectLess(x.Value, T.Zero, -x.Derivative, T.SelectEqual(x.Value, T.Zero, T.Zero, x.Derivative)));

    /// <summary>√x; what doesn't change has the derivative 0 at 0 too, where the root's own is infinite.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Sqrt(Dual<T> x)
    {
        T root = T.Sqrt(x.Value);
        return new(root, T.SelectEqual(x.Derivative, T.Zero, T.Zero, 0.5f * x.Derivative / root));
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Exp(Dual<T> x)
    {
        T power = T.Exp(x.Value);
        return new(power, power * x.Derivative);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Expm1(Dual<T> x)
    {
        T power = T.Expm1(x.Value);
        return new(power, (power + 1f) * x.Derivative);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Log(Dual<T> x) => new(T.Log(x.Value), x.Derivative / x.Value);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Log1p(Dual<T> x) => new(T.Log1p(x.Value), x.Derivative / (1f + x.Value));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Tanh(Dual<T> x)
    {
        T tanh = T.Tanh(x.Value, out T slope);
        return new(tanh, slope * x.Derivative);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Sigmoid(Dual<T> x)
    {
        T sigmoid = T.Sigmoid(x.Value, out T slope);
        return new(sigmoid, slope * x.Derivative);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> LogSigmoid(Dual<T> x) => -Softplus(-x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Softplus(Dual<T> x)
    {
        T softplus = T.Softplus(x.Value, out T slope);
        return new(softplus, slope * x.Derivative);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Relu(Dual<T> x) => new(T.Relu(x.Value), T.SelectLess(T.Zero, x.Value, x.Derivative, T.Zero));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Min(Dual<T> a, Dual<T> b) => new(T.Min(a.Value, b.Value), Smaller(a.Value, b.Value, a.Derivative, b.Derivative));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Max(Dual<T> a, Dual<T> b) => new(T.Max(a.Value, b.Value), Smaller(b.Value, a.Value, a.Derivative, b.Derivative));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Clamp(Dual<T> x, Dual<T> low, Dual<T> high) => new(T.Clamp(x.Value, low.Value, high.Value),
            T.SelectLess(x.Value, low.Value, T.Zero, T.SelectLess(high.Value, x.Value, T.Zero, x.Derivative)));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Floor(Dual<T> x) => new(T.Floor(x.Value), T.Zero);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> Detach(Dual<T> x) => new(x.Value, T.Zero);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> SelectLess(Dual<T> a, Dual<T> b, Dual<T> then, Dual<T> otherwise) => new(T.SelectLess(a.Value, b.Value, then.Value, otherwise.Value), T.SelectLess(a.Value, b.Value, then.Derivative, otherwise.Derivative));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual<T> SelectEqual(Dual<T> a, Dual<T> b, Dual<T> then, Dual<T> otherwise) => new(T.SelectEqual(a.Value, b.Value, then.Value, otherwise.Value), T.SelectEqual(a.Value, b.Value, then.Derivative, otherwise.Derivative));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Dual<T> IReal<Dual<T>>.Tanh(Dual<T> x, out Dual<T> slope)
    {
        Dual<T> tanh = Tanh(x);
        slope = (1f - tanh) * (1f + tanh);
        return tanh;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Dual<T> IReal<Dual<T>>.Sigmoid(Dual<T> x, out Dual<T> slope)
    {
        Dual<T> sigmoid = Sigmoid(x);
        slope = sigmoid * Sigmoid(-x);
        return sigmoid;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Dual<T> IReal<Dual<T>>.Softplus(Dual<T> x, out Dual<T> slope)
    {
        slope = Sigmoid(x);
        return Softplus(x);
    }

    // The derivative of a where a < b, of b where b < a, the mean of both where they are equal.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T Smaller(T a, T b, T ofA, T ofB) =>
        T.SelectLess(a, b, ofA, T.SelectEqual(a, b, 0.5f * (ofA + ofB), ofB));
}
