namespace TransformerKernels;

/// <summary>What messages call the parts of a problem; formed once, for a check that finds nothing allocates nothing.</summary>
internal sealed class ProblemNames(string problem)
{
    public static readonly ProblemNames Problem = new("problem"), Policy = new("problem.Policy"), Reference = new("problem.Reference");

    public readonly string Hidden = $"{problem}.Hidden", Vocabulary = $"{problem}.Vocabulary", Targets = $"{problem}.Targets", Bias = $"{problem}.Bias", MeanWeights = $"{problem}.MeanWeights",
        Softcap = $"{problem}.Softcap", Temperature = $"{problem}.Temperature", ValidVocabulary = $"{problem}.ValidVocabulary";
}
