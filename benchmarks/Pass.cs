namespace TransformerKernels.Benchmarks;

/// <summary>Which pass over an operation is timed.</summary>
internal enum Pass
{
    Forward,
    /// <summary>The gradients alone; the forward pass has run before.</summary>
    Backward,
    /// <summary>Both.</summary>
    Train,
}
