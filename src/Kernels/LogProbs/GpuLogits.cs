using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

/// <summary>How kernels read logits, as u, of which z = scale · u is what counts: a type argument, so that those that are float32 and count as they are cost nothing more.</summary>
internal interface IGpuLogits<TSelf> where TSelf : struct, IGpuLogits<TSelf>
{
    static abstract TSelf Of(GpuDevice device, in LogitsProblem problem);

    /// <summary>Whether anything becomes of a logit before it counts.</summary>
    static abstract bool IsShaped { get; }

    /// <summary>Where a row begins.</summary>
    long At(long row);

    /// <summary>u of a column of the row that begins there.</summary>
    float Read(long at, long column);

    /// <summary>u of four columns, a group's width apart; −∞ from an end on, before which the first lies.</summary>
    FourNumbers ReadFour(long at, long column, int apart, long end);

    /// <summary>The scale, and what rounding took of it.</summary>
    float Scale { get; }

    /// <inheritdoc cref="Scale"/>
    float ScaleLost { get; }

    /// <summary>∂z/∂x of a small x: 1 / temperature.</summary>
    float Steepest { get; }

    /// <summary>∂z/∂x at u, as a part of the steepest.</summary>
    float Slope(float u);
}

/// <summary>Float32 logits that count as they are.</summary>
internal readonly struct PlainLogits(GpuTensor<float> logits) : IGpuLogits<PlainLogits>
{
    private readonly GpuTensor<float> logits = logits;

    public static PlainLogits Of(GpuDevice device, in LogitsProblem problem) => new(new(device, problem.Logits, "problem.Logits"));

    public static bool IsShaped => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long At(long row) => logits.At(row, 0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Read(long at, long column) => logits.Memory[at + column];

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public FourNumbers ReadFour(long at, long column, int apart, long end) => FourNumbers.Of(logits.Memory, at, column, apart, end, float.NegativeInfinity);

    public float Scale => 1f;

    public float ScaleLost => 0f;

    public float Steepest => 1f;

    public float Slope(float u) => 1f;
}

/// <summary>Logits of 16 bits, or with a bias, a softcap c or a temperature T: z = c tanh((x + bias) / c) / T is scale · u, with u = tanh((x + bias) / c) and the scale c / T; without a softcap u = x + bias and the scale is 1 / T.</summary>
/// <remarks>What there is of it every thread finds alike, so that branches cost little. A temperature so stays out of u: however small it is, the difference of two logits is exact before it is scaled.</remarks>
internal readonly struct ShapedLogits : IGpuLogits<ShapedLogits>
{
    private readonly GpuStoredRows logits;
    private readonly GpuTensor<float> bias;
    private readonly int isCapped;
    private readonly float perCap, scale, scaleLost, steepest;

    private ShapedLogits(GpuDevice device, in LogitsProblem problem)
    {
        logits = new(device, problem.Logits, "problem.Logits");
        bias = new(device, problem.Bias, "problem.Bias");
        isCapped = problem.Softcap is null ? 0 : 1;
        perCap = 1 / (problem.Softcap ?? 1);
        double exact = (problem.Softcap ?? 1.0) / problem.Temperature;
        scale = (float)exact;
        scaleLost = (float)(exact - scale);
        steepest = 1 / problem.Temperature;
    }

    public static ShapedLogits Of(GpuDevice device, in LogitsProblem problem) => new(device, problem);

    public static bool IsShaped => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long At(long row) => logits.At(row);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Read(long at, long column)
    {
        float x = logits.Read(at + column);
        if (bias.IsPresent)
            x += bias[column];
        return isCapped != 0 ? Capped(x) : x;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public FourNumbers ReadFour(long at, long column, int apart, long end)
    {
        long j1 = column + apart, j2 = j1 + apart, j3 = j2 + apart;
        FourNumbers stored = logits.ReadFour(at, column, apart, end);
        float x0 = stored.First, x1 = stored.Second, x2 = stored.Third, x3 = stored.Fourth;
        if (bias.IsPresent)
        {
            x0 += bias[column];
            if (j1 < end)
                x1 += bias[j1];
            if (j2 < end)
                x2 += bias[j2];
            if (j3 < end)
                x3 += bias[j3];
        }
        if (isCapped != 0)
        {
            x0 = Capped(x0);
            x1 = Capped(x1);
            x2 = Capped(x2);
            x3 = Capped(x3);
        }
        const float none = float.NegativeInfinity;
        return new(x0, j1 < end ? x1 : none, j2 < end ? x2 : none, j3 < end ? x3 : none);
    }

    public float Scale => scale;

    public float ScaleLost => scaleLost;

    public float Steepest => steepest;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float Slope(float u) => isCapped != 0 ? 1f - u * u : 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private float Capped(float x)
    {
        float y = x * perCap, tanh = Real32.Tanh(new(y)).Value;
        return y > Saturated ? 1f : y < -Saturated ? -1f : tanh; // NaN stays, the constant being on the right
    }

    // From here on tanh is 1 in float32. With fused multiply-adds the formula stops a unit before, and all that lies beyond would keep a slope.
    private const float Saturated = 9.02f;
}

/// <summary>scale · u, and what rounding took of it and of the scale.</summary>
internal readonly struct ScaledLogit
{
    public readonly float Rounded, Lost;

    /// <remarks>Of halves of 12 bits each product is exact, with and without fused multiply-adds. Where the product is infinite nothing is lost.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ScaledLogit(float scale, float scaleLost, float u)
    {
        const int upper = ~0xfff;
        float a1 = BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(scale) & upper), b1 = BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(u) & upper);
        float a2 = scale - a1, b2 = u - b1;
        Rounded = scale * u;
        float lost = a1 * b1 - Rounded + a1 * b2 + a2 * b1 + a2 * b2 + scaleLost * u;
        Lost = lost - lost == 0f ? lost : 0f;
    }
}
