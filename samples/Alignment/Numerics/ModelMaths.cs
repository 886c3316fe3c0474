using TransformerKernels;

namespace Alignment;

/// <summary>
/// The plain mathematics of the model and of its training: what isn't the library's work. One form a kind of device; model and trainer know this class only.
/// </summary>
/// <remarks>
/// Tensors are float32, row-major without gaps unless said otherwise, in the device's memory. Work is queued, as the library's is. Every sum has one order, which
/// the shapes fix: the same inputs give the same bits.
/// </remarks>
internal abstract class ModelMaths : IDisposable
{
    /// <summary>Where it runs, and where the library's operations run beside it.</summary>
    public abstract ComputeDevice Device { get; }

    /// <summary>What the device was asked for so far, by this class and by the library.</summary>
    public abstract DeviceTraffic Traffic { get; }

    /// <summary>y = x·Wᵀ, or addend + x·Wᵀ.</summary>
    /// <param name="x">[rows, inputs].</param>
    /// <param name="weight">[outputs, inputs].</param>
    /// <param name="y">[rows, outputs].</param>
    /// <param name="addend">As <paramref name="y"/>, or <paramref name="y"/> itself; nothing is added if absent.</param>
    public abstract void Product(TensorView x, TensorView weight, TensorView y, TensorView addend = default);

    /// <summary>dx = dy·W, or addend + dy·W.</summary>
    /// <param name="dy">[rows, outputs].</param>
    /// <param name="weight">[outputs, inputs].</param>
    /// <param name="dx">[rows, inputs].</param>
    /// <param name="addend">As <paramref name="dx"/>, or <paramref name="dx"/> itself; nothing is added if absent.</param>
    public abstract void ProductInputGradient(TensorView dy, TensorView weight, TensorView dx, TensorView addend = default);

    /// <summary>dW += dyᵀ·x.</summary>
    /// <param name="dy">[rows, outputs].</param>
    /// <param name="x">[rows, inputs].</param>
    /// <param name="weightGradient">[outputs, inputs].</param>
    public abstract void ProductWeightGradient(TensorView dy, TensorView x, TensorView weightGradient);

    /// <summary>y = w ∘ x / √(mean x² + ε), row by row.</summary>
    /// <param name="x">[rows, width].</param>
    /// <param name="weight">[width].</param>
    /// <param name="epsilon">ε.</param>
    /// <param name="y">[rows, width].</param>
    /// <param name="inverseRms">[rows]: 1 / √(mean x² + ε), for the backward pass.</param>
    public abstract void Norm(TensorView x, TensorView weight, float epsilon, TensorView y, TensorView inverseRms);

    /// <summary>Adds the gradients of <see cref="Norm"/> to <paramref name="dx"/> and <paramref name="weightGradient"/>.</summary>
    public abstract void NormBackward(TensorView dy, TensorView x, TensorView weight, TensorView inverseRms, TensorView dx, TensorView weightGradient);

    /// <summary>SwiGLU, element by element: y = gate · σ(gate) · up.</summary>
    /// <param name="gate">[rows, width].</param>
    /// <param name="up">[rows, width].</param>
    /// <param name="sigmoid">[rows, width]: σ(gate), for the backward pass.</param>
    /// <param name="y">[rows, width].</param>
    public abstract void Gate(TensorView gate, TensorView up, TensorView sigmoid, TensorView y);

    /// <summary>Puts the gradients of <see cref="Gate"/>'s inputs where <paramref name="gate"/> and <paramref name="up"/> stood.</summary>
    public abstract void GateBackward(TensorView dy, TensorView gate, TensorView up, TensorView sigmoid);

    /// <summary>result[i] = table[rows[i]].</summary>
    /// <param name="table">[any, width].</param>
    /// <param name="rows">[n], int32, each a row of the table.</param>
    /// <param name="result">[n, width].</param>
    public abstract void Gather(TensorView table, TensorView rows, TensorView result);

    /// <summary>result[rows[i]] = values[i]; the other rows stay.</summary>
    /// <param name="values">[n, width].</param>
    /// <param name="rows">[n], int32, all different.</param>
    /// <param name="result">[any, width].</param>
    public abstract void Scatter(TensorView values, TensorView rows, TensorView result);

    /// <summary>table[token of row i] += values[i], in the order of the rows.</summary>
    /// <param name="values">[rows, width].</param>
    /// <param name="batch">The tokens of the rows.</param>
    /// <param name="table">[vocabulary, width].</param>
    public abstract void AddByToken(TensorView values, TokenBatch batch, TensorView table);

    /// <summary>Copies a tensor of up to three axes; each of the two has strides of its own, and the last axis without gaps.</summary>
    public abstract void Copy(TensorView from, TensorView to);

    /// <summary>Sets every element of a vector.</summary>
    public abstract void Fill(TensorView vector, float value);

    /// <summary>mean[0] = Σ vector / n.</summary>
    public abstract void Mean(TensorView vector, TensorView mean);

    /// <summary>sums[i] = Σ values[starts[i] .. starts[i + 1]].</summary>
    /// <param name="values">[n].</param>
    /// <param name="starts">[segments + 1], int32, ascending from 0 to n.</param>
    /// <param name="sums">[segments].</param>
    public abstract void SumSegments(TensorView values, TensorView starts, TensorView sums);

    /// <summary>Moves weights against their gradients; see <see cref="AdamW"/>.</summary>
    /// <param name="values">[n].</param>
    /// <param name="gradients">[n].</param>
    /// <param name="first">[n]: the running mean of the gradients.</param>
    /// <param name="second">[n]: that of their squares.</param>
    /// <param name="step">What this step is made of.</param>
    public abstract void Update(TensorView values, TensorView gradients, TensorView first, TensorView second, in AdamWStep step);

    /// <summary>The norm of all gradients together that the last <see cref="Update"/> found. Waits for it.</summary>
    public abstract double GradientNorm { get; }

    /// <summary>Chooses a token from each row of logits: the likeliest, or one drawn from the distribution. Waits for them.</summary>
    /// <param name="logits">[rows, vocabulary]; may be overwritten.</param>
    /// <param name="draws">[rows], from 0 up to 1: where in the distribution each row's token is drawn. Empty: the likeliest, of equals the first.</param>
    /// <param name="tokens">[rows], on the host.</param>
    public abstract void Choose(TensorView logits, ReadOnlySpan<double> draws, Span<int> tokens);

    public abstract void Dispose();
}
