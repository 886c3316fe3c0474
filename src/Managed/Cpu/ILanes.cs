namespace TransformerKernels;

/// <summary>So many floats side by side: what a CPU kernel is written in, once for every instruction set.</summary>
internal interface ILanes<T> : IElementary<T> where T : struct, ILanes<T>
{
    /// <summary>How many floats.</summary>
    static abstract int Count { get; }
    /// <summary>Reads <see cref="Count"/> floats; no alignment is needed.</summary>
    static abstract unsafe T Load(float* source);
    /// <summary>Writes <see cref="Count"/> floats; no alignment is needed.</summary>
    unsafe void Store(float* destination);
    /// <summary>start, start + 1, start + 2 ...</summary>
    static abstract T Iota(float start);
    /// <summary>The sum of the lanes, in an order fixed by the width.</summary>
    float Sum();
    /// <summary>Whether a &lt; b in any lane.</summary>
    static abstract bool AnyLess(T a, T b);
    /// <summary>Whether a = b in any lane.</summary>
    static abstract bool AnyEqual(T a, T b);
    /// <summary>The larger one; what a NaN gives depends on the processor.</summary>
    static abstract T MaxNative(T a, T b);
    /// <summary>The largest lane; what a NaN gives depends on the processor.</summary>
    float Largest();
    /// <summary>Of the 2 · <see cref="Count"/> floats in a and b: those at even and those at odd places.</summary>
    static abstract void Unzip(T a, T b, out T even, out T odd);
    /// <summary>Undoes <see cref="Unzip"/>.</summary>
    static abstract void Zip(T even, T odd, out T a, out T b);
    /// <summary>2^x for x &lt; 127, NaN for NaN; a result below the normal numbers may be 0. Largest error: 2 ulp.</summary>
    /// <remarks>Half as long as <see cref="IReal{T}.Exp"/>: for weights, whose exponents don't exceed 0 by more than rounding.</remarks>
    static abstract T Exp2(T x);
    /// <summary>Four of <see cref="Exp2(T)"/> side by side: the compiler keeps instructions in the order of the text, and a constant in a register only if several use it.</summary>
    static abstract void Exp2(T x0, T x1, T x2, T x3, out T y0, out T y1, out T y2, out T y3);
}

internal static class LanesConstants
{
    /// <summary>The bits of the float √½.</summary>
    public const int SqrtHalfBits = 0x3f3504f3;

    /// <summary>The exponent at which PowerOfTwo, made for −126 and above, gives 0.</summary>
    public const float Exp2Low = -127;

    /// <summary>What tells the processor to subtract the next integer below: no bits of fraction kept, rounding down, no exceptions.</summary>
    public const byte DownToInteger = 0x09;
}
