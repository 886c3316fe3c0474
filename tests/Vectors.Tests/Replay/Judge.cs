using System.Globalization;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

public enum Outcome
{
    /// <summary>Every output and gradient agrees, or is what disagree.txt says.</summary>
    Passed,
    /// <summary>Something is further off than the contract allows, or threw.</summary>
    Wrong,
    /// <summary>The library can't run it, or not all of it; what it can run agrees.</summary>
    NotSupported,
}

/// <summary>What became of a case.</summary>
/// <param name="Message">What is wrong or missing.</param>
/// <param name="LargestError">The largest |ours − theirs|, as a share of the larger of 1 and the largest number of its tensor.</param>
/// <param name="ShareOfAllowed">The largest |ours − theirs|, as a share of what the contract allows there.</param>
/// <param name="Compared">How many of its outputs and gradients were compared.</param>
public sealed record Verdict(Outcome Outcome, string Message, double LargestError = 0, double ShareOfAllowed = 0, int Compared = 0);

/// <summary>Compares what is computed with what the file says.</summary>
public static class Judge
{
    /// <summary>Judges the library.</summary>
    public static Verdict Library(VectorCase vector, IEnumerable<Disagreement> disagreements)
    {
        IReplay? family = Families.Of(vector);
        if (family is null)
            return new(Outcome.NotSupported, "nobody replays it");
        Disagreement[] ours = [.. disagreements];
        string? exception = ours.Select(line => line.Exception).FirstOrDefault(name => name is not null);
        Results<float> results;
        try
        {
            results = family.Library(vector);
        }
        catch (Exception missing) when (missing is NotReplayedException or NotSupportedException)
        {
            return new(Outcome.NotSupported, missing.Message);
        }
        catch (Exception thrown) when (thrown.GetType().Name == exception)
        {
            return new(Outcome.Passed, $"throws {exception}");
        }
        catch (Exception thrown)
        {
            return new(Outcome.Wrong, $"{thrown.GetType().Name}: {thrown.Message}");
        }
        if (exception is not null)
            return new(Outcome.Wrong, $"didn't throw {exception}");

        Results<double>? truth = family.Oracle<double>(vector);
        Results<float>? naive = family.Oracle<float>(vector);
        var missed = new List<string>();
        double error = 0, share = 0;
        int compared = 0;
        foreach ((string entry, VectorTensor tensor) in Entries(vector, family))
        {
            if (Find(results, entry) is not { } result)
            {
                missed.Add(entry);
                continue;
            }
            try
            {
                double[] theirs = Expected(vector, tensor, ours, entry);
                Result<double> exact = truth is null ? new([], 1, 1, null, 0) : Find(truth, entry)!;
                float[] rough = naive is null ? [] : Find(naive, entry)!.Values;
                double factor = entry.StartsWith("outputs/", StringComparison.Ordinal) ? Contract.Forward : Contract.Gradient;
                share = Math.Max(share, Compare(entry, result, theirs, tensor, exact, rough, factor, family.ReferenceError(vector)));
                error = Math.Max(error, RelativeError(Sample(result.Values, tensor), theirs));
                compared++;
            }
            catch (ContractException broken)
            {
                return new(Outcome.Wrong, broken.Message);
            }
        }
        if (missed.Count > 0 || compared == 0)
            return new(Outcome.NotSupported, compared == 0 ? "nothing to compare" : $"without {string.Join(", ", missed)}", error, share, compared);
        return new(Outcome.Passed, "", error, share, compared);
    }

    /// <summary>Judges the oracle, where it covers the case: null if it doesn't, "" if it agrees.</summary>
    public static string? Oracle(VectorCase vector, IEnumerable<Disagreement> disagreements)
    {
        if (Families.Of(vector) is not { } family)
            return null;
        Results<double>? results;
        try
        {
            results = family.Oracle<double>(vector);
        }
        catch (NotReplayedException)
        {
            return null;
        }
        if (results is null)
            return null;
        Disagreement[] ours = [.. disagreements];
        foreach ((string entry, VectorTensor tensor) in Entries(vector, family))
        {
            if (Find(results, entry) is not { } result)
                continue;
            double[] theirs = Expected(vector, tensor, ours, entry), exact = Sample(result.Values, tensor);
            if (exact.Length != theirs.Length)
                return $"{vector.Id}: {entry} has {exact.Length} numbers, the file {theirs.Length}";
            double tolerance = family.ReferenceError(vector) ?? family.OracleTolerance, allowed = tolerance * Scale(theirs);
            for (int i = 0; i < theirs.Length; i++)
            {
                bool same = double.IsFinite(theirs[i]) ? Math.Abs(exact[i] - theirs[i]) <= allowed : exact[i].Equals(theirs[i]);
                if (!same)
                    return FormattableString.Invariant($"{vector.Id}: {entry}[{i}] is {exact[i]}, the file says {theirs[i]}");
            }
            if (tensor.Indices is not null)
            {
                double sum = (tensor.Digest("sumAbs") + result.Magnitude) * tolerance; // what cancels leaves its rounding behind
                foreach ((string name, double value) in Digests(result.Values))
                {
                    if (!(Math.Abs(value - tensor.Digest(name)) <= sum))
                        return FormattableString.Invariant($"{vector.Id}: the {name} of {entry} is {value}, the file says {tensor.Digest(name)}");
                }
            }
        }
        return "";
    }

    private static double Compare(string entry, Result<float> result, double[] theirs, VectorTensor tensor, Result<double> oracle, float[] rough, double factor, double? referenceError)
    {
        float[] values = result.Values;
        double[] exact = oracle.Values;
        if (result.Within is { } within)
            return Near(entry, Sample(values, tensor), theirs, within);
        // A reference in float32 is no truth to measure rounding against: near it by its own error, and near the oracle by the contract.
        if (referenceError is { } error)
            return Math.Max(Near(entry, Sample(values, tensor), theirs, [error * Scale(theirs)]), Contract.Check(values, exact, rough, factor, entry, result.Heads, result.Batch, oracle.Magnitude));
        if (tensor.Indices is not { } indices)
            return Contract.Check(values, theirs, exact, rough, factor, entry, result.Heads, result.Batch, oracle.Magnitude);
        // All of them against the oracle, which has to agree with the file; the samples and the sums against the file's, by what the whole tensor is allowed.
        double share = Contract.Check(values, exact, rough, factor, entry, result.Heads, result.Batch, oracle.Magnitude), allowed = Contract.Allowed(exact, rough, factor, oracle.Magnitude);
        share = Math.Max(share, Near(entry, Sample(values, tensor), theirs, [allowed]));
        foreach ((string name, double value) in Digests(Array.ConvertAll(values, x => (double)x)))
        {
            if (!(Math.Abs(value - tensor.Digest(name)) <= values.Length * allowed))
                throw new ContractException(string.Create(CultureInfo.InvariantCulture, $"{entry}: the {name} is {value}, the file says {tensor.Digest(name)}"));
        }
        return share;
    }

    // Allowed is one number for all, or one for each.
    private static double Near(string entry, double[] ours, double[] theirs, double[] allowed)
    {
        if (ours.Length != theirs.Length || allowed.Length != 1 && allowed.Length != theirs.Length)
            throw new ContractException($"{entry}: {ours.Length} numbers, the file has {theirs.Length}.");
        double worst = 0;
        for (int i = 0; i < theirs.Length; i++)
        {
            double difference = ours[i].Equals(theirs[i]) ? 0 : Math.Abs(ours[i] - theirs[i]), bound = allowed.Length == 1 ? allowed[0] : allowed[i];
            if (!(difference <= bound))
                throw new ContractException(FormattableString.Invariant($"{entry}: [{i}] is {ours[i]:G9}, the file says {theirs[i]:G12}; {bound:G3} allowed."));
            worst = Math.Max(worst, difference == 0 ? 0 : difference / bound);
        }
        return worst;
    }

    private static IEnumerable<(string Entry, VectorTensor Tensor)> Entries(VectorCase vector, IReplay family) =>
        vector.Outputs.Where(output => !family.IsRemark(vector, output.Key)).Select(output => ("outputs/" + output.Key, output.Value))
            .Concat(vector.Gradients.Where(gradient => !family.IsRemark(vector, gradient.Key)).Select(gradient => ("gradients/" + gradient.Key, gradient.Value)));

    private static Result<T>? Find<T>(Results<T> results, string entry) where T : unmanaged
    {
        int slash = entry.IndexOf('/');
        return (entry.StartsWith("outputs/", StringComparison.Ordinal) ? results.Outputs : results.Gradients).GetValueOrDefault(entry[(slash + 1)..]);
    }

    private static double[] Expected(VectorCase vector, VectorTensor tensor, Disagreement[] disagreements, string entry)
    {
        Disagreement? instead = disagreements.FirstOrDefault(line => line.Entry == entry);
        return instead is null ? tensor.Data : instead.Replace(vector, tensor.Data);
    }

    private static T[] Pick<T>(T[] values, int[] indices) => Array.ConvertAll(indices, i => values[i]);

    private static double[] Sample<T>(T[] values, VectorTensor tensor) where T : unmanaged =>
        Array.ConvertAll(tensor.Indices is { } indices ? Pick(values, indices) : values, x => Convert.ToDouble(x, CultureInfo.InvariantCulture));

    // Over the finite ones; dot is with the generator's numbers of seed 1.
    private static IEnumerable<(string Name, double Value)> Digests(double[] values)
    {
        double[] finite = Array.ConvertAll(values, x => double.IsFinite(x) ? x : 0), weights = VectorTensor.Generate(1, 1, 16, values.Length);
        yield return ("sum", finite.Sum());
        yield return ("sumAbs", finite.Sum(Math.Abs));
        yield return ("dot", finite.Zip(weights, (x, w) => x * w).Sum());
    }

    private static double Scale(double[] numbers) => numbers.Where(double.IsFinite).Select(Math.Abs).Append(1).Max();

    private static double RelativeError(double[] ours, double[] theirs)
    {
        double worst = 0;
        for (int i = 0; i < theirs.Length; i++)
        {
            if (double.IsFinite(theirs[i]) && double.IsFinite(ours[i]))
                worst = Math.Max(worst, Math.Abs(ours[i] - theirs[i]));
        }
        return worst / Scale(theirs);
    }
}
