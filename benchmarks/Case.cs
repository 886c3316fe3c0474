namespace TransformerKernels.Benchmarks;

/// <summary>One line of the comparison.</summary>
/// <param name="Name">family/operation/variant.</param>
/// <param name="Shape">What it is run on, for people.</param>
/// <param name="Cost">What it needs.</param>
/// <param name="Must">The share of the limit that it has to reach.</param>
/// <param name="Aim">The share that we are here for.</param>
/// <param name="Prepare">Makes the data.</param>
internal sealed record Case(string Name, string Shape, Cost Cost, double Must, double Aim, Func<ComputeDevice, Contest> Prepare)
{
    /// <summary>If set, <see cref="Must"/> and <see cref="Aim"/> are the most megabytes of memory that it may take beside inputs and outputs, and it runs once.</summary>
    public bool CountsMemory { get; init; }
}

/// <summary>Cases whose operation isn't written yet.</summary>
/// <param name="Names">family/operation/variant.</param>
/// <param name="WaitingFor">What has to come first.</param>
internal sealed record MissingCases(string[] Names, string WaitingFor);
