namespace TransformerKernels;

/// <summary>A double: the arithmetic in which tests evaluate formulas.</summary>
public readonly struct Real64 : IReal<Real64>
{
    /// <summary>The number.</summary>
    public readonly double Value;

    /// <summary>Wraps a number.</summary>
    public Real64(double value) => Value = value;

    /// <inheritdoc/>
    public static Real64 Zero => new(0);

    /// <inheritdoc/>
    public static Real64 One => new(1);

    /// <inheritdoc/>
    public static Real64 From(float value) => new(value);

    /// <inheritdoc/>
    public static Real64 operator -(Real64 x) => new(-x.Value);

    /// <inheritdoc/>
    public static Real64 operator +(Real64 a, Real64 b) => new(a.Value + b.Value);

    /// <inheritdoc/>
    public static Real64 operator +(Real64 a, float b) => new(a.Value + b);

    /// <inheritdoc/>
    public static Real64 operator +(float a, Real64 b) => new(a + b.Value);

    /// <inheritdoc/>
    public static Real64 operator -(Real64 a, Real64 b) => new(a.Value - b.Value);

    /// <inheritdoc/>
    public static Real64 operator -(Real64 a, float b) => new(a.Value - b);

    /// <inheritdoc/>
    public static Real64 operator -(float a, Real64 b) => new(a - b.Value);

    /// <inheritdoc/>
    public static Real64 operator *(Real64 a, Real64 b) => new(a.Value * b.Value);

    /// <inheritdoc/>
    public static Real64 operator *(Real64 a, float b) => new(a.Value * b);

    /// <inheritdoc/>
    public static Real64 operator *(float a, Real64 b) => new(a * b.Value);

    /// <inheritdoc/>
    public static Real64 operator /(Real64 a, Real64 b) => new(a.Value / b.Value);

    /// <inheritdoc/>
    public static Real64 operator /(Real64 a, float b) => new(a.Value / b);

    /// <inheritdoc/>
    public static Real64 operator /(float a, Real64 b) => new(a / b.Value);

    /// <inheritdoc/>
    public static Real64 Abs(Real64 x) => new(Math.Abs(x.Value));

    /// <inheritdoc/>
    public static Real64 Sqrt(Real64 x) => new(Math.Sqrt(x.Value));

    /// <inheritdoc/>
    public static Real64 Exp(Real64 x) => new(Math.Exp(x.Value));

    /// <inheritdoc/>
    public static Real64 Log(Real64 x) => new(Math.Log(x.Value));

    /// <inheritdoc/>
    public static Real64 Tanh(Real64 x) => new(Math.Tanh(x.Value));

    /// <inheritdoc/>
    public static Real64 Floor(Real64 x) => new(Math.Floor(x.Value));

    /// <inheritdoc/>
    public static Real64 Expm1(Real64 x)
    {
        // Kahan: (u − 1)·x / ln u with u = e^x rounded.
        double u = Math.Exp(x.Value), power = u - 1;
        return new(u == 1 ? x.Value : power == -1 || double.IsInfinity(u) ? power : power * x.Value / Math.Log(u));
    }

    /// <inheritdoc/>
    public static Real64 Log1p(Real64 x)
    {
        // Kahan: ln(u)·x / (u − 1) with u = 1 + x rounded.
        double u = 1 + x.Value;
        return new(u == 1 ? x.Value : double.IsPositiveInfinity(u) ? u : Math.Log(u) * x.Value / (u - 1));
    }

    /// <inheritdoc/>
    public static Real64 Sigmoid(Real64 x) => new(x.Value < 0 ? Math.Exp(x.Value) / (1 + Math.Exp(x.Value)) : 1 / (1 + Math.Exp(-x.Value)));

    /// <inheritdoc/>
    public static Real64 LogSigmoid(Real64 x) => -Softplus(-x);

    /// <inheritdoc/>
    public static Real64 Softplus(Real64 x) => new Real64(Math.Max(x.Value, 0)) + Log1p(new(Math.Exp(-Math.Abs(x.Value))));

    /// <inheritdoc/>
    public static Real64 Relu(Real64 x) => new(x.Value < 0 ? 0 : x.Value);

    /// <inheritdoc/>
    public static Real64 Min(Real64 a, Real64 b) => new(Math.Min(a.Value, b.Value));

    /// <inheritdoc/>
    public static Real64 Max(Real64 a, Real64 b) => new(Math.Max(a.Value, b.Value));

    /// <inheritdoc/>
    public static Real64 Clamp(Real64 x, Real64 low, Real64 high) => x.Value < low.Value ? low : high.Value < x.Value ? high : x;

    /// <inheritdoc/>
    public static Real64 Detach(Real64 x) => x;

    /// <inheritdoc/>
    public static Real64 SelectLess(Real64 a, Real64 b, Real64 then, Real64 otherwise) => a.Value < b.Value ? then : otherwise;

    /// <inheritdoc/>
    public static Real64 SelectEqual(Real64 a, Real64 b, Real64 then, Real64 otherwise) => a.Value == b.Value ? then : otherwise;

    static Real64 IReal<Real64>.Tanh(Real64 x, out Real64 slope)
    {
        Real64 tanh = Tanh(x);
        slope = (1f - tanh) * (1f + tanh);
        return tanh;
    }

    static Real64 IReal<Real64>.Sigmoid(Real64 x, out Real64 slope)
    {
        slope = Sigmoid(x) * Sigmoid(-x);
        return Sigmoid(x);
    }

    static Real64 IReal<Real64>.Softplus(Real64 x, out Real64 slope)
    {
        slope = Sigmoid(x);
        return Softplus(x);
    }
}
