using System.Runtime.CompilerServices;

namespace TransformerKernels;

/// <summary>A value and its derivatives along two directions: two <see cref="Dual{T}"/> that share the value, operation by operation.</summary>
/// <remarks>A function and its slope are computed once. Like <see cref="Lockstep{V}"/> it does without a constructor.</remarks>
/// <typeparam name="T">The arithmetic of the value and of the derivatives.</typeparam>
internal struct Dual2<T> : IReal<Dual2<T>> where T : struct, IReal<T>
{
    public T Value, First, Second;

    public static Dual2<T> Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new() { Value = T.Zero, First = T.Zero, Second = T.Zero };
    }

    public static Dual2<T> One
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new() { Value = T.One, First = T.Zero, Second = T.Zero };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> From(float value) => new() { Value = T.From(value), First = T.Zero, Second = T.Zero };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator -(Dual2<T> x) => new() { Value = -x.Value, First = -x.First, Second = -x.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator +(Dual2<T> a, Dual2<T> b) => new() { Value = a.Value + b.Value, First = a.First + b.First, Second = a.Second + b.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator +(Dual2<T> a, float b) => new() { Value = a.Value + b, First = a.First, Second = a.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator +(float a, Dual2<T> b) => new() { Value = a + b.Value, First = b.First, Second = b.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator -(Dual2<T> a, Dual2<T> b) => new() { Value = a.Value - b.Value, First = a.First - b.First, Second = a.Second - b.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator -(Dual2<T> a, float b) => new() { Value = a.Value - b, First = a.First, Second = a.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator -(float a, Dual2<T> b) => new() { Value = a - b.Value, First = -b.First, Second = -b.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator *(Dual2<T> a, Dual2<T> b) =>
        new() { Value = a.Value * b.Value, First = a.Value * b.First + a.First * b.Value, Second = a.Value * b.Second + a.Second * b.Value };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator *(Dual2<T> a, float b) => new() { Value = a.Value * b, First = a.First * b, Second = a.Second * b };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator *(float a, Dual2<T> b) => new() { Value = a * b.Value, First = a * b.First, Second = a * b.Second };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator /(Dual2<T> a, Dual2<T> b)
    {
        T quotient = a.Value / b.Value;
        return new() { Value = quotient, First = (a.First - quotient * b.First) / b.Value, Second = (a.Second - quotient * b.Second) / b.Value };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator /(Dual2<T> a, float b) => new() { Value = a.Value / b, First = a.First / b, Second = a.Second / b };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> operator /(float a, Dual2<T> b)
    {
        T quotient = a / b.Value;
        return new() { Value = quotient, First = -(quotient * b.First) / b.Value, Second = -(quotient * b.Second) / b.Value };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Abs(Dual2<T> x) => Both(Dual<T>.Abs(new(x.Value, x.First)), Dual<T>.Abs(new(x.Value, x.Second)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Sqrt(Dual2<T> x) => Both(Dual<T>.Sqrt(new(x.Value, x.First)), Dual<T>.Sqrt(new(x.Value, x.Second)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Exp(Dual2<T> x)
    {
        T power = T.Exp(x.Value);
        return new() { Value = power, First = power * x.First, Second = power * x.Second };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Expm1(Dual2<T> x)
    {
        T power = T.Expm1(x.Value), slope = power + 1f;
        return new() { Value = power, First = slope * x.First, Second = slope * x.Second };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Log(Dual2<T> x) => new() { Value = T.Log(x.Value), First = x.First / x.Value, Second = x.Second / x.Value };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Log1p(Dual2<T> x)
    {
        T sum = 1f + x.Value;
        return new() { Value = T.Log1p(x.Value), First = x.First / sum, Second = x.Second / sum };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Tanh(Dual2<T> x)
    {
        T tanh = T.Tanh(x.Value, out T slope);
        return new() { Value = tanh, First = slope * x.First, Second = slope * x.Second };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Sigmoid(Dual2<T> x)
    {
        T sigmoid = T.Sigmoid(x.Value, out T slope);
        return new() { Value = sigmoid, First = slope * x.First, Second = slope * x.Second };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> LogSigmoid(Dual2<T> x) => -Softplus(-x);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Softplus(Dual2<T> x)
    {
        T softplus = T.Softplus(x.Value, out T slope);
        return new() { Value = softplus, First = slope * x.First, Second = slope * x.Second };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Relu(Dual2<T> x) => Both(Dual<T>.Relu(new(x.Value, x.First)), Dual<T>.Relu(new(x.Value, x.Second)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Min(Dual2<T> a, Dual2<T> b) =>
        Both(Dual<T>.Min(new(a.Value, a.First), new(b.Value, b.First)), Dual<T>.Min(new(a.Value, a.Second), new(b.Value, b.Second)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Max(Dual2<T> a, Dual2<T> b) =>
        Both(Dual<T>.Max(new(a.Value, a.First), new(b.Value, b.First)), Dual<T>.Max(new(a.Value, a.Second), new(b.Value, b.Second)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Clamp(Dual2<T> x, Dual2<T> low, Dual2<T> high) =>
        Both(Dual<T>.Clamp(new(x.Value, x.First), new(low.Value, low.First), new(high.Value, high.First)),
            Dual<T>.Clamp(new(x.Value, x.Second), new(low.Value, low.Second), new(high.Value, high.Second)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Floor(Dual2<T> x) => new() { Value = T.Floor(x.Value), First = T.Zero, Second = T.Zero };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> Detach(Dual2<T> x) => new() { Value = x.Value, First = T.Zero, Second = T.Zero };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> SelectLess(Dual2<T> a, Dual2<T> b, Dual2<T> then, Dual2<T> otherwise) =>
        new()
        {
            Value = T.SelectLess(a.Value, b.Value, then.Value, otherwise.Value),
            First = T.SelectLess(a.Value, b.Value, then.First, otherwise.First),
            Second = T.SelectLess(a.Value, b.Value, then.Second, otherwise.Second),
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Dual2<T> SelectEqual(Dual2<T> a, Dual2<T> b, Dual2<T> then, Dual2<T> otherwise) =>
        new()
        {
            Value = T.SelectEqual(a.Value, b.Value, then.Value, otherwise.Value),
            First = T.SelectEqual(a.Value, b.Value, then.First, otherwise.First),
            Second = T.SelectEqual(a.Value, b.Value, then.Second, otherwise.Second),
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Dual2<T> IReal<Dual2<T>>.Tanh(Dual2<T> x, out Dual2<T> slope)
    {
        Dual2<T> tanh = Tanh(x);
        slope = (1f - tanh) * (1f + tanh);
        return tanh;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Dual2<T> IReal<Dual2<T>>.Sigmoid(Dual2<T> x, out Dual2<T> slope)
    {
        Dual2<T> sigmoid = Sigmoid(x);
        slope = sigmoid * Sigmoid(-x);
        return sigmoid;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static Dual2<T> IReal<Dual2<T>>.Softplus(Dual2<T> x, out Dual2<T> slope)
    {
        slope = Sigmoid(x);
        return Softplus(x);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Dual2<T> Both(Dual<T> first, Dual<T> second) => new() { Value = first.Value, First = first.Derivative, Second = second.Derivative };
}
