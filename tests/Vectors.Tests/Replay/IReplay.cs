using System.Numerics;

namespace TransformerKernels.Tests;

/// <summary>Runs the cases of one family. The families stand in <see cref="Families.All"/>.</summary>
public interface IReplay
{
    /// <summary>Whether a case is this family's.</summary>
    bool Owns(VectorCase vector);

    /// <summary>What the library computes. Throws <see cref="NotReplayedException"/> if the library lacks something that the case needs.</summary>
    Results<float> Library(VectorCase vector);

    /// <summary>What the oracle says: in double it proves the oracle, in float it is the naive evaluation. Null if the oracle doesn't cover the family.</summary>
    Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>;

    /// <summary>Whether an output is a yardstick or a remark (another code's answer, an error measured there) rather than an answer to compare with.</summary>
    bool IsRemark(VectorCase vector, string output) => false;

    /// <summary>Of a reference that itself rounds to float32: how far it may be from the truth, as a share of the larger of 1 and the largest number. Null in float64.</summary>
    double? ReferenceError(VectorCase vector) => vector.ComputedInFloat32 ? 2e-5 : null;

    /// <summary>How closely the oracle in double has to agree with a reference in float64.</summary>
    double OracleTolerance => 1e-9;
}

/// <summary>The case needs something that the library doesn't offer; the message says what.</summary>
public sealed class NotReplayedException(string what) : Exception(what);

/// <summary>Computed numbers under the names that the file uses.</summary>
public sealed class Results<T> where T : unmanaged
{
    private readonly Dictionary<string, Result<T>> outputs = [], gradients = [];

    public IReadOnlyDictionary<string, Result<T>> Outputs => outputs;

    public IReadOnlyDictionary<string, Result<T>> Gradients => gradients;

    /// <summary>An output; of the whole tensor even where the file has samples only.</summary>
    /// <param name="name">The file's name of it.</param>
    /// <param name="values">Row-major.</param>
    /// <param name="batch">The tensor is [batch, heads, ...], and each head is judged by itself; 1 and 1 where there are none.</param>
    /// <param name="heads">See batch.</param>
    /// <param name="within">Without an oracle: how far it may be off, one number for all or one for each.</param>
    /// <param name="magnitude">The oracle's: of a number that is a sum, the sum of its terms' absolute values.</param>
    public void Output(string name, T[] values, int batch = 1, int heads = 1, double[]? within = null, double magnitude = 0) =>
        outputs.Add(name, new(values, batch, heads, within, magnitude));

    /// <summary>A gradient, likewise.</summary>
    public void Gradient(string name, T[] values, int batch = 1, int heads = 1, double[]? within = null, double magnitude = 0) =>
        gradients.Add(name, new(values, batch, heads, within, magnitude));
}

/// <summary>One tensor of <see cref="Results{T}"/>.</summary>
public sealed record Result<T>(T[] Values, int Batch, int Heads, double[]? Within, double Magnitude);
